"""ImageNet-1k, and trees of some of its classes."""

from __future__ import annotations

import random
import re
from pathlib import Path

import torch

from advdistill import DataError, few_shot, resource
from advdistill_data import configs
from advdistill_data.files import FileDataset, FileSplit, existing_folder, images_below, subfolders

_WNID = re.compile(r"n\d{8}")
_FIRST, _LAST = "n01440764", "n15075141"
# open_clip's list gives these two the name of another class; these are WordNet's own words for them.
_DISTINCT = {744: "projectile", 836: "sunglass"}


class ImageNet(FileDataset):
    """`root/{train,val}/n01440764/*.JPEG` (or `root/images/{train,val}/…`).

    Labels follow the sorted WordNet ids, which is the usual order. The official validation images are the test split;
    what to validate on is taken from the training images.

    Raises:
        DataError: no such folder, images that are not in class folders, classes that are not ImageNet's 1,000 while
            no `classnames` are given, an empty class folder, or too few images for the shots.
    """

    config: configs.ImageNet

    def __init__(self, config: configs.ImageNet) -> None:
        root = _tree(existing_folder(config.root))
        train, test = (_class_folders(root, part) for part in ("train", "val"))
        present = sorted({*train, *test})
        names = _given_names(config, present) if config.classnames else _usual_names(root, present)
        wnids = [wnid for wnid in present if wnid in names]
        known = _split(root, "train", [w for w in wnids if w in train], wnids, config)
        splits = {"train": known, "val": known.take(torch.arange(0))}
        splits["test"] = _split(root, "val", [w for w in wnids if w in test], wnids, config)
        if len(known):
            _check_enough(known, wnids, config)
            apart = few_shot(known.labels, config.val_per_class, random.Random(config.split_seed), wnids)
            rest = torch.ones(len(known), dtype=torch.bool).index_fill(0, apart, False)
            splits |= {"train": known.take(rest.nonzero().squeeze(1)), "val": known.take(apart)}
        super().__init__(config, [names[wnid] for wnid in wnids], splits)


def _tree(root: Path) -> Path:
    for folder in (root, root / "images"):
        if (folder / "train").is_dir() or (folder / "val").is_dir():
            return folder
    raise DataError(f"{root} has neither a train nor a val folder", "expected ROOT/{train,val}/n01440764/*.JPEG")


def _class_folders(root: Path, part: str) -> list[str]:
    if not (root / part).is_dir():
        return []
    wnids = [name for name in subfolders(root / part) if _WNID.fullmatch(name)]
    if not wnids:
        raise DataError(
            f"{root / part} holds no class folders named like {_FIRST}",
            "sort the images into one folder per WordNet id; the official validation archive comes unsorted",
        )
    return wnids


def _split(root: Path, part: str, there: list[str], wnids: list[str], config: configs.Images) -> FileSplit:
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    ids: list[str] = []
    labels: list[int] = []
    for wnid in there:
        images = images_below(root, f"{part}/{wnid}")
        if not images:
            raise DataError(f"class folder {root / part / wnid} holds no images", "fetch the class again")
        ids += images
        labels += [label_of[wnid]] * len(images)
    return FileSplit(root, ids, torch.tensor(labels, dtype=torch.long), config)


def _check_enough(train: FileSplit, wnids: list[str], config: configs.ImageNet) -> None:
    for wnid, count in zip(wnids, train.labels.bincount(minlength=len(wnids)).tolist(), strict=True):
        if count <= config.val_per_class:
            raise DataError(
                f"class {wnid} has {count} training images, of which {config.val_per_class} are kept to validate on",
                "complete the class, or lower data.val_per_class",
            )


def _usual_names(root: Path, wnids: list[str]) -> dict[str, str]:
    """open_clip's names, which CLIP's published zero-shot numbers are taken with, made distinct."""
    if len(wnids) != 1000 or (wnids[0], wnids[-1]) != (_FIRST, _LAST):
        raise DataError(
            f"{root} holds {len(wnids)} classes, {wnids[0]} to {wnids[-1]}; ImageNet-1k has 1000, {_FIRST} to {_LAST}",
            "complete the tree, or give data.classnames, a file with a line like 'n01440764 tench' for each class",
        )
    from open_clip import IMAGENET_CLASSNAMES

    return {wnid: _DISTINCT.get(label, IMAGENET_CLASSNAMES[label]) for label, wnid in enumerate(wnids)}


def _given_names(config: configs.ImageNet, present: list[str]) -> dict[str, str]:
    path = resource(config.classnames)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"class names {path} cannot be read: {error}", "correct data.classnames") from error
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        wnid, _, name = line.strip().partition(" ")
        if wnid and not (_WNID.fullmatch(wnid) and name.strip()):
            raise DataError(f"{path}:{number}: {line!r} is not a class", "write lines like 'n01440764 tench'")
        if wnid:
            names[wnid] = name.strip()
    if not names.keys() & set(present):
        raise DataError(f"{path} names none of the classes in {config.root}", "correct data.classnames")
    return names
