"""Verdicts: what counts is what the finished model says of the stored image, asked once more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advdistill.engine.attack import right
from advdistill.engine.participant import exact

PORTION = 64
"""Images in every forward that a verdict rests on: sums of another batch size round differently."""


@dataclass(frozen=True)
class Look:
    """What a model says of some images; (n,) tensors on the CPU. Fields as in `Outcome`.

    Attributes:
        right: bool. cross_entropy: float64, in nats; inf where the logits are no numbers. margin: float32.
        certain: bool.
    """

    right: Tensor
    cross_entropy: Tensor
    margin: Tensor
    certain: Tensor


class Judge:
    """Asks the exported model.

    Args:
        forward: (B, 3, H, W) float32 in [0, 1] -> (B, C) logits; always given `PORTION` images, the last of a portion
            repeated where there are fewer.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        self._forward = forward

    @torch.no_grad()
    def look(self, images: Tensor, labels: Tensor) -> Look:
        """(n, 3, H, W), (n,) long, n > 0 -> what it says."""
        parts = []
        for some in images.split(PORTION):
            missing = PORTION - len(some)
            full = torch.cat([some, some[-1:].expand(missing, -1, -1, -1)]) if missing else some
            with exact():
                parts.append(self._forward(full)[: len(some)].float())
        logits = torch.cat(parts)
        label = labels.unsqueeze(1)
        own = logits.gather(1, label).squeeze(1)
        margin = own - logits.scatter(1, label, -torch.inf).amax(1)
        wide = logits.double()
        loss = (wide.logsumexp(1) - own.double()).nan_to_num(torch.inf)
        certain = logits.log_softmax(1).gather(1, label).squeeze(1) == 0
        return Look(right(logits, labels).cpu(), loss.cpu(), margin.cpu(), certain.cpu())


def quantise(images: Tensor, clean: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> uint8, each pixel rounded towards the clean one.

    Rounding to the nearest level would leave the ball by up to half a level; towards `clean`, an image stays inside
    wherever the clean pixels are levels themselves.
    """
    levels = images.double() * 255
    down = (images >= clean) & ((levels - levels.round()).abs() > 1e-4)
    up = (images < clean) & ((levels - levels.round()).abs() > 1e-4)
    return torch.where(down, levels.floor(), torch.where(up, levels.ceil(), levels.round())).to(torch.uint8)
