"""`advdistill study`."""

from __future__ import annotations

import contextlib
import signal
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advdistill.cli.options import Json, PluginFiles, complete_study, registry_with
from advdistill.cli.output import print_columns, print_json
from advdistill.errors import MissingData, RunError, UsageError, UserError, did_you_mean
from advdistill.hooks.registry import default_registry

if TYPE_CHECKING:
    from advdistill.study.cells import Plan, Row, Unit
    from advdistill.study.run import Chosen, Found

LAUNCHERS = ("local", "ray", "slurm")


def study(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            help="A study: a file, or the name of one; none: list those.",
            autocompletion=complete_study,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]…", help="The study's own keys, or settings of every cell's recipe."),
    ] = None,
    launcher: Annotated[
        str,
        typer.Option(
            help=f"Who does the work: {', '.join(LAUNCHERS)}.",
            autocompletion=lambda incomplete: [name for name in LAUNCHERS if name.startswith(incomplete)],
        ),
    ] = "local",
    jobs: Annotated[
        int, typer.Option(min=0, help="Runs at a time on a machine (with slurm: in all); 0: one a GPU, or else a core.")
    ] = 0,
    sbatch: Annotated[
        str, typer.Option(metavar="OPTIONS", help='With slurm: options of its jobs, like "--gpus=1 --time=1:00:00".')
    ] = "",
    home: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Folder of all studies; runs that they share lie in it once.")
    ] = Path("runs/studies"),
    task: Annotated[
        str,
        typer.Option(
            metavar="STAGE:NUMBER", help="One run alone: needs:0, trials:0, cells:0 and so on; tables: those alone."
        ),
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run; begin nothing.")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Run cells anew whose recipes have changed.")
    ] = False,
    json: Json = False,
    plugin: PluginFiles = None,
) -> None:
    """Run a matrix of recipes times seeds, and end in tables.

    Every cell is trained without sight of the test data, and measured on it once all choices are made. What is finished
    is skipped, a cell that fails loses no other, and the same command goes on where it was stopped. The folder
    DIR/STUDY gets study.md, study.csv and study.png; runs lie in DIR/cells, each with a log.txt.

    Examples:
    advdistill study
    advdistill study apd_modalities --dry-run
    advdistill study my_study.yaml seeds=[0,1,2] data.root=/data/caltech-101 student.model=ViT-B-16-quickgelu
    advdistill study my_study.yaml --launcher ray --jobs 8
    advdistill study my_study.yaml --launcher slurm --sbatch "--gpus=1 --time=1:00:00"
    """
    from advdistill.recipe.study import load_study
    from advdistill.study.cells import Plan

    if file is None:
        _list(json)
        return
    if launcher not in LAUNCHERS:
        close = did_you_mean(launcher, LAUNCHERS)
        raise UsageError(f"there is no launcher {launcher!r}{close}", f"choose one of: {', '.join(LAUNCHERS)}")
    if sbatch and launcher != "slurm":
        raise UsageError("--sbatch is for --launcher slurm", "leave it out")
    if task and (dry_run or launcher != "local"):
        raise UsageError("--task does one thing here; it takes no --launcher and no --dry-run", "leave them out")
    registry = registry_with(plugin)
    plan = Plan(load_study(file, registry, overrides or ()), registry, home, plugin or ())
    if dry_run:
        _foretell(plan, jobs, json)
    elif launcher == "slurm":
        words = ["study", file, *(overrides or ()), "--dir", str(home), *_given("--plugin", plugin)]
        if not accept_changes:
            from advdistill.study.run import refuse_changes

            refuse_changes(plan)
        _queue(plan, words, sbatch, jobs, json)
    elif task == "tables":
        from advdistill.study.run import collect

        _conclude(collect(plan), json)
    elif task:
        _do_one(plan, task)
    else:
        _run(plan, launcher, jobs, accept_changes, json)


def _given(option: str, values: Sequence[str] | None) -> list[str]:
    return [word for value in values or () for word in (option, value)]


def _list(json: bool) -> None:
    """The studies that can be named without a path."""
    from advdistill.recipe.loader import read_recipe, recipe_files
    from advdistill.recipe.study import FOLDER

    registry, found = default_registry(), []
    for path, dist in recipe_files(registry, FOLDER):
        try:
            title = read_recipe(path, registry, FOLDER).at(("title",))
        except UserError as error:
            title, said = None, f"cannot be read: {error.message.partition(chr(10))[0]}"
        else:
            said = str(title.value) if title else ""
        found.append({"name": path.stem, "dist": dist, "path": str(path), "title": said})
    if json:
        print_json(found)
    else:
        print_columns(("NAME", "FROM", "QUESTION"), [(row["name"], row["dist"], row["title"]) for row in found])


def _run(plan: Plan, launcher: str, jobs: int, accept_changes: bool, json: bool) -> None:
    from advdistill.cli.watching import watching
    from advdistill.study import launchers
    from advdistill.study.run import run

    with _terminated():
        who = {"local": launchers.Local, "ray": launchers.Ray}[launcher](jobs)
        with contextlib.closing(who), watching() as watcher:
            found = run(plan, who, watcher, accept_changes)
        _conclude(found, json)  # workers that still held a GPU's memory would be in its way


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM is Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _conclude(found: Found, json: bool) -> None:
    """Write the tables, show the main one, and name what is not in it."""
    from advdistill.cli.progress import progress
    from advdistill.study import report
    from advdistill.study.run import units

    with progress() as told:
        written = report.write(found, told)
    summary = report.summary(found)
    if json:
        print_json({**summary, "written": [str(path) for path in written]})
    else:
        _show(summary)
        for path in written:
            typer.echo(str(path), err=True)
    titles = {unit.title: unit for unit in units(found)}
    for title, why in found.failed.items():
        log = f"\n  more in {titles[title].folder}/log.txt" if title in titles else ""
        typer.echo(f"failed: {title}: {why}{log}", err=True)
    for title in found.missing:
        typer.echo(f"missing: {title}", err=True)
    for line in _lacking(found.lacks, found.plan.left_out(found.cells)):
        typer.echo(line, err=True)
    lacks = sum(map(len, found.lacks.values()))
    if lacks and not (found.cells or found.failed or found.missing):
        raise MissingData("none of the data are there", "`advdistill data list` says how to come by them")
    if found.failed or found.missing or lacks:
        cannot = f", {lacks} rows lack data" if lacks else ""
        raise RunError(
            f"{len(found.failed)} failed, {len(found.missing)} more missing{cannot}; the tables hold the others",
            "the same command tries them again",
        )


def _lacking(lacks: Mapping[str, Sequence[str]], left_out: Mapping[str, str]) -> Iterator[str]:
    """What cannot be run or measured for want of data, a line for each data set."""
    for why, rows in lacks.items():
        more = f" and {len(rows) - 2} more" if len(rows) > 2 else ""
        yield f"cannot be run: {', '.join(rows[:2])}{more}: {why}"
    for scope, why in left_out.items():
        yield f"not measured: {scope}: {why}"


def _show(summary: dict[str, Any]) -> None:
    """The clean and the main column, and the differences in words."""
    clean, main = str(summary["clean"]), str(summary["main"])
    lines, words = [], []
    for row in summary["rows"]:
        shares = [_percent(row["columns"].get(name)) for name in (clean, main)]
        lines.append((row["name"], *shares, str(len(row["seeds"]))))
        for each in row["differences"].values():
            words.append(f"{row['name']} against {each['against']}: {each.get('words') or each.get('why')}")
    typer.echo(f"{summary['title'] or summary['study']}\naccuracy in % [95 % interval over seeds and samples]\n")
    print_columns(("ROW", clean, main, "SEEDS"), lines)
    for line in words:
        typer.echo(line)


def _percent(column: dict[str, Any] | None) -> str:
    if column is None:
        return "–"
    low, high = column["interval95"]
    return f"{100 * column['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _do_one(plan: Plan, name: str) -> None:
    """One unit, in this process; also what a task of an array does."""
    from advdistill.cli.watching import came_to
    from advdistill.study.run import Stopped, task
    from advdistill.study.work import INTERRUPTED, attempt

    unit = task(plan, name)
    if unit.finished:
        typer.echo(f"{unit.title} is finished already: {came_to(unit)}")
        return
    with _terminated():
        why = attempt(unit)
    if why == INTERRUPTED:
        raise Stopped(f"{unit.title}: stopped; what it has is saved", "the same command goes on")
    if why:
        raise RunError(f"{unit.title}: {why}", f"more in {unit.folder}/log.txt; the same command tries again")
    typer.echo(f"{unit.title}: {came_to(unit)}")


def _queue(plan: Plan, words: Sequence[str], options: str, jobs: int, json: bool) -> None:
    from advdistill.study import slurm

    written = slurm.write(plan, words, options, jobs)
    if json:
        print_json([str(path) for path in written])
        return
    for path in written:
        typer.echo(str(path))
    typer.echo(f"nothing has begun; put it in SLURM's queue with: sh {written[-1]}", err=True)


def _foretell(plan: Plan, jobs: int, json: bool) -> None:
    """What the study comes to, and how far it is."""
    from advdistill.cli.watching import duration
    from advdistill.study.run import chosen, known_cells, trials

    tries, winners = trials(plan), chosen(plan)
    cells = known_cells(plan, winners)
    every = plan.cells({name: won.words for name, won in winners.items()})
    waiting = {cell.row.name for cell in every if not cell.unit.finished}
    left_out = plan.left_out(every)
    lacks: dict[str, list[str]] = {}
    for name, why in plan.lacks.items():
        if name in waiting:
            lacks.setdefault(why, []).append(name)
    stages = {
        "needs": (needs := plan.needs(), len(needs)),
        "trials": (tries, len(tries)),
        "cells": ([cell.unit for cell in cells], len(every)),
    }
    finished = {name: sum(unit.finished for unit in units) for name, (units, _) in stages.items()}
    able = {"needs": needs, "trials": tries, "cells": [cell.unit for cell in every]}
    left = {name: sum(unit.waits for unit in units) for name, units in able.items()}
    seconds = _seconds({name: units for name, (units, _) in stages.items()}, left, jobs)
    if json:
        print_json(
            {
                "study": plan.study.name,
                **{name: {"all": size, "finished": finished[name]} for name, (_, size) in stages.items()},
                "rows": {
                    row.name: {"recipe": row.source, "configurations": len(row.configurations),
                               "chosen": list(winners[row.name].words) if row.name in winners else []}
                    for row in plan.rows
                },
                "lacks": lacks,
                "left_out": left_out,
                "seconds_left": seconds,
            }
        )  # fmt: skip
        return
    if plan.study.model.title:
        typer.echo(f"{plan.study.model.title}\n")
    print_columns(("STAGE", "RUNS", "FINISHED"), [(n, str(size), str(finished[n])) for n, (_, size) in stages.items()])
    rows = [(row.name, row.source, _tuning(row, winners)) for row in plan.rows]
    typer.echo("")
    print_columns(("ROW", "RECIPE", "TUNING"), rows)
    typer.echo("")
    if lines := list(_lacking(lacks, left_out)):
        typer.echo("\n".join([*lines, "`advdistill data list` says how to come by data that are missing", ""]))
    if seconds is None:
        typer.echo("time left: not known before a run is finished")
    else:
        typer.echo(f"time left: about {duration(seconds)}, as long as those that are finished have taken")
    typer.echo(f"tables go to {plan.folder}; runs lie in {plan.home / 'cells'}")


def _tuning(row: Row, winners: Mapping[str, Chosen]) -> str:
    if not row.tuned:
        return ""
    chosen = f"chosen: {' '.join(winners[row.name].words)}" if row.name in winners else "none chosen yet"
    return f"{len(row.configurations)} configurations, {chosen}"


def _seconds(stages: Mapping[str, Sequence[Unit]], left: Mapping[str, int], jobs: int) -> float | None:
    """What is left, and can be run, may take: as long a run of a stage as its finished ones have taken, or those of the
    other stages where it has none; None where nobody knows."""
    from advdistill.study.launchers import at_once

    taken = {name: [t for unit in units if (t := _taken(unit))] for name, units in stages.items()}
    every = [t for times in taken.values() for t in times]
    if not any(left.values()):
        return 0.0
    if not every:
        return None
    work = sum(count * statistics.median(taken[name] or every) for name, count in left.items() if count)
    return work / min(jobs or at_once(), max(left.values()))


def _taken(unit: Unit) -> float:
    """Seconds that a finished run took, to train and to measure."""
    facts = unit.facts() if unit.measured else {}
    times = [facts.get("trained here for"), facts.get("measured here for")]
    return sum(float(each) for each in times if isinstance(each, (int, float)))
