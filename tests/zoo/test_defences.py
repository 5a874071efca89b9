"""Broken defences are noticed.

Guarantees:
- every defence of zoo A raises the indicator that its row names, or falls to the standard ensemble, on a reduced
  budget, as deep as the undefended model does;
- the undefended model itself raises none of the indicators of the table, so that noticing means something;
- docs/evaluation.md shows the table as it is.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import defences
from defences import PAGE, RADIUS, STANDARD, ZOO

from advdistill.engine import build, doubt
from advdistill.engine.outcomes import Evaluation
from advdistill.engine.probes import PROBES, Probes
from advdistill.engine.types import Threat
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import resolve_blocks

LIMIT = 20
"""Two samples a class."""
QUICK = ("saturated logits", "detached gradient", "random head", "abstention")
SLACK = 0.1
"""Two samples of twenty."""
REDUCED = {
    "use": "autoattack",
    "version": "custom",
    "attacks": [
        {"use": "apgd", "loss": "ce", "steps": 20},
        {"use": "apgd-t", "steps": 20, "classes": 3},
        {"use": "square", "queries": 100, "rescale": True},
    ],
}
THREAT = Threat("linf", RADIUS)


def noticed(model: defences.VisionLanguageModel, names: set[str]) -> dict[str, str]:
    """Verdicts of those indicators."""
    registry = default_registry()
    block = resolve_blocks({"attack": {"use": "apgd", "steps": 20}}, registry)[("attack",)]
    probes = Probes(defences.subject(model), block, THREAT, LIMIT, registry)
    found = list(probes.take(names & PROBES.keys())) if names & PROBES.keys() else []
    if names - PROBES.keys():
        found += doubt.from_columns(Evaluation("zoo", {}, (probes.column,)))
    return {each.name: each.verdict for each in found if each.name in names}


def withstands(model: defences.VisionLanguageModel) -> float:
    """Share that is right after the reduced standard ensemble."""
    registry = default_registry()
    block = resolve_blocks({"attack": REDUCED}, registry)[("attack",)]
    protocol = build.protocol(registry, "standard", block, THREAT, limit=LIMIT)
    (column,) = defences.subject(model).bench().columns([protocol])
    return column.outcome.count.share


@cache
def undefended() -> float:
    return withstands(defences.base())


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ZOO])
def test_defence(name: str) -> None:
    torch.manual_seed(0)
    row = ZOO[name]
    model = row.build(defences.base())
    if row.doubt == STANDARD:
        assert withstands(model) <= undefended() + SLACK
    else:
        assert noticed(model, {row.doubt}) == {row.doubt: "flag"}


@pytest.mark.slow
def test_the_undefended_model_raises_none() -> None:
    names = {row.doubt for row in ZOO.values()} - {STANDARD}
    # It is its own base, so nothing can be transferred from there.
    expected = {name: "unknown" if name == "transfer beats white-box" else "ok" for name in names}
    assert noticed(defences.base(), names) == expected


def test_the_zoo_is_large_enough() -> None:
    assert len(ZOO) >= 18 and set(QUICK) <= ZOO.keys()


def test_the_page_shows_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == defences.written(text), "run python tests/zoo/defences.py"
