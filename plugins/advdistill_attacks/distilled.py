"""Attacks on what distillation and prompt learning leave open: other objectives, other prompts, another backbone.

Each of them restates the problem and leaves the ascent to the attack in its settings. Against a deterministic model
they are weaker than that attack's own white-box run; where one of them finds more, the white-box number is wrong.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from advdistill import Attack, Noise, Problem, Threat, UsageError, cross_entropy, kl
from advdistill_attacks.configs import Climbing
from advdistill_attacks.losses import stated
from advdistill_attacks.wrappers import Adapter, Wrapper


class Guided(Wrapper):
    """An attack that climbs another objective, by whichever attack climbs any.

    The objective is made from the problem that the climbing attack gets: `feature` of `eot` of `apgd` is run as `eot`
    of `feature` of `apgd`, or the objective would not know of the other gradients.
    """

    def study(self, problem: Problem, threat: Threat, noise: Noise) -> None:
        outside = self._turned()
        (outside.study if outside else super().study)(problem, threat, noise)

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        outside = self._turned()
        return (outside.run if outside else super().run)(problem, threat, noise)

    def _turned(self) -> Attack | None:
        """The adapter inside, put outside; None where there is none."""
        (adapter,) = self.inner
        if not isinstance(adapter, Adapter):
            return None
        guided = type(self)(self.config, adapter.inner)
        turned = type(adapter)(adapter.config, [guided])
        guided.name, turned.name = self.name, adapter.name
        return turned

    @abstractmethod
    def objective(self, problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
        """`(images, rows) -> (len(rows),)`, what is climbed instead of the problem's own."""

    @contextlib.contextmanager
    def adapted(self, problem: Problem) -> Iterator[Problem]:
        objective, waiting, asked = self.objective(problem), len(problem.open()), []

        def noted(images: Tensor, rows: Tensor) -> Tensor:
            asked.append(len(rows))
            return objective(images, rows)

        yield problem.restated(noted)
        if waiting and not asked and not self.studies:
            raise UsageError(
                f"{self.name}: the attack inside climbs a loss of its own, so this one changes nothing",
                "take an attack that climbs any objective, such as apgd or pgd, and leave its loss empty",
            )


class TeacherGuided(Guided):
    """Pushes the student away from its teacher: climbs the divergence that distillation brings down.

    Labels play no part in what is climbed; as with every attack, an evaluation keeps the first image on the way that
    the student gets wrong. Weights and prompts of both are known.
    """

    def objective(self, problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
        config, teacher, rows = self.config, problem.elsewhere(self.config.teacher), problem.open()
        if config.teacher_sees == "clean":
            with torch.no_grad():
                said = teacher.predict(problem.images[rows], rows)
            known = said.new_zeros(len(problem.images), said.shape[1]).index_copy(0, rows, said)

        def divergence(images: Tensor, rows: Tensor) -> Tensor:
            student = problem.predict(images, rows)
            taught = known[rows] if config.teacher_sees == "clean" else teacher.predict(images, rows)
            return kl(taught, student) if config.order == "teacher-student" else kl(student, taught)

        return divergence


class Feature(Guided):
    """Drives the model's own image features away from the clean image's, with neither labels nor class features."""

    def objective(self, problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
        if any(not getattr(attack.config, "random_start", True) for attack in _within(self)):
            raise UsageError(
                f"{self.name}: the distance is flat at the clean image, and the attack inside starts there",
                "set its random_start: true",
            )
        return stated(problem, Climbing(loss="feature", distance=self.config.distance)).objective


class CrossPrompt(Wrapper):
    """The image tower is known, the prompts are not: the attacker classifies with class features of his own.

    What misleads his classifier counts as nothing found; only the image that he ends with is judged. Of an ensemble of
    templates the mean of the losses is climbed; an attack with a loss of its own climbs that of the mean logits.
    """

    @contextlib.contextmanager
    def adapted(self, problem: Problem) -> Iterator[Problem]:
        config, tower = self.config, problem.seen("self")
        # The defended model's text tower would put its learned prompts into the sentences.
        author = config.teacher if config.prompts == "teacher" else "base"
        groups = [(template,) for template in config.templates] if config.prompts == "ensemble" else [config.templates]
        guesses = torch.stack([problem.seen(author).classifier(tuple(group)) for group in groups])
        count, classes = guesses.shape[:2]

        def said(images: Tensor) -> Tensor:
            """(n, guesses, C), by one pass through the tower."""
            return tower.logits(images, guesses.flatten(0, 1)).unflatten(1, (count, classes))

        elsewhere = problem.elsewhere(author)
        each = elsewhere.restated(logits=lambda images, rows: said(images).flatten(0, 1))

        def loss(images: Tensor, rows: Tensor) -> Tensor:
            labels = problem.labels[rows].repeat_interleave(count)
            return cross_entropy(each.predict(images, rows), labels).view(-1, count).mean(1)

        yield elsewhere.restated(loss, logits=lambda images, rows: said(images).mean(1))


def _within(attack: Attack) -> Iterator[Attack]:
    """All attacks inside, at any depth."""
    for inner in attack.inner:
        yield inner
        yield from _within(inner)


class CleanBackbone(Wrapper):
    """Made on the undefended twin, which shares the frozen weights, and handed over: the student is asked nothing."""

    @contextlib.contextmanager
    def adapted(self, problem: Problem) -> Iterator[Problem]:
        yield problem.elsewhere("base")
