"""The divisions that data sets were published with: their lists in text, JSON and MATLAB files, read as they are.

A reader takes these files and gives, split by split, images, labels from 0 and class names, in the order of the files.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from advdistill import DataError
from advdistill_data.folder import class_folders

Item = tuple[str, int, str]
"""An image, its label, what its class is called there."""

Items = dict[str, list[Item]]
"""Split -> its samples."""


_UNREADABLE = (
    OSError, ValueError, LookupError, TypeError, ArithmeticError, EOFError, NotImplementedError, RecursionError,
    struct.error, zlib.error,
)  # fmt: skip


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong inside is a DataError that says which file cannot be read."""
    try:
        yield
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read: {reason}", "fetch the file again") from error


def lines(path: Path, pattern: str, example: str) -> list[tuple[str, ...]]:
    """What the groups of `pattern` say in every line.

    Raises:
        DataError: the file is missing or not UTF-8, or a line is not like the example.
    """
    with reading(path):
        text = path.read_text(encoding="utf-8-sig")
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.fullmatch(pattern, line.strip()):
            found.append(match.groups())
        elif line.strip():
            raise DataError(f"{path}:{number}: {line.strip()!r} is not a line like {example!r}", "fetch the file again")
    return found


def class_folder_items(images: Path, ignored: Sequence[str], names: dict[str, str]) -> Items:
    """Every image of every class folder, as `train`; labels follow the sorted folder names.

    Args:
        ignored: folders that are no classes. names: folder -> what to call it where that is something else.
    """
    tree = {folder: found for folder, found in class_folders(images, "").items() if folder not in ignored}
    return {
        "train": [
            (image, label, names.get(folder, folder))
            for label, (folder, found) in enumerate(sorted(tree.items()))
            for image in found
        ]
    }


def pets(trainval: Path, test: Path) -> Items:
    """`Abyssinian_100 1 1 1`: image, label from 1; the class is the image's name without its number."""

    def items(path: Path) -> list[Item]:
        rows = lines(path, r"((.+)_\d+) ([1-9]\d*) \d+ \d+", "Abyssinian_100 1 1 1")
        return [(f"{image}.jpg", int(label) - 1, breed.lower()) for image, breed, label in rows]

    return {"train": items(trainval), "test": items(test)}


def cars(meta: Path, train: Path, test: Path) -> Items:
    """MATLAB structs: file name and class from 1 of each image; class names end in the year, which goes in front."""
    names = [_year_first(str(name)) for name in _matrix(meta, "class_names")]

    def items(path: Path, folder: str) -> list[Item]:
        rows = _matrix(path, "annotations")
        with reading(path):
            pairs = [(str(row["fname"]), int(row["class"])) for row in rows]
            return [(f"{folder}/{image}", number - 1, _nth(names, number)) for image, number in pairs]

    return {"train": items(train, "cars_train"), "test": items(test, "cars_test")}


def _year_first(name: str) -> str:
    car, _, year = name.rpartition(" ")
    return f"{year} {car}"


def flowers(labels: Path, division: Path, names: Path) -> Items:
    """MATLAB arrays: the class from 1 of image 1, 2, …, and the numbers of each split's images; names are JSON."""
    classes = [int(label) for label in _matrix(labels, "labels")]
    with reading(names):
        called = json.loads(names.read_text(encoding="utf-8-sig"))
        if not isinstance(called, dict):
            raise ValueError('it is not {"1": "pink primrose", …}')

    def items(key: str) -> list[Item]:
        numbers = [int(number) for number in _matrix(division, key)]
        with reading(division):
            found = [(number, _nth(classes, number)) for number in numbers]
        with reading(names):
            return [(f"image_{number:05d}.jpg", label - 1, _called(called, label)) for number, label in found]

    return {"train": items("trnid"), "val": items("valid"), "test": items("tstid")}


def food(train: Path, test: Path) -> Items:
    """`apple_pie/1005649`."""
    return _by_class({"train": train, "test": test})


def textures(train: Path, val: Path, test: Path) -> Items:
    """`banded/banded_0002.jpg`."""
    return _by_class({"train": train, "val": val, "test": test})


def _by_class(lists: dict[str, Path]) -> Items:
    """The folder of an image is its class; labels follow the sorted folders."""
    rows = {part: lines(path, r"(([^/]+)/.+?)(?:\.jpg)?", "apple_pie/1005649") for part, path in lists.items()}
    folders = sorted({folder for some in rows.values() for _, folder in some})
    labels = {folder: label for label, folder in enumerate(folders)}
    return {part: [(f"{image}.jpg", labels[folder], folder) for image, folder in some] for part, some in rows.items()}


def sun(classes: Path, train: Path, test: Path) -> Items:
    """`/a/athletic_field/outdoor/sun_x.jpg`; the class reads backwards without its first letter: outdoor
    athletic_field."""
    folders = [folder for (folder,) in lines(classes, r"/(\w/.+)", "/a/abbey")]

    def items(path: Path) -> list[Item]:
        rows = lines(path, r"/((\w/.+)/[^/]+)", "/a/abbey/sun_aaalbzqrimafwbiv.jpg")
        labels = _labels(folders, (folder for _, folder in rows), path, classes)
        return [(image, labels[folder], " ".join(folder.split("/")[:0:-1])) for image, folder in rows]

    return {"train": items(train), "test": items(test)}


def aircraft(variants: Path, train: Path, val: Path, test: Path) -> Items:
    """`1025794 707-320`: image and variant; labels follow the order of the list of variants."""
    names = [name for (name,) in lines(variants, r"(.+)", "707-320")]

    def items(path: Path) -> list[Item]:
        rows = lines(path, r"(\S+) (.+)", "1025794 707-320")
        labels = _labels(names, (name for _, name in rows), path, variants)
        return [(f"{image}.jpg", labels[name], name) for image, name in rows]

    return {"train": items(train), "val": items(val), "test": items(test)}


def ucf(classes: Path, train: Path, test: Path) -> Items:
    """`ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1`: the middle frame of that video, below Apply_Eye_Makeup."""
    numbered = lines(classes, r"([1-9]\d*) (\S+)", "1 ApplyEyeMakeup")
    order = [action for _, action in sorted(numbered, key=lambda row: int(row[0]))]

    def items(path: Path) -> list[Item]:
        rows = lines(path, r"([^/ ]+)/([^/ ]+)\.avi(?: \d+)?", "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi")
        labels = _labels(order, (action for action, _ in rows), path, classes)
        folders = {action: "_".join(re.findall(r"[A-Z][^A-Z]*", action)) for action in labels}
        return [(f"{folders[action]}/{video}.jpg", labels[action], folders[action]) for action, video in rows]

    return {"train": items(train), "test": items(test)}


def _labels(classes: Sequence[str], used: Iterable[str], path: Path, listed: Path) -> dict[str, int]:
    labels = {name: label for label, name in enumerate(classes)}
    if unknown := [name for name in used if name not in labels]:
        raise DataError(f"{path} names the class {unknown[0]!r}, which {listed} does not", "fetch both files again")
    return labels


def _called(names: dict[str, str], label: int) -> str:
    if not isinstance(name := names.get(str(label)), str):
        raise ValueError(f"it has no name for {label}")
    return name


def _nth(values: Sequence[Any], number: int) -> Any:
    """The value that is counted as `number`, from 1."""
    if not 0 < number <= len(values):
        raise ValueError(f"it says {number} where there are {len(values)}")
    return values[number - 1]


def _matrix(path: Path, key: str) -> Any:
    """The entries of a MATLAB array, one after the other."""
    import numpy as np
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    with reading(path):
        try:
            found = loadmat(path, variable_names=[key], squeeze_me=True)
        except MatReadError as error:
            raise ValueError(str(error)) from error
        if key not in found:
            raise ValueError(f"it has no {key!r}")
        return np.atleast_1d(found[key])
