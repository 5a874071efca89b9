"""Pictures: where they lie, decoded to RGB whatever they are, brought to one size."""

from __future__ import annotations

import hashlib
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from advdistill import DataError, Noise, Split
from advdistill_data import configs
from advdistill_data.crops import crop_flip

# Pillow's readers raise the last three for files that bear another format's suffix.
_UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError,
    RuntimeError, NotImplementedError, TypeError,
)  # fmt: skip
_MOST_ASPECT = 16
_Picture = TypeVar("_Picture", Image.Image, Tensor)


class Source(ABC):
    """Where pictures lie, each under the name that a split knows it by.

    Processes that decode get a copy of it, or share it: reading must change nothing in it.
    """

    @abstractmethod
    def picture(self, name: str) -> Image.Image:
        """8-bit RGB. Raises DataError, which names it, where it is missing or cannot be read."""

    @abstractmethod
    def stamp(self, name: str) -> str:
        """Changes when the picture does, or stands elsewhere in `parts`. Raises DataError where it is missing."""

    def size(self, name: str) -> int | None:
        """Bytes of the file that holds this picture and nothing else; None: there is none."""
        return None

    def parts(self) -> Sequence[Path]:
        """Files that hold many pictures."""
        return ()


class Files(Source):
    """One file a picture, below a folder.

    Args:
        root: the folder; names are paths relative to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._below = str(root)  # a million lengths are asked for: a Path each would take ten times as long

    def picture(self, name: str) -> Image.Image:
        return decode(self.root / name, str(self.root / name))

    def stamp(self, name: str) -> str:
        facts = self._facts(name)
        return f"{facts.st_size}/{facts.st_mtime_ns}"

    def size(self, name: str) -> int:
        return self._facts(name).st_size

    def _facts(self, name: str) -> os.stat_result:
        try:
            return os.stat(os.path.join(self._below, name))  # noqa: PTH116, PTH118
        except OSError as error:
            raise DataError(
                f"image {self.root / name} is missing: {error.strerror}", "restore the file or remove the link"
            ) from error


def stamp_of(file: Path) -> str:
    """Changes when a file that holds many images does. Raises DataError where it is missing."""
    try:
        facts = file.stat()
    except OSError as error:
        raise DataError(f"{file} is missing: {error.strerror}", "restore the file, or fetch the data again") from error
    return f"{facts.st_size}/{facts.st_mtime_ns}"


def decode(file: Path | IO[bytes], name: str) -> Image.Image:
    """An image as 8-bit RGB, upright; see `to_rgb`. EXIF rotation is applied; of an animation the first frame counts.

    Args:
        name: what to call it.

    Raises:
        DataError: the file is missing, truncated, not an image, or of a pixel type without a fixed range.
    """

    def opened() -> Image.Image:
        with Image.open(file) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))

    return readable(opened, name)


def readable(read: Callable[[], Image.Image], name: str) -> Image.Image:
    """What `read` gives. Raises DataError, which names it, where it cannot be read."""
    try:
        return read()
    except FileNotFoundError as error:
        raise DataError(f"image {name} is missing", "restore the file or remove the link") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image of a known format", "replace or remove the file") from error
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise DataError(f"image {name} cannot be read: {reason}", "replace or remove the file") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: transparent pixels lie on white, 16-bit levels are scaled, CMYK and palettes converted.

    Raises:
        ValueError: it holds floating-point pixels.
    """
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


class PictureSplit(Split):
    """Pictures out of one source.

    Args:
        source: where they lie. ids: their names there. labels: (N,) long.
        config: size, resize and augment.
    """

    decodes = True

    def __init__(self, source: Source, ids: Sequence[str], labels: Tensor, config: configs.Pictures) -> None:
        self.source, self.ids, self.labels, self.config = source, ids, labels, config
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
        """Hash of names, labels, settings, and of what changes with each picture, such as its file's length and time of
        change."""
        found = hashlib.sha256(f"{self.digest}/{self.config.size}/{self.config.resize}".encode())
        found.update("".join(f"{self.source.stamp(name)}\n" for name in self.ids).encode())
        found.update("/".join(map(stamp_of, self.source.parts())).encode())
        return found.hexdigest()[:16]

    def size(self, index: int) -> int | None:
        return self.source.size(self.ids[index])

    def _decoded(self, index: int) -> Image.Image:
        return self.source.picture(self.ids[index])

    def _square(self, image: _Picture, side: int) -> _Picture:
        if side == 0:
            return image
        if self.config.resize == "squash":
            return F.resize(image, [side, side], InterpolationMode.BICUBIC)
        height, width = F.get_size(image)
        most = _MOST_ASPECT * min(height, width)
        if max(height, width) > most:  # what is cut off below anyway would take gigabytes, brought to size
            image = F.center_crop(image, [min(height, most), min(width, most)])
        return F.center_crop(F.resize(image, [side], InterpolationMode.BICUBIC), [side, side])

    def take(self, indices: Tensor) -> PictureSplit:
        """The samples at `indices`, in their order."""
        return PictureSplit(self.source, [self.ids[i] for i in indices.tolist()], self.labels[indices], self.config)
