"""Counts of samples, and how sure one can be of their share."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    """`hits` of `total` samples."""

    hits: int
    total: int

    @property
    def share(self) -> float:
        """hits / total, in [0, 1]."""
        return self.hits / self.total

    def wilson(self, z: float = 1.959964, effective: float | None = None) -> tuple[float, float]:
        """The Wilson score interval of the share (Wilson 1927), 95 % by default; sampling error only.

        Args:
            effective: how many independent samples say as much as these; None: they are independent.
        """
        n, p = effective or self.total, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # Where all or none are hit, rounding would put the bound on the wrong side of the share.
        return min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half))
