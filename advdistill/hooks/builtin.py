"""What the host itself offers, through the same hooks as everyone."""

from __future__ import annotations

from collections.abc import Iterable

from advdistill.hooks.hookspecs import hookimpl
from advdistill.hooks.specs import TeacherSpec


@hookimpl
def advdistill_teachers() -> Iterable[TeacherSpec]:
    yield TeacherSpec(
        name="checkpoint",
        target="advdistill.engine.checkpoint:CheckpointTeacher",
        config="advdistill.recipe.model:CheckpointConfig",
        summary="The model that an advdistill checkpoint holds",
    )
