"""MMT-ARD (arXiv 2511.17448): a clean and a robust teacher, weighted sample by sample."""

from __future__ import annotations

from collections.abc import Iterator

from advdistill import StrategySpec, hookimpl


@hookimpl
def advdistill_strategies() -> Iterator[StrategySpec]:
    yield StrategySpec(
        name="mmt-ard",
        target="advdistill_mmt_ard.strategy:MMTARD",
        config="advdistill_mmt_ard.configs:MMTARD",
        teachers={"clean": "accurate; sees clean images", "robust": "robust; sees adversarial images"},
        attack="objective",
        summary="Multimodal Multi-Teacher Adversarial Robust Distillation",
        reference="https://arxiv.org/abs/2511.17448",
    )
