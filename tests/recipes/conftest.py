"""Recipes on a few images."""

from __future__ import annotations

import pytest

from advdistill.engine import judge


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts fill their portions up, and here there are a few images only."""
    monkeypatch.setattr(judge, "PORTION", 4)
