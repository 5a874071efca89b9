"""Reading YAML.

Guarantees:
- scalars are those of YAML 1.2: `1e-3` is a number, `off`, `yes`, dates and `12:30` are text, `0o17` is 15;
- what is not plain YAML data is an error at its file, line and column, with the line and a caret: repeated keys (with
  both lines), tabs, tags (those that would run code above all), keys that are not text, several documents;
- recursion and alias bombs end in an error, quickly;
- every value knows its place;
- dumping and reading give the same tree.
"""

from __future__ import annotations

import math

import pytest

from advdistill.recipe.dump import to_yaml
from advdistill.recipe.nodes import InvalidRecipe, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.", 1.0),
        (".5", 0.5),
        ("-2E+3", -2000.0),
        ("-.inf", -math.inf),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("+7", 7),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("off", "off"),
        ("yes", "yes"),
        ("n", "n"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("8/255", "8/255"),
        ("1_000", "1_000"),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("<<", "<<"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = parse(text, "r.yaml").plain()
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "r.yaml:3:1: key 'a' stands twice; first on line 1\n    a: 3\n    ^"),
        ("a:\n\tb: 1\n", "r.yaml:2:1: while scanning for the next token found character '\\t'"),
        ("a: !!python/object/apply:os.system [ls]", "r.yaml:1:4: tag !!python/object/apply:os.system is not allowed"),
        ("a: !!python/name:os.system x", "tag !!python/name:os.system is not allowed"),
        ("a: !mine {b: 1}", "r.yaml:1:4: tag !mine is not allowed"),
        ("a: !!set {b}", "tag !!set is not allowed"),
        ("a: !!int x", "r.yaml:1:4: 'x' cannot be read as int"),
        ("1: a", "r.yaml:1:1: a key must be text, not '1'"),
        ("? [a]\n: b", "a key must be text, not a list or map"),
        ("a: 1\n---\nb: 2", "r.yaml:2:1: "),
        ("a: [1, 2", "r.yaml:1:9: "),
        ("a: &x [*x]", "r.yaml:1:4: a value that contains itself through its anchor"),
        ("a: *nothing", "r.yaml:1:4: "),
        ("a: \x00", "r.yaml:1:1: "),
        ("[" * 600, "nested too deeply"),
        ("9" * 5000, "cannot be read as int"),
    ],
)
def test_what_is_not_plain_data_is_an_error_at_its_place(text: str, message: str) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        parse(text, "r.yaml")
    assert message in caught.value.message
    assert caught.value.exit_code == 3


def test_all_repeated_keys_are_reported_at_once() -> None:
    with pytest.raises(InvalidRecipe) as caught:
        parse("a: 1\nb: {c: 1, c: 2}\na: 3\n", "r.yaml")
    assert [problem.mark.line for problem in caught.value.problems] == [2, 3]


def test_tabs_come_with_advice() -> None:
    with pytest.raises(InvalidRecipe) as caught:
        parse("a:\n\tb: 1\n", "r.yaml")
    assert "spaces" in caught.value.hint


def test_an_alias_bomb_ends_in_an_error() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(InvalidRecipe, match=r"more than 100,000 values"):
        parse("\n".join(lines), "r.yaml")


def test_aliases_are_allowed() -> None:
    assert parse("a: &x {k: 1}\nb: *x", "r.yaml").plain() == {"a": {"k": 1}, "b": {"k": 1}}


def test_values_and_keys_know_their_places() -> None:
    node = parse("a:\n  - b: 1\n    c: {d: 2}\n", "r.yaml").at(("a", 0, "c", "d"))
    assert node is not None and node.key is not None
    assert str(node.mark) == "r.yaml:3:12"
    assert str(node.key) == "r.yaml:3:9"


def test_dumping_and_reading_give_the_same_tree() -> None:
    tree = {
        "plain": "8/255",
        "text": ["1e-3", "off", "", "null", "0o17", "a: b", "# no", "-", "ü\n\t\u2028x", "true", "'", "[x"],
        "numbers": [0, -1, 1e-5, 1e22, 0.1, 1.0, math.inf, True, None],
        "nested": [[1, [2, {"a": {}}]], {"b": [], "c": [{"d": 1}, {"e": 2}]}],
        "odd key: #": {"1": 2},
    }
    text = to_yaml(tree)
    assert parse(text, "dump").plain() == tree
    commented = to_yaml(tree, {"plain": "r.yaml:1:1", "numbers.0": "default"})
    assert parse(commented, "dump").plain() == tree
    assert "plain: 8/255  # r.yaml:1:1" in commented
