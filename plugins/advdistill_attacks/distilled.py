"""Attacks on what distillation and prompt learning leave open: other objectives, other prompts, another backbone.

Each of them restates the problem and leaves the ascent to the attack that its settings hold. Against a deterministic
model they are weaker than that attack's own white-box run. Where one of them finds more, the white-box number is wrong.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from advdistill import Attack, Noise, Problem, Threat, cross_entropy, kl


class Restated(Attack):
    """Runs the attack in its settings on a problem that says something else."""

    @property
    def studies(self) -> int:  # type: ignore[override]
        """As many training images as the inner attack wants to see."""
        return self.inner[0].studies

    @abstractmethod
    def restate(self, problem: Problem) -> Problem:
        """The problem that the inner attack is given."""

    def study(self, problem: Problem, threat: Threat, noise: Noise) -> None:
        self.inner[0].study(self.restate(problem), threat, noise)

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        if not threat.eps:
            return problem.images  # nothing can be found, so nobody is looked at
        return self.inner[0].run(self.restate(problem), threat, noise)

    def stages(self) -> Sequence[Attack]:
        """The inner attack's stages, each with its problem restated."""
        stages = self.inner[0].stages()
        if len(stages) == 1 and stages[0] is self.inner[0]:
            return (self,)
        parts = [type(self)(self.config, (stage,)) for stage in stages]
        for part, stage in zip(parts, stages, strict=True):
            part.name = f"{self.name}({stage.name})"
        return parts


class TeacherGuided(Restated):
    """Pushes the student away from its teacher: climbs the divergence that distillation brings down.

    Labels play no part. Knows everything: weights and prompts of both.
    """

    def restate(self, problem: Problem) -> Problem:
        config, teacher = self.config, problem.seen(self.config.teacher)
        fixed = _at_clean(problem, teacher.logits) if config.teacher_sees == "clean" else None

        def divergence(images: Tensor, rows: Tensor) -> Tensor:
            student = problem.predict(images, rows)
            taught = teacher.logits(images) if fixed is None else fixed[rows]
            return kl(taught, student) if config.order == "teacher-student" else kl(student, taught)

        return problem.restated(divergence)


class Feature(Restated):
    """Drives the model's own image features away from the clean image's, with neither labels nor class features.

    The distance is flat at the clean image: the inner attack must start elsewhere, as a random start does.
    """

    def restate(self, problem: Problem) -> Problem:
        clean = _at_clean(problem, problem.seen("self").features)

        def distance(images: Tensor, rows: Tensor) -> Tensor:
            features = problem.features(images, rows)
            if self.config.distance == "cosine":
                return 1 - F.cosine_similarity(features, clean[rows], dim=1)
            # Squared: the root has no gradient at 0, and does not change where the way up leads.
            return (features - clean[rows]).square().sum(1)

        return problem.restated(distance)


class CrossPrompt(Restated):
    """The image tower is known, the prompts are not: the attacker classifies with prompts of his own.

    Nothing that misleads his classifier counts as found; only the image that he ends with is judged.
    """

    def restate(self, problem: Problem) -> Problem:
        config, tower = self.config, problem.seen("self")
        # Whose text tower: the defended one would put its learned prompts into the sentences.
        author = config.teacher if config.prompts == "teacher" else "base"
        groups = [(template,) for template in config.templates] if config.prompts == "ensemble" else [config.templates]
        guesses = [problem.seen(author).classifier(tuple(group)) for group in groups]

        def said(images: Tensor) -> list[Tensor]:
            return [tower.logits(images, guess) for guess in guesses]

        def loss(images: Tensor, rows: Tensor) -> Tensor:
            labels = problem.labels[rows]
            return torch.stack([cross_entropy(logits, labels) for logits in said(images)]).mean(0)

        own = problem.elsewhere(author).restated(logits=lambda images, rows: torch.stack(said(images)).mean(0))
        return own if len(guesses) == 1 else own.restated(loss)


class CleanBackbone(Restated):
    """Made on the undefended twin, which shares the frozen weights, and handed over: the student is asked nothing."""

    def restate(self, problem: Problem) -> Problem:
        return problem.elsewhere("base")


def _at_clean(problem: Problem, look: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, ·) what `look` says of the clean images; zeros in rows that are closed already and not asked about again."""
    rows = problem.open()
    with torch.no_grad():
        found = look(problem.images[rows])
    return found.new_zeros(len(problem.images), *found.shape[1:]).index_copy(0, rows, found)
