"""Settings of the demo's components."""

from __future__ import annotations

from pydantic import Field

from advdistill import Config


class Digits(Config):
    """Handwritten digits."""

    templates: list[str] = Field(["a photo of the digit {}."], min_length=1)
    """Sentences that a class name is put into; several are averaged."""

    split_seed: int = 0
    """Seed of the division into 1,197 training, 200 validation and 400 test images."""

    shots: int = Field(0, ge=0)
    """Training images per class; 0: all. Validation and test stay whole."""

    shots_seed: int = 1
    """Seed of the few-shot draw."""

    shift: int = Field(0, ge=0, le=8)
    """Training images are moved by up to this many pixels each way, their edges repeated; 0: not moved."""
