"""Settings of the defences at test time. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from advdistill import Config, PixelDistance


def _one_place(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError(f"template {template!r} must hold exactly one {{}}")
    return template


class Defence(Config):
    """What is defended: a finished run, or a CLIP that nobody has trained further."""

    checkpoint: str = ""
    """An advdistill checkpoint: a path, or `package:file` for one that an installed package ships."""

    model: str = ""
    """Without a checkpoint: the architecture of a CLIP, as for `clip`."""

    weights: str = ""
    """Its weights, as for `clip`."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Defence:
        if bool(self.checkpoint) == bool(self.model) or (self.checkpoint and self.weights):
            raise ValueError("give a checkpoint, or a model and its weights")
        return self

    def inner(self) -> dict[str, Any]:
        """The block of the model that is defended."""
        if self.checkpoint:
            return {"use": "checkpoint", "path": self.checkpoint}
        return {"use": "clip", "model": self.model, "weights": self.weights}


class Drawn(Defence):
    """A defence that draws at random."""

    seed: int = Field(0, ge=0)
    """Of the draws."""

    draws: Literal["fixed", "image", "fresh"] = "fixed"
    """What a draw depends on: nothing else, so that all images get the same one; the image's own pixels too; or on the
    global generator, as in the released code. Only the last one gives the same image other answers."""


class TTC(Drawn):
    """Test-time counterattack."""

    eps: PixelDistance = 4 / 255
    """Radius of the counterattack in linf; also of the noise that probes an image."""

    steps: int = Field(2, ge=1)
    """Steps of the counterattack."""

    step: PixelDistance = 1 / 255
    """Length of a step in linf."""

    tau: float = Field(0.2, ge=0, allow_inf_nan=False)
    """Images whose features noise moves by less than this share of their norm count as attacked."""

    beta: float = Field(2.0, allow_inf_nan=False)
    """How much later steps weigh: step k counts exp(beta * k)."""


class RTPT(Drawn):
    """Robust test-time prompt tuning."""

    tokens: int = Field(4, ge=1)
    """Text tokens that a CLIP without a checkpoint is given to tune; they start as `a photo of a`."""

    views: int = Field(64, ge=2)
    """Views of an image, itself among them."""

    min_area: float = Field(0.08, gt=0, le=1)
    """The smallest share of the image that a view shows."""

    flip: bool = True
    """Whether half of the views are mirrored."""

    confident: float = Field(0.1, gt=0, le=1)
    """Share of the views that tune the prompts: those of least entropy."""

    steps: int = Field(1, ge=1)
    """Steps of AdamW."""

    lr: float = Field(5e-3, gt=0, allow_inf_nan=False)
    """Learning rate."""

    weight_decay: float = Field(1e-2, ge=0, allow_inf_nan=False)
    """Weight decay; the released code leaves it at torch's default."""

    neighbours: int = Field(20, ge=1)
    """A view is as reliable as it is similar to this many others, in the mean."""

    temperature: float = Field(0.01, gt=0, allow_inf_nan=False)
    """Of the softmax that turns similarities into weights."""

    def inner(self) -> dict[str, Any]:
        block = super().inner()
        if self.checkpoint:
            return block
        text = {"tokens": self.tokens, "depth": 1}
        return {**block, "use": "clip-prompts", "text": text, "visual": {"tokens": 0}}


class ClipureCos(Defence):
    """Purification of image features."""

    blank: list[Annotated[str, AfterValidator(_one_place)]] = Field(["a photo of a {}."], min_length=1)
    """The blank sentences, whose class features are averaged: nothing stands in the place of the name."""

    steps: int = Field(10, ge=1)
    """Steps up the cosine with the blank sentence."""

    released: bool = False
    """As the released code computes it: one norm over the whole batch's steps, so that batch mates matter, and no
    gradient through the steps' directions, so that an attack is misled."""

    step: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Length of a step on the unit sphere; with `released`, of the steps of all the batch's images together. 0: 0.03
    (inferred), or the released code's 30."""

    @field_validator("step")
    @classmethod
    def _of_its_kind(cls, step: float, known: ValidationInfo) -> float:
        return step or (30.0 if known.data.get("released") else 0.03)
