"""Settings of the demo's components."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from advdistill import Config


class Drawn(Config):
    """What every data set takes: how much of it one trains on."""

    shots: int = Field(0, ge=0)
    """Training images per class; 0: all. Validation and test stay whole."""

    shots_seed: int = 1
    """Seed of the few-shot draw."""

    shift: int = Field(0, ge=0, le=8)
    """Training images are moved by up to this many pixels each way, their edges repeated; 0: not moved."""


class Digits(Drawn):
    """Handwritten digits."""

    templates: list[str] = Field(["a photo of the digit {}."], min_length=1)
    """Sentences that a class name is put into; several are averaged."""

    split_seed: int = 0
    """Seed of the division into 1,197 training, 200 validation and 400 test images."""


Variant = Literal["plain", "inverted", "thick", "blurred", "swapped"]


class PairSet(Drawn):
    """What every set of pictures side by side takes."""

    combinations: Literal["all", "seen", "unseen"] = "all"
    """Which combinations the images show: all 100, the 80 of the shipped models' pre-training, or the other 20."""

    names: Literal["all", "own"] = "all"
    """Which names there are to choose from: all 100, or those of `combinations`."""

    pairs: int = Field(60, ge=1)
    """Training pairs of each combination, before `shots`."""

    split_seed: int = 0
    """Seed of the division of the pictures, and of their pairing in each part."""

    variant: Variant = "plain"
    """What is done to all images: levels inverted; strokes grown by a pixel each way; a Gaussian blur of standard
    deviation 1 pixel; or the two pictures, and the label with them, change places."""


class NumberPairs(PairSet):
    """Two handwritten digits side by side."""

    templates: list[str] = Field(["the number {}."], min_length=1)
    """Sentences that a class name is put into; several are averaged."""

    contrast: float = Field(1 / 3, gt=0, le=1)
    """Share of the grey levels that the scans span, around the middle. At full contrast a change by 2/255 misleads few
    undefended models; the fainter, the more an attacker of that radius has to say."""


class Photographs(Config):
    """Where photographs are, and which of them validate."""

    root: str
    """A tar archive, or a folder, of {train,test}/CLASS/*.jpg, 32x32; `~` and `package:file` are understood."""

    val: int = Field(2000, ge=0)
    """Photographs that validate, taken from those to train on in proportion per class."""

    flip: bool = True
    """Training photographs are mirrored every other time."""


class Photos(Drawn, Photographs):
    """Photographs in class folders."""

    templates: list[str] = Field(["a photo of a {}."], min_length=1)
    """Sentences that a class name is put into; several are averaged."""

    split_seed: int = 0
    """Seed of the draw of the validation photographs."""


class PhotoPairs(PairSet, Photographs):
    """Two photographs side by side."""

    templates: list[str] = Field(["{}."], min_length=1)
    """Sentences that a class name is put into; several are averaged."""
