"""A study under way: what others start from, then trials, then cells, then tables.

    train what is needed and not there
    try the configurations of every row that is tuned; the best on validation data wins
    train every cell; only now is test data opened, once for each
    write what is known as tables, whatever failed

Nothing that is finished is done again, and a run that fails loses no other.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advdistill.errors import RunError, UsageError, UserError, did_you_mean
from advdistill.recipe.study import BETWEEN
from advdistill.study.cells import LOG, Cell, Plan, Row, Unit
from advdistill.study.launchers import Launcher

STAGES = ("needs", "trials", "cells")
"""What is done one after the other."""

_HOW_TO_COME_BY = "`advdistill data list` says how to come by it"


class Stopped(UserError):
    """A study was asked to stop; all that it has is saved."""

    exit_code = 130


class Watcher:
    """Is told how a study goes; this one does not care."""

    def stage(self, name: str, total: int, finished: int) -> None:
        """A stage begins with so many units, of which some are finished already."""

    def began(self, unit: Unit) -> None:
        """Somebody has begun it. Not every launcher knows."""

    def ended(self, unit: Unit, why: str) -> None:
        """It is done, or has failed and why."""

    def warned(self, message: str) -> None:
        """Something is not as it should be, and the study goes on."""


@dataclass(frozen=True)
class Chosen:
    """What tuning a row came to.

    Attributes:
        words: the configuration that won. scores: configuration -> (robust, clean) accuracy on validation data, None
            where its training diverged.
    """

    words: tuple[str, ...]
    scores: Mapping[tuple[str, ...], tuple[float, float] | None]


@dataclass
class Found:
    """A study as far as it has come.

    Attributes:
        cells: those that are finished. chosen: name of a row -> what its tuning came to.
        failed: title -> why. missing: what is not there for another reason: rows whose trials are not all finished,
            cells that nobody has run. lacks: what of their data is missing -> rows that cannot be run for want of it.
    """

    plan: Plan
    cells: list[Cell] = field(default_factory=list)
    chosen: dict[str, Chosen] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    lacks: dict[str, list[str]] = field(default_factory=dict)


def run(plan: Plan, launcher: Launcher, watcher: Watcher | None = None, accept_changes: bool = False) -> Found:
    """All but the tables.

    Raises:
        UsageError: cells have changed since they were run, and nobody said that they may.
        RunError: what the others start from could not be trained, or the study's folder cannot be written.
        Stopped: by Ctrl-C.
    """
    watcher = watcher or Watcher()
    index = Index(plan.folder / "study.json", watcher)
    found = Found(plan)
    try:
        for unit in plan.needs():  # one after the other: they may start from each other
            if unit.lacks and not unit.finished:
                raise RunError(f"{unit.title}, which the others start from: {unit.lacks}", _HOW_TO_COME_BY)
            if unit.finished and (other := _change(unit, Path(unit.folder))):
                watcher.warned(f"{unit.folder} holds another run of {unit.title}, and is taken as it is: {other}")
            if why := _through("needs", [unit], launcher, watcher).get(unit.title):
                raise RunError(f"{unit.title}, which the others start from: {why}", f"see {Path(unit.folder) / LOG}")
        index.refuse_changes(plan, accept_changes)  # before hours of trials
        found.failed |= _through("trials", trials(plan), launcher, watcher)
        found.chosen = chosen(plan)
        cells = known_cells(plan, found.chosen)
        index.refuse_changes(plan, accept_changes)  # others may have won
        index.write(plan, cells, found)
        found.failed |= _through("cells", [cell.unit for cell in cells], launcher, watcher)
    except KeyboardInterrupt:
        raise Stopped("stopped; what is finished and what was under way is kept", "the same command goes on") from None
    _settle(found, cells)
    index.write(plan, cells, found)
    return found


def collect(plan: Plan, watcher: Watcher | None = None) -> Found:
    """A study as it stands; nothing is run."""
    found = Found(plan, chosen=chosen(plan))
    cells = known_cells(plan, found.chosen)
    found.failed = {unit.title: why for unit in units(found) if not unit.finished and (why := unit.failure())}
    _settle(found, cells)
    Index(plan.folder / "study.json", watcher or Watcher()).write(plan, cells, found)
    return found


def refuse_changes(plan: Plan) -> None:
    """Raise UsageError where finished cells are not the runs any more that they were."""
    Index(plan.folder / "study.json", Watcher()).refuse_changes(plan, accept=False)


def _settle(found: Found, cells: Sequence[Cell]) -> None:
    found.cells = [cell for cell in cells if cell.unit.finished]
    lacks = found.plan.lacks
    waiting = {row.name: row for row in found.plan.rows if row.tuned and row.name not in found.chosen}
    waiting |= {c.unit.title: c.row for c in cells if not c.unit.finished and c.unit.title not in found.failed}
    found.missing = [title for title, row in waiting.items() if row.name not in lacks]
    for row in dict.fromkeys(row.name for row in waiting.values() if row.name in lacks):
        found.lacks.setdefault(lacks[row], []).append(row)


def trials(plan: Plan) -> list[Unit]:
    """All trials, each once."""
    return list({unit.folder: unit for _, units in plan.trials() for unit in units}.values())


def chosen(plan: Plan) -> dict[str, Chosen]:
    """Name of a row -> what its tuning came to, of rows whose trials are all finished."""
    return {row.name: _choose(row, units) for row, units in plan.trials() if all(unit.finished for unit in units)}


def known_cells(plan: Plan, winners: Mapping[str, Chosen]) -> list[Cell]:
    """The cells of rows that are not tuned, or whose tuning is over."""
    cells = plan.cells({name: won.words for name, won in winners.items()})
    return [cell for cell in cells if not cell.row.tuned or cell.row.name in winners]


def units(found: Found) -> list[Unit]:
    """The trials, and the cells that are known by now."""
    return [*trials(found.plan), *(cell.unit for cell in known_cells(found.plan, found.chosen))]


def task(plan: Plan, name: str) -> Unit:
    """One unit by stage and number.

    Args:
        name: such as `cells:3`, from 0.

    Raises:
        UsageError: there is none.
        RunError: it is a cell, and the trials of its row are not finished.
    """
    stage, _, number = name.partition(":")
    if stage not in STAGES:
        close = did_you_mean(stage, STAGES)
        raise UsageError(f"--task {name}: there is no stage {stage!r}{close}", f"one of {', '.join(STAGES)}, or tables")
    if stage == "cells":
        cells = plan.cells({row: won.words for row, won in chosen(plan).items()})
        units = [cell.unit for cell in cells]
    else:
        units = plan.needs() if stage == "needs" else trials(plan)
    if not number.isdecimal() or int(number) >= len(units):
        what = f"{stage}:0 to {stage}:{len(units) - 1}" if units else f"no {stage} in this study"
        raise UsageError(f"--task {name}: there is {what}")
    unit = units[int(number)]
    if unit.lacks and not unit.finished:
        raise RunError(f"{unit.title}: {unit.lacks}", _HOW_TO_COME_BY)
    if stage == "cells" and (row := cells[int(number)].row).tuned:
        left = [unit for each, some in plan.trials() if each is row for unit in some if not unit.finished]
        if left:
            raise RunError(f"{row.name}: {len(left)} of its trials are not finished, such as {left[0].title}")
    return unit


def _choose(row: Row, units: Sequence[Unit]) -> Chosen:
    scores = {words: score(unit) for words, unit in zip(row.configurations, units, strict=True)}
    return Chosen(max(scores, key=lambda words: scores[words] or (-1.0, -1.0)), scores)  # the first of equals


def score(unit: Unit) -> tuple[float, float] | None:
    """(robust, clean) accuracy as a trial's suite measured it: of its attacked columns the worst case. None where it
    diverged."""
    from advdistill.engine.outcomes import Evaluation

    if unit.facts().get("diverged"):
        return None
    evaluation = Evaluation.read(Path(unit.folder) / unit.measured)
    clean = next(c.outcome.count.share for c in evaluation.columns if not c.attacked)
    return float(evaluation.worst()[1].double().mean()), clean


def _through(stage: str, units: Sequence[Unit], launcher: Launcher, watcher: Watcher) -> dict[str, str]:
    """What is not finished of them, each run once. Returns title -> why, of those that failed."""
    unique = {unit.folder: unit for unit in units}
    left = [unit for unit in unique.values() if unit.waits]
    failed: dict[str, str] = {}
    watcher.stage(stage, len(unique), sum(unit.finished for unit in unique.values()))
    with contextlib.closing(launcher.run(left)) as news:
        for unit, why in news if left else ():
            if why is None:
                watcher.began(unit)
            else:
                watcher.ended(unit, why)
                failed |= {unit.folder: why} if why else {}
    return {unit.title: failed[unit.folder] for unit in units if unit.folder in failed}


class Index:
    """`study.json`: which run each cell is, so that a change is noticed, and what became of it.

    Raises:
        RunError: its folder cannot be made.
    """

    def __init__(self, path: Path, watcher: Watcher) -> None:
        self._path = path
        self._cells: dict[str, Any] = {}
        self._tuned: dict[str, Any] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                said = json.loads(path.read_text(encoding="utf-8"))
                self._cells, self._tuned = dict(said["cells"]), dict(said["tuned"])
        except OSError as error:
            raise RunError(f"cannot use {path.parent}: {error.strerror}", "choose another --dir") from error
        except (ValueError, KeyError, TypeError):
            watcher.warned(f"{path} is damaged: what is finished is found, but not what has changed since")

    def refuse_changes(self, plan: Plan, accept: bool) -> None:
        """Cells that were finished as another run than they are now, and are not finished as this one, stop the study.
        Of rows whose trials are not all there, those of the configuration that won the last time.

        Raises:
            UsageError: there are such, and nobody accepts them.
        """
        cells = known_cells(plan, {**self._chosen_before(plan), **chosen(plan)})
        changed = [(cell, was) for cell in cells if (was := self._before(cell)) and not cell.unit.finished]
        if not changed or accept:
            return
        lines = []
        for cell, was in changed[:8]:
            what = _change(cell.unit, Path(cell.unit.folder).with_name(was)) or "a file that it reads"
            lines.append(f"  {cell.unit.title}: {what}")
        lines += [f"  and {len(changed) - 8} more"] if len(changed) > 8 else []
        raise UsageError(
            "\n".join([f"{len(changed)} finished cells are not the runs any more that they were:", *lines]),
            "undo the change, or run them anew with --accept-changes; what is finished is kept either way",
        )

    def _chosen_before(self, plan: Plan) -> dict[str, Chosen]:
        """Name of a row -> the configuration that won the last time, where it is still one of the row's."""
        found = {}
        for row in plan.rows:
            match self._tuned.get(row.name):
                case {"chosen": list(words)} if row.tuned and tuple(words) in row.configurations:
                    found[row.name] = Chosen(tuple(words), {})
        return found

    def _before(self, cell: Cell) -> str:
        """The run that this cell was when it was finished, if it is another one now; else ""."""
        match self._cells.get(cell.unit.title):
            case {"finished": True, "run": str(run)} if run != Path(cell.unit.folder).name:
                return run
        return ""

    def write(self, plan: Plan, cells: Sequence[Cell], found: Found) -> None:
        """As things stand; of rows whose trials are not all there, and of seeds left out, as they stood."""
        from advdistill.engine.checkpoint import write_json

        rows = {row.name for row in plan.rows}
        self._tuned = {name: said for name, said in self._tuned.items() if name in rows} | {
            name: {
                "chosen": list(chosen.words),
                "scores": [[list(words), *(score or ["diverged"])] for words, score in chosen.scores.items()],
            }
            for name, chosen in found.chosen.items()
        }
        self._cells |= {cell.unit.title: self._said(cell, found) for cell in cells}
        self._cells = {title: said for title, said in self._cells.items() if title.rpartition(BETWEEN)[0] in rows}
        said = {
            "study": dict(plan.study.tree),
            "file": str(plan.study.path),
            "words": list(plan.study.overrides),
            "tuned": self._tuned,
            "cells": self._cells,
        }
        write_json(self._path, said)

    def _said(self, cell: Cell, found: Found) -> dict[str, Any]:
        unit = cell.unit
        if not unit.finished and (was := self._before(cell)):
            return dict(self._cells[unit.title], run=was)  # until it is finished anew, a change is still a change
        return {
            "levels": dict(cell.row.levels),
            "seed": cell.seed,
            "run": Path(unit.folder).name,
            "measured": unit.measured,
            "finished": unit.finished,
            **({"failed": found.failed[unit.title]} if unit.title in found.failed else {}),
        }


def _change(unit: Unit, was: Path) -> str:
    """What is different between the recipe in the folder `was` and the unit's, in words; "": nothing."""
    from advdistill.recipe.diff import diff
    from advdistill.recipe.resolve import load_recipe

    try:
        before = load_recipe(was / "recipe.yaml", plugins=unit.plugins).tree
    except UserError:
        return "its recipe cannot be read"
    after = load_recipe(unit.source, unit.words, plugins=unit.plugins).tree
    changes = [
        c
        for c in diff(before, after)
        if c.path.split(".")[0] not in ("name", "save", "report", "plugins")
        and (c.path, c.right) != ("train.precision", "auto")  # a run's recipe says what that came to
    ]
    told = [f"{c.path} {json.dumps(c.left)} -> {json.dumps(c.right)}" for c in changes[:3]]
    return ", ".join(told) + (" …" if len(changes) > 3 else "")
