"""Images of ImageNet's classes that come from elsewhere: to test with, not to train on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from advdistill import DataError, MissingData, MissingSplit, Split, data_folder
from advdistill_data import configs, origins
from advdistill_data.imagenet import (
    check_some,
    file_parts,
    listed,
    named_by,
    names_file,
    read_names,
    usual_names,
    wnid_folders,
    wnids,
)
from advdistill_data.known import KnownDataset
from advdistill_data.labelled import Listing
from advdistill_data.pictures import Files
from advdistill_data.scan import existing_folder, subfolders


class Shifted(KnownDataset):
    """A test set of class folders that bear WordNet ids.

    It is looked for where CoOp keeps it and where its archive puts it: `imagenet-rendition/imagenet-r`, `imagenet-r`.

    Attributes:
        tree: the folder of class folders in its own, `a|b` for either; the archive's own name last.
        count: how many classes it has images of.

    Raises:
        DataError: no such folder, other classes than it has while no `classnames` are given, a class without a name, or
            an empty class folder.
    """

    sentences = "imagenet"
    template = "This is a photo of a {}"
    tree: ClassVar[str]
    count: ClassVar[int] = 1000
    config: configs.Shifted

    def __init__(self, config: configs.Shifted) -> None:
        root = self._tree(config.root)
        file = names_file(
            config.classnames, (root, root.parent, root.parent / "imagenet", root.parent.parent / "imagenet")
        )
        names = read_names(file) if file else usual_names()
        folders = self._folders(root)
        if config.classnames:
            check_some(names, folders, root)
        else:
            self._check(folders, names, root)
        every = sorted(names) if config.classnames else wnids()
        known = [wnid for wnid in every if wnid in folders or config.among == "imagenet"]
        samples = {"test": listed(root, "", folders.values(), [folders.get(wnid, "") for wnid in known])}
        facts = {"classes": len(known), "among": config.among, **named_by(root, file)}
        super().__init__(config, root, Files(root), Listing(known, samples, names, facts, file_parts(file)))

    def split(self, name: str) -> Split:
        if name in ("train", "val"):
            raise MissingSplit(f"{self.name} has test images only, no {name} split", "train and validate on imagenet")
        return super().split(name)

    def _tree(self, root: str) -> Path:
        own = data_folder(self.origin, root)  # raises where a fetch into it was not finished
        base = existing_folder(root) if root else own
        trees = self.tree.split("|")
        places = [f"{self.origin.folder}/{tree}" for tree in trees] + trees if root else trees
        for place in [*places, *([""] if root else [])]:
            if (base / place).is_dir() and self._folders(base / place):
                return base / place
        raise MissingData(
            f"{self.name} is not in {base}: there are no class folders in {', '.join(places)}",
            f"advdistill data fetch {self.name}, or correct data.root",
        )

    def _folders(self, root: Path) -> dict[str, str]:
        """WordNet id -> class folder."""
        return {name: name for name in wnid_folders(root)}

    def _check(self, folders: Mapping[str, str], names: Mapping[str, str], root: Path) -> None:
        unknown = sorted(folders.keys() - set(wnids()))
        if len(folders) != self.count or unknown:
            other = f"; {unknown[0]} is none of ImageNet's" if unknown else ""
            raise DataError(
                f"{root} holds {len(folders)} classes, {self.name} has {self.count:,}{other}",
                "complete it, or give data.classnames, a file with a line like 'n01440764 tench' for each class",
            )
        if unnamed := [wnid for wnid in wnids() if wnid not in names]:
            raise DataError(
                f"classnames.txt has no name for {unnamed[0]}", "take ImageNet's, which names 1,000 classes"
            )


class ImageNetA(Shifted):
    """Natural adversarial examples (arXiv 1907.07174): 7,500 photographs of 200 classes."""

    name = "imagenet-a"
    origin = origins.IMAGENET_A
    tree = "imagenet-a"
    count = 200


class ImageNetR(Shifted):
    """Renditions (arXiv 2006.16241): 30,000 pictures of 200 classes, painted, drawn, embroidered."""

    name = "imagenet-r"
    origin = origins.IMAGENET_R
    tree = "imagenet-r"
    count = 200


class ImageNetSketch(Shifted):
    """Sketches (arXiv 1905.13549): 50 of each class."""

    name = "imagenet-sketch"
    origin = origins.IMAGENET_SKETCH
    tree = "images|sketch"


class ImageNetV2(Shifted):
    """A new test set collected as the first was (arXiv 1902.10811), matched in frequency: 10 images of each class, in
    folders that are called by label."""

    name = "imagenet-v2"
    origin = origins.IMAGENET_V2
    tree = "imagenetv2-matched-frequency-format-val"

    def _folders(self, root: Path) -> dict[str, str]:
        there = set(subfolders(root))
        return {wnid: str(label) for label, wnid in enumerate(wnids()) if str(label) in there}
