"""What adapts any attack to a defence that hides its gradients."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from advdistill import Attack, Noise, Problem, Threat
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


class EOT(Wrapper):
    """Expectation over transformation (Athalye et al. 2018, arXiv 1707.07397): mean gradients of a random model."""

    @contextlib.contextmanager
    def adapted(self, problem: Problem) -> Iterator[Problem]:
        yield problem.restated(draws=self.config.draws)


class BPDA(Wrapper):
    """Backward pass differentiable approximation (Athalye et al. 2018, arXiv 1802.00420).

    The other model stands in wherever the attack asks for the problem's logits, so that any `loss` goes through it; an
    objective that a strategy brings does not ask the problem.
    """

    @contextlib.contextmanager
    def adapted(self, problem: Problem) -> Iterator[Problem]:
        if self.config.through == "own":
            with problem.seen("self").exposed("bpda"):
                yield problem
            return
        other = problem.seen(self.config.through)

        def logits(images: Tensor, rows: Tensor) -> Tensor:
            with torch.no_grad():
                # Counts the pass through the attacked model; whoever asks for these logits counts the other's.
                said = problem.predict(images, rows)
            smooth = other.logits(images)
            return said + (smooth - smooth.detach())

        yield problem.restated(logits=logits)


class Unrolled(Wrapper):
    """Gradients through the optimisation that the model runs on its input."""

    @contextlib.contextmanager
    def adapted(self, problem: Problem) -> Iterator[Problem]:
        with problem.seen("self").exposed("unrolled"):
            yield problem
