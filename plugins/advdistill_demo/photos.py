"""Photographs in class folders, from an archive or a folder, and two of them side by side."""

from __future__ import annotations

import functools
import io
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advdistill import ClassSet, DataError, Dataset, MissingData, MissingSplit, Split, few_shot, partition, resource
from advdistill_demo import configs
from advdistill_demo.digits import Shifted
from advdistill_demo.pairs import KINDS, PairDataset, combinations, recorded

SUFFIXES = (".jpg", ".jpeg", ".png")
SIDE = 32


@dataclass(frozen=True)
class Album:
    """All photographs of a root, in the order of their names.

    Attributes:
        classes: sorted names of the class folders.
        images: split ("train", "test") -> (N, 3, 32, 32) uint8. labels: split -> (N,) long.
        ids: split -> N names like "train/cat/0001.jpg".
    """

    classes: tuple[str, ...]
    images: dict[str, Tensor]
    labels: dict[str, Tensor]
    ids: dict[str, list[str]]


def album(root: str) -> Album:
    """What lies at `root`: {train,test}/CLASS/NAME.jpg, anywhere below a folder or in a tar archive, which is read
    member by member and never unpacked. Decoded once in a process.

    Raises:
        MissingData: there is nothing. DataError: it cannot be read, a member leads out of the archive, is no image or
            not 32x32, or a class is missing in a split.
    """
    path = resource(root)
    try:
        facts = path.stat()
    except OSError as error:
        raise MissingData(
            f"there are no photographs at {path}",
            "data.root is a tar archive, or a folder, of {train,test}/CLASS/*.jpg",
        ) from error
    return _album(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=1)
def _album(path: Path, changed: int, size: int) -> Album:
    places: dict[tuple[str, ...], np.ndarray] = {}
    for place, pixels in _decoded(path):
        if place in places:
            raise DataError(f"{path} holds {'/'.join(place)} twice", "keep one of them")
        places[place] = pixels
    found = sorted(places.items(), key=lambda item: item[0])
    classes = tuple(sorted({kind for _, kind, _ in places}))
    if len(classes) < 2:
        raise DataError(
            f"{path} holds photographs of {len(classes)} classes",
            "expected {train,test}/CLASS/*.jpg, two or more classes",
        )
    images, labels, ids = {}, {}, {}
    for split in ("train", "test"):
        own = [(place, pixels) for place, pixels in found if place[0] == split]
        labels[split] = torch.tensor([classes.index(kind) for (_, kind, _), _ in own], dtype=torch.long)
        if missing := sorted(set(classes) - {kind for (_, kind, _), _ in own}):
            raise DataError(f"{path}: class {missing[0]!r} has no photographs in {split}", "add some, or remove it")
        images[split] = torch.from_numpy(np.stack([pixels for _, pixels in own])).permute(0, 3, 1, 2).contiguous()
        ids[split] = ["/".join(place) for place, _ in own]
    return Album(classes, images, labels, ids)


def _decoded(path: Path) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """(split, class, name) and (32, 32, 3) uint8 of every image."""
    for name, content in _files(path) if path.is_dir() else _members(path):
        parts = PurePosixPath(name).parts
        if parts[-1].startswith(".") or not name.lower().endswith(SUFFIXES):
            continue
        if len(parts) < 3 or parts[-3] not in ("train", "test"):
            raise DataError(f"{path}: {name} lies in no train/CLASS or test/CLASS", "move or remove it")
        try:
            image = Image.open(io.BytesIO(content)).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: {name} is not a readable image: {error}", "replace or remove it") from error
        if image.size != (SIDE, SIDE):
            raise DataError(f"{path}: {name} is {image.width}x{image.height}, not {SIDE}x{SIDE}", "use: folder resizes")
        yield parts[-3:], np.asarray(image)


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            try:
                yield file.relative_to(folder).as_posix(), file.read_bytes()
            except OSError as error:
                raise DataError(f"{file} cannot be read: {error.strerror}", "check its permissions") from error


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
                    raise DataError(
                        f"{path}: member {member.name!r} leads out of the archive, or is no plain file",
                        "take the archive from where it was made",
                    )
                if content := archive.extractfile(member):
                    yield member.name, content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a readable tar archive: {error}", "fetch it again") from error


class Photos(Dataset):
    """Photographs, (3, 32, 32) uint8; validation images are taken from those to train on, in proportion per class.

    Raises:
        DataError, MissingData: as `album`; or more validation images are wanted than there are, or more shots.
    """

    config: configs.Photos

    def __init__(self, config: configs.Photos) -> None:
        super().__init__(config)
        found = album(config.root)
        names = [name.replace("_", " ") for name in found.classes]
        self.classes = ClassSet(tuple(names), tuple(config.templates))
        val, train = _parted(found, config.val, config.split_seed)
        if config.shots:
            drawn = few_shot(found.labels["train"][train], config.shots, random.Random(config.shots_seed), names)
            train = train[drawn]
        parts = {
            "train": ("train", train),
            "val": ("train", val),
            "test": ("test", torch.arange(len(found.ids["test"]))),
        }
        self._splits = {
            name: Shifted(
                found.images[source][part],
                found.labels[source][part],
                [found.ids[source][index] for index in part.tolist()],
                config.shift,
                flip=config.flip,
            )
            for name, (source, part) in parts.items()
        }

    def split(self, name: str) -> Split:
        if name not in self._splits:
            raise MissingSplit(f"photos have no split {name!r}", "use train, val or test")
        return self._splits[name]

    def record(self) -> dict[str, Any]:
        return recorded(self.config, self._splits)


def _parted(found: Album, val: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which training photographs validate, and which are trained on."""
    labels = found.labels["train"]
    if val > len(labels) - len(found.classes):
        raise DataError(f"{val} of {len(labels)} photographs are to validate", "lower data.val")
    one, two = partition(labels, (val,), seed)
    return one, two


class PhotoPairs(PairDataset):
    """Two photographs side by side: "a cat and a ship.", (3, 32, 32) uint8.

    Each is squeezed to 16 columns, the mean of two each, so that nothing of it is cut off. Divided as `Photos` is, and
    never mixed; every test photograph stands once on the left and once on the right, if the number of photographs of a
    class is a multiple of the combinations that a class is in on a side (10, 8 or 2); else some stand there less.
    The names in this order are those of `combinations`, of kinds in alphabetical order.

    Raises:
        DataError, MissingData: as `Photos`, or there are not ten classes.
    """

    config: configs.PhotoPairs

    def __init__(self, config: configs.PhotoPairs) -> None:
        found = album(config.root)
        if len(found.classes) != KINDS:
            raise DataError(
                f"{config.root} has {len(found.classes)} classes, not {KINDS}", "use: photos takes any number"
            )
        said = [f"{'an' if name[0] in 'aeiou' else 'a'} {name.replace('_', ' ')}" for name in found.classes]
        tiles = torch.cat([found.images["train"], found.images["test"]])
        first = len(found.ids["train"])
        val, train = _parted(found, config.val, config.split_seed)
        test = torch.arange(first, len(tiles))
        labels = torch.cat([found.labels["train"], found.labels["test"]])
        members = {
            split: [part[labels[part] == kind].tolist() for kind in range(KINDS)]
            for split, part in {"train": train, "val": val, "test": test}.items()
        }
        super().__init__(
            config,
            [f"{said[left]} and {said[right]}" for left, right in combinations("all")],
            # The mean of two levels, rounded up: uint8 sums would overflow.
            ((tiles[..., 0::2].short() + tiles[..., 1::2] + 1) // 2).to(torch.uint8),
            [*found.ids["train"], *found.ids["test"]],
            members,
            {"test": 1, "val": 1},
            height=SIDE,
            flip=config.flip,
        )
