"""Dividing samples: into train, val and test in proportion to class sizes, and k shots of every class."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from advdistill.engine.data import seeded
from advdistill.errors import DataError


def partition(labels: Tensor, counts: Sequence[int], seed: int) -> list[Tensor]:
    """Disjoint parts in which every class is present in proportion to its size.

    Args:
        labels: (N,) long.
        counts: sizes of the first parts; the last part is what remains, and of a class with few samples it gets
            the first.
        seed: of the shuffle within each class.

    Returns:
        `len(counts) + 1` sorted tensors of indices.
    """
    # Spread each class evenly over [0, 1], then cut: every stretch holds about its share of every class.
    place = torch.empty(len(labels), dtype=torch.float64)
    generator = seeded(seed, "partition")
    for members in labels.argsort(stable=True).split(labels.bincount().tolist()):
        ranks = torch.randperm(len(members), generator=generator)
        place[members] = (ranks.double() + 0.5) / len(members)
    order = place.argsort(stable=True)
    return [part.sort().values for part in order.split([*counts, len(labels) - sum(counts)])]


def few_shot(
    labels: Tensor,
    shots: int,
    rng: random.Random,
    names: Sequence[str],
    *,
    at_most: bool = False,
    order: Literal["label", "appearance"] = "label",
) -> Tensor:
    """`shots` samples of every class, drawn class by class with `rng.sample`, as the CoOp protocol does.

    Args:
        labels: (N,) long, in [0, len(names)).
        rng: moved on; drawing train, then val, from one generator gives independent draws.
        names: class names in label order, for the error.
        at_most: a class with fewer samples gives all that it has, and nothing is drawn for it.
        order: of the classes: by label, or as the samples first show them, which is what the public code of CoOp does:
            the same list then gives the same samples.

    Returns:
        Indices, class after class; len(names) * shots of them unless `at_most`.

    Raises:
        DataError: a class has fewer samples; names it.
    """
    members: dict[int, list[int]] = {} if order == "appearance" else {label: [] for label in range(len(names))}
    for index, label in enumerate(labels.tolist()):
        members.setdefault(label, []).append(index)
    short = [label for label in range(len(names)) if len(members.get(label, ())) < shots]
    if short and not at_most:
        has = len(members.get(short[0], ()))
        raise DataError(
            f"class {names[short[0]]!r} has {has} training images, but {shots} shots are wanted",
            f"add images to that class, leave it out, or set shots to {has} or less (0: all images)",
        )
    drawn: list[int] = []
    for some in members.values():
        drawn += rng.sample(some, shots) if len(some) >= shots else some
    return torch.tensor(drawn, dtype=torch.long)
