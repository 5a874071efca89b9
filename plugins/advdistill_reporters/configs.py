"""Settings of the reporters."""

from __future__ import annotations

from pydantic import Field

from advdistill import Config


class Console(Config):
    """Talk on stderr."""

    plain: bool = False
    """Plain lines on a terminal too."""


class Pictures(Config):
    """PNG files."""

    dpi: int = Field(120, ge=50, le=600)
    """Dots per inch; a picture of 8 samples is about 12 inches wide."""
