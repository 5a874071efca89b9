"""Guarantees:

- steps are the run's own, after a warm-up that does not count; nothing is written and nothing evaluated;
- phases add up to the step; the floor is the passes counted in the steps, each at its own price, and class features
  once for each model whose class features learn;
- FLOPs are those of the first steps, which are the ones measured; how later steps differ is noted, in arithmetic and in
  what is kept of teachers who were asked about clean images;
- where compiling fails the place does not say "compiled", and a note says why;
- data that is not there is replaced and told, and passes for augmented where it would be; data that cannot be used is
  an error; what is not known of the cost is told; weights can be random, and all
  models of one architecture, where checkpoints become undefended models;
- all methods are every strategy that has a recipe on the embedded digits, one recipe each; one that fails is a row.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
from clip_parts import Parts, settings

from advdistill.engine import bench
from advdistill.engine.bench import Failed, Loading, Measured
from advdistill.engine.compiled import Compiled
from advdistill.engine.examine import Examiner
from advdistill.engine.fit import Run
from advdistill.engine.participant import Participant
from advdistill.errors import DataError
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import Recipe, load_recipe

TINY = settings({"layers": 2, "width": 16, "head_width": 8}, {"layers": 2, "width": 16})
SMALL = "advdistill_demo:small.json"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One time is enough: numbers are not looked at."""
    monkeypatch.setattr(bench, "median_of", lambda seconds, least, budget: seconds())


def measured(made: Recipe, steps: int = 1) -> Measured:
    return bench.measure(made, default_registry().with_files(made.plugin_hashes), steps)


def test_steps_are_the_run_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is evaluated")

    taken, take = [], Run.take
    monkeypatch.setattr(Run, "take", lambda run, batch: taken.append(len(batch)) or take(run, batch))
    for name in ("before", "after", "probe", "show"):
        monkeypatch.setattr(Examiner, name, unwanted)
    made = run_parts.recipe(tmp_path, train={"steps": 2}, evaluate={"every": 1})
    before = sorted(tmp_path.iterdir())
    found = measured(made, steps=3)
    assert taken == [20] * (bench.WARM_UP + 3) and found.size == 20 and found.steps == 3
    assert sorted(tmp_path.iterdir()) == before
    assert found.learns["student"][0] > 0 and found.memory > 2**20 and found.rate and found.flops
    assert found.hardened.batch == 256 and found.plain.latency > 0
    # The mean of the parts is the part of the mean, where there is one.
    alone = measured(made)
    assert alone.seconds == pytest.approx(sum(alone.phases.values()))
    assert {"data", "attack", "student", "optimizer", "other"} <= alone.phases.keys()
    assert json.loads(json.dumps(alone.to_json()))["seconds_per_step"] == alone.seconds


PRICES = {"to_pixels": 1.0, "to_parameters": 10.0, "forward": 100.0, "class_features": 5.0}
SCENES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    # Twelve images; the toy attack takes two steps.
    "one model": ({}, {"attack": 24, "student": 120}),
    "portions": ({"train": {"accumulate": 3}}, {"attack": 24, "student": 120}),
    "twins": (
        {"strategy": {"use": "apd"}, "teachers": {"clean": {"use": "toy", "train": True}}},
        {"attack": 24, "student": 120, "clean teacher": 120},
    ),
    "frozen teachers": (
        {"strategy": {"use": "mmt-ard"}, "teachers": {"clean": {"use": "toy"}, "robust": {"use": "toy"}}},
        {"attack": 24, "student": 240, "clean teacher": 1200, "robust teacher": 1200},
    ),
}


@pytest.mark.parametrize("scene", SCENES)
def test_the_floor_is_the_passes_at_their_prices(tmp_path: Path, scene: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for way, price in PRICES.items():
        monkeypatch.setattr(bench._Alone, way, lambda alone, price=price: price)
    changes, floor = SCENES[scene]
    train = {"batch_size": 12, **changes.get("train", {})}
    attack = {"use": "pgd", "steps": 2}
    found = measured(run_parts.recipe(tmp_path, **{"attack": attack, **changes, "train": train}), steps=2)
    text = 5.0 * sum(learns > 0 for learns, _ in found.learns.values())
    assert {phase: seconds for phase, seconds in found.floor.items() if phase != "class features"} == floor
    assert found.floor["class features"] == text
    assert found.to_floor == found.seconds / (sum(floor.values()) + text)


def test_passes_alone_leave_no_gradients(tmp_path: Path) -> None:
    made = run_parts.recipe(tmp_path)
    participant = run_parts.build(made).student
    alone = bench._Alone(participant, torch.rand(3, 3, 16, 16))
    before = {name: tensor.clone() for name, tensor in participant.trainable.items()}
    assert min(alone.to_pixels(), alone.forward(), alone.class_features(), alone.to_parameters()) > 0
    participant.discard()
    assert all(
        p.grad is None and torch.equal(p, before[n]) and p.requires_grad for n, p in participant.trainable.items()
    )


def test_data_that_is_not_there_is_replaced(tmp_path: Path) -> None:
    data = {"use": "folder", "root": "/no/such", "shots": 2, "size": 16}
    found = measured(run_parts.recipe(tmp_path, data=data, train={"batch_size": 4}))
    assert any("/no/such" in note and "1,000 classes of 2 images" in note for note in found.notes)
    assert any("loading and augmentation are not in these numbers" in note for note in found.notes)
    assert found.size == 4


@pytest.mark.parametrize(("augment", "kept"), [("none", True), ("crop-flip", False)])
def test_what_later_epochs_know(tmp_path: Path, augment: str, kept: bool) -> None:
    data = {"use": "folder", "root": "/no/such", "shots": 1, "size": 16, "augment": augment}
    teachers = {"clean": {"use": "toy"}, "robust": {"use": "toy"}}
    made = run_parts.recipe(tmp_path, data=data, strategy={"use": "mmt-ard"}, teachers=teachers,
                            train={"steps": None, "epochs": 2, "batch_size": 4})  # fmt: skip
    told = [note for note in measured(made).notes if "clean images" in note]
    assert len(told) == kept and all("the clean teacher said" in note and "robust" not in note for note in told)


@pytest.mark.parametrize("train", [{"steps": 3}, {"cache_teachers": "off"}, {"cache_limit": 8}])
def test_nothing_is_noted_of_what_is_not_kept(tmp_path: Path, train: dict[str, Any]) -> None:
    made = {"strategy": {"use": "mmt-ard"}, "teachers": {"clean": {"use": "toy"}, "robust": {"use": "toy"}}}
    budget = {"steps": None, "epochs": 2} if "steps" not in train else {}
    assert measured(run_parts.recipe(tmp_path, **made, train={"batch_size": 12, **budget, **train})).notes == ()


def test_flops_are_those_of_the_steps_that_were_measured(tmp_path: Path) -> None:
    source = {**Parts(tmp_path, TINY).source, "weights": "random"}
    made = {"student": {"use": "clip-lora", "rank": 2, **source}, "teachers": {"robust": {"use": "clip", **source}}}
    found = measured(run_parts.recipe(tmp_path, **made, strategy={"use": "iad"}, train={"batch_size": 4}))
    plan = bench.estimated(run_parts.recipe(tmp_path, **made, strategy={"use": "iad"}, train={"batch_size": 4}),
                           default_registry())  # fmt: skip
    assert found.flops == plan.first and plan.last and plan.first
    times = sum(plan.last.values()) / sum(plan.first.values())
    assert times > 1.1 and any(f"its last one does {times:.2f} x their arithmetic" in note for note in found.notes)


def test_where_compiling_fails_it_is_not_said_to_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler")

    made = run_parts.recipe(tmp_path, train={"compile": "on", "batch_size": 4})
    monkeypatch.setattr(Compiled, "backend", staticmethod(broken))
    failed = measured(made)
    assert "compiled" not in failed.where and any("no compiler" in note for note in failed.notes)
    monkeypatch.setattr(Compiled, "backend", "eager")
    worked = measured(made)
    assert ", compiled" in worked.where and worked.notes == ()


def test_a_peak_that_cannot_begin_anew_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError

    cpu = torch.device("cpu")
    monkeypatch.setattr(Path, "write_text", refused)
    assert bench._peak(cpu, bench._reset_peak(cpu))[1] == "this process since it began"


def test_an_attack_that_looks_at_values_has_no_estimate(tmp_path: Path) -> None:
    made = run_parts.recipe(tmp_path, attack={"use": "square", "queries": 2}, train={"batch_size": 4})
    found = measured(made)
    assert found.flops is None and found.utilisation is None and found.estimate("attack") is None
    assert any("no estimate: the attack or the method looks at values" in note for note in found.notes)
    assert set(found.floor) >= {"attack", "student"}  # passes without gradients have a price too


def test_how_often_a_slow_model_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    participant: Participant = run_parts.build(run_parts.recipe(tmp_path)).student
    monkeypatch.setattr(bench, "median_of", lambda seconds, least, budget: 0.5)
    found = bench.inference(participant, 16, 100)
    assert (found.latency, found.batch, found.throughput) == (0.5, 3, 6.0)  # 100, 50, 25, 12, 6, 3


def test_weights_can_be_random(tmp_path: Path) -> None:
    source = {**Parts(tmp_path, TINY).source, "weights": "/no/such.safetensors"}
    student = {"use": "clip-lora", "rank": 2, **source}
    made = run_parts.recipe(tmp_path, student=student, teachers={"robust": {"use": "clip", **source}},
                            strategy={"use": "ard"}, train={"batch_size": 4})  # fmt: skip
    registry = default_registry()
    with pytest.raises(DataError, match="/no/such"):
        bench.measure(made, registry, 1)
    failed = bench.attempt(made, registry, 1)
    assert isinstance(failed, Failed) and "/no/such" in failed.why and failed.method == "ard"
    assert isinstance(bench.attempt(bench.random_weights(made, registry), registry, 1), Measured)


def test_all_models_on_one_architecture() -> None:
    registry = default_registry()
    apd, quickstart = (bench.on_backbone(load_recipe(n), SMALL, registry) for n in ("apd_digits", "quickstart"))
    teacher = apd.teachers["clean"]
    assert teacher.train and teacher.use == apd.student.use == "clip-prompts"
    assert teacher.tree()["visual"] == load_recipe("apd_digits").teachers["clean"].tree()["visual"]
    for block in (apd.student, teacher, quickstart.student, *quickstart.teachers.values()):
        tree = block.tree()
        assert (tree["model"], tree["weights"]) == (SMALL, "random")
    assert {block.spec.name for block in quickstart.teachers.values()} == {"clip"}
    assert quickstart.tree["teachers"]["robust"]["model"] == SMALL
    ciard = bench.on_backbone(load_recipe("ciard_digits"), SMALL, registry)  # one of its checkpoints learns
    assert ciard.teachers["robust"].train and ciard.teachers["robust"].use == ciard.student.use


def test_all_methods() -> None:
    registry = default_registry()
    found = bench.methods(registry, ["train.batch_size=8"])
    ours = [entry.spec.name for entry in registry.entries("strategy") if entry.plugin.dist == "advdistill"]
    assert [recipe.strategy.use for recipe in found] == sorted(ours)
    assert {recipe.data.use for recipe in found} == {"digits"} and {recipe.train.batch_size for recipe in found} == {8}
    assert {"apd-digits", "quickstart", "trades-digits"} <= {recipe.name for recipe in found}
    with pytest.raises(DataError, match="ViT-Z"):
        bench.methods(registry, (), "ViT-Z-99")


def test_which_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = Loading(computing=100, first=50, later=200, augmenting=1000, workers=0, kept=True)
    slow = Loading(computing=100, first=50, later=50, augmenting=1000, workers=0, kept=False)
    dear = Loading(computing=100, first=50, later=50, augmenting=55, workers=0, kept=True)
    held = Loading(computing=100, first=50, later=50, augmenting=1000, workers=0, kept=True)
    monkeypatch.setattr(bench, "cores", lambda: 3)
    assert "train.workers=3" in slow.advice
    assert "memory" in held.advice and "disk" not in held.advice and "workers" not in held.advice
    assert (fast.limit, slow.limit, dear.limit) == ("computing", "loading", "loading")
    assert "train.workers" in slow.advice and "train.keep_images" in slow.advice
    assert "augment" in dear.advice and "nothing" in fast.advice
    assert fast.to_json()["loading_images_per_second"] == {"first_epoch": 50, "later_epochs": 200}


def test_loading_against_computing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates, asked = bench.loading_rates, []
    monkeypatch.setattr(bench, "loading_rates", lambda *given: asked.append(given) or rates(*given, seconds=0.1))
    made = run_parts.recipe(tmp_path)
    found = bench.loading(made, default_registry().with_files(made.plugin_hashes), 1)
    assert len(asked) == 1 and min(found.computing, found.first, found.later, found.augmenting) > 0
    missing = run_parts.recipe(tmp_path, data={"use": "folder", "root": "/no/such"})
    with pytest.raises(DataError, match="/no/such"):
        bench.loading(missing, default_registry().with_files(made.plugin_hashes), 1)


def test_phases_in_the_order_of_a_step() -> None:
    steps = [{"other": 1.0, "attack": 1.0}, {"robust teacher": 1.0, "data": 1.0, "optimizer": 0.0}]
    assert bench.ordered(steps) == ["data", "attack", "robust teacher", "optimizer", "other"]
