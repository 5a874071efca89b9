"""Intervals where samples are made of the same sources, such as pictures of which each stands in several images.

Such samples are not independent: who misreads a picture misreads it wherever it stands, and intervals that take samples
for independent are too narrow. The variance of a mean is then a sum over all pairs of samples that share a source, of
the products of their deviations (Cameron, Gelbach & Miller 2011, multiway clustering; Aronow, Samii & Assenova 2015,
arXiv 1312.3398, samples of two members each). To draw sources and weigh a sample by the product of their
multiplicities (Owen 2007, the pigeonhole bootstrap) would give three times the variance where sources do not matter.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

DRAWS = 10_000


def variance(values: np.ndarray, sources: np.ndarray) -> float:
    """Of the mean of `values`; never less than that of independent samples.

    Args:
        values: (n,) one value a sample. sources: (n, k) integers, k >= 1: which ones each sample is made of.
    """
    count, width = sources.shape
    labels, known = np.unique(sources, return_inverse=True)
    places = (np.repeat(np.arange(count), width), known.reshape(-1))
    made = sparse.csr_matrix((np.ones(count * width), places), (count, len(labels)))
    shared = (made @ made.T).sign()
    away = values - values.mean()
    together = float(away @ (shared @ away)) * len(labels) / max(len(labels) - 1, 1)
    return max(together, float(away @ away)) / count**2


def drawn(
    values: np.ndarray, sources: np.ndarray, imagined: tuple[float, float], draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """(draws,) means of `values` as other sources might have given them: normal around theirs.

    Two samples are imagined among them for the variance, each of sources of its own, so that samples that all agree
    are no proof that none would not.

    Args:
        values, sources: as for `variance`. imagined: the values of the two.
    """
    width = sources.shape[1]
    own = sources.max(initial=-1) + 1 + np.arange(2 * width).reshape(2, width)
    spread = variance(np.append(values, imagined), np.concatenate([sources, own])) ** 0.5
    return values.mean() + spread * np.random.default_rng(seed).standard_normal(draws)


def effective(values: np.ndarray, sources: np.ndarray) -> float:
    """How many independent samples would say as much about the mean of `values` (Kish 1965: by the design effect); what
    sources allow at least, where all values are equal and tell nothing of it."""
    away = values - values.mean()
    alone = float(away @ away) / len(values) ** 2
    return len(values) * alone / variance(values, sources) if alone else float(independent(sources))


def independent(sources: np.ndarray) -> int:
    """How many of the samples can at most be independent: as many as there are sets of sources of their own.

    Args:
        sources: (n, k) integers, k >= 1.
    """
    return min(len(sources), len(np.unique(sources)) // sources.shape[1])
