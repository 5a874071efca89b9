"""Frozen zero-shot CLIP, which every student builds on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdistill import ClassSet, Factored, UsageError
from advdistill_clip import configs
from advdistill_clip.blocks import Adapters
from advdistill_clip.loading import Base, image_size, load_base
from advdistill_clip.relevance import relevance
from advdistill_clip.text import Sentences, at_least_fp32, class_features
from advdistill_clip.towers import takes
from advdistill_clip.visual import encode_pixels, full_precision


class Clip(Factored):
    """A frozen zero-shot CLIP, and what the others build on: pixels in, cosines times the model's own scale out.

    Args:
        base: the frozen model; shared, so it is never changed.
        config: the settings that it was built from.
    """

    def __init__(self, base: Base, config: configs.Base) -> None:
        super().__init__()
        self.base = base
        self.config = config
        self.templates = tuple(config.templates)
        self.model = base.model
        self.size = image_size(base)
        self.image_size = max(self.size)
        self.width = base.architecture.config["embed_dim"]
        for name in ("mean", "std"):
            values = torch.tensor(base.preprocess[name], device=self.device).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    @classmethod
    def from_config(cls, config: Any, *, weights: bool = True) -> Clip:
        return cls(load_base(config, weights=weights), config)

    # What subclasses replace

    @property
    def visual(self) -> nn.Module:
        """The visual tower that looks."""
        return self.model.visual

    def look(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels of the tower's size -> (B, D)."""
        return encode_pixels(self.visual, pixels)

    def place_prompts(self, ids: list[list[int]], template: str) -> list[list[int]]:
        """Make room for learned tokens in a template's sentences."""
        return ids

    @property
    def text_tokens(self) -> Tensor | None:
        """Learned tokens of the text tower: (depth, n, d), or (depth, contexts, n, d) where classes have their own."""
        return None

    @property
    def text_adapters(self) -> Sequence[Adapters]:
        """What is added to linear maps of the text tower, block by block; or nothing."""
        return ()

    def contexts(self, names: Sequence[str]) -> Tensor | None:
        """(C,) long, which of the class-specific contexts each class has; None: all classes share theirs."""
        return None

    # The contract

    def prepare(self, classes: ClassSet) -> list[Sentences]:
        tokenizer, context, own = self.base.tokenizer, self.base.context, self.contexts(classes.names)
        prepared = []
        for template in classes.templates:
            ids = self.place_prompts(tokenizer([template.replace("{}", name) for name in classes.names]), template)
            longest = max(range(len(ids)), key=lambda i: len(ids[i]))
            if len(ids[longest]) > context:
                raise UsageError(
                    f"the sentence of class {classes.names[longest]!r} takes {len(ids[longest])} tokens; "
                    f"{self.base.architecture.name} reads {context}",
                    "shorten the class name or the template, or learn fewer text tokens",
                )
            prepared.append(Sentences(self.model, ids, tokenizer.start, tokenizer.pad, context, self.device, own))
        return prepared

    def classifier(self, classes: list[Sentences], rows: Tensor | None = None) -> Tensor:
        return class_features(self.model, classes, self.text_tokens, rows, self.text_adapters)

    def features(self, images: Tensor) -> Tensor:
        with full_precision(images.device):
            pixels = images.to(self.mean.dtype)
            if pixels.shape[-2:] != self.size:
                mode = "bilinear" if self.base.preprocess["interpolation"] == "bilinear" else "bicubic"
                smaller = pixels.shape[-2] > self.size[0] or pixels.shape[-1] > self.size[1]
                pixels = F.interpolate(pixels, self.size, mode=mode, antialias=smaller).clamp(0, 1)
            pixels = (pixels - self.mean) / self.std
        return at_least_fp32(self.look(pixels))

    def logits(self, features: Tensor, classifier: Tensor) -> Tensor:
        with full_precision(features.device):
            return self.model.logit_scale.exp() * F.normalize(features, dim=-1) @ classifier.T

    def takes(self) -> dict[str, str]:
        return takes(self.base.model)

    def relevance(self, images: Tensor, classifier: Tensor, chosen: Tensor) -> Tensor:
        return relevance(self.visual, images, self.features, lambda found: self.logits(found, classifier), chosen)

    def learned(self) -> dict[str, Tensor]:
        return {}

    def undefended(self) -> Clip:
        return self if type(self) is Clip else Clip(self.base, self.config)

    def describe(self) -> dict[str, Any]:
        return self.base.describe()

    def train(self, mode: bool = True) -> Clip:
        super().train(mode)
        self.model.eval()
        return self
