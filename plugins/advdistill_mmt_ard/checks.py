"""What one setting alone cannot show. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Problems = Iterator[tuple[str, str]]


def mmt_ard(config: Any, recipe: Any) -> Problems:
    """Complain about roles that nobody has, and about settings that do not go together."""
    roles = list(recipe.teachers)
    for field in ("weights", "views", "student_views"):
        for role in getattr(config, field):
            if role not in roles:
                yield f"{field}.{role}", f"there is no teacher in this role (there are: {', '.join(roles)})"
    for role in ("clean", "robust"):
        if role in config.weights:
            yield f"weights.{role}", f"this weight is written {role}_weight"
    for role in ("loss", "consistency"):
        if role in roles:
            yield "", f"a teacher's role cannot be {role!r}: a loss term has that name"
    if config.objective == "clean-kl" and config.objective_teacher not in roles:
        yield "objective_teacher", f"there is no teacher in this role (there are: {', '.join(roles)})"
    teaching = [role for role in roles if config.weight(role)]
    if not teaching:
        yield "", "every teacher's weight is 0: nobody teaches"
    elif not config.consistency and all(config.student_view(role) == "clean" for role in teaching):
        yield (
            "",
            (
                "the student would see clean images alone: nobody who teaches compares it on adversarial ones; "
                "set student_views, as in student_views: {clean: adversarial}"
            ),
        )
    if config.gate != "teachers":
        if config.level not in ("contrastive", "logits-embedding"):
            yield "gate", f"level {config.level!r} has one modality; take contrastive or logits-embedding"
        if config.weighting not in ("probability", "sigmoid"):
            yield "gate", f"weighting {config.weighting!r} cannot weigh modalities; take probability or sigmoid"
    if config.weighting == "entropy-temperature" and config.level == "embedding":
        yield "weighting", "features have no temperature; take another level or relative-loss"
    if config.weighting == "saad" and all(config.view(role) == "clean" for role in teaching):
        yield "weighting", "'saad' goes by what a teacher says of adversarial images, but nobody who teaches sees them"
