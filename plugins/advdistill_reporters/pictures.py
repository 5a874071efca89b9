"""Two pictures of a run: what its models see, and how they learned."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from advdistill import (
    Count,
    Event,
    Examples,
    Probed,
    Reporter,
    Results,
    RunFinished,
    RunStarted,
    RunStopped,
    StepDone,
)
from advdistill_reporters.jsonl import read_metrics

# Okabe and Ito's palette: told apart by every kind of colour vision.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, FAINT = "#1f2328", "#6e7781"
RIGHT, WRONG = "#1a7f37", "#c62828"
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
    "axes.titlepad": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eaeef2",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "text.parse_math": False,  # a class may have a dollar in its name
}


class PicturesReporter(Reporter):
    """Draws `examples.png` when examples come, and `curves.png` when a run ends or is stopped.

    A run that is taken up again shows its earlier steps too, as far as `metrics.jsonl` tells them.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._dir = Path()
        self._name = ""
        self._losses: dict[int, Mapping[str, float]] = {}
        self._probes: dict[int, dict[str, Count]] = {}

    def handle(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._dir, self._name = event.dir, event.name
            self._losses, self._probes = _history(event.dir, event.first) if event.first else ({}, {})
        elif isinstance(event, StepDone):
            self._losses[event.clock.step] = event.losses
        elif isinstance(event, Probed):
            counts = {"clean": event.clean} | ({"robust": event.robust} if event.robust else {})
            self._probes[event.clock.step] = counts
        elif isinstance(event, Examples):
            self._save(examples_figure(event, self._name), "examples.png")
        elif isinstance(event, (RunFinished, RunStopped)) and (self._losses or self._probes):
            rows = event.results if isinstance(event, RunFinished) else ()
            self._save(curves_figure(self._losses, self._probes, rows, self._name), "curves.png")

    def _save(self, figure: Figure, name: str) -> None:
        path = self._dir / name
        unfinished = path.with_name(name + ".tmp")
        with matplotlib.rc_context(STYLE):
            figure.savefig(unfinished, format="png", dpi=self.config.dpi)
        unfinished.replace(path)


def _history(folder: Path, first: int) -> tuple[dict[int, Mapping[str, float]], dict[int, dict[str, Count]]]:
    losses: dict[int, Mapping[str, float]] = {}
    probes: dict[int, dict[str, Count]] = {}
    for entry in read_metrics(folder, first):
        if entry.get("event") == "step_done":
            # What was not finite is null there and a gap in the curve.
            losses[entry["step"]] = {name: value for name, value in entry["losses"].items() if value is not None}
        elif entry.get("event") == "probed":
            probes[entry["step"]] = {name: Count(**entry[name]) for name in ("clean", "robust") if entry[name]}
    return losses, probes


def examples_figure(event: Examples, title: str) -> Figure:
    """One column a sample, its class on top: the clean image, then each model's own adversarial image and the
    perturbation. What the models say stands beneath, green and with a tick where right."""
    subjects = list(event.adversarial)
    count = len(event.labels)
    # All in inches, from the top left corner.
    label, cell, gap, line, head = 1.75, 1.2, 0.14, 0.19, 0.95
    heights = [cell + line * len(event.said)] + [cell + line, cell] * len(subjects)
    width = label + count * (cell + gap) + gap
    height = head + sum(heights) + 0.2 * len(heights)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))

        def write(x: float, y: float, text: str, **look: Any) -> None:
            figure.text(x / width, 1 - y / height, text, **{"va": "center", **look})

        def show(x: float, y: float, image: Tensor) -> None:
            axes = figure.add_axes((x / width, 1 - (y + cell) / height, cell / width, cell / height))
            axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            for spine in axes.spines.values():
                spine.set(visible=True, color="#d0d7de", linewidth=0.8)

        def says(x: float, y: float, said: tuple[str, float], truth: str) -> None:
            name, probability = said
            right = name == truth
            text = f"{_clip(name, 12)} {100 * probability:.0f} %"
            colour = RIGHT if right else WRONG
            write(x + cell / 2, y, f"{text} {'✓' if right else '✗'}", ha="center", color=colour, fontsize=8)

        lefts = [label + index * (cell + gap) for index in range(count)]
        write(0.2, 0.3, title or "examples", fontsize=13, weight="bold")
        write(0.2, 0.58, f"{_ball(event)}; every model is attacked itself", color=FAINT)
        for x, truth in zip(lefts, event.labels, strict=True):
            write(x + cell / 2, head - 0.13, _clip(truth, 18), ha="center", weight="bold")

        top = head
        write(0.2, top + cell / 2, "clean", weight="bold")
        for x, image in zip(lefts, event.clean, strict=True):
            show(x, top, image)
        for row, (subject, all_said) in enumerate(event.said.items()):
            y = top + cell + line * (row + 0.6)
            write(0.2, y, f"{subject} says", color=FAINT, fontsize=8)
            for x, (said, _), truth in zip(lefts, all_said, event.labels, strict=True):
                says(x, y, said, truth)
        top += heights[0] + 0.2

        for subject in subjects:
            delta = event.adversarial[subject] - event.clean
            gain = 0.5 / (event.eps if event.norm == "linf" else max(delta.abs().max().item(), 1e-12))
            write(0.2, top + cell / 2, f"{subject},\nattacked", weight="bold")
            for x, image in zip(lefts, event.adversarial[subject], strict=True):
                show(x, top, image)
            y = top + cell + line * 0.6
            write(0.2, y, f"{subject} says", color=FAINT, fontsize=8)
            for x, (_, said), truth in zip(lefts, event.said[subject], event.labels, strict=True):
                says(x, y, said, truth)
            top += cell + line + 0.2
            write(0.2, top + cell / 2, f"perturbation\n× {gain:.0f}", color=FAINT)
            for x, change, (said, _), truth in zip(lefts, delta, event.said[subject], event.labels, strict=True):
                show(x, top, 0.5 + gain * change)
                if said[0] != truth and not change.any():
                    write(x + cell / 2, top + cell / 2, "none needed", ha="center", color="white", fontsize=8)
            top += cell + 0.2
    return figure


def curves_figure(
    losses: Mapping[int, Mapping[str, float]],
    probes: Mapping[int, Mapping[str, Count]],
    rows: Sequence[Results],
    title: str,
) -> Figure:
    """Loss terms and probes over steps, and the final table as bars with 95 % Wilson intervals."""
    panels = 2 + bool(rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * panels, 3.9), layout="constrained")
        figure.suptitle(title, fontsize=13, weight="bold", x=0.01, ha="left")
        left, middle, *rest = figure.subplots(1, panels)
        _draw_losses(left, losses)
        _draw_probes(middle, probes)
        for axes in (left, middle):
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if rest:
            _draw_rows(rest[0], rows)
    return figure


def _draw_losses(axes: Axes, losses: Mapping[int, Mapping[str, float]]) -> None:
    axes.set_title("losses, reported scalars")
    names = list(dict.fromkeys(name for values in losses.values() for name in values))
    colours = [INK, BLUE, ORANGE, GREEN, PURPLE, SKY, RED]
    for number, name in enumerate(names):
        steps = [step for step, values in losses.items() if name in values]
        values = [losses[step][name] for step in steps]
        colour = colours[number % len(colours)]
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, _smooth(values), color=colour, linewidth=1.8, label=name, solid_capstyle="round")
    if names:
        axes.legend(fontsize=8)


def _smooth(values: Sequence[float]) -> list[float]:
    """An exponential mean over about a fortieth of the run, without the pull of its first value."""
    keep = 1 - 1 / max(len(values) / 40, 1)
    mean, weight, smooth = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(mean / weight)
    return smooth


def _draw_probes(axes: Axes, probes: Mapping[int, Mapping[str, Count]]) -> None:
    axes.set_title("probe accuracy, 95 % Wilson interval")
    for name, colour in (("clean", BLUE), ("robust", RED)):
        steps = [step for step, counts in probes.items() if name in counts]
        if not steps:
            continue
        counts = [probes[step][name] for step in steps]
        low, high = zip(*(count.wilson() for count in counts), strict=True)
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(steps, [count.share for count in counts], color=colour, linewidth=1.8, marker="o", ms=3, label=name)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    if axes.lines:
        axes.legend(fontsize=8)


def _draw_rows(axes: Axes, rows: Sequence[Results]) -> None:
    axes.set_title("final accuracy, 95 % Wilson interval")
    protocols = list(dict.fromkeys(name for row in rows for name in row.counts))
    colours = [BLUE, RED, ORANGE, PURPLE, SKY, GREEN]
    thick = 0.8 / max(len(protocols), 1)
    for number, protocol in enumerate(protocols):
        held = [(place, row.counts[protocol]) for place, row in enumerate(rows) if protocol in row.counts]
        places = [place + (number - (len(protocols) - 1) / 2) * thick for place, _ in held]
        shares = [count.share for _, count in held]
        bounds = [count.wilson() for _, count in held]
        errors = [
            [share - low for share, (low, _) in zip(shares, bounds, strict=True)],
            [high - share for share, (_, high) in zip(shares, bounds, strict=True)],
        ]
        axes.barh(places, shares, thick * 0.92, color=colours[number % len(colours)], alpha=0.85, label=protocol)
        axes.errorbar(shares, places, xerr=errors, fmt="none", ecolor=INK, elinewidth=0.8, capsize=1.5)
    axes.set_yticks(range(len(rows)), [textwrap.fill(row.subject, 18) for row in rows], color=INK)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=min(len(protocols), 4))


def _ball(event: Examples) -> str:
    radius = f"{event.eps * 255:g}/255" if event.norm == "linf" else f"{event.eps:g}"
    return f"{event.norm} ball of radius {radius}"


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
