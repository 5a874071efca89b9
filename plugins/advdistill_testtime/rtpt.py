"""R-TPT: robust test-time prompt tuning (Sheng et al. 2025, arXiv 2504.11195)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from advdistill import Factored, UsageError
from advdistill_testtime.defence import Defence, draws, softly, stand_in

BETAS, TINY = (0.9, 0.999), 1e-8
"""AdamW's, torch's defaults."""


class RTPT(Defence):
    """Tunes the learned text prompts on views of one image, anew for each image, and weights the views' answers.

    Views are random crops, resized and perhaps mirrored. Those of least entropy each lower their own entropy (not that
    of their mean, as TPT does) in the text prompts; then all views are classified with the tuned prompts, and their
    logits averaged with weights that say how similar a view's features are to those of its neighbours.

    Images are tuned on one after another, so that none depends on its batch mates. Everything that the model has
    learned in its class features is tuned: its text prompts, if it is a clip-prompts student. What text and visual
    prompts of a coupled model share is tuned for the text's sake alone. (inferred)

    As it stands the tuned prompts are constants to gradients, which reach the pixels through views and weights.
    Exposed as "unrolled" they also go through the tuning, where a smooth function stands in for AdamW's normalised
    step; as "bpda" views, tuning and weights are taken for the identity: the model without them has the gradient.
    """

    def __init__(self, inner: Factored, config: Any) -> None:
        super().__init__(inner, config)
        self.deterministic = config.draws != "fresh"

    def predict(self, images: Tensor, classes: Any) -> Tensor:
        # One image at a time: its views, not the batch's, are what must fit into memory.
        frames = self._frames(images)
        said = [self._answer(image, frame, classes) for image, frame in zip(images, frames, strict=True)]
        logits = torch.stack(said)
        return stand_in(logits, self.inner.predict(images, classes)) if self._exposed == "bpda" else logits

    def _frames(self, images: Tensor) -> Tensor:
        """(B, V - 1, 2, 3) which part of its image a view shows, as `affine_grid` takes it: drawn like torchvision's
        RandomResizedCrop, but that a side which would not fit is cut to the image's."""
        config = self.config
        shape = (5, config.views - 1)
        area, aspect, x, y, mirror = draws(config, images).uniform(shape).to(images.dtype).unbind(1)
        area = config.min_area + (1 - config.min_area) * area
        aspect = torch.exp((2 * aspect - 1) * math.log(4 / 3))
        width, height = (area * aspect).sqrt().clamp_max(1), (area / aspect).sqrt().clamp_max(1)
        sign = torch.where(mirror < 0.5, -1.0, 1.0) if config.flip else torch.ones_like(mirror)
        zero = torch.zeros_like(x)
        across = torch.stack([sign * width, zero, (2 * x - 1) * (1 - width)], -1)
        return torch.stack([across, torch.stack([zero, height, (2 * y - 1) * (1 - height)], -1)], -2)

    def _answer(self, image: Tensor, frames: Tensor, classes: Any) -> Tensor:
        """(3, H, W), (V - 1, 2, 3) -> (C,) logits."""
        config, through = self.config, self._exposed == "unrolled"
        copies = image.expand(len(frames), *image.shape)
        grid = F.affine_grid(frames, list(copies.shape), align_corners=False)
        crops = F.grid_sample(copies, grid, padding_mode="border", align_corners=False)
        views = torch.cat([image.unsqueeze(0), crops])
        features = self.inner.features(views)
        classifier = self._tuned(features if through else features.detach(), classes, through)
        logits = self.inner.logits(features, classifier)
        unit = F.normalize(features, dim=1)
        alike = (unit @ unit.T).fill_diagonal_(-torch.inf)
        near = alike.topk(min(config.neighbours, len(views) - 1), dim=1).values.mean(1)
        return torch.softmax(near / config.temperature, 0) @ logits

    def _tuned(self, features: Tensor, classes: Any, through: bool) -> Tensor:
        """(C, D) class features, tuned on (V, D) features; `through`: with a graph that leads back to those."""
        config = self.config
        encoder = _Encoder(self.inner)
        learned = {id(tensor) for tensor in self.inner.learned().values()}
        with torch.enable_grad():
            prompts = {
                name: parameter.detach().clone().requires_grad_()
                for name, parameter in encoder.named_parameters()
                if id(parameter) in learned
            }
            moments: dict[str, tuple[Tensor, Tensor]] = {}
            chosen: Tensor | None = None
            for step in range(1, config.steps + 1):
                logits = self.inner.logits(features, functional_call(encoder, prompts, (classes,)))
                entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
                if chosen is None:
                    chosen = entropy.detach().argsort()[: max(1, int(len(entropy) * config.confident))]
                gradients = _gradients(entropy[chosen].mean(), list(prompts.values()), through)
                if all(gradient is None for gradient in gradients):
                    raise UsageError(
                        f"r-tpt tunes text prompts, and {type(self.inner).__name__} has learned none",
                        "defend a model with learned text prompts, such as a clip-prompts student",
                    )
                for (name, prompt), gradient in zip(list(prompts.items()), gradients, strict=True):
                    if gradient is not None:
                        moments[name], moved = _adamw(prompt, gradient, moments.get(name), step, config, through)
                        prompts[name] = moved if through else moved.detach().requires_grad_()
            classifier = functional_call(encoder, prompts, (classes,))
        return classifier if through else classifier.detach()


class _Encoder(nn.Module):
    """Class features as a module's forward, which is what `functional_call` can call."""

    def __init__(self, model: Factored) -> None:
        super().__init__()
        self.model = model

    def forward(self, classes: Any) -> Tensor:
        return self.model.classifier(classes)


def _gradients(value: Tensor, of: list[Tensor], through: bool) -> tuple[Tensor | None, ...]:
    """As `torch.autograd.grad`; None for what `value` does not depend on."""
    if not of or not value.requires_grad:
        return ()
    return torch.autograd.grad(value, of, create_graph=through, allow_unused=True)


def _adamw(
    prompt: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor] | None, step: int, config: Any, through: bool
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The moments and the prompt after a step of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2)."""
    first, second = moments or (torch.zeros_like(prompt), torch.zeros_like(prompt))
    first = BETAS[0] * first + (1 - BETAS[0]) * gradient
    second = BETAS[1] * second + (1 - BETAS[1]) * gradient.detach().square()
    mean = first / (1 - BETAS[0] ** step)
    move = mean / ((second / (1 - BETAS[1] ** step)).sqrt() + TINY)
    if through:
        move = stand_in(move, softly(mean.unsqueeze(0)).squeeze(0))
    return (first, second), prompt * (1 - config.lr * config.weight_decay) - config.lr * move
