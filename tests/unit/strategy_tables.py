"""A step whose models say what a table says: parts for the tests of strategies' formulas, on fixed logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advdistill import Clock, cross_entropy


class Said:
    """What a model says, made up."""

    def __init__(self, logits: Tensor, cosines: Tensor | None = None) -> None:
        self.logits, self._cosines = logits, cosines

    def cosine(self, labels: Tensor) -> Tensor:
        assert self._cosines is not None
        return self._cosines.gather(1, labels[:, None])[:, 0]

    def confidence(self, labels: Tensor) -> Tensor:
        return self.logits.softmax(1).gather(1, labels[:, None])[:, 0]

    def detach(self) -> Said:
        return Said(self.logits.detach())

    def __getitem__(self, rows: Tensor) -> Said:
        return Said(self.logits[rows])


class Table:
    """A step whose models say what a table says: (role, "clean" or "adversarial") -> Said."""

    images, adversarial = torch.zeros(1), torch.ones(1)

    def __init__(self, table: dict[tuple[str, str], Said], labels: Tensor, learning: bool = False) -> None:
        self.table, self.labels, self.learning, self.asked = table, labels, learning, set()
        self.roles = tuple(dict.fromkeys(role for role, _ in table if role != "student"))
        self.clock = Clock(0, 10, 0)

    def _say(self, role: str, images: Tensor) -> Said:
        kind = "clean" if images is self.images else "adversarial"
        self.asked.add((role, kind))
        return self.table[role, kind]

    def student(self, images: Tensor) -> Said:
        return self._say("student", images)

    def teacher(self, role: str) -> Any:
        return lambda images: self._say(role, images)

    def learns(self, role: str) -> bool:
        return self.learning

    def once(self, name: str, compute: Any) -> Tensor:
        return compute()

    def attack(self, objective: Any = None, rows: Tensor | None = None) -> Tensor:
        objective = objective or (lambda images, some: cross_entropy(self.student(images), self.labels[some]))
        self.climbed = objective(self.adversarial, torch.arange(len(self.labels)))
        return self.adversarial


def table(
    seed: int = 0, samples: int = 5, classes: int = 7, learning: bool = False, more: tuple[tuple[str, str], ...] = ()
) -> Table:
    """A clean teacher that looks at clean images, a robust one at adversarial ones, a student at both; `more`: further
    (role, "clean" or "adversarial"). Cosines are in [-1, 1], logits ten times that."""
    generator = torch.Generator().manual_seed(seed)

    def said() -> Said:
        cosines = 2 * torch.rand(samples, classes, generator=generator, dtype=torch.float64) - 1
        return Said(10 * cosines, cosines)

    everyone = [("student", "clean"), ("student", "adversarial"), ("clean", "clean"), ("robust", "adversarial")]
    labels = torch.randint(classes, (samples,), generator=generator)
    return Table({who: said() for who in (*everyone, *more)}, labels, learning)
