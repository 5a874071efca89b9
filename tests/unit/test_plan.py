"""What is pinned here:

- A plan counts the very parameters that the run trains and holds, for every kind of student, and its steps.
- It opens no weights file: paths that lead nowhere do not matter, and nothing is computed with values.
- What graphs hold is positive, grows in proportion to the portion, and shrinks where a batch is divided; what is
  frozen costs no gradient.
- FLOPs are those that torch counts in a step of the run with values, phase by phase; steps of an attack that cost the
  same are gone through twice and billed so often as they are taken, which changes no number.
- In bf16 graphs hold half; class features in chunks hold less; a plan for a machine with another device needs none.
- Data that is not there is assumed, and said to be, but data that is there and cannot be used is an error; a part that
  needs values is said to need them.
- The first step and the last are counted apart; what a run would keep of frozen teachers is paid in the first epoch
  alone, where `recall.attach` would keep it and within its limit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
from clip_parts import Parts, settings
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from advdistill.engine import build, timing
from advdistill.engine.attack import Problem
from advdistill.engine.cost import Walk
from advdistill.engine.fit import Run
from advdistill.engine.folder import RunFolder
from advdistill.engine.plan import Plan, estimated, plan
from advdistill.errors import DataError, MissingData
from advdistill.hooks.registry import default_registry
from advdistill.testing import ToyAttack, ToyDataset

TINY = settings({"layers": 1, "width": 16, "head_width": 8}, {"layers": 2, "width": 16})
PROMPTS = {"text": {"depth": 2}, "visual": {"depth": 1}}
STUDENTS: dict[str, dict[str, Any]] = {
    "lora": {"use": "clip-lora", "rank": 2},
    "prompts": {"use": "clip-prompts", **PROMPTS},
    "tune": {"use": "clip-tune"},
    "tune all": {"use": "clip-tune", "tower": "all"},
    "toy": {"use": "toy"},
}


def planned(made: Any) -> Plan:
    return plan(made, default_registry().with_files(made.plugin_hashes))


def clip(folder: Path, kind: str, weights: str | None = None) -> dict[str, Any]:
    source = Parts(folder, TINY).source if kind != "toy" else {}
    return {**STUDENTS[kind], **source, **({"weights": weights} if weights and source else {})}


@pytest.mark.parametrize("kind", STUDENTS)
def test_counts_are_those_of_the_run(tmp_path: Path, kind: str) -> None:
    changes = {
        "student": clip(tmp_path, kind),
        "teachers": {"clean": {"use": "clip", **Parts(tmp_path, TINY).source}},
        "strategy": {"use": "apd"},
        "train": {"steps": None, "epochs": 2, "batch_size": 25},
    }
    made = run_parts.recipe(tmp_path, **changes)
    found = planned(made)
    parts = run_parts.build(made)
    everyone = {"student": parts.student, **parts.teachers}
    assert found.sizes == build.count(everyone) and found.sizes["clean"][0] == 0 < found.sizes["student"][0]
    distinct = {id(p): p for each in everyone.values() for p in each.model.parameters()}
    assert found.weights == sum(p.nbytes for p in distinct.values())
    assert found.training == 3 * 4 * found.sizes["student"][0]
    assert (found.images, found.classes, found.side, found.missing) == (60, 6, 16, [])
    assert found.steps == 4 and found.portion == 25
    run_parts.train(made)
    assert len(run_parts.events(tmp_path / "run", "step_done")) == found.steps
    assert json.loads(json.dumps(found.to_json()))["sizes"]["student"]["learns"] == found.sizes["student"][0]


@pytest.mark.parametrize("kind", ["prompts", "tune"])
def test_no_weights_are_read(tmp_path: Path, kind: str) -> None:
    with_weights = planned(run_parts.recipe(tmp_path, student=clip(tmp_path, kind)))
    made = run_parts.recipe(tmp_path, student=clip(tmp_path, kind, "/no/such/weights.safetensors"))
    assert planned(made).to_json() == with_weights.to_json()
    assert with_weights.unknown == "" and with_weights.activations
    with pytest.raises(DataError, match="/no/such/weights"):
        run_parts.build(made)


@pytest.mark.slow
def test_what_graphs_hold(tmp_path: Path) -> None:
    def held(kind: str = "tune", use: str = "adversarial-ce", steps: int = 2, **train: int) -> int:
        attack = {"use": "pgd", "steps": steps} if use == "adversarial-ce" else None
        made = {"student": clip(tmp_path, kind), "train": train, "strategy": {"use": use}, "attack": attack}
        found = planned(run_parts.recipe(tmp_path, **made))
        assert found.activations is not None
        return found.activations

    small, large = held(batch_size=10), held(batch_size=40)
    assert 3.5 * small < large < 4.1 * small
    assert held(batch_size=40, accumulate=4) == small
    assert held(steps=9, batch_size=10) == small  # a step of the attack lets go of the last one's graph
    assert 0 < held("lora", "clean", batch_size=10) < held("tune", "clean", batch_size=10)


def test_what_graphs_hold_is_what_they_hold(tmp_path: Path) -> None:
    made = run_parts.recipe(tmp_path, student=clip(tmp_path, "tune"), strategy={"use": "clean"}, attack=None,
                            train={"batch_size": 8})  # fmt: skip
    student = run_parts.build(made).student
    ignored = {p.untyped_storage().data_ptr() for p in student.model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        if tensor.untyped_storage().data_ptr() not in ignored:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = student.logits(torch.rand(8, 3, 16, 16))
        torch.nn.functional.cross_entropy(logits, torch.zeros(8, dtype=torch.long))
    found = planned(made).activations
    assert found == pytest.approx(sum(kept.values()), rel=0.1)


SCENES: dict[str, dict[str, Any]] = {
    "one model": {"student": "lora"},
    "text prompts": {"student": "prompts"},
    "portions": {"student": "tune", "train": {"accumulate": 2}},
    "learning teacher": {"student": "prompts", "teacher": "prompts", "strategy": {"use": "apd"}},
}


@pytest.mark.parametrize("scene", SCENES)
def test_flops_are_those_of_the_run(tmp_path: Path, scene: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = dict(SCENES[scene])
    changes["student"] = clip(tmp_path, changes["student"])
    if kind := changes.pop("teacher", ""):
        changes["teachers"] = {"clean": {**clip(tmp_path, kind), "train": True}}
    changes = {"attack": {"use": "pgd", "steps": 4}, **changes}
    made = run_parts.recipe(tmp_path, **{**changes, "train": {"batch_size": 12, **changes.get("train", {})}})
    run = Run(
        made,
        default_registry().with_files(made.plugin_hashes),
        RunFolder(made, resume=False, overwrite=False, main=False),
        lambda event: None,
    )
    batches = run.batches()
    run.take(next(batches))  # class features of models that do not learn are encoded
    # With values torch takes kernels for attention that only some versions' counters know.
    with (
        FlopCounterMode(display=False) as counter,
        timing.watched(counter.get_total_flops) as watch,
        sdpa_kernel(SDPBackend.MATH),
    ):
        run.take(next(batches))
    found = planned(made).flops
    assert found is not None and found == pytest.approx({k: v for k, v in watch.spent.items() if v})


@pytest.mark.slow
def test_steps_of_an_attack_are_gone_through_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run_parts.recipe(tmp_path, student=clip(tmp_path, "prompts"), attack={"use": "pgd", "steps": 4})
    shortened, walked = planned(made), []
    gradient = Problem.gradient
    monkeypatch.setattr(Problem, "gradient", lambda *given: walked.append(given) or gradient(*given))
    assert planned(made) == shortened and len(walked) == 2 * 2  # of the first step and of the last
    monkeypatch.setattr(Walk, "poses", Problem)
    whole = planned(made)
    assert whole.flops == shortened.flops and whole.activations == shortened.activations
    assert len(walked) == 2 * 2 + 2 * 4


@pytest.mark.slow
def test_bf16_holds_half(tmp_path: Path) -> None:
    def held(precision: str, **train: Any) -> Plan:
        changes = {"student": clip(tmp_path, "prompts"), "train": {"precision": precision, **train}}
        return planned(run_parts.recipe(tmp_path, **changes))

    full, half = held("fp32"), held("bf16")
    assert full.activations and half.activations == full.activations // 2 and half.flops == full.flops
    auto = held("auto", accumulate="auto")
    assert (auto.precision, auto.portion) == ("fp32", full.portion)


def test_class_features_in_chunks_hold_less(tmp_path: Path) -> None:
    def held(chunk: int) -> Plan:
        changes = {"student": clip(tmp_path, "prompts"), "train": {"batch_size": 1, "class_chunk": chunk}}
        return planned(run_parts.recipe(tmp_path, **changes))

    whole, chunked = held(0), held(1)
    assert whole.activations and chunked.activations and chunked.activations < 0.7 * whole.activations
    assert whole.flops and chunked.flops
    assert chunked.flops["class features"] > 1.2 * whole.flops["class features"]  # all but the last are encoded twice


def test_another_machine_s_device(tmp_path: Path) -> None:
    made = run_parts.recipe(tmp_path, train={"device": "cuda:7"})
    found = estimated(made, default_registry().with_files(made.plugin_hashes))
    assert found.precision == "bf16" and found.rate is None and found.seconds_per_step is None and found.flops


def test_seconds_are_flops_at_a_rate(tmp_path: Path) -> None:
    made = run_parts.recipe(tmp_path)
    found = estimated(made, default_registry().with_files(made.plugin_hashes))
    assert found.rate and found.flops and found.rate > 1e8
    assert found.seconds_per_step == sum(found.flops.values()) / found.rate == found.to_json()["seconds_per_step"]


def test_few_shots_that_are_not_there_are_so_few(tmp_path: Path) -> None:
    made = run_parts.recipe(tmp_path, data={"use": "folder", "root": "/no/such", "shots": 4, "size": 64})
    found = planned(made)
    assert (found.images, found.classes, found.side) == (4000, 1000, 64)
    assert "/no/such" in found.missing[0] and "1,000 classes of 4 images" in found.missing[0]


def test_data_that_is_not_there_is_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise MissingData("the folder is not there")

    monkeypatch.setattr(ToyDataset, "split", missing)
    made = run_parts.recipe(tmp_path, student=clip(tmp_path, "lora"), train={"batch_size": 4})
    found = planned(made)
    assert len(found.missing) == 1 and "the folder is not there" in found.missing[0]
    assert (found.images, found.side) == (1_281_167, 224) and found.steps == 4 and found.activations


@pytest.mark.parametrize("fault", ["one class", "not a folder"])
def test_data_that_cannot_be_used_is_an_error(tmp_path: Path, fault: str) -> None:
    root = tmp_path / "data"
    if fault == "one class":
        (root / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / "cat" / "one.png")
    else:
        root.write_text("an archive")
    with pytest.raises(DataError, match=fault.replace("one class", "class")) as error:
        planned(run_parts.recipe(tmp_path, data={"use": "folder", "root": str(root), "size": 16}))
    assert not isinstance(error.value, MissingData)


def taught(folder: Path, **changes: Any) -> Plan:
    """Five epochs of two steps, with a teacher that is asked about clean images in each."""
    teacher = {"use": "clip", **Parts(folder, TINY).source, **changes.pop("teacher", {})}
    train = {"steps": None, "epochs": 5, "batch_size": 30, **changes.pop("train", {})}
    made = {"student": clip(folder, "prompts"), "strategy": {"use": "drifting"}, "teachers": {"clean": teacher}}
    return planned(run_parts.recipe(folder, **made, train=train, **changes))


def test_what_is_kept_of_teachers_is_paid_in_the_first_epoch(tmp_path: Path) -> None:
    off, kept = (taught(tmp_path, train={"cache_teachers": how}) for how in ("off", "memory"))
    assert off.first and off.last and off.flops and kept.flops and off.kept == {}
    assert (kept.first, kept.last, kept.steps, kept.per_epoch) == (off.first, off.last, 10, 2)
    asked = off.first["clean teacher"]
    assert off.flops["clean teacher"] == asked > 0 and kept.kept == {"clean teacher": asked}
    assert kept.flops["clean teacher"] == pytest.approx(asked * 2 / 10)
    assert {n: f for n, f in kept.flops.items() if n != "clean teacher"} == {
        n: f for n, f in off.flops.items() if n != "clean teacher"
    }
    assert taught(tmp_path, train={"accumulate": 3}).kept["clean teacher"] == pytest.approx(asked)
    assert kept.to_json()["flops_of_first_epoch_only"] == kept.kept


GONE: dict[str, Any] = {"use": "folder", "root": "/no/such", "shots": 1, "size": 16}
NOT_KEPT: dict[str, dict[str, Any]] = {
    "one epoch": {"train": {"epochs": 1}},
    "too large": {"train": {"cache_limit": 64}},
    "it learns": {"teacher": {**STUDENTS["prompts"], "train": True}},
    "augmented": {"data": {**GONE, "augment": "crop-flip"}},
}


@pytest.mark.parametrize("why", NOT_KEPT)
def test_what_is_not_kept_is_paid_in_every_step(tmp_path: Path, why: str) -> None:
    found = taught(tmp_path, **NOT_KEPT[why])
    assert found.kept == {} and found.first and found.flops == found.first


def test_who_is_not_asked_about_clean_images_keeps_nothing(tmp_path: Path) -> None:
    source = {"use": "clip", **Parts(tmp_path, TINY).source}
    teachers = {"clean": source, "robust": source}
    train = {"steps": None, "epochs": 2, "batch_size": 30}
    made = {"student": clip(tmp_path, "prompts"), "strategy": {"use": "mmt-ard"}, "teachers": teachers}
    found = planned(run_parts.recipe(tmp_path, **made, train=train))
    assert found.kept.keys() == {"clean teacher"} and found.first and found.first["robust teacher"] > 0


def test_the_first_step_and_the_last_are_counted_apart(tmp_path: Path) -> None:
    source = {"use": "clip", **Parts(tmp_path, TINY).source}
    changes = {"student": clip(tmp_path, "prompts"), "strategy": {"use": "iad"}, "teachers": {"robust": source}}
    found = planned(run_parts.recipe(tmp_path, **changes, train={"steps": 5, "batch_size": 12}))
    assert found.first and found.last and found.flops
    first, last = sum(found.first.values()), sum(found.last.values())
    assert first < last and sum(found.flops.values()) == pytest.approx((first + last) / 2)
    told = found.to_json()
    assert told["flops_of_first_step"] == found.first and told["flops_of_last_step"] == found.last


def test_a_teacher_that_is_not_there_is_told(tmp_path: Path) -> None:
    teachers = {"clean": {"use": "checkpoint", "path": "/no/such.safetensors"}}
    made = run_parts.recipe(tmp_path, student=clip(tmp_path, "lora"), teachers=teachers, strategy={"use": "apd"})
    found = planned(made)
    assert len(found.missing) == 1 and "/no/such.safetensors" in found.missing[0]
    assert found.sizes.keys() == {"student"} and found.activations is None and "teachers" in found.unknown


def test_a_part_that_needs_values_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ToyAttack.run

    def peeking(self: Any, problem: Any, *given: Any) -> Any:
        problem.labels.tolist()
        return run(self, problem, *given)

    monkeypatch.setattr(ToyAttack, "run", peeking)
    found = planned(run_parts.recipe(tmp_path, student=clip(tmp_path, "lora")))
    assert found.activations is None and found.flops is None and "looks at values" in found.unknown
    assert found.sizes["student"][0] > 0
