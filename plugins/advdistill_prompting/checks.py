"""Which student makes which method. No torch here.

A student is known by its settings, so that anybody's can take part: `text.tokens`, `visual.tokens`, `pixels.form` and
`coupling`, as in clip-prompts; `prompts`, as in clip-moapt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Problems = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Prompts:
    """What a student's settings ask to learn."""

    text: bool
    visual: bool
    pixels: bool
    coupled: bool

    @classmethod
    def of(cls, student: Any) -> Prompts:
        """Of a student's Config; one without such settings has no prompts."""
        pixels = getattr(getattr(student, "pixels", None), "form", "none")
        return cls(
            text=bool(getattr(getattr(student, "text", None), "tokens", 0)),
            visual=bool(getattr(getattr(student, "visual", None), "tokens", 0)),
            pixels=pixels != "none",
            coupled=getattr(student, "coupling", "none") != "none",
        )


def apt(config: Any, recipe: Any) -> Problems:
    """Text tokens alone."""
    prompts = Prompts.of(recipe.student.config)
    if not prompts.text or prompts.visual or prompts.pixels:
        yield _wrong(recipe, "learns text tokens alone", "student.text.tokens: 16, student.visual.tokens: 0")


adv_tp = apt


def adv_vp(config: Any, recipe: Any) -> Problems:
    """Visual tokens or pixels, no text."""
    prompts = Prompts.of(recipe.student.config)
    if prompts.text or not (prompts.visual or prompts.pixels):
        yield _wrong(recipe, "learns visual tokens or pixels and no text", "student.text.tokens: 0")


def adv_vlp(config: Any, recipe: Any) -> Problems:
    """Text and visual tokens, independent."""
    prompts = Prompts.of(recipe.student.config)
    if not (prompts.text and prompts.visual) or prompts.coupled:
        yield _wrong(recipe, "learns text and visual tokens, independent of each other", "student.coupling: none")


def adv_maple(config: Any, recipe: Any) -> Problems:
    """Text and visual tokens, coupled."""
    if not Prompts.of(recipe.student.config).coupled:
        yield _wrong(recipe, "learns text and visual tokens that are coupled", "student.coupling: text-to-visual")


def moapt(config: Any, recipe: Any) -> Problems:
    """The routed student."""
    if not getattr(recipe.student.config, "prompts", 0):
        yield _wrong(recipe, "learns a mixture of text prompts", "student.use: clip-moapt")


def fap(config: Any, recipe: Any) -> Problems:
    """The attack leaves the clean image."""
    if getattr(recipe.attack.config, "random_start", True) is False:
        yield "use", "KL(S(x) || S(x')) has no gradient at the clean image; set attack.random_start: true"


def capt(config: Any, recipe: Any) -> Problems:
    """The attack leaves the clean image, where it would find no gradient."""
    if config.objective == "kl":
        yield from fap(config, recipe)


def _wrong(recipe: Any, does: str, instead: str) -> tuple[str, str]:
    name = recipe.strategy.spec.name
    return "use", f"{name} {does}, which this {recipe.student.use} does not; set {instead}, or use adversarial-ce"
