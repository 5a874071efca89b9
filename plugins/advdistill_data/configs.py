"""Settings of datasets of image files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from advdistill import Config


class Images(Config):
    """What every dataset of image files takes."""

    root: str
    """Folder of the data; `~` and `package:folder` are understood."""

    size: int = Field(224, ge=8)
    """Side in pixels of the square images that are attacked and shown to models."""

    resize: Literal["crop", "squash"] = "crop"
    """`crop`: shorter side to `size`, then the centre; `squash`: both sides to `size`. Bicubic, antialiased."""

    augment: Literal["none", "crop-flip"] = "none"
    """In training. `crop-flip`: the image is brought to a square of 8/7 of `size`, by the rule of `resize`; of this, in
    every epoch anew, a random crop of 8 to 100 % of the area and of aspect 3/4 to 4/3 is brought to `size`, bicubic and
    antialiased, and flipped every other time."""

    shots: int = Field(0, ge=0)
    """Training images per class, and up to 4 validation images per class; 0: all."""

    shots_seed: int = 1
    """Seed of the few-shot draw."""

    split_seed: int = 0
    """Seed by which splits that the tree does not have are taken from what it has."""


class Folder(Images):
    """A tree of class folders."""

    templates: list[str] = Field(["a photo of a {}."], min_length=1)
    """Sentences that a class name is put into; several are averaged."""

    val_share: float = Field(0.1, ge=0, le=1)
    """Share of the images that become the validation split where there is no val folder."""

    test_share: float = Field(0.2, ge=0, le=1)
    """Share of the images that become the test split where there is no test folder."""

    classes: list[str] = Field([])
    """Class names in the order of the sorted folder names; empty: the folder names, `_` read as a space."""

    class_names: str = ""
    """A file of class names instead: JSON, {folder: name} or a list, or text, one name a line in folder order."""

    @model_validator(mode="after")
    def _consistent(self) -> Folder:
        if self.val_share + self.test_share > 1:
            raise ValueError("val_share and test_share together must not exceed 1")
        if self.classes and self.class_names:
            raise ValueError("give classes or class_names, not both")
        return self


class ImageNet(Images):
    """ImageNet-1k. Its validation images are the test split, as in every published protocol."""

    templates: list[str] = Field(["This is a photo of a {}"], min_length=1)
    """Sentences that a class name is put into; several are averaged."""

    val_per_class: int = Field(5, ge=0)
    """Training images per class that are kept apart to validate on."""

    classnames: str = ""
    """Text file, `n01440764 tench` a line. Classes are the folders that it names; empty: all 1,000, by open_clip."""
