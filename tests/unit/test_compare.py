"""Comparison of stored evaluations.

Guarantees:
- McNemar's p is the sum of binomial probabilities; Holm's adjustment is that of a worked example;
- bootstrap: over samples it spreads as theory says, and where none differs, too; the same samples go to both methods,
  and their order does not matter; equal differences of seeds widen nothing; the 95 % interval covers 90–98 % of 200
  simulations, with one seed and with three or five that differ, where one over samples alone does not;
- the detectable difference has 80 % power in McNemar's exact test, and never asks for less than six samples;
- other protocols are refused with the field, both values and what to do; other samples too; `despite` lets a field
  pass and says so, an unknown one is refused; images made on different models are left out; another order of samples
  is the same;
- worst cases are per ball; runs of several seeds are paired by seed; a run cannot stand for two seeds, nor two runs for
  one; runs of several recipes under one name are told; intervals end at ±100 points, and too few seeds are told;
- Holm is over all rows; the words say what was seen, and else what could not have been;
- the front knows who dominates whom and on which axes beyond the interval; classes add up to the column;
- words of the command line are read as methods.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from outcome_parts import EPS, PGD, SCORES, bits, clean_column, column, evaluation, outcome
from scipy import stats
from torch import Tensor

from advdistill import DataError, UsageError
from advdistill.engine.compare import (
    Comparison,
    Method,
    bootstrap,
    compare,
    detectable,
    holm,
    mcnemar,
    read_methods,
)
from advdistill.engine.outcomes import FILE, Evaluation

FEW = 500
"""Draws that are enough where no probability is looked at."""


def method(name: str, *evaluations: Evaluation) -> Method:
    return Method(name, evaluations)


def simple(name: str, right: Tensor, clean: Tensor | None = None, seed: Any = None, **more: Any) -> Evaluation:
    """Clean accuracy and one attack, a run of that seed."""
    clean = torch.ones_like(right) if clean is None else clean
    facts = {} if seed is None else {"recipe": {"name": name.partition("-")[0], "seed": seed}}
    return evaluation(name, clean_column(clean), column("pgd", outcome(clean, right), **more), **facts)


# McNemar and Holm


@pytest.mark.parametrize(("one", "two"), [(0, 6), (3, 9), (9, 3), (5, 5), (1, 0), (40, 61)])
def test_mcnemar_is_a_sum_of_binomials(one: int, two: int) -> None:
    n, low = one + two, min(one, two)
    explicit = min(1.0, 2 * sum(math.comb(n, k) for k in range(low + 1)) / 2**n)
    assert mcnemar(one, two) == pytest.approx(explicit, rel=1e-9)


def test_mcnemar_of_no_difference_is_1() -> None:
    assert mcnemar(0, 0) == 1.0


def test_holm_by_hand() -> None:
    # sorted 0.005·4, 0.01·3, 0.03·2, 0.04·1 -> 0.02, 0.03, 0.06, max(0.06, 0.04)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


# Bootstrap


def rows(*seeds: int, share: float = 0.6, count: int = 400) -> np.ndarray:
    return np.stack([bits(share, seed, count).numpy() for seed in seeds])


def test_one_seed_spreads_as_theory_says() -> None:
    first, second = rows(1), rows(2, share=0.5)
    gains = first[0].astype(float) - second[0]
    drawn = bootstrap(first, second, 10_000)
    assert drawn.mean() == pytest.approx(gains.mean(), abs=0.002)
    assert drawn.std() == pytest.approx(gains.std() / math.sqrt(400), rel=0.03)


def test_samples_are_paired() -> None:
    first = rows(1)
    near = first.copy()
    near[0, :8] = ~near[0, :8]
    assert bootstrap(first, near).std() < 0.3 * bootstrap(first, rows(2)).std()


def test_no_difference_on_few_samples_is_not_certainty() -> None:
    few, many = (bootstrap(each, each) for each in (rows(1, count=20), rows(1)))
    low, high = np.quantile(few, (0.025, 0.975))
    assert low < -0.05 and high > 0.05
    assert few.std() == pytest.approx(math.sqrt(2 / 22 / 20), rel=0.05)  # of the two imagined ones, in 22
    assert np.abs(many).max() < 0.03


def test_the_order_of_samples_does_not_matter() -> None:
    first, second = rows(1, 2), rows(3, 4)
    order = np.random.default_rng(0).permutation(400)
    assert np.allclose(bootstrap(first, second), bootstrap(first[:, order], second[:, order]))
    assert not np.allclose(bootstrap(first, second), bootstrap(first, second, seed=1))


def test_seeds_widen_the_interval_as_much_as_they_differ() -> None:
    weak, strong = rows(1, share=0.4)[0], rows(1, share=0.6)[0]
    other = rows(9)
    alike = bootstrap(np.stack([strong] * 3), np.stack([other[0]] * 3))
    assert np.allclose(alike, bootstrap(strong[None], other))
    apart = bootstrap(np.stack([weak, strong]), np.stack([other[0]] * 2))
    assert np.quantile(apart, 0.975) - np.quantile(apart, 0.025) > 0.5  # two seeds that differ by 20 points say little


def test_different_numbers_of_seeds() -> None:
    first, second = rows(1, 2, 3), rows(4)
    alone = bootstrap(first, second)
    assert alone.mean() == pytest.approx(first.mean() - second.mean(), abs=0.01)
    assert alone.std() > 0


def simulate(seeds: int, spread: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two methods, logits 0.3 and 0 plus a normal draw for each run, on 300 samples of varying difficulty."""
    hard = 2 * rng.normal(size=300)

    def runs(level: float) -> np.ndarray:
        level_of = level + spread * rng.normal(size=(seeds, 1))
        return np.asarray(rng.random((seeds, 300)) < 1 / (1 + np.exp(-(level_of + hard))))

    return runs(0.3), runs(0.0)


def truth(spread: float) -> float:
    """The difference of the two methods' expected accuracies."""
    z = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000) * math.hypot(2, spread)
    return float((1 / (1 + np.exp(-(0.3 + z)))).mean() - 0.5)


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.5), (5, 0.5)])
def test_the_interval_covers(seeds: int, spread: float) -> None:
    rng = np.random.default_rng(7)
    covered, naive, true = [], [], truth(spread)
    for number in range(200):
        first, second = simulate(seeds, spread, rng)
        drawn = bootstrap(first, second, 2000, number)
        low, high = np.quantile(drawn, (0.025, 0.975))
        covered.append(low <= true <= high)
        gains = (first.mean(0) - second.mean(0)) / math.sqrt(300)
        naive.append(abs(gains.sum() / math.sqrt(300) - true) <= 1.96 * gains.std())
    assert 0.90 <= np.mean(covered) <= 0.98
    if spread:
        assert np.mean(naive) < 0.85


# What could not have been seen


def power(difference: float, discordance: float, samples: int) -> float:
    """Of McNemar's exact test at the 5 % level."""
    total = 0.0
    for n in range(samples + 1):
        share = stats.binom.pmf(n, samples, discordance)
        if share > 1e-9:
            k = np.arange(n + 1)
            # The exact test rejects in both tails alike.
            rejects = 2 * stats.binom.cdf(np.minimum(k, n - k), n, 0.5) <= 0.05
            total += share * stats.binom.pmf(k, n, (discordance + difference) / (2 * discordance))[rejects].sum()
    return float(total)


@pytest.mark.parametrize(("discordance", "samples"), [(0.2, 200), (0.4, 120), (0.1, 300)])
def test_the_detectable_difference_has_80_percent_power(discordance: float, samples: int) -> None:
    # The exact test keeps its level below 5 %, so that its power lies somewhat below that of the approximation.
    assert 0.7 < power(detectable(discordance, samples), discordance, samples) < 0.85


def test_without_discordance_six_samples_must_fall_to_one_side() -> None:
    least = detectable(0.0, 400)
    assert stats.binom.sf(5, 400, least) == pytest.approx(0.8)
    assert detectable(0.0, 5) == 1.0
    assert detectable(0.1, 1600) < detectable(0.1, 400) < detectable(0.3, 400)


# Protocols and samples


def test_columns_that_all_have_are_compared() -> None:
    first = evaluation("a", clean_column(bits(0.9, 1)), column("pgd", outcome(bits(0.9, 1), bits(0.5, 1))))
    second = evaluation("b", clean_column(bits(0.8, 1)))
    found = compare([method("a", first), method("b", second)], draws=FEW)
    (row,) = found.rows
    assert (row.heading, row.samples, row.accuracy) == ("clean", 100, (0.9, 0.8))
    assert row.difference == pytest.approx(0.1) and row.low <= 0.1 <= row.high
    assert found.front == () and found.axes == ()
    assert any("not in all evaluations: pgd" in note for note in found.notes)


def test_nothing_in_common() -> None:
    only = evaluation("b", column("apgd", outcome(bits(0.8, 1), bits(0.4, 1))))
    with pytest.raises(DataError, match="no column in common: a has clean; b has apgd"):
        compare([method("a", evaluation("a", clean_column(bits(0.9, 1)))), method("b", only)])


def test_other_protocols_are_refused() -> None:
    first, second = simple("a", bits(0.5, 1)), simple("b", bits(0.5, 2), eps=4 / 255, attack={**PGD, "steps": 10})
    with pytest.raises(DataError) as caught:
        compare([method("a", first), method("b", second)])
    assert "pgd: attack.steps: 20 (a) · 10 (b)" in caught.value.message
    assert "pgd: threat.eps: linf 8/255 (a) · linf 4/255 (b)" in caught.value.message
    assert caught.value.hint == (
        "evaluate them again under one suite and with the same --norm and --eps; "
        "where the difference belongs to the methods, say so: --despite attack; "
        "or compare the others: --column clean"
    )


def test_columns_that_nobody_wants_may_differ() -> None:
    first, second = simple("a", bits(0.5, 1)), simple("b", bits(0.5, 2), eps=4 / 255)
    found = compare([method("a", first), method("b", second)], columns=["clean"], draws=FEW)
    assert [row.heading for row in found.rows] == ["clean"] and not found.front
    assert "pgd is left out: it was not measured under one protocol (threat.eps)" in found.notes


def test_a_field_may_differ_where_one_says_so() -> None:
    first, second = simple("a", bits(0.5, 1)), simple("b", bits(0.5, 2), templates=["{}"])
    found = compare([method("a", first), method("b", second)], despite=["templates"], draws=FEW)
    assert "pgd is compared in spite of different templates" in found.notes
    with pytest.raises(DataError, match="templates"):
        compare([method("a", first), method("b", second)], despite=["seed"])
    with pytest.raises(UsageError, match="no field 'template'; did you mean 'templates'") as caught:
        compare([method("a", first), method("b", second)], despite=["template"])
    assert "templates" in caught.value.hint and "key" not in caught.value.hint


def test_a_field_inside_another_may_differ() -> None:
    first = simple("a", bits(0.5, 1))
    steps = simple("b", bits(0.5, 2), attack={**PGD, "steps": 10})
    found = compare([method("a", first), method("b", steps)], despite=["attack.steps"], draws=FEW)
    assert "pgd is compared in spite of different attack.steps" in found.notes
    both = simple("b", bits(0.5, 2), attack={**PGD, "steps": 10, "restarts": 1})
    with pytest.raises(DataError, match=r"attack\.restarts"):
        compare([method("a", first), method("b", both)], despite=["attack.steps"])


def test_images_made_on_different_models_are_left_out() -> None:
    first, second = (
        simple(name, bits(0.5, 1), source={"model": "clean", "fingerprint": name}, knowledge="transfer")
        for name in ("a", "b")
    )
    found = compare([method("a", first), method("b", second)], draws=FEW)
    assert [row.heading for row in found.rows] == ["clean"]
    assert "pgd is left out: its images were made on different models" in found.notes
    allowed = compare([method("a", first), method("b", second)], despite=["source"], draws=FEW)
    assert [row.heading for row in allowed.rows] == ["clean", "pgd"]


def test_images_that_rest_on_other_models_too_are_left_out() -> None:
    first, second = (
        simple(name, bits(0.5, 1), source={"model": "self", "fingerprint": "", "also": {"base": name}})
        for name in ("a", "b")
    )
    found = compare([method("a", first), method("b", second)], draws=FEW)
    assert "pgd is left out: its images were made on different models" in found.notes


@pytest.mark.parametrize("field", ["indices", "labels"])
def test_other_samples_are_refused(field: str) -> None:
    clean = torch.ones(100, dtype=torch.bool)
    others = {field: torch.arange(100) + 1}
    second = evaluation("b", clean_column(clean), column("pgd", outcome(clean, bits(0.5, 2), **others)))
    with pytest.raises(DataError, match="evaluation 1 of b has 100 samples that are not the 100 of a"):
        compare([method("a", simple("a", bits(0.5, 1))), method("b", second)])


def test_another_order_of_samples_is_the_same() -> None:
    one, two = simple("a", bits(0.6, 1)), simple("b", bits(0.5, 2))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    shuffled = evaluation(
        "b", *(column_ for column_ in (two.columns[0], _with(two.columns[1], two.columns[1].outcome[order])))
    )
    known, same = (compare([method("a", one), method("b", each)], draws=FEW) for each in (two, shuffled))
    assert known.rows == same.rows


def _with(column_: Any, found: Any) -> Any:
    return type(column_)(column_.name, column_.statement, found, column_.stages, column_.scope)


def test_worst_cases_are_per_ball() -> None:
    clean = torch.ones(100, dtype=torch.bool)
    pgd, square = bits(0.6, 1), bits(0.6, 2)

    def made(name: str) -> Evaluation:
        return evaluation(
            name,
            clean_column(clean),
            column("pgd", outcome(clean, pgd)),
            column("square", outcome(clean, square), attack={"use": "square"}, attacker=SCORES, knowledge="scores"),
            column("pgd x4", outcome(clean, torch.zeros_like(clean)), eps=4 * EPS),
        )

    found = compare([method("a", made("a")), method("b", made("b"))], draws=FEW)
    by_heading = {row.heading: row for row in found.rows}
    assert list(by_heading) == ["clean", "pgd", "square", "pgd x4", "worst of 2, linf 8/255"]
    assert by_heading["worst of 2, linf 8/255"].accuracy[0] == pytest.approx(float((pgd & square).float().mean()))
    assert found.axes == ("clean", "worst of 2, linf 8/255")


# Seeds and names


def test_runs_are_paired_by_seed() -> None:
    gained = [bits(0.5, seed) for seed in (1, 2, 3)]
    first = [simple(f"a-{seed}", right, seed=seed) for seed, right in zip((1, 2, 3), gained, strict=True)]
    second = [simple(f"b-{seed}", right, seed=seed) for seed, right in zip((1, 2, 3), gained, strict=True)]
    found = compare([method("a", *first), method("b", second[2], second[0], second[1])], columns=["pgd"], draws=FEW)
    (row,) = found.rows
    assert [(test.seed, test.only_first, test.only_second) for test in row.tests] == [
        (seed, 0, 0) for seed in ("1", "2", "3")
    ]
    assert found.notes == ("intervals are over samples and 3 seeds (seeds 1, 2, 3)",)


def test_two_seeds_are_too_few() -> None:
    def made(name: str, *shares: float) -> Method:
        runs = [simple(f"{name}-{seed}", bits(share, seed), seed=seed) for seed, share in enumerate(shares)]
        return method(name, *runs)

    found = compare([made("a", 1.0, 0.1), made("b", 0.2, 0.9)], columns=["pgd"])
    (row,) = found.rows
    assert (row.low, row.high, row.detectable) == (-1.0, 1.0, 1.0)
    assert row.words == "no difference seen; none could have been: too few seeds"
    assert any(note.startswith("two seeds (a, b) are too few") for note in found.notes)
    few = compare([method("a", simple("a", bits(0.5, 1, 4))), method("b", simple("b", bits(0.5, 2, 4)))], draws=FEW)
    assert few.rows[1].words == "no difference seen; none could have been: too few samples"


def test_a_seed_stands_once_in_a_method() -> None:
    other = method("b", *(simple(f"b-{seed}", bits(0.5, seed), seed=seed) for seed in (0, 1)))
    same = method("a", *(simple(name, bits(0.5, 3), seed=0) for name in ("clean-e", "robust-e")))
    with pytest.raises(UsageError, match=r"a: 2 runs have seed 0 \(of clean, robust\): they are not seeds"):
        compare([same, other])
    with pytest.raises(UsageError, match="a: 2 runs have seed 0: they are not"):
        compare([method("a", *(simple(f"clean-{n}", bits(0.5, 3), seed=0) for n in "xy")), other])
    pooled = method("a", *(simple(f"{name}-e", bits(0.5, 3), seed=n) for n, name in enumerate(("clean", "robust"))))
    notes = compare([pooled, other], draws=FEW).notes
    assert "a takes runs of different recipes for seeds of one method: clean, robust" in notes
    assert not any("b takes runs" in note for note in notes)


def test_one_run_each_says_what_is_not_in_the_interval() -> None:
    found = compare([method("a", simple("a", bits(0.5, 1))), method("b", simple("b", bits(0.5, 2)))], draws=FEW)
    assert found.notes == ("one run each: how much another seed would change is not in the intervals",)


def test_different_numbers_of_runs() -> None:
    many = [simple(f"a-{seed}", bits(0.5, seed), seed=seed) for seed in (1, 2)]
    found = compare([method("a", *many), method("b", simple("b", bits(0.5, 9)))], draws=FEW)
    assert all(row.tests == () for row in found.rows)
    assert "that of b, one run, is not in them" in found.notes[0]


def test_a_run_stands_for_one_seed() -> None:
    twice = simple("a", bits(0.5, 1))
    with pytest.raises(UsageError, match="the model a stands for two seeds"):
        compare([method("a", twice, twice), method("b", simple("b", bits(0.5, 2)))])


def test_what_cannot_be_compared() -> None:
    one = simple("a", bits(0.5, 1))
    with pytest.raises(UsageError, match="alone"):
        compare([method("a", one)])
    with pytest.raises(UsageError, match="two methods are called 'a'"):
        compare([method("a", one), method("a", simple("b", bits(0.5, 2)))])
    with pytest.raises(UsageError, match="no column 'pdg' to compare; did you mean 'pgd'"):
        compare([method("a", one), method("b", simple("b", bits(0.5, 2)))], columns=["pdg"])


# Words, Holm, front, classes


def pair(first: Tensor, second: Tensor) -> Comparison:
    return compare([method("a", simple("a", first)), method("b", simple("b", second))], columns=["pgd"])


def test_words_of_a_difference() -> None:
    first = bits(0.8, 1, 400)
    (row,) = pair(first, first & bits(0.9, 2, 400)).rows
    assert row.seen and row.words == f"a is better than b by {100 * row.difference:.1f} points"
    (row,) = pair(first & bits(0.9, 2, 400), first).rows
    assert row.seen and row.words == f"b is better than a by {-100 * row.difference:.1f} points"


def test_words_of_no_difference() -> None:
    (row,) = pair(bits(0.5, 1, 400), bits(0.52, 2, 400)).rows
    assert not row.seen
    discordant = row.tests[0].only_first + row.tests[0].only_second
    assert row.detectable == detectable(discordant / 400, 400) > 0.05
    could = f"{100 * row.detectable:.1f}"
    assert row.words == f"no difference seen; one of less than {could} points could not have been"


def test_holm_is_over_all_rows() -> None:
    base = torch.zeros(400, dtype=torch.bool)
    worse = [base.clone() for _ in range(4)]
    for number, each in enumerate(worse):
        each[: 5 + number] = True  # p = 2^-(4 + number), alone significant from the second on
    found = compare([method(str(n), simple(str(n), right)) for n, right in enumerate([base, *worse])], columns=["pgd"])
    assert [row.p for row in found.rows] == [2.0**-4, 2.0**-5, 2.0**-6, 2.0**-7]
    assert [row.adjusted for row in found.rows] == pytest.approx([2.0**-4] * 2 + [3 * 2.0**-6, 4 * 2.0**-7])
    assert [row.seen for row in found.rows] == [False, False, True, True]
    assert found.rows[1].words.startswith("2 seems better by 1.5 points, but not after Holm over the table; one of ")
    assert len(compare([method(str(n), simple(str(n), r)) for n, r in enumerate(worse)], all_pairs=True).rows) == 12


def test_many_seeds_need_few_rows() -> None:
    runs = {name: [simple(f"{name}-{s}", bits(0.5, s), seed=s) for s in (1, 2)] for name in "ab"}
    methods = [method(name, *each) for name, each in runs.items()]
    assert any("no difference can be left after Holm" in note for note in compare(methods, draws=50).notes)
    assert not any("Holm" in note for note in compare(methods, draws=1000).notes)


def test_the_front() -> None:
    def made(name: str, clean: int, robust: int) -> Method:
        order = torch.arange(400)
        return method(name, simple(name, order < robust, order < clean))

    found = compare([made("a", 380, 200), made("b", 379, 100), made("c", 390, 90), made("d", 390, 90)])
    points = {point.name: point for point in found.front}
    assert points["a"].words == points["c"].words == points["d"].words == "on the front"
    assert points["b"].dominated == {"a": ("robust",)}
    assert points["b"].words == "dominated by a (beyond the interval: robust)"
    near = compare([made("a", 380, 200), made("b", 379, 199)]).front[1]
    assert near.words == "dominated by a (within the interval)"


def test_classes_add_up() -> None:
    first, second = bits(0.6, 1), bits(0.5, 2)
    methods = [method("a", simple("a", first)), method("b", simple("b", second))]
    found = compare(methods, columns=["pgd"], per_class=True, draws=FEW)
    whole, *classes = found.rows
    assert [row.heading for row in classes] == [f"pgd, class {label}" for label in range(10)]
    assert sum(row.difference * row.samples for row in classes) == pytest.approx(whole.difference * whole.samples)


def test_json() -> None:
    found = compare([method("a", simple("a", bits(0.6, 1))), method("b", simple("b", bits(0.5, 2)))], draws=FEW)
    said = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert said["methods"] == {"a": 1, "b": 1}
    assert [row["column"] for row in said["rows"]] == ["clean", "pgd"]
    assert said["rows"][1]["mcnemar"][0]["only"] == [
        found.rows[1].tests[0].only_first,
        found.rows[1].tests[0].only_second,
    ]
    assert said["front"][0]["words"] == "on the front"


# The command line's words


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("s1", 1), ("s2", 2), ("t1", 1), ("odd=a,b", 1)):
        (tmp_path / name).mkdir()
        simple(f"{name[0]}-{seed}", bits(0.5, seed), seed=seed).save(tmp_path / name / FILE)
    return tmp_path


@pytest.mark.parametrize(
    ("word", "name", "count"),
    [
        ("s1", "s1", 1),
        (f"s1/{FILE}", "s1", 1),
        ("s1,s2", "s", 2),
        ("mine=s1,s2", "mine", 2),
        ("mine=t1", "mine", 1),
        ("odd=a,b", "odd=a,b", 1),
        ("x=odd=a,b", "x", 1),
    ],
)
def test_words_are_methods(stored: Path, word: str, name: str, count: int) -> None:
    (found,) = read_methods([word])
    assert (found.name, len(found.evaluations)) == (name, count)


def test_equal_names_give_way_to_words(stored: Path) -> None:
    assert [found.name for found in read_methods(["s1", f"s1/{FILE}"])] == ["s1", f"s1/{FILE}"]


@pytest.mark.parametrize("word", ["s1,", "=s1", "x="])
def test_words_that_name_nothing(stored: Path, word: str) -> None:
    with pytest.raises(UsageError, match="names no evaluations"):
        read_methods([word])


def test_a_path_without_an_evaluation(stored: Path) -> None:
    with pytest.raises(DataError, match="holds no evaluation"):
        read_methods(["nowhere"])
