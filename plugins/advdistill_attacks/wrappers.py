"""What adapts any attack to a defence that hides its gradients."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from advdistill import Attack, Noise, Problem, Threat, UsageError
from advdistill_attacks.ensemble import titled


class Wrapper(Attack):
    """An attack that hands another one a problem with other gradients. Subclasses write `adapted`."""

    @contextlib.contextmanager
    @abstractmethod
    def adapted(self, problem: Problem) -> Iterator[Problem]:
        """The problem as the wrapped attack shall see it."""

    @property
    def studies(self) -> int:  # type: ignore[override]
        """As many as the wrapped attack."""
        return self.inner[0].studies

    @property
    def fewest_classes(self) -> int:  # type: ignore[override]
        """As many as the wrapped attack."""
        return self.inner[0].fewest_classes

    def study(self, problem: Problem, threat: Threat, noise: Noise) -> None:
        with self.adapted(problem) as other:
            self.inner[0].study(other, threat, noise)

    def stages(self) -> Sequence[Attack]:
        """Those of the wrapped attack, each wrapped."""
        found = []
        for stage in self.inner[0].stages():
            wrapped = type(self)(self.config, [stage])
            wrapped.name = f"{self.name}-{titled(stage)}"
            found.append(wrapped)
        return found

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        if threat.eps == 0:
            return problem.images.clone()
        with self.adapted(problem) as other:
            return self.inner[0].run(other, threat, noise)


class Adapter(Wrapper):
    """Changes how the attacked model's gradients come about; what is climbed stays.

    Raises:
        UsageError: the attack inside asks for no gradients, so that nothing is changed under this name.
    """

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        before = problem.tally.backwards.sum()
        images = super().run(problem, threat, noise)
        idle = problem.tally.backwards.sum() == before
        if threat.eps and idle and len(problem.open()):
            inside = self.inner[0].name or type(self.inner[0]).__name__
            raise UsageError(
                f"{self.name or type(self).__name__}: {inside} asks for no gradients, and nothing else is changed",
                f"run {inside} by itself",
            )
        return images


class EOT(Adapter):
    """Expectation over transformation (Athalye et al. 2018, arXiv 1707.07397): mean gradients of a random model."""

    @contextlib.contextmanager
    def adapted(self, problem: Problem) -> Iterator[Problem]:
        yield problem.restated(draws=self.config.draws)


class BPDA(Adapter):
    """Backward pass differentiable approximation (Athalye et al. 2018, arXiv 1802.00420).

    The other model stands in wherever the attack asks for the problem's logits, so that any loss of them goes through
    it. What is climbed without them (features; an objective that a strategy brings) is refused.
    """

    @contextlib.contextmanager
    def adapted(self, problem: Problem) -> Iterator[Problem]:
        if self.config.through == "own":
            with problem.seen("self").exposed("bpda"):
                yield problem
            return
        other, asked, before = problem.seen(self.config.through), [], problem.tally.backwards.sum()

        def logits(images: Tensor, rows: Tensor) -> Tensor:
            if images.requires_grad:
                asked.append(len(rows))
            with torch.no_grad():
                # Counts the pass through the attacked model; whoever asks for these logits counts the other's.
                said = problem.predict(images, rows)
            smooth = other.logits(images)
            return said + (smooth - smooth.detach())

        yield problem.restated(logits=logits)
        if not asked and problem.tally.backwards.sum() > before:
            raise UsageError(
                f"{self.name}: what the attack inside climbs does not come from the model's logits, so that the "
                f"gradients of {self.config.through!r} are never used",
                "climb a loss of logits, or take through: own",
            )


class Unrolled(Adapter):
    """Gradients through the optimisation that the model runs on its input."""

    @contextlib.contextmanager
    def adapted(self, problem: Problem) -> Iterator[Problem]:
        with problem.seen("self").exposed("unrolled"):
            yield problem
