"""Where a published data set lies on this machine, and how much of it is there. Looks at a few paths, walks no tree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from advdistill.errors import DataError, MissingData
from advdistill.hooks.origin import Origin
from advdistill.recipe.paths import data_home, resource

WORK = ".advdistill-fetch"
"""Folder in a data set's own that holds what has come of a fetch that is not finished."""
STATE = "state.json"
RECEIPT = ".advdistill.json"
"""File in a data set's own folder that says what was fetched from where."""

State = Literal["there", "incomplete", "missing"]


@dataclass(frozen=True)
class Place:
    """A data set's own folder and what is in it.

    Attributes:
        state: "missing": nothing of what it needs is there.
        missing: what it needs and has not, as its origin writes it.
        without: what it would want and has not -> what it is read without.
        resume: the command that goes on with a fetch that was not finished; "": there is none.
    """

    folder: Path
    state: State
    missing: tuple[str, ...]
    without: Mapping[str, str]
    resume: str


def data_folder(origin: Origin, root: str = "") -> Path:
    """A data set's own folder, for those who read it; it need not exist.

    Args:
        root: that folder, or one that holds it under its usual name; "": the usual place below `ADVDISTILL_DATA`.

    Raises:
        MissingData: a fetch into it was not finished. DataError: `root` is no path.
    """
    folder = located(origin, root)
    if state := unfinished(folder):
        raise MissingData(
            f"{folder} is incomplete: a fetch into it was not finished",
            f"go on with: {state['command']}; or, if you have brought the rest yourself, remove {folder / WORK}",
        )
    return folder


def located(origin: Origin, root: str = "") -> Path:
    """As `data_folder`, finished or not. Raises DataError where `root` is no path."""
    if not root:
        return data_home() / origin.folder
    try:
        given = resource(root)
        below = given / origin.folder
        holds_it = below.is_dir() and unfinished(given) is None and bool(_missing(origin, given))
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, ~ of a user that does not exist
        raise DataError(f"{root!r} is no path: {error}", "correct the root of the data") from error
    return below if holds_it else given


def place(origin: Origin, root: str = "") -> Place:
    """How much of a data set is there. Arguments and errors as for `located`."""
    folder = located(origin, root)
    missing, state = _missing(origin, folder), unfinished(folder)
    without = {path: what for path, what in (origin.wants or {}).items() if not _holds(folder, path)}
    found: State = "incomplete" if missing or state else "there"
    if not state and (len(missing) == len(origin.needs) if origin.needs else not exists(folder)):
        found = "missing"
    return Place(folder, found, missing, without, state["command"] if state else "")


def unfinished(folder: Path) -> dict[str, Any] | None:
    """What a fetch that was not finished has left to say: `command`, and `done`, file -> facts; None: there is none."""
    try:
        state = json.loads((folder / WORK / STATE).read_text(encoding="utf-8"))
        return {"command": str(state["command"]), "done": dict(state["done"])}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return {"command": "advdistill data fetch NAME", "done": {}}


def exists(path: Path) -> bool:
    """Whether there is something, as far as it can be seen from here."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _missing(origin: Origin, folder: Path) -> tuple[str, ...]:
    return tuple(need for need in origin.needs if not _holds(folder, need))


def _holds(folder: Path, need: str) -> bool:
    return any(exists(folder / path) for path in need.split("|"))
