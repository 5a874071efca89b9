"""Pictures of evaluations (accuracy over ε, over shots, clean against robust accuracy) and of what a step costs."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from advdistill.engine.card import curves
from advdistill.engine.count import Count
from advdistill.engine.outcomes import Evaluation
from advdistill.engine.timing import CLASS_FEATURES, OTHER
from advdistill.errors import DataError, RunError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from advdistill.engine.compare import Point

# Okabe and Ito's palette: told apart by every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
INK, FAINT = "#1f2328", "#6e7781"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#afb8c1",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eaeef2",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "text.parse_math": False,  # a model may have a dollar in its name
}
PHASES = dict(
    zip(
        ("data", CLASS_FEATURES, "attack", "student", "teachers", "optimizer", OTHER),
        (COLOURS[5], COLOURS[3], COLOURS[1], COLOURS[0], COLOURS[2], COLOURS[4], "#afb8c1"),
        strict=True,
    )
)
"""Phase of a step -> its colour."""

P = ParamSpec("P")
SUFFIXES = (".png", ".pdf", ".svg")


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
def eps_figure(evaluations: Sequence[Evaluation]) -> Figure:
    """Accuracy over the radius with 95 % Wilson intervals, a line for each model and attack, a panel for each norm.

    Raises:
        DataError: no attack was run at two radii.
    """
    drawn: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for evaluation in evaluations:
        for curve in curves(evaluation):
            label = " · ".join(filter(None, (evaluation.subject, curve["scope"], curve["attack"])))
            drawn.setdefault(curve["norm"], []).append((label, curve))
    if not drawn:
        raise DataError("no attack was run at two radii: there is no curve", "give the protocol `times: [0.5, 1, 2]`")
    figure, panels = _figure(len(drawn))
    for axes, (norm, lines) in zip(panels, drawn.items(), strict=True):
        unit = 255 if norm == "linf" else 1
        for number, (label, curve) in enumerate(lines):
            radii = [unit * point["eps"] for point in curve["points"]]
            counts = [Count(point["hits"], point["total"], point.get("effective")) for point in curve["points"]]
            _line(axes, radii, counts, label, number)
        axes.set_title("accuracy over the radius, 95 % Wilson interval")
        axes.set_xlabel(f"{norm} radius" + (" × 255" if norm == "linf" else ""))
        _percent(axes)
    return figure


def save_curves(evaluation: Evaluation, folder: Path) -> None:
    """Write `eps.png` into a folder, where an attack was run at two radii. Raises RunError where that fails."""
    if curves(evaluation):
        save(eps_figure([evaluation]), folder / "eps.png")


@_styled
def shots_figure(evaluations: Sequence[Evaluation], headings: Sequence[str] = ()) -> Figure:
    """Accuracy over the training images per class, a panel a column: each run with its 95 % Wilson interval, and a
    line through the means of runs with equal shots. Recipes are told apart by their names.

    Args:
        headings: the columns; none: all that every evaluation has.

    Raises:
        DataError: an evaluation does not know its shots, all have the same, or they share no column.
    """
    known = [each.facts.get("recipe", {}).get("shots") for each in evaluations]
    if None in known or len(set(known)) < 2:
        raise DataError("a curve over shots needs runs with different shots", "train with data.shots=1, 2, 4 …")
    shared = [c.heading for c in evaluations[0].columns]
    shared = [name for name in shared if all(name in {c.heading for c in each.columns} for each in evaluations)]
    chosen = list(headings) or shared
    if not chosen:
        raise DataError("the evaluations have no column in common", "evaluate all of them under one suite")
    ticks = sorted(set(known), key=lambda shots: shots or math.inf)
    # 0 shots are all images: to the right of every number.
    place = {shots: shots or 2 * max(known) for shots in ticks}
    figure, panels = _figure(len(chosen))
    for axes, heading in zip(panels, chosen, strict=True):
        runs: dict[str, dict[int, list[Count]]] = {}
        for each, shots in zip(evaluations, known, strict=True):
            of = runs.setdefault(str(each.facts["recipe"].get("name", "")), {})
            of.setdefault(int(shots), []).append(each.column(heading).outcome.count)
        for number, (name, by_shots) in enumerate(runs.items()):
            colour = COLOURS[number % len(COLOURS)]
            for shots, counts in by_shots.items():
                _bars(axes, [place[shots]] * len(counts), counts, colour)
            means = {
                place[shots]: sum(c.share for c in by_shots[shots]) / len(by_shots[shots])
                for shots in ticks
                if shots in by_shots
            }
            axes.plot(list(means), list(means.values()), color=colour, linewidth=1.8, label=name)
        axes.set_title(heading)
        axes.set_xlabel("training images per class")
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(place.values()), [str(shots) if shots else "all" for shots in ticks])
        axes.minorticks_off()
        _percent(axes)
    return figure


@_styled
def front_figure(points: Sequence[Point], headings: Sequence[str]) -> Figure:
    """Clean against robust accuracy; methods that none dominates are joined, the others are faint.

    Raises:
        DataError: there are no points, since nothing was attacked.
    """
    if not points:
        raise DataError("there is no front: the evaluations share no clean and attacked column", "evaluate both")
    figure, (axes,) = _figure(1)
    front = sorted((point for point in points if not point.dominated), key=lambda point: point.clean)
    axes.step(
        [point.clean for point in front], [point.robust for point in front], where="pre", color=FAINT, linewidth=1
    )
    for point in points:
        colour = FAINT if point.dominated else COLOURS[0]
        axes.plot([point.clean], [point.robust], "o", color=colour, markersize=6)
        axes.annotate(point.name, (point.clean, point.robust), (5, 5), textcoords="offset points", color=colour)
    axes.margins(0.2)
    axes.set_xlim(right=min(axes.get_xlim()[1], 1.01))  # nothing is right more often than always
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.01))
    axes.set_title("front of clean and robust accuracy")
    axes.set_xlabel(headings[0])
    axes.set_ylabel(headings[1])
    from matplotlib.ticker import PercentFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    return figure


@_styled
def cost_figure(methods: Sequence[tuple[str, Mapping[str, float]]]) -> Figure:
    """Seconds a step as bars, one a method, from the top in the order given; each is its phases side by side.

    Args:
        methods: name -> phase -> seconds. Phases of teachers are one.
    """
    from matplotlib.figure import Figure

    merged = []
    for _, phases in methods:
        found: dict[str, float] = {}
        for phase, seconds in phases.items():
            name = "teachers" if phase.endswith(" teacher") else phase
            found[name] = found.get(name, 0.0) + seconds
        merged.append(found)
    figure = Figure(figsize=(7.2, 1.4 + 0.26 * len(methods)), layout="constrained")
    axes = figure.subplots()
    places, starts = list(range(len(methods))), [0.0] * len(methods)
    for phase, colour in PHASES.items():
        widths = [found.get(phase, 0.0) for found in merged]
        if any(widths):
            axes.barh(places, widths, left=starts, color=colour, height=0.7, label=phase)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for place, end in zip(places, starts, strict=True):
        axes.annotate(f"{end:.3g}", (end, place), (4, 0), textcoords="offset points", va="center", color=FAINT)
    axes.set_yticks(places, [name for name, _ in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.set_title("a step by phase")
    axes.set_xlabel("seconds")
    figure.legend(loc="outside lower center", ncols=len(PHASES), fontsize=8, columnspacing=1.2, handlelength=1)
    return figure


def writable(path: Path) -> None:
    """Raises UsageError where a picture could not be written: no such format, or no such folder."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: pictures are written as {', '.join(SUFFIXES)}", "for example front.png")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}", "make it, or choose another file")


def save(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all; its format is the suffix's.

    Raises:
        UsageError: see `writable`. RunError: the file cannot be written.
    """
    writable(path)
    import matplotlib

    data = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(data, format=path.suffix.lower()[1:], dpi=150)
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        unfinished.write_bytes(data.getvalue())
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror}", "choose another file") from error


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure of its own, beside pyplot and its windows: it draws with Agg wherever it runs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * panels, 3.9), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _line(axes: Axes, places: Sequence[float], counts: Sequence[Count], label: str, number: int) -> None:
    colour = COLOURS[number % len(COLOURS)]
    low, high = zip(*(count.wilson() for count in counts), strict=True)
    axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(places, [c.share for c in counts], color=colour, linewidth=1.8, marker="o", markersize=3, label=label)


def _bars(axes: Axes, places: Sequence[float], counts: Iterable[Count], colour: str) -> None:
    for place, count in zip(places, counts, strict=True):
        low, high = count.wilson()
        around = [[count.share - low], [high - count.share]]
        axes.errorbar(
            [place], [count.share], yerr=around, fmt="o", markersize=3, color=colour, alpha=0.5, linewidth=0.8
        )


def _percent(axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(fontsize=8)
