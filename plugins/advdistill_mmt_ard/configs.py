"""Settings of MMT-ARD and of other methods with several teachers. What no public source gives is marked inferred."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from advdistill import Config

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
View = Literal["clean", "adversarial"]

EPOCHS = 300  # of the released codes of MTARD, B-MTARD and CIARD; their epochs become shares of a run


class Balanced(Config):
    """Weights that follow the losses (MTARD)."""

    weight_rate: Share = 0.025
    """How far the weights go towards the losses' shares in one step."""
    loss_power: Weight = 1.0
    """Exponent of a loss relative to that of the first batch; 0 keeps the weights equal."""
    drops: list[Share] = Field([215 / EPOCHS, 260 / EPOCHS, 285 / EPOCHS])
    """Shares of the run after each of which all rates here are a tenth of what they were."""

    @field_validator("drops")
    @classmethod
    def _in_order(cls, drops: list[float]) -> list[float]:
        if drops != sorted(drops):
            raise ValueError("must rise")
        return drops


class Tempered(Balanced):
    """Teachers' temperatures that follow their entropies (B-MTARD)."""

    temperature_rate: Weight = 0.001
    """How far a teacher's temperature moves in one step."""
    temperature_max: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 10.0
    """The highest temperature; the lowest is 1, where all begin."""


class MTARD(Balanced):
    """Multi-Teacher Adversarial Robustness Distillation."""


class BMTARD(Tempered):
    """Balanced Multi-Teacher Adversarial Robustness Distillation."""


class CIARD(Tempered):
    """Cyclic Iterative Adversarial Robustness Distillation."""

    weighting: Literal["fixed", "balanced"] = "fixed"
    """The weights of the two teachers: 1 and 1, or as in B-MTARD. (the released versions differ)"""
    push: Weight = 1.0
    """Factor of the push term, whose size is matched to the other terms first; 0: none."""
    push_temperature: Positive = 5.0
    """Divides the student's logits in the push term."""
    push_cap: Positive | None = None
    """A sample is pushed no further than this KL; null: without bound. (the released code: null)"""
    teacher_start: Share = 50 / EPOCHS
    """Share of the run after which the robust teacher learns too, where `teachers.robust.train` lets it."""


class MMTARD(Tempered):
    """Multimodal Multi-Teacher Adversarial Robust Distillation."""

    weighting: Literal["fixed", "cosine", "probability", "sigmoid", "relative-loss", "entropy-temperature", "saad"] = (
        "sigmoid"
    )
    """What a teacher's share of a sample depends on. `fixed`: nothing, it is 1. `cosine`: its image's cosine with the
    label (the released code). `probability`: that of the label. `sigmoid`: a sigmoid of the gap between the teachers'
    probabilities (the paper's word; formula inferred). `relative-loss`: how far its loss has fallen (MTARD).
    `entropy-temperature`: the same, its temperature following its entropy (B-MTARD). `saad`: its entropy on the
    adversarial image, a sign that the attack reaches the teacher too (SAAD)."""
    clean_weight: Weight = 1.0
    """Weight of the clean teacher, before the weighting; 0: it teaches nothing. (the released code: 5)"""
    robust_weight: Weight = 1.0
    """Weight of the robust teacher, before the weighting; 0: it teaches nothing. (the released code: 50)"""
    weights: dict[str, Weight] = Field(default_factory=dict)
    """Role -> weight of further teachers, 1 where not given."""
    views: dict[str, View] = Field(default_factory=dict)
    """Role -> which image that teacher sees; not given: the robust one the adversarial image, all others the clean one
    (the released code; by the paper's figure all see the same image)."""
    student_views: dict[str, View] = Field(default_factory=dict)
    """Role -> on which image the student is compared with that teacher; not given: the one that the teacher sees (the
    released code)."""
    level: Literal["logits", "embedding", "logits-embedding", "contrastive"] = "logits"
    """Where teacher and student are compared. `logits`: KL of the classes given the image. `embedding`: 1 - cosine of
    their image features, which must be of one width. `logits-embedding`: both. `contrastive`: KL of the classes given
    the image, and of the portion's images given the text of the sample's label. (all but logits inferred)"""
    gate: Literal["teachers", "modalities", "both"] = "teachers"
    """What `probability` and `sigmoid` weigh: the teachers, with the mean of a level's two losses; the two losses of a
    level for each teacher; or both, and the shares are multiplied. (all but teachers inferred)"""
    slope: Weight = 1.0
    """`sigmoid`: factor of the confidence gap. (inferred)"""
    tau: Positive = 1.0
    """`sigmoid`: divisor of the confidence gap. (inferred)"""
    midpoint: Finite | None = None
    """`sigmoid`: the confidence at which a share is 1/2, each teacher by itself; null: the teachers compete, and their
    shares add up to 1. (inferred)"""
    favour: Literal["easy", "hard"] = "easy"
    """`sigmoid`: who is surer gets more (easy) or less (hard). (inferred; the code favours easy, the paper's words
    hard samples)"""
    clamp_min: Finite | None = None
    """`cosine`: the least share; null: negative cosines count, which turns a sample's distillation round (the released
    code)."""
    entropy_scale: Positive = 5.0
    """`saad`: factor of the entropy."""
    entropy_temperature: Positive = 1.0
    """`saad`: divides the teacher's logits before its entropy is taken. (inferred; 1 is the released code, and leaves
    next to no entropy at CLIP's logit scale)"""
    objective: Literal["clean-kl", "ce"] = "clean-kl"
    """What the attack maximises: KL from what `objective_teacher` says of the clean image (the released code), at
    temperature 1, or the label's cross-entropy."""
    objective_teacher: str = "clean"
    """`clean-kl`: the role whose teacher the attack leads away from."""
    reduction: Literal["batch-mean", "element-mean"] = "batch-mean"
    """KL summed over what its distributions are over, or averaged, which divides by the number of classes (the
    released code)."""
    temperature: Positive = 1.0
    """Divides the logits of both sides in what teachers teach."""
    consistency: Weight = 0.0
    """Weight of the cross-modal consistency term; 0: none. (inferred)"""
    consistency_form: Literal["cosine", "kl"] = "cosine"
    """1 - cosine of the student's adversarial image and the label's text; or KL of the student's classes given the
    adversarial image from those given the clean one, gradients through both. (inferred)"""

    def weight(self, role: str) -> float:
        """A teacher's weight, before the weighting."""
        own = {"clean": self.clean_weight, "robust": self.robust_weight}
        return own[role] if role in own else self.weights.get(role, 1.0)

    def view(self, role: str) -> View:
        """Which image a teacher sees."""
        return self.views.get(role, "adversarial" if role == "robust" else "clean")

    def student_view(self, role: str) -> View:
        """On which image the student is compared with that teacher."""
        return self.student_views.get(role, self.view(role))
