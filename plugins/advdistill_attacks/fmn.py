"""The fast minimum-norm attack: how far away the nearest mistake is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advdistill import Attack, Noise, Problem, Threat
from advdistill_attacks.losses import cw
from advdistill_attacks.pgd import direction

DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


def shrink(delta: Tensor, radius: Tensor, norm: str) -> Tensor:
    """(n, 3, H, W) the nearest perturbations of size at most `radius`, (n,), each its own."""
    flat, radius = delta.flatten(1), radius.unsqueeze(1)
    if norm == "linf":
        flat = torch.minimum(torch.maximum(flat, -radius), radius)
    elif norm == "l2":
        flat = flat * (radius / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
    else:
        # Duchi et al. 2008, figure 1.
        magnitude = flat.abs()
        ordered = magnitude.sort(dim=1, descending=True).values
        excess = ordered.cumsum(1) - radius
        count = torch.arange(1, flat.shape[1] + 1, device=flat.device)
        last = (ordered * count > excess).sum(1, keepdim=True).clamp_min(1)
        shift = (excess.gather(1, last - 1) / last).clamp_min(0)
        flat = flat.sign() * (magnitude - shift).clamp_min(0)
    return flat.view_as(delta)


class FMN(Attack):
    """FMN (Pintor et al. 2021, arXiv 2102.12827, algorithm 1), untargeted, started at the clean image.

    A step along the gradient of the margin (best other logit minus the label's), normalised in l2, then onto a sphere
    whose radius shrinks where the image is misclassified and grows where it is not; before the first success its
    radius is the linearised distance to the boundary (inferred: and a little more). Ends with the nearest misclassified
    image, where there was none with the last one.

    It looks beyond the threat's ball, and at every sample to its end: what it finds out is the size of each sample's
    smallest perturbation (`problem.tally.nearest`), and a sample that is broken inside the ball has a smaller one yet.
    """

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        config, clean, rows = self.config, problem.images, problem.rows
        first = config.step or (10.0 if threat.norm == "linf" else 1.0)
        own = problem.restated(lambda images, rows: cw(problem.predict(images, rows), problem.labels[rows]))
        largest = threat.size(torch.maximum(clean, 1 - clean))
        nearest, radius = largest.clone(), torch.full_like(largest, torch.inf)
        found = torch.zeros_like(rows, dtype=torch.bool)
        delta, best = torch.zeros_like(clean), torch.zeros_like(clean)
        for step in range(config.steps):
            share = (1 + math.cos(math.pi * step / config.steps)) / 2
            gamma = 0.001 + (config.gamma - 0.001) * share
            length = first * (0.01 + 0.99 * share)
            gradient, margin = own.gradient(clean + delta, rows)
            size, wrong = threat.size(delta), ~(margin < 0)
            nearer = wrong & (size < nearest)
            nearest = torch.where(nearer, size, nearest)
            best = torch.where(nearer.view(-1, 1, 1, 1), delta, best)
            found = found | wrong
            slope = torch.linalg.vector_norm(gradient.flatten(1), DUAL[threat.norm], dim=1)
            ahead = size + margin.abs() / slope.clamp_min(torch.finfo(slope.dtype).tiny)
            # (1 + gamma) for both: the linearised distance alone ends on the boundary of a linear model, and stays.
            away = torch.where(found, radius, ahead) * (1 + gamma)
            radius = torch.where(wrong, torch.minimum(radius * (1 - gamma), nearest), away).minimum(largest)
            delta = shrink(delta + length * direction(gradient, "l2"), radius, threat.norm)
            delta = (clean + delta).clamp(0, 1) - clean
        images = clean + torch.where(found.view(-1, 1, 1, 1), best, delta)
        return threat.project(images, clean)
