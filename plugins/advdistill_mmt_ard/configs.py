"""Settings of MMT-ARD. What neither the paper's abstract nor its released code gives is marked inferred."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from advdistill import Config

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class MMTARD(Config):
    """Multimodal Multi-Teacher Adversarial Robust Distillation."""

    weighting: Literal["fixed", "cosine", "probability", "sigmoid"] = "sigmoid"
    """What a teacher's share of a sample depends on: nothing; its raw cosine with the label (the released code); its
    probability of the label; the sigmoid of the teachers' confidence gap (the paper's wording; formula inferred)."""
    clean_weight: Weight = 1.0
    """Weight of the clean teacher, before the weighting. (the released code: 5)"""
    robust_weight: Weight = 1.0
    """Weight of the robust teacher, before the weighting. (the released code: 50)"""
    slope: Weight = 1.0
    """`sigmoid`: factor of the confidence gap. (inferred)"""
    favour: Literal["easy", "hard"] = "easy"
    """`sigmoid`: the teacher that is surer gets more (easy) or less (hard). (inferred; the code favours easy)"""
    objective: Literal["clean-kl", "ce"] = "clean-kl"
    """What the attack maximises: KL from the clean teacher (the released code) or the label's cross-entropy."""
    reduction: Literal["batch-mean", "element-mean"] = "batch-mean"
    """KL summed over classes, or averaged over them, which divides it by their number (the released code)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the logits of both KL terms."""
    consistency: Weight = 0.0
    """Weight of 1 - cos(student's adversarial image feature, the label's class feature); cross-modal. (inferred)"""
