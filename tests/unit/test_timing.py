"""Guarantees:

- what is spent belongs to the innermost phase, once; what models do under attack to the attack, but for class
  features and what a frozen teacher says of clean images;
- a model's backward pass belongs to the model, several models' of one loss each to its own; what no model does, to
  nobody;
- passes are counted by model, way and attack, for every strategy's kind of step: portions, phases, learning teachers;
- what was asked of a device is waited for before seconds are read, whatever device it is;
- watching changes no number, and leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
from torch import Tensor

from advdistill.engine import timing
from advdistill.engine.fit import Run
from advdistill.engine.folder import RunFolder
from advdistill.hooks.registry import default_registry
from advdistill.testing.toy import ToyModel


class Meter:
    """Reads what was `spent` by hand."""

    total = 0.0

    def __call__(self) -> float:
        return self.total


@pytest.fixture
def meter() -> Meter:
    return Meter()


def test_the_innermost_phase_pays(meter: Meter) -> None:
    with timing.watched(meter) as watch:
        meter.total += 1
        with timing.phase("outer"):
            meter.total += 2
            with timing.phase("inner"):
                meter.total += 4
            meter.total += 8
    assert watch.spent == {"other": 1, "outer": 10, "inner": 4}


@pytest.mark.parametrize("kind", ["cuda", "mps", "cpu"])
def test_the_device_is_waited_for(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append("cuda"))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    timing.clock(torch.device(kind))()
    assert waited == [kind] * (kind != "cpu")


def test_the_attack_pays_for_models_but_not_for_class_features(meter: Meter) -> None:
    with timing.watched(meter) as watch, timing.phase("attack"):
        with timing.phase("student"):
            meter.total += 1
        with timing.phase("class features", own=True):
            meter.total += 2
        meter.total += 4
    assert watch.spent == {"other": 0, "attack": 5, "class features": 2}


class Costly(torch.autograd.Function):
    """x -> x + 0; costs `price` in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, meter: Meter, price: float) -> Tensor:
        ctx.meter, ctx.price = meter, price
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        ctx.meter.total += ctx.price
        return gradients[0], None, None


def test_each_model_pays_for_its_backward(meter: Meter) -> None:
    images = torch.rand(3, 3, 4, 4)
    weights = torch.rand(2, requires_grad=True)

    def look(index: int, price: float) -> Any:
        return lambda x: Costly.apply(weights[index] * x, meter, price)

    with timing.watched(meter) as watch:
        one = timing.passed("student", look(0, 1), images)
        two = timing.passed("clean teacher", look(1, 2), images)
        loss = Costly.apply((one * two).sum(), meter, 4)
        with timing.backward():
            loss.backward()
        meter.total += 8
    assert watch.spent == {"student": 1, "clean teacher": 2, "other": 12}
    assert watch.passes == {(who, way): 3 for who in ("student", "clean teacher") for way in ("forward", "backward")}
    assert not watch.attacks


def test_a_gradient_outside_a_backward_pass_takes_nothing_over(meter: Meter) -> None:
    pixels = torch.rand(2, 3, 4, 4, requires_grad=True)
    with timing.watched(meter) as watch:
        with timing.phase("attack"):
            found = timing.passed("student", lambda x: Costly.apply(x, meter, 1), pixels)
            torch.autograd.grad(found.sum(), pixels)
        meter.total += 2
    assert watch.spent == {"attack": 1, "other": 2}
    assert watch.attacks == watch.passes == {("student", "forward"): 2, ("student", "backward"): 2}


def test_who_does_not_learn_goes_forward_only(meter: Meter) -> None:
    with timing.watched(meter) as watch:
        timing.passed("teacher", torch.sin, torch.rand(2, 3, 4, 4))
    assert watch.passes == {("teacher", "forward"): 2}


def taken(folder: Path, watching: bool, **changes: Any) -> tuple[dict[str, Tensor], timing.Watch | None]:
    """Two steps of a run. What it learned, and the watch."""
    made = run_parts.recipe(folder, train={"steps": 2, "batch_size": 12, **changes.pop("train", {})}, **changes)
    registry = default_registry().with_files(made.plugin_hashes)
    run = Run(made, registry, RunFolder(made, resume=False, overwrite=False, main=False), lambda event: None)

    def learn() -> dict[str, Tensor]:
        for batch in run.batches():
            run.take(batch)
        return {f"{r} {n}": t.clone() for r, p in run.parts.learners.items() for n, t in p.model.learned().items()}

    if not watching:
        return learn(), None
    with timing.watched(timing.clock(torch.device("cpu"))) as watch:
        return learn(), watch


SCENES: dict[str, dict[str, Any]] = {
    "one model": {},
    "portions": {"train": {"accumulate": 3}},
    "learning teacher": {"strategy": {"use": "apd"}, "teachers": {"clean": {"use": "toy", "train": True}}},
    "phases": {
        "strategy": {"use": "apd", "update_order": "alternate"},
        "teachers": {"clean": {"use": "toy", "train": True}},
    },
    "frozen teachers": {
        "strategy": {"use": "mmt-ard"},
        "teachers": {"clean": {"use": "toy"}, "robust": {"use": "toy"}},
    },
}


@pytest.mark.parametrize("scene", SCENES)
def test_watching_changes_no_number(tmp_path: Path, scene: str) -> None:
    plain, _ = taken(tmp_path, False, **SCENES[scene])
    seen, watch = taken(tmp_path, True, **SCENES[scene])
    assert run_parts.same(plain, seen) and watch is not None
    assert {"data", "attack", "optimizer", "student", "other", "class features"} <= watch.spent.keys()
    assert all(seconds >= 0 for seconds in watch.spent.values())
    learning = scene == "phases" or scene == "learning teacher"
    # What a frozen teacher is asked in an objective about images that nobody perturbs is no attack's.
    assert not any(who != "student" for who, _ in watch.attacks)
    # Twelve images twice; MMT-ARD learns from both views of each.
    loss = watch.passes - watch.attacks
    assert loss["student", "forward"] >= loss["student", "backward"] == (48 if scene == "frozen teachers" else 24)
    assert loss["clean teacher", "backward"] == (24 if learning else 0)
    assert watch.attacks["student", "forward"] == watch.attacks["student", "backward"] > 0
    assert timing._watch is None


@pytest.fixture
def slow_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meter]:
    """Toy models whose backward passes cost 1 an image."""
    meter, features = Meter(), ToyModel.features

    def costly(self: ToyModel, images: Tensor) -> Tensor:
        found = features(self, images)
        return Costly.apply(found, meter, len(images)) if found.requires_grad else found

    monkeypatch.setattr(ToyModel, "features", costly)
    yield meter


@pytest.mark.parametrize("scene", SCENES)
def test_backward_passes_of_a_step_are_told_apart(
    tmp_path: Path, scene: str, slow_model: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "clock", lambda device: slow_model)
    _, watch = taken(tmp_path, True, **SCENES[scene])
    assert watch is not None
    roles = {who for who, _ in watch.passes}
    paid = {who: watch.spent[who] for who in roles}
    assert paid == {who: (watch.passes - watch.attacks)[who, "backward"] for who in roles}
    assert watch.spent["attack"] == sum(n for (_, way), n in watch.attacks.items() if way == "backward")
    assert watch.spent["other"] == watch.spent["optimizer"] == watch.spent["data"] == 0
