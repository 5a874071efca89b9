"""CLIP with a mixture of text prompts that a router weighs for each image."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdistill import ClassSet, Encoded
from advdistill_clip import configs
from advdistill_clip.loading import Base, load_base
from advdistill_clip.models import Clip
from advdistill_clip.prompts import ClipPrompts, linear
from advdistill_clip.relevance import relevance
from advdistill_clip.text import Sentences
from advdistill_clip.visual import full_precision


class ClipMoapt(Encoded):
    """Mixture of Adversarial Prompt Tuning (arXiv 2505.17509): class features differ from image to image.

    The paper's abstract says no more than that a router maps the image feature to the weights of several text prompts;
    router, lengths and where norms are taken are inferred:

        t_kc = unit(text(prompt k, class c))    w = softmax(W2 relu(W1 z))    z = unit(image)
        logit_c = scale * <z, unit(sum_k w_k t_kc)>

    It is not `Factored`: no class features hold for all images. What it knows of a class is t_kc for all K prompts,
    (C, K, D); the norm of a mixture comes from the prompts' inner products, so that no (B, C, D) tensor arises.
    """

    classifier_learns = True

    def __init__(self, base: Base, config: configs.Moapt) -> None:
        super().__init__()
        self.base, self.config = base, config
        self.templates, self.own_words = tuple(config.templates), True
        source = config.model_dump(include=set(configs.Base.model_fields))
        text = {"tokens": config.tokens, "depth": config.depth, "init": ""}
        prompts = configs.Prompts(**source, text=text, visual={"tokens": 0}, std=config.std)
        generator = torch.Generator().manual_seed(config.init_seed)
        self.prompted = nn.ModuleList(ClipPrompts(base, prompts, generator) for _ in range(config.prompts))
        width, device = self.clip.width, self.clip.device
        hidden = config.hidden or max(width // 16, 16)
        self.router = nn.Sequential(
            linear(width, hidden, generator, device), nn.ReLU(), linear(hidden, config.prompts, generator, device)
        )
        self.image_size = self.clip.image_size

    @classmethod
    def from_config(cls, config: configs.Moapt, *, weights: bool = True) -> ClipMoapt:
        return cls(load_base(config, weights=weights), config)

    @property
    def clip(self) -> Clip:
        """The first of the prompted models, which differ in their text prompts only."""
        return self.prompted[0]

    def prepare(self, classes: ClassSet) -> list[Sentences]:
        return self.clip.prepare(classes)

    def weights(self, features: Tensor) -> Tensor:
        """(B, D) unit-norm image features -> (B, K) how much each prompt counts; they sum to 1."""
        return F.softmax(self.router(features), dim=-1)

    def classifier(self, classes: list[Sentences], rows: Tensor | None = None) -> Tensor:
        return torch.stack([model.classifier(classes, rows) for model in self.prompted], dim=1)

    def features(self, images: Tensor) -> Tensor:
        return self.clip.features(images)

    def logits(self, features: Tensor, classifier: Tensor) -> Tensor:
        with full_precision(features.device):
            unit = F.normalize(features, dim=-1)
            weights = self.weights(unit)
            mixed = torch.einsum("bk,bkc->bc", weights, torch.einsum("bd,ckd->bkc", unit, classifier))
            inner = torch.einsum("ckd,cld->ckl", classifier, classifier)
            square = torch.einsum("bk,ckl,bl->bc", weights, inner, weights)
            return self.clip.model.logit_scale.exp() * mixed / square.clamp_min(1e-12).sqrt()

    def relevance(self, images: Tensor, classifier: Tensor, chosen: Tensor) -> Tensor:
        return relevance(self.clip.visual, images, self.features, lambda found: self.logits(found, classifier), chosen)

    def learned(self) -> dict[str, Tensor]:
        prompts = {f"text.prompts.{k}": model.text for k, model in enumerate(self.prompted)}
        return prompts | {f"router.{name}": parameter for name, parameter in self.router.named_parameters()}

    def undefended(self) -> Clip:
        return self.clip.undefended()

    def describe(self) -> dict[str, Any]:
        return self.base.describe()
