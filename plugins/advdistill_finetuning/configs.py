"""Settings of robust fine-tuning. What neither a paper nor its released code gives is marked inferred."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from advdistill import Config

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TRADES(Config):
    """TRADES (Zhang et al. 2019)."""

    beta: Positive = 6.0
    """Weight of KL(S(x) || S(x')). (the released script: 6)"""


class FARE(Config):
    """FARE (Schlarmann et al. 2024) and Sim-CLIP (Hossain and Imteaj 2024)."""

    form: Literal["l2", "cosine", "siamese"] = "l2"
    """What is minimised. l2: the squared distance of the adversarial image's feature from the original model's of the
    clean one, neither normalised (FARE). cosine: 1 - their cosine (Sim-CLIP's released code, but for its factor 1/2).
    siamese: 1 - the cosine of the student's own two features, half with the gradient stopped on the clean one and half
    on the adversarial one (Sim-CLIP as its paper has it); nothing then holds the student near the original's text
    features, so watch its clean accuracy. The attack raises the l2 form whatever is minimised, as
    both released codes do; what Sim-CLIP's paper attacks with is not certain."""


class PMGAFT(Config):
    """PMG-AFT (Wang et al. 2024). The released code adds up both KLs over the batch where the cross-entropy is a mean,
    and drops the logit scale; for its ratio of the terms set both weights to the batch size."""

    original_weight: Weight = 1.0
    """Weight of KL(T(x') || S(x')), T the original model."""
    clean_weight: Weight = 1.0
    """Weight of KL(S(x) || S(x'))."""


class AGFT(Config):
    """AGFT (arXiv 2603.29410)."""

    scale: Positive = 1.8
    """Factor on the student's logits in attack and loss, not in use. (the released code: a logit scale of 180 in
    training, where the model's own is 100)"""
    ratio: Positive = 0.4
    """The original's logits are multiplied by scale * ratio; below 1 its predictions are softer than the student's.
    (the released code)"""


class HPTGPD(Config):
    """HPT-GPD (arXiv 2601.12865). Its released code has the loss lines commented out; there the KL is summed over the
    batch, which a learning rate larger by the batch size makes up for, and the first stage's weights are averaged with
    the original's, which is not done here."""

    warmup: Weight = 0.2
    """Length of the anchored warm-up, as of `optim.schedule.warmup`: below 1 a share of all steps, from 1 on a number
    of steps; 0: none. The paper's two stages differ in their learning rates: give the schedule the same warm-up and a
    small `warmup_lr`. (inferred)"""
    view: Literal["adversarial", "clean"] = "adversarial"
    """Which image the proxy sees. (the commented code: the adversarial one)"""
    ce_weight: Weight = 0.0
    """Weight of CE(S(x'), y) beside the proxy's term. (the commented code has it commented out once more)"""
