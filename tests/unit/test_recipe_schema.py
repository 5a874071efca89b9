"""Diff and schema.

Guarantees:
- a diff lists exactly the paths that differ, and which side has them;
- the schema knows every plugin's settings with their docs and no others, links every block to its kind, requires
  nothing that `extends` may bring, and all its references resolve;
- it takes the sizes that are read, and no others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from recipe_parts import registry

from advdistill.hooks.registry import default_registry
from advdistill.recipe.diff import Change, diff
from advdistill.recipe.fields import Bytes
from advdistill.recipe.schema import recipe_schema


def test_a_diff_lists_what_differs() -> None:
    left = {"a": 1, "b": {"c": [1, 2], "d": None}, "same": [{}], "e": {"x": 1}, "n": 1}
    right = {"a": 2, "b": {"c": [1, 3, 4]}, "same": [{}], "e": 5, "f": "new", "n": 1.0}
    assert diff(left, right) == [
        Change("a", "both", 1, 2),
        Change("b.c.1", "both", 2, 3),
        Change("b.c.2", "right", None, 4),
        Change("b.d", "left", None, None),
        Change("e", "both", {"x": 1}, 5),
        Change("n", "both", 1, 1.0),
        Change("f", "right", None, "new"),
    ]
    assert diff(left, left) == []


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_reference_in_the_schema_resolves() -> None:
    for each in (registry(), default_registry()):
        schema = json.loads(json.dumps(recipe_schema(each)))
        found = set(references(schema))
        assert {"#/$defs/student-block", "#/$defs/attack-block", "#/$defs/teacher-block"} <= found
        for reference in found:
            assert reference.removeprefix("#/$defs/") in schema["$defs"]


def test_the_schema_knows_the_plugins() -> None:
    schema = recipe_schema(registry())
    assert schema["$defs"]["teacher-block"]["properties"]["use"]["enum"] == ["frozen", "other", "tower"]
    (climb,) = [
        case["then"]
        for case in schema["$defs"]["attack-block"]["allOf"]
        if case["if"]["properties"]["use"]["const"] == "climb"
    ]
    assert climb["additionalProperties"] is False
    assert climb["properties"]["steps"]["description"] == "How many."
    assert climb["properties"]["step"]["anyOf"][1]["pattern"]
    assert schema["properties"]["threat"]["$ref"] == "#/$defs/Threat"
    assert "required" not in schema["$defs"]["Optim"]
    assert schema["anyOf"][1]["required"] == ["advdistill", "threat", "data", "student", "strategy", "optim", "train"]


@pytest.mark.parametrize(
    "size", ["5", "5 B", "2 GiB", "500MiB", " 1.5 TiB ", "5 Ki", "5 iB", "GiB", "-1", "1 GB", "5 B B", "nan"]
)
def test_sizes_are_read_as_the_schema_says(size: str) -> None:
    adapter = TypeAdapter(Bytes)
    pattern = adapter.json_schema()["anyOf"][1]["pattern"]
    try:
        adapter.validate_python(size)
    except ValidationError:
        assert not re.search(pattern, size)
    else:
        assert re.search(pattern, size)
