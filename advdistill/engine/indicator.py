"""Doubts about a number, each with what was seen, from where on it is doubtful, and what to do next."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from advdistill.errors import DataError

VERDICTS = ("ok", "flag", "unknown")
FEW = 2
"""Samples that must speak against a number before it is doubted, however few there are: one alone may lie on the
boundary, where attacks that are equally good differ. (inferred)"""
BEATEN = 0.005
"""Share of samples that a weaker attacker may break where a stronger one does not. Half a point is what equally strong
attacks on honest models differ by (Croce & Hein 2020, arXiv 2003.01690, table 2)."""
IN_CLASS = 0.05
"""The same among the samples of one class: of many classes, one is the worst by chance. (inferred)"""
CHANGED = 0.01
"""Share of samples that a larger budget may decide differently. (inferred)"""
FAILED = 0.01
"""Share of samples on which an attack may do nothing, not rise, end on a harmless image, or be contradicted.
(inferred)"""
HALF_ZERO = 0.5
"""Mean share of pixels without gradient from which on a sample counts as one that was not attacked. A crop or a mask
hides less; a step that has no slope, or fp16, hides nearly all. (inferred)"""
STILL = 0.01
"""A rise of cross-entropy below this part of what it was at the clean image is none. (inferred)"""
CERTAIN = 0.05
"""Share of samples whose cross-entropy may be exactly 0 in float32: a loss written as log-softmax has nothing to
compare there. (inferred)"""
OTHER_LOSS = 0.05
"""Share of samples that another loss may break beyond the attack's own. On honest models APGD on cross-entropy and on
margins lie 0 to 3 points apart (arXiv 2003.01690, table 2), on masked ones tens."""
NOISE = 1e-4
"""Difference of two equal questions, relative to the size of the logits, that rounding explains. (inferred)"""
MATES = 1e-3
"""The same where batch mates differ: sums of another length round differently. (inferred)"""
SLOPE = 0.1
"""Median relative difference between the gradient and finite differences. Honest models in float32 lie near 0.0001
(measured on the demo); pixels in bf16 or fp16 come to 0.2 and more. (inferred)"""
FOUND = 0.95
"""Share of planted adversarial examples that an attack must find (Zimmermann et al. 2022, arXiv 2206.13991)."""
GUESSED = 0.5
"""Share of planted examples that as many random guesses may find before the test says nothing. (inferred)"""


@dataclass(frozen=True)
class Indicator:
    """One doubt.

    Attributes:
        name: what is looked at.
        value: what was seen, mostly a share of samples; None: nothing was.
        threshold: from where on that is doubtful.
        verdict: of `VERDICTS`; "unknown" means not measured, or on too few samples.
        advice: what to do next; "" where there is nothing to do.
        column: heading of the column that it is about; for a probe, the attack, the samples and their split; "" for
            all columns of the scope.
        scope: whose images and classes; "" for the model's own.
    """

    name: str
    value: float | None
    threshold: float | None
    verdict: str
    advice: str = ""
    column: str = ""
    scope: str = ""

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Indicator:
        """The inverse of `to_json`.

        Raises:
            DataError: `said` is no indicator of this version.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        numbers, words = ("value", "threshold"), ("name", "advice", "column", "scope")
        if (
            sorted(said) != sorted(names)
            or said["verdict"] not in VERDICTS
            or not all(isinstance(said[name], str) for name in words)
            or not all(said[name] is None or isinstance(said[name], (int, float)) for name in numbers)
        ):
            raise DataError("this is no indicator of this version", "evaluate again")
        return cls(**said)


def unknown(name: str, why: str, threshold: float | None = None, column: str = "") -> Indicator:
    """Not measured, and why."""
    return Indicator(name, None, threshold, "unknown", why, column)


def counted(name: str, count: int, total: int, threshold: float, advice: str, column: str = "") -> Indicator:
    """A share of samples that should be small.

    It is a flag above `threshold`, where at least `FEW` samples say so; unknown where a single sample already is more
    than `threshold`, or there are none.
    """
    if not total:
        return unknown(name, "there are no samples to judge by: raise --limit, or lower --eps", threshold, column)
    share = count / total
    if share <= threshold:
        return Indicator(name, share, threshold, "ok", "", column)
    if count < FEW:
        enough = math.ceil(FEW / threshold)
        why = f"one sample of {total} says nothing: take more, --limit {enough}"
        return Indicator(name, share, threshold, "unknown", why, column)
    return Indicator(name, share, threshold, "flag", advice, column)


def measured(name: str, value: float, threshold: float, advice: str, column: str = "") -> Indicator:
    """A number that should not exceed `threshold`; one that is none (NaN) is unknown."""
    if math.isnan(value):
        return unknown(name, "what was seen is no number", threshold, column)
    return Indicator(name, value, threshold, *(("flag", advice) if value > threshold else ("ok", "")), column)
