"""Settings of APD. The paper's values are not public: every default is inferred.

Which teacher it is belongs to the recipe: a block that is the student's twin, that starts elsewhere (`init_seed`), or
that has another backbone; `train: true` (online), frozen (offline), or `ema` (the student's own average); its learning
rate is `optim.groups.clean.lr`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from advdistill import Config

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Direction = Literal["teacher-first", "student-first"]


class APD(Config):
    """Adversarial Prompt Distillation."""

    beta: Weight = 1.0
    """Weight of the student's feedback to a teacher that learns; 0: none. (inferred)"""
    feedback_form: Literal["additive", "convex"] = "additive"
    """A learning teacher's loss: CE + beta KL, or (1 - beta) CE + beta KL. (inferred)"""
    feedback_detach: bool = True
    """The feedback sends its gradient to the teacher alone; false: to the student as well. (inferred)"""
    student_kl: Direction = "teacher-first"
    """The student's loss: KL(T || S), or KL(S || T). (inferred)"""
    feedback_kl: Direction = "student-first"
    """The feedback: KL(S || T), or KL(T || S). (inferred)"""
    student_ce_weight: Weight = 0.0
    """Weight of the label's cross-entropy in the student's loss. (inferred)"""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides both logits of both KL terms. (inferred)"""
    temperature_squared: bool = False
    """Multiply both KL terms by the temperature's square, which keeps their gradients' size. (inferred)"""
    update_order: Literal["simultaneous", "alternate"] = "simultaneous"
    """One update of both a batch, or the student's first and then the teacher's, which hears the updated student on the
    same adversarial images. (inferred)"""

    @model_validator(mode="after")
    def _convex(self) -> APD:
        if self.feedback_form == "convex" and self.beta > 1:
            raise ValueError(f"a convex feedback needs beta in [0, 1], not {self.beta:g}")
        return self


def check(config: APD, recipe: Any) -> Iterator[tuple[str, str]]:
    """Two that take turns must both learn."""
    if config.update_order == "alternate" and not recipe.teachers["clean"].train:
        yield "update_order", "alternating updates need a teacher that learns; set teachers.clean.train: true"
