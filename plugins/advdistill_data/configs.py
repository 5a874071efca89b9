"""Settings of datasets of image files."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from advdistill import Config


class Pictures(Config):
    """What every data set of pictures takes."""

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


class Own(Pictures):
    """Data of one's own, whose classes are called as its owner says, and which need not be divided."""

    templates: list[str] = Field(["a photo of a {}."], min_length=1)
    """Sentences that a class name is put into; several are averaged."""

    val_share: float = Field(0.1, ge=0, le=1)
    """Share of the training images that becomes the validation split where there is none."""

    test_share: float = Field(0.2, ge=0, le=1)
    """Share of the training images that becomes the test split where there is none."""

    classes: list[str] = Field([])
    """Class names in label order (of folders: sorted); empty: what the data call them, `_` read as a space."""

    class_names: str = ""
    """A file of class names instead: JSON, {folder or label: name} or a list, or text, one name a line in label
    order."""

    @model_validator(mode="after")
    def _consistent(self) -> Own:
        if self.val_share + self.test_share > 1:
            raise ValueError("val_share and test_share together must not exceed 1")
        if self.classes and self.class_names:
            raise ValueError("give classes or class_names, not both")
        return self


class Folder(Own):
    """A tree of class folders."""

    root: str
    """Folder of the data; `~` and `package:folder` are understood."""


class Known(Pictures):
    """A published data set, in the folders that it is usually kept in."""

    root: str = ""
    """Its folder, or the one that holds it under its usual name; "": the usual one, below ADVDISTILL_DATA."""

    templates: list[str] = Field([])
    """Sentences that a class name is put into; several are averaged. Empty: those that `prompts` says."""

    prompts: Literal["one", "ensemble"] = "one"
    """`one`: the sentence that the set is usually learned with; `ensemble`: CLIP's list for the set, averaged."""

    @model_validator(mode="after")
    def _prompted_once(self) -> Known:
        if self.templates and self.prompts == "ensemble":
            raise ValueError("give templates or prompts: ensemble, not both")
        return self


class Published(Known):
    """One of the ten sets that CoOp (arXiv 2109.01134) added to ImageNet, in its folders."""

    split: Literal["auto", "zhou", "published"] = "auto"
    """`zhou`: CoOp's `split_zhou_*.json`; `published`: the lists that the set came with, or where it came with none,
    50 %, 20 % and 30 % of each class by `split_seed`; `auto`: `zhou` where that file is, else `published`, with a
    warning: its numbers cannot be compared with CoOp's. The lists of fgvc-aircraft are CoOp's too."""


class ImageNet(Known):
    """ImageNet-1k. Its validation images are the test split, as in every published protocol."""

    val_per_class: int = Field(5, ge=0)
    """Training images per class that are kept apart to validate on."""

    classnames: str = ""
    """Text file, `n01440764 tench` a line. Classes are the folders that it names; "": all, which must be those of the
    set's own `classnames.txt`, or where it has none ImageNet's 1,000, by the names of open_clip."""


class Shifted(Known):
    """Images of ImageNet's classes from elsewhere, to test on only."""

    among: Literal["own", "imagenet"] = "own"
    """Which classes an image is told from: those that the set has images of, 200 in imagenet-a and imagenet-r, or all
    1,000 of ImageNet."""

    classnames: str = ""
    """Text file, `n01440764 tench` a line. Classes are those that it names; "": the `classnames.txt` of the set, or of
    `imagenet` beside it, or open_clip's names."""

    @model_validator(mode="after")
    def _test_only(self) -> Shifted:
        if self.shots:
            raise ValueError("the set has test images only: leave out shots")
        return self


class Native(Pictures):
    """Pictures that may be taken as they are."""

    size: int = Field(224, ge=0)
    """Side in pixels of the square images that are attacked and shown to models; 0: images as they are, all of one
    size. This is the resolution at which the threat's eps acts; models resize what they are given."""

    @model_validator(mode="after")
    def _sized(self) -> Native:
        if 0 < self.size < 8:
            raise ValueError("size must be 0 or at least 8")
        if not self.size and self.augment != "none":
            raise ValueError("augment: crop-flip needs a size")
        return self


class Csv(Own):
    """A table of images and their classes, one image a row."""

    file: str
    """The table: text separated by commas or tabs, the first row names the columns; `~` and `package:file` are
    understood."""

    root: str = ""
    """Folder that relative paths in the table start at; "": the table's own."""

    path_column: str = "path"
    """Column of the images' paths."""

    label_column: str = "label"
    """Column of the classes: texts, labelled in their sorted order, or the labels 0, 1, … themselves."""

    split_column: str = "split"
    """Column of train, val (valid, validation) and test; where the table has no `split`, val_share and test_share
    decide."""

    separator: str = Field("", max_length=1)
    """What stands between columns; "": a tab in files that end in .tsv, a comma in others."""


class WebDataset(Native, Own):
    """Shards of samples, as the library webdataset writes them: uncompressed tar files on this machine."""

    shards: str = ""
    """Shards that are not divided: `data/all-{0000..0009}.tar`, `data/*.tar`, or a folder of them; see val_share and
    test_share."""

    train_shards: str = ""
    """Shards to train on, instead of `shards`."""

    val_shards: str = ""
    """Shards to validate on."""

    test_shards: str = ""
    """Shards to test on."""

    image: str = "jpg;jpeg;png;webp"
    """Suffixes of the members that are images; the first one that a sample has counts."""

    label: str = "cls"
    """Suffix of the member that is the class: the label 0, 1, … or a text."""

    label_field: str = ""
    """Where that member is JSON: the field that is the class."""

    @model_validator(mode="after")
    def _somewhere(self) -> WebDataset:
        divided = bool(self.train_shards or self.val_shards or self.test_shards)
        if divided == bool(self.shards):
            raise ValueError("give either shards, or some of train_shards, val_shards and test_shards")
        return self


class HuggingFace(Native, Own):
    """A data set that the library `datasets` reads, from this machine or from the Hugging Face hub."""

    path: str
    """Its name on the hub (owner/name), or a folder: of `save_to_disk`, of parquet files or of images."""

    config_name: str = ""
    """Which of its configurations, where it has several."""

    revision: str = ""
    """Commit, tag or branch on the hub; "": the newest. Give a commit for a run to be repeated."""

    image: str = ""
    """Column of the images; "": the only one that holds images."""

    label: str = ""
    """Column of the classes; "": the only one whose classes are named, or `label`."""

    train_split: str = ""
    """Its split to train on; "": train."""

    val_split: str = ""
    """Its split to validate on; "": val, valid, validation or dev, where there is one; see val_share."""

    test_split: str = ""
    """Its split to test on; "": test, where there is one; see test_share."""


class TorchVision(Native, Own):
    """A classification set of torchvision, read by its own reader; nothing is downloaded."""

    name: str
    """Class in torchvision.datasets, such as CIFAR10 or Flowers102."""

    root: str = ""
    """What torchvision calls root: the folder that holds the set's own; "": ADVDISTILL_DATA."""

    options: dict[str, Any] = Field({})
    """Further arguments of the class, such as {partition: 2} of DTD: numbers, texts, true or false."""

    @model_validator(mode="after")
    def _plain(self) -> TorchVision:
        for name, value in self.options.items():
            if not isinstance(value, (str, int, float)):
                raise ValueError(f"options.{name} must be a number, a text, true or false")
        return self


class Small(Native, Known):
    """A small published set, at its own resolution unless told otherwise."""

    size: int = Field(0, ge=0)
    """Side in pixels of the square images that are attacked and shown to models; 0: their own, 32 of CIFAR and 96 of
    STL-10 and PCam. This is the resolution at which the threat's eps acts; models resize what they are given."""

    val_share: float = Field(0.1, ge=0, le=1)
    """Share of the training images that becomes the validation split where there is none."""
