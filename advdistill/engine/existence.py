"""Adversarial examples that are known to exist, to see whether an attack finds them.

After the binarisation test of Zimmermann et al. 2022 (arXiv 2206.13991, section 4): the last linear layer is replaced
by a binary one whose decision flips somewhere in the ball, and an attack that can be trusted must succeed on 95 % of
the samples. In a model that compares image with class features that layer is the class features, so each sample gets
two of its own. The paper trains a classifier on sampled features; here the two are made in closed form (inferred): of
points sampled in the ball and at its corners, the one that lies farthest beyond all others in its own direction becomes
the example, and the boundary is drawn just before it. Its feature direction, the clean image's and the boundary span
a plane, so a bias is not needed: on the sphere the clean direction itself serves as one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from advdistill.engine.data import Batch
from advdistill.engine.noise import Noise
from advdistill.engine.participant import Participant
from advdistill.engine.types import Threat

POINTS = 64
"""Points sampled around each image, every other one at a corner of the ball. (inferred)"""
CLOSE = 0.9
"""Where the boundary lies between the last of the other points (0) and the planted example (1). (inferred)"""


@dataclass(frozen=True)
class Plants:
    """One binary problem for each of n samples; class 0 is the clean image's, class 1 the planted example's.

    Attributes:
        participant: the model. pairs: (n, 2, D) unit-norm class features.
        exists: (n,) bool; the model's own answer at the planted example is class 1, at the clean image class 0.
    """

    participant: Participant
    pairs: Tensor
    exists: Tensor

    def __getitem__(self, rows: Tensor) -> Plants:
        return dataclasses.replace(self, pairs=self.pairs[rows], exists=self.exists[rows])

    def logits(self, images: Tensor, rows: Tensor) -> Tensor:
        """(len(rows), 2) by the model's own head, with each sample's class features."""
        features = self.participant.features(images)
        said = self.participant.model.logits(features, self.pairs[rows].flatten(0, 1))  # type: ignore[operator]
        own = 2 * torch.arange(len(rows), device=images.device)
        return said.gather(1, torch.stack([own, own + 1], 1))

    @torch.no_grad()
    def guess(self, batch: Batch, threat: Threat, seed: int) -> float:
        """Share of the samples that `POINTS` other random points find an example for."""
        rows = torch.arange(len(batch), device=batch.images.device)
        found = torch.zeros(len(batch), dtype=torch.bool, device=batch.images.device)
        noise = Noise(seed, "guesses", 0, batch.samples)
        for draw in range(POINTS):
            said = self.logits(sampled(batch.images, threat, noise, draw), rows)
            found |= said[:, 1] > said[:, 0]
        return found.float().mean().item()


def sampled(images: Tensor, threat: Threat, noise: Noise, draw: int) -> Tensor:
    """(B, 3, H, W) points in the ball; with an odd `draw` at corners, where all pixels change alike."""
    shape = tuple(images.shape[1:])
    if threat.norm == "linf":
        offset = 2 * noise.uniform(shape, draw) - 1
        offset = offset.sign() if draw % 2 else offset
        return threat.project(images + threat.eps * offset, images)
    offset = noise.normal(shape, draw)
    radius = 1.0 if draw % 2 else (draw + 1) / POINTS
    size = threat.size(offset).clamp_min(1e-12).view(-1, 1, 1, 1)
    # l0 counts pixels: projection keeps the largest.
    offset = offset if threat.norm == "l0" else threat.eps * radius * offset / size
    return threat.project(images + offset, images)


@torch.no_grad()
def plant(participant: Participant, batch: Batch, threat: Threat, seed: int) -> Plants:
    """Class features for each sample of the batch, by `POINTS` questions each, while the model is `deployed`.

    Args:
        participant: of a `Factored` model.
    """
    clean = batch.images
    rows = torch.arange(len(clean), device=clean.device)
    noise = Noise(seed, "plants", 0, batch.samples)

    def look(images: Tensor) -> Tensor:
        return F.normalize(participant.features(images).double(), dim=1)

    home = look(clean)
    looks = torch.stack([look(sampled(clean, threat, noise, draw)) for draw in range(POINTS)], 1)
    # Directions from the clean image's, and how far every point goes in each: (n, POINTS, POINTS).
    ways = F.normalize(looks - (looks @ home.unsqueeze(2)) * home.unsqueeze(1), dim=2)
    heights = ways @ (looks / (looks @ home.unsqueeze(2)).clamp_min(1e-6)).transpose(1, 2)
    own = heights.diagonal(dim1=1, dim2=2)
    others = (heights - torch.diag_embed(torch.full_like(own, torch.inf))).amax(2).clamp_min(0)
    best = (own - others).argmax(1)
    chosen = rows, best
    threshold = others[chosen] + CLOSE * (own[chosen] - others[chosen])
    normal = F.normalize(ways[chosen] - threshold.unsqueeze(1) * home, dim=1)
    pairs = _pairs(normal, home, participant, clean, batch.labels)
    plants = Plants(participant, pairs, own[chosen] > others[chosen])
    examples = clean.clone()
    for draw in best.unique().tolist():  # drawn again, not kept: full-size images would fill the memory
        here = best == draw
        examples[here] = sampled(clean[here], threat, noise.of(here.nonzero().squeeze(1)), draw)
    at, before = plants.logits(examples, rows), plants.logits(clean, rows)
    exists = plants.exists & (at[:, 1] > at[:, 0]) & (before[:, 0] > before[:, 1])
    return dataclasses.replace(plants, exists=exists)


def _pairs(normal: Tensor, home: Tensor, participant: Participant, clean: Tensor, labels: Tensor) -> Tensor:
    """(n, 2, D) unit vectors whose difference is along `normal`, as far apart as leaves the clean image the margin
    that it has under the model's own classes: so the losses are as steep, or as flat, as in the attack in question."""
    across = home - (home * normal).sum(1, keepdim=True) * normal
    across = F.normalize(across, dim=1)

    def spread(half: Tensor) -> Tensor:
        level = (1 - half.square()).clamp_min(0).sqrt()
        both = torch.stack([level * across - half * normal, level * across + half * normal], 1)
        return F.normalize(both, dim=2).float()

    rows = torch.arange(len(clean), device=clean.device)
    said = participant.logits(clean, constant=True).double()
    label = labels.unsqueeze(1)
    wanted = (said.gather(1, label) - said.scatter(1, label, -torch.inf).amax(1, keepdim=True)).clamp_min(1e-3)
    small = torch.full_like(wanted, 0.05)
    with_small = Plants(participant, spread(small), rows).logits(clean, rows).double()
    margin = (with_small[:, :1] - with_small[:, 1:]).clamp_min(1e-12)
    half = (small * wanted / margin).nan_to_num(0.05).clamp(1e-3, 0.95)
    return spread(half)
