"""Classical adversarial robustness distillation from one robust teacher, in CLIP form."""

from __future__ import annotations

from collections.abc import Iterator

from advdistill import StrategySpec, hookimpl


@hookimpl
def advdistill_strategies() -> Iterator[StrategySpec]:
    yield StrategySpec(
        name="ard",
        target="advdistill_classic.strategies:ARD",
        config="advdistill_classic.configs:ARD",
        teachers={"robust": "robust; sees clean images"},
        attack="labels",
        summary="Adversarially Robust Distillation: soft labels of clean images for adversarial ones",
        reference="https://arxiv.org/abs/1905.09747",
    )
    yield StrategySpec(
        name="rslad",
        target="advdistill_classic.strategies:RSLAD",
        config="advdistill_classic.configs:RSLAD",
        teachers={"robust": "robust; sees clean images"},
        attack="objective",
        summary="Robust Soft Label Adversarial Distillation: the teacher's soft labels in attack and loss",
        reference="https://arxiv.org/abs/2108.07969",
    )
    yield StrategySpec(
        name="iad",
        target="advdistill_classic.strategies:IAD",
        config="advdistill_classic.configs:IAD",
        teachers={"robust": "robust; sees clean (IAD-I) or adversarial images (IAD-II)"},
        optional={"clean": "accurate; sees adversarial images, and makes it IAD-II"},
        attack="labels",
        summary="Introspective Adversarial Distillation: a teacher trusted as far as it withstands the attack",
        reference="https://arxiv.org/abs/2106.04928",
    )
    yield StrategySpec(
        name="adaad",
        target="advdistill_classic.strategies:AdaAD",
        config="advdistill_classic.configs:AdaAD",
        teachers={"robust": "robust; sees adversarial images, and takes part in the attack"},
        attack="objective",
        summary="Adaptive Adversarial Distillation: attack where teacher and student differ most",
        reference="https://openaccess.thecvf.com/content/CVPR2023/html/"
        "Huang_Boosting_Accuracy_and_Robustness_of_Student_Models_via_Adaptive_Adversarial_CVPR_2023_paper.html",
    )
