"""Paths in recipes: plain, `~`, or `package:file` for files that an installed package ships."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

_IN_PACKAGE = re.compile(r"([A-Za-z_]\w+):(?![/\\])(.+)")


def resource(path: str) -> Path:
    """Where `path` lies on this machine.

    Args:
        path: a path as written in a recipe, or `package:relative/file`, looked up without importing the package.

    Returns:
        The path; it need not exist. An unknown package leaves the text as it is.
    """
    match = _IN_PACKAGE.fullmatch(path)
    if match and (found := importlib.util.find_spec(match[1])) and found.submodule_search_locations:
        return Path(next(iter(found.submodule_search_locations))) / match[2]
    return Path(path).expanduser()
