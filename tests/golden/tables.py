"""Models that say what a table says, and an attack that returns what it is told: worlds of equations.py, for torch.

Every sample has its image: the first channel tells which sample it is, the second how adversarial it is, from 0 (clean)
to 1. Features go straight from the clean row of the table to the adversarial one, so that pixels have gradients. All
of it is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from equations import Array, Model, World
from torch import Tensor, nn

from advdistill import Attack, ClassSet, Clock, Noise, Problem, Step, Threat
from advdistill.engine.data import Batch
from advdistill.engine.model import Classes, Factored
from advdistill.engine.participant import Participant

SAMPLES, CLASSES, WIDTH = 5, 4, 3
SCALES = {"student": 3.0, "clean": 4.0, "robust": 2.5, "original": 3.5, "proxy": 2.0, "third": 5.0}
WIDTHS = {"proxy": 4}  # nobody compares its features
TABLES = ("clean", "adversarial", "texts")


def world(roles: Sequence[str], seed: int, **facts: Any) -> World:
    """A batch in which the student and the teachers in `roles` say something or other."""
    draw = np.random.default_rng(seed).standard_normal

    def model(role: str) -> Model:
        width = WIDTHS.get(role, WIDTH)
        return Model(draw((SAMPLES, width)), draw((SAMPLES, width)), draw((CLASSES, width)), SCALES[role])

    labels = np.random.default_rng(seed).integers(CLASSES, size=SAMPLES)
    return World(model("student"), {role: model(role) for role in roles}, labels, **facts)


class Table(Factored):
    """A model made of three tables, all of which it could learn."""

    classifier_learns = True
    image_size = 1

    def __init__(self, role: str) -> None:
        super().__init__()
        self.width = WIDTHS.get(role, WIDTH)
        self.scale = SCALES[role]
        for name in TABLES:
            shape = (CLASSES if name == "texts" else SAMPLES, self.width)
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=torch.float64)))

    @classmethod
    def from_config(cls, config: Any, *, weights: bool = True) -> Table:
        raise NotImplementedError

    def prepare(self, classes: ClassSet) -> Classes:
        return None

    def classifier(self, classes: Classes, rows: Tensor | None = None) -> Tensor:
        return F.normalize(self.texts, dim=-1)

    def features(self, images: Tensor) -> Tensor:
        rows = (images[:, 0, 0, 0] * SAMPLES).round().long()
        return torch.lerp(self.clean[rows], self.adversarial[rows], images[:, 1, 0])

    def logits(self, features: Tensor, classifier: Tensor) -> Tensor:
        return self.scale * F.normalize(features, dim=-1) @ classifier.T

    def learned(self) -> dict[str, Tensor]:
        return {name: self.get_parameter(name) for name in TABLES}

    def undefended(self) -> Table:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        raise NotImplementedError


class Given(Attack):
    """Returns the adversarial images.

    Attributes:
        found: of each attack, (n,) what it raises at the adversarial images, and (n,) its derivative by how adversarial
            they are.
    """

    found: list[tuple[Array, Array]]

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        images = problem.images.clone()
        images[:, 1] = 1
        gradient, objective = problem.gradient(images, problem.rows)
        self.found.append((objective.numpy(), gradient[:, 1, 0, 0].numpy()))
        return images


class Room:
    """The student and the teachers in `roles`; those in `learns` learn, as the student does."""

    def __init__(self, roles: Sequence[str], learns: Sequence[str] = ()) -> None:
        classes = ClassSet(tuple("abcdefgh"[:CLASSES]), ("{}",))
        self.everybody = {
            role: Participant(Table(role), classes, learns=role == "student" or role in learns)
            for role in ("student", *roles)
        }
        self.attack = Given(None)

    @property
    def models(self) -> dict[str, Any]:
        """As `Strategy.prepare` is given them."""
        return {role: participant.model for role, participant in self.everybody.items()}

    def enter(self, w: World) -> None:
        """Everybody says what they say in that world."""
        for role, model in {"student": w.S, **w.T}.items():
            self.everybody[role].load({name: torch.from_numpy(getattr(model, name)) for name in TABLES})

    def step(self, labels: Array, clock: Clock) -> Step:
        """A batch of clean images."""
        images = torch.zeros(SAMPLES, 3, 1, 1, dtype=torch.float64)
        images[:, 0, 0, 0] = torch.arange(SAMPLES) / SAMPLES
        batch = Batch(images, torch.from_numpy(labels), torch.arange(SAMPLES))
        teachers = {role: participant for role, participant in self.everybody.items() if role != "student"}
        return Step(batch, clock, student=self.everybody["student"], teachers=teachers, attack=self.attack,
                    threat=Threat("linf", 1.0), noise=Noise(0, "golden", 0, batch.samples))  # fmt: skip

    def gradients(self, loss: Tensor) -> dict[tuple[str, str], Array]:
        """(role, table) -> gradient of `loss`, of everybody who learns; nobody else may have one."""
        loss.backward()
        found = {}
        for role, participant in self.everybody.items():
            participant.settle()
            for name, parameter in participant.model.named_parameters():
                gradient, parameter.grad = parameter.grad, None
                if participant.learns:
                    found[role, name] = np.zeros(parameter.shape) if gradient is None else gradient.numpy()
                else:
                    assert gradient is None, (role, name)
        return found


def permuted(w: World, order: Array) -> World:
    """The same world, its classes in another order."""
    place = np.argsort(order)

    def reorder(m: Model) -> Model:
        return Model(m.clean, m.adversarial, m.texts[order], m.scale)

    return replace(w, S=reorder(w.S), T={role: reorder(model) for role, model in w.T.items()}, y=place[w.y])
