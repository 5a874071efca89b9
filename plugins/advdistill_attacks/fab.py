"""The fast adaptive boundary attack, as the standard ensemble runs it: towards one class at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from advdistill import Attack, Noise, Problem, Threat, right

NEWTON = 64
"""More steps than the projection ever took (it stops at the exact answer, after four or five as a rule)."""


def onto_hyperplane(points: Tensor, normal: Tensor, gap: Tensor, norm: str) -> Tensor:
    """(n, D) the smallest moves d of `points` with `normal . d = gap` and every pixel in [0, 1].

    Where the box does not reach the hyperplane: as near to it as it goes (Croce & Hein 2020, section 2.2).

    Args:
        points: (n, D) in [0, 1]. normal: (n, D). gap: (n,). norm: the one that measures the moves.
    """
    # Towards the hyperplane each pixel can go one way only, by at most `room`, and gains |normal| on it.
    ahead = normal * torch.where(gap < 0, -1.0, 1.0).unsqueeze(1)
    gap = gap.abs()
    gain = ahead.abs()
    largest = gain.amax(1, keepdim=True).clamp_min(torch.finfo(gain.dtype).tiny)
    gain, gap = gain / largest, gap / largest.squeeze(1)  # squares of a saturated model's gradients underflow
    room = torch.where(ahead > 0, 1 - points, torch.where(ahead < 0, points, torch.zeros_like(points)))
    length = _cheapest_pixels(gain, room, gap) if norm == "l1" else _levelled(gain, room, gap, norm)
    return length * ahead.sign()


def _levelled(gain: Tensor, room: Tensor, gap: Tensor, norm: str) -> Tensor:
    """(n, D) min(level * pace, room), with the level at which `gain` times it sums to `gap`; pace is 1, in l2 the gain.

    The sum is concave and piecewise linear in the level, so that Newton's method from below climbs to the exact root,
    in a handful of steps where the reference sorts the pixels.
    """
    pace = gain if norm == "l2" else torch.ones_like(gain)
    speed = gain * pace
    far = room.new_tensor(1e30)

    def ahead(level: Tensor, length: Tensor) -> Tensor:
        slope = (speed * (length < room)).sum(1)
        missing = gap - (gain * length).sum(1)
        # Nothing left to move: the box ends before the hyperplane.
        return torch.where(slope > 0, level + missing / slope, far)

    level = torch.where(gap > 0, (gap / speed.sum(1)).nan_to_num(0, 1e30), torch.zeros_like(gap)).clamp_max(far)
    length = torch.minimum(level.unsqueeze(1) * pace, room)
    climbing = (gap > 0) & (level < far)
    for _ in range(NEWTON):
        higher = ahead(level, length)
        climbing = climbing & (higher > level * (1 + 1e-6))
        if not climbing.any():
            break
        level = torch.where(climbing, higher, level)
        length = torch.minimum(level.unsqueeze(1) * pace, room)
    return length


def _cheapest_pixels(gain: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """(n, D) `room` for the pixels of the highest gains, less for the last one, 0 for the others: gains sum to gap."""
    order = gain.argsort(1, descending=True)
    ordered = gain.gather(1, order)
    reached = (ordered * room.gather(1, order)).cumsum(1)
    left = gap.unsqueeze(1) - torch.nn.functional.pad(reached[:, :-1], (1, 0))
    length = torch.minimum(left.clamp_min(0) / ordered.clamp_min(1e-12), room.gather(1, order))
    return torch.zeros_like(gain).scatter_(1, order, length * (ordered > 0))


class FABT(Attack):
    """FAB (Croce & Hein 2020, arXiv 1907.02044, algorithm 1), targeted, with the defaults of AutoAttack.

    A minimal-norm attack: its images lie where the boundary is, often outside the ball. It ends with the nearest
    misclassified image, or, where there was none, with where the last target led. What AutoAttack's code differs in
    from the paper is as in that code: only the difference of two logits is differentiated, a random start is half a
    radius away, no final search unless asked for. Samples that are wrong on the clean image stay there.
    """

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        config, labels = self.config, problem.labels
        best = problem.images.clone()
        nearest = torch.full_like(labels, torch.inf, dtype=best.dtype)
        rows = problem.open()
        if not len(rows):
            return best
        with torch.no_grad():
            logits = problem.predict(problem.images[rows], rows)
        attackable = torch.zeros_like(labels, dtype=torch.bool)
        attackable[rows] = right(logits, labels[rows])
        others = logits.scatter(1, labels[rows].unsqueeze(1), -torch.inf)
        count = min(config.targets, logits.shape[1] - 1)
        targets = labels.unsqueeze(1).repeat(1, count)
        targets[rows] = others.topk(count, dim=1).indices
        for place in range(count):
            for restart in range(config.restarts):
                last = self._chase(problem, threat, noise, attackable, targets[:, place], best, nearest, place, restart)
        return threat.project(torch.where(nearest.isinf().view(-1, 1, 1, 1), last, best), problem.images)

    def _chase(
        self,
        problem: Problem,
        threat: Threat,
        noise: Noise,
        attackable: Tensor,
        target: Tensor,
        best: Tensor,
        nearest: Tensor,
        place: int,
        restart: int,
    ) -> Tensor:
        """One run towards one class; writes into `best` and `nearest`, (B, 3, H, W) where it ended."""
        config = self.config

        def lead(images: Tensor, rows: Tensor) -> Tensor:
            logits, both = problem.predict(images, rows), torch.stack([target[rows], problem.labels[rows]], 1)
            aim, label = logits.gather(1, both).unbind(1)
            return aim - label

        own = problem.restated(lead)
        images = problem.images.clone()
        if restart:
            images = self._start(problem, threat, noise, place * config.restarts + restart)
        for _ in range(config.steps):
            rows = _of(problem, attackable)
            if not len(rows):
                break
            clean, here = problem.images[rows], images[rows]
            gradient, value = own.gradient(here, rows)
            here = self._step(here, clean, gradient, value, threat)
            with torch.no_grad():
                wrong = ~right(problem.predict(here, rows), problem.labels[rows])
            size = threat.size(here - clean)
            nearer = wrong & (size < nearest[rows])
            best[rows[nearer]], nearest[rows[nearer]] = here[nearer], size[nearer]
            back = clean + config.beta * (here - clean)
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

    @staticmethod
    def _start(problem: Problem, threat: Threat, noise: Noise, draw: int) -> Tensor:
        """(B, 3, H, W) half a radius from the clean images."""
        shape = tuple(problem.images.shape[1:])
        offset = 2 * noise.uniform(shape, draw) - 1 if threat.norm == "linf" else noise.normal(shape, draw)
        offset = offset / threat.size(offset).clamp_min(1e-12).view(-1, 1, 1, 1)
        return (problem.images + threat.eps / 2 * offset).clamp(0, 1)


def _of(problem: Problem, attackable: Tensor) -> Tensor:
    rows = problem.open()
    return rows[attackable[rows]]
