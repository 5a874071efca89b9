"""One perturbation for all images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advdistill import Attack, Noise, Problem, Threat, UsageError
from advdistill_attacks.pgd import direction


class Universal(Attack):
    """One perturbation that is learned on training images and added to every other (Moosavi-Dezfooli et al. 2017, arXiv
    1610.08401), by ascent on the mean objective of mini-batches (Shafahi et al. 2020, arXiv 1811.11304, algorithm 2,
    without their cap on each sample's loss).

    On other images it costs no pass through the model.
    """

    def __init__(self, config: Any, inner: tuple[Attack, ...] = ()) -> None:
        super().__init__(config, inner)
        self.studies = config.images
        self._delta: Tensor | None = None

    def study(self, problem: Problem, threat: Threat, noise: Noise) -> None:
        config, clean = self.config, problem.images
        step = config.step or threat.eps / 4
        delta = torch.zeros_like(clean[:1])
        for epoch in range(config.epochs):
            for rows in noise.uniform((1,), epoch).squeeze(1).argsort().split(config.batch_size):
                gradient, _ = problem.gradient((clean[rows] + delta).clamp(0, 1), rows)
                delta = _inside(delta + step * direction(gradient.mean(0, keepdim=True), threat.norm), threat)
        self._delta = delta

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        if self._delta is None:
            raise UsageError(
                "universal must see training images before it is run",
                "use it in an evaluation, or call `study` first",
            )
        if self._delta.shape[1:] != problem.images.shape[1:]:
            seen, given = (tuple(shape[1:]) for shape in (self._delta.shape, problem.images.shape))
            raise UsageError(f"universal was learned on images {seen} and cannot be added to images {given}")
        return threat.project(problem.images + self._delta, problem.images)


def _inside(delta: Tensor, threat: Threat) -> Tensor:
    """`delta` (1, 3, H, W) brought into the ball, whatever the image it will be added to."""
    if threat.norm == "linf":
        return delta.clamp(-threat.eps, threat.eps)
    return delta * (threat.eps / threat.size(delta).clamp_min(1e-12)).clamp_max(1).view(-1, 1, 1, 1)
