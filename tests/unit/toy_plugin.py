"""A single-file plugin with toy parts, and strategies that misbehave on request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from advdistill import (
    AttackSpec,
    Clock,
    Config,
    DatasetSpec,
    Losses,
    Step,
    Strategy,
    StrategySpec,
    StudentSpec,
    Term,
    cross_entropy,
    hookimpl,
    kl,
)
from advdistill.testing import ToyAttack, ToyConfig, ToyDataset, ToyModel


class Drifting(Strategy):
    """Two learners and a weight that adapts: everything that a resume point must hold."""

    weight: Tensor

    def __init__(self, config: object) -> None:
        super().__init__(config)
        self.register_buffer("weight", torch.ones(()))

    def step(self, s: Step) -> Losses:
        adversarial = s.attack(lambda images, rows: cross_entropy(s.student(images), s.labels[rows]))
        student, teacher = s.student(adversarial), s.teacher("clean")(s.images)
        return Losses(
            {"weight": self.weight},
            student=Term(kl(teacher.detach(), student), self.weight),
            teacher=cross_entropy(teacher, s.labels),
        )

    def updated(self, means: Mapping[str, float], clock: Clock) -> None:
        self.weight.mul_(0.9).add_(0.1 * means["teacher"])


class Poison(Config):
    """When and where a run goes wrong."""

    step: int
    """Optimizer steps that go well before."""
    where: str = "loss"
    """`loss`, `gradient` or `weights`: what alone is not finite at first."""


class Poisoned(Strategy):
    """Cross-entropy until the poison works."""

    def step(self, s: Step) -> Losses:
        healthy = cross_entropy(s.student(s.images), s.labels)
        if s.clock.step < self.config.step:
            return Losses(healthy=healthy, poison=0 * healthy)
        if self.config.where == "gradient":
            return Losses(healthy=healthy, poison=(healthy - healthy.detach()).sqrt())
        if self.config.where == "weights":  # with a learning rate to match
            return Losses(healthy=healthy, poison=healthy * 1e12)
        return Losses(healthy=healthy, poison=healthy * torch.nan)


@hookimpl
def advdistill_students() -> Iterator[StudentSpec]:
    yield StudentSpec(name="toy", target=ToyModel, config=ToyConfig)


@hookimpl
def advdistill_datasets() -> Iterator[DatasetSpec]:
    yield DatasetSpec(name="toy", target=ToyDataset)


@hookimpl
def advdistill_attacks() -> Iterator[AttackSpec]:
    yield AttackSpec(name="toy", target=ToyAttack, norms={"linf"}, objective=True)


@hookimpl
def advdistill_strategies() -> Iterator[StrategySpec]:
    yield StrategySpec(
        name="drifting",
        target=Drifting,
        teachers={"clean": "sees clean images"},
        trains={"clean"},
        attack="labels",
    )
    yield StrategySpec(name="poisoned", target=Poisoned, config=Poison, attack=None)
