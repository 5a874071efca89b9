"""A look at every image of a data set: which cannot be read, which are there twice, and whether all are there."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from advdistill.data.place import place
from advdistill.engine import build
from advdistill.engine.data import SPLITS, Dataset, Split, image_of, looked_at
from advdistill.errors import DataError, MissingSplit
from advdistill.hooks.registry import Registry
from advdistill.recipe.model import Portion
from advdistill.recipe.resolve import Block
from advdistill.recipe.resolved import DataBlock

_AT_ONCE = 32

Show = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Counts:
    """A split.

    Attributes:
        smallest, largest: a class and how many images it has.
    """

    images: int
    classes: int
    smallest: tuple[str, int]
    largest: tuple[str, int]


@dataclass(frozen=True)
class Twins:
    """Two samples that are the same image.

    Attributes:
        one, other: split, name and class of each.
    """

    one: tuple[str, str, str]
    other: tuple[str, str, str]

    @property
    def matters(self) -> bool:
        """Whether a model is tested on what it has learned, or told two things of one image."""
        (split, _, label), (other_split, _, other_label) = self.one, self.other
        return split != other_split or label != other_label

    def __str__(self) -> str:
        (split, name, label), (other_split, other_name, other_label) = self.one, self.other
        labels = f"; their labels differ: {label}, {other_label}" if label != other_label else ""
        return f"twice: {name} ({split}) and {other_name} ({other_split}){labels}"


@dataclass(frozen=True)
class Unreadable:
    """A sample that cannot be read, and why."""

    split: str
    name: str
    why: str

    def __str__(self) -> str:
        named = "" if self.name in self.why else f"{self.name}: "
        return f"unreadable: {named}{self.why} ({self.split})"


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        splits: name -> counts; those that there are not are in `absent`, with the reason.
        twins: each image that is there again, beside its first appearance. One that stands twice in one class of one
            split is no finding: published sets have such.
        others: what else is wrong, in words.
        notes: what to know that is not wrong.
        record: what the data set says of how its samples were chosen.
    """

    splits: Mapping[str, Counts]
    absent: Mapping[str, str]
    unreadable: Sequence[Unreadable]
    twins: Sequence[Twins]
    others: Sequence[str]
    notes: Sequence[str]
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def findings(self) -> list[str]:
        """All that is wrong, a line each."""
        return [*self.others, *map(str, self.unreadable), *(str(each) for each in self.twins if each.matters)]


def verify(
    registry: Registry, block: Block, show: Show = lambda what, done, total: None, workers: int | str = "auto"
) -> Verification:
    """Look at a data set as a recipe would use it.

    Args:
        block: of the data set.
        show: is told of progress: split, images looked at, all.
        workers: processes that decode, see `workers_for`.

    Raises:
        DataError, RecipeError, PluginError: it cannot be opened at all.
    """
    if isinstance(block, DataBlock):  # what cannot be read is to be found, not to be passed over
        block = replace(block, portion=block.portion.model_copy(update={"on_error": "stop"}))
    data = build.dataset(registry, block)
    splits, absent, closed = _opened(data)
    seen = {name: _look(split, partial(show, name), workers) for name, split in splits.items()}
    unreadable = [
        Unreadable(name, splits[name].ids[index], why)
        for name, looked in seen.items()
        for index, why in looked.errors.items()
    ]
    found = sum(map(len, splits.values()))
    missing, notes = _against_origin(registry, block, found)
    return Verification(
        {name: _counts(split, data) for name, split in splits.items()},
        absent,
        unreadable,
        list(_twins(splits, seen, data)),
        [*closed, *missing, *_odd_sizes(splits, seen)],
        [*notes, *_basis(data)],
        data.record(),
    )


def _opened(data: Dataset) -> tuple[dict[str, Split], dict[str, str], list[str]]:
    splits, absent, wrong = dict[str, Split](), dict[str, str](), list[str]()
    for name in SPLITS:
        try:
            split = data.split(name)
        except MissingSplit as error:
            absent[name] = error.message
        except DataError as error:
            wrong.append(f"{name} cannot be opened: {error.message}")
        else:
            splits[name] = split
    if not splits:
        raise DataError("; ".join([*absent.values(), *wrong]), "there is nothing to look at")
    return splits, absent, wrong


def _counts(split: Split, data: Dataset) -> Counts:
    counts = split.labels.bincount(minlength=len(data.classes)).tolist()
    pairs = list(zip(data.classes.names, counts, strict=True))
    present = [pair for pair in pairs if pair[1]]
    return Counts(len(split), len(present), min(pairs, key=lambda p: p[1]), max(pairs, key=lambda p: p[1]))


@dataclass
class _Looked:
    """What was seen of a split: index -> hash of the pixels and size of an image, or why there is none."""

    hashes: dict[int, bytes] = field(default_factory=dict)
    sizes: dict[int, str] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)


def _look(split: Split, show: Callable[[int, int], None], workers: int | str) -> _Looked:
    """Look at all images."""
    seen = _Looked()
    for index, (pixels, size, error) in enumerate(looked_at(split, partial(_said, split), workers)):
        if error:
            seen.errors[index] = error
        else:
            seen.hashes[index], seen.sizes[index] = pixels, sys.intern(size)
        if index % _AT_ONCE == _AT_ONCE - 1 or index == len(split) - 1:
            show(index + 1, len(split))
    return seen


def _said(split: Split, index: int) -> tuple[bytes, str, str]:
    """Hash of an image's pixels, its size, and why it cannot be read."""
    try:
        found = image_of(split, index)
    except DataError as error:
        return b"", "", " ".join(error.message.split())[:340]
    pixels = hashlib.blake2b(found.contiguous().numpy().tobytes(), digest_size=16).digest()
    return pixels, " × ".join(map(str, found.shape[-2:])), ""


def _twins(splits: Mapping[str, Split], seen: Mapping[str, _Looked], data: Dataset) -> Iterator[Twins]:
    """Images with the same pixels and, where all of them have files, with files of the same length."""
    lengths, first = _lengths(splits), dict[tuple[bytes, int], tuple[str, int]]()

    def sample(name: str, index: int) -> tuple[str, str, str]:
        split = splits[name]
        return name, split.ids[index], data.classes.names[int(split.labels[index])]

    for name, looked in seen.items():
        for index, pixels in looked.hashes.items():
            one = first.setdefault((pixels, lengths[name][index] if lengths else 0), (name, index))
            if one != (name, index):
                yield Twins(sample(*one), sample(name, index))


def _lengths(splits: Mapping[str, Split]) -> dict[str, Sequence[int]] | None:
    found: dict[str, Sequence[int]] = {}
    for name, split in splits.items():
        try:
            sizes = [size for index in range(len(split)) if (size := split.size(index)) is not None]
        except DataError:  # a file is missing, which is told elsewhere
            return None
        if len(sizes) < len(split):
            return None
        found[name] = sizes
    return found


def _odd_sizes(splits: Mapping[str, Split], seen: Mapping[str, _Looked]) -> Iterator[str]:
    """Images that could not stand in a batch with the others."""
    for name, looked in seen.items():
        for usual, _ in Counter(looked.sizes.values()).most_common(1):
            for index, size in looked.sizes.items():
                if size != usual:
                    yield f"size: {splits[name].ids[index]} ({name}) is {size}, where others are {usual}"


def _against_origin(registry: Registry, block: Block, found: int) -> tuple[list[str], list[str]]:
    """What is missing of a published data set, and what it does without."""
    origin = registry.load(block.spec, "origin")
    if origin is None:
        return [], []
    where = place(origin, getattr(block.config, "root", ""))
    notes = [f"without {path}: {what}" for path, what in where.without.items()]
    wrong = [f"incomplete: a fetch was not finished; go on with: {where.resume}"] if where.resume else []
    if origin.images and found != origin.images and _whole(block):
        wrong.append(f"count: {found:,} images, where {origin.images:,} are published")
    return wrong, notes


def _whole(block: Block) -> bool:
    """Whether no setting can have chosen among the samples: all but the place are as they are by default."""
    config = block.config
    chosen = {name for name in config.model_fields_set if name != "root"}
    defaults = type(config).model_construct()
    usual = all(getattr(config, name) == getattr(defaults, name, None) for name in chosen)
    if isinstance(block, DataBlock):
        usual = usual and (block.portion.half, block.portion.manifest) == (Portion().half, Portion().manifest)
    return usual


def _basis(data: Dataset) -> Iterator[str]:
    """What the data set says in a word or a number of how its samples were chosen, and the files that say so."""
    for key, value in data.record().items():
        facts = {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
        for name, fact in facts.items():
            if isinstance(fact, (str, int, float)):
                yield f"{name}: {fact}"
    for path in dict.fromkeys(map(Path, data.parts())):
        yield f"read from {path}"
