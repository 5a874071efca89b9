"""ImageNet-1k, and trees of some of its classes."""

from __future__ import annotations

import random
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from advdistill import DataError, RunWarning, few_shot, resource
from advdistill_data import configs, origins
from advdistill_data.known import KnownDataset, digests, own_folder
from advdistill_data.labelled import Listing
from advdistill_data.pictures import Files, PictureSplit
from advdistill_data.scan import images_below, subfolders

_WNID = re.compile(r"n\d{8}")
# open_clip's list and CoOp's classnames.txt give these two the name of another class; these are WordNet's own words.
_DISTINCT = {"n04008634": "projectile", "n04355933": "sunglass"}


class ImageNet(KnownDataset):
    """`root/{train,val}/n01440764/*.JPEG` (or `root/images/{train,val}/…`, as CoOp has it), and `root/classnames.txt`.

    Labels follow the sorted WordNet ids, which is the usual order. The official validation images are the test split;
    what to validate on is taken from the training images, after the shots where there are some. Shots are drawn from
    sorted file names. CoOp draws from the order in which the file system lists them, which differs between machines:
    the same images as another's come from a list of them, not from the seed.

    Raises:
        DataError: no such folder, images that are not in class folders, classes that are not those of the names while
            no `classnames` are given, an empty class folder, or too few images for the shots.
    """

    name = "imagenet"
    origin = origins.IMAGENET
    template = "This is a photo of a {}"
    config: configs.ImageNet

    def __init__(self, config: configs.ImageNet) -> None:
        own = own_folder(self.name, self.origin, config.root)
        root = _tree(own)
        train, test = (_class_folders(root, part) for part in ("train", "val"))
        present = sorted({*train, *test})
        file = names_file(config.classnames, [own])
        names = read_names(file) if file else usual_names()
        if config.classnames:
            check_some(names, present, root)
        else:
            _check_all(names, present, root, file)
        wnids = [wnid for wnid in present if wnid in names]
        samples = {
            "train": listed(root, "train", train, wnids),
            "test": listed(root, "val", test, wnids),
        }
        listing = Listing(wnids, samples, names, named_by(own, file), file_parts(file))
        super().__init__(config, own, Files(root), listing)

    def _divided(
        self, splits: dict[str, PictureSplit], there: Collection[str], shares: Mapping[str, float]
    ) -> dict[str, PictureSplit]:
        if self.config.shots or not len(splits["train"]):
            return splits
        self._check_enough(splits["train"], 1)
        return self._kept_apart(splits, splits["train"])

    def _drawn(self, splits: dict[str, PictureSplit]) -> dict[str, PictureSplit]:
        train, shots = splits["train"], self.config.shots
        self._check_enough(train, shots)
        drawn = self._shots(train, shots, random.Random(self.config.shots_seed))
        taken = set(drawn.ids)
        left = torch.tensor([name not in taken for name in train.ids])
        return self._kept_apart(splits, train.take(left.nonzero().squeeze(1))) | {"train": drawn}

    def _kept_apart(self, splits: dict[str, PictureSplit], train: PictureSplit) -> dict[str, PictureSplit]:
        """`val_per_class` images of each class to validate on, and the others."""
        rng = random.Random(self.config.split_seed)
        apart = few_shot(train.labels, self.config.val_per_class, rng, self._listing.keys)
        rest = torch.ones(len(train), dtype=torch.bool).index_fill(0, apart, False)
        return splits | {"train": train.take(rest.nonzero().squeeze(1)), "val": train.take(apart)}

    def _check_enough(self, train: PictureSplit, wanted: int) -> None:
        """Raise DataError unless each class has so many images beside those to validate on."""
        kept, keys = self.config.val_per_class, self._listing.keys
        for wnid, count in zip(keys, train.labels.bincount(minlength=len(keys)).tolist(), strict=True):
            if count < wanted + kept:
                raise DataError(
                    f"class {wnid} has {count} training images; {wanted} to train on and {kept} to validate on are "
                    "wanted",
                    "complete the class, or lower data.shots or data.val_per_class",
                )


def _tree(root: Path) -> Path:
    for folder in (root, root / "images"):
        if (folder / "train").is_dir() or (folder / "val").is_dir():
            return folder
    raise DataError(f"{root} has neither a train nor a val folder", "expected ROOT/{train,val}/n01440764/*.JPEG")


def _class_folders(root: Path, part: str) -> list[str]:
    if not (root / part).is_dir():
        return []
    folders = wnid_folders(root / part)
    if not folders:
        raise DataError(
            f"{root / part} holds no class folders named like {wnids()[0]}",
            "sort the images into one folder per WordNet id; the official validation archive comes unsorted",
        )
    return folders


def wnid_folders(folder: Path) -> list[str]:
    """The sorted folders in it that are named like WordNet ids."""
    return [name for name in subfolders(folder) if _WNID.fullmatch(name)]


def listed(root: Path, part: str, there: Collection[str], folders: Sequence[str]) -> tuple[list[str], list[int]]:
    """Images and their labels, class after class.

    Args:
        part: folder below `root` that holds the class folders; "": it is `root`.
        there: the class folders that exist. folders: of the classes in label order.

    Raises:
        DataError: one is empty.
    """
    ids: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        if folder not in there:
            continue
        below = f"{part}/{folder}" if part else folder
        images = images_below(root, below)
        if not images:
            raise DataError(f"class folder {root / below} holds no images", "fetch the class again")
        ids += images
        labels += [label] * len(images)
    return ids, labels


@cache
def wnids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-1k in label order."""
    return tuple(Path(__file__).with_name("wnids.txt").read_text(encoding="ascii").split())


def usual_names() -> dict[str, str]:
    """open_clip's names, which CLIP's published zero-shot numbers are taken with, made distinct."""
    from open_clip import IMAGENET_CLASSNAMES

    return dict(zip(wnids(), IMAGENET_CLASSNAMES, strict=True)) | _DISTINCT


def names_file(given: str, folders: Sequence[Path]) -> Path | None:
    """The file of class names: the recipe's, or the first `classnames.txt` in the folders; None: there is none."""
    if given:
        return resource(given)
    return next((folder / "classnames.txt" for folder in folders if (folder / "classnames.txt").is_file()), None)


def read_names(path: Path) -> dict[str, str]:
    """WordNet id -> name, in the order of the lines. Two ids to which CoOp's file gives another's name get their own,
    with a warning.

    Raises:
        DataError: it cannot be read, a line is no class, an id stands twice, or two have one name.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"class names {path} cannot be read: {error}", "correct data.classnames") from error
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        wnid, _, name = line.strip().partition(" ")
        if wnid and not (_WNID.fullmatch(wnid) and name.strip()):
            raise DataError(f"{path}:{number}: {line!r} is not a class", "write lines like 'n01440764 tench'")
        if wnid in names:
            raise DataError(f"{path}:{number}: {wnid} stands twice", "keep one of the lines")
        if wnid:
            names[wnid] = name.strip()
    times = Counter(names.values())
    renamed = {wnid: name for wnid, name in _DISTINCT.items() if times[names.get(wnid, "")] > 1}
    if renamed:
        shown = ", ".join(f"{wnid} {names[wnid]} is read as {name}" for wnid, name in renamed.items())
        warnings.warn(f"{path} gives two classes one name: {shown}", RunWarning, stacklevel=2)
    names |= renamed
    owners: dict[str, str] = {}
    for wnid, name in names.items():
        if (first := owners.setdefault(name, wnid)) != wnid:
            raise DataError(f"{path} calls two classes {name!r}: {first} and {wnid}", "rename one of them")
    return names


def check_some(names: Mapping[str, str], present: Collection[str], root: Path) -> None:
    """Raise DataError unless some of the classes have names."""
    if names.keys().isdisjoint(present):
        raise DataError(f"data.classnames names none of the classes in {root}", "correct data.classnames")


def _check_all(names: Mapping[str, str], present: list[str], root: Path, file: Path | None) -> None:
    if missing := sorted(names.keys() - set(present)):
        lacks = f"{missing[0]} is not among them"
    elif unknown := sorted(set(present) - names.keys()):
        lacks = f"{unknown[0]} is none of these"
    else:
        return
    raise DataError(
        f"{root} holds {len(present)} classes, and {file or 'ImageNet-1k'} has {len(names)}: {lacks}",
        "complete the tree, or give data.classnames, a file with a line like 'n01440764 tench' for each class",
    )


def named_by(root: Path, file: Path | None) -> dict[str, Any]:
    """For the record: who names the classes."""
    return {"names": digests(root, [file]) if file else "open_clip"}


def file_parts(file: Path | None) -> list[Path]:
    """A file, if there is one, as a list of them."""
    return [file] if file else []
