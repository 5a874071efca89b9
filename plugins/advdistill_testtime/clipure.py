"""CLIPure-Cos: purification of image features (Zhang et al. 2025, arXiv 2502.18176)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advdistill import ClassSet, Factored
from advdistill_testtime.defence import FactoredDefence, stand_in


class ClipureCos(FactoredDefence):
    """Moves the direction of an image's features up its cosine with a blank sentence, and keeps their norm.

    Every step is a closed form, so an attack that differentiates the model sees all of it; exposing it as "unrolled"
    changes nothing then. With `released` directions are constants to gradients, as in the released code, until it is
    exposed; and batch mates matter. As "bpda" the purification is taken for the identity.
    """

    def __init__(self, inner: Factored, config: Any) -> None:
        super().__init__(inner, config)
        self.batch_independent = not config.released
        if inner.device.type == "meta":
            blank = torch.empty(self.width, device="meta")
        else:
            # A class without a name; the second one is there because there must be two.
            classes = inner.prepare(ClassSet(("", "thing"), tuple(config.blank)))
            with torch.no_grad(), inner.evaluated():
                blank = inner.classifier(classes)[0]
        self.register_buffer("blank", blank, persistent=False)

    def features(self, images: Tensor) -> Tensor:
        features = self.inner.features(images)
        unit = F.normalize(features, dim=1)
        pure = self._purified(unit)
        if self._exposed == "bpda":
            pure = stand_in(pure, unit)
        return pure * features.norm(dim=1, keepdim=True)

    def _purified(self, unit: Tensor) -> Tensor:
        """(B, D) -> (B, D), of norm 1."""
        config = self.config
        for _ in range(config.steps):
            # The gradient of the cosine on the unit sphere.
            towards = self.blank - (unit @ self.blank).unsqueeze(1) * unit
            if not config.released:
                towards = F.normalize(towards, dim=1)
            else:
                towards = towards / towards.norm().clamp_min(1e-12)
                towards = towards if self._exposed == "unrolled" else towards.detach()
            unit = F.normalize(unit + config.step * towards, dim=1)
        return unit
