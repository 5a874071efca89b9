"""Doubts about numbers.

Guarantees:
- a share is a flag above its threshold and from two samples on; one alone, where it is more than the threshold, and no
  samples at all are unknown, and both say what to do;
- a record in which nothing is wrong raises none; each thing that can be wrong in a record raises its own doubt and no
  other, and names the column;
- what an attack repairs is noticed, in what a bench measures, in all samples or in one class, and by another column
  of the same samples;
- attacks are compared only in the same ball and on the same samples; the stronger is never blamed for breaking more;
- a toy that hides nothing raises no flag; each trick around it (draws, batch mates, training mode, detached or declared
  gradients, probabilities) raises its own; what cannot be told is unknown and says why;
- planted examples exist: the model's own head answers otherwise there than at the clean image; an attack that does
  nothing misses them, a decent one finds them, guesses do not;
- probes are taken on the split that was asked for, and say so; one of an attack that fails, or does not know the norm,
  is unknown, and the others are taken;
- of one doubt about one scope, what could be told goes before what could not;
- indicators are JSON and come back from it the same; what is no indicator is refused.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from outcome_parts import EPS, PGD, SCORES, clean_column, column, evaluation, outcome, statement
from torch import Tensor

from advdistill import ClassSet, DataError, Factored, Noise, Threat, VisionLanguageModel
from advdistill.engine import build, existence
from advdistill.engine.data import Batch
from advdistill.engine.doubt import combined, diagnose, from_columns
from advdistill.engine.evaluate import split_reader
from advdistill.engine.indicator import Indicator, counted, unknown
from advdistill.engine.outcomes import Column, Evaluation
from advdistill.engine.participant import Participant
from advdistill.engine.probes import MEANS, PROBES, probe
from advdistill.engine.subject import Subject, Target
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import resolve_blocks
from advdistill.recipe.suite import load_suite
from advdistill.testing import ToyConfig, ToyDataset, ToyModel

COUNT = 100
CLEAN = torch.arange(COUNT) < 90
RIGHT = torch.arange(COUNT) < 40
FIRST = torch.arange(COUNT) < 10


def white(name: str = "pgd", right: Tensor = RIGHT, eps: float = EPS, attack: Any = PGD, **more: Any) -> Column:
    return column(name, outcome(CLEAN, right, eps, **more), eps=eps, attack=attack)


def doubts(*columns: Column) -> dict[str, Indicator]:
    return {each.name: each for each in from_columns(evaluation("m", clean_column(CLEAN), *columns))}


def flagged(*columns: Column) -> list[str]:
    return [name for name, each in doubts(*columns).items() if each.verdict == "flag"]


# --- the rule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "total", "verdict"),
    [(0, 10, "ok"), (1, 10, "unknown"), (2, 10, "flag"), (1, 300, "ok"), (2, 400, "ok"), (3, 400, "flag"),
     (0, 0, "unknown")],
)  # fmt: skip
def test_a_share_of_samples(count: int, total: int, verdict: str) -> None:
    found = counted("x", count, total, 0.005, "do this")
    assert found.verdict == verdict
    assert (found.advice == "do this") == (verdict == "flag")
    assert ("--limit" in found.advice) == (verdict == "unknown")
    assert found.value == (count / total if total else None)


def test_told_goes_before_unknown() -> None:
    seen, probed = Indicator("a", 0.0, 1.0, "ok"), Indicator("b", 1.0, 0.0, "flag", "x")
    found = combined([seen, unknown("b", "?"), unknown("c", "?")], [unknown("a", "?"), probed, unknown("c", "!")])
    assert [(each.name, each.verdict) for each in found] == [("a", "ok"), ("b", "flag"), ("c", "unknown")]


def test_what_one_scope_tells_says_nothing_about_another() -> None:
    told, other = Indicator("a", 0.0, 1.0, "ok", scope="base"), dataclasses.replace(unknown("a", "?"), scope="new")
    assert combined([told, other], []) == [told, other]
    assert combined([other], [told]) == [other, told]


def test_indicators_are_json() -> None:
    seen = from_columns(evaluation("m", clean_column(CLEAN), white(), clean_column(CLEAN, "new")))
    found = [*seen, Indicator("a", 1, 0.5, "flag", "do this", "pgd")]
    assert {each.verdict for each in found} == {"ok", "flag", "unknown"}
    assert {each.scope for each in found} == {"", "new"}
    for each in found:
        said = json.loads(json.dumps(each.to_json(), allow_nan=False))
        assert said == dataclasses.asdict(each) and Indicator.from_json(said) == each


@pytest.mark.parametrize(
    "change",
    [{"verdict": "fine"}, {"value": "much"}, {"name": None}, {"scope": 1}, {"more": 1}, {"threshold": [0.5]}],
)
def test_what_is_no_indicator(change: dict[str, Any]) -> None:
    said = Indicator("a", 0.0, 1.0, "ok").to_json()
    with pytest.raises(DataError):
        Indicator.from_json({**said, **change})
    with pytest.raises(DataError):
        Indicator.from_json({"name": "a"})


# --- records -------------------------------------------------------------------------------------------------------


def test_a_sound_record_raises_none() -> None:
    assert not flagged(white())
    assert all(each.advice for each in doubts(white()).values() if each.verdict == "unknown")


def put(field: str, value: Any, where: Tensor = FIRST) -> Column:
    whole = getattr(white().outcome, field)
    return white("odd", **{field: torch.where(where, torch.as_tensor(value, dtype=whole.dtype), whole)})


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("zero gradients", put("zeros", 0.9)),
        ("objective does not rise", put("rise", 0.0)),
        ("nothing moved", put("size", 0.0)),
        ("saturated", put("certain", True)),
        ("verdicts disagree", put("claimed", False)),
        ("robust above clean", put("recovered", True, torch.arange(COUNT) >= 95)),
    ],
)
def test_what_is_wrong_in_a_record_is_noticed(name: str, odd: Column) -> None:
    found = doubts(odd)
    assert [each for each in found if found[each].verdict == "flag"] == [name]
    assert found[name].column == "odd" and found[name].advice
    assert not flagged(white())


def test_a_class_that_is_repaired() -> None:
    clean = torch.ones(1000, dtype=torch.bool)
    for label, expected in ((3, "flag"), (None, "ok")):
        # Four samples of one class, or of four: 0.4 % of all.
        which = torch.arange(4) * 10 + label if label is not None else torch.arange(4)
        recovered = torch.zeros(1000, dtype=torch.bool).scatter_(0, which, True)
        labels = torch.arange(1000) % 10
        labels[40:] = torch.where(labels[40:] == 3, 4, labels[40:])
        found = column("pgd", outcome(clean, clean & False, recovered=recovered, labels=labels))
        (told,) = [e for e in from_columns(evaluation("m", found)) if e.name == "robust above clean"]
        assert told.verdict == expected
        assert told.value == (1.0 if label else 0.004) and ("class 3" in told.advice) == bool(label)


def test_columns_that_disagree_about_clean_images() -> None:
    other = column("pgd", outcome(CLEAN & ~FIRST, RIGHT & ~FIRST), eps=2 * EPS)
    assert flagged(white(), other) == ["robust above clean"]
    assert doubts(white(), other)["robust above clean"].column == "pgd"
    # Of other images, or among other classes, it may be so.
    assert not flagged(white(), column("pgd", other.outcome, eps=2 * EPS, classes="c2"))
    assert not flagged(white(), column("pgd", dataclasses.replace(other.outcome, indices=torch.arange(COUNT) + 1),
                                       eps=2 * EPS))  # fmt: skip


def test_a_rise_is_measured_against_what_there_was() -> None:
    # The clean cross-entropy is log(1 + exp(-12)), 6e-6: a rise of 1e-5 is large.
    margin = torch.full((COUNT,), 12.0)
    small = torch.full((COUNT,), 1e-5, dtype=torch.float64)
    assert not flagged(white(margin=margin, rise=small))
    assert flagged(white(margin=margin, rise=small / 1e4)) == ["objective does not rise"]


def test_somebody_must_know_the_model() -> None:
    scores = column("square", outcome(CLEAN, RIGHT), attacker=SCORES, knowledge="scores")
    assert flagged(scores) == ["no white-box column"]
    (nothing,) = [e for e in from_columns(evaluation("m", clean_column(CLEAN))) if e.name == "no white-box column"]
    assert nothing.verdict == "unknown"


@pytest.mark.parametrize(
    ("knowledge", "name"),
    [("scores", "scores beat white-box"), ("transfer", "transfer beats white-box"), ("blind", "noise beats white-box"),
     ("labels", "labels beat white-box"), ("grey-box", "grey-box beats white-box")],
)  # fmt: skip
def test_who_knows_less_must_not_break_more(knowledge: str, name: str) -> None:
    def weak(right: Tensor, eps: float = EPS) -> Column:
        return column("weak", outcome(CLEAN, right, eps), eps=eps, knowledge=knowledge)

    assert flagged(white(), weak(RIGHT & ~FIRST)) == [name]
    assert not flagged(white(), weak(CLEAN))
    # Another white-box attack breaks these too: all of them together count.
    assert not flagged(white(), white("other", RIGHT & ~FIRST), weak(RIGHT & ~FIRST))
    # In a larger ball it may.
    assert not flagged(white(), weak(RIGHT & ~FIRST, 2 * EPS))


def test_order_of_radii_and_steps() -> None:
    fewer = RIGHT & ~FIRST
    assert flagged(white("small", fewer), white("large", RIGHT, 2 * EPS)) == ["a larger radius helps the defender"]
    assert not flagged(white("small", RIGHT), white("large", fewer, 2 * EPS))
    long = {**PGD, "steps": 200}
    assert flagged(white("short", fewer), white("long", RIGHT, attack=long)) == ["more steps help the defender"]
    assert not flagged(white("short", RIGHT), white("long", fewer, attack=long))
    # Two things differ: they cannot be compared.
    assert not flagged(white("small", fewer), white("large", RIGHT, 2 * EPS, attack=long))


def test_a_single_step() -> None:
    once = CLEAN.to(torch.int32)
    single = {"use": "x:fgsm"}
    assert flagged(white(), white("fgsm", RIGHT & ~FIRST, attack=single, backwards=once)) == ["one step beats many"]
    assert not flagged(white(), white("fgsm", CLEAN, attack=single, backwards=once))


# --- probes --------------------------------------------------------------------------------------------------------


class Random(ToyModel):
    def features(self, images: Tensor) -> Tensor:
        return super().features(images + 0.1 * torch.randn_like(images))


class Mates(ToyModel):
    def features(self, images: Tensor) -> Tensor:
        return super().features(images + 0.1 * (images.mean(0) - images[0]))


class Training(ToyModel):
    def train(self, mode: bool = True) -> Training:
        super().train(True)
        return self


class Declared(ToyModel):
    differentiable = False


class Detached(ToyModel):
    def features(self, images: Tensor) -> Tensor:
        return super().features(images.detach() + 0.01 * (images.flip(3) - images.flip(3).detach()))


class Probabilities(ToyModel):
    def logits(self, features: Tensor, classifier: Tensor) -> Tensor:
        return super().logits(features, classifier).softmax(1)


class Aside(ToyModel):
    """Knows the test images, and is wrong about these alone: right everywhere beside them."""

    batch_independent = False

    def features(self, images: Tensor) -> Tensor:
        split = ToyDataset(None).split("test")
        known = torch.stack([split.load(i) for i in range(len(split))]).flatten(1)
        clean = torch.cdist(images.detach().flatten(1), known, p=torch.inf).amin(1, keepdim=True) == 0
        features = super().features(images)
        return torch.where(clean, -features, features)


class Fragile(ToyModel):
    """Its gradient cannot be taken."""

    def features(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            raise RuntimeError("no way back")
        return super().features(images)


class Flat(ToyModel):
    def logits(self, features: Tensor, classifier: Tensor) -> Tensor:
        return super().logits(features, classifier).detach()


class Whole(VisionLanguageModel):
    """A toy that has no class features to offer."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.toy = ToyModel(config)
        self.image_size = self.toy.image_size

    @classmethod
    def from_config(cls, config: ToyConfig, *, weights: bool = True) -> Whole:
        return cls(config)

    def prepare(self, classes: ClassSet) -> Any:
        return self.toy.prepare(classes)

    def predict(self, images: Tensor, classes: Any) -> Tensor:
        return self.toy.predict(images, classes)

    def learned(self) -> dict[str, Tensor]:
        return {}

    def undefended(self) -> VisionLanguageModel:
        return self

    def describe(self) -> dict[str, Any]:
        return self.toy.describe()


class Toy(Target):
    """A target that is no file."""

    fingerprint = "toy"  # type: ignore[assignment]

    def __init__(self, model: VisionLanguageModel) -> None:
        self.name, self.model, self.opened = "toy", model.eval(), None
        self._registry, self._device = default_registry(), torch.device("cpu")


def subject(model: VisionLanguageModel, scope: str = "") -> Subject:
    data = ToyDataset(None)
    seen = Participant(model, data.classes)
    return Subject("toy", seen, data, None, split_reader(data), [], 0, (), Toy(model), scope)


def probed(
    model: type[ToyModel] | type[Whole], *names: str, attack: Any = None, norm: str = "linf", eps: float = 6 / 255
) -> dict[str, Indicator]:
    registry = default_registry()
    block = resolve_blocks({"attack": attack or {"use": "apgd", "steps": 15}}, registry)[("attack",)]
    found = probe(subject(model(ToyConfig())), block, Threat(norm, eps), 30, registry, names=names)
    return {each.name: each for each in found}


def test_a_toy_that_hides_nothing_raises_none() -> None:
    found = probed(ToyModel, eps=3 / 255)
    assert list(found) == list(PROBES)
    assert not [each for each in found.values() if each.verdict == "flag"]
    (told,) = {name for name, each in found.items() if each.verdict == "unknown"}
    assert told == "transfer beats white-box"  # nothing was learned: it is its own base


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Random, "stochastic"),
        (Mates, "batch-dependent"),
        (Training, "training mode"),
        (Declared, "not differentiable"),
        (Detached, "gradients are not the slope"),
        (Detached, "planted examples found"),
        (Probabilities, "probabilities for logits"),
        (Flat, "right at any radius"),
        (Flat, "scores beat white-box"),
    ],
)
def test_tricks_are_noticed(model: type[ToyModel], name: str) -> None:
    torch.manual_seed(0)
    assert probed(model, name)[name].verdict == "flag"
    assert probed(ToyModel, name)[name].verdict == "ok"


def test_steps_that_are_too_few() -> None:
    weak = {"use": "pgd", "steps": 1, "step": 3 / 255, "random_start": False}
    name = "steps not converged"
    assert probed(ToyModel, name, attack=weak, eps=8 / 255)[name].verdict == "flag"


@pytest.mark.parametrize(
    ("name", "model", "how"),
    [
        ("steps not converged", ToyModel, {"attack": {"use": "fgsm"}}),
        ("batch-dependent", Random, {}),
        ("planted examples found", Random, {}),
        ("gradients are not the slope", Random, {}),
        ("planted examples found", Whole, {}),
        ("scores beat white-box", ToyModel, {"norm": "l0", "eps": 5, "attack": {"use": "ta-pixle"}}),
        ("one step beats many", ToyModel, {"norm": "l1", "eps": 5}),
        ("silent success", ToyModel, {"norm": "l0", "eps": 5}),
        ("silent success", Fragile, {}),
    ],
)
def test_what_cannot_be_told_says_why(name: str, model: type[ToyModel] | type[Whole], how: dict[str, Any]) -> None:
    found = probed(model, name, **how)[name]
    assert found.verdict == "unknown" and found.value is None and found.advice


def test_what_an_attack_repairs() -> None:
    registry = default_registry()
    block = resolve_blocks({"attack": {"use": "pgd", "steps": 1}}, registry)[("attack",)]
    protocol = build.protocol(registry, "pgd", block, Threat("linf", 0.5 / 255), limit=30)
    for model, verdict in ((Aside, "flag"), (ToyModel, "ok")):
        (found,) = subject(model(ToyConfig())).bench().columns([protocol])
        assert not (found.outcome.right & ~found.outcome.clean).any(), "it counts as robust only where it was right"
        (told,) = [e for e in from_columns(Evaluation("m", {}, (found,))) if e.name == "robust above clean"]
        assert (told.verdict, told.column) == (verdict, "pgd")
        assert told.value == (~found.outcome.clean & found.outcome.recovered).float().mean().item()


def test_probes_are_taken_where_they_say() -> None:
    registry = default_registry()
    block = resolve_blocks({"attack": {"use": "apgd", "steps": 2}}, registry)[("attack",)]
    asked: list[str] = []
    toy = subject(ToyModel(ToyConfig()), "new")
    real = toy.splits
    toy = dataclasses.replace(toy, splits=lambda name: (asked.append(name), real(name))[1])
    names = ("restarts not converged", "stochastic", "silent success", "planted examples found")
    for split in ("val", "test"):
        asked.clear()
        found = probe(toy, block, Threat("linf", EPS), 12, registry, split=split, names=names)
        assert set(asked) == {split}
        assert {(each.column, each.scope) for each in found} == {(f"new: apgd, 12 of {split}", "new")}
    column, _ = diagnose(toy, block, Threat("linf", EPS), 12, registry, split="val")
    assert column.statement["split"]["name"] == "val" and column.scope == "new"


@pytest.mark.parametrize(("norm", "eps", "lost"), [("l2", 0.3, set()), ("l1", 3.0, {"one step beats many"})])
def test_other_norms(norm: str, eps: float, lost: set[str]) -> None:
    names = [name for name in PROBES if name != "scores beat white-box"]  # its queries take their time
    found = probed(ToyModel, *names, norm=norm, eps=eps, attack={"use": "apgd", "steps": 10})
    assert list(found) == names
    ignorant = {name: each.advice for name, each in found.items() if f"not {norm}" in each.advice}
    assert ignorant.keys() == lost and all(found[name].verdict == "unknown" for name in lost)


def test_every_companion_is_in_the_suite() -> None:
    suite = load_suite("companions", default_registry())
    assert {heading for heading, _, _ in MEANS.values()} == set(suite.attacks)


# --- planted examples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5), ("l1", 5.0)])
def test_planted_examples_exist(norm: str, eps: float) -> None:
    toy = subject(ToyModel(ToyConfig()))
    split = toy.splits("test")
    rows = torch.arange(12)
    batch = Batch(torch.stack([split.load(i) for i in range(12)]), split.labels[:12], rows)
    threat = Threat(norm, eps)
    plants = existence.plant(toy.participant, batch, threat, 0)
    assert isinstance(toy.participant.model, Factored) and plants.exists.all()
    before = plants.logits(batch.images, rows)
    assert (before[:, 0] > before[:, 1]).all()
    noise = Noise(0, "plants", 0, batch.samples)
    points = [existence.sampled(batch.images, threat, noise, draw) for draw in range(existence.POINTS)]
    assert all(threat.holds(each, batch.images).all() for each in points)
    answers = torch.stack([plants.logits(each, rows).argmax(1) for each in points])
    assert (answers.sum(0) == 1).all(), "exactly one of the points is an example"
    assert plants.guess(batch, threat, 0) < 0.5
    assert (plants.pairs.norm(dim=2) - 1).abs().max() < 1e-5


def test_statements_stay_as_they_are() -> None:
    one = white()
    before = json.dumps(statement("pgd", PGD))
    doubts(one, white("large", eps=2 * EPS))
    assert json.dumps(dict(one.statement)) == before
