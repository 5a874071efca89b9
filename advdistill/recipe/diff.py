"""What differs between two resolved recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from advdistill.recipe.nodes import KeyPath, dotted


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        path: dotted; numbers count list items from 0.
        sides: "both" (the values differ), "left" or "right" (only that side has the path).
        left, right: the values; None on a side that lacks the path.
    """

    path: str
    sides: str
    left: Any
    right: Any


def diff(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Change]:
    """The differences between two trees, in the order of the left one, then what only the right one has."""
    return list(_changes(left, right, ()))


def _changes(left: Any, right: Any, path: KeyPath) -> Iterator[Change]:
    mine, yours = _children(left), _children(right)
    if mine is None or yours is None:
        if left != right or type(left) is not type(right):
            yield Change(dotted(path), "both", left, right)
        return
    for key in [*mine, *(key for key in yours if key not in mine)]:
        here = (*path, key)
        if key not in yours:
            yield Change(dotted(here), "left", mine[key], None)
        elif key not in mine:
            yield Change(dotted(here), "right", None, yours[key])
        else:
            yield from _changes(mine[key], yours[key], here)


def _children(value: Any) -> dict[Any, Any] | None:
    if isinstance(value, Mapping):
        return dict(value)
    return dict(enumerate(value)) if isinstance(value, list) else None
