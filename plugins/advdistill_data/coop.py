"""The ten data sets that CoOp made a benchmark of beside ImageNet, in the folders that its users have on disk.

Layouts, class names, templates and divisions are those of CoOp (arXiv 2109.01134;
https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md).
"""

from __future__ import annotations

import json
import os
import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from advdistill import DataError, RunWarning
from advdistill_data import configs, origins, published
from advdistill_data.known import KnownDataset, digests, first_of, own_folder
from advdistill_data.labelled import SPLITS, Listing, labels_in_order
from advdistill_data.pictures import Files
from advdistill_data.published import Items, reading
from advdistill_data.scan import existing_folder

_DRAWN = {"val": 0.2, "test": 0.3}


class Published(KnownDataset):
    """One of the ten; each is a subclass that says where things lie.

    Attributes:
        images: the folder below its own that image names start from.
        zhou: CoOp's split file; "": its own lists are CoOp's.
        lists: the files of its published division, `a|b` for either; none: it came without.
        division: reads them.

    Raises:
        DataError: no such folder, or neither a split file nor the lists; one that cannot be read, names images that are
            not there, labels with gaps, two names for a class or two classes of one name; or too few images for the
            shots.
    """

    images: ClassVar[str] = "images"
    zhou: ClassVar[str] = ""
    template: ClassVar[str] = "a photo of a {}."
    lists: ClassVar[tuple[str, ...]] = ()
    division: ClassVar[Callable[..., Items]]

    config: configs.Published

    def __init__(self, config: configs.Published) -> None:
        root = own_folder(self.name, self.origin, config.root)
        zhou = self._zhou(root, config.split)
        if zhou:
            kind, files, items = "zhou", [zhou], split_file(zhou)
        elif self.lists:
            files = self._found(root)
            kind, items = "published", type(self).division(*files)
        else:
            kind, files = "drawn", []
            items = type(self).division(existing_folder(root / self.images))
        found = listed(items, str(zhou or root))
        source = Files(existing_folder(root / self.images))
        check_present(source.root, found, str(zhou or root))
        facts = {"split": {"kind": kind, "files": digests(root, files)}}
        shares = {} if zhou else {"val": 0.2} if self.lists else _DRAWN
        super().__init__(config, root, source, replace(found, facts=facts, parts=files), shares)

    def _zhou(self, root: Path, split: str) -> Path | None:
        """CoOp's split file, if it is to be used."""
        path = root / self.zhou
        if not self.zhou or split == "published":
            return None
        if path.exists():
            return path
        if split == "zhou":
            raise DataError(f"{root} has no {self.zhou}", f"bring it; its link is at {origins.COOP_PAGE}")
        if all(first_of(root, name) for name in (*self.lists, self.images)):
            division = "the set's own division" if self.lists else "50 %, 20 % and 30 % of each class, by split_seed,"
            warnings.warn(
                f"{root} has no {self.zhou}: {division} counts instead, and numbers cannot be compared with CoOp's",
                RunWarning,
                stacklevel=2,
            )
        return None

    def _found(self, root: Path) -> list[Path]:
        found = [first_of(root, name) for name in self.lists]
        if missing := [name for name, path in zip(self.lists, found, strict=True) if path is None]:
            name = missing[0].replace("|", " nor ")
            raise DataError(
                f"{root} has " + (f"neither {self.zhou} nor {name}" if self.zhou else f"no {name}"),
                f"correct data.root: the set's own folder, usually called {self.origin.folder}; or complete it, as "
                f"{origins.COOP_PAGE} says",
            )
        return [path for path in found if path]


def split_file(path: Path) -> Items:
    """The samples of a `split_zhou_*.json`: {"train": [[image, label, class name], …], "val": […], "test": […]}.

    Raises:
        DataError: it is missing, cannot be read, or says something else.
    """
    with reading(path):
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    hint = 'expected {"train": [[image, label, class name], …], "val": […], "test": […]}'
    items: Items = {}
    for part in SPLITS:
        entries = found.get(part) if isinstance(found, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{path} has no list {part!r}", hint)
        for index, entry in enumerate(entries):
            kinds = [type(value) for value in entry] if isinstance(entry, list) else []
            if kinds != [str, int, str] or entry[1] < 0 or not entry[2].strip():
                raise DataError(f"{path}: {part}[{index}] is {reprlib.repr(entry)}", hint)
        items[part] = [tuple(entry) for entry in entries]
    return items


def listed(items: Items, where: str) -> Listing:
    """The classes of samples, and these split by split.

    Args:
        where: what to say that they are from.

    Raises:
        DataError: labels with gaps, a label of two names, two labels of one name, a class without training images, or
            an image that cannot lie below the folder of images.
    """
    names: dict[int, str] = {}
    for some in items.values():
        for image, label, name in some:
            if names.setdefault(label, name) != name:
                raise DataError(
                    f"{where}: the class {label} is called {names[label]!r} and, at {image!r}, {name!r}",
                    "give each class one name and one label",
                )
            _check_path(image, where)
    labels_in_order(names, where, len(names))
    keys = [names[label] for label in range(len(names))]
    owners: dict[str, int] = {}
    for label, key in enumerate(keys):
        _check_text(key, where)
        if (first := owners.setdefault(key.replace("_", " "), label)) != label:
            raise DataError(f"{where}: the classes {first} and {label} are both called {key!r}", "rename one of them")
    trained = {label for _, label, _ in items["train"]}
    if len(trained) < len(keys):
        untrained = next(label for label in range(len(keys)) if label not in trained)
        raise DataError(
            f"{where}: the class {keys[untrained]!r} has no training images", "complete it, or fetch the set again"
        )
    samples = {part: ([item[0] for item in some], [item[1] for item in some]) for part, some in items.items()}
    return Listing(keys, samples)


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can write
        raise DataError(f"{where}: {text!a} is not UTF-8", "correct it") from None


def _check_path(image: str, where: str) -> None:
    _check_text(image, where)
    if "\0" in image or image.startswith("/") or not set(image.split("/")).isdisjoint(("..", "")):
        raise DataError(f"{where}: {image!r} is not a path below the folder of images", "correct it")


def check_present(root: Path, listing: Listing, where: str) -> None:
    """Raise DataError unless every image lies below `root`. Each folder is listed once, which is quicker than asking
    for every image."""
    there: dict[str, set[str]] = {}
    missing = []
    for images, _ in listing.samples.values():
        for image in images:
            folder, _, name = image.rpartition("/")
            if folder not in there:
                there[folder] = _names_in(root / folder)
            if name not in there[folder]:
                missing.append(image)
    if missing:
        others = f", nor are {len(missing) - 1} others" if len(missing) > 1 else ""
        raise DataError(
            f"{where} names {root / missing[0]}, which is not there{others}",
            "complete the images, or take the split file that belongs to them",
        )


def _names_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:  # not permitted, too long a name, a link that leads round in a circle
        raise DataError(f"{folder} cannot be listed: {error.strerror}", "check its permissions") from error


def _by_folder(ignored: Sequence[str], names: Mapping[str, str]) -> Callable[[Path], Items]:
    return lambda images: published.class_folder_items(images, ignored, dict(names))


class Caltech101(Published):
    """100 of the 101 categories: Faces_easy shows the faces of Faces again, and the background is no category."""

    origin = origins.CALTECH101
    name = "caltech101"
    images = "101_ObjectCategories"
    zhou = "split_zhou_Caltech101.json"
    division = _by_folder(
        ("BACKGROUND_Google", "Faces_easy"),
        {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"},
    )


class OxfordPets(Published):
    """37 breeds of cats and dogs."""

    origin = origins.OXFORD_PETS
    name = "oxford-pets"
    zhou = "split_zhou_OxfordPets.json"
    template = "a photo of a {}, a type of pet."
    lists = ("annotations/trainval.txt", "annotations/test.txt")
    division = published.pets


class StanfordCars(Published):
    """196 cars, by year, make and model."""

    origin = origins.STANFORD_CARS
    name = "stanford-cars"
    images = ""
    zhou = "split_zhou_StanfordCars.json"
    lists = (
        "devkit/cars_meta.mat",
        "devkit/cars_train_annos.mat",
        "cars_test_annos_withlabels.mat|devkit/cars_test_annos_withlabels.mat",
    )
    division = published.cars


class OxfordFlowers(Published):
    """102 flowers. Their published division has 10 training images of each; CoOp's has another."""

    origin = origins.OXFORD_FLOWERS
    name = "oxford-flowers"
    images = "jpg"
    zhou = "split_zhou_OxfordFlowers.json"
    template = "a photo of a {}, a type of flower."
    lists = ("imagelabels.mat", "setid.mat", "cat_to_name.json")
    division = published.flowers


class Food101(Published):
    """101 dishes."""

    origin = origins.FOOD101
    name = "food101"
    zhou = "split_zhou_Food101.json"
    template = "a photo of {}, a type of food."
    lists = ("meta/train.txt", "meta/test.txt")
    division = published.food


class FGVCAircraft(Published):
    """100 variants of aircraft; the published lists are CoOp's too."""

    origin = origins.FGVC_AIRCRAFT
    name = "fgvc-aircraft"
    template = "a photo of a {}, a type of aircraft."
    lists = ("variants.txt", *(f"images_variant_{part}.txt" for part in SPLITS))
    division = published.aircraft


class SUN397(Published):
    """397 scenes; of ten published partitions the first."""

    origin = origins.SUN397
    name = "sun397"
    images = "SUN397"
    zhou = "split_zhou_SUN397.json"
    lists = ("ClassName.txt", "Training_01.txt", "Testing_01.txt")
    division = published.sun


class DescribableTextures(Published):
    """47 textures; of ten published partitions the first."""

    origin = origins.DTD
    name = "dtd"
    zhou = "split_zhou_DescribableTextures.json"
    template = "{} texture."
    lists = tuple(f"labels/{part}1.txt" for part in SPLITS)
    division = published.textures


class EuroSAT(Published):
    """10 kinds of land in satellite images, by the names that CoOp gave them."""

    origin = origins.EUROSAT
    name = "eurosat"
    images = "2750"
    zhou = "split_zhou_EuroSAT.json"
    template = "a centered satellite photo of {}."
    division = _by_folder(
        (),
        {
            "AnnualCrop": "Annual Crop Land",
            "HerbaceousVegetation": "Herbaceous Vegetation Land",
            "Highway": "Highway or Road",
            "Industrial": "Industrial Buildings",
            "Pasture": "Pasture Land",
            "PermanentCrop": "Permanent Crop Land",
            "Residential": "Residential Buildings",
            "SeaLake": "Sea or Lake",
        },
    )


class UCF101(Published):
    """101 actions, by the middle frame of each video; of three published divisions the first."""

    origin = origins.UCF101
    name = "ucf101"
    images = "UCF-101-midframes"
    zhou = "split_zhou_UCF101.json"
    template = "a photo of a person doing {}."
    lists = ("ucfTrainTestlist/classInd.txt", *(f"ucfTrainTestlist/{part}list01.txt" for part in ("train", "test")))
    division = published.ucf
