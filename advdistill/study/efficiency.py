"""How much sooner: robust accuracy on the probes of training against steps, image passes and seconds.

A probe is a small sample and goes up and down; what a run has come to by some moment is therefore read from the
monotone curve nearest to its probes (isotonic regression), linear between them, and not from its luckiest probe. For
each seed the mark is what the run that one compares with has come to in the end. The ratio is what that run spent
until it first came to the mark, over what the other spent: a method beside itself has ratio 1 (inferred: no paper says
how its ratio was read). A run that never comes to the mark is counted as if it had done so with its last step, so that
the ratio is an upper bound, and is said to be one. Nothing is read to be sooner than the first probe after the start.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advdistill.errors import DataError
from advdistill.recipe.study import LEAST_SEEDS
from advdistill.study.cells import Cell, Row
from advdistill.study.table import Table, image_passes, over_seeds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNITS = {"steps": "optimizer steps", "passes": "image passes", "seconds": "seconds of training"}
"""What is spent -> in words."""

LEAST_PROBES = 3
"""Fewer make no curve."""


@dataclass(frozen=True)
class Curve:
    """The probes of a run, (P,) each, from its start to its end.

    Attributes:
        robust: accuracy on the probe's adversarial images. spent: unit -> how much until then.
    """

    robust: tuple[float, ...]
    spent: Mapping[str, tuple[float, ...]]

    def monotone(self) -> list[float]:
        """(P,) the non-decreasing values nearest to `robust`."""
        from sklearn.isotonic import isotonic_regression

        return [float(value) for value in isotonic_regression(self.robust)]

    def until(self, mark: float, unit: str) -> float | None:
        """What was spent when it first came to `mark`; None: it never did."""
        values, spent = self.monotone(), self.spent[unit]
        place = next((i for i, value in enumerate(values) if value >= mark - 1e-9), None)
        if place is None:
            return None
        found = spent[place]
        if place:
            share = (mark - values[place - 1]) / (values[place] - values[place - 1])
            found = spent[place - 1] + share * (spent[place] - spent[place - 1])
        return max(found, next(each for each in spent if each > 0))


@dataclass(frozen=True)
class Sooner:
    """A row beside the one that it is compared with, in one unit.

    Attributes:
        ratio: geometric mean over seeds of what that one needed over what this one did; above 1: this one is sooner.
        low, high: 95 % interval, Student's t over seeds, of the logarithm; NaN where there are fewer than three.
        reached: seeds in which it came to the mark. seeds: all. Where fewer reached it, the ratio is an upper bound.
    """

    row: Row
    against: Row
    unit: str
    ratio: float
    low: float
    high: float
    reached: int
    seeds: int

    @property
    def words(self) -> str:
        """The ratio with its interval; a bound has none, since nobody knows how far it is from the ratio."""
        if self.reached < self.seeds:
            return f"at most {self.ratio:.2f}×"
        interval = "" if math.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.ratio:.2f}×{interval}"


class Efficiency:
    """The curves of a study and what they say.

    Attributes:
        curves: name of a row -> seed -> its curve. sooner: see `Sooner`; rows in the table's order, units in theirs.
        apart: names of rows that have no ratio, since their probes are made by another attack or on other samples.

    Raises:
        DataError: no run has robust probes enough.
    """

    def __init__(self, table: Table) -> None:
        self.curves: dict[str, dict[int, Curve]] = {}
        for line in table.lines:
            for each in line.cells:
                curve = read(each.cell)
                if len(curve.robust) >= LEAST_PROBES:
                    self.curves.setdefault(line.row.name, {})[each.cell.seed] = curve
        if not self.curves:
            raise DataError(
                f"no run has {LEAST_PROBES} probes of robust accuracy", "set evaluate.every to probe more often"
            )
        pairs = [(each.row, each.against) for each in table.compared.values()]
        self.apart = list(dict.fromkeys(row.name for row, against in pairs if _probe(row) != _probe(against)))
        self.sooner = [
            found
            for row, against in pairs
            if row.name not in self.apart
            for unit in UNITS
            if (found := self._sooner(row, against, unit))
        ]

    def _sooner(self, row: Row, against: Row, unit: str) -> Sooner | None:
        own, theirs = self.curves.get(row.name, {}), self.curves.get(against.name, {})
        seeds = [seed for seed in own if seed in theirs]
        if not seeds:
            return None
        logs, reached = [], 0
        for seed in seeds:
            mark = theirs[seed].monotone()[-1]
            needed, ours = theirs[seed].until(mark, unit), own[seed].until(mark, unit)
            assert needed is not None  # a run comes to its own end
            reached += ours is not None
            logs.append(math.log(needed / (own[seed].spent[unit][-1] if ours is None else ours)))
        mean, half = statistics.mean(logs), over_seeds(logs)
        low, high = math.exp(mean - half), math.exp(mean + half)
        return Sooner(row, against, unit, math.exp(mean), low, high, reached, len(seeds))


def read(cell: Cell) -> Curve:
    """The probes in a run's `metrics.jsonl`; those of robust accuracy. What a killed process left is passed over."""
    try:
        lines = (Path(cell.unit.folder) / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    probes: dict[int, tuple[float, dict[str, float]]] = {}
    for line in lines:
        try:
            said: Any = json.loads(line)
            if said["event"] == "probed" and said["robust"]:
                spent = {"steps": said["step"], "passes": image_passes(said["passes"]), "seconds": said["seconds"]}
                probes[said["step"]] = said["robust"]["hits"] / said["robust"]["total"], spent
        except (ValueError, KeyError, TypeError):
            continue
    ordered = [probes[step] for step in sorted(probes)]
    return Curve(
        tuple(robust for robust, _ in ordered), {unit: tuple(spent[unit] for _, spent in ordered) for unit in UNITS}
    )


def _probe(row: Row) -> Any:
    """What the probes of a row's runs are made by and on."""
    tree = row.recipe.tree
    probe = tree["evaluate"]["probe"]
    return [{**probe, "attack": probe["attack"] or tree["attack"]}, tree["threat"]]


def draw(table: Table, found: Efficiency) -> Figure:
    """Robust accuracy against each unit, a line a row: the mean over seeds, with a band of its 95 % interval (Student's
    t over seeds) where there are enough."""
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

    from advdistill.engine.pictures import COLOURS, STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4), layout="constrained")
        panels = figure.subplots(1, len(UNITS), sharey=True)
        for number, (name, curves) in enumerate(found.curves.items()):
            least = min(len(curve.robust) for curve in curves.values())
            robust = np.array([curve.robust[:least] for curve in curves.values()])
            mean, colour = robust.mean(0), COLOURS[number % len(COLOURS)]
            style = ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
            for axes, unit in zip(panels, UNITS, strict=True):
                spent = np.array([curve.spent[unit][:least] for curve in curves.values()]).mean(0)
                if len(robust) >= LEAST_SEEDS:
                    half = np.array([over_seeds(values) for values in robust.T])
                    axes.fill_between(
                        spent, (mean - half).clip(0, 1), (mean + half).clip(0, 1), color=colour, alpha=0.13, linewidth=0
                    )
                label = name if axes is panels[0] else None
                axes.plot(spent, mean, style, color=colour, linewidth=1.8, marker="o", markersize=2.5, label=label)
        for axes, words in zip(panels, UNITS.values(), strict=True):
            axes.set_xlabel(words)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        panels[0].set_title("robust accuracy on the probes of training")
        figure.legend(loc="outside lower center", ncols=min(len(found.curves), 4), fontsize=8, handlelength=4)
    return figure
