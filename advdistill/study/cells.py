"""From a study to its cells: which runs there are, and where each of them lies.

A run's folder is named by a hash of its whole resolved recipe and of every file that this reads, wherever that and the
study lie. Studies that share a cell therefore share its run, a changed recipe is another run, and what was finished is
never touched. (Of a folder of data only the path counts.)
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from advdistill.data.presence import lacking, lacking_scopes
from advdistill.hooks.registry import Registry
from advdistill.recipe.nodes import InvalidRecipe, KeyPath, Mark, Problem
from advdistill.recipe.paths import resource
from advdistill.recipe.resolve import Recipe, load_recipe
from advdistill.recipe.study import BETWEEN, Level, Study
from advdistill.recipe.suite import Suite, load_suite

UNMEASURED = (
    "evaluate.protocols=[]",
    "evaluate.undefended=false",
    "evaluate.teachers=false",
    "evaluate.select=none",
    "data.sealed=true",
    "report=[{use: jsonl}]",
)
"""What every cell's recipe gets: a run neither sees nor measures test data; its last state is measured afterwards."""

LOG, FAILURE = "log.txt", "failure.txt"
"""In a run's folder: what its process said; why it failed the last time, if it did."""

SEEDS = ("shots_seed", "init_seed")
"""Settings of data, students and teachers that move with the seed of a cell, beside the run's own."""


@dataclass(frozen=True)
class Unit:
    """One run to be trained and measured, in words that any process on any machine understands.

    Attributes:
        title: what to call it. source: the recipe's file. words: overrides. plugins: single-file plugins.
        folder: the run's. suite: file of what the run is measured with; "": with nothing more than its recipe says.
        measured: where the measurements go, below the folder; "": nowhere.
        trial: it tries a configuration: that its training diverges is what it finds out, and no failure.
        lacks: what of its data, or of all scopes of its suite, is not there, so that it cannot be run; "": nothing.
        absent: scopes of its suite whose data are not there, which is measured without them.
    """

    title: str
    source: str
    words: tuple[str, ...]
    folder: str
    suite: str = ""
    measured: str = ""
    plugins: tuple[str, ...] = ()
    trial: bool = False
    lacks: str = ""
    absent: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether all of it is done that can be: what was left out for want of data is done once they are there."""
        if not self.measured:
            return (Path(self.folder) / "results.json").is_file()
        facts = self.facts()
        return bool(facts) and (bool(self.lacks) or set(facts.get("left out", ())) <= set(self.absent))

    @property
    def waits(self) -> bool:
        """Whether it is to be done, and can be."""
        return not self.finished and not self.lacks

    def facts(self) -> dict[str, Any]:
        """What `unit.json`, its last file, says of it; {} where that is not there, or is damaged: then it is measured
        again."""
        try:
            said = json.loads((Path(self.folder) / self.measured / "unit.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}

    def failure(self) -> str:
        """Why it failed the last time; "" if it did not."""
        try:
            return (Path(self.folder) / FAILURE).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return ""


@dataclass(frozen=True)
class Row:
    """One combination of levels: a line of the table.

    Attributes:
        levels: axis -> name of the level. source: the recipe, as the study names it. words: its overrides, the study's
            included. level: the levels themselves. recipe: resolved, with the seeds of the recipe itself, untuned.
    """

    levels: Mapping[str, str]
    source: str
    words: tuple[str, ...]
    level: tuple[Level, ...]
    recipe: Recipe

    @property
    def name(self) -> str:
        """What to call it."""
        return BETWEEN.join(self.levels.values())

    @cached_property
    def configurations(self) -> list[tuple[str, ...]]:
        """What there is to choose from, as words; one, of no words, where nothing is tuned."""
        tuned = {path: values for level in self.level for path, values in level.tune.items()}
        return [
            tuple(word(path, value) for path, value in zip(tuned, values, strict=True))
            for values in itertools.product(*tuned.values())
        ]

    @property
    def tuned(self) -> bool:
        """Whether there is anything to choose."""
        return len(self.configurations) > 1


def cell_title(row: str, seed: int) -> str:
    """What to call a cell."""
    return f"{row}{BETWEEN}seed {seed}"


@dataclass(frozen=True)
class Cell:
    """A row under one seed."""

    row: Row
    seed: int
    unit: Unit


class Plan:
    """What a study comes to.

    Args:
        home: folder of all studies; runs lie in `home/cells`, what is said about them in `home/NAME`.
        plugins: single-file plugins for every cell.

    Raises:
        RecipeError: a cell's recipe is not valid, two axes name a recipe or tune, two rows are one and the same, or a
            suite looks at the wrong images; all of a kind are named, with their place in the study.
        PluginError: a plugin is missing or broken.
    """

    def __init__(self, study: Study, registry: Registry, home: Path, plugins: Sequence[str] = ()) -> None:
        self.study, self.home, self.plugins = study, home, tuple(str(Path(file).absolute()) for file in plugins)
        self._registry = registry.with_files(plugins)
        self._files: dict[Path, str] = {}
        self._loaded: dict[tuple[str, tuple[str, ...]], Recipe] = {}
        self._looked: dict[str, str] = {}
        self._scopes: dict[Path, Mapping[str, str]] = {}
        self.suite = self._suite(("protocol",), study.model.protocol, "test")
        self.rows = self._rows()
        self._refuse_twins()
        self.tuning: Suite | None = None
        if any(row.tuned for row in self.rows):
            self.tuning = self._suite(("tuning", "protocol"), study.model.tuning.protocol, "val")

    @cached_property
    def registry(self) -> Registry:
        """Who offers what to any of its cells."""
        return self._registry.with_files(sorted({file for row in self.rows for file in row.recipe.plugin_hashes}))

    @property
    def folder(self) -> Path:
        """Where the study's tables go."""
        return self.home / self.study.name

    def _suite(self, path: KeyPath, name: str, split: str) -> Suite:
        suite = load_suite(self.study.suites[name], self._registry)
        if suite.model.split != split:
            message = f"{name} looks at {suite.model.split} data, and this one must look at {split} data"
            raise InvalidRecipe([self.study.problem(path, message)])
        return suite

    def _rows(self) -> list[Row]:
        rows: list[Row] = []
        problems: dict[Problem, list[str]] = {}
        for levels in itertools.product(*(axis.items() for axis in self.study.model.axes.values())):
            names = dict(zip(self.study.model.axes, (name for name, _ in levels), strict=True))
            try:
                rows.append(self._row(names, tuple(level for _, level in levels)))
            except InvalidRecipe as error:
                for problem in error.problems:
                    problems.setdefault(problem, []).append(BETWEEN.join(names.values()))
        count = len(rows) + len({name for names in problems.values() for name in names})
        if problems:
            raise InvalidRecipe(
                replace(problem, message=f"{problem.message} (in {_some(names, count)})")
                for problem, names in problems.items()
            )
        return rows

    def _row(self, names: Mapping[str, str], levels: tuple[Level, ...]) -> Row:
        model, name = self.study.model, BETWEEN.join(names.values())
        here = [("axes", *place) for place in names.items()]
        marks: dict[str, Mark] = {}

        def settings(path: KeyPath, given: Mapping[str, Any]) -> list[str]:
            """As words, each of which is known by its place from here on."""
            words = {key: word(key, value) for key, value in given.items()}
            marks.update({word: self.study.problem((*path, key), "").mark for key, word in words.items()})
            return list(words.values())

        sources = [level.recipe for level in levels if level.recipe] or [model.recipe]
        if len(sources) > 1 or not sources[0]:
            message = f"{'two axes name a recipe' if sources[0] else 'has no recipe'}: {name}"
            hint = "Let one axis name recipes, and the others set settings." if sources[0] else "Give `recipe:`."
            raise InvalidRecipe([self.study.problem(here[-1], message, hint)])
        if sum(bool(level.tune) for level in levels) > 1:
            raise InvalidRecipe([self.study.problem(here[-1], f"two axes tune: {name}", "Tune along one of them.")])
        words = settings(("set",), model.set)
        words += self.study.words
        for path, level in zip(here, levels, strict=True):
            words += settings((*path, "set"), level.set)
        for path, level in zip(here, levels, strict=True):
            for key, values in level.tune.items():
                for index, value in enumerate(values):
                    marks[word(key, value)] = self.study.problem((*path, "tune", key, index), "").mark
        try:
            recipe = self._load(sources[0], words)
            if recipe.evaluate.controls:
                words.append("evaluate.controls=null")
            words += UNMEASURED
            row = Row(names, sources[0], tuple(words), levels, self._load(sources[0], words))
            for chosen in row.configurations:
                self._load(row.source, [*words, *chosen])  # a value that is not valid is told before anything runs
        except InvalidRecipe as error:
            raise InvalidRecipe(
                replace(problem, mark=marks.get(problem.mark.text, problem.mark)) for problem in error.problems
            ) from error
        return row

    def _load(self, source: str, words: Sequence[str]) -> Recipe:
        key = source, tuple(words)
        if key not in self._loaded:
            self._loaded[key] = load_recipe(self.study.recipes[source], words, self._registry)
        return self._loaded[key]

    def _refuse_twins(self) -> None:
        known: dict[str, Row] = {}
        problems = []
        for row in self.rows:
            other = known.setdefault(digest([_run(row.recipe), row.configurations]), row)
            if other is not row:
                axis, level = next(item for item in row.levels.items() if item not in other.levels.items())
                message = f"{row.name} and {other.name} are the same run: nothing that is set tells them apart"
                hint = "Let them differ in a setting, or take one of them out."
                problems.append(self.study.problem(("axes", axis, level), message, hint))
        if problems:
            raise InvalidRecipe(problems)

    def needs(self) -> list[Unit]:
        """Runs that others start from, in order; words for the data are theirs, too."""
        words = tuple(word for word in self.study.words if word.startswith("data."))
        found = []
        for source in self.study.model.needs:
            recipe = self._load(source, words)
            file = str(self.study.recipes[source])
            lacks = self._lacks(recipe)
            found.append(Unit(recipe.name, file, words, recipe.save.dir, plugins=self.plugins, lacks=lacks))
        return found

    def trials(self) -> list[tuple[Row, list[Unit]]]:
        """What is tried for each row that is tuned, in the order of its configurations."""
        seed, found = self.study.model.tuning.seed, []
        for row in self.rows:
            if row.tuned:
                assert self.tuning is not None
                found.append((row, [self._trial(row, seed, words, self.tuning) for words in row.configurations]))
        return found

    def _trial(self, row: Row, seed: int, words: Sequence[str], suite: Suite) -> Unit:
        title = BETWEEN.join((row.name, " ".join(words)))
        return replace(self._unit(row, seed, words, suite, title), trial=True)

    def cells(self, winners: Mapping[str, Sequence[str]]) -> list[Cell]:
        """All of them, seed by seed within each row. (Rows that are tuned may come to one and the same run.)

        Args:
            winners: name of a row -> the words that were chosen for it.
        """
        found = []
        for row in self.rows:
            chosen = winners.get(row.name, () if row.tuned else row.configurations[0])
            for seed in self.study.model.seeds:
                found.append(Cell(row, seed, self._unit(row, seed, chosen, self.suite, cell_title(row.name, seed))))
        return found

    def _unit(self, row: Row, seed: int, chosen: Sequence[str], suite: Suite, title: str) -> Unit:
        recipe = self._load(row.source, [*row.words, *chosen])
        moved: dict[tuple[str, ...], int] = {("seed",): recipe.seed + seed}
        for block in ("data", "student", "teachers"):
            moved |= {path: value + seed for path, value in _settings(recipe.tree[block], (block,), SEEDS)}
        words = [*row.words, *chosen, *(word(".".join(path), value) for path, value in moved.items())]
        folder = self.home / "cells" / f"{recipe.name}-{self._digest(recipe, moved)}"
        return Unit(
            title,
            str(self.study.recipes[row.source]),
            (*words, f"save.dir={folder}"),
            str(folder),
            str(suite.path),
            f"{suite.name}-{digest(suite.tree)[:8]}",
            self.plugins,
            lacks=self._lacks(recipe) or self._nowhere(suite),
            absent=tuple(self._absent(suite)),
        )

    def _lacks(self, recipe: Recipe) -> str:
        key = json.dumps(recipe.data.tree(), sort_keys=True)
        if key not in self._looked:
            self._looked[key] = lacking(recipe.data, self._registry)
        return self._looked[key]

    def _absent(self, suite: Suite) -> Mapping[str, str]:
        """Scope -> why it is left out."""
        if suite.path not in self._scopes:
            self._scopes[suite.path] = lacking_scopes(suite, self._registry)
        return self._scopes[suite.path]

    def _nowhere(self, suite: Suite) -> str:
        """Why there is nothing that it could be measured on; "": there is something."""
        absent = self._absent(suite)
        if not absent or len(absent) < len(suite.model.scopes):
            return ""
        return f"none of the data of {suite.name} are there: {'; '.join(absent.values())}"

    @cached_property
    def lacks(self) -> dict[str, str]:
        """Name of a row -> what of its data is not there, where something is not."""
        found = {}
        for row in self.rows:
            tuning = self._nowhere(self.tuning) if row.tuned and self.tuning else ""
            if why := self._lacks(row.recipe) or self._nowhere(self.suite) or tuning:
                found[row.name] = why
        return found

    def left_out(self, cells: Iterable[Cell]) -> dict[str, str]:
        """Scopes that some of these cells were measured without, or would be now, and why."""
        known = [cell.unit.facts() for cell in cells]
        return {
            scope: why
            for scope, why in self._absent(self.suite).items()
            if any(not facts or scope in facts.get("left out", ()) for facts in known)
        }

    def _digest(self, recipe: Recipe, moved: Mapping[tuple[str, ...], Any]) -> str:
        tree = _run(recipe)
        for path, value in moved.items():
            place = tree
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = value
        # A word is not a file because one of that name happens to lie in the current folder.
        paths = {text: resource(text) for text in _texts(tree) if set(text) & set("/.:")}
        files = {text: content for text, path in paths.items() if (content := self._content(path))}
        return digest([tree, files])[:12]

    def _content(self, path: Path) -> str:
        """A hash of a file; "" for what is none (yet)."""
        if path in self._files:
            return self._files[path]
        try:
            if not path.is_file():
                return ""
            self._files[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        except (OSError, ValueError):  # text that cannot be a path
            return ""
        return self._files[path]


def _run(recipe: Recipe) -> dict[str, Any]:
    """All that decides what a run comes to, as plain data of its own: plugin files by what is in them."""
    tree: dict[str, Any] = json.loads(json.dumps(dict(recipe.tree)))
    own = {key: value for key, value in tree.items() if key not in ("name", "save", "report", "plugins")}
    return {**own, "save": {"dtype": recipe.save.dtype}, "plugins": sorted(recipe.plugin_hashes.values())}


def _some(names: Sequence[str], count: int) -> str:
    """Rows by name, as many as one reads; `count`: how many there are in all."""
    names = list(dict.fromkeys(names))
    if len(names) == count > 1:
        return "every row"
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def word(path: str, value: Any) -> str:
    """A setting as one writes it on a command line."""
    return f"{path}={json.dumps(value, ensure_ascii=False)}"


def digest(value: Any) -> str:
    """Of plain data, whatever the order of its keys; 64 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _settings(value: Any, path: tuple[str, ...], keys: Iterable[str]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Where in plain data these keys stand, with their values."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in keys:
                yield (*path, key), item
            else:
                yield from _settings(item, (*path, key), keys)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
