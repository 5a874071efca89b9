"""Counts of samples, and how sure one can be of their share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Z = 1.959964
"""Standard deviations to either side that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Count:
    """`hits` of `total` samples.

    Attributes:
        effective: how many independent samples say as much as these, where they share sources; None: they share none.
    """

    hits: int
    total: int
    effective: float | None = None

    @classmethod
    def of(cls, hit: Tensor, sources: Tensor | None = None) -> Count:
        """Of samples that are hit or not.

        Args:
            hit: (N,) bool. sources: (N, k) long, as `Outcome.sources`; None, or k = 0: they share none.
        """
        worth = None
        if sources is not None and sources.numel():
            from advdistill.engine.sources import effective  # scipy takes its time

            worth = effective(hit.double().numpy(), sources.numpy())
        return cls(int(hit.sum()), len(hit), worth)

    @property
    def share(self) -> float:
        """hits / total, in [0, 1]."""
        return self.hits / self.total

    def wilson(self, z: float = Z) -> tuple[float, float]:
        """The Wilson score interval of the share (Wilson 1927), 95 % by default, of as many samples as these are worth;
        sampling error only."""
        n, p = self.effective or self.total, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # Where all or none are hit, rounding would put the bound on the wrong side of the share.
        return min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half))

    def interval(self) -> dict[str, Any]:
        """As plain data: `wilson95` [low, high]; where samples share sources `sources95`, and how many these are
        worth, `effective`."""
        if self.effective is None:
            return {"wilson95": list(self.wilson())}
        return {"sources95": list(self.wilson()), "effective": self.effective}
