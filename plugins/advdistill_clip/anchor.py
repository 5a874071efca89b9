"""CLIP behind a low-pass filter with an anchor in its first attention (R-Adapt, arXiv 2603.12799; details inferred)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from advdistill import UsageError
from advdistill_clip import configs
from advdistill_clip.loading import Base
from advdistill_clip.models import Clip
from advdistill_clip.towers import adaptable
from advdistill_clip.visual import encode_pixels, full_precision, prompts_fit


class ClipAnchor(Clip):
    """CLIP whose first attention says, in part, what it says of a white image; that anchor alone learns.

        h(G x) <- (1 - mix) h(G x) + mix a,   a = h(white) to begin with

    h is the first block's attention after its output projection, a token's anchor a row of a; G a Gaussian filter.

    Raises:
        UsageError: the tower has no row of tokens.
    """

    config: configs.Anchor

    def __init__(self, base: Base, config: configs.Anchor) -> None:
        super().__init__(base, config)
        prompts_fit(self.visual)
        self._reach = math.ceil(3 * config.sigma)
        if self._reach >= min(self.size):
            raise UsageError(
                f"sigma is {config.sigma:g}: a filter that reaches {self._reach} pixels is wider than the image, "
                f"{self.size[0]} x {self.size[1]}",
                "lower it",
            )
        ((block, self._path, _),) = adaptable(self.model, "visual", ["out_proj"], "first-1")
        self._block = block.removeprefix("visual.")
        self.anchor = nn.Parameter(self._response_to_white())

    def _own(self, mixed: Tensor) -> Tensor:
        """h: what the first attention says itself."""
        out = self.visual.get_submodule(f"{self._block}.{self._path}")
        return F.linear(mixed, out.weight, out.bias)

    @torch.no_grad()
    def _response_to_white(self) -> Tensor:
        """(N, d) what the first attention says of a white image, token by token."""
        heard: list[Tensor] = []

        def listen(mixed: Tensor) -> Tensor:
            heard.append(self._own(mixed)[0])
            return torch.zeros_like(heard[-1])

        white = ((1 - self.mean) / self.std).expand(3, *self.size)[None]
        # A student that shares parts of the base took them along to its device: a tower follows its first part.
        device = next(self.visual.parameters()).device
        encode_pixels(self.visual.to(device), white.to(device), adapters={self._block: {self._path: listen}})
        return heard[0]

    def _drawn_to_anchor(self, mixed: Tensor) -> Tensor:
        """What turns h into (1 - mix) h + mix a when it is added to h."""
        own = self._own(mixed)
        return self.config.mix * (self.anchor[: own.shape[-2]].to(own.dtype) - own)

    def look(self, pixels: Tensor) -> Tensor:
        if self.config.sigma:
            with full_precision(pixels.device):
                pixels = gaussian_blur(pixels, [2 * self._reach + 1] * 2, [self.config.sigma] * 2)
        return encode_pixels(self.visual, pixels, adapters={self._block: {self._path: self._drawn_to_anchor}})

    def learned(self) -> dict[str, Tensor]:
        return {"visual.anchor": self.anchor}
