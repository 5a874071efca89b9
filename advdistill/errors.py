"""Errors that a user can act on. Everything else is a bug and keeps its traceback.

Exit codes: 0 ok · 1 run failed · 2 usage · 3 recipe invalid · 4 plugin missing or broken ·
5 data or weights missing or unreadable · 130 interrupted.
"""

from __future__ import annotations

import contextlib
import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class UserError(Exception):
    """Something the user can put right.

    Args:
        message: what is wrong, with the offending value in it.
        hint: what to do next; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RunError(UserError):
    """A run that started could not finish (non-finite loss, disk full, folder taken)."""

    exit_code = 1


class Diverged(RunError):
    """A run's numbers are not finite any more: what it learns is lost, and the same settings will lose it again."""


class UsageError(UserError):
    """The command line or a Python call was given something it cannot mean."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe is invalid; `message` lists every problem, one block each."""

    exit_code = 3


class PluginError(UserError):
    """A plugin that is needed is missing, broken, or claims a name that another one has."""

    exit_code = 4


class DataError(UserError):
    """Data, weights or a checkpoint are missing or cannot be read."""

    exit_code = 5


class MissingData(DataError):
    """Data is not on this machine. A plan, or a step's cost, can do without: neither looks at pixels."""


class MissingSplit(DataError):
    """A data set has no such split, or keeps it closed."""


class RunWarning(UserWarning):
    """A run goes on, though not as it was asked to; its reporters are told."""


@contextlib.contextmanager
def run_warnings(tell: Callable[[str], None]) -> Iterator[None]:
    """Every `RunWarning` is told so for a while; other warnings go where they always went."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def told(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, RunWarning):
                tell(str(message))
            else:
                others(message, category, *where, **more)

        warnings.showwarning = told
        warnings.simplefilter("always", RunWarning)
        yield


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about a `word` that is not among the `known` ones; "" where none of them is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
