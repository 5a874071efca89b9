"""Calls of the command line in this process, with what they print and return."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from advdistill.cli.main import app


@dataclass(frozen=True)
class Said:
    """What a call printed and returned."""

    code: int
    out: str
    err: str


Cli = Callable[..., Said]


def call(*words: object) -> Said:
    """`call("recipe", "list")` as a pipe sees it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        app([str(word) for word in words], prog_name="advdistill")
    code = left.value.code
    return Said(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())
