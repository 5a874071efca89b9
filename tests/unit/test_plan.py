"""What is pinned here:

- A plan counts the very parameters that the run trains and holds, for every kind of student, and its steps.
- It opens no weights file: paths that lead nowhere do not matter, and nothing is computed with values.
- What graphs hold is positive, grows in proportion to the portion, and shrinks where a batch is divided; what is
  frozen costs no gradient.
- Data that is not there is assumed, and said to be; a part that needs values is said to need them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
from clip_parts import Parts, settings

from advdistill.engine import build
from advdistill.engine.plan import Plan, plan
from advdistill.errors import DataError
from advdistill.hooks.registry import default_registry
from advdistill.testing import ToyAttack, ToyDataset

TINY = settings({"layers": 2, "width": 16, "head_width": 8}, {"layers": 2, "width": 16})
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


@pytest.mark.parametrize("kind", ["lora", "prompts", "tune"])
def test_no_weights_are_read(tmp_path: Path, kind: str) -> None:
    with_weights = planned(run_parts.recipe(tmp_path, student=clip(tmp_path, kind)))
    made = run_parts.recipe(tmp_path, student=clip(tmp_path, kind, "/no/such/weights.safetensors"))
    assert planned(made).to_json() == with_weights.to_json()
    assert with_weights.unknown == "" and with_weights.activations
    with pytest.raises(DataError, match="/no/such/weights"):
        run_parts.build(made)


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


def test_data_that_is_not_there_is_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise DataError("the folder is not there")

    monkeypatch.setattr(ToyDataset, "split", missing)
    made = run_parts.recipe(tmp_path, student=clip(tmp_path, "lora"), train={"batch_size": 4})
    found = planned(made)
    assert len(found.missing) == 1 and "the folder is not there" in found.missing[0]
    assert (found.images, found.side) == (1_281_167, 224) and found.steps == 4 and found.activations


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
    assert found.activations is None and "needs values" in found.unknown
    assert found.sizes["student"][0] > 0
