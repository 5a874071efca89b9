"""Intervals where samples share sources.

Guarantees:
- the variance of samples with sources of their own is that of independent ones, shared sources add to it and never take
  away; it is the sum over pairs that share one, by hand; sources' numbers and the order of samples do not matter;
- on crossed data the 95 % interval covers the truth in 92 % and more of the simulations, where one that takes samples
  for independent does not;
- samples that all agree leave some doubt;
- evaluation hands the split's sources on, limits and files keep them, files without any are read as before;
- `compare` leaves out McNemar and says so, takes p from the draws, and sees differences only above what its
  interval could show; an evaluation without sources takes those of the others;
- the card's interval is the sources', by its own name, and the card says so; results and a diagnosis have the same,
  and stored results keep it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from outcome_parts import bits, clean_column, column, evaluation, outcome
from torch import Tensor

from advdistill.engine.card import card, ends, markdown
from advdistill.engine.compare import Method, bootstrap, compare
from advdistill.engine.data import Split
from advdistill.engine.evaluate import Bench, Results
from advdistill.engine.outcomes import FILE, Evaluation
from advdistill.engine.participant import Participant
from advdistill.engine.protocol import Protocol
from advdistill.engine.sources import drawn, effective, independent, variance
from advdistill.engine.teaching import Mean, Said
from advdistill.engine.teaching import compare as taught
from advdistill.testing import ToyConfig, ToyDataset, ToyModel


def crossed(pictures: int, each: int, rng: np.random.Generator) -> np.ndarray:
    """(pictures · each, 2): every picture `each` times on the left and as often on the right, never beside itself."""
    shifts = rng.choice(np.arange(1, pictures), size=each, replace=False)
    return np.concatenate([np.stack([np.arange(pictures), (np.arange(pictures) + s) % pictures], 1) for s in shifts])


def test_own_sources_are_independent_samples() -> None:
    values = bits(0.7, 1, 400).numpy().astype(float)
    for width in (1, 2, 3):
        own = np.arange(400 * width).reshape(400, width)
        assert variance(values, own) == pytest.approx(0.7 * 0.3 / 400, rel=0.01)
        assert effective(values, own) == pytest.approx(400, rel=0.01) and independent(own) == 400
    some = drawn(values, np.arange(800).reshape(400, 2), (0.0, 1.0))
    assert some.mean() == pytest.approx(0.7, abs=0.001)
    assert some.std() == pytest.approx(np.sqrt(0.7 * 0.3 / 400), rel=0.05)


def test_the_variance_is_a_sum_over_pairs_that_share() -> None:
    rng = np.random.default_rng(0)
    sources = crossed(12, 3, rng)
    values = rng.random(12)[sources].sum(1)  # what a sample says comes from its sources
    away = values - values.mean()
    by_hand = sum(
        a * b
        for a, one in zip(away, sources, strict=True)
        for b, two in zip(away, sources, strict=True)
        if {*one} & {*two}
    )
    assert variance(values, sources) == pytest.approx(by_hand * 12 / 11 / 36**2)
    assert variance(values, sources) > 2 * away @ away / 36**2 and effective(values, sources) < 18


def test_sharing_never_takes_away() -> None:
    values = np.array([1.0, 0.0, 1.0, 0.0])
    sources = np.array([[0, 1], [0, 2], [3, 4], [3, 5]])  # what shares a source differs
    away = values - values.mean()
    assert variance(values, sources) == pytest.approx(away @ away / 16)


def test_numbers_and_order_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    sources, values = crossed(40, 4, rng), rng.random(160)
    known = variance(values, sources)
    assert known == pytest.approx(variance(values, sources * 7 + 3))
    order = rng.permutation(160)
    assert known == pytest.approx(variance(values[order], sources[order][:, ::-1]))
    assert independent(sources) == 20


def test_what_all_agree_on_leaves_doubt() -> None:
    sources = crossed(10, 2, np.random.default_rng(0))
    assert np.quantile(drawn(np.ones(20), sources, (0.0, 1.0)), 0.025) < 0.95
    assert effective(np.ones(20), sources) == 5


def test_crossed_data_is_covered() -> None:
    rng = np.random.default_rng(0)
    covered = {"sources": 0, "samples": 0}
    rounds, truth = 200, 0.0  # the two methods are alike in distribution
    for number in range(rounds):
        sources = crossed(40, 10, rng)

        def right(sources: np.ndarray = sources) -> np.ndarray:
            """A method that misreads some pictures, wherever they stand."""
            skill = rng.random(40) < 0.85
            return (skill[sources].all(1) & (rng.random(len(sources)) < 0.95))[None]

        first, second = right(), right()
        for name, known in (("sources", sources), ("samples", None)):
            low, high = np.quantile(bootstrap(first, second, 1000, number, known), (0.025, 0.975))
            covered[name] += int(low <= truth <= high)
    assert covered["sources"] >= 0.92 * rounds
    assert covered["samples"] < 0.8 * rounds


class Made(Split):
    """Another split's samples, which are made of sources."""

    def __init__(self, whole: Split) -> None:
        self._whole, self.labels, self.ids = whole, whole.labels, whole.ids
        self.sources = torch.stack([torch.arange(len(whole)), torch.arange(len(whole)).roll(1)], 1)

    def load(self, index: int) -> Tensor:
        return self._whole.load(index)


def test_evaluation_and_files_keep_them(tmp_path: Path) -> None:
    data = ToyDataset(ToyConfig())
    participant = Participant(ToyModel(ToyConfig()), data.classes)
    split = Made(data.split("test"))
    (found,) = Bench(participant, lambda name: split, seed=0).columns([Protocol("clean", limit=7)])
    assert torch.equal(found.outcome.sources, split.sources[found.outcome.indices])
    assert found.outcome[torch.tensor([2, 0])].sources.tolist() == split.sources[found.outcome.indices[[2, 0]]].tolist()
    (bare,) = Bench(participant, data.split, seed=0).columns([Protocol("clean", limit=7)])
    assert bare.outcome.sources.shape == (7, 0)
    Evaluation("toy", {}, (found, replace(bare, name="bare"))).save(tmp_path / FILE)
    back = Evaluation.read(tmp_path)
    assert torch.equal(back.columns[0].outcome.sources, found.outcome.sources)
    assert back.columns[1].outcome.sources.shape == (7, 0) and back.columns[1].outcome.sources.dtype == torch.long


def measured(name: str, right: Tensor, sources: Tensor | None) -> Evaluation:
    known = {} if sources is None else {"sources": sources}
    clean = torch.ones_like(right)
    base = clean_column(clean)
    return evaluation(
        name, replace(base, outcome=outcome(clean, **known)), column("pgd", outcome(clean, right, **known))
    )


def test_comparison_resamples_sources() -> None:
    sources = torch.from_numpy(crossed(40, 10, np.random.default_rng(0)))
    first, second = bits(0.7, 1, 400), bits(0.55, 2, 400)

    def compared(one: Tensor | None, two: Tensor | None) -> object:
        methods = [Method("a", (measured("a", first, one),)), Method("b", (measured("b", second, two),))]
        return compare(methods, columns=["pgd"], per_class=True, draws=2000)

    found, bare = compared(sources, sources), compared(None, None)
    row, alone = found.rows[0], bare.rows[0]  # type: ignore[attr-defined]
    assert row.difference == alone.difference and row.high - row.low >= 0.98 * (alone.high - alone.low)
    assert row.tests == () and len(alone.tests) == 1
    assert len(found.rows) == 11 and all(not each.tests for each in found.rows)  # type: ignore[attr-defined]
    told = [note for note in found.notes if "McNemar" in note]  # type: ignore[attr-defined]
    assert len(told) == 1 and "pgd" in told[0]
    assert not any("McNemar" in note for note in bare.notes)  # type: ignore[attr-defined]
    assert compared(None, sources).rows[0] == row  # type: ignore[attr-defined]


def test_the_card_names_its_interval() -> None:
    sources = torch.from_numpy(crossed(40, 10, np.random.default_rng(0)))
    right = bits(0.6, 3, 400)
    shared, bare = card(measured("a", right, sources)), card(measured("a", right, None))
    one, other = shared["columns"][1], bare["columns"][1]
    assert "wilson95" not in one and "sources95" not in other
    low, high = one["sources95"]
    assert low < one["accuracy"] == 0.6 < high and high - low >= other["wilson95"][1] - other["wilson95"][0]
    assert "sources95" in shared["worst"][0] and json.loads(json.dumps(shared)) == shared
    assert f"[{100 * low:.1f}–{100 * high:.1f}]" in shared["headline"]
    assert "share the pictures" in markdown(shared) and "share the pictures" not in markdown(bare)
    assert shared["columns"][0]["sources95"][1] == 1.0 > shared["columns"][0]["sources95"][0]


def test_results_and_their_files_know() -> None:
    sources = torch.from_numpy(crossed(40, 10, np.random.default_rng(0)))
    skill = bits(0.8, 4, 40)
    right = skill[sources].all(1)
    found = measured("a", right, sources)
    row, column = Results.of("a", found.columns), card(found)["columns"][1]
    assert row.counts["pgd"].wilson() == ends(column) and row.counts["pgd"].effective < 200
    plain = row.to_json()["protocols"]["pgd"]
    assert plain["sources95"] == column["sources95"] and "wilson95" not in plain
    assert Results.from_json("a", json.loads(json.dumps(row.to_json()))).counts == row.counts


def test_a_diagnosis_knows() -> None:
    sources = torch.from_numpy(crossed(40, 10, np.random.default_rng(0)))
    labels = torch.zeros(400, dtype=torch.long)
    student, teacher = (bits(0.8, seed, 40)[sources].all(1) for seed in (4, 5))

    def said(right: Tensor) -> Said:
        logits = torch.stack([right, ~right], 1).double().log_softmax(1)
        return Said(logits, logits)

    one, other = (taught(said(student), said(teacher), labels, known) for known in (sources, None))
    assert one.teacher_wrong.hits == other.teacher_wrong.hits and one.slack.effective < 300
    for name in ("wrong_too", "teacher_wrong", "disagree"):
        (low, high), (inner, outer) = (getattr(each, name).wilson() for each in (one, other))
        assert low < inner and high > outer, name
    one, other = one.clean.divergence, other.clean.divergence
    assert one.value == other.value and one.low < other.low and one.high > other.high
    assert Mean.of(torch.ones(3), torch.arange(6).view(3, 2)) == Mean(1, 1, 1, 3)
