"""A registry of made-up plugins, and a recipe that fits it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from advdistill import (
    AttackSpec,
    Config,
    DatasetSpec,
    PixelDistance,
    ReporterSpec,
    StrategySpec,
    StudentSpec,
    TeacherSpec,
)
from advdistill.hooks.manager import Plugin
from advdistill.hooks.registry import Registry
from advdistill.recipe.dump import to_yaml
from advdistill.recipe.resolve import Recipe, load_recipe


class Climb(Config):
    steps: int = 10
    """How many."""
    step: PixelDistance = 0.0
    """How far; 0: the attack decides."""
    random_start: bool = False


class Tower(Config):
    model: str
    """Which one."""
    rank: int = 4


class Mix(Config):
    weighting: Literal["sigmoid", "equal"] = "sigmoid"
    beta: float = 1.0


def hot(config: Mix, recipe: Recipe) -> Any:
    if config.beta > recipe.train.batch_size:
        yield "beta", "larger than the batch"


def registry() -> Registry:
    """Attacks climb (any objective, linf and l2) and labels (linf); students tower and other; strategies with a clean
    teacher (mix), that and perhaps a guide (guided), or more of any name (many), and none (plain, by-labels); dataset
    shapes; reporters console and jsonl."""
    target = "no_such_module:Thing"
    offers = (
        AttackSpec(name="climb", target=target, config=Climb, norms={"linf", "l2"}, objective=True),
        AttackSpec(name="labels", target=target, config=Climb, norms={"linf"}),
        StudentSpec(name="tower", target=target, config=Tower),
        StudentSpec(name="other", target=target, config=Tower),
        TeacherSpec(name="frozen", target=target, config=Tower),
        StrategySpec(
            name="mix", target=target, config=Mix, check=hot, teachers={"clean": "an accurate one"}, trains={"clean"}
        ),
        StrategySpec(name="guided", target=target, teachers={"clean": "an accurate one"}, optional={"guide": "a hint"}),
        StrategySpec(
            name="many", target=target, teachers={"clean": "an accurate one"}, optional={"*": "more"}, trains={"*"}
        ),
        StrategySpec(name="plain", target=target, attack=None),
        StrategySpec(name="by-labels", target=target, attack="labels"),
        DatasetSpec(name="shapes", target=target),
        ReporterSpec(name="console", target=target),
        ReporterSpec(name="jsonl", target=target),
    )
    return Registry([Plugin("made_up", "made-up", "1.2", offers)])


RECIPE = """\
advdistill: 1
threat: {norm: linf, eps: 8/255}
data: {use: shapes}
teachers:
  clean: {use: frozen, model: large}
student: {use: tower, model: small}
attack: {use: climb, steps: 5, step: 2/255}
strategy: {use: mix}
optim: {lr: 1e-3}
train: {steps: 20}
evaluate:
  protocols:
    - {name: clean}
    - {name: strong, attack: {use: climb, steps: 20}}
"""


def load(text: str, folder: Any, *overrides: str) -> Recipe:
    """The recipe written as `text` to `folder`/r.yaml, resolved against `registry()`."""
    (folder / "r.yaml").write_text(text)
    return load_recipe(folder / "r.yaml", overrides, registry())


def again(tree: Mapping[str, Any], folder: Any) -> Recipe:
    """The recipe that `tree` stands for, by way of a file."""
    return load(to_yaml(tree), folder)
