"""Any tree of class folders."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import torch

from advdistill import DataError, partition, resource
from advdistill_data import configs
from advdistill_data.files import SUFFIXES, FileDataset, FileSplit, existing_folder, images_below, subfolders

_ALIASES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Folder(FileDataset):
    """One folder per class, or `train`, `val` (`valid`, `validation`) and `test` folders of these.

    Labels follow the sorted folder names. Splits that the tree does not have are taken from its training images, in
    proportion per class and by `split_seed`, so that the same tree always gives the same splits.

    Raises:
        DataError: no such folder, no class folders, an empty class folder, one class only, a class that the training
            folder does not have, too few images for the shots, or class names that do not fit the folders.
    """

    config: configs.Folder

    def __init__(self, config: configs.Folder) -> None:
        root = existing_folder(config.root)
        trees = {part: _classes(root, folder) for part, folder in _layout(root).items()}
        folders = sorted(trees["train"] if "train" in trees else set().union(*trees.values()))
        for part, tree in trees.items():
            if unknown := sorted(tree.keys() - set(folders)):
                raise DataError(
                    f"{root}: the {part} folder has the class {unknown[0]!r}, which the training folder does not have",
                    "class folders must bear the same names in every split",
                )
        splits = {part: _split(root, trees.get(part, {}), folders, config) for part in ("train", "val", "test")}
        super().__init__(config, _names(config, folders), _divide(splits, trees.keys(), config))


def _layout(root: Path) -> dict[str, str]:
    """Split -> its folder below `root`; {"train": ""} for plain class folders.

    A folder named like a split that holds images itself is a class ("train" may be one of aeroplane, train, …).
    """
    named = {folder: _ALIASES[folder.lower()] for folder in subfolders(root) if folder.lower() in _ALIASES}
    found: dict[str, str] = {}
    for folder, part in named.items():
        if part in found:
            raise DataError(f"{root} has two {part} folders: {found[part]}, {folder}", "keep one of them")
        if subfolders(root / folder):
            found[part] = folder
    return found or {"train": ""}


def _classes(root: Path, folder: str) -> dict[str, list[str]]:
    """Class folder -> its images, relative to `root`."""
    classes = subfolders(root / folder)
    if not classes:
        raise DataError(
            f"{root} holds no class folders", "expected ROOT/CLASS/image.jpg or ROOT/{train,val,test}/CLASS/image.jpg"
        )
    tree = {name: images_below(root, f"{folder}/{name}" if folder else name) for name in classes}
    if empty := [name for name, images in tree.items() if not images]:
        raise DataError(
            f"class folder {root / folder / empty[0]} holds no images"
            + (f", nor do {len(empty) - 1} others" if len(empty) > 1 else ""),
            f"remove it or put images into it ({' '.join(SUFFIXES)})",
        )
    return tree


def _split(root: Path, tree: dict[str, list[str]], folders: list[str], config: configs.Images) -> FileSplit:
    labels = [label for label, name in enumerate(folders) for _ in tree.get(name, ())]
    ids = [image for name in folders for image in tree.get(name, ())]
    return FileSplit(root, ids, torch.tensor(labels, dtype=torch.long), config)


def _divide(splits: dict[str, FileSplit], there: Collection[str], config: configs.Folder) -> dict[str, FileSplit]:
    """Fill the splits that are not `there` with their shares of the training images."""
    train = splits["train"]
    missing = {"test": config.test_share, "val": config.val_share}
    missing = {part: share for part, share in missing.items() if part not in there}
    counts = [round(share * len(train)) for share in missing.values()]
    *taken, rest = partition(train.labels, counts, config.split_seed)
    shares = {part: train.take(some) for part, some in zip(missing, taken, strict=True)}
    return splits | {"train": train.take(rest)} | shares


def _names(config: configs.Folder, folders: list[str]) -> list[str]:
    """Class names in the order of `folders`."""
    given: list[str] | dict[str, str] = config.classes
    if config.class_names:
        given = _read_names(resource(config.class_names))
    if isinstance(given, dict):
        if unnamed := [folder for folder in folders if folder not in given]:
            raise DataError(
                f"{config.class_names} has no name for the class folder {unnamed[0]!r}", "add it to the file"
            )
        return [given[folder] for folder in folders]
    if given and len(given) != len(folders):
        raise DataError(
            f"{len(given)} class names are given for {len(folders)} class folders",
            f"name all, in this order: {', '.join(folders[:8])}{', …' if len(folders) > 8 else ''}",
        )
    return given or [folder.replace("_", " ") for folder in folders]


def _read_names(path: Path) -> list[str] | dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"class names {path} cannot be read: {error}", "correct data.class_names") from error
    if isinstance(names, list):
        names = [name for name in names if name]
    listed = list(names.values()) if isinstance(names, dict) else names
    if not (isinstance(listed, list) and listed and all(isinstance(name, str) and name for name in listed)):
        raise DataError(f"class names {path} are not names", 'write ["cat", "dog"] or {"folder": "cat"}')
    return names
