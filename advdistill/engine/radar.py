"""Models side by side on a few axes: accuracy on clean and on attacked images, on classes and images that they were not
trained for, and what a look costs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from advdistill.engine import build
from advdistill.engine.count import Count
from advdistill.engine.data import Dataset, Split
from advdistill.engine.evaluate import Bench, Progress
from advdistill.engine.model import Encoded, VisionLanguageModel
from advdistill.engine.participant import Participant
from advdistill.engine.protocol import Protocol
from advdistill.engine.teaching import plain
from advdistill.engine.types import ClassSet
from advdistill.errors import UsageError
from advdistill.recipe.nodes import parse
from advdistill.recipe.resolve import resolve_blocks

if TYPE_CHECKING:
    from advdistill.hooks.registry import Registry

AT_MOST = 6
"""Models in one picture: as many as there are colours that are told apart."""


@dataclass(frozen=True)
class Entry:
    """What is known of one model.

    Attributes:
        clean, robust: of one draw of samples. zero_shot: clean accuracy; None: not measured. shifts: likewise, one for
            each shifted set.
        flops: of one image's inference, class features at hand; None: they could not be counted.
        parameters: all of them, text tower too.
    """

    name: str
    clean: Count
    robust: Count
    zero_shot: Count | None
    shifts: tuple[Count, ...]
    flops: float | None
    parameters: int

    @property
    def shift(self) -> float:
        """Mean accuracy over the shifted sets."""
        return sum(count.share for count in self.shifts) / len(self.shifts)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "model": self.name,
            "clean": plain(self.clean),
            "robust": plain(self.robust),
            "zero-shot": plain(self.zero_shot) if self.zero_shot else None,
            "shifts": [plain(count) for count in self.shifts],
            "shift": self.shift if self.shifts else None,
            "flops": self.flops,
            "parameters": self.parameters,
        }


@dataclass(frozen=True)
class Axis:
    """One axis: where each model stands on it, from 0 (the middle) to 1, and what 1 means."""

    name: str
    unit: str
    places: tuple[float, ...]


@dataclass(frozen=True)
class Radar:
    """Models and the axes that there is data for.

    Attributes:
        entries: one a model. left_out: axis -> why it is not there.
    """

    entries: tuple[Entry, ...]
    left_out: Mapping[str, str]

    @property
    def axes(self) -> list[Axis]:
        """Accuracies as they are; of the cost, the cheapest model's over the model's own: cheaper is further out."""
        found = [
            Axis("clean", "accuracy", tuple(entry.clean.share for entry in self.entries)),
            Axis("robust", "accuracy under attack", tuple(entry.robust.share for entry in self.entries)),
        ]
        zero_shot = [entry.zero_shot.share for entry in self.entries if entry.zero_shot]
        if zero_shot:
            found.append(Axis("zero-shot", "clean accuracy, new classes", tuple(zero_shot)))
        if self.entries[0].shifts:
            found.append(Axis("shift", "clean accuracy, mean of sets", tuple(e.shift for e in self.entries)))
        flops = [entry.flops for entry in self.entries if entry.flops]
        if len(flops) == len(self.entries):
            found.append(Axis("cost", f"rim = {written(min(flops))}", tuple(min(flops) / each for each in flops)))
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"models": [entry.to_json() for entry in self.entries], "left out": dict(self.left_out)}


def written(flops: float) -> str:
    """FLOPs with a unit."""
    scale, unit = next(((s, u) for s, u in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if flops >= s), (1e3, "k"))
    return f"{flops / scale:.3g} {unit}FLOP"


def block_data(text: str, registry: Registry, option: str) -> Dataset:
    """The data set that `--zero-shot` or `--shift` says.

    Args:
        text: a data set's name, or its block: `use: folder, root: photos`, with or without braces.

    Raises:
        UsageError: it is no block. RecipeError, PluginError, DataError: as for a recipe's data.
    """
    bare = ":" not in text and not text.strip().startswith("{")
    flow = text if text.strip().startswith("{") else f"{{{text}}}"
    tree = {"use": text.strip()} if bare else parse(flow, option).plain()
    if not isinstance(tree, dict) or not tree.get("use"):
        raise UsageError(
            f"{option} {text!r} names no data set", f"write it as in a recipe: {option} 'use: folder, root: photos'"
        )
    return build.dataset(registry, resolve_blocks({"data": tree}, registry, where=option)[("data",)])


class Elsewhere:
    """A model on data that it may not be trained for; made before anything is measured, so that what does not fit is
    told first.

    Raises:
        UsageError: the model cannot tell the data's classes apart.
    """

    def __init__(self, model: VisionLanguageModel, classes: ClassSet, splits: Callable[[str], Split]) -> None:
        self._participant, self._splits = Participant(model, classes), splits

    def accuracy(self, what: str, limit: int, batch_size: int, progress: Progress) -> Count:
        """On at most `limit` clean test images, evenly over the classes."""
        bench = Bench(self._participant, self._splits, 0, batch_size=batch_size, progress=progress)
        (column,) = bench.columns([Protocol(what, limit=limit)])
        return column.outcome.count


def flops(model: VisionLanguageModel, classes: ClassSet) -> float | None:
    """Floating-point operations of one image's inference at the model's own size, with class features at hand: counted
    on the meta device, so that they are the same on all machines. None: the model decides by values."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        twin = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(twin, False) if isinstance(tensor, nn.Parameter) else twin
    try:
        participant = Participant(copy.deepcopy(model, memo), classes)
        with torch.no_grad(), participant.deployed():
            if isinstance(participant.model, Encoded):
                participant.encoded()
            with FlopCounterMode(display=False) as counter:
                participant.logits(torch.empty(1, 3, model.image_size, model.image_size, device="meta"))
    except (RuntimeError, NotImplementedError):
        return None
    return float(counter.get_total_flops())


def parameters(model: VisionLanguageModel) -> int:
    """How many numbers the model is made of."""
    return sum(parameter.numel() for parameter in model.parameters())


def left_out(entries: Sequence[Entry]) -> dict[str, str]:
    """Axis -> why it is not drawn."""
    found = {}
    if not entries[0].zero_shot:
        found["zero-shot"] = "no data: give --zero-shot BLOCK"
    if not entries[0].shifts:
        found["shift"] = "no data: give --shift BLOCK"
    if uncounted := [entry.name for entry in entries if not entry.flops]:
        found["cost"] = f"the FLOPs of {', '.join(uncounted)} depend on values"
    return found
