"""Gradient signs that carry over to other models: momentum, smoothing, input diversity, each with a switch of its own.

White-box where the attacked model's own gradients are taken, as the host does; black-box only where they are another
model's. What the papers are often compared through, torchattacks, differs: its TIFGSM smooths and diversifies without
momentum, so it is our `ti-fgsm` with `probability: 0.5`; one size and place serves its whole batch; its step is
2/255; and a gradient of zeros turns its samples into NaN directions, which stand still for good.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from advdistill import Attack, Noise, Problem, Threat
from advdistill_attacks.pgd import direction, random_start


def smooth(gradient: Tensor, kernel: int, sigma: float) -> Tensor:
    """(B, C, H, W) convolved with a Gaussian of `kernel` × `kernel` pixels whose edges lie `sigma` deviations out.

    That is the released code of Dong et al. 2019; their paper's text has a deviation of half the kernel over sqrt(3).
    Outside the image the gradient is 0.
    """
    if kernel == 1:
        return gradient
    at = torch.linspace(-sigma, sigma, kernel, dtype=gradient.dtype, device=gradient.device)
    weights = (-at.square() / 2).exp()
    weights = (weights / weights.sum()).expand(gradient.shape[1], 1, 1, kernel)
    half, groups = kernel // 2, gradient.shape[1]
    along = F.conv2d(gradient, weights, padding=(0, half), groups=groups)
    return F.conv2d(along, weights.transpose(2, 3), padding=(half, 0), groups=groups)


def diversify(images: Tensor, draws: Tensor, probability: float, rate: float) -> Tensor:
    """Some of the images made smaller, and put somewhere in a black frame of the old size.

    Args:
        images: (B, C, H, W).
        draws: (B, 4) in [0, 1): whether, how large, where from the top, where from the left; a sample's own.
        probability: of each image to be changed.
        rate: smallest side as a share of the old one; sides are whole pixels, at least 1, the largest one less than
            the old one.

    Returns:
        (B, C, H, W), differentiable in `images`; bilinear as `interpolate(align_corners=False)`.
    """
    changed, size, *places = draws.unbind(1)
    grid, inside = [], []
    for side, place in zip(images.shape[2:], places, strict=True):
        least = max(int(side * rate), 1)
        small = least + (size * (side - least)).floor().unsqueeze(1)
        start = (place.unsqueeze(1) * (side - small + 1)).floor()
        at = torch.arange(side, dtype=draws.dtype, device=draws.device) - start
        # Where a pixel of the small image lies in the old one, whose edges are -1 and 1.
        grid.append((2 * at + 1) / small - 1)
        inside.append((at >= 0) & (at < small))
    (down, across), (rows, columns) = grid, inside
    where = torch.stack(
        [across.unsqueeze(1).expand(-1, len(down[0]), -1), down.unsqueeze(2).expand(-1, -1, len(across[0]))], dim=-1
    )
    moved = F.grid_sample(images, where.to(images.dtype), padding_mode="border", align_corners=False)
    moved = moved * (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
    return torch.where((changed < probability).view(-1, 1, 1, 1), moved, images)


class Transfer(Attack):
    """MI-FGSM (Dong et al. 2018, arXiv 1710.06081, algorithm 1), TI-FGSM (Dong et al. 2019, 1904.02884), DI-FGSM (Xie
    et al. 2019, 1803.06978), and all of them together; the last iterate.

    The objective need not be cross-entropy. An image that was resized counts as an image looked at like any other; it
    breaks a sample only if it lies in the ball itself.
    """

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        config = self.config
        step = config.step or threat.eps / config.steps
        own = problem
        if config.probability:
            looks = itertools.count(1)  # several a step where gradients are means over draws
            one = problem.restated(draws=1)  # the mean is taken over the sizes and places as well

            def seen_smaller(images: Tensor, rows: Tensor) -> Tensor:
                # A start takes the draw 0, in l2 up to 2.
                draws = noise.uniform((4,), next(looks) + 2, rows)
                return one.objective(diversify(images, draws, config.probability, config.resize_rate), rows)

            own = problem.restated(seen_smaller)
        images = random_start(problem, threat, noise) if config.random_start else problem.images.clone()
        velocity = torch.zeros_like(images)
        for _ in range(config.steps):
            rows = problem.open()
            if not len(rows):
                break
            gradient, _ = own.gradient(images[rows], rows)
            gradient = smooth(gradient, config.kernel, config.sigma)
            mean = gradient.abs().mean((1, 2, 3), keepdim=True)
            # A gradient of zeros stays one: it adds nothing to the momentum.
            gradient = gradient / mean.clamp_min(torch.finfo(mean.dtype).tiny)
            velocity[rows] = config.decay * velocity[rows] + gradient
            ahead = images[rows] + step * direction(velocity[rows], threat.norm)
            images[rows] = threat.project(ahead, problem.images[rows])
        return images
