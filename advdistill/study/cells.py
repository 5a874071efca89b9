"""From a study to its cells: which runs there are, and where each of them lies.

A run's folder is named by a hash of its whole resolved recipe and of every file that this reads. Studies that share a
cell therefore share its run, a changed recipe is another run, and what was finished is never touched.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from advdistill.errors import RecipeError, UsageError
from advdistill.hooks.registry import Registry
from advdistill.recipe.loader import find_recipe
from advdistill.recipe.paths import resource
from advdistill.recipe.resolve import Recipe, load_recipe
from advdistill.recipe.study import Level, Study
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

SEEDS = ("shots_seed", "init_seed")
"""Settings of data, students and teachers that move with the seed of a cell, beside the run's own."""


@dataclass(frozen=True)
class Unit:
    """One run to be trained and measured, in words that any process on any machine understands.

    Attributes:
        title: what to call it. source: the recipe. words: overrides. plugins: single-file plugins.
        folder: the run's. suite: what the run is measured with; "": with nothing more than its recipe says.
        measured: where the measurements go, below the folder; "": nowhere.
    """

    title: str
    source: str
    words: tuple[str, ...]
    folder: str
    suite: str = ""
    measured: str = ""
    plugins: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether all of it is done."""
        done = Path(self.folder) / (f"{self.measured}/unit.json" if self.measured else "results.json")
        return done.is_file()


@dataclass(frozen=True)
class Row:
    """One combination of levels: a line of the table.

    Attributes:
        levels: axis -> name of the level. source: the recipe. words: its overrides, the study's included.
        level: the levels themselves. recipe: resolved, with the seeds of the recipe itself, untuned.
    """

    levels: Mapping[str, str]
    source: str
    words: tuple[str, ...]
    level: tuple[Level, ...]
    recipe: Recipe

    @property
    def name(self) -> str:
        """What to call it."""
        return " · ".join(self.levels.values())

    @cached_property
    def configurations(self) -> list[tuple[str, ...]]:
        """What there is to choose from, as words; one, of no words, where nothing is tuned."""
        tuned = {path: values for level in self.level for path, values in level.tune.items()}
        return [
            tuple(_word(path, value) for path, value in zip(tuned, values, strict=True))
            for values in itertools.product(*tuned.values())
        ]


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
        RecipeError: a cell's recipe is not valid; all such are named.
        UsageError: two axes name a recipe or tune the same setting.
        PluginError: a plugin is missing or broken.
    """

    def __init__(self, study: Study, registry: Registry, home: Path, plugins: Sequence[str] = ()) -> None:
        self.study, self.home, self.plugins = study, home, tuple(plugins)
        self._registry = registry.with_files(plugins)
        self._files: dict[Path, str] = {}
        self.suite = self._suite(study.model.protocol, "test")
        self.rows = self._rows()
        if any(len(row.configurations) > 1 for row in self.rows):
            self.tuning: Suite | None = self._suite(study.model.tuning.protocol, "val")
        else:
            self.tuning = None

    @property
    def folder(self) -> Path:
        """Where the study's tables go."""
        return self.home / self.study.name

    def _suite(self, name: str, split: str) -> Suite:
        suite = load_suite(name, self._registry)
        if suite.model.split != split:
            raise UsageError(f"protocol {name} looks at {suite.model.split}, and this one must look at {split}")
        return suite

    def _rows(self) -> list[Row]:
        rows: list[Row] = []
        problems: dict[str, list[str]] = {}
        hint = ""
        for levels in itertools.product(*(axis.items() for axis in self.study.model.axes.values())):
            names = dict(zip(self.study.model.axes, (name for name, _ in levels), strict=True))
            try:
                rows.append(self._row(names, tuple(level for _, level in levels)))
            except RecipeError as error:
                problems.setdefault(error.message, []).append(" · ".join(names.values()))
                hint = error.hint
        if problems:
            told = [f"{', '.join(who)}:\n{message}" for message, who in problems.items()]
            raise RecipeError("\n\n".join(told), hint)
        return rows

    def _row(self, names: Mapping[str, str], levels: tuple[Level, ...]) -> Row:
        model, name = self.study.model, " · ".join(names.values())
        sources = [level.recipe for level in levels if level.recipe] or [model.recipe]
        tuned = [path for level in levels for path in level.tune]
        if len(sources) > 1:
            raise UsageError(f"{name}: two axes name a recipe", "let one axis do so, and the other set settings")
        if len(set(tuned)) < len(tuned):
            raise UsageError(f"{name}: two axes tune the same setting", "tune it along one of them")
        words = [_word(path, value) for path, value in model.set.items()]
        words += self.study.words
        words += [_word(path, value) for level in levels for path, value in level.set.items()]
        recipe = self._load(sources[0], words)
        if recipe.evaluate.controls:
            words.append("evaluate.controls=null")
        words += UNMEASURED
        row = Row(names, sources[0], tuple(words), levels, self._load(sources[0], words))
        for chosen in row.configurations[1:]:
            self._load(row.source, [*words, *chosen])  # a value that is not valid is told before anything runs
        return row

    def _load(self, source: str, words: Sequence[str]) -> Recipe:
        return load_recipe(find_recipe(source, self._registry, beside=None), words, self._registry)

    def needs(self) -> list[Unit]:
        """Runs that others start from, in order; words for the data are theirs, too."""
        words = tuple(word for word in self.study.words if word.startswith("data."))
        found = []
        for source in self.study.model.needs:
            recipe = self._load(source, words)
            found.append(Unit(recipe.name, source, words, recipe.save.dir, plugins=self.plugins))
        return found

    def trials(self) -> list[tuple[Row, list[Unit]]]:
        """What is tried for each row that is tuned, in the order of its configurations."""
        seed, found = self.study.model.tuning.seed, []
        for row in self.rows:
            if len(row.configurations) == 1:
                continue
            assert self.tuning is not None
            units = [
                self._unit(row, seed, words, self.tuning, f"{row.name} · {' '.join(words)}")
                for words in row.configurations
            ]
            found.append((row, units))
        return found

    def cells(self, winners: Mapping[str, Sequence[str]]) -> list[Cell]:
        """All of them, seed by seed within each row.

        Args:
            winners: name of a row -> the words that were chosen for it.

        Raises:
            UsageError: two cells would be one and the same run.
        """
        found = [
            Cell(row, seed, self._unit(row, seed, winners.get(row.name, ()), self.suite, f"{row.name} · seed {seed}"))
            for row in self.rows
            for seed in self.study.model.seeds
        ]
        by_folder: dict[str, str] = {}
        for cell in found:
            if (other := by_folder.setdefault(cell.unit.folder, cell.unit.title)) != cell.unit.title:
                raise UsageError(
                    f"{other} and {cell.unit.title} are the same run: nothing that is set tells them apart",
                    "let their levels differ in a setting, or take one of them out",
                )
        return found

    def _unit(self, row: Row, seed: int, chosen: Sequence[str], suite: Suite, title: str) -> Unit:
        recipe = self._load(row.source, [*row.words, *chosen]) if chosen else row.recipe
        moved: dict[tuple[str, ...], int] = {("seed",): recipe.seed + seed}
        for block in ("data", "student", "teachers"):
            moved |= {path: value + seed for path, value in _settings(recipe.tree[block], (block,), SEEDS)}
        words = [*row.words, *chosen, *(_word(".".join(path), value) for path, value in moved.items())]
        digest = self._digest(recipe, moved)
        folder = self.home / "cells" / f"{recipe.name}-{digest}"
        return Unit(
            title,
            row.source,
            (*words, f"save.dir={folder}"),
            str(folder),
            str(suite.path),
            f"{suite.name}-{_hash(suite.tree)[:8]}",
            self.plugins,
        )

    def _digest(self, recipe: Recipe, moved: Mapping[tuple[str, ...], Any]) -> str:
        tree = json.loads(json.dumps({k: v for k, v in recipe.tree.items() if k not in ("name", "save", "report")}))
        for path, value in moved.items():
            place = tree
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = value
        read = {text: self._content(resource(text)) for text in _texts(tree)}
        files = {text: content for text, content in read.items() if content}
        return _hash([tree, files, sorted(recipe.plugin_hashes.values()), recipe.save.dtype])[:12]

    def _content(self, path: Path) -> str:
        """A hash of a file; "" for what is none."""
        try:
            if path not in self._files:
                self._files[path] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        except (OSError, ValueError):  # text that cannot be a path
            self._files[path] = ""
        return self._files[path]


def _word(path: str, value: Any) -> str:
    return f"{path}={json.dumps(value, ensure_ascii=False)}"


def _hash(value: Any) -> str:
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
