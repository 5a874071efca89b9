"""The figure of a study: rows below each other, curves over a numeric axis, or a map over two."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from advdistill.errors import DataError
from advdistill.recipe.study import BETWEEN
from advdistill.study.cells import Row
from advdistill.study.table import Line, Share, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE = 10
"""Numbers more than so many times apart stand on a logarithmic axis."""


def draw(table: Table) -> Figure:
    """The main column with its 95 % intervals, beside clean accuracy.

    Two axes, both numeric: a map. One numeric axis and at most one other: curves over it. Else: rows below each other.
    Axes of one level do not count.

    Raises:
        DataError: there is nothing to draw.
    """
    import matplotlib

    from advdistill.engine.pictures import STYLE

    lines = [line for line in table.lines if table.main in line.shares]
    if not lines:
        raise DataError(f"no figure: no finished run has {table.main or 'anything to show'}")
    varying = [axis for axis in table.axes if len(table.study.axes[axis]) > 1]
    numeric = [axis for axis in varying if axis in table.numeric]
    with matplotlib.rc_context(STYLE):
        if len(varying) == len(numeric) == 2:
            figure = _map(table, lines, *numeric)
        elif len(numeric) == 1 and len(varying) <= 2:
            figure = _curves(table, lines, numeric[0], [axis for axis in varying if axis not in numeric])
        else:
            figure = _forest(table, lines, varying)
        title = textwrap.fill(table.study.title or table.found.plan.study.name, int(11 * figure.get_figwidth()))
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        return figure


def _forest(table: Table, lines: list[Line], varying: list[str]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from advdistill.engine.pictures import COLOURS, FAINT

    figure = Figure(figsize=(7.2, 1.5 + 0.36 * len(lines)), layout="constrained")
    axes: Axes = figure.subplots()
    # Rows of one level of the first axis share a colour; with a single axis all do.
    groups = list(dict.fromkeys(line.row.levels[varying[0]] for line in lines)) if len(varying) > 1 else []
    references = {id(each.against) for each in table.compared.values()}
    for place, line in enumerate(lines):
        number = groups.index(line.row.levels[varying[0]]) if groups else 0
        colour, share = COLOURS[number % len(COLOURS)], line.shares[table.main]
        axes.plot([share.low, share.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(share.seeds, [place + 0.22] * len(share.seeds), "o", color=colour, alpha=0.45, markersize=2.8)
        axes.plot([share.mean], [place], "o", color=colour, markersize=6)
        if id(line.row) in references and not groups:
            axes.axvline(share.mean, color="#afb8c1", linewidth=1, linestyle="--", zorder=0)
        if (clean := line.shares.get(table.clean)) and table.clean != table.main:
            axes.plot([clean.low, clean.high], [place, place], color=FAINT, linewidth=1)
            axes.plot([clean.mean], [place], "o", color=FAINT, markerfacecolor="white", markersize=5)
    axes.set_yticks(range(len(lines)), [_named(line.row, varying) for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor="black")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(figure, table)
    return figure


def _curves(table: Table, lines: list[Line], axis: str, others: list[str]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, PercentFormatter

    from advdistill.engine.pictures import COLOURS

    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes: Axes = figure.subplots()
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(BETWEEN.join(line.row.levels[other] for other in others), []).append(line)
    for number, (name, of) in enumerate(groups.items()):
        colour, places = COLOURS[number % len(COLOURS)], [table.place(axis, line.row) for line in of]
        shares = [line.shares[table.main] for line in of]
        low, high = [share.low for share in shares], [share.high for share in shares]
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(places, [share.mean for share in shares], "o-", color=colour, markersize=4.5, label=name or None)
        for place, share in zip(places, shares, strict=True):
            axes.plot([place] * len(share.seeds), share.seeds, "o", color=colour, alpha=0.35, markersize=2.5)
        known = [(place, line.shares[table.clean].mean) for place, line in zip(places, of, strict=True) if table.clean]
        if known and table.clean != table.main:
            axes.plot(
                *zip(*known, strict=True), "o--", color=colour, linewidth=1, markerfacecolor="white", markersize=4
            )
    ticks = {table.place(axis, line.row): line.row.levels[axis] for line in lines}
    _scaled(axes, list(ticks))
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(axis)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if others:
        axes.legend(fontsize=8, title=BETWEEN.join(others), title_fontsize=8)
    _legend(figure, table)
    return figure


def _map(table: Table, lines: list[Line], down: str, across: str) -> Figure:
    from matplotlib.figure import Figure

    from advdistill.engine.pictures import INK

    rows, columns = (sorted({table.place(axis, line.row) for line in lines}) for axis in (down, across))
    names: dict[str, dict[float, str]] = {
        axis: {table.place(axis, line.row): line.row.levels[axis] for line in lines} for axis in (down, across)
    }
    grid = [[math.nan] * len(columns) for _ in rows]
    found: Mapping[tuple[int, int], Share] = {
        (rows.index(table.place(down, line.row)), columns.index(table.place(across, line.row))): line.shares[table.main]
        for line in lines
    }
    for (row, column), share in found.items():
        grid[row][column] = share.mean
    figure = Figure(figsize=(2.2 + 0.95 * len(columns), 1.6 + 0.62 * len(rows)), layout="constrained")
    axes: Axes = figure.subplots()
    low, high = min(share.mean for share in found.values()), max(share.mean for share in found.values())
    axes.imshow(grid, cmap="Blues", vmin=low - 0.3 * (high - low) - 1e-3, vmax=high + 0.2 * (high - low), aspect="auto")
    for (row, column), share in found.items():
        dark = share.mean > low + 0.6 * (high - low) and high > low
        text = f"{100 * share.mean:.1f}\n± {100 * share.half:.1f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
    axes.set_xticks(range(len(columns)), [names[across][place] for place in columns])
    axes.set_yticks(range(len(rows)), [names[down][place] for place in rows])
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.set_title(f"{table.titled(table.main)}, in %", fontweight="normal", fontsize=9)
    return figure


def _scaled(axes: Axes, places: list[float]) -> None:
    """A logarithmic axis where the numbers ask for one; zero, where it is among them, stands at its left."""
    positive = [place for place in places if place > 0]
    if min(places) < 0 or not positive or max(positive) <= WIDE * min(positive):
        return
    if len(positive) == len(places):
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)


def _legend(figure: Figure, table: Table) -> None:
    """What the markers mean, below."""
    from matplotlib.lines import Line2D

    from advdistill.engine.pictures import FAINT, INK

    def marker(**how: Any) -> Line2D:
        return Line2D([], [], marker="o", **{"color": INK, "linestyle": "-", **how})

    entries = [
        (marker(markersize=6), f"{table.titled(table.main)}: mean, 95 % interval"),
        (marker(markersize=3, alpha=0.5, linestyle=""), "each seed"),
    ]
    if table.clean and table.clean != table.main:
        entries.append((marker(markerfacecolor="white", color=FAINT, linewidth=1), table.clean))
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, handlelength=1.6)


def _named(row: Row, axes: list[str]) -> str:
    """A row by its levels on the axes that vary."""
    return " · ".join(row.levels[axis] for axis in axes) or row.name
