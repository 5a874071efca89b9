"""What one setting alone cannot show. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def learned_beforehand(config: Any, recipe: Any) -> Iterator[tuple[str, str]]:
    """Complain where an attack is trained on that must have seen training images before."""
    if recipe.attack is not None and any(block.config is config for _, block in recipe.attack.all(())):
        yield "use", "is learned once, on a model that stays as it is, so there is nothing to train on; use pgd"
