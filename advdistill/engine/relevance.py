"""Where models look: relevance maps on clean images and on adversarial ones, and how alike they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from advdistill.engine.model import Encoded
from advdistill.engine.outcomes import Outcome
from advdistill.engine.participant import Participant
from advdistill.engine.teaching import Crafted, Mean
from advdistill.errors import UsageError

AT_ONCE = 16
"""Images whose maps are made at a time, since all attention of a tower is held with its gradient. (inferred)"""


@dataclass(frozen=True)
class Similarity:
    """How alike two sets of maps are, image by image. An image counts where neither of its maps is the same everywhere.

    Attributes:
        cosine: of the maps as vectors, in [0, 1]. rank: Spearman's correlation, in [-1, 1].
    """

    cosine: Mean
    rank: Mean

    @classmethod
    def of(cls, first: Tensor, second: Tensor, sources: Tensor | None = None) -> Similarity | None:
        """Of (N, h, w) maps; the finer ones are averaged down to the grid of the coarser. None: no image counts.

        Args:
            sources: (N, k) long, as `Outcome.sources`; None: images share none.
        """
        grid = min(first.shape[1], second.shape[1]), min(first.shape[2], second.shape[2])
        a, b = (F.adaptive_avg_pool2d(maps[:, None].double(), grid).flatten(1) for maps in (first, second))
        tell = (a.amax(1) > a.amin(1)) & (b.amax(1) > b.amin(1))
        if not tell.any():
            return None
        a, b, known = a[tell], b[tell], None if sources is None else sources[tell]
        alike = F.cosine_similarity(a, b), F.cosine_similarity(_ranks(a), _ranks(b))
        return cls(*(Mean.of(values, known) for values in alike))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"cosine": self.cosine.to_json(), "spearman": self.rank.to_json()}


@dataclass(frozen=True)
class Maps:
    """One model's maps of N samples; each explains the logit of the sample's true class, whatever the model says.

    Attributes:
        clean, adversarial: (N, h, w) not negative, on the CPU.
    """

    clean: Tensor
    adversarial: Tensor

    @classmethod
    def of(cls, participant: Participant, crafted: Crafted) -> Maps:
        """Raises UsageError: the model has none."""
        return cls(*(maps(participant, x, crafted.labels) for x in (crafted.clean, crafted.adversarial)))


def maps(participant: Participant, images: Tensor, labels: Tensor) -> Tensor:
    """(N, h, w) where in images (N, 3, H, W) the logits of their classes (N,) come from; on the CPU.

    Raises:
        UsageError: the model has no such maps.
    """
    model, found = participant.model, []
    if not isinstance(model, Encoded):
        raise UsageError(
            f"{type(model).__name__} has no relevance maps: it has no image features apart from its classes",
            "leave out the relevance part",
        )
    with participant.deployed():
        classifier = participant.encoded().detach()
        for some, chosen in zip(images.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
            found.append(model.relevance(some.to(model.device), classifier, chosen.to(model.device)).cpu())
    return torch.cat(found)


def _ranks(values: Tensor) -> Tensor:
    """(n, P) each value's rank in its row, ties sharing theirs, less the mean rank."""
    ranks = torch.from_numpy(rankdata(values.numpy(), axis=1))
    return ranks - ranks.mean(1, keepdim=True)


def shown(outcome: Outcome, count: int) -> list[int]:
    """Positions of at most `count` samples for a picture, in order: as many that the attack broke as withstood it, then
    those that were wrong before."""
    broken, held, wrong = (
        kind.nonzero().squeeze(1)
        for kind in (outcome.clean & ~outcome.right, outcome.clean & outcome.right, ~outcome.clean)
    )
    some = _spread(broken, max((count + 1) // 2, count - len(held)))
    some += _spread(held, count - len(some))
    return sorted(some + _spread(wrong, count - len(some)))


def _spread(places: Tensor, count: int) -> list[int]:
    """At most `count` of them, evenly from first to last."""
    count = min(count, len(places))
    return [int(place) for place in places[torch.linspace(0, len(places) - 1, count).long()]] if count else []
