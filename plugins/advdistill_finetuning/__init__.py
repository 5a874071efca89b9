"""Robust fine-tuning: what every distillation is measured against, and what stays close to the model it came from."""

from __future__ import annotations

from collections.abc import Iterator

from advdistill import StrategySpec, hookimpl

ORIGINAL = "the model before fine-tuning, frozen"


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
    yield StrategySpec(
        name="tecoa",
        target="advdistill_finetuning.strategies:AdversarialCE",
        check="advdistill_finetuning.checks:tecoa",
        attack="labels",
        summary="TeCoA: adversarial cross-entropy against class features that stay as they are",
        reference="https://arxiv.org/abs/2212.07016",
    )
    yield StrategySpec(
        name="trades",
        target="advdistill_finetuning.strategies:TRADES",
        config="advdistill_finetuning.configs:TRADES",
        check="advdistill_finetuning.checks:trades",
        attack="objective",
        summary="Clean cross-entropy, and adversarial images said to be what the clean ones are",
        reference="https://arxiv.org/abs/1901.08573",
    )
    yield StrategySpec(
        name="fare",
        target="advdistill_finetuning.strategies:FARE",
        config="advdistill_finetuning.configs:FARE",
        check="advdistill_finetuning.checks:fare",
        teachers={"original": f"{ORIGINAL}; its features are kept"},
        attack="objective",
        summary="Adversarial images keep the features of clean ones, without labels or text; also Sim-CLIP's cosine",
        reference="https://arxiv.org/abs/2402.12336",
    )
    yield StrategySpec(
        name="pmg-aft",
        target="advdistill_finetuning.strategies:PMGAFT",
        config="advdistill_finetuning.configs:PMGAFT",
        teachers={"original": f"{ORIGINAL}; sees adversarial images"},
        attack="labels",
        summary="Adversarial cross-entropy, guided by the original model and by the student's clean predictions",
        reference="https://arxiv.org/abs/2401.04350",
    )
    yield StrategySpec(
        name="agft",
        target="advdistill_finetuning.strategies:AGFT",
        config="advdistill_finetuning.configs:AGFT",
        teachers={"original": f"{ORIGINAL}; sees clean images"},
        attack="objective",
        summary="Alignment-guided fine-tuning: attack and loss against the original model's softened predictions",
        reference="https://arxiv.org/abs/2603.29410",
    )
    yield StrategySpec(
        name="hpt-gpd",
        target="advdistill_finetuning.strategies:HPTGPD",
        config="advdistill_finetuning.configs:HPTGPD",
        teachers={"proxy": "an undefended CLIP of another architecture, which the student's adversarial images miss"},
        optional={"original": f"{ORIGINAL}; anchors the warm-up; without it the proxy does"},
        attack="labels",
        summary="A vanilla CLIP of another architecture as the robust teacher, after an anchored warm-up",
        reference="https://arxiv.org/abs/2601.12865",
    )
