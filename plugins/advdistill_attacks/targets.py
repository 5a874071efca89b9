"""Which classes a targeted attack aims at, and in which order."""

from __future__ import annotations

import torch
from torch import Tensor

from advdistill import Problem, Threat

POOL = 100
"""Classes that `malt` looks at."""


def top(problem: Problem, rows: Tensor, count: int) -> Tensor:
    """(n, count') classes other than the label, largest logit on the clean image first; count' <= C - 1."""
    with torch.no_grad():
        logits = problem.predict(problem.images[rows], rows)
    others = logits.scatter(1, problem.labels[rows].unsqueeze(1), -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def malt(problem: Problem, threat: Threat, rows: Tensor, count: int) -> Tensor:
    """(n, count') classes whose decision boundary seems nearest, nearest first (Melamed et al. 2024, arXiv 2407.02240).

    On a linear model the distance to the boundary with a class is the gap of logits over the size of the difference of
    their gradients. That size is taken in the dual of the threat's norm, which makes it a distance in the threat's own
    (inferred; on the orders it gives, see 1907.02044, section 3). Candidates are the 100 classes of the largest logits.
    """
    candidates = top(problem, rows, POOL)
    images, distances = problem.images[rows], []
    for aim in candidates.T:
        towards = torch.zeros_like(problem.labels).index_copy(0, rows, aim)
        lead = problem.restated(lambda some, which, towards=towards: _lead(problem, some, which, towards))
        gradient, gap = lead.gradient(images, rows)
        slope = _dual(gradient.flatten(1), threat.norm)
        distances.append(torch.where(slope > 0, -gap / slope, torch.inf))
    nearest = torch.stack(distances, 1).sort(dim=1, stable=True).indices
    return candidates.gather(1, nearest)[:, :count]


def _lead(problem: Problem, images: Tensor, rows: Tensor, towards: Tensor) -> Tensor:
    """(n,) how far a class stands above the label, in logits."""
    logits = problem.predict(images, rows)
    both = torch.stack([towards[rows], problem.labels[rows]], 1)
    target, label = logits.gather(1, both).unbind(1)
    return target - label


def _dual(flat: Tensor, norm: str) -> Tensor:
    """(n,) size of (n, D) gradients in the norm that is dual to the threat's."""
    order = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[norm]
    return torch.linalg.vector_norm(flat, order, dim=1)
