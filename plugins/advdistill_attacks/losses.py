"""Per-sample losses for attacks: all are to be raised, none has a sign to get wrong, all take any number of classes.

`logits` are (n, C) floats, `labels` and `targets` (n,) long; every function returns (n,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from advdistill import Problem, UsageError, kl

if TYPE_CHECKING:
    from advdistill_attacks.configs import Climbing

FEWEST, FEWEST_TARGETED = {"dlr": 3}, {"dlr": 4}
"""Loss -> the classes that it needs, where two are not enough."""


def _of(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(1, classes.unsqueeze(1)).squeeze(1)


def _without(values: Tensor, classes: Tensor) -> Tensor:
    """(n, C) with -inf in place of one class: no value of another one can be mistaken for it, whatever its sign."""
    return values.scatter(1, classes.unsqueeze(1), -torch.inf)


def _log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """log((1 - p) / p) of the label's probability p: cross-entropy is its softplus, and it never saturates."""
    return _without(logits, labels).logsumexp(1) - _of(logits, labels)


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, written so that its gradient is 1 - p even where p rounds to 1."""
    return F.softplus(_log_odds(logits, labels))


def sice(logits: Tensor, labels: Tensor) -> Tensor:
    """Scale-invariant cross-entropy: the gradient of cross-entropy at logits whose two largest lie 1 apart.

    After MIFPE and T-MIFPE (arXiv 2507.22428), where a per-sample temperature keeps the gradient clear of underflow;
    a gap of 1 is inferred. At that temperature the loss hardly depends on how far the label leads, so that no two
    images could be compared by it: the value is the log-odds against the label, and the gradient stands for its own.
    """
    top = logits.detach().topk(2, dim=1).values
    gap = (top[:, 0] - top[:, 1]).clamp_min(1e-12)
    climbed = ce(logits / gap.unsqueeze(1), labels)
    return climbed + (_log_odds(logits, labels) - climbed).detach()


def cw(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest other logit minus the label's (Carlini & Wagner 2017, arXiv 1608.04644, f6)."""
    return _without(logits, labels).amax(1) - _of(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, arXiv 2003.01690, eq. 6): `cw` over the gap of ranks 1 and 3.

    Raises:
        UsageError: fewer than three classes.
    """
    _demand(logits, FEWEST["dlr"], "dlr", "with two classes use loss: cw or loss: ce")
    top = logits.topk(3, dim=1).values
    return cw(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest other probability minus the label's (Xie et al. 2024, arXiv 2411.15210, PMA)."""
    return cw(logits.softmax(1), labels)


def ce_to(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of the target: targeted cross-entropy with its sign turned."""
    return -ce(logits, targets)


def cw_to(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The target's logit minus the largest other one; above 0 the target is the answer."""
    return -cw(logits, targets)


def dlr_to(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted difference of logits ratio (arXiv 2003.01690, eq. 7): target minus label, over the first rank minus
    the mean of ranks 3 and 4.

    Raises:
        UsageError: fewer than four classes.
    """
    hint = "use loss: cw or loss: ce, or autoattack with version: custom and attacks: [{use: apgd}, {use: square}]"
    _demand(logits, FEWEST_TARGETED["dlr"], "targeted dlr", hint)
    top = logits.topk(4, dim=1).values
    spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return (_of(logits, targets) - _of(logits, labels)) / (spread + 1e-12)


def _demand(logits: Tensor, classes: int, loss: str, hint: str) -> None:
    if logits.shape[1] < classes:
        raise UsageError(f"the loss {loss} needs {classes} classes, and there are {logits.shape[1]}", hint)


UNTARGETED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": ce,
    "sice": sice,
    "cw": cw,
    "dlr": dlr,
    "margin": margin,
}
"""Losses of logits and labels."""

TARGETED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"ce": ce_to, "cw": cw_to, "dlr": dlr_to}
"""Losses of logits, labels and targets; towards the target is up."""


def stated(problem: Problem, config: Climbing) -> Problem:
    """The same samples with the loss that the settings name as their objective; the problem itself for loss ""."""
    if not config.loss:
        return problem
    if config.loss in UNTARGETED:
        loss = UNTARGETED[config.loss]
        return problem.restated(lambda images, rows: loss(problem.predict(images, rows), problem.labels[rows]))
    if config.loss == "kl":
        return problem.restated(_kl(problem, config))
    return problem.restated(_feature(problem, config))


def _kl(problem: Problem, config: Climbing) -> Callable[[Tensor, Tensor], Tensor]:
    """KL(other model || attacked model on the adversarial image)."""
    other = problem.elsewhere(config.to)
    if config.of == "adversarial":
        return lambda images, rows: kl(other.predict(images, rows), problem.predict(images, rows))
    known = _known(problem, other.predict)
    return lambda images, rows: kl(known[rows], problem.predict(images, rows))


def _feature(problem: Problem, config: Climbing) -> Callable[[Tensor, Tensor], Tensor]:
    """How far a model's image features have moved from the clean image's; labels play no part."""
    other = problem.elsewhere(config.to)
    known = _known(problem, other.features)

    def distance(images: Tensor, rows: Tensor) -> Tensor:
        features = other.features(images, rows)
        if config.distance == "cosine":
            return 1 - F.cosine_similarity(features, known[rows], dim=1)
        # Squared: the root has no gradient at 0.
        return (features - known[rows]).square().sum(1)

    return distance


def _known(problem: Problem, say: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(B, …) what is said of the clean images, where they are worth attacking."""
    rows = problem.open()
    with torch.no_grad():
        said = say(problem.images[rows], rows)
    return said.new_zeros(len(problem.images), said.shape[1]).index_copy(0, rows, said)
