"""Doubting a number: by what the records of an evaluation show for free, and by runs made for that (`probe`).

Sources: Carlini et al. 2019 (arXiv 1902.06705, checklist); Athalye et al. 2018 (1802.00420, section 3.1); Tramèr et al.
2020 (2002.08347); Pintor et al. 2022 (2106.09947, indicators of attack failure); Croce et al. 2020 (2003.01690, and the
checks of its released code); Zimmermann et al. 2022 (2206.13991).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advdistill.engine.indicator import (
    BEATEN,
    CERTAIN,
    FAILED,
    HALF_ZERO,
    IN_CLASS,
    STILL,
    Indicator,
    counted,
    unknown,
)
from advdistill.engine.outcomes import Column, Evaluation, Outcome
from advdistill.engine.probes import Probes, probe
from advdistill.engine.types import Threat

if TYPE_CHECKING:
    from advdistill.engine.subject import Subject
    from advdistill.hooks.registry import Registry
    from advdistill.recipe.resolved import Block

__all__ = ["Indicator", "combined", "diagnose", "from_columns", "probe"]

BEATS = {
    "blind": ("noise beats white-box", "the gradients mislead: attack with bpda or eot, and with square"),
    "scores": ("scores beat white-box", "gradients are masked: attack with bpda or eot, or report the square column"),
    "labels": ("labels beat white-box", "gradients are masked: attack with bpda or eot, or report the rays column"),
    "transfer": ("transfer beats white-box", "gradients are masked: attack through the source, bpda through=base"),
    "grey-box": ("grey-box beats white-box", "the white-box attack is too weak: more steps, or autoattack"),
}
"""What an attacker has to go on -> the doubt that he raises by breaking what a white-box attack did not."""


def diagnose(
    subject: Subject, block: Block, threat: Threat, limit: int, registry: Registry, **how: Any
) -> tuple[Column, list[Indicator]]:
    """What the attack `block` finds on a stratified subset, and all doubts about that, cheap ones first.

    Args:
        how: further arguments of `probe`.
    """
    probes = Probes(subject, block, threat, limit, registry, **how)
    shown = from_columns(Evaluation(subject.name, {}, (probes.column,)))
    return probes.column, combined(shown, list(probes.take()))


def combined(shown: Iterable[Indicator], probed: Iterable[Indicator]) -> list[Indicator]:
    """Doubts from the records and from probes; of the same doubt about the same scope, what could be told goes before
    what could not."""
    shown, probed = list(shown), list(probed)
    told = {_which(each) for each in [*shown, *probed] if each.verdict != "unknown"}
    both = {_which(each) for each in shown} & {_which(each) for each in probed} - told
    kept = [each for each in shown if each.verdict != "unknown" or _which(each) not in told | both]
    return kept + [each for each in probed if each.verdict != "unknown" or _which(each) not in told]


def _which(indicator: Indicator) -> tuple[str, str]:
    return indicator.scope, indicator.name


def from_columns(evaluation: Evaluation) -> list[Indicator]:
    """What the records show, scope by scope: nothing is run.

    Where several columns could raise the same doubt, the one that raises it most is named.
    """
    found: list[Indicator] = []
    for scope in dict.fromkeys(column.scope for column in evaluation.columns):
        columns = [column for column in evaluation.columns if column.scope == scope]
        attacked = [column for column in columns if column.attacked]
        here = [*_knowing(attacked), *_failing(attacked), _above_clean(attacked, evaluation.columns)]
        here += [*_orders(attacked), *_beaten(attacked)]
        found += [dataclasses.replace(each, scope=scope, column=each.column or scope) for each in here]
    return found


def _knowing(attacked: Sequence[Column]) -> Iterator[Indicator]:
    """A defence is measured against who knows it (Carlini et al. 2019, section 3.1)."""
    name = "no white-box column"
    if not attacked:
        yield unknown(name, "nothing was attacked: add --attack apgd")
    elif not _white(attacked):
        yield Indicator(name, 0, 1, "flag", "attack the model itself with its gradients: --attack apgd")
    else:
        yield Indicator(name, len(_white(attacked)), 1, "ok")


def _failing(attacked: Sequence[Column]) -> Iterator[Indicator]:
    """Attacks that did nothing, or did not do what they say."""
    guided = [column for column in attacked if int(column.outcome.backwards.sum())]
    yield _worst(
        "zero gradients",  # Athalye et al. 2018, shattered gradients; Croce et al.'s checks
        FAILED,
        "no slope reaches the pixels: attack with bpda (through=own or through=base), and with square",
        guided,
        lambda o: (o.attacked & (o.zeros > HALF_ZERO), len(o)),
    )
    yield _worst(
        "objective does not rise",  # Pintor et al. 2022, I4-I5
        FAILED,
        "the attack does not climb: another loss (loss=cw, loss=sice), a larger step, or bpda",
        _white(attacked),
        # log(1 + exp(-margin)) is the clean image's cross-entropy, but for the classes beyond the second.
        lambda o: (o.attacked & o.right & (o.rise <= STILL * F.softplus(-o.margin)), len(o)),
    )
    yield _worst(
        "nothing moved",
        FAILED,
        "the images that withstood are the clean ones: the attack did nothing; check its step and eps",
        _white(attacked),
        lambda o: (o.attacked & o.right & (o.size == 0), len(o)),
    )
    yield _worst(
        "saturated",  # Carlini & Wagner 2017, arXiv 1608.04644, section V
        CERTAIN,
        "cross-entropy is 0 in float32 on clean images: attack with loss=cw or loss=sice",
        attacked[:1],
        lambda o: (o.clean & o.certain, len(o)),
    )
    yield _worst(
        "verdicts disagree",
        FAILED,
        "the attacked model and the exported one give other answers: is it random, stateful, or batch-dependent?",
        attacked,
        lambda o: (o.attacked & (o.claimed != o.right), len(o)),
    )


def _above_clean(attacked: Sequence[Column], everything: Sequence[Column]) -> Indicator:
    """An attack that leaves more right answers than there were without it, in all or in one class (Carlini et al. 2019,
    section 5.3): samples that it repairs, or that some column finds wrong before any attack."""
    name = "robust above clean"
    repaired = "samples are right after the attack alone: it does not climb, or the model tells clean images apart"
    denied = (
        "samples count as robust that are wrong without attack: the model is random or stateful, or a count is wrong"
    )
    doubts = []
    for column in attacked:
        outcome = column.outcome
        doubts.append(_in_class(name, outcome, outcome.recovered, repaired, column.heading))
        for other in everything:
            if _same_images(column, other):
                found = outcome.right & ~other.outcome.clean
                doubts.append(_in_class(name, outcome, found, denied, column.heading))
    if not doubts:
        return unknown(name, "nothing was attacked: add --attack apgd", BEATEN)
    return max(doubts, key=lambda each: (each.verdict == "flag", each.value or 0))


def _in_class(name: str, outcome: Outcome, found: Tensor, advice: str, heading: str) -> Indicator:
    """How many samples were `found`, (N,) bool; where they are few, in the class that has the largest share of them."""
    overall = counted(name, int(found.sum()), len(found), BEATEN, advice, heading)
    if overall.verdict == "flag" or not found.any():
        return overall
    totals = outcome.labels.bincount()
    counts = outcome.labels[found].bincount(minlength=len(totals))
    label = int((counts / totals.clamp_min(1)).argmax())
    worst = counted(name, int(counts[label]), int(totals[label]), IN_CLASS, f"class {label}: {advice}", heading)
    return worst if worst.verdict == "flag" else overall


def _same_images(a: Column, b: Column) -> bool:
    """Whether two columns looked at the same images, and told the same classes apart."""
    said = [(c.statement["split"]["digest"], *(c.statement[k] for k in ("classes", "templates", "resolution")))
            for c in (a, b)]  # fmt: skip
    return said[0] == said[1] and torch.equal(a.outcome.indices, b.outcome.indices)


def _orders(attacked: Sequence[Column]) -> Iterator[Indicator]:
    """Attacks whose strength is known beforehand, in the wrong order (Carlini et al. 2019, section 5.3)."""
    larger = [pair for a, b in combinations(attacked, 2) if (pair := _ordered(a, b, lambda s: s["threat"].pop("eps")))]
    yield _pairs(
        "a larger radius helps the defender",
        "samples that a small ball breaks withstand a larger one: more steps, step=0, or loss=cw",
        larger,
    )
    longer = [pair for a, b in combinations(attacked, 2) if (pair := _ordered(a, b, _steps))]
    yield _pairs(
        "more steps help the defender",
        "samples that few steps break withstand more: a smaller step, or loss=cw; look for masked gradients",
        longer,
    )
    white = _white(attacked)
    single = [column for column in white if int(column.outcome.backwards.max()) == 1]
    several = [column for column in white if int(column.outcome.backwards.max()) > 1]
    yield _pairs(
        "one step beats many",  # Athalye et al. 2018, section 3.1; Tramèr et al. 2018 on masked gradients
        "a single step breaks what many do not: gradients are masked nearby; use restarts, square, transfer",
        [(one, many) for one in single for many in several if _comparable(one, many)],
    )


def _beaten(attacked: Sequence[Column]) -> Iterator[Indicator]:
    """Attackers who know less and break what those who know everything did not (Athalye et al. 2018, section 3.1)."""
    for knowledge, (name, advice) in BEATS.items():
        weak = [column for column in attacked if column.statement["knowledge"] == knowledge]
        doubts = []
        for column in weak:
            strong = [white for white in _white(attacked) if _comparable(column, white)]
            if strong:
                held = torch.stack([white.outcome.right for white in strong]).all(0)
                beaten = int((held & ~column.outcome.right).sum())
                doubts.append(counted(name, beaten, len(held), BEATEN, advice, column.heading))
        if doubts:
            yield max(doubts, key=lambda each: each.value or 0)


def _white(columns: Iterable[Column]) -> list[Column]:
    return [column for column in columns if column.statement["knowledge"] == "white-box"]


def _worst(
    name: str, threshold: float, advice: str, columns: Sequence[Column], look: Callable[[Any], tuple[Tensor, int]]
) -> Indicator:
    doubts = []
    for column in columns:
        found, total = look(column.outcome)
        doubts.append(counted(name, int(found.sum()), total, threshold, advice, column.heading))
    if not doubts:
        return unknown(name, "no column could show it: attack with gradients, --attack apgd", threshold)
    return max(doubts, key=lambda each: each.value or 0)


def _pairs(name: str, advice: str, pairs: Sequence[tuple[Column, Column]]) -> Indicator:
    """`pairs` of a weaker and a stronger attack: what the weaker breaks, the stronger must break too."""
    doubts = [
        counted(name, int((~weak.outcome.right & strong.outcome.right).sum()), len(weak.outcome), BEATEN, advice,
                strong.heading)
        for weak, strong in pairs
    ]  # fmt: skip
    if not doubts:
        return unknown(name, "there are no two columns to compare: `advdistill diagnose` runs them", BEATEN)
    return max(doubts, key=lambda each: each.value or 0)


def _comparable(a: Column, b: Column) -> bool:
    return a.statement["threat"] == b.statement["threat"] and torch.equal(a.outcome.indices, b.outcome.indices)


def _ordered(a: Column, b: Column, take: Callable[[dict[str, Any]], Any]) -> tuple[Column, Column] | None:
    """(weaker, stronger) of two columns that differ in nothing but what `take` takes out of their statements."""
    said, taken = [], []
    for column in (a, b):
        statement = json.loads(json.dumps({k: v for k, v in column.statement.items() if k not in ("name", "key")}))
        taken.append(take(statement))
        said.append(statement)
    if (
        said[0] != said[1]
        or None in taken
        or taken[0] == taken[1]
        or not torch.equal(a.outcome.indices, b.outcome.indices)
    ):
        return None
    return (a, b) if taken[0] < taken[1] else (b, a)


def _steps(statement: dict[str, Any]) -> int | None:
    steps = statement["attack"].pop("steps", None)
    return steps if isinstance(steps, int) else None
