"""What the cells of a study say together: a line for each row, with intervals, differences and what training took.

Shares are means over seeds with the 95 % interval of `compare.bootstrap`, over samples (or what they are made of) and
seeds. Differences are taken in the main column alone, within equal levels of all other axes, over the seeds that both
rows have; Holm's correction is over all of them, so that a study asks as many questions as it has compared rows.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advdistill.errors import UserError
from advdistill.recipe.study import LEAST_SEEDS
from advdistill.study.cells import Cell, Row, cell_title

if TYPE_CHECKING:
    import numpy as np

    from advdistill.engine.compare import Row as Pair
    from advdistill.engine.outcomes import Evaluation
    from advdistill.study.run import Found

EQUAL = 0.05
"""Image passes that differ by no more than this share count as equal (inferred)."""

OWN = ("classes", "templates", "resolution", "source.also")
"""What protocols may differ in, since it belongs to the row: how a model words its classes (a hash of names and
templates, and these), its images' size, and which of its run's models an attack on it can look at beside it. Samples
and labels must be the same, and that images are made on another model is no row's own."""


@dataclass(frozen=True)
class Share:
    """A share in [0, 1], mean over seeds, with its 95 % interval and each seed's own."""

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]

    @property
    def half(self) -> float:
        """Half of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Measured:
    """A finished cell and what its files say.

    Attributes:
        right: heading -> (n,) bool, sample by sample; worst cases included. sources: heading -> (n, k) integers.
        steps: of training. passes: images through any model, forward and backward. seconds: of training alone.
        facts: `opened`, when its test data was, as datetime; `machine`, in words.
    """

    cell: Cell
    evaluation: Evaluation
    right: Mapping[str, np.ndarray]
    sources: Mapping[str, np.ndarray]
    steps: int
    passes: int
    seconds: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """A row of the study with what its finished cells say; `cells` in the order of the seeds."""

    row: Row
    cells: tuple[Measured, ...]

    @cached_property
    def shares(self) -> dict[str, Share]:
        """Heading -> share, of the columns that all its cells have."""
        import numpy as np

        return {
            name: share(np.stack([each.right[name] for each in self.cells]), self.cells[0].sources[name])
            for name in _shared(each.right for each in self.cells)
        }

    @property
    def steps(self) -> float:
        """Of training, mean over seeds."""
        return statistics.mean(each.steps for each in self.cells)

    @property
    def passes(self) -> float:
        """Image passes of training, mean over seeds."""
        return statistics.mean(each.passes for each in self.cells)

    @property
    def seconds(self) -> float:
        """Of training, median over seeds."""
        return statistics.median(each.seconds for each in self.cells)


@dataclass(frozen=True)
class Compared:
    """A row beside the one that it is compared with.

    Attributes:
        row, against: the two. pair: what came out, None where they cannot be compared. why: why not.
    """

    row: Row
    against: Row
    pair: Pair | None
    why: str = ""


class Table:
    """Everything that the tables, figures and summaries of a study are made of.

    Attributes:
        axes: their names; those along which rows are compared are last. numeric: those whose levels are all numbers.
        lines: rows with at least one finished cell, numeric axes in the order of their numbers.
        unread: titles of cells whose files cannot be read, and why.
    """

    def __init__(self, found: Found) -> None:
        self.found, self.study = found, found.plan.study.model
        against = list(self.study.against)
        self.axes = [*(axis for axis in self.study.axes if axis not in against), *against]
        self.numeric = [
            axis for axis, levels in self.study.axes.items() if all(number(name) is not None for name in levels)
        ]
        self.unread: dict[str, str] = {}
        cells: dict[str, list[Measured]] = {}
        for cell in found.cells:
            try:
                cells.setdefault(cell.row.name, []).append(_read(cell))
            except UserError as error:
                self.unread[cell.unit.title] = error.message
            except (OSError, ValueError, KeyError, TypeError) as error:
                self.unread[cell.unit.title] = f"{type(error).__name__}: {error}"
        self.rows = sorted(found.plan.rows, key=lambda row: [self.place(axis, row) for axis in self.axes])
        self.lines = [
            Line(row, tuple(sorted(cells[row.name], key=lambda each: self.study.seeds.index(each.cell.seed))))
            for row in self.rows
            if row.name in cells
        ]

    def place(self, axis: str, row: Row) -> float:
        """Where a row stands on an axis: its level's number, or the position in the file."""
        levels = list(self.study.axes[axis])
        value = number(row.levels[axis]) if axis in self.numeric else None
        return levels.index(row.levels[axis]) if value is None else value

    @cached_property
    def headings(self) -> list[str]:
        """Columns to show: clean accuracy and the main column first."""
        every = list(dict.fromkeys(name for line in self.lines for name in line.shares))
        wanted = [name for name in every if not self.study.columns or name in self.study.columns]
        first = [name for name in (self.clean, self.main) if name]
        return list(dict.fromkeys([*first, *wanted]))

    @cached_property
    def clean(self) -> str:
        """Heading of clean accuracy on the data that the main column looks at; "" where it was not measured."""
        columns = self.lines[0].cells[0].evaluation.columns if self.lines else ()
        # The heading of a worst case is no column's, yet begins with its scope, too.
        scopes = (c.scope for c in columns if c.scope and self.main.startswith(f"{c.scope}: "))
        scope = next(scopes, "")
        return next((c.heading for c in columns if c.scope == scope and not c.attacked), "")

    @cached_property
    def main(self) -> str:
        """Heading of the main column: the study's, else the worst case of the first ball that was attacked, which is
        its only attack where there is one; clean accuracy where nothing was attacked; "" where nothing is known."""
        if not self.lines or self.study.main:
            return self.study.main
        from advdistill.engine.card import balls, worst_heading

        columns = self.lines[0].cells[0].evaluation.columns
        groups = balls(columns)
        if not groups:
            return columns[0].heading
        ball, attacks = next(iter(groups.items()))
        together = worst_heading(ball, attacks)
        return together if together in self.lines[0].shares else attacks[0].heading

    def titled(self, heading: str) -> str:
        """A column's heading with its ball, unless it is named already: "apgd, linf 8/255"."""
        from advdistill.engine.card import distance

        statements = (cell.evaluation.columns for line in self.lines for cell in line.cells)
        balls = {
            distance(column.statement["threat"]["norm"], column.statement["threat"]["eps"])
            for columns in statements
            for column in columns
            if column.heading == heading and column.attacked
        }
        return f"{heading}, {' or '.join(sorted(balls))}" if balls else heading

    @cached_property
    def compared(self) -> dict[tuple[str, str], Compared]:
        """(axis, name of a row) -> what its difference along that axis came to."""
        from advdistill.engine.compare import holm

        found = {}
        for axis, level in self.study.against.items():
            for row in self.rows:
                if (other := self.beside(row, axis, level)) is not row:
                    found[axis, row.name] = self._compare(axis, row, other)
        pairs = {key: each.pair for key, each in found.items() if each.pair}
        for (key, pair), p in zip(pairs.items(), holm([pair.p for pair in pairs.values()]), strict=True):
            found[key] = replace(found[key], pair=replace(pair, adjusted=p))
        return found

    def beside(self, row: Row, axis: str, level: str) -> Row:
        """The row that differs from this one in the level of one axis alone."""
        wanted = {**row.levels, axis: level}
        return next(each for each in self.rows if each.levels == wanted)

    def line(self, row: Row) -> Line | None:
        """What its cells say; None where none is finished."""
        return next((line for line in self.lines if line.row is row), None)

    def passes(self, line: Line) -> tuple[Row, float] | None:
        """The row whose image passes this one is meant to spend, with the ratio to them, NaN where that one is not
        there; None: it is meant to spend no other's."""
        for axis, level in zip(self.study.axes, line.row.level, strict=True):
            if level.passes:
                row = self.beside(line.row, axis, level.passes)
                other = self.line(row)
                return row, line.passes / other.passes if other and other.passes else math.nan
        return None

    @property
    def missing(self) -> list[str]:
        """Titles of cells that are neither there nor known to have failed."""
        there = {(cell.row.name, cell.seed) for cell in self.found.cells}
        every = [(row.name, seed) for row in self.found.plan.rows for seed in self.study.seeds]
        titles = [cell_title(name, seed) for name, seed in every if (name, seed) not in there]
        return [title for title in titles if title not in self.found.failed]

    @property
    def complete(self) -> bool:
        """Whether every cell is there and can be read."""
        return not self.unread and len(self.found.cells) == len(self.rows) * len(self.study.seeds)

    def _compare(self, axis: str, row: Row, against: Row) -> Compared:
        from advdistill.engine.compare import Method, compare

        line, other = self.line(row), self.line(against)
        if line is None or other is None:
            return Compared(row, against, None, "not there")
        seeds = [cell.cell.seed for cell in other.cells]
        seeds = [cell.cell.seed for cell in line.cells if cell.cell.seed in seeds]
        if len(seeds) < LEAST_SEEDS:
            return Compared(row, against, None, f"too few seeds in common: {len(seeds)}")
        methods = [
            Method(each.row.levels[axis], tuple(c.evaluation for c in each.cells if c.cell.seed in seeds))
            for each in (line, other)
        ]
        statements = [c.statement for method in methods for each in method.evaluations for c in each.columns]
        also = any("also" in (statement["source"] or ()) for statement in statements)
        try:
            found = compare(methods, columns=[self.main], despite=OWN if also else OWN[:-1])
        except UserError as error:
            return Compared(row, against, None, " ".join(error.message.split()))
        return Compared(row, against, found.rows[0])


def number(text: str) -> float | None:
    """A level's name as a number, such as "4", "1e-3" or "8/255"; None: it is none."""
    above, slash, below = text.partition("/")
    try:
        value = float(above) / (float(below) if slash else 1)
    except (ValueError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None


def over_seeds(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean over seeds, by Student's t; NaN for fewer seeds than a comparison takes."""
    from scipy import stats

    if len(values) < LEAST_SEEDS:
        return math.nan
    return float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """Write a table for machines, whole or not at all. Raises RunError where that fails."""
    from advdistill.engine.checkpoint import write_bytes

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    write_bytes(path, text.getvalue().encode())


def verdicts(evaluation: Evaluation) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Heading -> (n,) bool, right or not, worst cases included; heading -> (n, k) sources. In the order of samples."""
    from advdistill.engine.card import balls, worst, worst_heading
    from advdistill.errors import DataError

    right, sources = {}, {}
    for column in evaluation.columns:
        order = column.outcome.indices.argsort()
        right[column.heading] = column.outcome.right[order].numpy()
        sources[column.heading] = column.outcome.sources[order].numpy()
    for ball, columns in balls(evaluation.columns).items():
        if len(columns) > 1:
            try:
                indices, held = worst(evaluation, columns)
            except DataError:  # they looked at different samples
                continue
            right[worst_heading(ball, columns)] = held[indices.argsort()].numpy()
            sources[worst_heading(ball, columns)] = sources[columns[0].heading]
    return right, sources


def _read(cell: Cell) -> Measured:
    from advdistill.engine.outcomes import Evaluation

    folder = Path(cell.unit.folder)
    evaluation = Evaluation.read(folder / cell.unit.measured)
    cost = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    said = cell.unit.facts()
    facts = {"opened": datetime.fromisoformat(said["opened"]), "machine": str(said["machine"])}
    passes = image_passes(cost["passes"])
    return Measured(cell, evaluation, *verdicts(evaluation), cost["steps"], passes, cost["seconds"], facts)


def image_passes(passes: Mapping[str, Mapping[str, int]]) -> int:
    """Images through any model, forward and backward, of what `cost.json` and probes count."""
    return sum(sum(ways.values()) for ways in passes.values())


def _shared(known: Iterable[Mapping[str, Any]]) -> list[str]:
    first, *others = known
    return [name for name in first if all(name in other for other in others)]


def share(bits: np.ndarray, sources: np.ndarray) -> Share:
    """Of right verdicts.

    Args:
        bits: (S, n) bool, one row a seed. sources: (n, k) integers, which pictures each sample is made of.
    """
    import numpy as np

    from advdistill.engine.compare import bootstrap

    # A model beside its own opposite: the difference of their shares is 2p - 1, and the two samples that the bootstrap
    # imagines are one right and one wrong.
    drawn = (1 + bootstrap(bits, ~bits, sources=sources)) / 2
    low, high = (float(q) for q in np.quantile(drawn, (0.025, 0.975)).clip(0, 1))
    return Share(float(bits.mean()), low, high, tuple(float(share) for share in bits.mean(1)))
