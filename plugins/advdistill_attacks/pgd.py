"""Gradient ascent inside the ball."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from advdistill import Attack, Noise, Problem, Threat
from advdistill_attacks.losses import FEWEST, stated


def direction(gradient: Tensor, norm: str) -> Tensor:
    """(B, 3, H, W) the steepest way up of length 1 in "linf" or "l2"; zero where the gradient is zero."""
    if norm == "linf":
        return gradient.sign()
    flat = gradient.flatten(1)
    # Scaled by the largest entry first: the squares of a saturated model's gradients underflow.
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    return F.normalize(flat, dim=1).view_as(gradient)


def random_start(problem: Problem, threat: Threat, noise: Noise, restart: int = 0) -> Tensor:
    """(B, 3, H, W) images in the ball: uniform for linf; a uniform direction and a uniform radius for l2."""
    shape = tuple(problem.images.shape[1:])
    if threat.norm == "linf":
        offset = noise.uniform(shape, restart).mul_(2).sub_(1)
    else:
        # normal(d) spends the draws 2d and 2d + 1; the radius takes the next one.
        offset = direction(noise.normal(shape, 2 * restart), "l2") * noise.uniform((1, 1, 1), 4 * restart + 2)
    return threat.project(offset.mul_(threat.eps).add_(problem.images), problem.images)


def climb(problem: Problem, threat: Threat, start: Tensor, steps: int, step: float, momentum: float = 0.0) -> Tensor:
    """(B, 3, H, W) where `steps` steps of length `step` lead from `start`. Rows stay where they were once closed."""
    images, velocity = start, torch.zeros_like(start) if momentum else start
    for _ in range(steps):
        rows = problem.open()
        if not len(rows):
            break
        here = _of(images, rows)
        gradient, _ = problem.gradient(here, rows)
        way = direction(gradient, threat.norm)
        if momentum:
            way = momentum * _of(velocity, rows) + way
            velocity = _with(velocity, rows, way)
            way = direction(way, threat.norm)
        ahead = here + step * way
        images = _with(images, rows, threat.project(ahead, _of(problem.images, rows)))
    return images


def _of(tensor: Tensor, rows: Tensor) -> Tensor:
    """Some rows of a tensor, each once and in order: itself, where these are all."""
    return tensor if len(rows) == len(tensor) else tensor[rows]


def _with(tensor: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """A tensor with other values in such rows."""
    return values if len(rows) == len(tensor) else tensor.index_copy(0, rows, values)


class Climber(Attack):
    """An attack whose settings name the loss that it climbs."""

    @property
    def fewest_classes(self) -> int:  # type: ignore[override]
        """What the loss needs."""
        return FEWEST.get(self.config.loss, 2)


class PGD(Climber):
    """Projected gradient descent (Madry et al. 2018, arXiv 1706.06083), the last iterate of the best restart.

    Momentum follows the released code of MMT-ARD (and RobustVLM): it accumulates unit directions, not gradients.
    """

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        config, problem = self.config, stated(problem, self.config)
        step = config.step or 2.5 * threat.eps / config.steps
        best, highest = problem.images, torch.full_like(problem.labels, -torch.inf, dtype=torch.float32)
        for restart in range(config.restarts):
            start = random_start(problem, threat, noise, restart) if config.random_start else problem.images
            images = climb(problem, threat, start, config.steps, step, config.momentum)
            if config.restarts == 1:
                return images
            rows = problem.open()
            if not len(rows):
                break
            with torch.no_grad():
                values = problem.objective(images[rows], rows).float()
            better = values > highest[rows]
            best = best.index_copy(0, rows, torch.where(better.view(-1, 1, 1, 1), images[rows], best[rows]))
            highest[rows] = torch.where(better, values, highest[rows])
        return best


class FGSM(Climber):
    """The fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572)."""

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        problem = stated(problem, self.config)
        start = random_start(problem, threat, noise) if self.config.random_start else problem.images
        step = self.config.step or (1.25 if self.config.random_start else 1.0) * threat.eps
        return climb(problem, threat, start, steps=1, step=step)
