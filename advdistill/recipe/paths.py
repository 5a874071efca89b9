"""Paths in recipes: plain, `~`, or `package:file` for files that an installed package ships."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from advdistill.errors import DataError

_IN_PACKAGE = re.compile(r"([A-Za-z_]\w+):(?![/\\])(.+)")


def resource(path: str) -> Path:
    """Where `path` lies on this machine.

    Args:
        path: a path as written in a recipe, or `package:relative/file`, looked up without importing the package.

    Returns:
        The path; it need not exist. An unknown package leaves the text as it is.
    """
    match = _IN_PACKAGE.fullmatch(path)
    if match and (folder := _package_folder(match[1])):
        return folder / match[2]
    return _expanded(path)


def data_home() -> Path:
    """The folder that published data sets lie in, each in its own: `ADVDISTILL_DATA`, or `data` in the current one."""
    return _expanded(os.environ.get("ADVDISTILL_DATA") or "data")


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~ of a user that does not exist
        raise DataError(f"{path!r} is no path: {error}", "correct it") from error


def file_name(text: str) -> str:
    """`text` as the name of a file or folder: what is neither letter, digit, `-`, `_` nor `.` becomes `_`."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


def _package_folder(name: str) -> Path | None:
    try:
        found = importlib.util.find_spec(name)
    except ValueError:  # what find_spec says of modules that were never imported by name, such as __main__
        return None
    places = found.submodule_search_locations if found else None
    return Path(next(iter(places))) if places else None
