"""The eight hooks of advdistill. Each yields specs; none registers, imports torch, or does work.

A plugin is a module named in the entry-point group `advdistill`, or a single file given with `--plugin`. It implements
any of these hooks; every example below is a whole plugin.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pluggy

from advdistill.hooks.specs import (
    AttackSpec,
    CommandSpec,
    DatasetSpec,
    ReporterSpec,
    StrategySpec,
    StudentSpec,
    TeacherSpec,
)

hookspec = pluggy.HookspecMarker("advdistill")
hookimpl = pluggy.HookimplMarker("advdistill")


@hookspec
def advdistill_teachers() -> Iterable[TeacherSpec]:  # type: ignore[empty-body]
    """Models that can stand as teachers. What `advdistill_students` yields can teach too and need not be repeated.

    Example:
        ```python
        from advdistill import TeacherSpec, hookimpl

        @hookimpl
        def advdistill_teachers():
            yield TeacherSpec(
                name="siglip",
                target="my_siglip.model:Siglip",
                config="my_siglip.configs:SiglipConfig",
                summary="A frozen SigLIP",
            )
        ```
    """


@hookspec
def advdistill_students() -> Iterable[StudentSpec]:  # type: ignore[empty-body]
    """Models with something to learn.

    Example:
        ```python
        from advdistill import StudentSpec, hookimpl

        @hookimpl
        def advdistill_students():
            yield StudentSpec(
                name="clip-bias",
                target="my_students.bias:BiasOnly",
                config="my_students.configs:BiasConfig",
                summary="CLIP with only its biases learning",
            )
        ```
    """


@hookspec
def advdistill_attacks() -> Iterable[AttackSpec]:  # type: ignore[empty-body]
    """Attacks on pixels, with the norms they respect and whether they can maximise any objective.

    Example:
        ```python
        from advdistill import AttackSpec, hookimpl

        @hookimpl
        def advdistill_attacks():
            yield AttackSpec(
                name="mi-fgsm",
                target="my_attacks.momentum:MomentumFGSM",
                config="my_attacks.configs:MomentumConfig",
                norms={"linf"},
                objective=True,
                summary="FGSM with momentum",
                reference="https://arxiv.org/abs/1710.06081",
            )
        ```
    """


@hookspec
def advdistill_strategies() -> Iterable[StrategySpec]:  # type: ignore[empty-body]
    """Training methods, with the teacher roles they need and what they ask of the attack.

    Example:
        ```python
        from advdistill import StrategySpec, hookimpl

        @hookimpl
        def advdistill_strategies():
            yield StrategySpec(
                name="rslad",
                target="my_methods.rslad:RSLAD",
                config="my_methods.configs:RSLADConfig",
                teachers={"robust": "an adversarially trained model"},
                attack="objective",
                reference="https://arxiv.org/abs/2108.07969",
            )
        ```
    """


@hookspec
def advdistill_datasets() -> Iterable[DatasetSpec]:  # type: ignore[empty-body]
    """Images with labels, class names and splits.

    Example:
        ```python
        from advdistill import DatasetSpec, hookimpl

        @hookimpl
        def advdistill_datasets():
            yield DatasetSpec(
                name="leaves", target="my_data.leaves:Leaves", config="my_data.configs:LeavesConfig", summary="Leaves"
            )
        ```
    """


@hookspec
def advdistill_reporters() -> Iterable[ReporterSpec]:  # type: ignore[empty-body]
    """Observers of a run's events.

    Example:
        ```python
        from advdistill import ReporterSpec, hookimpl

        @hookimpl
        def advdistill_reporters():
            yield ReporterSpec(name="csv", target="my_reports.csv:CsvReporter", summary="One CSV row per step")
        ```
    """


@hookspec
def advdistill_recipe_dirs() -> Iterable[Path]:  # type: ignore[empty-body]
    """Folders whose `*.yaml` files can be named without a path.

    Example:
        ```python
        from pathlib import Path

        from advdistill import hookimpl

        @hookimpl
        def advdistill_recipe_dirs():
            yield Path("my_package") / "recipes"
        ```
    """


@hookspec
def advdistill_commands() -> Iterable[CommandSpec]:  # type: ignore[empty-body]
    """Subcommands of `advdistill`; the function is imported when the command is called.

    Example:
        ```python
        from advdistill import CommandSpec, hookimpl

        @hookimpl
        def advdistill_commands():
            yield CommandSpec(name="leaderboard", target="my_tools.board:leaderboard", summary="Rank runs in a folder")
        ```
    """


YIELDS: dict[str, type] = {
    "advdistill_teachers": TeacherSpec,
    "advdistill_students": StudentSpec,
    "advdistill_attacks": AttackSpec,
    "advdistill_strategies": StrategySpec,
    "advdistill_datasets": DatasetSpec,
    "advdistill_reporters": ReporterSpec,
    "advdistill_recipe_dirs": Path,
    "advdistill_commands": CommandSpec,
}
"""What each hook yields; the manager holds plugins to it."""
