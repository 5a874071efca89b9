"""Settings of our attacks. The radius is not among them: it comes from the recipe's `threat`."""

from __future__ import annotations

from pydantic import Field, model_validator

from advdistill import Config, PixelDistance


class PGD(Config):
    """Projected gradient ascent."""

    steps: int = Field(10, ge=1)
    """Gradient steps of each restart."""
    step: PixelDistance = 0.0
    """Length of a step in the threat's norm; 0: 2.5 * eps / steps."""
    restarts: int = Field(1, ge=1)
    """Independent starts; each sample keeps the one with the highest objective."""
    momentum: float = Field(0.0, ge=0, le=1)
    """How much of the last direction stays: v <- momentum * v + sign(g), then a step along sign(v)."""
    random_start: bool = True
    """Start anywhere in the ball, not at the clean image."""

    @model_validator(mode="after")
    def _restarts_differ(self) -> PGD:
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts without random_start all end at the same image; set restarts: 1")
        return self


class FGSM(Config):
    """The fast gradient sign method."""

    step: PixelDistance = 0.0
    """Length of the step in the threat's norm; 0: eps, or 1.25 * eps from a random start (arXiv 2001.03994)."""
    random_start: bool = False
    """Start anywhere in the ball, not at the clean image."""
