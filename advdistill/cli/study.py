"""`advdistill study`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advdistill.cli.options import Json, PluginFiles, registry_with
from advdistill.cli.output import print_json
from advdistill.errors import UsageError

if TYPE_CHECKING:
    from advdistill.study.cells import Plan, Unit

LAUNCHERS = ("local", "ray", "slurm")


def study(
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="A study: a file, or the name of one.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]…", help="The study's own keys, or settings of every cell's recipe."),
    ] = None,
    launcher: Annotated[str, typer.Option(help=f"Who does the work: {', '.join(LAUNCHERS)}.")] = "local",
    jobs: Annotated[int, typer.Option(min=0, help="Runs at a time on a machine; 0: one for each core.")] = 0,
    home: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Folder of all studies; runs that they share lie in it once.")
    ] = Path("runs/studies"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run; begin nothing.")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Run cells anew whose recipes have changed.")
    ] = False,
    json: Json = False,
    plugin: PluginFiles = None,
) -> None:
    """Run a matrix of recipes times seeds, and end in tables.

    Every cell is trained without sight of the test data, and measured on it once all choices are made. What is finished
    is skipped, a cell that fails loses no other, and the same command goes on where it was stopped.

    Examples:
    advdistill study apd_modalities
    advdistill study my_study.yaml seeds=[0,1,2] data.root=/data/caltech-101 student.model=ViT-B-16-quickgelu
    advdistill study my_study.yaml --launcher ray --jobs 8
    """
    from advdistill.recipe.study import load_study
    from advdistill.study.cells import Plan

    if file is None:
        raise UsageError("which study?", "give a file, or the name of one that ships: advdistill study apd_modalities")
    if launcher not in LAUNCHERS:
        raise UsageError(f"there is no launcher {launcher!r}", f"choose one of: {', '.join(LAUNCHERS)}")
    registry = registry_with(plugin)
    plan = Plan(load_study(file, registry, overrides or ()), registry, home, plugin or ())
    if dry_run:
        _foretell(plan, json)
        return
    from advdistill.study import launchers
    from advdistill.study.run import run

    found = run(plan, {"local": launchers.Local, "ray": launchers.Ray}[launcher](jobs), _told, accept_changes)
    for title, why in found.failed.items():
        typer.echo(f"failed: {title}: {why}", err=True)


def _foretell(plan: Plan, json: bool) -> None:
    """What the study comes to."""
    trials = [unit for _, units in plan.trials() for unit in units]
    cells = plan.cells({})
    said = {
        "study": plan.study.name,
        "needs": {unit.title: unit.finished for unit in plan.needs()},
        "trials": {"all": len(trials), "finished": sum(unit.finished for unit in trials)},
        "cells": {"all": len(cells), "finished": sum(cell.unit.finished for cell in cells)},
    }
    print_json(said)


def _told(stage: str, number: int, total: int, unit: Unit, why: str, seconds: float) -> None:
    typer.echo(f"{stage} {number}/{total}  {unit.title}  {why or 'done'}  ({seconds:.0f} s)", err=True)
