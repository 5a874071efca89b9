"""Search along rays, from answers alone."""

from __future__ import annotations

import torch
from torch import Tensor

from advdistill import Attack, Noise, Problem, Threat, right


class RayS(Attack):
    """RayS (Chen & Gu 2020, arXiv 2006.12792, algorithm 3): the direction out of {-1, 1}^D in which the nearest mistake
    lies, found by flipping ever smaller blocks of signs and, where that still misleads, bisecting its distance.

    Every query asks for all samples at once, each about what its own search has come to. Nothing of the logits is read
    but whether the answer is right, and nothing is drawn at random. Distances are the pixels' here; the reference has
    them in l2, and the tolerance is the same 0.001 there.
    """

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        clean = problem.images.flatten(1)
        search = _Search(clean)
        for _ in range(self.config.queries):
            rows = problem.open()
            if not len(rows):
                break
            at, direction = search.ask(rows)
            images = (clean[rows] + at.unsqueeze(1) * direction).clamp(0, 1)
            with torch.no_grad():
                logits = problem.predict(images.view(-1, *problem.images.shape[1:]), rows)
            search.answer(rows, at, direction, ~right(logits, problem.labels[rows]))
        at, direction = search.best()
        images = (clean + at.unsqueeze(1) * direction).clamp(0, 1).view_as(problem.images)
        return threat.project(images, problem.images)


class _Search:
    """Where each sample's search has come to.

    Args:
        clean: (B, D).
    """

    def __init__(self, clean: Tensor) -> None:
        count, pixels = clean.shape
        self.tolerance = 1e-3 / pixels**0.5
        self.where = torch.arange(pixels, device=clean.device)
        self.sign = torch.ones_like(clean)
        # No two pixels are further apart than 1: at this radius every direction ends in a corner of the cube.
        self.radius = clean.new_ones(count)
        self.low, self.high = torch.zeros_like(self.radius), self.radius.clone()
        self.found, self.bisecting = self.radius < 0, self.radius < 0
        self.begin = torch.zeros(count, dtype=torch.long, device=clean.device)
        self.block = torch.full_like(self.begin, pixels)

    def ask(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) distance and (n, D) direction of each row's next image."""
        at = torch.where(self.bisecting, (self.low + self.high) / 2, self.radius)[rows]
        return at, self._flipped(rows)

    def _flipped(self, rows: Tensor) -> Tensor:
        offset = self.where - self.begin[rows].unsqueeze(1)
        return torch.where((offset >= 0) & (offset < self.block[rows].unsqueeze(1)), -1.0, 1.0) * self.sign[rows]

    def answer(self, rows: Tensor, at: Tensor, direction: Tensor, wrong: Tensor) -> None:
        """Go on after `ask`: which of the images misled."""
        bisected = self.bisecting[rows]
        low = torch.where(wrong, torch.where(bisected, self.low[rows], 0.0), at)
        high = torch.where(wrong, at, torch.where(bisected, self.high[rows], at))
        going = (wrong | bisected) & (high - low > self.tolerance)
        closer = ~going & (wrong | bisected) & ((high < self.radius[rows]) | ~self.found[rows])
        self.low[rows], self.high[rows], self.bisecting[rows] = low, high, going
        self.sign[rows[closer]], self.radius[rows[closer]] = direction[closer], high[closer]
        self.found[rows[closer]] = True

        # The next block; after the last one, blocks of half the size.
        following = rows[~going]
        begin, block = self.begin[following] + self.block[following], self.block[following]
        over = begin >= len(self.where)
        self.begin[following] = begin.masked_fill(over, 0)
        self.block[following] = torch.where(over, (block + 1) // 2, block)

    def best(self) -> tuple[Tensor, Tensor]:
        """(B,) distance and (B, D) direction of the nearest mistake; 0 where none was found."""
        # Cut off within a bisection: what it had is nearer already.
        rows = torch.arange(len(self.sign), device=self.sign.device)
        half = self.bisecting & ((self.high < self.radius) | ~self.found)
        radius = torch.where(half, self.high, self.radius) * (self.found | half)
        return radius, torch.where(half.unsqueeze(1), self._flipped(rows), self.sign)
