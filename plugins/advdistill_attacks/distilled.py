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

from advdistill import Problem, UsageError, cross_entropy, kl
from advdistill_attacks.configs import Climbing
from advdistill_attacks.losses import stated
from advdistill_attacks.wrappers import Wrapper


class Guided(Wrapper):
    """An attack that climbs another objective, by whichever attack climbs any."""

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

    Labels play no part. Weights and prompts of both are known.
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
        if not getattr(self.inner[0].config, "random_start", True):
            raise UsageError(
                f"{self.name}: the distance is flat at the clean image, and the attack inside starts there",
                "set its random_start: true",
            )
        return stated(problem, Climbing(loss="feature", distance=self.config.distance)).objective


class CrossPrompt(Wrapper):
    """The image tower is known, the prompts are not: the attacker classifies with class features of his own.

    What misleads his classifier counts as nothing found; only the image that he ends with is judged.
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


class CleanBackbone(Wrapper):
    """Made on the undefended twin, which shares the frozen weights, and handed over: the student is asked nothing."""

    @contextlib.contextmanager
    def adapted(self, problem: Problem) -> Iterator[Problem]:
        yield problem.elsewhere("base")
