"""Attacks: what one must do (`Attack.run`), what it is asked (`Problem`), where its randomness comes from (`Noise`)."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from advdistill.engine.losses import cross_entropy
from advdistill.engine.noise import Noise
from advdistill.engine.types import Threat
from advdistill.errors import RunError, UsageError

if TYPE_CHECKING:
    from advdistill.engine.participant import Seen

Objective = Callable[[Tensor, Tensor], Tensor]
"""`objective(images, rows) -> (len(rows),)`: what to maximise, for images that stand for the batch's `rows`."""


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) bool: the label's logit stands above every other one.

    The one rule of what a correct answer is. Ties (duplicate class names, an answer that is the same for all classes),
    NaN, and a column beyond the classes (abstention) are no correct answers: they count for the attacker.

    Args:
        logits: (n, C); labels: (n,) long.
    """
    label = labels.unsqueeze(1)
    return logits.gather(1, label).squeeze(1) > logits.scatter(1, label, -torch.inf).amax(1)


@dataclass
class Tally:
    """What an attack cost each sample, and what it saw; (B,) tensors.

    Attributes:
        forwards, backwards: passes through any model.
        blank: backward passes whose gradient was zero in every pixel.
        zeros: sum over the backward passes of the share of pixels whose gradient was zero.
        nearest: size of the smallest perturbation, inside or outside the ball, that was seen to mislead the attacked
            model; inf: none was.
    """

    forwards: Tensor
    backwards: Tensor
    blank: Tensor
    zeros: Tensor
    nearest: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Tally:
        """Nothing yet, for (B, 3, H, W) images."""
        count, zero = torch.zeros(len(images), dtype=torch.int32, device=images.device), images.new_zeros(len(images))
        return cls(count, count.clone(), count.clone(), zero, torch.full_like(zero, torch.inf))


class Problem:
    """One batch under attack.

    Attributes:
        images: (B, 3, H, W) clean, in [0, 1].
        labels: (B,) long.
        threat: the ball.
        tally: what has been spent so far.

    Args:
        objective: see `Objective`; differentiable in its images. None: the cross-entropy of `logits`.
        logits: `(images, rows) -> (len(rows), C)` of the attacked model.
        watch: evaluation: keep the first image inside the ball that is misclassified, whoever asked about it, and
            close its row. Training: all rows stay open.
        seen: name -> `Seen`, the models that the attacker may look at; see `seen`.
        lenient: a model through which no gradient flows has zero gradients; else that is an error.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        objective: Objective | None,
        logits: Objective,
        threat: Threat,
        watch: bool = False,
        *,
        seen: Callable[[str], Seen] | None = None,
        lenient: bool = False,
    ) -> None:
        self.images, self.labels, self.threat = images, labels, threat
        self.tally = Tally.of(images)
        self._objective, self._logits, self._seen, self._lenient, self._draws = objective, logits, seen, lenient, 1
        self._watch = self._closes = watch
        self._broken = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self._found = images.clone() if watch else images

    @property
    def rows(self) -> Tensor:
        """(B,) long: all rows."""
        return torch.arange(len(self.images), device=self.images.device)

    @property
    def broken(self) -> Tensor:
        """(B,) bool: in evaluation, the rows that an image inside the ball has misled the model about."""
        return self._broken

    def open(self) -> Tensor:
        """(n,) long: the rows still worth attacking; all of them in training, the unbroken ones in evaluation."""
        return (~self._broken).nonzero().squeeze(1) if self._closes else self.rows

    def objective(self, images: Tensor, rows: Tensor) -> Tensor:
        """(len(rows),) what to maximise; the mean of several evaluations where there are several draws."""
        values = [self._value(images, rows) for _ in range(self._draws)]
        return values[0] if len(values) == 1 else torch.stack(values).mean(0)

    def _value(self, images: Tensor, rows: Tensor) -> Tensor:
        if self._objective is None:
            return cross_entropy(self.predict(images, rows), self.labels[rows])
        return self._objective(images, rows)

    def predict(self, images: Tensor, rows: Tensor) -> Tensor:
        """(len(rows), C) logits of the attacked model; in evaluation every misclassified image in the ball counts."""
        logits = self._logits(images, rows)
        self._count(self.tally.forwards, rows)
        if self._watch:
            with torch.no_grad():
                self._note(images.detach(), rows, ~right(logits, self.labels[rows]))
        return logits

    def features(self, images: Tensor, rows: Tensor) -> Tensor:
        """(len(rows), D) image features of the attacked model, not normalised. Raises UsageError where it has none."""
        self._count(self.tally.forwards, rows)
        return self.seen("self").features(images)

    def gradient(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The objective's gradient with respect to pixels, and its values; their means where there are several draws.

        Args:
            images: (n, 3, H, W); rows: (n,).

        Returns:
            (n, 3, H, W) gradient of each sample's own objective, 0 where it is no number, (n,) values. Samples never
            share a mean, so the scale of a gradient does not depend on the batch.
        """
        drawn = [self._gradient(images, rows) for _ in range(self._draws)]
        gradient, values = drawn[0]
        if len(drawn) > 1:
            gradient, values = (torch.stack(parts).mean(0) for parts in zip(*drawn, strict=True))
        self._count(self.tally.backwards, rows, self._draws)
        pixels = math.prod(gradient.shape[1:])
        zeros = pixels - torch.count_nonzero(gradient.flatten(1), dim=1)
        self.tally.zeros.index_add_(0, rows, (zeros / pixels).to(self.tally.zeros.dtype) * self._draws)
        self.tally.blank.index_add_(0, rows, (zeros == pixels).to(torch.int32) * self._draws)
        return gradient, values

    def _gradient(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            pixels = images.detach().requires_grad_()
            values = self._value(pixels, rows)
            if self._lenient and not values.requires_grad:
                return torch.zeros_like(images), values
            (gradient,) = torch.autograd.grad(values.sum(), pixels, allow_unused=self._lenient)
        # What is no number points nowhere.
        return torch.zeros_like(images) if gradient is None else gradient.nan_to_num(0, 0, 0), values.detach()

    def seen(self, name: str) -> Seen:
        """A model that the attacker may look at.

        Args:
            name: "self", the attacked model; "base", what it was before anything was learned; the role of a teacher;
                in evaluation also a checkpoint or NAME@WEIGHTS.

        Raises:
            UsageError: there is no such model here.
        """
        if self._seen is None:
            raise UsageError(f"an attack asks for the model {name!r}, and none can be looked at here")
        return self._seen(name)

    def restated(
        self, objective: Objective | None = None, *, logits: Objective | None = None, draws: int | None = None
    ) -> Problem:
        """The same samples, and what is found is found for both; what is not given stays.

        Args:
            objective: something else to maximise, usually made from this problem's `predict` and `labels`.
            logits: another way to compute the attacked model's logits, such as one with other gradients.
            draws: evaluations that each gradient is the mean of, for models that draw at random (EOT).
        """
        other = copy.copy(self)
        other._objective = objective or self._objective
        other._logits = logits or self._logits
        other._draws = draws or self._draws
        return other

    def elsewhere(self, name: str) -> Problem:
        """The same samples on another model, by cross-entropy; what misleads that one is nothing found here.

        Args:
            name: as for `seen`; "self" in what comes back is that model.
        """
        if name == "self":
            return self
        model = self.seen(name)
        other = copy.copy(self)
        other._objective, other._watch = None, False
        other._logits = lambda images, rows: model.logits(images)
        other._seen = lambda asked: model if asked == "self" else self.seen(asked)
        return other

    def module(self) -> nn.Module:
        """The attacked model as a module, images -> logits, for attacks that bring their own loss."""
        return _View(self)

    def outcome(self, images: Tensor) -> Tensor:
        """(B, 3, H, W): `images` projected into the ball; in evaluation what broke a row stands in its place."""
        with torch.no_grad():
            images = self.threat.project(images.detach().to(self.images.dtype), self.images)
            if self._watch:
                rows = self.open()
                if len(rows):
                    self.predict(images[rows], rows)
                images = torch.where(self._broken.view(-1, 1, 1, 1), self._found, images)
        return images

    def _note(self, images: Tensor, rows: Tensor, wrong: Tensor) -> None:
        if not wrong.any():
            return
        images, rows = images[wrong], rows[wrong]
        clean = self.images[rows]
        self.tally.nearest.scatter_reduce_(0, rows, self.threat.size(images - clean), "amin")
        fresh = self.threat.holds(images, clean) & ~self._broken[rows]
        # A ball is a little wider when it is asked about than when it is projected onto: rounding must not lose images.
        self._found[rows[fresh]] = self.threat.project(images[fresh], clean[fresh])
        self._broken[rows[fresh]] = True

    @staticmethod
    def _count(counts: Tensor, rows: Tensor, times: int = 1) -> None:
        counts.index_add_(0, rows, torch.full_like(rows, times, dtype=counts.dtype))


class _View(nn.Module):
    """A module over a Problem. It has a parameter, so that libraries find its device, and no training mode."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros((), device=problem.images.device), requires_grad=False)
        super().train(False)
        self._problem = problem

    def forward(self, images: Tensor) -> Tensor:
        # A library may ask about other images than the batch's own; those are looked at but cannot be attributed.
        if images.shape == self._problem.images.shape:
            return self._problem.predict(images, self._problem.rows)
        return self._problem._logits(images, torch.zeros(len(images), dtype=torch.long, device=images.device))

    def train(self, mode: bool = True) -> _View:
        return self


class NotFinite(RunError):
    """Numbers overflowed, or the model's weights have."""


class Attack(ABC):
    """An attack on pixels. Subclasses write `run`; what it returns is not trusted but projected again.

    Args:
        config: the validated settings of this attack.
        inner: the attacks that stand in its settings, where its spec says `wraps`.

    Attributes:
        name: as the recipe writes it; what its results are called.
        studies: how many training images it wants to see once, in `study`, before it is run; 0: none.
        fewest_classes: what its loss needs; with fewer it is refused before anything is measured.
    """

    name: str = ""
    studies: int = 0
    fewest_classes: int = 2

    def __init__(self, config: Any, inner: Sequence[Attack] = ()) -> None:
        self.config, self.inner = config, tuple(inner)

    @abstractmethod
    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        """Perturb `problem.images`: (B, 3, H, W) in the ball, so as to raise `problem.objective` (or to mislead
        `problem.module()`). Use `noise` for every random draw and leave the global generators alone. Only the rows
        that are `problem.open()` are worth a pass."""

    def study(self, problem: Problem, threat: Threat, noise: Noise) -> None:  # noqa: B027 - most learn nothing
        """Learn from `studies` training samples, evenly over the classes, what `run` uses on all others."""

    def stages(self) -> Sequence[Attack]:
        """Attacks that an evaluation runs one after the other, each on what the ones before it left over from the
        whole data set; itself, where it does not say otherwise."""
        return (self,)

    def __call__(self, problem: Problem, threat: Threat, noise: Noise, source: str = "self") -> Tensor:
        """Run, on the model `source` (see `Problem.elsewhere`), then project into the ball and [0, 1].

        Raises:
            RunError: the attack returned nonsense.
        """
        images = self.run(problem.elsewhere(source), threat, noise)
        if images.shape != problem.images.shape:
            raise RunError(
                f"attack {type(self).__name__} returned {tuple(images.shape)} for images {tuple(problem.images.shape)}"
            )
        # One look at the pixels: what is no number, or infinite, is least or most. A plan has shapes and no values.
        if images.numel() and not images.is_meta and not torch.stack(images.detach().aminmax()).isfinite().all():
            raise NotFinite(f"attack {type(self).__name__} returned pixels that are not finite")
        return problem.outcome(images)
