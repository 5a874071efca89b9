"""The standard ensemble of AutoAttack in plain torch, to measure ours against: simple, batch by batch, one seed.

Written from the papers (Croce and Hein 2020, arXiv 2003.01690 and 1907.02044; Andriushchenko et al. 2020, arXiv
1912.00049) and from how the authors' program behaves (github.com/fra31/auto-attack), and without sight of
`advdistill_attacks`. It shares nothing with the engine: `forward` maps images (N, C, H, W) in [0, 1] to logits (N, K),
and `y` (N,) are labels. As in the authors' program

- a sample counts as broken by the largest logit, and ties are left to `argmax`;
- the draws of a batch come from one generator, in the order of the authors' program, so that torchattacks, which
  descends from it, walks the same path under the same seed: `tests/unit/test_reference_autoattack.py` holds them
  together;
- apgd's first look at oscillation takes the loss before the first step for 0.

Every attack returns `(x_adv, broken)`: the image that broke a sample, the clean one where nothing did, and (N,) bool,
which is true of what was misclassified to begin with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Forward = Callable[[Tensor], Tensor]
Found = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")


def standard(
    forward: Forward,
    x: Tensor,
    y: Tensor,
    eps: float,
    seed: int = 0,
    *,
    attacks: Sequence[str] = ATTACKS,
    batch: int = 250,
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
) -> tuple[dict[str, Tensor], Tensor]:
    """The l-infinity ensemble, each attack on what those before it left over.

    Args:
        attacks: which, in which order; one alone is that attack.
        batch: samples at a time. steps: of apgd-ce, apgd-t and fab-t. targets: of apgd-t and fab-t. queries: of square.

    Returns:
        "clean" and each attack -> (N,) bool, right so far; (N, C, H, W) the images that broke the samples.
    """
    run = {
        "apgd-ce": partial(apgd, iterations=steps),
        "apgd-t": partial(apgd_t, iterations=steps, targets=targets),
        "fab-t": partial(fab_t, iterations=steps, targets=targets),
        "square": partial(square, queries=queries),
    }
    found = x.clone()
    robust = torch.cat([_right(forward, some, of) for some, of in zip(x.split(batch), y.split(batch), strict=True)])
    after = {"clean": robust.clone()}
    for name in attacks:
        for rows in robust.nonzero().squeeze(1).split(batch):
            adversarial, broken = run[name](forward, x[rows], y[rows], eps, seed=seed)
            robust[rows[broken]] = False
            found[rows[broken]] = adversarial[broken]
        after[name] = robust.clone()
    return after, found


def apgd(
    forward: Forward,
    x: Tensor,
    y: Tensor,
    eps: float,
    loss: str = "ce",
    seed: int = 0,
    *,
    norm: str = "linf",
    iterations: int = 100,
) -> Found:
    """Auto-PGD (arXiv 2003.01690, algorithm 1) on the cross-entropy ("ce") or the difference of logits ratio ("dlr").

    Args:
        norm: "linf" or "l2".
    """
    generator = torch.Generator().manual_seed(seed)
    losses: dict[str, Loss] = {"ce": lambda logits, y: F.cross_entropy(logits, y, reduction="none"), "dlr": _dlr}
    broken, found = ~_right(forward, x, y), x.clone()
    _attempt(partial(_climb, forward, losses[loss], eps, norm, iterations, generator), x, y, broken, found)
    return found, broken


def apgd_t(
    forward: Forward,
    x: Tensor,
    y: Tensor,
    eps: float,
    seed: int = 0,
    *,
    norm: str = "linf",
    iterations: int = 100,
    targets: int = 9,
) -> Found:
    """Auto-PGD on the targeted difference of logits ratio, towards the likeliest wrong classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    broken, found = ~_right(forward, x, y), x.clone()
    aims = _ranked(forward, x)
    for rank in range(1, min(targets, aims.shape[1] - 1) + 1):

        def climb(x: Tensor, y: Tensor, aim: Tensor) -> Found:
            return _climb(forward, partial(_targeted_dlr, aim=aim), eps, norm, iterations, generator, x, y)

        _attempt(climb, x, y, broken, found, aims[:, rank])
    return found, broken


def fab_t(
    forward: Forward,
    x: Tensor,
    y: Tensor,
    eps: float,
    seed: int = 0,
    *,
    norm: str = "linf",
    iterations: int = 100,
    targets: int = 9,
) -> Found:
    """The targeted fast adaptive boundary attack (arXiv 1907.02044), one run a target, from the image itself.

    Args:
        seed: means nothing: without random restarts nothing is drawn.
    """
    broken, found = ~_right(forward, x, y), x.clone()
    aims = _ranked(forward, x)
    for rank in range(1, min(targets, aims.shape[1] - 1) + 1):
        _attempt(partial(_approach, forward, eps, norm, iterations), x, y, broken, found, aims[:, rank])
    return found, broken


def square(
    forward: Forward, x: Tensor, y: Tensor, eps: float, seed: int = 0, *, queries: int = 5000, share: float = 0.8
) -> Found:
    """The l-infinity Square attack (arXiv 1912.00049) on the margin, with its schedule for 10,000 queries whatever
    `queries` is; all samples of a batch share their squares.

    Args:
        share: of the image that the first squares cover.
    """
    generator = torch.Generator().manual_seed(seed)
    broken, found = ~_right(forward, x, y), x.clone()

    def search(x: Tensor, y: Tensor) -> Found:
        return _search(forward, eps, queries, share, generator, x, y)

    _attempt(search, x, y, broken, found)
    return found, broken


def _attempt(attack: Callable[..., Found], x: Tensor, y: Tensor, broken: Tensor, found: Tensor, *more: Tensor) -> None:
    """Run `attack` on what is not broken yet, and write down what it broke."""
    rows = (~broken).nonzero().squeeze(1)
    if not len(rows):
        return
    with torch.no_grad():
        adversarial, wrong = attack(x[rows], y[rows], *(each[rows] for each in more))
    broken[rows[wrong]] = True
    found[rows[wrong]] = adversarial[wrong]


def _right(forward: Forward, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return forward(x).argmax(1) == y


def _ranked(forward: Forward, x: Tensor) -> Tensor:
    """(N, K) classes from the most to the least likely."""
    with torch.no_grad():
        return forward(x).sort(dim=1).indices.flip(1)


# --- apgd


def _dlr(logits: Tensor, y: Tensor) -> Tensor:
    ordered = logits.sort(dim=1).values
    label = logits.gather(1, y[:, None])[:, 0]
    rival = torch.where(logits.argmax(1) == y, ordered[:, -2], ordered[:, -1])
    return (rival - label) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def _targeted_dlr(logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
    ordered = logits.sort(dim=1).values
    gap = logits.gather(1, aim[:, None]) - logits.gather(1, y[:, None])
    return gap[:, 0] / (ordered[:, -1] - (ordered[:, -3] + ordered[:, -4]) / 2 + 1e-12)


def _climb(
    forward: Forward,
    loss: Loss,
    eps: float,
    norm: str,
    iterations: int,
    generator: torch.Generator,
    x: Tensor,
    y: Tensor,
) -> Found:
    def look(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, its gradient, and who is misclassified."""
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            logits = forward(images)
            values = loss(logits, y)
            (slope,) = torch.autograd.grad(values.sum(), images)
        return values.detach(), slope, logits.detach().argmax(1) != y

    def unit(delta: Tensor) -> Tensor:
        return delta / (_size(delta, norm) + 1e-12)

    def project(images: Tensor) -> Tensor:
        if norm == "linf":
            return torch.minimum(torch.maximum(images, x - eps), x + eps).clamp(0, 1)
        return (x + unit(images - x) * _size(images - x, norm).clamp_max(eps)).clamp(0, 1)

    draw = torch.rand if norm == "linf" else torch.randn
    start = draw(x.shape, generator=generator).to(x)
    at = (x + eps * unit(2 * start - 1 if norm == "linf" else start)).clamp(0, 1)
    values, slope, broken = look(at)
    adversarial, before = at.clone(), at
    best, best_values, best_slope = at.clone(), values.clone(), slope.clone()
    step = torch.full((len(x), 1, 1, 1), 2 * eps, dtype=x.dtype, device=x.device)
    checked_values, halved = best_values.clone(), torch.ones_like(broken)
    last, rises, since = torch.zeros_like(values), torch.zeros_like(values), 0
    wait, floor, shorter = (max(int(part * iterations), 1) for part in (0.22, 0.06, 0.03))
    for i in range(iterations):
        direction = slope.sign() if norm == "linf" else unit(slope)
        aimed, drift, before = project(at + step * direction), at - before, at
        at = aimed if i == 0 else project(at + 0.75 * (aimed - at) + 0.25 * drift)
        values, slope, wrong = look(at)
        broken |= wrong
        adversarial[wrong] = at[wrong]
        higher = values > best_values
        best[higher], best_values[higher], best_slope[higher] = at[higher], values[higher], slope[higher]
        rises, last, since = rises + (values > last), values, since + 1
        if since == wait:
            # Conditions 1 and 2: too few steps up; nothing better since the last look, where the step was kept.
            halved = (rises <= 0.75 * wait) | (~halved & (checked_values >= best_values))
            step[halved] /= 2
            at, slope = at.clone(), slope.clone()
            at[halved], slope[halved] = best[halved], best_slope[halved]
            checked_values = best_values.clone()
            rises, since, wait = torch.zeros_like(rises), 0, max(wait - shorter, floor)
    return adversarial, broken


def _size(delta: Tensor, norm: str) -> Tensor:
    """(N, 1, 1, 1)."""
    flat = delta.flatten(1)
    size = flat.abs().amax(1) if norm == "linf" else flat.square().sum(1).sqrt()
    return size.view(-1, 1, 1, 1)


# --- fab


def onto_plane(points: Tensor, normal: Tensor, gap: Tensor, norm: str) -> Tensor:
    """(N, D) the smallest move that crosses a plane without leaving [0, 1]; as far as the box lets, if it cannot.

    The move of length l goes l * (sign(normal) or normal), each coordinate until it meets its wall. What that gains
    grows with l in straight pieces, one for each wall that is met; the piece where the gap is closed is looked up.

    Args:
        points: (N, D) in [0, 1]. normal: (N, D). gap: (N,); a move with `(normal * move).sum(1) == gap` lands on it.
        norm: "linf" or "l2".
    """
    normal, gap = normal.double() * torch.where(gap < 0, -1, 1)[:, None], gap.double().abs()
    slope = normal.abs()
    speed = (slope > 0).double() if norm == "linf" else torch.where(slope < 1e-8, 0, slope)
    room = torch.where(normal > 0, 1 - points, points).double()
    wall = torch.where(speed > 0, room / speed.clamp_min(1e-300), 0)
    wall, order = wall.sort(dim=1)
    gain = (slope * speed).gather(1, order)
    spent = F.pad((gain * wall).cumsum(1), (1, 0))  # by those that met their walls
    free = gain.sum(1, keepdim=True) - F.pad(gain.cumsum(1), (1, 0))  # gained per length by the others
    reached = spent[:, :-1] + wall * free[:, :-1]  # where each wall is met
    met = (reached < gap[:, None]).sum(1, keepdim=True)
    length = (gap[:, None] - spent.gather(1, met)) / free.gather(1, met).clamp_min(1e-300)
    length = torch.where(met == wall.shape[1], torch.inf, length.clamp_min(0))
    move = torch.where(speed > 0, torch.minimum(length * speed, room), 0)
    return (move * normal.sign()).to(points)


def _approach(forward: Forward, eps: float, norm: str, iterations: int, x: Tensor, y: Tensor, aim: Tensor) -> Found:
    at, adversarial = x.clone(), x.clone()
    nearest = torch.full((len(x), 1, 1, 1), 1e10, dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        with torch.enable_grad():
            images = at.detach().requires_grad_()
            logits = forward(images)
            lead = (logits.gather(1, aim[:, None]) - logits.gather(1, y[:, None]))[:, 0]
            (slope,) = torch.autograd.grad(lead.sum(), images)
        lead, slope = lead.detach(), slope.flatten(1)
        from_here = onto_plane(at.flatten(1), slope, -lead, norm).view_as(x)
        ahead = (slope.double() * (at - x).flatten(1).double()).sum(1)
        from_clean = onto_plane(x.flatten(1), slope, ahead - lead, norm).view_as(x)
        here, there = (_size(move, norm).clamp_min(1e-8) for move in (from_here, from_clean))
        bias = (here / (here + there)).clamp(0, 0.1)
        at = ((at + 1.05 * from_here) * (1 - bias) + (x + 1.05 * from_clean) * bias).clamp(0, 1)
        wrong = (forward(at).argmax(1) != y).view(-1, 1, 1, 1)
        size = _size(at - x, norm)
        closer = wrong & (size < nearest)
        adversarial, nearest = torch.where(closer, at, adversarial), torch.where(closer, size, nearest)
        at = torch.where(wrong, x + 0.9 * (at - x), at)
    return adversarial, (nearest <= eps).flatten()


# --- square


def _share(query: int, first: float) -> float:
    """Of the image that a square covers: halved after these many queries (out of 10,000)."""
    return first / 2 ** sum(query > after for after in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))


def _search(
    forward: Forward,
    eps: float,
    queries: int,
    share: float,
    generator: torch.Generator,
    x: Tensor,
    y: Tensor,
) -> Found:
    channels, height, width = x.shape[1:]

    def margin(images: Tensor, labels: Tensor) -> Tensor:
        logits = forward(images)
        label = labels[:, None]
        return logits.gather(1, label)[:, 0] - logits.scatter(1, label, -torch.inf).amax(1)

    def signs(*shape: int) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1).sign().to(x)

    def place(free: int) -> int:
        return int(free * torch.rand(1, generator=generator))

    best = (x + eps * signs(len(x), channels, 1, width)).clamp(0, 1)
    lowest = margin(best, y)
    for query in range(queries):
        rows = (lowest > 0).nonzero().squeeze(1)
        if not len(rows):
            break
        side = max(round(math.sqrt(_share(query, share) * height * width)), 1)
        top, left = place(height - side), place(width - side)
        tried = best[rows]
        tried[:, :, top : top + side, left : left + side] += 2 * eps * signs(channels, 1, 1)
        tried = torch.minimum(torch.maximum(tried, x[rows] - eps), x[rows] + eps).clamp(0, 1)
        margins = margin(tried, y[rows])
        better = (margins < lowest[rows]) | (margins <= 0)
        best[rows[better]], lowest[rows[better]] = tried[better], margins[better]
    return best, forward(best).argmax(1) != y
