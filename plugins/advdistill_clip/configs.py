"""Settings of the CLIP teachers and students. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from advdistill import Config


def _one_place(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError(f"template {template!r} must hold exactly one {{}}")
    return template


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

    weights_seed: int = 0
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


class VisualPrompts(Config):
    """Learned tokens in the visual tower."""

    tokens: int = Field(2, ge=0)
    """How many, after the patches; 0: none."""

    depth: int = Field(9, ge=1)
    """In how many blocks; 1: at the input only. Deeper blocks overwrite the tokens with fresh ones."""


class Prompts(Base):
    """CLIP with learned prompts."""

    text: TextPrompts = TextPrompts()
    """The text branch."""

    visual: VisualPrompts = VisualPrompts()
    """The visual branch."""

    std: float = Field(0.02, ge=0)
    """Standard deviation of the normal distribution that prompts are drawn from."""

    init_seed: int = 0
    """The draw of the prompts."""


class Lora(Base):
    """CLIP with low-rank adapters in the visual tower."""

    rank: int = Field(16, ge=1)
    """Rank of each update."""

    alpha: float = Field(16.0, gt=0)
    """Updates are scaled by alpha / rank."""

    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on what enters an adapter, in training only."""

    targets: list[Literal["in_proj", "out_proj", "c_fc", "c_proj"]] = Field(["in_proj", "out_proj"], min_length=1)
    """Which linear maps of a block: in_proj (queries, keys and values), out_proj, c_fc, c_proj."""

    blocks: int = Field(0, ge=0)
    """How many of the last blocks; 0: all."""

    init_seed: int = 0
    """The draw of the adapters."""


class Tune(Base):
    """CLIP with a tower that learns as a whole."""

    tower: Literal["visual", "all"] = "visual"
    """What learns: the visual tower, or the text tower and the logit scale too."""

    bn: Literal["frozen", "train"] = "frozen"
    """Statistics of batch norms: the stored ones always, or the batch's while training and under attack."""
