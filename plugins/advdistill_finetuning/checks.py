"""What one setting alone cannot show. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Problems = Iterator[tuple[str, str]]


def tecoa(config: Any, recipe: Any) -> Problems:
    """The text tower stays."""
    if learning := _text(recipe.student.config):
        yield "use", f"TeCoA keeps the class features as they are, but {learning} lets them learn; use adversarial-ce"


def trades(config: Any, recipe: Any) -> Problems:
    """The attack leaves the clean image."""
    yield from _starts_apart(recipe, "KL(S(x) || S(x'))")


def fare(config: Any, recipe: Any) -> Problems:
    """The text tower stays; the attack leaves the clean image."""
    yield from _starts_apart(recipe, "the distance from the clean feature")
    if learning := _text(recipe.student.config):
        yield "use", f"FARE never looks at class features, so what {learning} asks for would not learn"


def _text(student: Any) -> str:
    """The student's key that lets class features learn; "" where none is known to."""
    if getattr(getattr(student, "text", None), "tokens", 0):
        return "student.text.tokens"
    if getattr(student, "prompts", 0):
        return "student.prompts"
    if "text" in getattr(student, "towers", ()):
        return "student.towers"
    return "student.tower" if getattr(student, "tower", "visual") != "visual" else ""


def _starts_apart(recipe: Any, objective: str) -> Problems:
    if recipe.attack is not None and getattr(recipe.attack.config, "random_start", True) is False:
        yield "use", f"{objective} has no gradient at the clean image; set attack.random_start: true"
