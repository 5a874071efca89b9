"""YAML with positions: text to a tree whose every value knows where it was written, and problems that point there.

Scalars are read as YAML 1.2 does (`1e-3` is a number; `off`, `yes` and `12:30` are text), a key may stand once, and no
tag makes an object: the outcome is text, numbers, booleans, nothing, lists and maps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import yaml

from advdistill.errors import RecipeError

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
_SHOWN = 100

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Mark:
    """A place in a recipe.

    Attributes:
        where: the file as the user would name it, or "override", "default", "given" (by code).
        line, column: from 1; line 0: `where` has no lines.
        text: the source line, or the override as typed.
    """

    where: str
    line: int = 0
    column: int = 0
    text: str = ""

    def __str__(self) -> str:
        return f"{self.where}:{self.line}:{self.column}" if self.line else self.where

    def caret(self) -> str:
        """The source line with a caret below the column, indented; "" where there is no source."""
        if not self.text:
            return ""
        start = max(0, self.column - 1 - _SHOWN // 2) if len(self.text) > _SHOWN else 0
        shown = self.text[start : start + _SHOWN].replace("\t", " ")
        return f"\n    {shown}\n    {' ' * (self.column - 1 - start)}^"


@dataclass(frozen=True)
class Node:
    """A value and where it stands: text, number, bool, None, `dict[str, Node]` or `list[Node]`."""

    value: Any
    mark: Mark
    key: Mark | None = None

    def plain(self) -> Any:
        """The value without positions."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def at(self, path: KeyPath) -> Node | None:
        """The node below this one at `path`, if it is written down."""
        node: Node | None = self
        for step in path:
            if node is None:
                return None
            if isinstance(node.value, dict):
                node = node.value.get(step)
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
            else:
                return None
        return node

    def with_default(self, key: str, value: Any) -> Node:
        """This map with `key`, where it lacks it."""
        return (
            self if key in self.value else Node({**self.value, key: Node(value, Mark("default"))}, self.mark, self.key)
        )

    def nearest(self, path: KeyPath) -> Node:
        """The deepest node on the way to `path` that is written down."""
        return next(node for end in range(len(path), -1, -1) if (node := self.at(path[:end])))


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a recipe.

    Attributes:
        mark: where; path: dotted, "" for the file as a whole.
        plugin: it lies with an installed plugin, not with the recipe.
    """

    mark: Mark
    path: str
    message: str
    hint: str = ""
    plugin: bool = False

    def __str__(self) -> str:
        return f"{self.mark}: {f'{self.path}: ' if self.path else ''}{self.message}{self.mark.caret()}"


class InvalidRecipe(RecipeError):
    """A recipe with problems; the message shows them all.

    Args:
        problems: at least one, in any order.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(dict.fromkeys(problems), key=lambda p: (p.mark.where, p.mark.line, p.mark.column)))
        hints = dict.fromkeys(problem.hint for problem in self.problems if problem.hint)
        super().__init__("\n".join(map(str, self.problems)), "\n".join(hints))


def dotted(path: KeyPath) -> str:
    """`("evaluate", "protocols", 0)` as `evaluate.protocols.0`."""
    return ".".join(map(str, path))


def from_plain(value: Any, mark: Mark) -> Node:
    """A tree of nodes that all stand at `mark`."""
    if isinstance(value, dict):
        return Node({key: from_plain(item, mark) for key, item in value.items()}, mark, mark)
    if isinstance(value, list):
        return Node([from_plain(item, mark) for item in value], mark, mark)
    return Node(value, mark, mark)


class _Loader(yaml.SafeLoader):
    """PyYAML's reader with the YAML 1.2 core schema for plain scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, Any]]] = {}  # noqa: RUF012 - overrides PyYAML's own


_TAG = "tag:yaml.org,2002:"
for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), _first)


@lru_cache(maxsize=256)  # nobody changes a node, and a study reads its recipes hundreds of times
def parse(text: str, where: str) -> Node:
    """Read one YAML document.

    Args:
        text: the document.
        where: what messages call it.

    Raises:
        InvalidRecipe: it is not YAML, repeats a key, or holds tags or keys that a recipe cannot hold.
    """
    lines = re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text)
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        spot = error.problem_mark or error.context_mark
        line, column = (spot.line + 1, spot.column + 1) if spot else (1, 1)
        source = lines[line - 1] if line <= len(lines) else ""
        message = " ".join(filter(None, (error.context, error.problem)))
        hint = "Indent with spaces: YAML takes no tabs there." if "\\t" in message else ""
        raise InvalidRecipe([Problem(Mark(where, line, column, source), "", message, hint)]) from error
    except yaml.YAMLError as error:
        raise InvalidRecipe([Problem(Mark(where, 1, 1), "", " ".join(str(error).split()))]) from error
    except RecursionError:
        raise InvalidRecipe([Problem(Mark(where, 1, 1), "", "nested too deeply")]) from None
    if root is None:
        return Node(None, Mark(where, 1, 1))
    return _Converter(where, lines).convert(root)


class _Converter:
    """PyYAML's nodes to ours. Aliases are expanded, within a budget, so that a small file cannot grow without end."""

    def __init__(self, where: str, lines: list[str]) -> None:
        self.where, self.lines = where, lines
        self.problems: list[Problem] = []
        self.budget = MAX_NODES
        self.inside: set[int] = set()

    def convert(self, root: yaml.Node) -> Node:
        try:
            node = self._node(root)
        except RecursionError:
            raise InvalidRecipe([Problem(Mark(self.where, 1, 1), "", "nested too deeply")]) from None
        if self.problems:
            raise InvalidRecipe(self.problems)
        return node

    def _mark(self, node: yaml.Node) -> Mark:
        line = node.start_mark.line
        return Mark(self.where, line + 1, node.start_mark.column + 1, self.lines[line])

    def _node(self, node: yaml.Node) -> Node:
        mark = self._mark(node)
        self.budget -= 1
        if self.budget < 0:
            raise InvalidRecipe([Problem(mark, "", f"more than {MAX_NODES:,} values once its aliases are expanded")])
        if id(node) in self.inside:
            raise InvalidRecipe([Problem(mark, "", "a value that contains itself through its anchor")])
        self.inside.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            value: Any = self._scalar(node, mark)
        else:
            if node.tag != _TAG + ("map" if isinstance(node, yaml.MappingNode) else "seq"):
                self._bad_tag(node, mark)
            value = self._map(node) if isinstance(node, yaml.MappingNode) else [self._node(n) for n in node.value]
        self.inside.discard(id(node))
        return Node(value, mark)

    def _map(self, node: yaml.MappingNode) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for key_node, value_node in node.value:
            mark = self._mark(key_node)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
                shown = repr(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a list or map"
                self.problems.append(Problem(mark, "", f"a key must be text, not {shown}; put it in quotes"))
                continue
            value = replace(self._node(value_node), key=mark)
            if key_node.value in found:
                first = found[key_node.value].key
                line = first.line if first else 0
                self.problems.append(
                    Problem(mark, "", f"key {key_node.value!r} stands twice; first on line {line}", "Keep one.")
                )
                continue
            found[key_node.value] = value
        return found

    def _scalar(self, node: yaml.ScalarNode, mark: Mark) -> Any:
        text = node.value
        try:
            if node.tag == _TAG + "str":
                return text
            if node.tag == _TAG + "null":
                return None
            if node.tag == _TAG + "bool":
                return {"true": True, "false": False}[text.lower()]
            if node.tag == _TAG + "int":
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            if node.tag == _TAG + "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError):
            self.problems.append(Problem(mark, "", f"{text[:40]!r} cannot be read as {node.tag[len(_TAG) :]}"))
            return None
        self._bad_tag(node, mark)
        return None

    def _bad_tag(self, node: yaml.Node, mark: Mark) -> None:
        tag = node.tag.replace(_TAG, "!!")
        self.problems.append(
            Problem(mark, "", f"tag {tag} is not allowed", "A recipe holds plain values only; nothing in it is code.")
        )
