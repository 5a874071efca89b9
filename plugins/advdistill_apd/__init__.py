"""Adversarial Prompt Distillation (APD, arXiv 2411.15244): two prompted twins teach each other."""

from __future__ import annotations

from collections.abc import Iterator

from advdistill import StrategySpec, hookimpl


@hookimpl
def advdistill_strategies() -> Iterator[StrategySpec]:
    yield StrategySpec(
        name="apd",
        target="advdistill_apd.strategy:APD",
        config="advdistill_apd.configs:APD",
        check="advdistill_apd.configs:check",
        teachers={"clean": "sees clean images; learns alongside (online) or is frozen (offline)"},
        trains={"clean"},
        attack="labels",
        summary="Adversarial Prompt Distillation: a clean teacher and a robust student learn from each other",
        reference="https://arxiv.org/abs/2411.15244",
    )
