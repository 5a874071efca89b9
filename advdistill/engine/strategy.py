"""Strategies: a training method as its paper's algorithm box, on the verbs of `advdistill.engine.step.Step`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from advdistill.engine.model import Factored, VisionLanguageModel
from advdistill.engine.types import Clock
from advdistill.errors import UsageError

if TYPE_CHECKING:
    from advdistill.engine.step import Step


@dataclass(frozen=True)
class Term:
    """A loss term: (B,) `value` times `weight`, a number or one number per sample, which gets no gradient."""

    value: Tensor
    weight: float | Tensor = 1.0


@dataclass(frozen=True, init=False)
class Losses:
    """Named terms to minimise, `Losses(student=kl(...), feedback=Term(kl(...), weight=beta))`.

    Args:
        report: name -> scalar or (B,) tensor that is shown and logged but not minimised.
        terms: name -> (B,) tensor or Term.
    """

    terms: dict[str, Term] = field(default_factory=dict)
    report: dict[str, Tensor] = field(default_factory=dict)

    def __init__(self, report: Mapping[str, Tensor] | None = None, /, **terms: Tensor | Term) -> None:
        named = {name: term if isinstance(term, Term) else Term(term) for name, term in terms.items()}
        for name, term in named.items():
            if term.value.ndim != 1:
                raise ValueError(f"term {name!r} must hold one loss per sample, (B,), not {tuple(term.value.shape)}")
        object.__setattr__(self, "terms", named)
        object.__setattr__(self, "report", dict(report or {}))

    def weighted(self, name: str) -> Tensor:
        """(B,) one term times its weight."""
        term = self.terms[name]
        weight = term.weight.detach() if isinstance(term.weight, Tensor) else term.weight
        return term.value * weight

    def total(self) -> Tensor:
        """(B,) what is minimised, sample by sample."""
        return torch.stack([self.weighted(name) for name in self.terms]).sum(0)

    def sums(self) -> dict[str, Tensor]:
        """Name -> sum over the batch of each unweighted term and reported scalar, and of the weighted `loss`."""
        first = next(iter(self.terms.values())).value
        values = {"loss": self.total(), **{name: term.value for name, term in self.terms.items()}, **self.report}
        return {
            name: (v.sum() if v.ndim else v * len(first)).detach().to(torch.float64)
            for name, v in ((name, torch.as_tensor(value, device=first.device)) for name, value in values.items())
        }


class Strategy(nn.Module, ABC):
    """A training method. State that adapts (weights, temperatures) lives in buffers and moves only in `updated`.

    Args:
        config: the validated settings of this strategy.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def prepare(self, models: Mapping[str, VisionLanguageModel]) -> None:
        """Called once before a run, and before its state is restored: register buffers that depend on who takes part.

        Args:
            models: "student" and every teacher's role -> the model.

        Raises:
            UsageError: they do not go together.
        """

    @abstractmethod
    def step(self, s: Step) -> Losses:
        """The losses of one batch."""

    @property
    def phases(self) -> tuple[Callable[[Step], Losses], ...]:
        """One callable per optimizer update of a batch, in order; several for alternating updates. All phases of a
        batch see the same Step, `once` keeps for later ones what an earlier one found. Numbers of one name add up."""
        return (self.step,)

    @property
    def mixes(self) -> bool:
        """Whether what it makes of a sample depends on the others of its batch (default: no). Each portion of a batch,
        and each process's share, is then a batch of its own, and the run says so."""
        return False

    def updated(self, means: Mapping[str, float], clock: Clock) -> None:
        """Called after each optimizer step with the means over the global batch of every term and reported scalar."""


def factored(models: Mapping[str, VisionLanguageModel], role: str) -> Factored:
    """For `Strategy.prepare`: a method looks at the features or class features of "student" or of a teacher's role.

    Raises:
        UsageError: that model has none apart from its classes, or images.
    """
    model = models[role]
    if not isinstance(model, Factored):
        raise UsageError(f"{role}: {type(model).__name__} has no features of images apart from its classes")
    return model


def same_width(models: Mapping[str, VisionLanguageModel], role: str) -> None:
    """For `Strategy.prepare`: a method compares the student's features with those of the teacher in `role`.

    Raises:
        UsageError: one of them has no features apart from its classes, or theirs differ in width.
    """
    mine, theirs = factored(models, "student").width, factored(models, role).width
    if mine != theirs:
        raise UsageError(
            f"the student's features have {mine} dimensions, those of the {role} teacher {theirs}",
            "take a teacher that embeds into as many, or a strategy that compares logits",
        )
