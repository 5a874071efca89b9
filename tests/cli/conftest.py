"""The command line, called in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_parts import Cli, call


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli("recipe", "list")`, in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")
    return call
