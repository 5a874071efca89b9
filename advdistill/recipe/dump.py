"""A resolved recipe as YAML that reads back to the same tree."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from advdistill.recipe.nodes import KeyPath, dotted, parse

_PLAIN = re.compile(r"[A-Za-z0-9_./~][\w./~+@-]*")


def to_yaml(tree: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> str:
    """Block-style YAML.

    Args:
        tree: plain data, such as `Recipe.tree`.
        origins: dotted path -> what to put behind the value as a comment.
    """
    lines = list(_lines(tree, (), ""))
    if origins is None:
        return "".join(f"{text}\n" for text, _ in lines)
    commented = [(text, origins.get(dotted(path), "") if path else "") for text, path in lines]
    width = max((len(text) for text, origin in commented if origin and len(text) <= 60), default=0)
    return "".join(f"{text.ljust(width)}  # {origin}\n" if origin else f"{text}\n" for text, origin in commented)


def _lines(value: Any, path: KeyPath, indent: str) -> Iterator[tuple[str, KeyPath]]:
    """Each line with the path of the scalar on it, () where it holds none."""
    for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        here = (*path, key)
        head = f"{indent}{_scalar(key)}:" if isinstance(value, Mapping) else f"{indent}-"
        if isinstance(item, (Mapping, list, tuple)) and item:
            if isinstance(value, Mapping):
                yield head, ()
                yield from _lines(item, here, indent + "  ")
            else:
                # The first line of the item moves up beside the dash.
                first, *rest = _lines(item, here, indent + "  ")
                yield f"{head} {first[0].lstrip()}", first[1]
                yield from rest
        else:
            yield f"{head} {_scalar(item)}", here


def _scalar(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, (list, tuple)):
        return "[]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and parse(value, "").value == value:
        return value
    return json.dumps(value, ensure_ascii=False)
