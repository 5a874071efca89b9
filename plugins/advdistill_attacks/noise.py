"""Noise: the baseline under every attack."""

from __future__ import annotations

import torch
from torch import Tensor

from advdistill import Attack, Noise, Problem, Threat


def anywhere(threat: Threat, noise: Noise, shape: tuple[int, ...], draw: int) -> Tensor:
    """(B, 3, H, W) perturbations: uniform in the ball for linf, uniform on the sphere for l2 and l1.

    (In thousands of dimensions nearly all of an l2 or l1 ball lies at its sphere.)
    """
    if threat.norm == "linf":
        return threat.eps * (2 * noise.uniform(shape, 2 * draw) - 1)
    if threat.norm == "l2":
        offset = noise.normal(shape, draw)
    else:
        drawn = noise.uniform(shape, 2 * draw)
        offset = -torch.log1p(-drawn) * (2 * noise.uniform(shape, 2 * draw + 1) - 1).sign()
    return threat.eps * offset / threat.size(offset).clamp_min(1e-12).view(-1, 1, 1, 1)


def corners(threat: Threat, noise: Noise, shape: tuple[int, ...], draw: int) -> Tensor:
    """(B, 3, H, W) perturbations of size eps that change all pixels alike, up or down."""
    sign = torch.where(noise.uniform(shape, 2 * draw) < 0.5, -1.0, 1.0)
    return threat.eps * sign / threat.size(sign).view(-1, 1, 1, 1)


class RandomNoise(Attack):
    """Random perturbations as large as the threat allows, drawn without a look at any answer.

    They are only submitted: an evaluation judges each of them and counts a sample as broken by any, which grants noise
    the luckiest of its draws. What is returned, and in training all that counts, is the first draw, anywhere in the
    ball. An attack that uses gradients and breaks less than this is broken itself.
    """

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        shape = tuple(problem.images.shape[1:])
        drawn = problem.images.clone()
        for draw in reversed(range(self.config.draws)):
            rows = problem.open()
            offset = (corners if draw % 2 else anywhere)(threat, noise.of(rows), shape, draw)
            drawn[rows] = threat.project(problem.images[rows] + offset, problem.images[rows])
            if draw:  # the first one is returned, and judged then
                with torch.no_grad():
                    problem.predict(drawn[rows], rows)
        return drawn
