"""Settings of adversarial prompt tuning. What neither a paper nor its released code gives is marked inferred."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from advdistill import Config

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PromptTuning(Config):
    """APT, AdvVP, AdvTP, AdvVLP, AdvMaPLe and MoAPT: cross-entropy on adversarial images."""

    batch: Literal["adversarial", "half"] = "adversarial"
    """adversarial: every image is attacked. half: the first half of each batch stays clean, the second is attacked, and
    the cross-entropy is taken over both (MAPT's `adv_half`)."""


class FAP(Config):
    """FAP (NeurIPS 2024)."""

    weight: Positive = 1.5
    """Of the adversarial term; the paper's lambda. (the released code: 1.5)"""


class CAPT(Config):
    """CAPT (arXiv 2405.11154). No code is public, and of the paper's loss two parts: the cross-entropy, and the KL from
    the frozen model. That the third is KL(S(x') || S(x)), with gradients through both, is inferred."""

    weight: Positive = 1.0
    """Of both consistency terms together; the paper's lambda. (inferred)"""
    balance: Literal["fixed", "confidence"] = "confidence"
    """The frozen model's share of the consistency. fixed: `share`. confidence: sample by sample, its probability of the
    label against the student's, p_T / (p_T + p_S), both on the clean image. (inferred; the paper's is adaptive)"""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The frozen model's share with `balance: fixed`. (inferred)"""
    direction: Literal["student-first", "target-first"] = "student-first"
    """Of both KLs: KL(S(x') || target), as the paper prints it for the frozen model, or KL(target || S(x'))."""
    ce_view: Literal["clean", "adversarial", "both"] = "clean"
    """The images of the cross-entropy; both: the mean of the two. (inferred)"""
    objective: Literal["ce", "kl"] = "ce"
    """What the attack maximises: CE(S(x'), y) or KL(S(x) || S(x')). (inferred)"""
