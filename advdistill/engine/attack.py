"""Attacks: what one must do (`Attack.run`), what it is asked (`Problem`), where its randomness comes from (`Noise`)."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from advdistill.engine.losses import cross_entropy
from advdistill.engine.types import Threat
from advdistill.errors import RunError

Objective = Callable[[Tensor, Tensor], Tensor]
"""`objective(images, rows) -> (len(rows),)`: what to maximise, for images that stand for the batch's `rows`."""


class Noise:
    """Random draws that belong to samples, not to batches.

    A draw depends on (seed, purpose, epoch, sample, draw, position) alone: batching, re-packing, the device and the
    number of processes change nothing, and the global generators are never touched.

    Args:
        seed: the run's seed.
        purpose: what the draws are for, such as "train"; other purposes get other draws.
        epoch: pass over the data.
        samples: (B,) long; each sample's index in its split.
    """

    def __init__(self, seed: int, purpose: str, epoch: int, samples: Tensor) -> None:
        digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
        base = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")
        self._keys = [_mix(samples.to(torch.int32) ^ _wrap(word)) for word in base]

    def of(self, rows: Tensor) -> Noise:
        """The draws of some samples of the batch, `rows` (n,) long."""
        part = object.__new__(Noise)
        part._keys = [key[rows] for key in self._keys]
        return part

    def uniform(self, shape: tuple[int, ...], draw: int = 0, rows: Tensor | None = None) -> Tensor:
        """(len(rows), *shape) float32 in [0, 1); `draw` numbers independent draws, such as restarts."""
        first, second = (key if rows is None else key[rows] for key in self._keys)
        position = torch.arange(math.prod(shape), dtype=torch.int32, device=first.device)
        bits = _mix(position ^ _mix(first ^ _wrap(draw * 0x9E3779B9)).unsqueeze(1))
        bits = _mix(bits ^ second.unsqueeze(1))
        return ((bits >> 8) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24).view(-1, *shape)

    def normal(self, shape: tuple[int, ...], draw: int = 0, rows: Tensor | None = None) -> Tensor:
        """(len(rows), *shape) float32 standard normal (Box-Muller)."""
        radius = (-2 * torch.log1p(-self.uniform(shape, 2 * draw, rows))).sqrt()
        return radius * torch.cos(2 * math.pi * self.uniform(shape, 2 * draw + 1, rows))


def _wrap(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def _mix(x: Tensor) -> Tensor:
    """A bijective 32-bit mixer (C. Wellons' lowbias32 constants); int32 products wrap, shifts must be made logical."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _wrap(0x846CA68B)
    return x ^ ((x >> 16) & 0xFFFF)


class Problem:
    """One batch under attack.

    Attributes:
        images: (B, 3, H, W) clean, in [0, 1].
        labels: (B,) long.

    Args:
        objective: see `Objective`; differentiable in its images. None: the cross-entropy of `logits`.
        logits: `(images, rows) -> (len(rows), C)` of the attacked model.
        threat: the ball.
        watch: evaluation: keep the first image inside the ball that is misclassified, whoever asked about it, and
            close its row. Training: all rows stay open.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        objective: Objective | None,
        logits: Objective,
        threat: Threat,
        watch: bool = False,
    ) -> None:
        self.images, self.labels, self.threat = images, labels, threat
        self._objective, self._logits, self._watch = objective, logits, watch
        self._broken = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self._found = images.clone() if watch else images

    @property
    def rows(self) -> Tensor:
        """(B,) long: all rows."""
        return torch.arange(len(self.images), device=self.images.device)

    def open(self) -> Tensor:
        """(n,) long: the rows still worth attacking; all of them in training, the unbroken ones in evaluation."""
        return (~self._broken).nonzero().squeeze(1) if self._watch else self.rows

    def objective(self, images: Tensor, rows: Tensor) -> Tensor:
        """(len(rows),) what to maximise."""
        if self._objective is None:
            return cross_entropy(self.predict(images, rows), self.labels[rows])
        return self._objective(images, rows)

    def predict(self, images: Tensor, rows: Tensor) -> Tensor:
        """(len(rows), C) logits of the attacked model; in evaluation every misclassified image in the ball counts."""
        logits = self._logits(images, rows)
        if self._watch:
            with torch.no_grad():
                wrong = (logits.argmax(1) != self.labels[rows]) & ~self._broken[rows]
                wrong &= self.threat.holds(images, self.images[rows])
                self._found[rows[wrong]] = images[wrong].detach()
                self._broken[rows[wrong]] = True
        return logits

    def gradient(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The objective's gradient with respect to pixels, and its values.

        Args:
            images: (n, 3, H, W); rows: (n,).

        Returns:
            (n, 3, H, W) gradient of each sample's own objective, (n,) values. Samples never share a mean, so the
            scale of a gradient does not depend on the batch.
        """
        with torch.enable_grad():
            pixels = images.detach().requires_grad_()
            values = self.objective(pixels, rows)
            (gradient,) = torch.autograd.grad(values.sum(), pixels)
        return gradient, values.detach()

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
    """

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        """Perturb `problem.images`: (B, 3, H, W) in the ball, so as to raise `problem.objective` (or to mislead
        `problem.module()`). Use `noise` for every random draw and leave the global generators alone."""

    def __call__(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        """Run, then project into the ball and [0, 1]. Raises RunError where the attack returned nonsense."""
        images = self.run(problem, threat, noise)
        if images.shape != problem.images.shape:
            raise RunError(
                f"attack {type(self).__name__} returned {tuple(images.shape)} for images {tuple(problem.images.shape)}"
            )
        if not images.is_meta and not torch.isfinite(images).all():  # a plan has shapes and no values
            raise NotFinite(f"attack {type(self).__name__} returned pixels that are not finite")
        return problem.outcome(images)
