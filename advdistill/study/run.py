"""A study under way: what others start from, then trials, then cells, then tables.

    train what is needed and not there
    try the configurations of every row that is tuned; the best on validation data wins
    train every cell; only now is test data opened, once for each
    write what is known as tables, whatever failed

Nothing that is finished is done again, and a run that fails loses no other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advdistill.errors import RunError, UsageError
from advdistill.study.cells import Cell, Plan, Row, Unit
from advdistill.study.launchers import Launcher

Told = Callable[[str, int, int, Unit, str, float], None]
"""Told of every unit that ends: stage, number, of how many, which, why it failed or "", seconds since the stage
began."""


@dataclass(frozen=True)
class Chosen:
    """What tuning a row came to.

    Attributes:
        words: the configuration that won. scores: configuration -> (robust, clean) accuracy on validation data.
    """

    words: tuple[str, ...]
    scores: Mapping[tuple[str, ...], tuple[float, float]]


@dataclass
class Found:
    """A study as far as it has come.

    Attributes:
        cells: those that are finished. chosen: name of a row -> what its tuning came to.
        failed: title -> why. missing: cells that are not there for another reason, such as a failed trial.
    """

    plan: Plan
    cells: list[Cell] = field(default_factory=list)
    chosen: dict[str, Chosen] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def run(plan: Plan, launcher: Launcher, tell: Told, accept_changes: bool = False) -> Found:
    """All of it.

    Raises:
        UsageError: cells have changed since they were run, and nobody said that they may; two cells are the same.
        RunError: what the others start from could not be trained.
    """
    found = Found(plan)
    _needs(found, launcher, tell)
    _tune(found, launcher, tell)
    cells = plan.cells({name: chosen.words for name, chosen in found.chosen.items()})
    found.missing = [row.name for row in _untuned(found)]
    cells = [cell for cell in cells if cell.row.name not in found.missing]
    index = Index(plan.folder / "study.json")
    if (changed := index.changed(cells)) and not accept_changes:
        raise UsageError(
            f"{len(changed)} cells are not the runs any more that they were: {', '.join(changed[:8])}"
            + (f" and {len(changed) - 8} more" if len(changed) > 8 else ""),
            "undo the change, or run them anew with --accept-changes; what is finished is kept either way",
        )
    index.write(plan, cells, found)
    found.failed |= _through("cells", [cell.unit for cell in cells], launcher, tell)
    found.cells = [cell for cell in cells if cell.unit.finished]
    index.write(plan, cells, found)
    return found


def _needs(found: Found, launcher: Launcher, tell: Told) -> None:
    # One after the other: they may start from each other.
    for unit in found.plan.needs():
        if failed := _through("needs", [unit], launcher, tell):
            raise RunError(f"{unit.title}, which the others start from: {failed[unit.title]}", "nothing else was begun")


def _tune(found: Found, launcher: Launcher, tell: Told) -> None:
    trials = found.plan.trials()
    every = {unit.folder: unit for _, units in trials for unit in units}
    found.failed |= _through("trials", list(every.values()), launcher, tell)
    for row, units in trials:
        if all(unit.finished for unit in units):
            found.chosen[row.name] = _choose(row, units)


def _untuned(found: Found) -> list[Row]:
    return [row for row in found.plan.rows if len(row.configurations) > 1 and row.name not in found.chosen]


def _choose(row: Row, units: Sequence[Unit]) -> Chosen:
    scores = {words: score(unit) for words, unit in zip(row.configurations, units, strict=True)}
    return Chosen(max(scores, key=lambda words: scores[words]), scores)  # the first of equals


def score(unit: Unit) -> tuple[float, float]:
    """(robust, clean) accuracy as a trial's suite measured it: of its attacked columns the worst case."""
    from advdistill.engine.outcomes import Evaluation

    evaluation = Evaluation.read(Path(unit.folder) / unit.measured)
    clean = next(c.outcome.count.share for c in evaluation.columns if not c.attacked)
    return float(evaluation.worst()[1].float().mean()), clean


def _through(stage: str, units: Sequence[Unit], launcher: Launcher, tell: Told) -> dict[str, str]:
    """What is not finished of them. Returns title -> why, of those that failed."""
    left, failed, began = [unit for unit in units if not unit.finished], {}, time.monotonic()
    for number, (unit, why) in enumerate(launcher.run(left) if left else (), len(units) - len(left) + 1):
        tell(stage, number, len(units), unit, why, time.monotonic() - began)
        if why:
            failed[unit.title] = why
    return failed


class Index:
    """`study.json`: which run each cell is, so that a change is noticed, and what became of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def changed(self, cells: Sequence[Cell]) -> list[str]:
        """Titles of those that were finished as another run than they are now, and are not finished yet as this."""
        before = self._known.get("cells", {})
        return [
            cell.unit.title
            for cell in cells
            if (was := before.get(cell.unit.title))
            and was["finished"]
            and was["run"] != cell.unit.folder
            and not cell.unit.finished
        ]

    def write(self, plan: Plan, cells: Sequence[Cell], found: Found) -> None:
        """As things stand."""
        from advdistill.engine.checkpoint import write_bytes

        said = {
            "study": dict(plan.study.tree),
            "file": str(plan.study.path),
            "words": list(plan.study.words),
            "tuned": {
                name: {
                    "chosen": list(chosen.words),
                    "scores": [[list(words), *score] for words, score in chosen.scores.items()],
                }
                for name, chosen in found.chosen.items()
            },
            "cells": {
                cell.unit.title: {
                    "levels": dict(cell.row.levels),
                    "seed": cell.seed,
                    "run": cell.unit.folder,
                    "measured": cell.unit.measured,
                    "finished": cell.unit.finished,
                    **({"failed": found.failed[cell.unit.title]} if cell.unit.title in found.failed else {}),
                }
                for cell in cells
            },
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self._path, (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode())
