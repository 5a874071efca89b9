"""Settings of the classical methods. Defaults are the released codes', on logits at CLIP's scale."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from advdistill import Config

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(gt=0, le=1)]  # at 0 no adversarial image would be seen


class ARD(Config):
    """Adversarially Robust Distillation."""

    temperature: Positive = 30.0
    """Divides the logits of both sides of the KL, which its square multiplies. (IAD's version of ARD: 1)"""
    alpha: Part = 1.0
    """Weight of the KL; 1 - alpha is that of the cross-entropy on clean images."""


class RSLAD(Config):
    """Robust Soft Label Adversarial Distillation."""

    adversarial_weight: Positive = 5 / 6
    """Weight of the KL on adversarial images."""
    clean_weight: Weight = 1 / 6
    """Weight of the KL on clean images."""


class IAD(Config):
    """Introspective Adversarial Distillation: IAD-I with a robust teacher, IAD-II with a clean one beside it."""

    alpha: Part = 1.0
    """IAD-I: weight of all that is distilled; 1 - alpha is that of the cross-entropy on clean images."""
    robust_weight: Share = 0.5
    """IAD-II: weight of what the robust teacher and the student itself teach."""
    clean_weight: Share = 0.25
    """IAD-II: weight of the clean teacher; the rest of 1 is that of the cross-entropy on adversarial images."""
    beta: Weight = 0.1
    """Trust in the robust teacher is its probability of the adversarial image's label to this power."""
    begin: Share | None = None
    """Share of the run before which the robust teacher is trusted wholly; null: 0.3 for IAD-I, 0.2 for IAD-II (epochs
    60 and 40 of 200)."""
    temperature: Positive = 1.0
    """Divides the logits of both sides of the teachers' KLs, which its square multiplies."""

    @model_validator(mode="after")
    def _at_most_one(self) -> IAD:
        if self.robust_weight + self.clean_weight > 1:
            raise ValueError("robust_weight and clean_weight must not add up to more than 1")
        return self


class AdaAD(Config):
    """Adaptive Adversarial Distillation."""

    alpha: Part = 1.0
    """Weight of the KL on adversarial images; 1 - alpha is that of the KL on clean ones."""
