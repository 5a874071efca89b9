"""From what a reader has found to a data set: classes named, splits divided, shots drawn. The same for every reader."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from advdistill import ClassSet, DataError, Dataset, MissingSplit, Split, few_shot, partition, resource
from advdistill_data import configs
from advdistill_data.pictures import PictureSplit, Source

_RECORDED_IDS = 2000
SPLITS = ("train", "val", "test")
ALIASES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
"""What people call splits."""

_WHOLE = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class Listing:
    """What a reader has found.

    Attributes:
        keys: the classes in label order, as the data write them.
        samples: split -> (names in the source, labels); splits that the data do not have are missing.
        names: key -> what to call it; a key without one is its own name, `_` read as a space.
        facts: JSON-able, for the record: what the splits rest on.
        parts: the files that say so.
    """

    keys: Sequence[str]
    samples: Mapping[str, tuple[Sequence[str], Sequence[int]]]
    names: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    parts: Sequence[Path] = ()


class PictureDataset(Dataset):
    """Splits of pictures, reduced to a few shots where the settings say so.

    Args:
        source: where the pictures lie.
        listing: which there are.
        shares: "test" and "val" -> the share of the training images that becomes that split where there is none.

    Raises:
        DataError: fewer than two classes, two of one name, names that do not fit, or a class with fewer training
            images than shots.
    """

    config: Any

    def __init__(
        self, config: configs.Pictures, source: Source, listing: Listing, shares: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(config)
        if len(listing.keys) < 2:
            raise DataError(
                f"{self.place} holds one class only: {', '.join(listing.keys) or 'none'}",
                "a classifier needs two or more: one folder per class",
            )
        self.classes = ClassSet(class_names(config, listing), tuple(self._templates()))
        self._listing, self._source = listing, source
        splits = {part: _split(source, *listing.samples.get(part, ((), ())), config) for part in SPLITS}
        splits = self._divided(splits, listing.samples.keys(), shares or {})
        self._splits = self._drawn(splits) if config.shots else splits

    @property
    def place(self) -> str:
        """What to call where the data lie."""
        return str(self.config.root)

    def _templates(self) -> Sequence[str]:
        templates: Sequence[str] = self.config.templates
        return templates

    def _divided(
        self, splits: dict[str, PictureSplit], there: Collection[str], shares: Mapping[str, float]
    ) -> dict[str, PictureSplit]:
        """Fill the splits that are not `there` with their shares of the training images, in proportion per class."""
        train = splits["train"]
        missing = {part: share for part, share in shares.items() if part not in there and share}
        if not missing:
            return splits
        counts = [round(share * len(train)) for share in missing.values()]
        *taken, rest = partition(train.labels, counts, self.config.split_seed)
        filled = {part: train.take(some) for part, some in zip(missing, taken, strict=True)}
        return splits | {"train": train.take(rest)} | filled

    def _drawn(self, splits: dict[str, PictureSplit]) -> dict[str, PictureSplit]:
        """k shots of every class to train on, and min(k, 4) to validate on, drawn one after the other from one
        generator, classes in the order in which they first appear: CoOp's protocol (arXiv 2109.01134), draw for draw.
        """
        rng, shots = random.Random(self.config.shots_seed), self.config.shots
        return (
            splits
            | {"train": self._shots(splits["train"], shots, rng)}
            | {"val": self._shots(splits["val"], min(shots, 4), rng, at_most=True)}
        )

    def _shots(self, split: PictureSplit, shots: int, rng: random.Random, at_most: bool = False) -> PictureSplit:
        return split.take(few_shot(split.labels, shots, rng, self.classes.names, at_most=at_most, order="appearance"))

    def split(self, name: str) -> Split:
        if name not in self._splits:
            raise MissingSplit(f"there is no split {name!r}", "use train, val or test")
        if not len(self._splits[name]):
            raise MissingSplit(
                f"the {name} split of {self.place} holds no images",
                f"add a {name} split to the data, or let a larger share of the images become it",
            )
        return self._splits[name]

    def parts(self) -> list[Path]:
        return [*self._listing.parts, *self._source.parts()]

    def record(self) -> dict[str, Any]:
        """Counts and digests of the splits, what they rest on; of a few-shot draw also the files, if they are few
        enough to list."""
        facts: dict[str, Any] = {
            **self._listing.facts,
            "split_seed": self.config.split_seed,
            "shots": self.config.shots,
            "shots_seed": self.config.shots_seed,
            "splits": {name: {"count": len(s), "sha256": s.digest} for name, s in self._splits.items()},
        }
        drawn = {name: list(self._splits[name].ids) for name in ("train", "val")}
        if self.config.shots and sum(map(len, drawn.values())) <= _RECORDED_IDS:
            facts["ids"] = drawn
        return facts


def _split(source: Source, ids: Sequence[str], labels: Sequence[int], config: configs.Pictures) -> PictureSplit:
    return PictureSplit(source, ids, torch.as_tensor(labels, dtype=torch.long), config)


def class_names(config: configs.Pictures, listing: Listing) -> tuple[str, ...]:
    """Class names in label order: the recipe's, a file's, or the reader's own.

    Raises:
        DataError: they do not fit the classes, or two are the same.
    """
    keys = listing.keys
    given: list[str] | dict[str, str] = list(getattr(config, "classes", ()))
    if file := getattr(config, "class_names", ""):
        given = _read_names(resource(file))
    if isinstance(given, dict):
        if unnamed := [key for key in keys if key not in given]:
            raise DataError(f"{file} has no name for the class {unnamed[0]!r}", "add it to the file")
        given = [given[key] for key in keys]
    if given and len(given) != len(keys):
        raise DataError(
            f"{len(given)} class names are given for {len(keys)} classes",
            f"name all, in this order: {', '.join(keys[:8])}{', …' if len(keys) > 8 else ''}",
        )
    names = given or [listing.names.get(key, key.replace("_", " ")) for key in keys]
    owners: dict[str, str] = {}
    for key, name in zip(keys, names, strict=True):
        if name in owners:
            raise DataError(
                f"two classes are called {name!r}: {owners[name]} and {key}",
                "no model can tell them apart: rename one, in data.classes or in a file given as data.class_names",
            )
        owners[name] = key
    return tuple(names)


def _read_names(path: Path) -> list[str] | dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"class names {path} cannot be read: {error}", "correct data.class_names") from error
    if isinstance(names, list):
        names = [name for name in names if name]
    listed = list(names.values()) if isinstance(names, dict) else names
    if not (isinstance(listed, list) and listed and all(isinstance(name, str) and name for name in listed)):
        raise DataError(f"class names {path} are not names", 'write ["cat", "dog"] or {"folder": "cat"}')
    return names


def labels_in_order(found: Collection[int], where: str, count: int | None = None) -> None:
    """Raise DataError unless the labels are 0, 1, … without a gap."""
    present = set(found)
    wanted = range(count if count is not None else (max(present) + 1 if present else 0))
    missing = next((label for label in wanted if label not in present), None)
    if missing is not None:
        raise DataError(
            f"{where}: label {missing} has no images, though there are labels up to {max(present)}",
            "number the classes 0, 1, … without gaps",
        )


def numbered(texts: Sequence[str], where: str) -> tuple[list[str], list[int]]:
    """The classes in label order, and the label of each text.

    Args:
        texts: what the data call the class of each sample. Whole numbers, if all are, are labels; other texts are
            classes, labelled in their sorted order.
        where: to call the data by.

    Raises:
        DataError: labels are negative, or have gaps.
    """
    if not all(_WHOLE.fullmatch(text) for text in texts):
        keys = sorted(set(texts))
        places = {key: label for label, key in enumerate(keys)}
        return keys, [places[text] for text in texts]
    labels = [int(text) for text in texts]
    if labels and min(labels) < 0:
        raise DataError(
            f"{where}: label {min(labels)} is negative", "number the classes 0, 1, … and leave out the others"
        )
    count = len(set(labels))
    labels_in_order(labels, where, count)
    return [str(label) for label in range(count)], labels


def check_trained(samples: Mapping[str, tuple[Sequence[str], Sequence[int]]], keys: Sequence[str], where: str) -> None:
    """Raise DataError where another split has a class that the training split does not have."""
    if "train" not in samples:
        return
    trained = set(samples["train"][1])
    for part, (_, labels) in samples.items():
        if unknown := sorted(set(labels) - trained):
            raise DataError(
                f"{where}: the {part} split has the class {keys[unknown[0]]!r}, which the training split does not have",
                "classes must bear the same names in every split",
            )
