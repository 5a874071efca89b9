"""What a run would do and need, found without weights: models stand on the meta device, where tensors have shapes
and no values, and the strategy's first and last step are taken there while the memory that its graph holds is added
up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advdistill.engine import build
from advdistill.engine.data import Batch, Split, steps_per_epoch
from advdistill.engine.noise import Noise
from advdistill.engine.participant import Participant
from advdistill.engine.step import Step
from advdistill.engine.strategy import Strategy
from advdistill.engine.types import ClassSet, Clock, Threat
from advdistill.errors import DataError

if TYPE_CHECKING:
    from advdistill.hooks.registry import Registry
    from advdistill.recipe.resolve import Recipe

_ASSUMED_CLASSES, _ASSUMED_SIDE, _ASSUMED_IMAGES = 1000, 224, 1_281_167


@dataclass(frozen=True)
class Plan:
    """Answers of a dry run.

    Attributes:
        images, classes, side: size of the training data.
        missing: what is not on this machine: data (then ImageNet's size is assumed), teachers (then not counted).
        steps: optimizer steps. portion: images that are worked on at a time.
        sizes: role -> (parameters that learn, parameters in all).
        weights, training, activations: bytes of all weights; of gradients and optimizer state; of the largest graph.
            `activations` is None where `unknown` says why it could not be found.
    """

    images: int
    classes: int
    side: int
    missing: list[str]
    steps: int
    portion: int
    sizes: dict[str, tuple[int, int]]
    weights: int
    training: int
    activations: int | None
    unknown: str

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**vars(self), "sizes": {role: {"learns": a, "total": b} for role, (a, b) in self.sizes.items()}}


def plan(recipe: Recipe, registry: Registry) -> Plan:
    """Plan a run. No weight is read; data is scanned where it is there."""
    images, classes, side = _ASSUMED_IMAGES, None, _ASSUMED_SIDE
    missing: list[str] = []
    try:
        dataset = build.dataset(registry, recipe.data)
        split: Split = dataset.split("train")
        images, classes, side = len(split), dataset.classes, split.load(0).shape[-1]
    except DataError as error:
        missing.append(f"data: {error.message}; ImageNet's size is assumed")
    classes = classes or ClassSet(tuple(f"class {i}" for i in range(_ASSUMED_CLASSES)), ("a photo of a {}.",))

    def join(block: Any, learns: bool) -> Participant:
        return Participant(build.model(registry, block, weights=False), classes, learns=learns)

    student = join(recipe.student, True)
    teachers = {}
    for role, block in recipe.teachers.items():
        try:
            teachers[role] = join(block, block.train)
        except DataError as error:
            missing.append(f"{role} teacher: {error.message}; it is not counted")
    everyone = {"student": student, **teachers}
    batch = min(recipe.train.batch_size, images)
    portion = batch if recipe.train.accumulate == "auto" else -(-batch // recipe.train.accumulate)
    steps = recipe.train.steps or recipe.train.epochs * steps_per_epoch(images, recipe.train.batch_size)
    storages = {t.untyped_storage()._cdata: t.nbytes for p in everyone.values() for t in p.model.parameters()}
    learns = sum(t.nbytes for p in everyone.values() for t in p.trainable.values())
    if teachers.keys() == recipe.teachers.keys():
        numbers = torch.zeros(portion, dtype=torch.long, device="meta")
        see = partial(
            Step,
            Batch(torch.zeros(portion, 3, side, side, device="meta"), numbers, numbers),
            student=student,
            teachers=teachers,
            attack=build.component(registry, recipe.attack) if recipe.attack else None,
            threat=Threat(recipe.threat.norm, recipe.threat.eps),
            noise=Noise(0, "plan", 0, numbers),
        )
        student.model.train()
        strategy = build.component(registry, recipe.strategy)
        strategy.prepare({role: participant.model for role, participant in everyone.items()})
        strategy = strategy.to("meta")
        # What a method does may change on the way, so the first step is planned and the last.
        clocks = [Clock(0, steps, 0), Clock(steps - 1, steps, (steps - 1) // steps_per_epoch(images, batch))]
        planned = [_activations(strategy, partial(see, clock), everyone.values(), set(storages)) for clock in clocks]
        activations, unknown = max(planned, key=lambda found: found[0] or 0)
    else:
        activations, unknown = None, "that takes all teachers"
    return Plan(
        images=images,
        classes=len(classes),
        side=side,
        missing=missing,
        steps=steps,
        portion=portion,
        sizes=build.count(everyone),
        weights=sum(storages.values()),
        training=learns * (3 if recipe.optim.use == "adamw" else 2),
        activations=activations,
        unknown=unknown,
    )


class _Ledger:
    """Bytes that autograd graphs hold, by storage, and the most they ever held at once."""

    def __init__(self, ignored: set[int]) -> None:
        self.ignored, self.holders, self.now, self.peak = ignored, Counter[int](), 0, 0

    def hold(self, tensor: Tensor) -> _Held:
        return _Held(self, tensor)


class _Held:
    def __init__(self, ledger: _Ledger, tensor: Tensor) -> None:
        self.ledger, self.tensor = ledger, tensor
        self.key, self.bytes = tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes()
        ledger.holders[self.key] += 1
        if ledger.holders[self.key] == 1 and self.key not in ledger.ignored:
            ledger.now += self.bytes
            ledger.peak = max(ledger.peak, ledger.now)

    def __del__(self) -> None:
        self.ledger.holders[self.key] -= 1
        if self.ledger.holders[self.key] == 0 and self.key not in self.ledger.ignored:
            self.ledger.now -= self.bytes


def _activations(
    strategy: Strategy, see: Callable[[], Step], everyone: Iterable[Participant], weights: set[int]
) -> tuple[int | None, str]:
    """The most bytes that the graphs of one batch's phases hold beside the weights; or None and why not."""
    ledger = _Ledger(weights)
    try:
        with torch.autograd.graph.saved_tensors_hooks(ledger.hold, lambda held: held.tensor):
            s = see()
            for phase in strategy.phases:
                phase(s).total().sum().backward()
                s.forget()
        for participant in everyone:
            participant.discard()
    except (RuntimeError, NotImplementedError) as error:
        return None, f"a part of this recipe needs values, not just shapes ({str(error).splitlines()[0]})"
    return ledger.peak, ""
