"""Several teachers: MMT-ARD (arXiv 2511.17448) with every weighting, and MTARD, B-MTARD and CIARD."""

from __future__ import annotations

from collections.abc import Iterator

from advdistill import StrategySpec, hookimpl

TWO = {"clean": "accurate; sees clean images", "robust": "robust; sees adversarial images"}


@hookimpl
def advdistill_strategies() -> Iterator[StrategySpec]:
    yield StrategySpec(
        name="mmt-ard",
        target="advdistill_mmt_ard.strategy:MMTARD",
        config="advdistill_mmt_ard.configs:MMTARD",
        check="advdistill_mmt_ard.checks:mmt_ard",
        teachers=TWO,
        optional={"*": "any further teacher; sees clean images unless `views` says otherwise"},
        attack="objective",
        summary="Multimodal Multi-Teacher Adversarial Robust Distillation, any number of teachers",
        reference="https://arxiv.org/abs/2511.17448",
    )
    yield StrategySpec(
        name="mtard",
        target="advdistill_mmt_ard.mtard:MTARD",
        config="advdistill_mmt_ard.configs:MTARD",
        teachers=TWO,
        attack="labels",
        summary="Two teachers weighted by how far their losses have fallen",
        reference="https://github.com/zhaoshiji123/MTARD",
    )
    yield StrategySpec(
        name="b-mtard",
        target="advdistill_mmt_ard.mtard:BMTARD",
        config="advdistill_mmt_ard.configs:BMTARD",
        teachers=TWO,
        attack="labels",
        summary="MTARD with teachers' temperatures that balance their entropies",
        reference="https://arxiv.org/abs/2306.16170",
    )
    yield StrategySpec(
        name="ciard",
        target="advdistill_mmt_ard.ciard:CIARD",
        config="advdistill_mmt_ard.configs:CIARD",
        trains={"robust"},
        teachers={
            "clean": "accurate; sees both images, and the student is pushed off its errors",
            "robust": "robust; sees adversarial images; may learn alongside",
        },
        attack="labels",
        summary="Two teachers, a push off the clean one's errors, a robust one that learns on",
        reference="https://arxiv.org/abs/2509.12633",
    )
