"""Any tree of class folders."""

from __future__ import annotations

from pathlib import Path

from advdistill import DataError
from advdistill_data import configs
from advdistill_data.labelled import ALIASES, Listing, PictureDataset
from advdistill_data.pictures import Files
from advdistill_data.scan import SUFFIXES, existing_folder, images_below, subfolders


class Folder(PictureDataset):
    """One folder per class, or `train`, `val` (`valid`, `validation`, `dev`) and `test` folders of these.

    Labels follow the sorted folder names. Splits that the tree does not have are taken from its training images, in
    proportion per class and by `split_seed`, so that the same tree always gives the same splits.

    Raises:
        DataError: no such folder, no class folders, an empty class folder, one class only, a class that the training
            folder does not have, too few images for the shots, or class names that do not fit the folders.
    """

    config: configs.Folder

    def __init__(self, config: configs.Folder) -> None:
        root = existing_folder(config.root)
        trees = {part: class_folders(root, folder) for part, folder in _layout(root).items()}
        folders = sorted(trees["train"] if "train" in trees else set().union(*trees.values()))
        for part, tree in trees.items():
            if unknown := sorted(tree.keys() - set(folders)):
                raise DataError(
                    f"{root}: the {part} folder has the class {unknown[0]!r}, which the training folder does not have",
                    "class folders must bear the same names in every split",
                )
        samples = {part: in_order(tree, folders) for part, tree in trees.items()}
        shares = {"test": config.test_share, "val": config.val_share}
        super().__init__(config, Files(root), Listing(folders, samples), shares)


def _layout(root: Path) -> dict[str, str]:
    """Split -> its folder below `root`; {"train": ""} for plain class folders.

    A folder named like a split that holds images itself is a class ("train" may be one of aeroplane, train, …).
    """
    named = {folder: ALIASES[folder.lower()] for folder in subfolders(root) if folder.lower() in ALIASES}
    found: dict[str, str] = {}
    for folder, part in named.items():
        if part in found:
            raise DataError(f"{root} has two {part} folders: {found[part]}, {folder}", "keep one of them")
        if subfolders(root / folder):
            found[part] = folder
    return found or {"train": ""}


def class_folders(root: Path, folder: str) -> dict[str, list[str]]:
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


def in_order(tree: dict[str, list[str]], folders: list[str]) -> tuple[list[str], list[int]]:
    """Images and their labels, class after class; a label is a folder's place among `folders`."""
    ids = [image for name in folders for image in tree.get(name, ())]
    return ids, [label for label, name in enumerate(folders) for _ in tree.get(name, ())]
