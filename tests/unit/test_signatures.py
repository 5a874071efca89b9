"""Signs of failure.

- Each sign is told on a run that was built to provoke it, once, with a value beyond its threshold, and not by a probe
  alone; and numbers that would show it less clearly, or on too few samples, are silent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
from torch import Tensor

from advdistill.engine.build import Parts
from advdistill.engine.count import Count
from advdistill.engine.signatures import Glance, Signatures, effective_rank
from advdistill.engine.types import Clock

N = 100
LABELS = torch.arange(N) % 10


class Scene:
    """A run of probes without a run: what each of them sees is made up."""

    def __init__(self, parts: Parts) -> None:
        self.signs, self.step = Signatures(parts, watching=True), -10
        self.signs.past.shown = ["clean"]

    def probe(
        self,
        *,
        loss: float = 1.0,
        attacked: float = 0.5,
        clean: int = 90,
        robust: int = 40,
        said: Tensor = LABELS,
        features: Tensor | None = None,
        **teachers: Any,
    ) -> tuple[list[str], dict[str, float]]:
        """Signs told, and numbers."""
        self.step += 10
        if self.step:
            self.signs.attacked(100 * attacked, 100)
            self.signs.stepped(loss)
        glance = Glance(LABELS, said, features, Count(clean, N), first(robust), **teachers)
        watched, told = self.signs.probed(Clock(self.step, 100, 0), glance)
        assert all(symptom.message and symptom.advice for symptom in told)
        return [f"{symptom.name} {symptom.who}" for symptom in told], watched


def first(right: int, total: int = N) -> Tensor:
    """(total,) bool: the first so many."""
    return torch.arange(total) < right


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(run_parts.build(run_parts.recipe(tmp_path)))


def told(scene: Scene, *probes: dict[str, Any]) -> list[list[str]]:
    """What each probe tells, the first one at step 0."""
    return [scene.probe(**probe)[0] for probe in probes]


def test_a_teacher_that_forgets(scene: Scene) -> None:
    def right(count: int) -> dict[str, Any]:
        return {"teachers": {"clean": first(count)}}

    assert told(scene, right(95), right(85), right(85), right(80)) == [[], [], ["teacher-forgets clean teacher"], []]


def test_a_teacher_that_may_only_seem_to_forget(scene: Scene) -> None:
    """Four of a hundred samples lost, two others won: this may be chance."""
    now = first(95)
    now[:4], now[97:99] = False, True
    probes = [{"teachers": {"clean": right}} for right in (first(95), now, now, now)]
    assert told(scene, *probes) == [[], [], [], []]


def test_a_student_that_learns_something_else_than_robustness(scene: Scene) -> None:
    bad = {"loss": 0.4, "robust": 1}
    assert told(scene, {"robust": 1}, {"robust": 1, "loss": 1.0}, bad, bad, bad)[2:] == [[], ["not-robust student"], []]


@pytest.mark.parametrize(
    "bad", [{"loss": 0.95, "robust": 1}, {"loss": 0.4, "robust": 2}, {"loss": 0.4, "robust": 1, "clean": 3}]
)
def test_a_student_that_is_only_slow(scene: Scene, bad: dict[str, Any]) -> None:
    """The loss has not fallen; a few are withstood; clean images, of many classes perhaps, are no better known."""
    assert not any(told(scene, {"robust": 0}, {"robust": 0}, bad, bad, bad))


def test_predictions_that_collapse(scene: Scene) -> None:
    bad = {"said": torch.where(first(75), 3, LABELS)}
    assert told(scene, bad, {}, bad, {}, bad, bad) == [[], [], [], [], [], ["one-class student"]]
    assert scene.probe(**bad)[1]["largest class"] == 0.77


def test_a_class_that_is_common(scene: Scene) -> None:
    """Six of ten, by what 100 samples can tell; or as many as belong to it."""
    some = {"said": torch.where(first(56), 3, LABELS)}
    assert not any(told(scene, {}, some, some))
    scene.signs.past.present.clear()
    glance = Glance(torch.where(first(70), 3, LABELS), torch.where(first(75), 3, LABELS), None, Count(90, N), None)
    for step in (40, 50, 60):
        assert not scene.signs.probed(Clock(step, 100, 0), glance)[1]


def test_features_that_collapse(scene: Scene) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(N, 32, generator=generator)
    narrow = torch.randn(N, 2, generator=generator) @ torch.randn(2, 32, generator=generator)
    classes = torch.eye(32)[LABELS] + 0.01 * wide
    bad = {"features": narrow}
    # Ten classes stand in nine dimensions when all goes well, however many there were at the start.
    order = [{"features": each} for each in (wide, classes, classes)]
    assert told(scene, *order, bad, bad) == [[], [], [], [], ["features-collapse student"]]
    assert told(scene, {"features": torch.full((N, 32), torch.nan)}) == [[]]


def test_effective_rank() -> None:
    """Of k directions used alike it is k; centring takes one away."""
    corners = torch.eye(8).repeat(4, 1)
    assert effective_rank(corners) == pytest.approx(7.0)
    assert effective_rank(5 * corners) == pytest.approx(7.0)
    assert effective_rank(torch.ones(9, 4)) == 0.0


def test_catastrophic_overfitting(scene: Scene) -> None:
    good, bad = {"attacked": 0.6, "robust": 45}, {"attacked": 0.9, "robust": 10}
    assert told(scene, {}, good, bad, bad, bad) == [[], [], [], ["catastrophic-overfitting student"], []]


@pytest.mark.parametrize("bad", [{"attacked": 0.5, "robust": 10}, {"attacked": 0.9, "robust": 30}])
def test_a_student_that_gets_worse_altogether_or_only_a_little(scene: Scene, bad: dict[str, Any]) -> None:
    assert not any(told(scene, {}, {"attacked": 0.6, "robust": 45}, bad, bad))


def test_a_teacher_that_is_fooled(scene: Scene) -> None:
    bad = {"crafted": {"clean": Count(30, 90)}}
    assert told(scene, {}, bad, bad, bad) == [[], [], ["teacher-fooled clean teacher"], []]
    few = {"crafted": {"robust": Count(3, 9)}}
    assert not any(told(scene, few, few))
