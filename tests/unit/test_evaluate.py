"""What is pinned here:

- Wilson intervals have the published values, and stay in [0, 1].
- A sample is broken if any image inside the ball that the attack looked at is misclassified, also if the attack goes
  on and returns something harmless; images outside the ball do not count.
- What is handed out as having decided a sample lies in the ball, and is misclassified where the sample is lost.
- Samples that are wrong already are not attacked, and broken ones not any further.
- Outcomes depend neither on portions nor on the global generators, and leave those alone; another seed is another draw.
- A stored row stands in for a measurement only where everything that the number depends on is the same.
- Subsets are even over the classes and in order; a row goes through JSON and back.
- A model that draws at random is judged by one fresh look, not its luckiest; one whose samples mix keeps its batches;
  one without gradients has zero ones, and they are counted.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from advdistill_attacks.configs import PGD as PGDConfig
from advdistill_attacks.pgd import PGD
from torch import Tensor

from advdistill import Attack, ClassSet, Noise, Problem, Threat
from advdistill.engine.count import Count
from advdistill.engine.data import ArraySplit, Batch, Split
from advdistill.engine.evaluate import Bench, Results, evaluate, split_reader
from advdistill.engine.participant import Manner, Participant
from advdistill.engine.protocol import Protocol
from advdistill.testing import ToyAttack, ToyConfig, ToyDataset, ToyModel
from advdistill.testing.toy import CLASSES

THREAT = Threat("linf", 4 / 255)


def participant(classes: ClassSet = CLASSES, **how: Any) -> Participant:
    return Participant(ToyModel(ToyConfig()), classes, **how)


def splits(wrong: int = 0) -> Any:
    """The toy's splits; of the test split the first `wrong` samples carry a label that is not theirs."""

    def split(name: str) -> Split:
        found = ToyDataset(None).split(name)
        assert isinstance(found, ArraySplit)
        labels = torch.cat([found.labels[:wrong].roll(1), found.labels[wrong:]])
        return ArraySplit(found.images, labels, found.ids)

    return split


def pgd(steps: int = 3, **settings: Any) -> Protocol:
    return Protocol("pgd", attack=PGD(PGDConfig(steps=steps)), threat=THREAT, settings={"steps": steps}, **settings)


def batch() -> Batch:
    split = ToyDataset(None).split("test")
    return Batch(torch.stack([split.load(i) for i in range(12)]), split.labels[:12], torch.arange(12))


def correct(model: Participant, of: Batch, protocol: Protocol, seed: int) -> tuple[Tensor, Tensor]:
    """(B,) right in spite of the attack, and the images that decided it."""
    whole = ArraySplit(of.images, of.labels, [str(i) for i in range(len(of))])
    right, images = torch.zeros(len(of), dtype=torch.bool), of.images.clone()

    def keep(name: str, some: Batch, decided: Tensor, held: Tensor) -> None:
        images[some.samples], right[some.samples] = decided, held

    Bench(model, lambda name: whole, seed).measure(protocol, whole, torch.arange(len(of)), "key", keep)
    return right, images


# --- intervals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962),
     (1, 3, 0.0615, 0.7923), (81, 263, 0.2553, 0.3662)],
)  # fmt: skip
def test_wilson_intervals(hits: int, total: int, low: float, high: float) -> None:
    assert Count(hits, total).wilson() == pytest.approx((low, high), abs=5e-5)
    wider = Count(hits, total).wilson(z=2.575829)
    assert 0 <= wider[0] <= low + 5e-5 and high - 5e-5 <= wider[1] <= 1


@pytest.mark.parametrize("total", [1, 10, 50, 200, 512, 600, 1000, 5000])
def test_the_share_lies_in_its_interval(total: int) -> None:
    for count in (Count(0, total), Count(total, total)):
        low, high = count.wilson()
        assert 0 <= low <= count.share <= high <= 1


# --- broken by any iterate ---------------------------------------------------------------------------------------


class There(Attack):
    """Goes the given number of radii along the gradient, asks, and comes back to the clean images."""

    def __init__(self, radii: float, ask: str = "predict") -> None:
        super().__init__(None)
        self.radii, self.ask = radii, ask

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        gradient, _ = problem.gradient(problem.images, problem.rows)
        away = (problem.images + self.radii * threat.eps * gradient.sign()).clamp(0, 1)
        if self.ask == "predict":
            problem.predict(away, problem.rows)
        elif self.ask == "gradient":
            problem.gradient(away, problem.rows)
        else:
            problem.module()(away)
        return problem.images


@pytest.mark.parametrize("ask", ["predict", "gradient", "module"])
def test_any_image_in_the_ball_counts(ask: str) -> None:
    model = participant()
    protocol = Protocol("there", attack=There(1, ask), threat=Threat("linf", 16 / 255))
    right, images = correct(model, batch(), protocol, 0)
    lost = ~right
    assert lost.sum() > 6
    assert (images[lost] != batch().images[lost]).flatten(1).any(1).all()
    assert torch.equal(images[right], batch().images[right])
    assert (model.logits(images).argmax(1) != batch().labels).equal(lost)


@pytest.mark.parametrize("ask", ["predict", "gradient", "module"])
def test_images_outside_the_ball_do_not(ask: str) -> None:
    protocol = Protocol("there", attack=There(8, ask), threat=Threat("linf", 2 / 255))
    right, images = correct(participant(), batch(), protocol, 0)
    assert right.all() and torch.equal(images, batch().images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_decided_a_sample_can_be_shown(norm: str) -> None:
    threat = Threat(norm, {"linf": 8 / 255, "l2": 0.5}[norm])
    protocol = Protocol("pgd", attack=PGD(PGDConfig(steps=4)), threat=threat)
    seen: list[tuple[Batch, Tensor, Tensor]] = []
    model = participant()
    results = evaluate("toy", model, splits(wrong=5), [Protocol("clean"), protocol], seed=0, batch_size=25,
                       found=lambda name, *rest: seen.append(rest) if name == "pgd" else None)  # fmt: skip
    lost = 0
    for given, images, right in seen:
        assert threat.holds(images, given.images).all()
        assert (model.logits(images).argmax(1) == given.labels).equal(right)
        already = model.logits(given.images).argmax(1) != given.labels
        assert torch.equal(images[already], given.images[already])
        lost += int((~right).sum())
    assert results.counts["pgd"].hits == 60 - lost
    assert 0 < results.counts["pgd"].hits < results.counts["clean"].hits < 60


def test_only_survivors_are_attacked() -> None:
    asked: list[int] = []

    class Watching(ToyAttack):
        def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
            asked.append(len(problem.images))
            for _ in range(2):
                rows = problem.open()
                asked.append(len(rows))
                gradient, _ = problem.gradient(problem.images[rows], rows)
                problem.predict((problem.images[rows] + threat.eps * gradient.sign()).clamp(0, 1), rows)
            return problem.images

    protocol = Protocol("watching", attack=Watching(None), threat=Threat("linf", 6 / 255))
    results = evaluate("toy", participant(), splits(wrong=8), [Protocol("clean"), protocol], seed=0)
    clean, held = results.counts["clean"].hits, results.counts["watching"].hits
    assert clean < 60 and 0 < held < clean
    assert asked == [clean, clean, held]


def test_nothing_left_to_attack() -> None:
    class Never(ToyAttack):
        def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
            raise AssertionError

    labels = (batch().labels + 1) % 6
    right, images = correct(
        participant(), replace(batch(), labels=labels), Protocol("x", attack=Never(None), threat=THREAT), 0
    )
    assert not right.any() and torch.equal(images, batch().images)


# --- the same number every time ----------------------------------------------------------------------------------


def test_portions_and_generators_change_nothing() -> None:
    protocols = [Protocol("clean"), pgd(limit=31)]
    outcomes = []
    for size, seed in ((256, 0), (1, 1), (7, 2)):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        model = participant(learns=True)
        model.model.train()
        results = evaluate("toy", model, splits(wrong=4), protocols, seed=0, batch_size=size)
        outcomes.append(results)
        assert torch.equal(torch.get_rng_state(), state)
        assert model.model.training and model.model.gain.requires_grad and model.model.gain.grad is None
    first = outcomes[0]
    assert 0 < first.counts["pgd"].hits < 31
    for other in outcomes[1:]:
        for name, column in first.columns.items():
            mine, theirs = column.outcome, other.columns[name].outcome
            assert torch.equal(mine.right, theirs.right) and torch.equal(mine.indices, theirs.indices)
        assert first.statements == other.statements


def test_a_seed_is_a_draw() -> None:
    def images(seed: int) -> Tensor:
        weak = replace(pgd(steps=1), threat=Threat("linf", 0.5 / 255))
        return correct(participant(), batch(), weak, seed)[1]

    assert torch.equal(images(0), images(0)) and not torch.equal(images(0), images(1))


def test_subsets_are_even_and_ordered() -> None:
    results = evaluate("toy", participant(), splits(), [Protocol("clean", limit=12), Protocol("val", "val")], seed=3)
    assert results.counts == {"clean": Count(12, 12), "val": Count(60, 60)}
    ids = results.columns["clean"].outcome.indices.tolist()
    assert ids == sorted(ids) and sorted(i % 6 for i in ids) == sorted([*range(6)] * 2)
    assert results.statements["clean"]["split"]["samples"] == 12 and results.statements["clean"]["split"]["of"] == 60


# --- stored rows -------------------------------------------------------------------------------------------------


def test_a_stored_row_stands_in_where_everything_is_the_same() -> None:
    base: dict[str, Any] = {"seed": 0, "splits": splits(), "protocols": [Protocol("clean"), pgd(limit=6)]}
    row = evaluate("toy", participant(), **base).to_json()
    row["protocols"]["pgd"]["hits"] = 1  # a number that no measurement gives

    def taken(model: Participant | None = None, **changed: Any) -> bool:
        found = evaluate("toy", model or participant(), **{**base, **changed}, stored=row)
        assert found.stored == (found.counts["pgd"].hits == 1)
        return found.stored

    assert taken()
    assert taken(protocols=[pgd(limit=6)])  # fewer columns
    assert taken(batch_size=1)
    renamed = evaluate("toy", participant(), **{**base, "protocols": [replace(pgd(limit=6), name="PGD")]}, stored=row)
    assert renamed.stored and renamed.counts == {"PGD": Count(1, 6)} and renamed.statements["PGD"]["name"] == "PGD"

    one = pgd(limit=6)
    assert not taken(seed=1)
    assert not taken(protocols=[replace(one, threat=Threat("linf", 5 / 255))])
    assert not taken(protocols=[replace(one, threat=Threat("l2", 4 / 255))])
    assert not taken(protocols=[replace(one, settings={"steps": 4})])
    assert not taken(protocols=[replace(one, limit=12)])
    assert not taken(protocols=[replace(one, split="val")])
    assert not taken(protocols=[one, pgd(limit=7)])  # one of them is not stored
    assert not taken(splits=splits(wrong=3))
    assert not taken(participant(ClassSet(CLASSES.names, ("an image of {}.",))))
    assert not taken(participant(ClassSet(tuple(reversed(CLASSES.names)), CLASSES.templates)))
    assert taken(participant(manner=Manner("bf16")))  # what is measured is measured in full precision


def test_a_run_in_bf16_is_measured_in_full_precision() -> None:
    class Linear(ToyModel):
        def features(self, images: torch.Tensor) -> torch.Tensor:
            found = super().features(images)
            return found @ torch.eye(found.shape[1])  # what autocast rounds

    full, half = (Participant(Linear(ToyConfig()), CLASSES, manner=Manner(precision)) for precision in ("fp32", "bf16"))
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(full.logits(images), half.logits(images))
    with half.deployed():
        assert torch.equal(full.logits(images), half.logits(images))
    assert not torch.equal(full.logits(images), half.logits(images))


def test_rows_go_through_json() -> None:
    row = evaluate("toy", participant(), splits(), [Protocol("clean"), pgd(limit=6)], seed=0)
    plain = json.loads(json.dumps(row.to_json()))
    back = Results.from_json("toy", plain, stored=True)
    assert back.counts == row.counts and back.statements == row.statements and back.stored
    assert plain["protocols"]["clean"]["accuracy"] == 1.0
    assert plain["protocols"]["clean"]["wilson95"] == list(Count(60, 60).wilson())
    assert plain["protocols"]["pgd"]["statement"]["threat"] == {"norm": "linf", "eps": THREAT.eps}


# --- models that cannot be attacked soundly ----------------------------------------------------------------------


class Odd(ToyModel):
    """Answers at random one time in three; says so."""

    deterministic = False

    def features(self, images: Tensor) -> Tensor:
        found = super().features(images)
        return torch.where(torch.rand(len(images), 1) < 1 / 3, found.flip(1), found)


def test_a_lucky_image_is_not_kept_of_a_model_that_draws_at_random() -> None:
    class Asks(Attack):
        """Asks often, and returns the clean images."""

        def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
            for _ in range(20):
                assert len(problem.open()) == len(problem.rows)
                problem.predict(problem.images, problem.rows)
            return problem.images

    torch.manual_seed(0)
    protocol = Protocol("asks", attack=Asks(None), threat=THREAT)
    found = evaluate("odd", Participant(Odd(ToyConfig()), CLASSES), splits(), [protocol], seed=0)
    # One wrong answer to the clean image and one to the verdict: 60 * (2/3)^2 hold, not 60 * (2/3)^22.
    assert 15 < found.counts["asks"].hits < 40


def test_samples_of_a_model_whose_samples_mix_stay_together() -> None:
    class Mixing(ToyModel):
        batch_independent = False

    asked: list[int] = []

    class Counts(Attack):
        def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
            asked.append(len(problem.open()))
            return problem.images

    protocol = Protocol("counts", attack=Counts(None), threat=THREAT)
    mixed = Participant(Mixing(ToyConfig()), CLASSES)
    held = evaluate("mixing", mixed, splits(wrong=8), [protocol], seed=0, batch_size=32).counts["counts"]
    assert asked == [32, 28] and held.hits < 60  # wrong ones are attacked with the others, and stay wrong


def test_a_model_without_gradients_has_zero_ones() -> None:
    class Deaf(ToyModel):
        def features(self, images: Tensor) -> Tensor:
            return super().features(images).detach()

    found = evaluate("deaf", Participant(Deaf(ToyConfig()), CLASSES), splits(), [pgd(limit=12)], seed=0)
    outcome = found.columns["pgd"].outcome
    assert (outcome.blank == 3).all() and (outcome.zeros == 1).all() and outcome.right.all()


def test_splits_are_built_once() -> None:
    built = []

    class Counting(ToyDataset):
        def split(self, name: str) -> Split:
            built.append(name)
            return super().split(name)

    read = split_reader(Counting(None))
    assert read("test") is read("test") and read("val") is not read("test") and built == ["test", "val"]
