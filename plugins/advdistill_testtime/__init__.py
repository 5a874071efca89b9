"""Defences that act at test time, as models to be attacked."""

from __future__ import annotations

from collections.abc import Iterable

from advdistill import TeacherSpec, hookimpl


@hookimpl
def advdistill_teachers() -> Iterable[TeacherSpec]:
    yield TeacherSpec(
        name="ttc",
        target="advdistill_testtime.ttc:TTC",
        config="advdistill_testtime.configs:TTC",
        summary="A counterattack on every image before it is classified (TTC)",
        reference="https://arxiv.org/abs/2503.03613",
    )
    yield TeacherSpec(
        name="r-tpt",
        target="advdistill_testtime.rtpt:RTPT",
        config="advdistill_testtime.configs:RTPT",
        summary="Text prompts tuned on augmented views of every image, whose answers are weighted (R-TPT)",
        reference="https://arxiv.org/abs/2504.11195",
    )
    yield TeacherSpec(
        name="clipure-cos",
        target="advdistill_testtime.clipure:ClipureCos",
        config="advdistill_testtime.configs:ClipureCos",
        summary="Image features moved towards those of a blank sentence (CLIPure-Cos)",
        reference="https://arxiv.org/abs/2502.18176",
    )
