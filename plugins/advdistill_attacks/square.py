"""Random search with squares: nothing but logits is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from advdistill import Attack, Noise, Problem, Threat
from advdistill_attacks.losses import cw

SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the share of changed pixels halves, of 10,000."""
BLOCK = 100
"""Queries whose draws are made at once."""


def share(query: int, p_init: float, queries: int = 0) -> float:
    """Share of the image that a square covers in a query, the first proposal's being 0.

    Args:
        queries: stretch or press the schedule from 10,000 to so many; 0: leave it.
    """
    if queries:
        query = int(query / queries * 10000)
    return p_init / 2 ** sum(query > after for after in SCHEDULE)


def window(down: Tensor, across: Tensor, side: int, height: int, width: int) -> Tensor:
    """(n, side * side) long: the pixels of one square each, in images flattened to height * width.

    Args:
        down, across: (n,) in [0, 1), where; every place inside the image is as likely.
    """
    top, left = ((u * (length - side + 1)).long() for u, length in ((down, height), (across, width)))
    step = torch.arange(side, device=top.device)
    rows, columns = top.unsqueeze(1) + step, left.unsqueeze(1) + step
    return (rows.unsqueeze(2) * width + columns.unsqueeze(1)).flatten(1)


def bump(side: int) -> Tensor:
    """(side, side) of l2 norm 1: a hill above a valley, each falling off from its middle (algorithm 3's eta)."""

    def hill(height: int, width: int) -> Tensor:
        reach = max(height // 2, width // 2) + 1
        falls = torch.arange(reach, 0, -1, dtype=torch.float64).pow(-2).cumsum(0).flip(0)
        rows, columns = ((torch.arange(n) - n // 2).abs() for n in (height, width))
        heights = falls[torch.maximum(rows.unsqueeze(1), columns)]
        return heights / heights.norm()

    whole = torch.cat([hill(side // 2, side), -hill(side - side // 2, side)])
    return (whole / whole.norm()).float()


class Square(Attack):
    """Square Attack (Andriushchenko et al. 2020, arXiv 1912.00049, algorithms 1 to 3) on the margin of the logits.

    The schedule is the published one for 10,000 queries, however many there are, as in the standard ensemble; the
    first of `queries` asks about the stripes (in l2 and l1 the bumps) that the search starts from. Each sample has
    squares and colours of its own (the reference shares a batch's place), and a square may lie at the lower and right
    edges (there the last place is one pixel short). l1 as the standard ensemble has it, but for a simpler projection.
    """

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        config = self.config
        search = (_Squares if threat.norm == "linf" else _Bumps)(problem.images, threat)
        best = problem.images.clone()
        lowest = torch.full_like(problem.labels, torch.inf, dtype=best.dtype)
        for query in range(config.queries):
            rows = problem.open()
            if not len(rows):
                break
            if not query:
                images = search.start(noise)[rows]
            else:
                block, place = divmod(query - 1, BLOCK)
                if not place:
                    draws = noise.uniform((BLOCK, search.draws), block + 1)
                area = share(query - 1, config.p_init, config.queries if config.rescale else 0)
                images = search.propose(best[rows], rows, area, draws[rows, place])
            with torch.no_grad():
                logits = problem.predict(images, rows)
            margin = -cw(logits, problem.labels[rows])
            better = margin < lowest[rows]
            best[rows[better]], lowest[rows[better]] = images[better], margin[better].to(lowest.dtype)
        return best


class _Squares:
    """Algorithm 2: linf, squares of one colour at the ball's corners.

    Args:
        clean: (B, C, H, W).
    """

    def __init__(self, clean: Tensor, threat: Threat) -> None:
        self.clean, self.eps = clean, threat.eps
        self.draws = 2 + clean.shape[1]

    def start(self, noise: Noise) -> Tensor:
        """(B, C, H, W) vertical stripes one pixel wide."""
        _, channels, _, width = self.clean.shape
        return (self.clean + self.eps * _sign(noise.uniform((channels, 1, width)))).clamp(0, 1)

    def propose(self, best: Tensor, rows: Tensor, area: float, draws: Tensor) -> Tensor:
        """(n, C, H, W) `best` with one square in a new colour.

        Args:
            best: of `rows`, may be written into. area: share of the image. draws: (n, self.draws) in [0, 1).
        """
        _, channels, height, width = best.shape
        side = min(max(round((area * height * width) ** 0.5), 1), height, width)
        at = window(draws[:, 0], draws[:, 1], side, height, width).unsqueeze(1).expand(-1, channels, -1)
        clean = self.clean[rows].flatten(2).gather(2, at)
        colour = self.eps * _sign(draws[:, 2:]).unsqueeze(2)
        return best.flatten(2).scatter(2, at, (clean + colour).clamp(0, 1)).view_as(best)


class _Bumps:
    """Algorithm 3: l2 (and l1), mass moved from one square to another."""

    def __init__(self, clean: Tensor, threat: Threat) -> None:
        self.clean, self.threat = clean, threat
        self.power = 2 if threat.norm == "l2" else 1
        self.draws = 5 + clean.shape[1]
        self._bumps: dict[int, Tensor] = {}

    def start(self, noise: Noise) -> Tensor:
        """(B, C, H, W) bumps side by side, five to the shorter side."""
        count, channels, height, width = self.clean.shape
        side = max(min(height, width) // 5, 1)
        down, across = height // side, width // side
        drawn = noise.uniform((channels + 1, down, across))
        bumps = self._turned(side, drawn[:, 0].flatten()).view(count, 1, down, across, side, side)
        tiles = (bumps * _sign(drawn[:, 1:])[..., None, None]).transpose(3, 4)
        delta = torch.zeros_like(self.clean)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        inner = delta[:, :, top : top + down * side, left : left + across * side]
        inner.copy_(tiles.reshape(count, channels, down * side, across * side))
        return self._placed(self.clean, delta)

    def propose(self, best: Tensor, rows: Tensor, area: float, draws: Tensor) -> Tensor:
        """See `_Squares.propose`."""
        _, channels, height, width = best.shape
        side = max(round((area * height * width) ** 0.5), 3) // 2 * 2 + 1
        shorter = min(height, width)
        side = min(side, shorter - 1 + shorter % 2) if shorter > 1 else 1
        clean = self.clean[rows]
        delta = (best - clean).flatten(2)
        unspent = (self.threat.eps**self.power - self._mass(delta).sum(1, keepdim=True)).clamp_min(0)
        to, since = (
            window(draws[:, i], draws[:, i + 1], side, height, width).unsqueeze(1).expand(-1, channels, -1)
            for i in (0, 2)
        )
        old = delta.gather(2, to)
        delta = delta.scatter(2, to, 0.0)
        mass = self._mass(old) + self._mass(delta.gather(2, since)) + unspent / channels
        delta = delta.scatter(2, since, 0.0)
        colours = _sign(draws[:, 5:]).unsqueeze(2)
        fresh = self._turned(side, draws[:, 4]).unsqueeze(1) * colours + self._unit(old)
        delta = delta.scatter(2, to, self._unit(fresh) * mass.pow(1 / self.power).unsqueeze(2))
        return self._placed(clean, delta.view_as(best))

    def _turned(self, side: int, draws: Tensor) -> Tensor:
        """(n, side * side) bumps, every other one lying."""
        if side not in self._bumps:
            self._bumps[side] = bump(side).to(self.clean)
        upright = self._bumps[side]
        return torch.where((draws < 0.5).unsqueeze(1), upright.flatten(), upright.T.flatten())

    def _mass(self, delta: Tensor) -> Tensor:
        return delta.abs().pow(self.power).sum(-1)

    def _unit(self, delta: Tensor) -> Tensor:
        return delta / (1e-12 + self._mass(delta).pow(1 / self.power).unsqueeze(-1))

    def _placed(self, clean: Tensor, delta: Tensor) -> Tensor:
        if self.threat.norm == "l2":
            return (clean + self.threat.eps * self._unit(delta.flatten(1)).view_as(delta)).clamp(0, 1)
        return self.threat.project(clean + delta, clean)


def _sign(draws: Tensor) -> Tensor:
    return torch.where(draws < 0.5, -1.0, 1.0)
