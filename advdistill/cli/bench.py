"""`advdistill bench`: what a recipe's step costs here, or every method's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advdistill.cli.options import Json, Overrides, PluginFiles, complete_recipe, registry_with
from advdistill.cli.output import print_columns, print_json
from advdistill.errors import UsageError

if TYPE_CHECKING:
    from advdistill.engine.bench import Failed, Inference, Loading, Measured
    from advdistill.hooks.registry import Registry


def bench(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]", help="A file, or a name from `recipe list`.", autocompletion=complete_recipe
        ),
    ] = None,
    overrides: Overrides = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every method instead, by its recipe on the embedded digits.")
    ] = False,
    backbone: Annotated[
        str, typer.Option(metavar="NAME", help="With --all: all models on this open_clip architecture, random weights.")
    ] = "",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Need no downloaded weights: a step costs the same.")
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are measured, after two for warming up.")] = 5,
    data: Annotated[
        bool, typer.Option("--data", help="Say instead whether loading or computing is the limit, and what to set.")
    ] = False,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw seconds a step by phase (.png, .pdf, .svg).")
    ] = None,
    json: Json = False,
    plugin: PluginFiles = None,
) -> None:
    """Measure what a step of a recipe costs on this machine, phase by phase, and how far it is from its floor.

    Steps are real ones of the recipe; nothing is evaluated and nothing is written. Random images take the place of data
    that is not there.

    Examples:
    advdistill bench quickstart
    advdistill bench apd_vitb16 train.batch_size=8 --random-weights
    advdistill bench --all --chart cost.png
    advdistill bench --all --backbone ViT-B-32 train.batch_size=8 --json
    advdistill bench recipes/mmt_ard_vitb32.yaml data.root=/data/imagenet --data
    """
    words = list(overrides or ())
    if every and recipe is not None:
        if "=" not in recipe:
            raise UsageError("--all measures every method; it takes no recipe", "leave out --all, or the recipe")
        words.insert(0, recipe)
    if not every and recipe is None:
        raise UsageError("which recipe?", "`advdistill recipe list` shows those that have names; or give --all")
    if backbone and not every:
        raise UsageError("--backbone goes with --all", "override the recipe's own: student.model=NAME")
    if data and (every or chart):
        raise UsageError("--data looks at one recipe and draws nothing", "leave out --all and --chart")
    from advdistill.engine import bench as engine

    if chart is not None:
        from advdistill.engine.pictures import writable

        writable(chart)
    registry = registry_with(plugin)
    if every:
        _all(words, backbone, registry, random_weights, steps, chart, json)
        return
    from advdistill.recipe.resolve import load_recipe

    assert recipe is not None
    resolved = load_recipe(recipe, words, plugins=plugin or ())
    registry = registry_with(resolved.plugin_hashes)
    if random_weights:
        resolved = engine.random_weights(resolved, registry)
    if data:
        rates = engine.loading(resolved, registry, steps)
        print_json(rates.to_json()) if json else _tell_loading(rates)
        return
    found = engine.measure(resolved, registry, steps)
    print_json(found.to_json()) if json else _tell(found)
    if chart is not None:
        _draw([found], chart)


def _all(
    words: list[str], backbone: str, registry: Registry, random: bool, steps: int, chart: Path | None, json: bool
) -> None:
    """One row a method. A method that fails is a row too, and exit code 1 in the end."""
    from advdistill.engine import bench as engine

    rows: list[Measured | Failed] = []
    recipes = engine.methods(registry, words, backbone)
    for number, recipe in enumerate(recipes, 1):
        typer.echo(f"{number}/{len(recipes)} {recipe.strategy.use}", err=True)
        if random:
            recipe = engine.random_weights(recipe, registry)
        rows.append(engine.attempt(recipe, registry, steps))
    measured = [row for row in rows if isinstance(row, engine.Measured)]
    cheapest = min((row.seconds for row in measured), default=0.0)
    if json:
        print_json([_with_ratio(row, cheapest) for row in rows])
    else:
        _print("", *_compared(rows, cheapest))
        for where in dict.fromkeys(row.where for row in measured):
            typer.echo(f"{where}; medians of {steps} steps\n{engine.FLOOR}")
        for row in measured:
            for note in row.notes:
                typer.echo(f"note: {row.method}: {note}", err=True)
    if chart is not None and measured:
        _draw(measured, chart)
    if len(measured) < len(rows):
        raise typer.Exit(1)


def _with_ratio(row: Measured | Failed, cheapest: float) -> dict[str, object]:
    from advdistill.engine.bench import Measured

    more = {"ratio_to_cheapest": row.seconds / cheapest} if isinstance(row, Measured) else {}
    return {**row.to_json(), **more}


def _draw(measured: Sequence[Measured], path: Path) -> None:
    from advdistill.engine.pictures import cost_figure, save

    save(cost_figure([(row.method, row.phases) for row in measured]), path)


def _tell(found: Measured) -> None:
    """A table of phases and what else a user asks; what to know about it on stderr."""
    from advdistill.engine.bench import FLOOR, ordered

    estimated = found.flops is not None and found.rate is not None
    header = ["phase", "s/step", "share", "floor s", *(["estimated s"] if estimated else [])]
    total = sum(found.phases.values())
    cells = []
    for phase in ordered([found.phases]):
        estimate = found.estimate(phase)
        cells.append(
            [
                phase,
                _seconds(found.phases[phase]),
                f"{100 * found.phases[phase] / total:.1f} %",
                _seconds(found.floor.get(phase)),
                *([_seconds(estimate or None)] if estimated else []),
            ]
        )
    estimates = [found.estimate(phase) or 0.0 for phase in found.flops or ()]
    whole = [_seconds(sum(estimates))] if estimated else []
    cells.append(["step", _seconds(found.seconds), "", _seconds(sum(found.floor.values())), *whole])
    _print(f"{found.name}: {found.method}, {found.size} images a step; {found.where}", header, cells)
    learn = ", ".join(f"{role} {a:,} of {b:,}" for role, (a, b) in found.learns.items() if a)
    lines = [
        ("training", f"{found.images_per_second:,.1f} images/s, {found.to_floor:.2f} x its floor"),
        ("memory", f"{_size(found.memory)} at its peak ({found.memory_of})"),
        ("learns", f"{learn} parameters"),
        ("hardened", _answers(found.hardened)),
        ("undefended", _answers(found.plain)),
    ]
    if found.flops is not None and found.rate and found.utilisation is not None:
        counted, share = f"{sum(found.flops.values()) / 1e9:,.1f} GFLOP a step", f"{100 * found.utilisation:.0f} %"
        rate = f"a matrix product's rate here, {found.rate / 1e9:,.0f} GFLOP/s"
        lines.append(("arithmetic", f"{counted}, {share} of {rate}"))
    for head, text in lines:
        typer.echo(f"{head.ljust(10)}  {text}")
    typer.echo(f"medians of {found.steps} steps\n{FLOOR}")
    if estimated:
        typer.echo("estimated: FLOPs counted without running, at the rate of a matrix product")
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)


def _compared(rows: Sequence[Measured | Failed], cheapest: float) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of all methods."""
    from advdistill.engine.bench import Measured, ordered

    measured = [row for row in rows if isinstance(row, Measured)]
    teachers = dict.fromkeys(phase for row in measured for phase in row.phases if phase.endswith(" teacher"))
    phases = [phase for phase in ordered([row.phases for row in measured]) if phase not in teachers]
    heads = [*phases, *(["teachers"] if teachers else [])]
    header = [
        "method",
        "s/step",
        "x cheapest",
        "x floor",
        "images/s",
        *(f"{head} %" for head in heads),
        "peak",
        "learns",
    ]
    cells = []
    for row in rows:
        if not isinstance(row, Measured):
            cells.append([row.method, "failed", *[""] * (len(header) - 3), row.why])
            continue
        total = sum(row.phases.values())
        shares = [row.phases.get(phase, 0.0) for phase in phases]
        shares += [sum(row.phases.get(phase, 0.0) for phase in teachers)] if teachers else []
        cells.append(
            [
                row.method,
                _seconds(row.seconds),
                f"{row.seconds / cheapest:.1f}",
                f"{row.to_floor:.2f}",
                f"{row.images_per_second:,.0f}",
                *(f"{100 * share / total:.0f}" for share in shares),
                _size(row.memory),
                f"{sum(learns for learns, _ in row.learns.values()):,}",
            ]
        )
    return header, cells


def _print(title: str, header: list[str], cells: list[list[str]]) -> None:
    """A table: drawn on a terminal, plain columns in a pipe."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        if title:
            typer.echo(title)
        print_columns(header, cells)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(Text(name), justify="right" if number else "left")
    for line in cells:
        table.add_row(*map(Text, line), style="bold" if line[0] == "step" else "")
    console.print(table)


def _tell_loading(found: Loading) -> None:
    kept = "kept in memory" if found.kept else "decoded every epoch"
    lines = [
        ("computing", f"{found.computing:,.0f} images/s"),
        ("loading", f"{found.first:,.0f} images/s in the first epoch, {found.later:,.0f} in later ones ({kept})"),
        ("augmenting", f"{found.augmenting:,.0f} images/s, which is part of loading"),
        ("workers", f"{found.workers}"),
        ("limit", f"{found.limit}: {found.advice}"),
    ]
    for head, text in lines:
        typer.echo(f"{head.ljust(10)}  {text}")


def _answers(of: Inference) -> str:
    return f"{1e3 * of.latency:,.2f} ms for one image, {of.throughput:,.0f} images/s {of.batch} at a time"


def _seconds(value: float | None) -> str:
    """Three digits; nothing for None."""
    return "" if value is None else f"{value:.4f}" if value < 1 else f"{value:.2f}"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
