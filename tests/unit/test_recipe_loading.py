"""Finding recipes, `extends` and overrides.

Guarantees:
- a recipe is found by path, by name in the current folder, among shipped recipes and those of plugins; a miss suggests,
  two plugins with one name are an error that lists both;
- a child merges maps, replaces lists, deletes with null; another `use:` drops the other plugin's settings, but keeps
  what is the host's; parents are found beside the file; a cycle is an error that lists the chain;
- overrides reach every depth and list items, create what is not written, delete with null, and keep their own origin;
- unreadable, empty, binary, too large files and lists are errors with exit code 3; a word without `=` is usage, 2.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from advdistill.errors import RecipeError, UsageError
from advdistill.hooks.manager import Plugin
from advdistill.hooks.registry import Registry
from advdistill.recipe.loader import find_recipe, merge, override, read_recipe
from advdistill.recipe.nodes import InvalidRecipe, parse

NOBODY = Registry([])


def merged(parent: str, child: str) -> object:
    return merge(parse(parent, "p"), parse(child, "c")).plain()


@pytest.mark.parametrize(
    ("parent", "child", "result"),
    [
        ("a: {b: 1, c: 2}", "a: {c: 3, d: 4}", {"a": {"b": 1, "c": 3, "d": 4}}),
        ("a: [1, 2]", "a: [3]", {"a": [3]}),
        ("a: {b: 1, c: 2}", "a: {b: null}", {"a": {"c": 2}}),
        ("a: {b: 1}", "a: null", {}),
        ("a: 1", "b: null", {"a": 1, "b": None}),
        ("a: 1", "a: {b: 1}", {"a": {"b": 1}}),
        ("attack: {use: x, steps: 3}", "attack: {steps: 4}", {"attack": {"use": "x", "steps": 4}}),
        ("attack: {use: x, steps: 3}", "attack: {use: y}", {"attack": {"use": "y"}}),
        ("attack: {use: x, steps: 3}", "attack: {use: y, steps: null}", {"attack": {"use": "y"}}),
        (
            "teachers: {clean: {use: x, train: true, rank: 3}}",
            "teachers: {clean: {use: y}}",
            {"teachers": {"clean": {"train": True, "use": "y"}}},
        ),
        ("optim: {use: adamw, lr: 1}", "optim: {use: sgd}", {"optim": {"use": "sgd", "lr": 1}}),
    ],
)
def test_a_child_over_its_parent(parent: str, child: str, result: object) -> None:
    assert merged(parent, child) == result


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (["a.b=5"], {"a": {"b": 5, "c": [{"n": 1}, {"n": 2}]}}),
        (["a.c.1.n=8/255"], {"a": {"b": 1, "c": [{"n": 1}, {"n": "8/255"}]}}),
        (["a.c.0=null"], {"a": {"b": 1, "c": [{"n": 2}]}}),
        (["a.c=[]", "a.b=null"], {"a": {"c": []}}),
        (["a={b: 2}"], {"a": {"b": 2, "c": [{"n": 1}, {"n": 2}]}}),
        (["d.e.f=1e-3"], {"a": {"b": 1, "c": [{"n": 1}, {"n": 2}]}, "d": {"e": {"f": 0.001}}}),
        (["a.b=x=y"], {"a": {"b": "x=y", "c": [{"n": 1}, {"n": 2}]}}),
        (["a="], {}),
    ],
)
def test_overrides_reach_everything(words: list[str], result: object) -> None:
    assert override(parse("a: {b: 1, c: [{n: 1}, {n: 2}]}", "r"), words).plain() == result


def test_an_overridden_value_points_into_the_word() -> None:
    node = override(parse("a: 1", "r"), ["b.c=[1, 2]"]).at(("b", "c", 1))
    assert node is not None
    assert (str(node.mark), node.mark.text, node.mark.column) == ("override", "b.c=[1, 2]", 9)


@pytest.mark.parametrize("word", ["steps", "=3", "a..b=3", ".a=1", "extends=x"])
def test_what_is_not_an_override_is_a_usage_error(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        override(parse("a: 1", "r"), [word])
    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("a.2=1", "override: a.2: the list has 2 items, counted from 0"),
        ("a.x=1", "the list has 2 items"),
        ("b.0.c=1", "override: b.0: the recipe does not write b"),
        ("c=[1", "    c=[1\n        ^"),
        ("c=!!python/none x", "tag !!python/none is not allowed"),
    ],
)
def test_overrides_that_do_not_fit(word: str, message: str) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        override(parse("a: [1, 2]", "r"), [word])
    assert message in caught.value.message


def test_extends_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "base.yaml").write_text("seed: 1\ntrain: {steps: 5}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "middle.yaml").write_text("extends: base\ntrain: {batch_size: 8}\n")
    (tmp_path / "sub" / "leaf.yaml").write_text("extends: ./middle.yaml\nseed: 2\n")
    registry = Registry([Plugin("p", "d", "1", (shelf,))])
    root = read_recipe(find_recipe("sub/leaf.yaml", registry), registry)
    assert root.plain() == {"seed": 2, "train": {"steps": 5, "batch_size": 8}}
    steps = root.at(("train", "steps"))
    assert steps is not None and str(steps.mark) == "shelf/base.yaml:2:16"


def test_a_recipe_cannot_extend_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("extends: b.yaml\n")
    Path("b.yaml").write_text("seed: 1\nextends: a.yaml\n")
    with pytest.raises(InvalidRecipe) as caught:
        read_recipe(Path("a.yaml"), NOBODY)
    assert caught.value.message == (
        "b.yaml:2:10: extends: a recipe cannot extend itself: a.yaml -> b.yaml -> a.yaml\n"
        "    extends: a.yaml\n             ^"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: [a, b]\n", "r.yaml:1:10: extends: must be one recipe"),
        ("seed: 1\nextends: nowhere\n", "r.yaml:2:10: extends: there is no recipe 'nowhere'"),
        ("", "r.yaml:1:1: the recipe is empty"),
        ("# only a comment\n", "the recipe is empty"),
        ("- a\n- b\n", "r.yaml:1:1: a recipe is a map of keys"),
        ("x" * (1 << 20) + ": 1", "1.0 MiB is no recipe"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(text)
    with pytest.raises(InvalidRecipe) as caught:
        read_recipe(Path("r.yaml"), NOBODY)
    assert message in caught.value.message


def test_a_binary_file_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\x89PNG\x00\xff")
    with pytest.raises(InvalidRecipe, match="not UTF-8 text: byte 0 is 0x89"):
        read_recipe(tmp_path / "r.yaml", NOBODY)


def test_finding_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.yaml").write_text("seed: 1\n")
    one, two = (Plugin(name, name, "1", (tmp_path / name,)) for name in ("one", "two"))
    assert find_recipe("mine", Registry([one])) == tmp_path / "one" / "mine.yaml"
    with pytest.raises(RecipeError, match=r"several recipes named 'mine': .*one.*two") as caught:
        find_recipe("mine", Registry([one, two]))
    assert caught.value.hint
    with pytest.raises(RecipeError, match="did you mean 'mine'") as caught:
        find_recipe("mien", Registry([one]))
    assert caught.value.exit_code == 3
    with pytest.raises(RecipeError, match=r"did you mean 'one/mine\.yaml'"):
        find_recipe("one/mien.yaml", Registry([one]))
    (tmp_path / "mine.yaml").write_text("seed: 2\n")
    assert find_recipe("mine", Registry([one, two])).resolve() == tmp_path / "mine.yaml"
    broken = Plugin("one", "one", "1", (tmp_path / "one",), error=ValueError("x"))
    with pytest.raises(RecipeError):
        find_recipe("other", Registry([broken]))
