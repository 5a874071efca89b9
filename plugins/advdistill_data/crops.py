"""Random crops and flips of a whole batch at once."""

from __future__ import annotations

import math

import torch
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
    side = canvases.shape[-1]
    top, left, height, width = random_crops(noise, side).unbind(1)
    flipped = noise.uniform((), draw=1) < 0.5
    rows = resampling(top, height, side, size)
    columns = resampling(left, width, side, size)
    columns = torch.where(flipped[:, None, None], columns.flip(1), columns)
    across = torch.bmm(canvases.flatten(1, 2), columns.transpose(1, 2)).unflatten(1, canvases.shape[1:3])
    return (rows.unsqueeze(1) @ across).clamp_(0, 1)  # cubic weights overshoot at edges


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


def resampling(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """What each of `size` pixels takes from a row of `side` pixels, of which a stretch is brought to that size.

    Bicubic (a = -1/2), and antialiased: where the stretch shrinks, the kernel widens with it, so that no detail is left
    that `size` pixels cannot hold. The weights are those of Pillow and of torchvision with `antialias=True`, by which
    images are resized that are not augmented; pixels beside the stretch count for nothing. A matrix, since crops then
    are two batched products, whatever their sizes.

    Args:
        start, length: (B,) float32, whole numbers.

    Returns:
        (B, size, side) float32; every row sums to 1.
    """
    start, length = start[:, None], length[:, None]
    scale = length / size
    centre = start + (torch.arange(size, device=start.device) + 0.5) * scale
    stretch = scale.clamp(min=1)
    reached = math.ceil(4 * max(side / size, 1)) + 1  # pixels within two (stretched) pixels of a centre
    first = (centre - 2 * stretch).floor()
    places = first.unsqueeze(2) + torch.arange(reached, device=start.device) + 0.5
    weights = _cubic((places - centre.unsqueeze(2)) / stretch.unsqueeze(2))
    weights = weights * ((places > start.unsqueeze(2)) & (places < (start + length).unsqueeze(2)))
    weights = weights / weights.sum(2, keepdim=True)
    matrix = weights.new_zeros(len(start), size, side)
    return matrix.scatter_add_(2, places.long().clamp_(0, side - 1), weights)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2 (R. Keys, Cubic Convolution Interpolation, 1981, eq. 15)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x.square() + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
