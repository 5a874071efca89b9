"""Comparison of stored evaluations: what differs, how sure one can be of it, and what could not have been seen."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from advdistill.engine.card import balls, distance, worst, worst_heading
from advdistill.engine.outcomes import Evaluation, Outcome
from advdistill.engine.sources import DRAWS, drawn, independent
from advdistill.errors import DataError, UsageError, did_you_mean

LEVEL = 0.05
POWER = 0.8
FOREIGN = ("source.fingerprint", "source.also")
"""What differs, as beginnings of paths, where each model's images are made on a relative of its own."""
Z_LEVEL, Z_POWER = float(stats.norm.ppf(1 - LEVEL / 2)), float(stats.norm.ppf(POWER))

Bits = np.ndarray
"""(S, n) bool: one row a seed, one column a sample; right or not."""


@dataclass(frozen=True)
class Method:
    """What is compared: one model, or one method under several seeds.

    Attributes:
        name: what to call it. evaluations: one a seed, at least one.
    """

    name: str
    evaluations: tuple[Evaluation, ...]

    @property
    def seeds(self) -> list[Any]:
        """The seeds of its runs, as the checkpoints say; None where one does not."""
        return [each.facts.get("recipe", {}).get("seed") for each in self.evaluations]


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of two models on the same samples.

    Attributes:
        seed: whose. only_first, only_second: samples that only one of the two is right about.
        p: two-sided. adjusted: after Holm over all such tests of the table.
    """

    seed: str
    only_first: int
    only_second: int
    p: float
    adjusted: float = math.nan


@dataclass(frozen=True)
class Row:
    """Two methods in one column; shares in [0, 1], differences `first` minus `second`.

    Attributes:
        heading: the column, a worst case, or either in one class. samples: how many.
        accuracy: of each, mean over seeds.
        difference, low, high: with its 95 % interval, cut at ±1.
        p: of no difference: McNemar's where there is one seed and samples are independent, else the bootstrap's.
        adjusted: Holm's, over all rows.
        tests: one a pair of seeds; none where the methods have different numbers of seeds, or samples share sources.
        detectable: the difference that would have been seen with 80 % power; 1: none would, since there are too few of
            what is `scarce`.
    """

    first: str
    second: str
    heading: str
    samples: int
    accuracy: tuple[float, float]
    difference: float
    low: float
    high: float
    p: float
    tests: tuple[McNemar, ...]
    detectable: float
    scarce: str
    adjusted: float = math.nan

    @property
    def seen(self) -> bool:
        """Whether a difference is left after Holm."""
        return self.adjusted <= LEVEL

    @property
    def words(self) -> str:
        """What can be said."""
        better, worse = (self.first, self.second) if self.difference > 0 else (self.second, self.first)
        points = f"{100 * abs(self.difference):.1f} points"
        if self.seen:
            return f"{better} is better than {worse} by {points}"
        unseen = f"one of less than {100 * self.detectable:.1f} points could not have been"
        if self.detectable >= 1:
            unseen = f"none could have been: too few {self.scarce}"
        if self.p <= LEVEL:
            return f"{better} seems better by {points}, but not after Holm over the table; {unseen} seen"
        return f"no difference seen; {unseen}"


@dataclass(frozen=True)
class Point:
    """A method on the plane of clean and robust accuracy.

    Attributes:
        clean, robust: shares, means over seeds.
        dominated: for each method that is nowhere worse and somewhere better: the axes on which that one is better
            beyond the 95 % interval, out of "clean" and "robust".
    """

    name: str
    clean: float
    robust: float
    dominated: Mapping[str, tuple[str, ...]]

    @property
    def words(self) -> str:
        """On the front, or who dominates it and how surely."""
        if not self.dominated:
            return "on the front"
        said = [
            f"{name} (beyond the interval: {' and '.join(axes)})" if axes else f"{name} (within the interval)"
            for name, axes in self.dominated.items()
        ]
        return f"dominated by {', '.join(said)}"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        methods: name -> number of seeds. rows: see `Row`. front: see `Point`; empty where nothing was attacked.
        axes: headings of the front's clean and robust accuracy. notes: what to know about it, in words.
    """

    methods: Mapping[str, int]
    rows: tuple[Row, ...]
    front: tuple[Point, ...]
    axes: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "methods": dict(self.methods),
            "rows": [
                {
                    "first": row.first,
                    "second": row.second,
                    "column": row.heading,
                    "samples": row.samples,
                    "accuracy": list(row.accuracy),
                    "difference": row.difference,
                    "interval95": [row.low, row.high],
                    "p": row.p,
                    "p_holm": row.adjusted,
                    "mcnemar": [
                        {"seed": t.seed, "only": [t.only_first, t.only_second], "p": t.p, "p_holm": t.adjusted}
                        for t in row.tests
                    ],
                    "detectable": row.detectable,
                    "seen": row.seen,
                    "words": row.words,
                }
                for row in self.rows
            ],
            "axes": list(self.axes),
            "front": [
                {
                    "name": point.name,
                    "clean": point.clean,
                    "robust": point.robust,
                    "dominated": {name: list(axes) for name, axes in point.dominated.items()},
                    "words": point.words,
                }
                for point in self.front
            ],
            "notes": list(self.notes),
        }


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar (1947): under no difference, samples that only one of two models is right about
    fall to either with probability 1/2."""
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979, step-down): reject where at most the level."""
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    stepped = np.maximum.accumulate(np.minimum(np.asarray(values, dtype=float)[order] * factors, 1.0))
    adjusted = np.empty(len(values))
    adjusted[order] = stepped
    return [float(value) for value in adjusted]


def bootstrap(
    first: Bits, second: Bits, draws: int = DRAWS, seed: int = 0, sources: np.ndarray | None = None
) -> np.ndarray:
    """(draws,) differences of mean accuracy, resampled over samples and seeds; quantiles of them are an interval.

    Samples are drawn with replacement, the same for both methods and all seeds (Efron & Tibshirani 1993, ch. 13, the
    percentile interval); all samples on which the seeds' mean difference is equal are drawn as one, so that the cost
    does not grow with their number. Two samples are imagined among them, one that each method alone is right about
    (as Bonett & Price 2012 add to a Wald interval of paired proportions): that no sample differed, or that all did
    one way, is no proof that none would. Seeds are drawn with replacement and move the mean by as much as theirs
    deviates: in pairs where both methods have equally many, else for each method alone.

    A resampled mean of S seeds spreads too little, by (S−1)/S in its variance and by the tails of Student's t: its
    interval covered 72 % with two seeds and 82 % with three where they differ much. The deviation is therefore
    divided by sqrt(χ²/S), χ² of S−1 degrees (inferred; 92 % and more in the same simulation, and wider than needed
    where the seeds do not differ). That seeds vary as much as methods do: Bouthillier et al. 2021; that significance
    belongs to every comparison: Dror et al. 2018.

    Of samples that are made of the same sources, what their sharing adds is in the spread (`sources.drawn`).

    Args:
        first, second: (S, n), (S', n).
        sources: (n, k) integers, which ones each sample is made of; None, or k = 0: samples are independent.
    """
    random = np.random.default_rng(seed)
    (many, samples), others = first.shape, len(second)
    each = first.sum(0, dtype=np.int64) * others - second.sum(0, dtype=np.int64) * many
    if sources is not None and sources.shape[1]:
        differences = drawn(each / (many * others), sources, (1.0, -1.0), draws, seed)
    else:
        gains, counts = np.unique(each, return_counts=True)
        gains, counts = np.append(gains, (many * others, -many * others)), np.append(counts, (1, 1))
        differences = random.multinomial(samples, counts / (samples + 2), size=draws) @ (
            gains / (many * others * samples)
        )
    sides = [first.mean(1), -second.mean(1)] if many != others else [first.mean(1) - second.mean(1)]
    for means in sides:
        if (size := len(means)) > 1:
            moved = means[random.integers(size, size=(draws, size))].mean(1) - means.mean()
            differences = differences + moved * np.sqrt(size / random.chisquare(size - 1, size=draws))
    return differences


def detectable(discordance: float, samples: int) -> float:
    """The smallest difference of two models that McNemar's test sees with 80 % power at the 5 % level.

    Args:
        discordance: share of samples that only one of them is right about.

    Normal approximation (Connor 1987, solved for the difference), and never less than where all that differs
    falls to one side: six samples must, and do so with 80 % probability.
    """
    if samples < 6:
        return 1.0
    # d = (z sqrt(ψ) + z' sqrt(ψ − d²)) / sqrt(n), squared and solved for d; where it asks for d > ψ, ψ must grow too.
    a, b = Z_LEVEL / math.sqrt(samples), Z_POWER / math.sqrt(samples)
    root = a * math.sqrt(discordance)
    smooth = (root + b * math.sqrt(max(discordance * (1 + b * b) - root * root, 0.0))) / (1 + b * b)
    return min(1.0, max(smooth, float(stats.beta.ppf(POWER, 6, samples - 5))))


def compare(
    methods: Sequence[Method],
    *,
    columns: Collection[str] = (),
    all_pairs: bool = False,
    per_class: bool = False,
    despite: Collection[str] = (),
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compare methods in every column that all of them have.

    Args:
        methods: two or more; the first with each other one.
        columns: headings to keep; none: all.
        all_pairs: each with each instead.
        per_class: every column once more in each class.
        despite: fields of the protocols' statements that may differ, such as "templates" or "attack.steps".
        draws, seed: of the bootstrap.

    Raises:
        UsageError: fewer than two methods, a name, a model or a seed twice, no such column, or no such field.
        DataError: protocols or samples differ.
    """
    if len(methods) < 2:
        raise UsageError("one evaluation alone cannot be compared", "name two or more: advdistill compare A B")
    _distinct(methods)
    _known(methods, despite)
    matched = _match(methods)
    everything, notes = _tables(matched, columns, despite)
    if not everything:
        raise DataError(
            "the evaluations have no column in common: " + "; ".join(_columns(method) for method in methods),
            "evaluate all of them under one suite: `advdistill evaluate --protocol standard`",
        )
    for wanted in columns:
        if wanted not in everything:
            close = did_you_mean(wanted, everything)
            raise UsageError(f"no column {wanted!r} to compare{close}", f"there are: {', '.join(everything)}")
    shown = {heading: table for heading, table in everything.items() if not columns or heading in columns}
    if per_class:
        shown = {heading: table for name, whole in shown.items() for heading, table in _classes(name, whole)}
    names = [method.name for method in matched]
    pairs = list(itertools.combinations(names, 2)) if all_pairs else [(names[0], other) for other in names[1:]]
    rows = [_row(pair, heading, table, matched, draws, seed) for pair in pairs for heading, table in shown.items()]
    axes = _axes(matched[0], everything)
    front = _front(names, [everything[axis] for axis in axes], draws, seed) if axes else ()
    counts = {method.name: len(method.evaluations) for method in matched}
    if shared := [heading for heading, table in everything.items() if table.sources.shape[1] and heading in shown]:
        notes.append(
            f"samples of {', '.join(shared)} share the pictures that they are made of, which intervals and p know; "
            "McNemar's test takes samples for independent and is left out"
        )
    if max(counts.values()) > 1 and 2 / (draws + 1) * len(rows) > LEVEL:
        notes.append(f"with {len(rows):,} rows no difference can be left after Holm: choose columns with --column")
    return Comparison(counts, tuple(_adjusted(rows)), front, axes, (*_seeds(matched), *notes))


@dataclass(frozen=True)
class _Table:
    """One column of all methods: name -> (S, n) right or not, (n,) labels, (n, k) sources."""

    bits: Mapping[str, Bits]
    labels: np.ndarray
    sources: np.ndarray

    def __getitem__(self, of: np.ndarray) -> _Table:
        """Some samples."""
        return _Table({name: bits[:, of] for name, bits in self.bits.items()}, self.labels[of], self.sources[of])


def _distinct(methods: Sequence[Method]) -> None:
    names = [method.name for method in methods]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two methods are called {twice!r}", "give them names: NAME=PATH,PATH …")
    for method in methods:
        prints = [each.facts.get("model", {}).get("fingerprint") for each in method.evaluations]
        if twice := next((found for found in prints if found and prints.count(found) > 1), None):
            raise UsageError(
                f"{method.name}: the model {twice} stands for two seeds", "give each run once: it is one observation"
            )
        seeds = [seed for seed in method.seeds if seed is not None]
        if many := [seed for seed in seeds if seeds.count(seed) > 1]:
            raise UsageError(_repeated(method, many[0]), "a comma joins runs of one recipe with seeds of their own")


def _repeated(method: Method, seed: Any) -> str:
    """What to say of a seed that several runs of a method have."""
    runs = [each.facts["recipe"].get("name") for each in method.evaluations]
    of = [name for name, own in zip(runs, method.seeds, strict=True) if own == seed]
    said = f" (of {', '.join(map(str, of))})" if len(set(of)) > 1 else ""
    return f"{method.name}: {len(of)} runs have seed {seed}{said}: they are not seeds of one method"


def _known(methods: Sequence[Method], despite: Collection[str]) -> None:
    """Raises UsageError for what is no field of a statement."""
    statements = [column.statement for method in methods for each in method.evaluations for column in each.columns]
    known = sorted({path for statement in statements for path in _paths(statement)} - {"name", "key"})
    for field in despite:
        if field not in known:
            top = [path for path in known if "." not in path]
            close = did_you_mean(field, known) or did_you_mean(field.split(".")[0], top)
            raise UsageError(f"protocols have no field {field!r}{close}", f"there are: {', '.join(top)}")


def _paths(value: Any, path: str = "") -> Iterator[str]:
    """The dotted paths of all fields in nested mappings."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            name = f"{path}.{key}" if path else key
            yield name
            yield from _paths(inner, name)


def _match(methods: Sequence[Method]) -> list[Method]:
    """The methods, with runs of the same seed in the same place where all have the same ones; else as given."""
    seeds = [method.seeds for method in methods]
    try:
        ordered = [sorted(each) for each in seeds]
    except TypeError:  # a seed is unknown
        return list(methods)
    if any(each != ordered[0] for each in ordered) or len(set(ordered[0])) < len(ordered[0]):
        return list(methods)
    return [
        replace(method, evaluations=tuple(method.evaluations[each.index(seed)] for seed in sorted(each)))
        for method, each in zip(methods, seeds, strict=True)
    ]


def _seeds(methods: Sequence[Method]) -> list[str]:
    """What the intervals hold of the variance between seeds, in words, and what weakens them."""
    notes = _variance(methods)
    if two := [method.name for method in methods if len(method.evaluations) == 2]:
        # Quantiles of Student's t with one and two degrees of freedom: 12.7 and 4.3.
        notes.append(
            f"two seeds ({', '.join(two)}) are too few for an interval that says much: it is 12.7 standard errors "
            "wide to either side, with three 4.3"
        )
    for method in methods:
        recipes = dict.fromkeys(str(each.facts.get("recipe", {}).get("name")) for each in method.evaluations)
        if len(recipes) > 1:
            notes.append(f"{method.name} takes runs of different recipes for seeds of one method: {', '.join(recipes)}")
    return notes


def _variance(methods: Sequence[Method]) -> list[str]:
    counts = {len(method.evaluations) for method in methods}
    if counts == {1}:
        return ["one run each: how much another seed would change is not in the intervals"]
    if len(counts) == 1:
        seeds = methods[0].seeds
        paired = None not in seeds and all(method.seeds == seeds for method in methods)
        how = f"seeds {', '.join(map(str, seeds))}" if paired else "runs paired in the order given"
        return [f"intervals are over samples and {counts.pop()} seeds ({how})"]
    alone = [method.name for method in methods if len(method.evaluations) == 1]
    held = f"; that of {', '.join(alone)}, one run, is not in them" if alone else ""
    said = "intervals are over samples and seeds; methods with different numbers of runs vary each on its own"
    return [f"{said}, without tests by seed{held}"]


def _columns(method: Method) -> str:
    return f"{method.name} has {', '.join(column.heading for column in method.evaluations[0].columns) or 'none'}"


def _tables(
    methods: Sequence[Method], wanted: Collection[str], despite: Collection[str]
) -> tuple[dict[str, _Table], list[str]]:
    """All columns that all evaluations have, then worst cases, by heading; and notes.

    A column of different protocols is an error, unless others than it are `wanted`.
    """
    every = [each for method in methods for each in method.evaluations]
    shared = [c.heading for c in every[0].columns if all(c.heading in {o.heading for o in e.columns} for e in every)]
    some = list(dict.fromkeys(c.heading for each in every for c in each.columns if c.heading not in shared))
    notes = [f"not in all evaluations: {', '.join(some)}"] if some and shared else []
    kept, problems = [], []
    for heading in shared:
        fields = sorted({field for each in every[1:] for field in _differing(every[0], each, heading)})
        excused = [field for field in fields if any(f"{field}.".startswith(f"{each}.") for each in despite)]
        open_ = [field for field in fields if field not in excused]
        if open_ and all(field.startswith(FOREIGN) for field in open_):
            notes.append(f"{heading} is left out: its images were made on different models")
            continue
        if not open_:
            kept.append(heading)
            if excused:
                notes.append(f"{heading} is compared in spite of different {', '.join(excused)}")
        elif wanted and heading not in wanted:
            notes.append(f"{heading} is left out: it was not measured under one protocol ({', '.join(open_)})")
        else:
            problems.append((heading, open_))
    if problems:
        raise _different(every, problems, kept)
    cut = [replace(each, columns=tuple(each.column(heading) for heading in kept)) for each in every]
    tables = {heading: _table(methods, heading, [each.column(heading).outcome for each in cut]) for heading in kept}
    for ball, columns in balls(cut[0].columns).items() if cut else ():
        if len(columns) < 2:
            continue
        heading = worst_heading(ball, columns)
        headings = [column.heading for column in columns]
        try:
            found = [worst(each, [each.column(name) for name in headings]) for each in cut]
        except DataError as error:
            notes.append(f"no worst case: {error.message}")
            continue
        outcome = columns[0].outcome
        outcomes = [replace(outcome, indices=indices, right=right) for indices, right in found]
        tables[heading] = _table(methods, heading, outcomes)
    return tables, notes


def _differing(first: Evaluation, second: Evaluation, heading: str) -> list[str]:
    """Which fields of two statements differ, as dotted paths; beside the name."""

    def differ(one: Any, two: Any, path: str) -> Iterator[str]:
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            for key in sorted({*one, *two}):
                yield from differ(one.get(key), two.get(key), f"{path}.{key}" if path else key)
        elif one != two:
            yield path

    one, two = first.column(heading).statement, second.column(heading).statement
    if one["key"] == two["key"]:
        return []
    return [path for path in differ(one, two, "") if path not in ("name", "key")] or ["key"]


def _different(
    every: Sequence[Evaluation], problems: Sequence[tuple[str, list[str]]], alike: Sequence[str]
) -> DataError:
    """The error that says in which fields protocols differ, who says what, and what to do.

    Args:
        problems: headings with their fields. alike: headings of columns that could be compared.
    """

    def at(evaluation: Evaluation, heading: str, path: str) -> str:
        statement = evaluation.column(heading).statement
        value: Any = statement
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return distance(statement["threat"]["norm"], value) if path == "threat.eps" and value else str(value)

    lines = []
    for heading, fields in problems:
        for field in fields:
            said: dict[str, str] = {}
            for each in every:
                said.setdefault(at(each, heading, field), each.subject)
            values = " · ".join(f"{value} ({subject})" for value, subject in said.items())
            lines.append(f"  {heading}: {field}: {values}")
    tops = {field.split(".")[0] for _, fields in problems for field in fields if not field.startswith(FOREIGN)}
    hint = "evaluate them again under one suite" + (" and with the same --norm and --eps" if "threat" in tops else "")
    if own := sorted(tops - {"threat", "split", "key"}):
        hint += f"; where the difference belongs to the methods, say so: --despite {','.join(own)}"
    if alike:
        hint += f"; or compare the others: --column {' --column '.join(map(shlex.quote, alike))}"
    return DataError("these were not measured under one protocol:\n" + "\n".join(lines), hint)


def _table(methods: Sequence[Method], heading: str, outcomes: Sequence[Outcome]) -> _Table:
    """Every outcome on the samples of the first, in their order. Raises DataError where they are others."""
    ordered = [outcome[outcome.indices.argsort()] for outcome in outcomes]
    first = ordered[0]
    subjects = [(method.name, number) for method in methods for number in range(len(method.evaluations))]
    for (name, number), each in zip(subjects, ordered, strict=True):
        if not (torch.equal(each.indices, first.indices) and torch.equal(each.labels, first.labels)):
            raise DataError(
                f"{heading}: evaluation {number + 1} of {name} has {len(each):,} samples that are not the "
                f"{len(first):,} of {subjects[0][0]}",
                "evaluate all on the same data with the same --limit and seed",
            )
    bits: dict[str, list[np.ndarray]] = {}
    for (name, _), each in zip(subjects, ordered, strict=True):
        bits.setdefault(name, []).append(each.right.numpy())
    # An evaluation from before sources were kept has none, though its samples are the same.
    sources = max((each.sources for each in ordered), key=lambda known: known.shape[1])
    return _Table({name: np.stack(rows) for name, rows in bits.items()}, first.labels.numpy(), sources.numpy())


def _classes(heading: str, table: _Table) -> Iterator[tuple[str, _Table]]:
    """The table, then its part in each class."""
    yield heading, table
    for label in np.unique(table.labels):
        of = table.labels == label
        yield f"{heading}, class {label}", table[of]


def _row(pair: tuple[str, str], heading: str, table: _Table, methods: Sequence[Method], draws: int, seed: int) -> Row:
    first, second = (table.bits[name] for name in pair)
    samples = first.shape[1]
    differences = bootstrap(first, second, draws, seed, table.sources)
    together = table.sources.shape[1] > 0
    apart = independent(table.sources) if together else samples
    low, high = (float(q) for q in np.quantile(differences, (LEVEL / 2, 1 - LEVEL / 2)))
    tests: tuple[McNemar, ...] = ()
    if len(first) == len(second) and not together:
        seeds = {method.name: method.seeds for method in methods}
        labels = [_label(n, *runs) for n, runs in enumerate(zip(*(seeds[name] for name in pair), strict=True), 1)]
        tests = tuple(_test(label, one, two) for label, one, two in zip(labels, first, second, strict=True))
    if len(first) == len(second) == 1 and not together:
        p = tests[0].p
        could = detectable((tests[0].only_first + tests[0].only_second) / samples, samples)
    else:
        tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
        p = min(1.0, 2 * (tail + 1) / (draws + 1))
        could = max((high - low) / 2 * (1 + Z_POWER / Z_LEVEL), detectable(0.0, apart))
    accuracy = float(first.mean()), float(second.mean())
    ends = max(low, -1.0), min(high, 1.0)
    scarce = "samples" if apart < 6 or len(first) == len(second) == 1 else "seeds"
    return Row(*pair, heading, samples, accuracy, accuracy[0] - accuracy[1], *ends, p, tests, min(could, 1.0), scarce)


def _label(number: int, first: Any, second: Any) -> str:
    """What to call a pair of runs: its seed, both seeds, or its number where one is not known."""
    if first is None or second is None:
        return f"run {number}"
    return str(first) if first == second else f"{first}/{second}"


def _test(seed: str, first: np.ndarray, second: np.ndarray) -> McNemar:
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return McNemar(seed, only_first, only_second, mcnemar(only_first, only_second))


def _adjusted(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows with Holm over all of them, and over all tests by seed."""
    over_rows = holm([row.p for row in rows])
    over_tests = iter(holm([test.p for row in rows for test in row.tests]))
    for row, p in zip(rows, over_rows, strict=True):
        tests = tuple(replace(test, adjusted=next(over_tests)) for test in row.tests)
        yield replace(row, adjusted=p, tests=tests)


def _axes(method: Method, tables: Collection[str]) -> tuple[str, ...]:
    """Headings of clean and robust accuracy, in the ball with the most attacks, or the first one; () if none."""
    columns = [column for column in method.evaluations[0].columns if column.heading in tables]
    groups = sorted(balls(columns).items(), key=lambda group: -len(group[1]))
    for ball, attacks in groups:
        clean = next((column.heading for column in columns if column.scope == ball[0] and not column.attacked), None)
        together = worst_heading(ball, attacks)
        robust = together if together in tables else attacks[0].heading
        if clean:
            return clean, robust
    return ()


def _front(names: Sequence[str], axes: Sequence[_Table], draws: int, seed: int) -> tuple[Point, ...]:
    means = {name: [float(table.bits[name].mean()) for table in axes] for name in names}
    points = []
    for name in names:
        dominated: dict[str, tuple[str, ...]] = {}
        for other in names:
            gains = [b - a for a, b in zip(means[name], means[other], strict=True)]
            if min(gains) >= 0 and max(gains) > 0:
                lows = [
                    np.quantile(bootstrap(table.bits[other], table.bits[name], draws, seed, table.sources), LEVEL / 2)
                    for table in axes
                ]
                dominated[other] = tuple(axis for axis, low in zip(("clean", "robust"), lows, strict=True) if low > 0)
        clean, robust = means[name]
        points.append(Point(name, clean, robust, dominated))
    return tuple(points)


def read_methods(words: Iterable[str]) -> list[Method]:
    """Methods as a command line writes them: `[NAME=]PATH[,PATH…]`, one word a method, one path a seed.

    A path that exists is taken as it is, commas and equals signs included. Without a name, one run is called after its
    folder, and several after their recipe; after the whole word where others would be called the same.

    Raises:
        UsageError: a word names nothing.
        DataError: a path holds no evaluation.
    """
    read: list[tuple[str, str, tuple[Evaluation, ...]]] = []
    for word in words:
        name, rest = "", word
        if not Path(word.split(",")[0]).exists() and not Path(word).exists() and "=" in word:
            name, _, rest = word.partition("=")
        paths = [rest] if Path(rest).exists() else rest.split(",")
        if not all(paths) or (not name and rest != word):
            raise UsageError(f"{word!r} names no evaluations", "write PATH, PATH,PATH … or NAME=PATH,PATH …")
        evaluations = tuple(Evaluation.read(Path(path)) for path in paths)
        read.append((word, name or _called(paths, evaluations), evaluations))
    called = [name for _, name, _ in read]
    return [Method(name if called.count(name) == 1 else word, evaluations) for word, name, evaluations in read]


def _called(paths: Sequence[str], evaluations: Sequence[Evaluation]) -> str:
    recipes = {each.facts.get("recipe", {}).get("name") for each in evaluations}
    if len(paths) > 1 and len(recipes) == 1 and None not in recipes:
        return str(recipes.pop())
    folder = Path(paths[0]).resolve()
    return (folder if folder.is_dir() else folder.parent).name
