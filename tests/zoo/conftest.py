"""Defences and honest models on a few images."""

from __future__ import annotations

import pytest

from advdistill.engine import judge


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts fill their portions up, and here there are 16 or 20 images only."""
    monkeypatch.setattr(judge, "PORTION", 20)
