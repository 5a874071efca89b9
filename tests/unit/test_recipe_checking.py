"""Checking recipes.

Guarantees:
- every problem of every phase is reported at once, each at its line and column with a caret, sorted, and a wrong block
  hides nothing in another;
- unknown keys, names and choices get a suggestion; missing keys say what they are for; types are told in plain words;
- each cross-check fires where it should, and nowhere on the good recipe;
- a recipe that could only fail for want of a plugin is a PluginError (4), every other one a RecipeError (3);
- what a field of several types takes is told once, under its own key;
- an attack that cannot reach eps is a warning, and so is compile: on where nothing is compiled;
- whatever value stands wherever, the outcome is a recipe or a UserError.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recipe_parts import RECIPE, again, load, registry

from advdistill.errors import PluginError, RecipeError, UserError
from advdistill.hooks.manager import Plugin
from advdistill.hooks.registry import Registry
from advdistill.recipe.nodes import InvalidRecipe, parse
from advdistill.recipe.resolve import load_recipe


def test_the_good_recipe_has_no_problem_and_no_warning(tmp_path: Path) -> None:
    assert load(RECIPE, tmp_path).warnings == ()


def test_every_problem_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad = """\
advdistill: 1
threat: {norm: linf, eps: 8}
data: {use: shapez}
teachers:
  rubust: {use: frozen, model: 3}
student: {use: tower, modle: small}
attack: {use: climb, stepz: 5, step: far}
strategy: {use: mix, weighting: sigmod}
optim: {lr: 0}
train: {steps: 5, batch_size: 64, accumulate: 3}
evaluate: {every: often, protocols: [{name: a, attack: {steps: 3}}]}
sede: 1
"""
    with pytest.raises(InvalidRecipe) as caught:
        load(bad, tmp_path)
    assert caught.value.message == (
        """\
r.yaml:2:27: threat.eps: 8 is wider than the whole pixel range, 0 to 1; write eps: 8/255
    threat: {norm: linf, eps: 8}
                              ^
r.yaml:3:13: data.use: there is no dataset named 'shapez'; did you mean 'shapes'?
    data: {use: shapez}
                ^
r.yaml:4:1: teachers.clean: strategy 'mix' needs a teacher in this role: an accurate one
    teachers:
    ^
r.yaml:5:3: teachers.rubust: strategy 'mix' has no such role (its roles: clean)
      rubust: {use: frozen, model: 3}
      ^
r.yaml:5:32: teachers.rubust.model: must be text, not 3
      rubust: {use: frozen, model: 3}
                                   ^
r.yaml:6:1: student.model: missing: Which one.
    student: {use: tower, modle: small}
    ^
r.yaml:6:23: student.modle: unknown key; did you mean 'model'?
    student: {use: tower, modle: small}
                          ^
r.yaml:7:22: attack.stepz: unknown key; did you mean 'step'?
    attack: {use: climb, stepz: 5, step: far}
                         ^
r.yaml:7:38: attack.step: 'far' is not a distance; write it like 8/255
    attack: {use: climb, stepz: 5, step: far}
                                         ^
r.yaml:8:33: strategy.weighting: must be 'sigmoid' or 'equal', not 'sigmod'; did you mean 'sigmoid'?
    strategy: {use: mix, weighting: sigmod}
                                    ^
r.yaml:9:13: optim.lr: must be greater than 0, not 0
    optim: {lr: 0}
                ^
r.yaml:10:47: train.accumulate: 3 equal portions do not make a batch of 64
    train: {steps: 5, batch_size: 64, accumulate: 3}
                                                  ^
r.yaml:11:19: evaluate.every: must be a whole number, not 'often'
    evaluate: {every: often, protocols: [{name: a, attack: {steps: 3}}]}
                      ^
r.yaml:11:56: evaluate.protocols.0.attack: says not which attack: it needs `use: NAME`
    evaluate: {every: often, protocols: [{name: a, attack: {steps: 3}}]}
                                                           ^
r.yaml:12:1: sede: unknown key; did you mean 'seed'?
    sede: 1
    ^"""
    )
    assert "`advdistill plugins show attack:climb`" in caught.value.hint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["threat=null"], "threat: missing: Norm and radius"),
        (["student=null"], "student: missing: The model that is hardened."),
        (["student=tower"], "student: must be a map of keys, not 'tower'"),
        (["student.use=3"], "student.use: must be the name of a student"),
        (["student.train=true"], "student.train: unknown key"),
        (["teachers.clean.train=maybe"], "teachers.clean.train: must be true or false, not 'maybe'"),
        (["seed=-1"], "seed: must be greater than or equal to 0, not -1"),
        (["seed=1.5"], "seed: must be a whole number, not 1.5"),
        (["train.accumulate=-1"], "train.accumulate: must be a whole number from 1 on, or auto, not -1"),
        (["train.class_chunk=often"], "train.class_chunk: must be a whole number from 0 on, or auto, not 'often'"),
        (["train.workers=[1]"], "train.workers: must be a whole number from 0 on, or auto\n"),
        ([f"train.cache_limit={'9' * 400}"], "is no number of bytes; write it like 2 GiB"),
        (["train.keep_images=1.2.3 GiB"], "train.keep_images: '1.2.3 GiB' is no number of bytes; write it like 2 GiB"),
        (["train.steps=true"], "train.steps: must be a number, not true or false"),
        (["attack.steps=true"], "attack.steps: must be a number, not true or false"),
        (["name='a b'"], "name: "),
        (["advdistill=2"], "advdistill: the recipe has format 2; this version reads up to 1"),
        (["advdistill=null"], "advdistill: missing: the format of the recipe"),
        (["advdistill=0"], "advdistill: must be greater"),
        (["threat.eps=0"], "threat.eps: 0 allows no perturbation"),
        (["threat.eps=-1/255"], "threat.eps: '-1/255' is not a distance: it must be finite and at least 0"),
        (["threat.eps=.nan"], "threat.eps: "),
        (["threat.norm=linff"], "did you mean 'linf'?"),
        (["threat={norm: l0, eps: 8/255}"], "threat.eps: l0 counts values"),
        (["threat={norm: l1, eps: 12}"], "attack.use: 'climb' does not know the norm l1, only l2, linf"),
        (["evaluate.protocols.1.threat={norm: l2, eps: 0}"], "evaluate.protocols.1.threat.eps: 0 allows"),
        (
            ["evaluate.protocols.1.threat={norm: l2, eps: 1}", "evaluate.protocols.1.attack.use=labels"],
            "evaluate.protocols.1.attack.use: 'labels' does not know the norm l2, only linf",
        ),
        (["attack=null"], "attack: strategy 'mix' needs an attack"),
        (["attack.use=labels"], "attack.use: strategy 'mix' brings its own objective; 'labels' is driven by labels"),
        (["strategy.use=plain"], "teachers.clean: strategy 'plain' has no such role (its roles: none)"),
        (["train.steps=0"], "train: says not how long to train"),
        (["train.epochs=3"], "train.epochs: give steps or epochs, not both (20 and 3)"),
        (["evaluate.protocols.1.name=clean"], "evaluate.protocols.1.name: 'clean' stands twice"),
        (["evaluate.select=robust"], "evaluate.select: nothing to select by: evaluate.every is 0"),
        (
            ["strategy.use=plain", "teachers=null", "attack=null", "evaluate.every=5", "evaluate.select=robust"],
            "evaluate.select: 'robust' needs an attack to probe with",
        ),
        (
            ["strategy.use=guided", "teachers.giude={use: frozen, model: x}"],
            "teachers.giude: strategy 'guided' has no such role (its roles: clean, guide); did you mean 'guide'?",
        ),
        (
            ["strategy.use=many", "teachers={clean: null, a: {use: frozen, model: x}}"],
            "teachers.clean: strategy 'many' needs",
        ),
        (
            ["strategy.use=many", "teachers.clean.train=true"],
            "teachers.clean.train: strategy 'many' has no loss that would train the clean teacher",
        ),
        (
            ["teachers.clean.ema=0.9"],
            "teachers.clean.ema: a teacher that follows the student must be its twin",
        ),
        (["teachers.clean.ema=1"], "teachers.clean.ema: must be less than 1, not 1"),
        (["teachers.clean={ema: 0.9, train: true}"], "teachers.clean: a teacher that follows the student"),
        (["optim.groups.clean.lr=1"], "optim.groups.clean: this teacher does not train"),
        (["optim.groups.claen.lr=1"], "optim.groups.claen: there is no teacher in this role; did you mean 'clean'?"),
        (["teachers.Clean={use: frozen, model: x}"], "teachers.Clean: "),
        (["teachers.student={use: frozen, model: x}"], "'student' is not a role of a teacher"),
        (["strategy.beta=65"], "strategy.beta: larger than the batch"),
        (["report=[{use: konsole}]"], "report.0.use: there is no reporter named 'konsole'; did you mean 'console'?"),
        (["plugins=[3]"], "plugins.0: must be text, not 3"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(RECIPE, tmp_path, *words)
    assert message in caught.value.message
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "words",
    [
        ["strategy.use=by-labels", "teachers=null", "attack.use=labels"],
        ["strategy.use=guided"],
        ["strategy.use=guided", "teachers.guide={use: frozen, model: x}"],
        [
            "strategy.use=many",
            "teachers.any={use: frozen, model: x, train: true}",
            "teachers.own={use: tower, model: small, ema: 0.9}",
        ],
        ["strategy.use=plain", "teachers=null", "attack=null"],
        ["teachers.clean={use: other, model: x, train: true}", "optim.groups.clean.lr=1e-5", "optim.groups.student={}"],
        ["threat={norm: l2, eps: 1.5}", "evaluate.protocols.1.threat={norm: linf, eps: 4/255}"],
        ["evaluate.every=5", "evaluate.select=harmonic"],
        ["train={steps: null, epochs: 2}"],
        ["student.use=made-up:tower", "student.model=x"],
        ["student.use=made_up:tower", "student.model=x"],
    ],
)
def test_what_is_right_passes(tmp_path: Path, words: list[str]) -> None:
    load(RECIPE, tmp_path, *words)


def test_an_attack_that_cannot_reach_eps_is_a_warning(tmp_path: Path) -> None:
    weak = ["attack.steps=2", "attack.step=1/255"]
    assert load(RECIPE, tmp_path, *weak).warnings == ("attack: 2 steps of 1/255 cannot reach eps 8/255",)
    assert load(RECIPE, tmp_path, *weak, "attack.random_start=true").warnings == ()


def test_a_field_of_several_types_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        load(RECIPE, tmp_path, "train.workers=-1", "train.class_chunk=-1")
    assert caught.value.message.count("train.workers") == caught.value.message.count("train.class_chunk") == 2


def test_tf32_is_not_compiled(tmp_path: Path) -> None:
    asked = "train.compile=on", "train.precision=tf32"
    assert [warning[:14] for warning in load(RECIPE, tmp_path, *asked).warnings] == ["train.compile:"]
    assert load(RECIPE, tmp_path, asked[0]).warnings == load(RECIPE, tmp_path, asked[1]).warnings == ()


def test_only_missing_plugins_is_a_plugin_error(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="belongs to the plugin 'elsewhere', which is not installed") as caught:
        load(RECIPE, tmp_path, "student={use: elsewhere:tower, model: x}")
    assert caught.value.exit_code == 4
    assert "pip install elsewhere" in caught.value.hint
    with pytest.raises(PluginError, match=r"cannot read the plugin file .*gone\.py"):
        load(RECIPE, tmp_path, "plugins=[gone.py]")


def test_a_broken_plugin_carries_its_cause(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    broken = Plugin("broken", "broken-dist", "0.3", error=ImportError("no module named torchhh"))
    with pytest.raises(
        PluginError, match=r"broken \(broken-dist 0\.3\): ImportError: no module named torchhh"
    ) as caught:
        load_recipe(tmp_path / "r.yaml", ["attack={use: novel}"], Registry([*registry().plugins, broken]))
    assert isinstance(caught.value.__cause__, PluginError)
    assert caught.value.__cause__.__cause__ is broken.error
    load_recipe(tmp_path / "r.yaml", [], Registry([*registry().plugins, broken]))


def test_a_check_that_fails_is_its_plugins_fault(tmp_path: Path) -> None:
    plugin = tmp_path / "own.py"
    plugin.write_text(
        "from advdistill import DatasetSpec, hookimpl\n"
        "def check(config, recipe):\n    raise KeyError('oops')\n"
        "@hookimpl\ndef advdistill_datasets():\n"
        "    yield DatasetSpec(name='own', target='a:B', check=check)\n"
    )
    with pytest.raises(PluginError, match=r"data: the check of own:own failed: KeyError: 'oops'"):
        load(RECIPE, tmp_path, f"plugins=[{plugin}]", "data.use=own")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(item, (*path, key))


def test_whatever_stands_wherever_is_a_recipe_or_a_user_error(tmp_path: Path) -> None:
    values = [None, True, -1, 1.5, float("nan"), 10**30, "x", "", [], {}, [None], {"use": "climb"}, {"use": ["a"]}]
    good = parse(RECIPE, "r").plain()
    draw, outcomes = random.Random(0), set()
    for tree in (good, dict(again(good, tmp_path).tree)):
        for path in places(tree):
            for value in draw.sample(values, 4):
                changed: Any = copy.deepcopy(tree)
                place = changed
                for step in path[:-1]:
                    place = place[step]
                place[path[-1]] = value
                try:
                    again(changed, tmp_path)
                    outcomes.add("recipe")
                except UserError:
                    outcomes.add("error")
    assert outcomes == {"recipe", "error"}
