"""Settings of the CLIP teachers and students. No torch here."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from advdistill import Config


def _one_place(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError(f"template {template!r} must hold exactly one {{}}")
    return template


def _some_blocks(blocks: str) -> str:
    if not re.fullmatch(r"all|(first|last)-[1-9][0-9]*", blocks):
        raise ValueError(f"{blocks!r} is none of: all, first-K, last-K (like last-2)")
    return blocks


Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Blocks = Annotated[str, AfterValidator(_some_blocks)]


class Base(Config):
    """Where a CLIP comes from."""

    model: str
    """Architecture: an open_clip name (ViT-B-32-quickgelu), `hf-hub:org/repo`, `local-dir:DIR`, or an open_clip JSON
    config as a path or `package:file.json`."""

    weights: str = ""
    """An open_clip tag (openai), a state-dict file (.safetensors, .pt, .bin; also `package:file`), or `random`.
    Leave it empty for hf-hub and local-dir models, which bring their own."""

    text_weights: str = ""
    """Where all but the visual tower comes from (a tag or a file), if `weights` holds the visual tower alone."""

    weights_seed: Seed = 0
    """The draw of `weights: random`."""

    templates: list[Annotated[str, AfterValidator(_one_place)]] = Field(default_factory=list)
    """Sentences for this model's own class features, each with one {}; empty: those of the data set."""


class Clip(Base):
    """A frozen zero-shot CLIP."""


class TextPrompts(Config):
    """Learned tokens in the text tower."""

    tokens: int = Field(2, ge=0)
    """How many, right after the start token; 0: none."""

    depth: int = Field(9, ge=1)
    """In how many blocks; 1: at the input only. Deeper blocks overwrite the tokens with fresh ones."""

    init: str = "a photo of a"
    """The phrase whose first tokens are the starting point; they then take the place of each sentence's first tokens.
    Empty: drawn from a normal distribution and put in front of the sentence."""

    per_class: bool = False
    """Each class learns tokens of its own (CoOp's class-specific context); such a model knows no other classes."""


class VisualPrompts(Config):
    """Learned tokens in the visual tower."""

    tokens: int = Field(2, ge=0)
    """How many; 0: none."""

    depth: int = Field(9, ge=1)
    """In how many blocks; 1: at the input only. Deeper blocks overwrite the tokens with fresh ones."""


class PixelPrompts(Config):
    """Learned pixels, in [0, 1], added to every image at the tower's size; the sum is clamped to [0, 1]."""

    form: Literal["none", "frame", "additive"] = "none"
    """Where: nowhere, in a border of `width` pixels, or everywhere. Any tower takes them."""

    width: int = Field(30, ge=1)
    """How wide the border is, in pixels at the tower's size."""

    std: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Standard deviation of what they are drawn from; 0: they start by changing nothing."""


class Prompts(Base):
    """CLIP with learned prompts."""

    text: TextPrompts = TextPrompts()
    """The text branch."""

    visual: VisualPrompts = VisualPrompts()
    """The visual branch."""

    pixels: PixelPrompts = PixelPrompts()
    """What is learned in the images themselves."""

    coupling: Literal["none", "text-to-visual", "visual-to-text"] = "none"
    """Whether prompts of one tower are learned linear maps of the other's, one map for each block: visual prompts of
    text prompts (MaPLe); or, but at the input, text prompts of visual prompts (FAP, whose input goes the other way)."""

    std: float = Field(0.02, ge=0, allow_inf_nan=False)
    """Standard deviation of the normal distribution that prompts are drawn from."""

    init_seed: Seed = 0
    """The draw of the prompts."""

    @field_validator("coupling")
    @classmethod
    def _has_its_source(cls, coupling: str, known: ValidationInfo) -> str:
        text, visual = known.data.get("text"), known.data.get("visual")
        if coupling == "none" or text is None or visual is None:
            return coupling
        if text.tokens != visual.tokens or not text.tokens:
            raise ValueError(
                f"{coupling} maps each token to one: text.tokens is {text.tokens} and visual.tokens {visual.tokens}; "
                "make them equal, and not 0"
            )
        source, target = ("text", "visual") if coupling == "text-to-visual" else ("visual", "text")
        deep = {"text": text.depth, "visual": visual.depth}
        if deep[target] > deep[source]:
            raise ValueError(
                f"{coupling} has no source for blocks beyond {source}.depth {deep[source]}: "
                f"lower {target}.depth, which is {deep[target]}"
            )
        if text.per_class:
            raise ValueError(f"{coupling} needs tokens that all classes share: set text.per_class: false")
        return coupling

    @model_validator(mode="after")
    def _learns_something(self) -> Prompts:
        if not self.text.tokens and not self.visual.tokens and self.pixels.form == "none":
            raise ValueError("nothing would learn: set text.tokens, visual.tokens or pixels.form")
        if self.text.per_class and not self.text.tokens:
            raise ValueError("text.per_class asks for tokens of each class, but text.tokens is 0")
        return self


class Moapt(Base):
    """CLIP with several text prompts and a router that mixes them for each image (MoAPT)."""

    prompts: int = Field(8, ge=2)
    """How many prompts are mixed (inferred)."""

    tokens: int = Field(4, ge=1)
    """How many learned tokens each has, in front of the sentence (inferred)."""

    depth: int = Field(1, ge=1)
    """In how many blocks; 1: at the input only (inferred)."""

    hidden: int = Field(0, ge=0)
    """Width of the router's hidden layer; 0: a sixteenth of the image feature's, at least 16 (inferred)."""

    std: float = Field(0.02, ge=0, allow_inf_nan=False)
    """Standard deviation of the normal distribution that prompts are drawn from."""

    init_seed: Seed = 0
    """The draw of prompts and router."""


class Lora(Base):
    """CLIP with low-rank adapters."""

    towers: list[Literal["visual", "text"]] = Field(["visual"], min_length=1)
    """Which towers have adapters: visual, text or both."""

    rank: int = Field(16, ge=1)
    """Rank of each update."""

    alpha: float = Field(16.0, gt=0, allow_inf_nan=False)
    """Updates are scaled by alpha / rank."""

    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on what enters an adapter, in training only."""

    targets: list[Literal["in_proj", "out_proj", "c_fc", "c_proj"]] = Field(["in_proj", "out_proj"], min_length=1)
    """Which linear maps of a block: in_proj (queries, keys and values, fused or not), out_proj, c_fc (into the MLP,
    gates too), c_proj (out of it); timm's towers have the same maps by other names. ConvNeXt has only the last two."""

    blocks: Blocks = "all"
    """Which blocks of each tower: all, first-K or last-K. In towers of convolutions a block is a stage, or the stem."""

    init_seed: Seed = 0
    """The draw of the adapters."""


class Tune(Base):
    """CLIP with a tower that learns on a copy."""

    tower: Literal["visual", "text", "all"] = "visual"
    """What learns: the visual tower, the text tower, or both and the logit scale."""

    blocks: Blocks = "all"
    """Which part of that tower: all of it; or only its first-K or last-K blocks, without the embeddings before the
    first block and the norm and projection after the last. A block is one of a transformer's; ModifiedResNet has six
    (stem, layer1 to layer4, attnpool); other towers of convolutions have their stem, if any, and stages."""

    bn: Literal["frozen", "train"] = "frozen"
    """Statistics of batch norms that learn: the stored ones always, or the batch's while training and under attack."""

    @model_validator(mode="after")
    def _blocks_of_one_tower(self) -> Tune:
        if self.tower == "all" and self.blocks != "all":
            raise ValueError(f"blocks: {self.blocks} goes with tower: visual or tower: text, not with tower: all")
        return self


class Anchor(Base):
    """CLIP behind a low-pass filter, with an anchor in its first attention (R-Adapt)."""

    sigma: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Standard deviation of the Gaussian filter, in pixels of the tower's size; 0: none. (inferred)"""

    mix: float = Field(0.5, gt=0, lt=1)
    """The anchor's share of what the first attention says. (inferred)"""
