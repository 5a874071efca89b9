"""TTC: counterattacks at test time (Xing et al. 2025, arXiv 2503.03613)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advdistill import Factored
from advdistill_testtime.defence import FactoredDefence, draws, softly, stand_in

SLOPE = 10.0
"""Steepness of the sigmoid that stands in for the threshold, in units of tau. (inferred)"""


class TTC(FactoredDefence):
    """Drives an image's features away from where they are, and classifies where that leads.

    Adversarial images are "falsely stable": noise moves their features little. Where the move is below `tau` of the
    features' norm, the image is counterattacked: a few signed steps up the squared distance of its features from where
    they were, the steps weighted by exp(beta * k) and averaged (section 3.2 and the released code). Other images only
    get the noise.

    As it stands the counterattack is a constant to gradients, as in the released code: they take it for the identity,
    so that exposing it as "bpda" changes nothing. Exposed as "unrolled" they also go through its steps and its
    threshold, where smooth functions stand in for both.
    """

    def __init__(self, inner: Factored, config: Any) -> None:
        super().__init__(inner, config)
        self.deterministic = config.draws != "fresh"

    def features(self, images: Tensor) -> Tensor:
        return self.inner.features(self.counterattacked(images))

    def counterattacked(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> the same, where the counterattack leads."""
        through = self._exposed == "unrolled"
        return images + self._away(images if through else images.detach(), through)

    def _away(self, images: Tensor, through: bool) -> Tensor:
        """(B, 3, H, W) what is added to `images`; `through`: with a graph that leads back to them."""
        config = self.config
        with torch.enable_grad():
            move = (2 * draws(config, images).uniform(tuple(images.shape[1:])) - 1) * config.eps
            move = _box(move.to(images.dtype), images)
            here = self.inner.features(images)
            moves, ratio = [move], None
            for _ in range(config.steps):
                move = move if through and move.requires_grad else move.detach().requires_grad_()
                away = self.inner.features(images + move) - here
                if ratio is None:
                    ratio = away.norm(dim=1) / here.norm(dim=1)
                (gradient,) = torch.autograd.grad(away.square().sum(), move, create_graph=through)
                sign = gradient.sign()
                if through:
                    sign = stand_in(sign, softly(gradient))
                move = _box((move + config.step * sign).clamp(-config.eps, config.eps), images)
                moves.append(move)
            weights = torch.exp(config.beta * torch.arange(len(moves), device=images.device, dtype=images.dtype))
            weighted = torch.einsum("k,kbchw->bchw", weights / weights.sum(), torch.stack(moves))
            stable = (ratio < config.tau).to(images.dtype)
            if through:
                stable = stand_in(stable, torch.sigmoid(SLOPE * (1 - ratio / max(config.tau, 1e-6))))
            stable = stable.view(-1, 1, 1, 1)
            move = stable * weighted + (1 - stable) * moves[0]
        return move if through else move.detach()


def _box(move: Tensor, images: Tensor) -> Tensor:
    """`move` cut so that the image stays in [0, 1]."""
    return torch.minimum(torch.maximum(move, -images), 1 - images)
