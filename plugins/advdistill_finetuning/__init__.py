"""Fine-tuning without a teacher: plain and adversarial cross-entropy, which every distillation is measured against."""

from __future__ import annotations

from collections.abc import Iterator

from advdistill import StrategySpec, hookimpl


@hookimpl
def advdistill_strategies() -> Iterator[StrategySpec]:
    yield StrategySpec(
        name="clean",
        target="advdistill_finetuning.strategies:Clean",
        attack=None,
        summary="Plain cross-entropy on clean images",
    )
    yield StrategySpec(
        name="adversarial-ce",
        target="advdistill_finetuning.strategies:AdversarialCE",
        attack="labels",
        summary="Adversarial training: cross-entropy on adversarial images",
        reference="https://arxiv.org/abs/1706.06083",
    )
