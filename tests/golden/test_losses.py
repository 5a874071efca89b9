"""What is pinned here:

- Every strategy's terms, weights, objective and gradients on a tiny CLIP are what they were, to 1e-5; see golden.py.
- No strategy of ours is without golden losses.
"""

from __future__ import annotations

import json
from typing import Any

import golden
import pytest

from advdistill.hooks.registry import default_registry

STORED = json.loads(golden.FILE.read_text(encoding="utf-8"))


def flat(value: Any, where: str = "") -> dict[str, float]:
    if isinstance(value, (int, float)):
        return {where: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: number for key, item in items for name, number in flat(item, f"{where}/{key}").items()}


@pytest.mark.parametrize("name", golden.CASES)
def test_losses_are_what_they_were(name: str) -> None:
    found, stored = flat(golden.measure(name)), flat(STORED[name])
    assert found.keys() == stored.keys()
    assert found == {where: pytest.approx(number, abs=1e-5, rel=1e-5) for where, number in stored.items()}
    assert all(abs(number) > 1e-4 for where, number in found.items() if where.startswith("/gradients"))


def test_every_strategy_of_ours_is_golden() -> None:
    registry = default_registry()
    ours = {entry.spec.name for entry in registry.entries("strategy") if entry.plugin.dist == "advdistill"}
    assert ours == {name.partition(",")[0] for name in golden.CASES} and STORED.keys() == golden.CASES.keys()
