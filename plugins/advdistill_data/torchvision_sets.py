"""Data sets that torchvision reads: any that gives every image one class, and the small ones of the zero-shot suite."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torchvision
from PIL import Image

from advdistill import DataError, MissingData, data_folder, data_home
from advdistill_data import configs, origins
from advdistill_data.ensembles import names
from advdistill_data.known import KnownDataset
from advdistill_data.labelled import Listing, PictureDataset, check_trained, labels_in_order
from advdistill_data.pictures import Files, Source, readable, to_rgb
from advdistill_data.scan import check_name, existing_folder

_BY_FLAG = ("train", {"train": True, "test": False})
_TWO = ("split", {"train": "train", "test": "test"})
_THREE = ("split", {"train": "train", "val": "val", "test": "test"})
_WHOLE = ("", {"train": None})
# What is published to validate on is tested on: the images to test on have no classes, or there are none.
_VAL = ("split", {"train": "train", "test": "val"})
_SETS: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "EMNIST", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS"), _BY_FLAG),
    **dict.fromkeys(("FER2013", "Food101", "GTSRB", "StanfordCars", "STL10", "SVHN"), _TWO),
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102", "PCAM", "RenderedSST2"), _THREE),
    **dict.fromkeys(("Caltech101", "Caltech256", "EuroSAT", "SEMEION", "SUN397"), _WHOLE),
    **dict.fromkeys(("CLEVRClassification", "Imagenette"), _VAL),
    "Country211": ("split", {"train": "train", "val": "valid", "test": "test"}),
    "OxfordIIITPet": ("split", {"train": "trainval", "test": "test"}),
    "Places365": ("split", {"train": "train-standard", "test": "val"}),
}
"""Name -> the argument that divides it, and its value for each of our splits."""

_INSTEAD = {
    "ImageFolder": "use: folder reads trees of class folders",
    "DatasetFolder": "use: folder reads trees of class folders",
    "ImageNet": "use: imagenet reads it",
    "Omniglot": "its reader numbers classes as the disk happens to list them; list the images for use: csv",
}
_OURS = {
    *("root", "download", "loader", "is_valid_file", "transform", "transforms", "target_transform", "target_type"),
    *("target_types", "allow_empty", "what", "compat", "kwargs"),
}
"""Arguments that are not options: what is read, and what for, would be something else, or be fetched, or be code."""

_OFFER = re.compile(r"\.? You can \w+ download=True to download it\.?")
_NUMBER = re.compile(r"^(?:\d+(?:\.| - )|/\w/)")  # what Caltech256, MNIST and Places365 put before the names of classes
_UNUSED = "N/A"  # the label 0 of EMNIST's letters
_PAIRS = ("samples", "_samples", "imgs")  # of images, or their paths, and labels


class Items(Source):
    """Images that a data set of torchvision gives by their place in it.

    Args:
        place: to call it by.
        splits: split -> data set.
        files: split -> the files that hold it, where they are known.
    """

    def __init__(self, place: str, splits: Mapping[str, Any], files: Mapping[str, Sequence[Path]]) -> None:
        self._place, self._splits, self._files = place, splits, files

    def picture(self, name: str) -> Image.Image:
        part, row = name.split("/")
        return readable(lambda: to_rgb(self._splits[part][int(row)][0]), f"{name} of {self._place}")

    def stamp(self, name: str) -> str:
        files = self._files.get(name.split("/")[0])
        if files is None:
            return hashlib.sha256(self.picture(name).tobytes()).hexdigest()[:16]
        return name

    def parts(self) -> list[Path]:
        return sorted({file for files in self._files.values() for file in files})


class TorchVision(PictureDataset):
    """A set of `torchvision.datasets`, its splits as published; where there are none, val_share and test_share decide.

    Images in files of their own are listed in the order of their names, and read as in every other data set.

    Raises:
        DataError: torchvision has no such set, it gives images something else than one class, does not take an option,
            cannot read what is there, or what `PictureDataset` says.
        MissingData: it is not there.
    """

    config: configs.TorchVision

    def __init__(self, config: configs.TorchVision) -> None:
        root = existing_folder(config.root or data_home())
        splits = _read(config.name, root, config.options)
        source, listing = _listed(config.name, root, splits)
        super().__init__(config, source, listing, {"test": config.test_share, "val": config.val_share})

    @property
    def place(self) -> str:
        return f"torchvision's {self.config.name}"


class SmallSet(KnownDataset):
    """A published set of small images, read by torchvision.

    Raises:
        DataError: what is there cannot be read, or what `PictureDataset` says.
        MissingData: it is not there.

    Attributes:
        sentences: what recipes call it, and its key in `ensembles`. reader: what torchvision does.
        files: split -> pattern of the files that hold it.
        side: of its images, in pixels.
    """

    template = "This is a photo of a {}"
    reader: ClassVar[str]
    files: ClassVar[dict[str, str]]
    side: ClassVar[int]
    config: configs.Small

    def __init__(self, config: configs.Small) -> None:
        data_folder(self.origin, config.root)  # raises where a fetch into it was not finished
        root = self._around(existing_folder(config.root)) if config.root else existing_folder(data_home())
        splits = _read(self.reader, root, {}, f"advdistill data fetch {self.sentences}")
        files = {part: sorted(root.glob(pattern)) for part, pattern in self.files.items()}
        source, listing = _listed(self.reader, root, splits, names(self.sentences), files)
        listing = replace(listing, facts={"side": config.size or self.side})
        super().__init__(config, root, source, listing, {"val": config.val_share})

    def _around(self, root: Path) -> Path:
        """What torchvision calls root, where `root` may also be the folder in it, or hold it under the set's name."""
        folder, held = self.origin.folder, root / self.sentences
        if root.name == folder and not (root / folder).is_dir():
            return root.parent
        return held if (held / folder).is_dir() else root


class Cifar10(SmallSet):
    """CIFAR-10: 50,000 and 10,000 images of 32 × 32."""

    origin, sentences, reader, side = origins.CIFAR10, "cifar10", "CIFAR10", 32
    files: ClassVar = {"train": "cifar-10-batches-py/data_batch_?", "test": "cifar-10-batches-py/test_batch"}


class Cifar100(SmallSet):
    """CIFAR-100: 50,000 and 10,000 images of 32 × 32."""

    origin, sentences, reader, side = origins.CIFAR100, "cifar100", "CIFAR100", 32
    files: ClassVar = {"train": "cifar-100-python/train", "test": "cifar-100-python/test"}


class Stl10(SmallSet):
    """STL-10: 5,000 and 8,000 images of 96 × 96; those without a class are left out."""

    origin, sentences, reader, side = origins.STL10, "stl10", "STL10", 96
    files: ClassVar = {"train": "stl10_binary/train_[Xy].bin", "test": "stl10_binary/test_[Xy].bin"}


class Pcam(SmallSet):
    """PatchCamelyon: 262,144, 32,768 and 32,768 images of 96 × 96."""

    origin, sentences, reader, side = origins.PCAM, "pcam", "PCAM", 96
    files: ClassVar = {
        "train": "pcam/camelyonpatch_level_2_split_train_[xy].h5",
        "val": "pcam/camelyonpatch_level_2_split_valid_[xy].h5",
        "test": "pcam/camelyonpatch_level_2_split_test_[xy].h5",
    }


def _read(name: str, root: Path, options: Mapping[str, Any], remedy: str = "") -> dict[str, Any]:
    """Split -> torchvision's data set.

    Args:
        remedy: a command that brings what is missing.
    """
    if name not in _SETS:
        raise _unknown(name)
    argument, values = _SETS[name]
    reader = getattr(torchvision.datasets, name, None)
    if reader is None:
        raise DataError(f"torchvision {torchvision.__version__} does not know {name} yet", "pip install -U torchvision")
    taken = inspect.signature(reader).parameters
    free = [each for each in taken if each not in _OURS | {argument}]
    if unknown := [option for option in options if option not in free]:
        raise DataError(
            f"{unknown[0]!r} is no option of {name}; there are {', '.join(free) or 'none'}", "correct data.options"
        )
    if name.startswith("Caltech") and not (root / name.lower()).is_dir():  # the reader would make the folder
        raise MissingData(f"there is no folder {root / name.lower()}", remedy or _by_hand(name, root, taken, {}))
    offline = {"download": False} if "download" in taken else {}
    found: dict[str, Any] = {}
    for part, value in values.items():
        arguments = {**options, **({argument: value} if argument else {})}
        try:
            found[part] = reader(str(root), **arguments, **offline)
        except Exception as error:  # readers raise whatever the files lead them to
            told = f"torchvision cannot read {name} in {root}"
            if package := next((each for each in (error, error.__context__) if isinstance(each, ImportError)), None):
                raise DataError(f"{told}: {package}", f"pip install {package.name}") from error
            reason = _OFFER.sub("", " ".join(str(error).split())) or type(error).__name__
            if isinstance(error, (RuntimeError, FileNotFoundError, NotADirectoryError)):
                raise MissingData(f"{told}: {reason}", remedy or _by_hand(name, root, taken, arguments)) from error
            raise DataError(f"{told}: {reason}", "correct data.options, or fetch the data again") from error
    return found


def _unknown(name: str) -> DataError:
    if inspect.isclass(getattr(torchvision.datasets, name, None)):
        return DataError(
            f"torchvision's {name} is no data set that gives every image one class",
            _INSTEAD.get(name, "use one of " + ", ".join(sorted(_SETS))),
        )
    spelt = {each.lower(): each for each in _SETS}
    close = difflib.get_close_matches(name.lower(), spelt, n=1)
    return DataError(
        f"torchvision has no data set {name!r}" + (f"; did you mean {spelt[close[0]]!r}?" if close else ""),
        "use one of " + ", ".join(sorted(_SETS)),
    )


def _by_hand(name: str, root: Path, taken: Collection[str], arguments: Mapping[str, Any]) -> str:
    if name == "StanfordCars" or "download" not in taken:
        return "put its files there by hand, as torchvision's documentation shows"
    given = "".join(f"{key}={value!r}, " for key, value in arguments.items())
    call = f"torchvision.datasets.{name}({str(root)!r}, {given}download=True)"
    return f"where it is still published, Python fetches it: {call}"


def _listed(
    name: str,
    root: Path,
    splits: Mapping[str, Any],
    known: Sequence[str] = (),
    files: Mapping[str, Sequence[Path]] = MappingProxyType({}),
) -> tuple[Source, Listing]:
    """Where the images lie, and which there are.

    Args:
        known: the classes in label order; empty: what the data sets call them.
        files: split -> the files that hold it, where they are known.
    """
    place = f"torchvision's {name} in {root}"
    called = {tuple(known) or _classes(data) for data in splits.values()}
    if len(called) > 1:
        raise DataError(f"{place}: the splits have different classes", "fetch the data again")
    labels = {part: _labels(data, f"{place}: the {part} split") for part, data in splits.items()}
    every = set().union(*labels.values())
    keys = {label: key for label, key in enumerate(called.pop()) if key != _UNUSED}
    if not keys:
        keys = {label: str(label) for label in sorted(every)}
    if strange := every - keys.keys():
        raise DataError(f"{place}: the label {min(strange)} stands for no class", "fetch the data again")
    order = {label: index for index, label in enumerate(keys)}
    numbers = {part: [order[label] for label in some] for part, some in labels.items()}
    labels_in_order([order[label] for label in every], place, len(keys))
    source: Source = Items(place, splits, files)
    samples: dict[str, tuple[Sequence[str], Sequence[int]]] = {}
    paths = {part: _paths(data) for part, data in splits.items()}
    for part, some in numbers.items():
        if (listed := paths[part]) is None:
            samples[part] = ([f"{part}/{row:06d}" for row in range(len(some))], some)
            continue
        source = Files(root)
        relative = [Path(os.path.relpath(path, root)).as_posix() for path in listed]
        for path in relative:
            if not path.isascii():
                check_name(path, root)
        pairs = sorted(zip(relative, some, strict=True))  # some readers list files as the disk happens to
        samples[part] = ([path for path, _ in pairs], [label for _, label in pairs])
    check_trained(samples, list(keys.values()), place)
    return source, Listing(list(keys.values()), samples)


def _classes(data: Any) -> tuple[str, ...]:
    found = _first(data, "classes", "categories") or ()
    # Some give several words for a class, of which the first is the usual one.
    return tuple(_NUMBER.sub("", each if isinstance(each, str) else each[0]) for each in found)


def _labels(data: Any, place: str) -> list[int]:
    """The label of every image, without decoding one."""
    if isinstance(data, torchvision.datasets.PCAM):
        with data.h5py.File(data._base_folder / data._FILES[data._split]["targets"][0]) as file:
            found = file["y"][:].reshape(-1)
    else:
        found = _first(data, "targets", "labels", "_labels", "y")
        if found is None:
            found = [label for _, label in _first(data, *_PAIRS) or map(data.__getitem__, range(len(data)))]
    values = np.asarray(found)
    if values.dtype.kind not in "iu":
        raise DataError(f"{place} does not say the classes of all images", "fetch one that does")
    labels: list[int] = (values[:, 0] if values.ndim > 1 else values).tolist()
    return labels


def _paths(data: Any) -> list[str] | None:
    """The file of every image; None: they have none of their own."""
    found = _first(data, "_image_files", "_images")
    if found is None and (pairs := _first(data, *_PAIRS)):
        found = [path for path, _ in pairs]
    return [str(path) for path in found] if found and isinstance(found[0], (str, Path)) else None


def _first(data: Any, *attributes: str) -> Any:
    return next((found for name in attributes if (found := getattr(data, name, None)) is not None), None)
