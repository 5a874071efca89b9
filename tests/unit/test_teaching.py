"""Teachers on their student's examples.

Guarantees:
- counts, divergences and intervals are those of a case done by hand; the bound holds for every sample, and its slack is
  what the right side exceeds the left by; without errors of the student nothing is divided by their number;
- the advice follows the split of the student's errors;
- examples come in the order of their samples, all of them, and the model is right about just those that the column
  says; samples that were wrong before are shown as they are.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from advdistill.engine.build import protocol
from advdistill.engine.count import Count
from advdistill.engine.data import stratified
from advdistill.engine.evaluate import Bench, split_reader
from advdistill.engine.participant import Participant
from advdistill.engine.teaching import Mean, Said, compare, craft, log_probs
from advdistill.engine.types import Threat
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import resolve_blocks
from advdistill.testing import ToyConfig, ToyDataset, ToyModel


def said(*classes: int, sure: float = 0.7) -> Tensor:
    """(N, 3) log-probabilities: `sure` of each class, the rest shared."""
    probs = torch.full((len(classes), 3), (1 - sure) / 2, dtype=torch.float64)
    probs[range(len(classes)), list(classes)] = sure
    return probs.log()


LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
STUDENT = Said(said(0, 0, 1, 1, 2, 0), said(0, 1, 0, 0, 0, 0))
TEACHER = Said(said(0, 0, 1, 0, 2, 2, sure=0.8), said(1, 0, 0, 2, 2, 2, sure=0.8))


def test_a_case_by_hand():
    found = compare(STUDENT, TEACHER, LABELS)
    assert found.clean.right == Count(5, 6) and found.clean.agree == Count(4, 6)
    assert found.adversarial.right == Count(3, 6) and found.adversarial.agree == Count(1, 6)
    same = 0.8 * math.log(0.8 / 0.7) + 0.2 * math.log(0.1 / 0.15)
    other = 0.8 * math.log(0.8 / 0.15) + 0.1 * math.log(0.1 / 0.7) + 0.1 * math.log(0.1 / 0.15)
    assert found.clean.divergence.value == pytest.approx((4 * same + 2 * other) / 6)
    # Five errors on x': of samples 2 and 3 the teacher is wrong too, of 1, 4 and 5 it is not.
    assert found.wrong_too == Count(2, 5) and found.apart == Count(3, 5)
    # Both are right about 0, 1, 2 and 4 without attack; of those 1, 2 and 4 fool the student, and 2 the teacher too.
    assert found.fooled == Count(1, 3)
    assert (found.student_wrong, found.teacher_wrong, found.disagree) == (Count(5, 6), Count(3, 6), Count(5, 6))
    # Sample 0: the teacher is wrong and they disagree, yet the student is right (2 too many); 3: all three (1).
    assert found.slack == Count(2, 6) and found.excess.value == pytest.approx(3 / 6)
    assert found.student_wrong.share + found.excess.value == found.teacher_wrong.share + found.disagree.share
    assert found.to_json()["bound"]["slack"]["hits"] == 2


def test_the_advice_follows_the_split():
    can = compare(STUDENT, TEACHER, LABELS)
    assert (
        "right about 3 of the student's 5 errors" in can.advice and "can help (too few errors to be sure)" in can.advice
    )
    cannot = compare(STUDENT, STUDENT, LABELS)
    assert cannot.wrong_too == Count(5, 5) and cannot.advice.endswith("such examples can")
    assert not cannot.slack.hits and cannot.adversarial.divergence.value == 0
    none = compare(Said(said(*LABELS), said(*LABELS)), TEACHER, LABELS)
    assert none.wrong_too.total == 0 and "stronger attack" in none.advice
    assert none.to_json()["student's errors"]["teacher right"]["share"] is None


def test_the_bound_holds_whatever_they_say():
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=draws)
    for _ in range(5):
        clean, first, second = (torch.randn(200, 3, generator=draws).log_softmax(1) for _ in range(3))
        found = compare(Said(clean, first), Said(clean, second), labels)
        assert found.student_wrong.share <= found.teacher_wrong.share + found.disagree.share
        assert found.wrong_too.hits + found.apart.hits == found.student_wrong.hits == found.apart.total


def test_means_have_bootstrap_intervals():
    values = torch.rand(200, generator=torch.Generator().manual_seed(1)) ** 4
    found, error = Mean.of(values), values.std().item() / 200**0.5
    assert found == Mean.of(values) and found.value == pytest.approx(values.mean().item())
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.2)
    assert found.value - found.low == pytest.approx(1.96 * error, rel=0.2)
    assert Mean.of(torch.tensor([0.0, 0.0, 1.0])).low == 0  # never below what is possible
    assert Mean.of(torch.tensor([2.0])).to_json() == {"value": 2.0, "low": 2.0, "high": 2.0, "count": 1}


def test_examples_are_those_that_decided():
    data = ToyDataset(None)
    model = ToyModel(ToyConfig())
    participant, splits = Participant(model, data.classes), split_reader(data)
    registry = default_registry()
    block = resolve_blocks({"attack": {"use": "pgd", "steps": 3}}, registry)[("attack",)]
    asked = protocol(registry, "pgd", block, Threat("linf", 6 / 255), limit=20)
    crafted = craft(Bench(participant, splits, 3, batch_size=7), asked)
    outcome, split = crafted.column.outcome, splits("test")
    assert torch.equal(outcome.indices, stratified(split.labels, 20, 3)) and len(crafted.clean) == 20
    assert torch.equal(crafted.labels, split.labels[outcome.indices])
    for position, index in enumerate(outcome.indices.tolist()):
        assert torch.equal(crafted.clean[position], split.load(index))
    right = log_probs(participant, crafted.adversarial, 6).argmax(1) == crafted.labels
    assert torch.equal(right & outcome.clean, outcome.right) and 0 < outcome.right.sum() < 20
    assert torch.equal(crafted.adversarial[~outcome.clean], crafted.clean[~outcome.clean])
    assert (crafted.adversarial - crafted.clean).abs().max() <= 6 / 255 + 1e-6
