"""`advdistill compare`: what differs between stored evaluations, and what could not have been seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advdistill.cli.options import Json
from advdistill.cli.output import print_columns, print_json
from advdistill.errors import UsageError

if TYPE_CHECKING:
    from advdistill.engine.compare import Comparison, Row

CAPTION = """p: McNemar's exact test where there is one run each, else the bootstrap's; Holm: over all rows.
In words: at the 5 % level after Holm; what could not have been seen: with 80 % power, before Holm."""


def compare(
    evaluations: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]PATH[,PATH…]",
            help="Folders or files of `evaluate`; a comma between seeds of one method.",
        ),
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this column; may be given several times.")
    ] = None,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Each with each, not the first with all.")] = False,
    per_class: Annotated[bool, typer.Option("--per-class", help="Every column once more in each class.")] = False,
    despite: Annotated[
        str, typer.Option(metavar="FIELD,…", help="What protocols may differ in, because it belongs to the method.")
    ] = "",
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw clean against robust accuracy (.png, .pdf, .svg).")
    ] = None,
    shots: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw accuracy over training images per class, a line a recipe."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare evaluations of the same samples under the same protocols, the first with all others.

    Differences come with 95 % intervals from a bootstrap over samples and seeds, McNemar's exact tests, Holm's
    correction over the table, and the difference that could not have been seen.

    Examples:
    advdistill compare results/apd results/tecoa
    advdistill compare apd_s1,apd_s2,apd_s3 tecoa_s1,tecoa_s2,tecoa_s3 --plot front.png
    advdistill compare apd_1shot apd_4shots apd_16shots --column clean --column PGD-20 --shots shots.png
    advdistill compare APD=apd_s1,apd_s2 TeCoA=tecoa_s1,tecoa_s2 TRADES=trades_s1,trades_s2 --all-pairs --json
    """
    if not evaluations:
        raise UsageError("what shall be compared?", "give two or more folders that `advdistill evaluate` wrote")
    from advdistill.engine import compare as engine

    if pictures := [path for path in (plot, shots) if path is not None]:
        from advdistill.engine.pictures import front_figure, save, shots_figure, writable

        for path in pictures:
            writable(path)
    methods = engine.read_methods(evaluations)
    found = engine.compare(
        methods,
        columns=column or (),
        all_pairs=all_pairs,
        per_class=per_class,
        despite=[field.strip() for field in despite.split(",") if field.strip()],
    )
    # First what was computed: a picture may fail.
    print_json(found.to_json()) if json else _print(found)
    if plot is not None:
        save(front_figure(found.front, found.axes), plot)
    if shots is not None:
        runs = [each for method in methods for each in method.evaluations]
        compared = dict.fromkeys(row.heading for row in found.rows)
        headings = [column.heading for column in runs[0].columns if column.heading in compared]
        save(shots_figure(runs, headings), shots)


def _print(found: Comparison) -> None:
    """Tables on stdout, one a pair: drawn on a terminal, plain columns in a pipe; what to know about them on stderr."""
    from rich.console import Console

    console = Console()
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in found.rows:
        pairs.setdefault((row.first, row.second), []).append(row)
    for (first, second), rows in pairs.items():
        title = f"{first} − {second}: accuracy in %, difference in points [95 % interval]"
        header, cells = _header(rows), [_cells(row) for row in rows]
        if console.is_terminal:
            console.print(_drawn(title, header, cells))
        else:
            typer.echo(title)
            print_columns(header, cells)
            typer.echo()
    if found.front:
        header = ["", *(f"{axis} %" for axis in found.axes), "front of clean and robust accuracy"]
        cells = [[p.name, f"{100 * p.clean:.1f}", f"{100 * p.robust:.1f}", p.words] for p in found.front]
        if console.is_terminal:
            console.print(_drawn("", header, cells))
        else:
            print_columns(header, cells)
            typer.echo()
    typer.echo(CAPTION)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)


def _header(rows: Sequence[Row]) -> list[str]:
    seeds = [f"seed {test.seed}" for test in rows[0].tests] if len(rows[0].tests) > 1 else []
    by_seed = [f"McNemar by {', '.join(seeds)} (Holm)"] if seeds else []
    return ["column", "n", rows[0].first, rows[0].second, "difference", "p", "Holm", *by_seed, "in words"]


def _cells(row: Row) -> list[str]:
    low, high = 100 * row.low, 100 * row.high
    by_seed = [" ".join(_p(test.adjusted) for test in row.tests)] if len(row.tests) > 1 else []
    return [
        row.heading,
        f"{row.samples:,}",
        *(f"{100 * share:.1f}" for share in row.accuracy),
        f"{100 * row.difference:+.1f} [{low:+.1f}, {high:+.1f}]",
        _p(row.p),
        _p(row.adjusted),
        *by_seed,
        row.words,
    ]


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def _drawn(title: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> object:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for name in header:
        last = name == header[-1]
        table.add_column(
            Text(name), justify="left" if last or name == header[0] else "right", min_width=24 if last else None
        )
    for line in cells:
        table.add_row(*map(Text, line))
    return table
