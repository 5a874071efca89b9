"""What a run would do and need, found without weights: models stand on the meta device, and the first and the last step
are gone through there; see `advdistill.engine.cost`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from advdistill.engine import build, cost, recall
from advdistill.engine.data import Batch, steps_per_epoch
from advdistill.engine.model import Factored
from advdistill.engine.noise import Noise
from advdistill.engine.participant import Participant
from advdistill.engine.standin import with_data
from advdistill.engine.types import Clock, Threat
from advdistill.errors import DataError, UsageError

if TYPE_CHECKING:
    from advdistill.hooks.registry import Registry
    from advdistill.recipe.resolve import Recipe


@dataclass(frozen=True)
class Plan:
    """Answers of a dry run.

    Attributes:
        images, classes, side: size of the training data.
        missing: what is not on this machine: data (then random images are planned with, see
            `advdistill.engine.standin`), teachers (then not counted).
        steps: optimizer steps. per_epoch: those of an epoch. portion: images that are worked on at a time.
        precision: of the towers; see `build.settled`.
        sizes: role -> (parameters that learn, parameters in all).
        weights, training, activations: bytes of all weights; of gradients and optimizer state; of the largest graph.
        first, last: phase -> floating-point operations of the first step, and of the last one if nothing were kept.
            `activations`, `first` and `last` are None where `unknown` says why they could not be found.
        kept: phase -> those of them that steps after the first epoch do not repeat; see `train.cache_teachers`.
        rate: FLOPs a second of a matrix product on this machine; None: it was not measured.
    """

    images: int
    classes: int
    side: int
    missing: list[str]
    steps: int
    per_epoch: int
    portion: int
    precision: str
    sizes: dict[str, tuple[int, int]]
    weights: int
    training: int
    activations: int | None
    first: dict[str, float] | None
    last: dict[str, float] | None
    kept: dict[str, float]
    unknown: str
    rate: float | None = None

    @property
    def flops(self) -> dict[str, float] | None:
        """phase -> floating-point operations of a step, the mean over the run (inferred: what a method does changes
        evenly from the first step to the last); None: not known."""
        if self.first is None or self.last is None:
            return None
        later = 1 - min(self.per_epoch / self.steps, 1)
        mean = _mean([self.first, self.last])
        return {name: flops - later * self.kept.get(name, 0.0) for name, flops in mean.items()}

    @property
    def seconds_per_step(self) -> float | None:
        """At `rate`, without all that is no matrix product: a step takes longer."""
        return sum(self.flops.values()) / self.rate if self.flops and self.rate else None

    def to_json(self) -> dict[str, Any]:
        """As plain data, units in the names."""
        known = {"sizes": {role: {"learns": a, "total": b} for role, (a, b) in self.sizes.items()}}
        named = {
            "per_epoch": "steps_per_epoch",
            "first": "flops_of_first_step",
            "last": "flops_of_last_step",
            "kept": "flops_of_first_epoch_only",
            "flops": "flops_per_step",
            "rate": "matmul_flops_per_second",
        }
        plain = {**vars(self), **known, "flops": self.flops, "seconds_per_step": self.seconds_per_step}
        return {named.get(name, name): value for name, value in plain.items()}


def estimated(recipe: Recipe, registry: Registry) -> Plan:
    """`plan`, with the rate at which this machine multiplies matrices, where it has the recipe's device."""
    found = plan(recipe, registry)
    try:
        return replace(found, rate=cost.matmul_rate(build.device_of(recipe.train.device), found.precision))
    except UsageError:
        return found


def plan(recipe: Recipe, registry: Registry) -> Plan:
    """Plan a run. No weight is read; data is scanned where it is there.

    Raises:
        DataError: the data is there, and cannot be used. PluginError, UsageError: from the parts.
    """
    recipe, lacks = with_data(recipe, registry)
    missing = [lacks] if lacks else []
    recipe = _settled(recipe)
    dataset = build.dataset(registry, recipe.data)
    split = dataset.split("train")
    images, side = len(split), split.load(0).shape[-1]
    # The meta device has no autocast.
    how = replace(build.manner(recipe.train, torch.device("meta")), precision="fp32", compile=False)

    def join(name: str, block: Any, learns: bool, ema: float = 0.0) -> Participant:
        model = build.model(registry, block, weights=False)
        return Participant(model, dataset.classes, learns=learns, ema=ema, manner=how, name=name)

    student = join("student", recipe.student, True)
    teachers = {}
    for role, block in recipe.teachers.items():
        try:
            teachers[role] = join(f"{role} teacher", block, block.train, block.ema)
        except DataError as error:
            missing.append(f"{role} teacher: {error.message}; it is not counted")
    everyone = {"student": student, **teachers}
    batch = min(recipe.train.batch_size, images)
    portion = batch if recipe.train.accumulate == "auto" else -(-batch // recipe.train.accumulate)
    per_epoch = steps_per_epoch(images, recipe.train.batch_size)
    steps = recipe.train.steps or recipe.train.epochs * per_epoch
    storages = {t.untyped_storage()._cdata: t.nbytes for p in everyone.values() for t in p.model.parameters()}
    learns = sum(t.nbytes for p in everyone.values() for t in p.trainable.values())
    found: list[cost.Cost] = []
    kept: list[dict[str, float]] = []
    unknown = "" if teachers.keys() == recipe.teachers.keys() else "that takes all teachers"
    if not unknown:
        numbers = torch.zeros(portion, dtype=torch.long, device="meta")
        see = partial(
            cost.Walk,
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
        for participant in everyone.values():
            if isinstance(participant.model, Factored):
                # Class features that nothing changes are encoded once in a run, which is no step's cost.
                participant.classifier()
                participant.renew()
        # What a method does may change on the way, so the first step is planned and the last.
        clocks = [Clock(0, steps, 0), Clock(steps - 1, steps, (steps - 1) // per_epoch)]
        try:
            for clock in clocks:
                with recall.foreseen(recipe.train, teachers, split, steps > per_epoch) as saved:
                    found.append(cost.walk(strategy, see(clock), everyone.values(), set(storages)))
                kept.append({name: flops * batch / portion for name, flops in saved.items()})
        except cost.NeedsValues as error:
            unknown = error.message
    activations, first, last = None, None, None
    if not unknown:
        activations = max(each.activations for each in found) // (2 if recipe.train.precision == "bf16" else 1)
        first, last = (cost.of_step(each, batch / portion) for each in found)
    return Plan(
        images=images,
        classes=len(dataset.classes),
        side=side,
        missing=missing,
        steps=steps,
        per_epoch=per_epoch,
        portion=portion,
        precision=recipe.train.precision,
        sizes=build.count(everyone),
        weights=sum(storages.values()),
        training=learns * (3 if recipe.optim.use == "adamw" else 2),
        activations=activations,
        first=first,
        last=last,
        kept={} if unknown else _mean(kept),
        unknown=unknown,
    )


def _mean(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each phase."""
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: sum(step.get(name, 0.0) for step in steps) / len(steps) for name in names}


def _settled(recipe: Recipe) -> Recipe:
    """Settled, also where the recipe's device is another machine's."""
    try:
        return build.settled(recipe)
    except UsageError:
        there = "bf16" if recipe.train.device.startswith("cuda") else "fp32"
        precision = there if recipe.train.precision == "auto" else recipe.train.precision
        return replace(recipe, train=recipe.train.model_copy(update={"precision": precision}))
