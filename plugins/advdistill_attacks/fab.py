"""The fast adaptive boundary attack, as the standard ensemble runs it: towards one class at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from advdistill import Attack, Noise, Problem, Threat, right
from advdistill_attacks.losses import cw

NEWTON = 64
"""More steps than the projection ever took (it stops at the exact answer, after four or five as a rule)."""


def onto_hyperplane(points: Tensor, normal: Tensor, gap: Tensor, norm: str) -> Tensor:
    """(n, D) the smallest moves d of `points` with `normal . d = gap` and every pixel in [0, 1].

    Where the box does not reach the hyperplane: as near to it as it goes (Croce & Hein 2020, section 2.2).

    Args:
        points: (n, D) in [0, 1]. normal: (n, D). gap: (n,). norm: the one that measures the moves.
    """
    # Towards the hyperplane each pixel can go one way only, by at most `room`, and gains |normal| on it.
    way = normal.sign() * torch.where(gap < 0, -1.0, 1.0).unsqueeze(1)
    room = torch.where(way > 0, 1 - points, points)
    gain, gap = normal.abs(), gap.abs()
    # Scaled: the squares of a saturated model's gradients underflow.
    largest = gain.amax(1, keepdim=True).clamp_min(torch.finfo(gain.dtype).tiny)
    gain, gap = gain / largest, gap / largest.squeeze(1)
    length = _cheapest_pixels(gain, room, gap) if norm == "l1" else _levelled(gain, room, gap, norm)
    return length * way


def _levelled(gain: Tensor, room: Tensor, gap: Tensor, norm: str) -> Tensor:
    """(n, D) min(level * pace, room), with the level at which `gain` times it sums to `gap`; pace is 1, in l2 the gain.

    The sum is concave and piecewise linear in the level, so that Newton's method from below climbs to the exact root,
    in a handful of steps where the reference sorts the pixels.
    """
    speed = gain if norm == "linf" else gain.square()
    far = gap.new_tensor(1e30)

    def moved(level: Tensor) -> Tensor:
        pace = level.unsqueeze(1)
        return torch.minimum(room, pace if norm == "linf" else pace * gain)

    level = torch.where(gap > 0, gap / speed.sum(1), 0.0).minimum(far)
    length, climbing = moved(level), (gap > 0) & (level < far)
    for _ in range(NEWTON):
        slope = (speed * (length < room)).sum(1)
        missing = gap - torch.linalg.vecdot(gain, length)
        # Nothing left to move: the box ends before the hyperplane.
        higher = torch.where(slope > 0, level + missing / slope, far)
        climbing = climbing & (higher > level * (1 + 1e-6))
        if not climbing.any():
            break
        level = torch.where(climbing, higher, level)
        length = moved(level)
    return length


def _cheapest_pixels(gain: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """(n, D) `room` for the pixels of the highest gains, less for the last one, 0 for the others: gains sum to gap."""
    order = gain.argsort(1, descending=True)
    ordered = gain.gather(1, order)
    reached = (ordered * room.gather(1, order)).cumsum(1)
    left = gap.unsqueeze(1) - F.pad(reached[:, :-1], (1, 0))
    length = torch.minimum(left.clamp_min(0) / ordered.clamp_min(1e-12), room.gather(1, order))
    return torch.zeros_like(gain).scatter_(1, order, length * (ordered > 0))


class FABT(Attack):
    """FAB (Croce & Hein 2020, arXiv 1907.02044, algorithm 1), targeted, with the defaults of AutoAttack.

    A minimal-norm attack: its images lie where the boundary is, often outside the ball. It ends with the nearest
    misclassified image, or, where there was none, with where the last target led. Where AutoAttack's code differs from
    the paper it is as in that code: only the difference of two logits is differentiated, a random start is half a
    radius away, no final search unless asked for. Samples that are wrong on the clean image stay there.
    """

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        config, rows, labels = self.config, problem.open(), problem.labels
        if not len(rows):
            return problem.images
        with torch.no_grad():
            logits = problem.predict(problem.images[rows], rows)
        count = min(config.classes, logits.shape[1] - 1)
        targets = labels.unsqueeze(1).repeat(1, count)
        targets[rows] = logits.scatter(1, labels[rows].unsqueeze(1), -torch.inf).topk(count, dim=1).indices
        hunt = _Hunt(problem, threat, rows[right(logits, labels[rows])])
        for place in range(count):
            for restart in range(config.restarts):
                start = problem.images
                if restart:
                    start = _start(problem, threat, noise, place * config.restarts + restart)
                last = self._chase(hunt, targets[:, place], start)
        if config.final_search:
            self._search(hunt)
        found = hunt.nearest.isfinite().view(-1, 1, 1, 1)
        return threat.project(torch.where(found, hunt.best, last), problem.images)

    def _chase(self, hunt: _Hunt, target: Tensor, start: Tensor) -> Tensor:
        """(B, 3, H, W) where the steps towards one class end."""
        problem = hunt.problem

        def lead(images: Tensor, rows: Tensor) -> Tensor:
            logits, both = problem.predict(images, rows), torch.stack([target[rows], problem.labels[rows]], 1)
            aim, label = logits.gather(1, both).unbind(1)
            return aim - label

        own, images = problem.restated(lead), start.clone()
        for _ in range(self.config.steps):
            rows = hunt.open()
            if not len(rows):
                break
            clean, here = problem.images[rows], images[rows]
            gradient, value = own.gradient(here, rows)
            here = self._step(here, clean, gradient, value, hunt.threat)
            with torch.no_grad():
                wrong = ~right(problem.predict(here, rows), problem.labels[rows])
            hunt.note(here, rows, wrong)
            back = clean + self.config.beta * (here - clean)
            images[rows] = torch.where(wrong.view(-1, 1, 1, 1), back, here)
        return images

    def _step(self, here: Tensor, clean: Tensor, gradient: Tensor, value: Tensor, threat: Threat) -> Tensor:
        """(n, 3, H, W) beyond the hyperplane on which the linearised lead is 0, a little nearer to the clean image."""
        config = self.config
        normal, x, x0 = gradient.flatten(1), here.flatten(1), clean.flatten(1)
        gap = torch.cat([-value, -value + (normal * (x - x0)).sum(1)])
        moves = onto_hyperplane(torch.cat([x, x0]), normal.repeat(2, 1), gap, threat.norm)
        from_here, from_clean = (part.view_as(here) for part in moves.chunk(2))
        own, other = (threat.size(part).clamp_min(1e-8) for part in (from_here, from_clean))
        alpha = (own / (own + other)).clamp_max(config.alpha_max).view(-1, 1, 1, 1)
        ahead = (1 - alpha) * (here + config.eta * from_here) + alpha * (clean + config.eta * from_clean)
        return ahead.clamp(0, 1)

    def _search(self, hunt: _Hunt) -> None:
        """The paper's final search (section 2.3): regula falsi between the clean image and the nearest mistake."""
        problem, rows = hunt.problem, hunt.open()
        rows = rows[hunt.nearest[rows].isfinite()]
        if not len(rows):
            return
        near, far = problem.images[rows], hunt.best[rows]

        def lead(images: Tensor) -> Tensor:
            with torch.no_grad():
                logits = problem.predict(images, rows)
            return cw(logits, problem.labels[rows])

        below, above = lead(near), lead(far)
        for _ in range(self.config.final_search):
            share = (above / (above - below)).nan_to_num(0).clamp(0, 1).view(-1, 1, 1, 1)
            # Short of the root by a hundredth: at the root itself the answer is as often right as wrong.
            middle = far + 0.99 * share * (near - far)
            value = lead(middle)
            wrong = ~(value < 0)
            hunt.note(middle, rows, wrong)
            far, above = torch.where(wrong.view(-1, 1, 1, 1), middle, far), torch.where(wrong, value, above)
            near, below = torch.where(wrong.view(-1, 1, 1, 1), near, middle), torch.where(wrong, below, value)


class _Hunt:
    """What is known of each sample.

    Args:
        rows: those that are right on the clean image; the clean image is the nearest mistake of the others.

    Attributes:
        best: (B, 3, H, W) nearest misclassified image. nearest: (B,) its distance, inf where there is none yet.
    """

    def __init__(self, problem: Problem, threat: Threat, rows: Tensor) -> None:
        self.problem, self.threat, self.best = problem, threat, problem.images.clone()
        self.nearest = problem.images.new_zeros(len(problem.images)).index_fill(0, rows, torch.inf)
        self._hunted = self.nearest.isinf()

    def open(self) -> Tensor:
        """(n,) long: rows worth a pass."""
        rows = self.problem.open()
        return rows[self._hunted[rows]]

    def note(self, images: Tensor, rows: Tensor, wrong: Tensor) -> None:
        """Keep what is misclassified and nearer than all before."""
        size = self.threat.size(images - self.problem.images[rows])
        nearer = wrong & (size < self.nearest[rows])
        self.best[rows[nearer]], self.nearest[rows[nearer]] = images[nearer], size[nearer]


def _start(problem: Problem, threat: Threat, noise: Noise, draw: int) -> Tensor:
    """(B, 3, H, W) half a radius from the clean images."""
    shape = tuple(problem.images.shape[1:])
    offset = 2 * noise.uniform(shape, draw) - 1 if threat.norm == "linf" else noise.normal(shape, draw)
    offset = offset / threat.size(offset).clamp_min(1e-12).view(-1, 1, 1, 1)
    return (problem.images + threat.eps / 2 * offset).clamp(0, 1)
