"""What defences at test time have in common: a model that they defend, draws, and stand-ins for attackers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from advdistill import ClassSet, Factored, Noise, UsageError, VisionLanguageModel, model_of


class Defence(VisionLanguageModel):
    """A finished model behind a defence that has nothing to learn.

    Args:
        inner: the model that is defended; it stays frozen and in eval mode.
        config: the defence's settings.
    """

    exposes = frozenset({"bpda", "unrolled"})

    def __init__(self, inner: Factored, config: Any) -> None:
        super().__init__()
        self.inner, self.config = inner.eval().requires_grad_(False), config
        self.image_size, self.templates, self.own_words = inner.image_size, inner.templates, inner.own_words
        self._exposed = ""

    @classmethod
    def from_config(cls, config: Any, *, weights: bool = True) -> VisionLanguageModel:
        inner = model_of(config.inner(), weights=weights)
        if not isinstance(inner, Factored):
            raise UsageError(
                f"{cls.__name__} needs image features apart from classes, which {type(inner).__name__} has not",
                "defend a model whose logits are cosines of image and class features",
            )
        return cls(inner, config)

    @contextlib.contextmanager
    def exposed(self, how: str) -> Iterator[None]:
        before = self._exposed
        with super().exposed(how):
            self._exposed = how
            try:
                # Gradients of gradients: of torch's kernels for attention only the plain one has them.
                with sdpa_kernel(SDPBackend.MATH) if how == "unrolled" else contextlib.nullcontext():
                    yield
            finally:
                self._exposed = before

    def bind(self, classes: ClassSet) -> None:
        self.inner.bind(classes)

    def prepare(self, classes: ClassSet) -> Any:
        return self.inner.prepare(classes)

    def learned(self) -> dict[str, Tensor]:
        return {}

    def undefended(self) -> VisionLanguageModel:
        """The model behind the defence."""
        return self.inner

    def describe(self) -> dict[str, Any]:
        return {**self.inner.describe(), "defence": {"use": type(self).__name__, **self.config.model_dump(mode="json")}}

    def train(self, mode: bool = True) -> Defence:
        super().train(mode)
        self.inner.eval()
        return self


class FactoredDefence(Defence, Factored):
    """A defence that acts on images or their features, whatever the classes."""

    def __init__(self, inner: Factored, config: Any) -> None:
        super().__init__(inner, config)
        self.width = inner.width

    def classifier(self, classes: Any, rows: Tensor | None = None) -> Tensor:
        return self.inner.classifier(classes, rows)

    def logits(self, features: Tensor, classifier: Tensor) -> Tensor:
        return self.inner.logits(features, classifier)


def draws(config: Any, images: Tensor) -> Noise:
    """One row of draws for each image, from what `config.draws` says."""
    if config.draws == "fixed":
        keys = torch.zeros(len(images), dtype=torch.int32, device=images.device)
    elif config.draws == "image":
        keys = _digest(images)
    else:
        keys = torch.randint(2**31 - 1, (len(images),)).to(images.device, torch.int32)
    return Noise(config.seed, "defence", 0, keys)


def _digest(images: Tensor) -> Tensor:
    """(B,) int32 that changes with any pixel of (B, 3, H, W), whatever the batch."""
    bits = images.detach().float().contiguous().view(torch.int32).flatten(1)
    # Odd multiples of the golden ratio's 32-bit fraction; int32 products wrap.
    odd = 2 * torch.arange(bits.shape[1], dtype=torch.int32, device=bits.device) + 1
    mixed = (bits ^ (bits >> 15)) * (odd * (0x9E3779B9 - (1 << 32)))
    return (mixed.sum(1) & 0x7FFFFFFF).to(torch.int32)


def stand_in(value: Tensor, smooth: Tensor) -> Tensor:
    """`value` with the gradient of `smooth` (Athalye et al. 2018, arXiv 1802.00420, section 4.1)."""
    return value.detach() + smooth - smooth.detach()


def softly(gradient: Tensor) -> Tensor:
    """What stands in for sign(gradient): tanh of each sample's entries over their mean size. (inferred)"""
    size = gradient.detach().flatten(1).abs().mean(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return torch.tanh(gradient / size.view(-1, *[1] * (gradient.ndim - 1)))
