"""What one setting alone cannot show. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def measures_only(config: Any, recipe: Any) -> Iterator[tuple[str, str]]:
    """Complain where an attack is trained on that hands back the clean image for every sample it cannot break."""
    if recipe.attack is not None and recipe.attack.config is config:
        yield "use", "returns the clean image where it breaks nothing, so there is nothing to train on; use pgd"
