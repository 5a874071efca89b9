"""Auto-PGD: gradient ascent with momentum that halves its own steps, for each sample by itself.

The rules are those of Croce & Hein 2020 (arXiv 2003.01690, algorithm 1) and, for l1, of Croce & Hein 2021 (arXiv
2103.01208), with the constants of their released code. One thing differs: at the first checkpoint that code compares
the first step's loss with a 0 that stands before the start of its record; here it is compared with the start's own.

A restart of N steps costs N + 1 forward and N backward passes: nobody would use the last image's gradient. In l1 with
`wide` there are three starts in it, and N + 3 forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from advdistill import Attack, Noise, Problem, Threat
from advdistill_attacks import configs, targets
from advdistill_attacks.losses import FEWEST_TARGETED, TARGETED, stated
from advdistill_attacks.pgd import Climber, direction

MOMENTUM = 0.75
RISES = 0.75
"""A step is halved where no more than this share of the steps since the last checkpoint raised the objective."""
SHRINK, LONGEST, SHORTEST = 1.5, 1.0, 0.1
"""l1: what a step is divided by at a checkpoint; its bounds in radii."""


class APGD(Climber):
    """Each sample's best image over all restarts, whatever the objective."""

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        own = stated(problem, self.config)
        restarts = self.config.restarts or (5 if threat.norm == "l1" else 1)
        best = _Best(problem)
        for restart in range(restarts):
            best.keep(*_restart(own, threat, noise, restart, self.config))
        return best.images


class APGDTargeted(Attack):
    """`apgd` towards each of several classes; what counts is still any wrong answer."""

    @property
    def fewest_classes(self) -> int:  # type: ignore[override]
        """What the loss needs."""
        return FEWEST_TARGETED.get(self.config.loss, 2)

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        config, best, rows = self.config, _Best(problem), problem.open()
        if not len(rows):
            return best.images
        count = config.classes or (5 if threat.norm == "l1" else 9)
        chosen = (
            targets.top(problem, rows, count) if config.targets == "top" else targets.malt(problem, threat, rows, count)
        )
        loss = TARGETED[config.loss]
        for place, aim in enumerate(chosen.T):
            towards = torch.zeros_like(problem.labels).index_copy(0, rows, aim)
            own = problem.restated(
                lambda images, some, towards=towards: loss(
                    problem.predict(images, some), problem.labels[some], towards[some]
                )
            )
            for restart in range(config.restarts):
                best.keep(*_restart(own, threat, noise, place * config.restarts + restart, config))
        return best.images


class _Best:
    """Each sample's best image so far."""

    def __init__(self, problem: Problem) -> None:
        self.images = problem.images.clone()
        self._values = torch.full_like(self.images[:, 0, 0, 0], -torch.inf)

    def keep(self, images: Tensor, values: Tensor) -> None:
        better = values > self._values
        self.images = torch.where(better.view(-1, 1, 1, 1), images, self.images)
        self._values = torch.where(better, values, self._values)


def _restart(
    problem: Problem, threat: Threat, noise: Noise, draw: int, config: configs.APGD | configs.APGDTargeted
) -> tuple[Tensor, Tensor]:
    """(B, 3, H, W) the best images of one start, (B,) their objective; -inf where nothing was tried."""
    steps, clean = config.steps, problem.images
    phases = [(threat.eps, steps)]
    if threat.norm == "l1" and config.wide and steps >= 3:
        third = math.ceil(0.3 * steps)
        phases = [(3 * threat.eps, third), (2 * threat.eps, third), (threat.eps, steps - 2 * third)]
    rows = problem.open()
    start = _start(clean[rows], Threat(threat.norm, phases[0][0]), noise, draw, rows)
    images, values = clean.index_copy(0, rows, start), torch.empty(0)
    for place, (radius, length) in enumerate(phases):
        if place:
            images = clean + onto_l1_and_box(images - clean, clean, radius)
        images, values = ascend(problem, Threat(threat.norm, radius), images, length, dense=len(phases) == 1)
    return images, values


def _start(clean: Tensor, threat: Threat, noise: Noise, draw: int, rows: Tensor) -> Tensor:
    """(n, 3, H, W) on the ball's surface, cut to [0, 1]."""
    shape = tuple(clean.shape[1:])
    if threat.norm == "linf":
        offset = 2 * noise.uniform(shape, draw, rows) - 1
        return (clean + threat.eps * offset / offset.abs().amax((1, 2, 3), keepdim=True)).clamp(0, 1)
    offset = noise.normal(shape, draw, rows).to(clean.dtype)
    if threat.norm == "l2":
        return (clean + threat.eps * direction(offset, "l2")).clamp(0, 1)
    return (clean + onto_l1_and_box(offset, clean, threat.eps)).clamp(0, 1)


@dataclass
class _State:
    """Where each row stands; first dimension: rows.

    Attributes:
        rows: of the batch. clean, images, previous: this and the last iterate. gradient: at `images`.
        best, slope, highest: the best iterate, its gradient, its objective.
        value: the objective last seen, to count rises by; a return to the best leaves it, as in the released code.
        step: its length. rises: steps since the last checkpoint that raised the objective.
        mark: `highest` at the last checkpoint. halved: whether the step was halved there.
        share, spread: l1: share of the pixels that a step moves; pixels that the best iterate had moved by then.
    """

    rows: Tensor
    clean: Tensor
    images: Tensor
    previous: Tensor
    gradient: Tensor
    best: Tensor
    slope: Tensor
    highest: Tensor
    value: Tensor
    step: Tensor
    rises: Tensor
    mark: Tensor
    halved: Tensor
    share: Tensor
    spread: Tensor

    def keep(self, rows: Tensor) -> None:
        """Drop all but these, a subset of `rows` in the same order."""
        if len(rows) < len(self.rows):
            kept = torch.searchsorted(self.rows, rows)
            for field in fields(self):
                setattr(self, field.name, getattr(self, field.name)[kept])


def ascend(problem: Problem, threat: Threat, start: Tensor, steps: int, dense: bool = True) -> tuple[Tensor, Tensor]:
    """From `start`, `steps` steps up the objective.

    Args:
        start: (B, 3, H, W) inside the ball.
        dense: l1: the first steps move a fifth of the pixels; else two thirds of those that `start` has moved.

    Returns:
        (B, 3, H, W) each row's best iterate, (B,) its objective; `start` and -inf for rows that are closed.
    """
    best, highest = start.clone(), torch.full_like(start[:, 0, 0, 0], -torch.inf)
    rows = problem.open()
    if not len(rows):
        return best, highest
    state = _begin(problem, threat, start, rows, dense)
    checkpoints = _checkpoints(steps, threat.norm)
    due, since = next(checkpoints), 0
    for index in range(steps):
        state.keep(problem.open())
        if not len(state.rows):
            break
        ahead = _move(state, threat, first=index == 0)
        state.previous, state.images = state.images, ahead
        if index < steps - 1:
            state.gradient, values = problem.gradient(ahead, state.rows)
        else:
            with torch.no_grad():
                values = problem.objective(ahead, state.rows)
        _look(state, values)
        since += 1
        if since == due and index < steps - 1:
            (_check_l1 if threat.norm == "l1" else _check)(state, threat, since)
            due, since = next(checkpoints), 0
    return best.index_copy(0, state.rows, state.best), highest.index_copy(
        0, state.rows, state.highest.to(highest.dtype)
    )


def _begin(problem: Problem, threat: Threat, start: Tensor, rows: Tensor, dense: bool) -> _State:
    images, clean = start[rows], problem.images[rows]
    gradient, values = problem.gradient(images, rows)
    values = values.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    size = clean[0].numel()
    spread = torch.full_like(values, size) if dense else _moved(images - clean).to(values.dtype)
    return _State(
        rows=rows,
        clean=clean,
        images=images,
        previous=images,
        gradient=gradient,
        best=images,
        slope=gradient,
        highest=values,
        value=values,
        step=torch.full_like(values, (1 if threat.norm == "l1" else 2) * threat.eps),
        rises=torch.zeros_like(values),
        mark=values,
        halved=torch.ones_like(values, dtype=torch.bool),
        share=torch.full_like(values, 0.2) if dense else spread / size / 1.5,
        spread=spread,
    )


def _move(state: _State, threat: Threat, first: bool) -> Tensor:
    """A step along the gradient, then part of the last move again; l1 has no momentum."""
    step, images, clean = state.step.view(-1, 1, 1, 1), state.images, state.clean
    if threat.norm == "l1":
        ahead = images + step * _sparse(state.gradient, state.share)
        return clean + onto_l1_and_box(ahead - clean, clean, threat.eps)
    project = _onto_linf(clean, threat.eps) if threat.norm == "linf" else _onto_l2(clean, threat.eps)
    ahead = project(torch.addcmul(images, step, direction(state.gradient, threat.norm)))
    if first:
        return ahead
    # x + a (ahead - x) + (1 - a) (x - previous)
    return project(images.lerp(ahead, MOMENTUM).add_(images - state.previous, alpha=1 - MOMENTUM))


def _look(state: _State, values: Tensor) -> None:
    """Take note of the objective at the new iterate."""
    state.rises = state.rises + (values > state.value)
    better = values > state.highest
    wide = better.view(-1, 1, 1, 1)
    state.best = torch.where(wide, state.images, state.best)
    state.slope = torch.where(wide, state.gradient, state.slope)
    state.highest = torch.where(better, values, state.highest)
    state.value = values


def _check(state: _State, threat: Threat, since: int) -> None:
    """Halve the step and go back to the best iterate where few steps rose, or where none since the last checkpoint
    led higher although the step was not halved there."""
    halve = (state.rises <= RISES * since) | (~state.halved & (state.mark >= state.highest))
    state.step = torch.where(halve, state.step / 2, state.step)
    _go_back(state, halve)
    state.halved, state.mark, state.rises = halve, state.highest, torch.zeros_like(state.rises)


def _check_l1(state: _State, threat: Threat, since: int) -> None:
    """Follow how many pixels the best iterate has moved; where these become fewer, start again from it with long
    steps, else shorten them."""
    spread = _moved(state.best - state.clean).to(state.spread.dtype)
    fewer = spread / state.spread < 0.95
    state.share = spread / state.clean[0].numel() / 1.5
    state.step = torch.where(fewer, LONGEST * threat.eps, state.step / SHRINK)
    state.step = state.step.clamp(SHORTEST * threat.eps, LONGEST * threat.eps)
    state.spread = spread
    _go_back(state, fewer)


def _go_back(state: _State, where: Tensor) -> None:
    wide = where.view(-1, 1, 1, 1)
    state.images = torch.where(wide, state.best, state.images)
    state.gradient = torch.where(wide, state.slope, state.gradient)


def _checkpoints(steps: int, norm: str) -> Iterator[int]:
    """How many steps until each next checkpoint."""
    if norm == "l1":
        while True:
            yield max(int(0.04 * steps), 1)
    length = max(int(0.22 * steps), 1)
    while True:
        yield length
        length = max(length - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))


def _onto_linf(clean: Tensor, radius: float) -> Callable[[Tensor], Tensor]:
    low, high = (clean - radius).clamp_(min=0), (clean + radius).clamp_(max=1)
    return lambda images: torch.clamp(images, low, high)


def _onto_l2(clean: Tensor, radius: float) -> Callable[[Tensor], Tensor]:
    """Onto the ball, then into [0, 1], which leads further inside."""

    def project(images: Tensor) -> Tensor:
        delta = images - clean
        size = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return torch.addcmul(clean, delta, (radius / size.clamp_min(1e-12)).clamp_max(1)).clamp_(0, 1)

    return project


def _sparse(gradient: Tensor, share: Tensor) -> Tensor:
    """(n, 3, H, W) of l1 length 1: the signs of each row's largest entries, about its `share` of them."""
    flat = gradient.flatten(1)
    size = flat.shape[1]
    ordered = flat.abs().sort(dim=1).values
    place = ((1 - share) * size).clamp(0, size - 1).long().unsqueeze(1)
    signs = torch.where(flat.abs() >= ordered.gather(1, place), flat.sign(), 0.0)
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1e-10)).view_as(gradient)


def _moved(delta: Tensor) -> Tensor:
    """(n,) how many pixels differ from 0."""
    return (delta != 0).flatten(1).sum(1)


def onto_l1_and_box(delta: Tensor, clean: Tensor, radius: float) -> Tensor:
    """(n, 3, H, W) the nearest perturbations of l1 size <= radius that keep `clean + delta` in [0, 1].

    Every entry is shortened by one number of its row, then cut to the box (arXiv 2103.01208, section 3.1). That number
    is found by halving an interval, as exactly as floats can say it: cheaper than sorting the knees of its l1 size.
    """
    flat, room = delta.flatten(1), torch.where(delta > 0, 1 - clean, clean).flatten(1)
    length = flat.abs()

    def cut(by: Tensor) -> Tensor:
        return torch.minimum((length - by).clamp_(min=0), room)

    low, high = torch.zeros_like(length[:, :1]), length.amax(1, keepdim=True)
    high = torch.where(cut(low).sum(1, keepdim=True) <= radius, low, high)
    for _ in range(32 if flat.dtype == torch.float32 else 60):
        middle = (low + high) / 2
        much = cut(middle).sum(1, keepdim=True) > radius
        low, high = torch.where(much, middle, low), torch.where(much, high, middle)
    return (flat.sign() * cut(high)).view_as(delta)
