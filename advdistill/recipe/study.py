"""Studies from YAML: which runs are to be compared, over which seeds, and how. What `advdistill study` reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from advdistill.errors import RecipeError, did_you_mean
from advdistill.hooks.registry import Registry
from advdistill.recipe.check import Check, check_format
from advdistill.recipe.fields import Config
from advdistill.recipe.loader import find_recipe, override, read_recipe
from advdistill.recipe.model import Natural, Positive
from advdistill.recipe.nodes import InvalidRecipe, KeyPath, Node, Problem, dotted
from advdistill.recipe.suite import FOLDER as SUITES

FOLDER = ("studies", "suites")
"""Where studies lie below every folder of recipes: questions of ours, and the papers' tables."""

Settings = dict[str, Any]
"""Dotted path in a recipe -> value."""


class Level(Config):
    """One row of the table, or one step of an axis: what is different in its cells."""

    recipe: str = ""
    """The recipe of its cells: a name, or a path relative to the study's file; "": the study's."""
    set: Settings = Field(default_factory=dict)
    """Dotted path -> value; null takes a setting out."""
    tune: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Dotted path -> the values to choose from. Every combination is trained once and measured on validation data; the
    best one is what is compared."""
    passes: str = ""
    """Another level of this axis whose image passes this one is meant to spend; the table says whether it does."""


class Tuning(Config):
    """How the configuration of a level is chosen."""

    budget: Positive = 12
    """Configurations that every level with `tune` must offer: none may try more than another."""
    seed: Natural = 1000
    """Seed of the trials; none of the study's."""
    protocol: str = "tuning"
    """Suite on validation data whose attacked column decides; its clean column where two are equal, then the order."""


class Transfer(Config):
    """Who is misled by images made on whom; measured once all cells are there."""

    attack: str = "mi-fgsm"
    """The attack that makes the images."""
    settings: Settings = Field(default_factory=dict)
    """Its settings."""
    limit: Natural = 0
    """Samples, evenly over the classes; 0: all."""


class StudyModel(Config):
    """A study: levels of one or more axes, times seeds."""

    advdistill: Annotated[int, Field(ge=1)]
    """Format: 1."""
    name: Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]
    """Its name; the file's name where it is not given."""
    title: str = ""
    """The question, above the table."""
    recipe: str = ""
    """The recipe of all cells; a level may name another."""
    needs: list[str] = Field(default_factory=list)
    """Recipes that are trained first, in this order, where their folder holds no finished run: models to start from."""
    set: Settings = Field(default_factory=dict)
    """Settings of all cells: dotted path -> value."""
    axes: dict[str, Annotated[dict[str, Level], Field(min_length=1)]] = Field(min_length=1)
    """Axis -> level -> what is different. There is a cell for every combination of levels and every seed."""
    seeds: list[Natural] = Field(default_factory=lambda: [0, 1, 2, 3, 4], min_length=1)
    """A cell's recipe is run with its seeds moved by each of these: `seed` and every `shots_seed` and `init_seed`, so
    that cells of one seed share draw, initialisation, order and noise."""
    tuning: Tuning = Tuning()
    """How levels with `tune` are tuned."""
    protocol: str = "study"
    """Suite that finished cells are measured with, on test data."""
    main: str = ""
    """Heading of the main column; "": the worst case of the attacks in the first ball that was attacked."""
    against: dict[str, str] = Field(default_factory=dict)
    """Axis -> level that the other levels of that axis are compared with, all else equal; none: nothing is compared."""
    columns: list[str] = Field(default_factory=list)
    """Headings to show; none: all."""
    efficiency: bool = False
    """Show robust accuracy on the probes against steps, image passes and seconds, and how much sooner each level comes
    to the final accuracy of the one that it is compared with."""
    others: dict[str, str] = Field(default_factory=dict)
    """Name -> models to show beside the cells, such as undefended ones and teachers: a checkpoint, or NAME@WEIGHTS.
    They are measured as the cells are, on the data and for the threat of the first row, once those have been run."""
    transfer: Transfer | None = None
    """A matrix of transfer between the levels."""


BETWEEN = " · "
"""Joins the names of a row's levels to its own."""

LEAST_SEEDS = 3
"""Fewer seeds give a difference no interval that says anything: with two it is 12.7 standard errors wide."""


@dataclass(frozen=True)
class Study:
    """A valid study.

    Attributes:
        model: what the file says. path: the file. words: overrides for every cell.
        overrides: all words that were given, the study's own keys included.
        recipes, suites: as the file writes them -> the file that is meant.
        root: the file's values with their places. tree: `model` as plain data.
    """

    model: StudyModel
    path: Path
    words: tuple[str, ...]
    overrides: tuple[str, ...]
    recipes: Mapping[str, Path]
    suites: Mapping[str, Path]
    root: Node
    tree: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What it is called."""
        return self.model.name

    def problem(self, path: KeyPath, message: str, hint: str = "") -> Problem:
        """Something that is wrong at `path` in the file, or as near to it as the file says anything."""
        return _problem(self.root, path, message, hint)


def load_study(source: str | Path, registry: Registry, overrides: Sequence[str] = ()) -> Study:
    """Read and check a study; its cells' recipes are not read.

    Args:
        source: a file, or the name of one that ships.
        overrides: words like `seeds=[0,1]` where the first key is one of a study's, which change the study; all
            others, like `data.root=/data`, go to the recipe of every cell, before what its levels set.

    Raises:
        RecipeError: the file is not valid; the message lists every problem.
        UsageError: a word is not of the form key=value.
    """
    own = [word for word in overrides if word.partition("=")[0].split(".")[0] in StudyModel.model_fields]
    path = find_recipe(source, registry, folder=FOLDER)
    root = override(read_recipe(path, registry, folder=FOLDER), own).with_default("name", path.stem)
    check_format(root)
    if "axes" not in root.value and "strategy" in root.value:
        hint = f"`advdistill train {source}` runs it."
        raise InvalidRecipe([_problem(root, ("strategy",), "a study has none: this is a recipe", hint)])
    check = Check(root, registry)
    model = check.validated(StudyModel)
    check.raise_if_any()
    assert model is not None  # None only together with a problem
    named = _named(root, model)
    problems = list(_contradictions(root, model))
    recipes = _found(root, registry, named, "", problems)
    suites = _found(root, registry, _suites(model), SUITES, problems)
    if problems:
        raise InvalidRecipe(problems)
    words = tuple(word for word in overrides if word not in own)
    tree = model.model_dump(mode="json")
    return Study(model, path, words, tuple(overrides), recipes, suites, root, tree)


def _problem(root: Node, path: KeyPath, message: str, hint: str = "") -> Problem:
    node = root.nearest(path)
    return Problem(node.key or node.mark, dotted(path), message, hint)


def _named(root: Node, model: StudyModel) -> dict[KeyPath, str]:
    """Where recipes are named."""
    found: dict[KeyPath, str] = {("recipe",): model.recipe}
    found |= {("needs", index): name for index, name in enumerate(model.needs)}
    for axis, levels in model.axes.items():
        found |= {("axes", axis, name, "recipe"): level.recipe for name, level in levels.items()}
    return {path: name for path, name in found.items() if name}


def _suites(model: StudyModel) -> dict[KeyPath, str]:
    tunes = any(level.tune for levels in model.axes.values() for level in levels.values())
    return {("protocol",): model.protocol, **({("tuning", "protocol"): model.tuning.protocol} if tunes else {})}


def _found(
    root: Node, registry: Registry, named: Mapping[KeyPath, str], folder: str, problems: list[Problem]
) -> dict[str, Path]:
    """The files that are meant. What a file writes is relative to it, like all that recipes write."""
    found = {}
    for path, name in named.items():
        node = root.at(path)
        beside = Path(node.mark.where).parent if node and node.mark.line else None
        try:
            found[name] = find_recipe(name, registry, beside, folder).absolute()
        except RecipeError as error:
            problems.append(_problem(root, path, error.message, error.hint))
    return found


def _contradictions(root: Node, model: StudyModel) -> list[Problem]:
    """What is legal by itself, but not together."""
    found = []

    def fail(path: KeyPath, message: str, hint: str = "") -> None:
        found.append(_problem(root, path, message, hint))

    for axis, levels in model.axes.items():
        for name, level in levels.items():
            if BETWEEN.strip() in name:
                fail(("axes", axis, name), f"{BETWEEN.strip()!r} joins the levels of a row, and no name may have it")
            at = ("axes", axis, name)
            if not model.recipe and len(model.axes) == 1 and not level.recipe:
                fail(at, "has no recipe", "Name one for the study (`recipe:`), or for each level.")
            size = configurations(level)
            if level.tune and size != model.tuning.budget:
                message = f"offers {size} configurations, and tuning.budget is {model.tuning.budget}"
                fail((*at, "tune"), message, "Tuning is a part of a method: give each the same number.")
            if level.passes and level.passes not in levels:
                fail((*at, "passes"), f"there is no level {level.passes!r}{did_you_mean(level.passes, levels)}")
    for axis, name in model.against.items():
        if axis not in model.axes:
            fail(("against", axis), f"there is no axis {axis!r}{did_you_mean(axis, model.axes)}")
        elif name not in model.axes[axis]:
            fail(("against", axis), f"{axis} has no level {name!r}{did_you_mean(name, model.axes[axis])}")
    if len(set(model.seeds)) < len(model.seeds):
        fail(("seeds",), "a seed stands twice")
    if model.tuning.seed in model.seeds:
        fail(("tuning", "seed"), f"{model.tuning.seed} is one of the study's seeds", "Choose by runs of another one.")
    if model.against and len(model.seeds) < LEAST_SEEDS:
        hint = "Give more, or compare nothing: against=null."
        fail(("seeds",), f"{len(model.seeds)} are too few for a comparison: it takes {LEAST_SEEDS}", hint)
    return found


def configurations(level: Level) -> int:
    """How many there are to choose from."""
    return math.prod(len(values) for values in level.tune.values())
