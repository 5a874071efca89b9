"""Random crops and flips of a whole batch at once."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from advdistill import Noise

_TRIES = 10


def crop_flip(canvases: Tensor, size: int, noise: Noise) -> Tensor:
    """A random crop of every canvas, brought to `size`, and flipped every other time.

    Args:
        canvases: (B, 3, S, S) float32 in [0, 1].
        size: side of what is wanted.
        noise: of these samples.

    Returns:
        (B, 3, size, size) float32 in [0, 1].
    """
    top, left, height, width = random_crops(noise, canvases.shape[-1]).unbind(1)
    flipped = noise.uniform((), draw=1) < 0.5
    narrow = resampled(canvases.transpose(2, 3), left, width, size, backwards=flipped).transpose(2, 3)
    return resampled(narrow, top, height, size).clamp_(0, 1)  # cubic weights overshoot at edges


def random_crops(noise: Noise, side: int) -> Tensor:
    """(B, 4) whole numbers as float32: top, left, height and width of boxes in squares of `side` pixels.

    8 to 100 % of the area, evenly; aspect 3/4 to 4/3, its logarithm evenly; anywhere inside. The first of ten draws
    that lies inside is taken, and the whole square if none does, as torchvision's `RandomResizedCrop` does it.
    """
    area, aspect, down, right = noise.uniform((_TRIES, 4)).unbind(-1)
    pixels = (0.08 + 0.92 * area) * side**2
    ratio = 0.75 * (16 / 9) ** aspect
    height, width = (pixels / ratio).sqrt().round(), (pixels * ratio).sqrt().round()
    fits = (height <= side) & (width <= side)
    boxes = torch.stack([(down * (side - height + 1)).floor(), (right * (side - width + 1)).floor(), height, width], -1)
    first = boxes[torch.arange(len(boxes), device=boxes.device), fits.int().argmax(1)]
    return torch.where(fits.any(1, keepdim=True), first, boxes.new_tensor([0, 0, side, side]))


def resampled(images: Tensor, start: Tensor, length: Tensor, size: int, *, backwards: Tensor | None = None) -> Tensor:
    """A stretch of every image's rows, brought to `size` rows.

    Bicubic (a = -1/2), and antialiased: where the stretch shrinks, the kernel widens with it, so that no detail is left
    that `size` rows cannot hold. The weights are those of Pillow and of torchvision with `antialias=True`, by which
    images are resized that are not augmented; rows beside the stretch count for nothing. Each row of the result is a
    bag of a few weighted rows, whatever the stretch, so that all of a batch are one call.

    Args:
        images: (B, 3, S, W) float32.
        start, length: (B,) float32, whole numbers.
        backwards: (B,) bool; whose result begins with its last row.

    Returns:
        (B, 3, size, W) float32.
    """
    count, channels, side, _ = images.shape
    start, length, device = start.view(-1, 1), length.view(-1, 1), images.device
    scale = length / size
    centre = start + (torch.arange(size, device=device) + 0.5) * scale
    if backwards is not None:
        centre = torch.where(backwards.view(-1, 1), centre.flip(1), centre)
    stretch = scale.clamp(min=1).unsqueeze(2)
    reached = math.ceil(4 * max(side / size, 1)) + 1  # rows within two (stretched) rows of a centre
    first = (centre.unsqueeze(2) - 2 * stretch).floor()
    places = first + torch.arange(reached, device=device) + 0.5
    weights = _cubic((places - centre.unsqueeze(2)) / stretch)
    weights = weights * ((places > start.unsqueeze(2)) & (places < (start + length).unsqueeze(2)))
    weights = weights / weights.sum(2, keepdim=True)
    image = torch.arange(count * channels, device=device).view(count, channels, 1, 1)
    rows = image * side + places.long().clamp_(0, side - 1).unsqueeze(1)
    found = F.embedding_bag(
        rows.flatten(0, 2),
        images.flatten(0, 2),
        per_sample_weights=weights.unsqueeze(1).expand_as(rows).flatten(0, 2),
        mode="sum",
    )
    return found.view(count, channels, size, -1)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2 (R. Keys, Cubic Convolution Interpolation, 1981, eq. 15)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x.square() + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
