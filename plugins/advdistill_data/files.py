"""Image files: found in a fixed order, decoded to RGB whatever they are, brought to one size."""

from __future__ import annotations

import hashlib
import os
import random
import struct
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from advdistill import ClassSet, DataError, Dataset, MissingData, Noise, Split, few_shot, resource
from advdistill_data import configs
from advdistill_data.crops import crop_flip

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_RECORDED_IDS = 2000
_Picture = TypeVar("_Picture", Image.Image, Tensor)


def existing_folder(path: str) -> Path:
    """The folder at `path`. Raises MissingData where there is nothing, DataError where there is something else."""
    root = resource(path)
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(f"{root} is not a folder", "if it is an archive, unpack it and give the folder")
    raise MissingData(f"there is no folder {root}", "correct data.root; a relative path starts at the current folder")


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders in `folder`, sorted."""
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def images_below(root: Path, folder: str) -> list[str]:
    """Image files anywhere below `root/folder`, as sorted `/`-separated paths relative to `root`.

    Hidden files and other suffixes are passed over; symbolic links are followed, each folder once.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()

    def walk(relative: str) -> None:
        facts = (root / relative).stat()
        if (facts.st_dev, facts.st_ino) in seen:
            return
        seen.add((facts.st_dev, facts.st_ino))
        for entry in _entries(root / relative):
            below = f"{relative}/{entry.name}"
            if entry.is_dir():
                walk(below)
            elif entry.name.lower().endswith(SUFFIXES):
                found.append(below)

    walk(folder)
    return sorted(found)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}", "check its permissions") from error
    return sorted(visible, key=lambda entry: entry.name)


def decode(path: Path) -> Image.Image:
    """The image at `path` as 8-bit RGB, upright.

    Transparent pixels lie on white, 16-bit levels are scaled, CMYK and palettes converted, EXIF rotation applied;
    of an animation the first frame counts.

    Raises:
        DataError: the file is missing, truncated, not an image, or of a pixel type without a fixed range.
    """
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _to_rgb(upright)
    except FileNotFoundError as error:
        raise DataError(f"image {path} is missing", "restore the file or remove the link") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image of a known format", "replace or remove the file") from error
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise DataError(f"image {path} cannot be read: {reason}", "replace or remove the file") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("it holds floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):
        levels = np.asarray(image).clip(0, 65535)
        return Image.fromarray(np.round(levels / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


def _canvas_side(size: int) -> int:
    """256 for 224, the usual pair."""
    return round(size * 8 / 7)


class FileSplit(Split):
    """Image files below one folder.

    Args:
        root: the folder. ids: paths relative to it. labels: (N,) long.
        config: size, resize and augment.
    """

    decodes = True

    def __init__(self, root: Path, ids: Sequence[str], labels: Tensor, config: configs.Images) -> None:
        self.root, self.ids, self.labels, self.config = root, ids, labels, config
        self.augments = config.augment != "none"

    def load(self, index: int) -> Tensor:
        return F.pil_to_tensor(self._square(self._decoded(index), self.config.size))

    def canvas(self, index: int) -> Tensor:
        """The image itself, or a somewhat larger square that crops are taken from.

        Torch resizes the latter, six times as fast as Pillow, by whom images are resized that are evaluated; of 250
        values one is another, by a level or two of 255.
        """
        if not self.augments:
            return self.load(index)
        return self._square(F.pil_to_tensor(self._decoded(index)), _canvas_side(self.config.size))

    def augment(self, canvases: Tensor, noise: Noise) -> Tensor:
        return crop_flip(canvases, self.config.size, noise) if self.augments else canvases

    @cached_property
    def version(self) -> str:
        """Hash of names, labels, settings, and of every file's length and time of change."""
        found = hashlib.sha256(f"{self.digest}/{self.config.size}/{self.config.resize}".encode())
        for name in self.ids:
            try:
                facts = (self.root / name).stat()
            except OSError as error:
                raise DataError(
                    f"image {self.root / name} is missing: {error.strerror}", "restore the file or remove the link"
                ) from error
            found.update(f"{facts.st_size}/{facts.st_mtime_ns}\n".encode())
        return found.hexdigest()[:16]

    def _decoded(self, index: int) -> Image.Image:
        return decode(self.root / self.ids[index])

    def _square(self, image: _Picture, side: int) -> _Picture:
        if self.config.resize == "squash":
            return F.resize(image, [side, side], InterpolationMode.BICUBIC)
        return F.center_crop(F.resize(image, [side], InterpolationMode.BICUBIC), [side, side])

    def take(self, indices: Tensor) -> FileSplit:
        """The samples at `indices`, in their order."""
        return FileSplit(self.root, [self.ids[i] for i in indices.tolist()], self.labels[indices], self.config)


class FileDataset(Dataset):
    """Splits of image files, reduced to a few shots where the settings say so.

    Args:
        names: class names in label order.
        splits: "train", "val" and "test"; empty ones stand for those that do not exist.

    Raises:
        DataError: fewer than two classes, or a class with fewer training images than shots.
    """

    config: Any

    def __init__(self, config: Any, names: Sequence[str], splits: dict[str, FileSplit]) -> None:
        super().__init__(config)
        if len(names) < 2:
            raise DataError(
                f"{config.root} holds one class only: {', '.join(names)}",
                "a classifier needs two or more: one folder per class",
            )
        self.classes = ClassSet(tuple(names), tuple(config.templates))
        if config.shots:
            rng, train, val = random.Random(config.shots_seed), splits["train"], splits["val"]
            splits = {
                "train": train.take(few_shot(train.labels, config.shots, rng, names)),
                "val": val.take(few_shot(val.labels, min(config.shots, 4), rng, names, at_most=True)),
                "test": splits["test"],
            }
        self._splits = splits

    def split(self, name: str) -> Split:
        if name not in self._splits:
            raise DataError(f"there is no split {name!r}", "use train, val or test")
        if not len(self._splits[name]):
            raise DataError(
                f"the {name} split of {self.config.root} holds no images",
                f"add a {name} folder of class folders, or let a larger share of the images become it",
            )
        return self._splits[name]

    def record(self) -> dict[str, Any]:
        """Counts and digests of the splits; of a few-shot draw also the files, if they are few enough to list."""
        facts: dict[str, Any] = {
            "split_seed": self.config.split_seed,
            "shots": self.config.shots,
            "shots_seed": self.config.shots_seed,
            "splits": {name: {"count": len(s), "sha256": s.digest} for name, s in self._splits.items()},
        }
        drawn = {name: list(self._splits[name].ids) for name in ("train", "val")}
        if self.config.shots and sum(map(len, drawn.values())) <= _RECORDED_IDS:
            facts["ids"] = drawn
        return facts
