"""Intervals where samples are made of the same sources, such as pictures of which each stands in several images.

Such samples are not independent: who misreads a picture misreads it wherever it stands. Intervals that resample the
samples are too narrow. The pigeonhole bootstrap (Owen 2007, arXiv 0712.1111) resamples what is independent, the
sources, and weighs a sample by the product of its sources' multiplicities. It is conservative: where sources do not
matter and a sample has two, intervals are about 1.7 times as wide as they need be (the product of two multiplicities
has variance 3, one has 1).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

DRAWS = 10_000
NUMBERS = 2_000_000
"""Multiplicities, or weights, that are held at a time."""


def resampled(
    values: np.ndarray, sources: np.ndarray, imagined: tuple[float, float], draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """(draws,) weighted means of `values`, whose sources are drawn with replacement.

    Two samples are imagined among them, each of sources of its own, so that samples that all agree are no proof that
    none would not.

    Args:
        values: (n,) one value a sample. sources: (n, k) integers, k >= 1: which ones each sample is made of.
        imagined: the values of the two.
    """
    count, width = sources.shape
    _, known = np.unique(sources, return_inverse=True)
    known = known.reshape(count, width)
    own = known.max(initial=-1) + 1
    known = np.concatenate([known, own + np.arange(2 * width).reshape(2, width)])
    values = np.append(values, imagined)
    means = []
    for drawn in _multiplicities(int(own) + 2 * width, draws, len(values), np.random.default_rng(seed)):
        weights = drawn[:, known[:, 0]]
        for column in range(1, width):
            weights = weights * drawn[:, known[:, column]]
        # With a handful of sources a draw may leave no sample at all.
        means.append(weights @ values / np.maximum(weights.sum(1), 1))
    return np.concatenate(means)


def _multiplicities(sources: int, draws: int, samples: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """(m, sources) float32: how often each is drawn in each of m rounds of `sources` draws; `draws` rounds in all."""
    portion = max(NUMBERS // max(sources, samples), 1)
    for start in range(0, draws, portion):
        rounds = min(portion, draws - start)
        taken = random.integers(sources, size=(rounds, sources)) + sources * np.arange(rounds)[:, None]
        counted = np.bincount(taken.ravel(), minlength=rounds * sources)
        yield counted.reshape(rounds, sources).astype(np.float32)


def independent(sources: np.ndarray) -> int:
    """How many of the samples can at most be independent: as many as there are sets of sources of their own.

    Args:
        sources: (n, k) integers, k >= 1.
    """
    return min(len(sources), len(np.unique(sources)) // sources.shape[1])
