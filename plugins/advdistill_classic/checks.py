"""What one setting alone cannot show. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def frozen_teachers(config: Any, recipe: Any) -> Iterator[tuple[str, str]]:
    """Complain about a teacher that is to train: no loss is meant for it."""
    for role, teacher in recipe.teachers.items():
        if teacher.train:
            yield "", f"{recipe.strategy.use!r} has no loss for the {role} teacher; drop teachers.{role}.train"
