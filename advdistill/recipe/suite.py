"""Suites of protocols from YAML: what `advdistill evaluate --protocol` runs. Presets are such files, not code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from advdistill.errors import did_you_mean
from advdistill.hooks.registry import Registry
from advdistill.recipe.check import Check, check_format
from advdistill.recipe.fields import Config
from advdistill.recipe.loader import find_recipe, override, read_recipe
from advdistill.recipe.model import AttackBlock, Block, Natural, Threat
from advdistill.recipe.resolved import Block as ResolvedBlock

FOLDER = "protocols"
"""Where suites lie below every folder of recipes."""

WORDING = ("templates", "prompts")
"""Settings of a data set that say in which sentences its classes are asked for."""


class SuiteProtocol(Config):
    """One column, or several that differ in the radius."""

    attack: AttackBlock | None = None
    """The attack; null: clean accuracy."""
    threat: Threat | None = None
    """The threat; null: the suite's, or else the one that the model was trained for."""
    times: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=lambda: [1.0], min_length=1)
    """One column for each: the radius is multiplied by it. Several make a curve."""
    source: str = "self"
    """The model that the images are made on: `self`, the measured one; `base`, what it was before anything was learned;
    the role of a teacher of its recipe, or `teachers` for each of them; a checkpoint; NAME@WEIGHTS."""


class Scope(Config):
    """Other images or classes to measure on."""

    data: Block | None = None
    """The dataset; null: the model's own."""
    classes: Literal["all", "base", "new", "data"] = "all"
    """Which classes there are to choose from: `base` is the first half of the data set's, `new` the second (CoOp's
    base-to-new protocol); `data`: the data set's own, other than those that the model was trained on."""
    columns: list[str] = Field(default_factory=list)
    """Headings of the protocols that are measured on it; none: all. (Some attacks need more than two classes.)"""


class SuiteModel(Config):
    """A suite of protocols."""

    advdistill: Annotated[int, Field(ge=1)]
    """Format: 1."""
    name: Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]
    """Its name; the file's name where it is not given."""
    seed: Natural = 0
    """Seed of the subset and of the attacks' noise."""
    split: Literal["val", "test"] = "test"
    """Samples to draw from."""
    limit: Natural = 0
    """How many of them, evenly over the classes, the same for all attacks; 0: all."""
    threat: Threat | None = None
    """Norm and radius; null: those that the model was trained for."""
    protocols: dict[str, SuiteProtocol] = Field(min_length=1)
    """Heading -> how the number is taken. Cheap attacks first; clean accuracy and white-box columns are shown first."""
    scopes: dict[str, Scope] = Field(default_factory=dict)
    """Heading -> images and classes; none: the model's own."""
    doubt: Natural = 0
    """Samples that the probes of the doubting indicators are taken on (see `advdistill diagnose`); 0: only what the
    protocols themselves show."""


@dataclass(frozen=True)
class Suite:
    """A valid suite.

    Attributes:
        path: its file, without what overrides changed. attacks: heading -> the attack's block.
        data: scope -> the dataset's block. tree: the whole as plain data; how the classes of a scope's data are asked
            for only where the file says so, since it is then that it counts.
    """

    name: str
    path: Path
    model: SuiteModel
    attacks: Mapping[str, ResolvedBlock]
    data: Mapping[str, ResolvedBlock]
    tree: Mapping[str, Any]


def load_suite(source: str | Path, registry: Registry, overrides: Sequence[str] = ()) -> Suite:
    """Read and check a suite.

    Args:
        source: a file, or the name of one that ships: quick, standard, paranoid, base-to-new.
        overrides: words like `limit=200`.

    Raises:
        RecipeError: the file is not valid; the message lists every problem.
        UsageError, PluginError: as for recipes.
    """
    path = find_recipe(source, registry, folder=FOLDER)
    root = override(read_recipe(path, registry, folder=FOLDER), overrides).with_default("name", path.stem)
    check_format(root)
    check = Check(root, registry)
    model = check.validated(SuiteModel)
    check.names()
    check.settings()
    for name, scope in model.scopes.items() if model else ():
        for place, heading in enumerate(scope.columns):
            if model and heading not in model.protocols:
                message = f"there is no protocol {heading!r}{did_you_mean(heading, model.protocols)}"
                check.fail(("scopes", name, "columns", place), message)
    check.raise_if_any()
    assert model is not None  # None only together with a problem
    attacks = {str(place[1]): block for place, block in check.blocks.items() if place[0] == "protocols"}
    data = {str(place[1]): block for place, block in check.blocks.items() if place[0] == "scopes"}
    tree = model.model_dump(mode="json")
    for name, block in attacks.items():
        tree["protocols"][name]["attack"] = block.tree()
    for name, block in data.items():
        unsaid = set(WORDING) - block.config.model_fields_set
        tree["scopes"][name]["data"] = {key: value for key, value in block.tree().items() if key not in unsaid}
    return Suite(model.name, path, model, attacks, data, tree)
