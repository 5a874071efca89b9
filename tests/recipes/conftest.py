"""Recipes on a few images."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from advdistill.engine import judge

sys.path.append(str(Path(__file__).parents[1] / "unit"))  # layouts.py, trees as published data sets have them


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts fill their portions up, and here there are a few images only."""
    monkeypatch.setattr(judge, "PORTION", 4)
