"""Signs of failure.

- Each sign is told on a run that was built to provoke it, and on that run no other; once, with a value beyond its
  threshold, and not by a probe alone. Numbers that would show it less clearly, or on too few samples, are silent.
- What a run shows of itself changes neither its weights nor its probes. Without probes nothing is read.
- Passes are those that a `Watch` counts, and no probe's; the finished run says how many there were. (That a run
  taken up says the same as one that was never cut off, test_resume.py shows.)
- Accuracy under the training attack is what the student said anyway of what the attack returned.
- Shipped reporters tell signs and the numbers that they are read from.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import run_parts
import torch
import yaml
from advdistill_reporters.configs import Console
from advdistill_reporters.console import ConsoleReporter
from advdistill_reporters.jsonl import JsonlReporter
from advdistill_reporters.tensorboard import TensorBoardReporter
from torch import Tensor

from advdistill.engine import build, fit, timing
from advdistill.engine.build import Parts
from advdistill.engine.count import Count
from advdistill.engine.data import read
from advdistill.engine.events import Probed, RunStarted, Symptom
from advdistill.engine.examine import Examiner
from advdistill.engine.folder import RunFolder
from advdistill.engine.noise import Noise
from advdistill.engine.signatures import Glance, Signatures, effective_rank
from advdistill.engine.step import Step
from advdistill.engine.types import Clock
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import Recipe, load_recipe

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


# Runs that provoke them, on the digits and, where that does, on toys

CLEAN, ROBUST = "advdistill_demo:clean.safetensors", "advdistill_demo:robust.safetensors"
STRONG = {"probe": {"limit": 60, "attack": {"use": "pgd", "steps": 5}}}
NO_TABLE = {"undefended": False, "teachers": False, "protocols": [{"name": "clean", "limit": 10}]}


def digits(folder: Path, base: str, every: int, **changes: Any) -> list[str]:
    """What a shipped recipe tells, so changed, without teachers' and final measurements."""
    path = folder / "run.yaml"
    evaluate = {**NO_TABLE, "every": every, **changes.pop("evaluate", {})}
    how = {"save": {"dir": str(folder / "run")}, "report": [{"use": "jsonl"}], "evaluate": evaluate}
    path.write_text(yaml.safe_dump({"extends": base, "name": "run", **how, **changes}))
    run_parts.train(load_recipe(path))
    told = run_parts.events(folder / "run", "symptom")
    assert all(event["step"] >= 2 * every for event in told)
    return [f"{event['name']} {event['who']}" for event in told]


def test_a_teacher_that_listens_to_its_student_too_much(tmp_path: Path) -> None:
    told = digits(
        tmp_path,
        "apd_digits",
        3,
        strategy={"beta": 100.0},
        train={"steps": 9, "epochs": 0},
        evaluate={"probe": {"attack": {"use": "fgsm"}}},
    )
    assert told == ["teacher-forgets clean teacher"]


def test_an_attack_that_is_far_too_weak(tmp_path: Path) -> None:
    made = run_parts.recipe(
        tmp_path,
        attack={"use": "pgd", "steps": 1, "step": "0.1/255", "random_start": False},
        threat={"eps": "16/255"},
        optim={"lr": 0.03},
        train={"steps": 24, "batch_size": 60},
        evaluate={"every": 6, "probe": {"limit": 60, "attack": {"use": "toy"}}},
    )
    run_parts.train(made)
    assert [event["name"] for event in run_parts.events(tmp_path / "run", "symptom")] == ["not-robust"]


def test_a_learning_rate_that_ruins_the_tower(tmp_path: Path) -> None:
    told = digits(
        tmp_path,
        "quickstart",
        3,
        teachers=None,
        strategy={"use": "adversarial-ce", "weighting": None, "slope": None},
        attack={"steps": 1},
        optim={"lr": 0.3, "schedule": {"warmup": 0}},
        train={"steps": 6},
    )
    assert told == ["one-class student", "features-collapse student"]


def test_prompts_that_get_no_gradient(tmp_path: Path) -> None:
    """Visual tokens so large that the tower's norms leave next to nothing of their gradient."""
    told = digits(tmp_path, "adv_vlp_digits", 2, student={"std": 50.0}, train={"steps": 4, "epochs": 0})
    assert told == ["starved-modality student"]


def test_a_robust_student_that_learns_to_withstand_a_weak_attack(tmp_path: Path) -> None:
    told = digits(
        tmp_path,
        "quickstart",
        4,
        threat={"eps": "16/255"},
        data={"shift": 6},
        teachers=None,
        student={"model": "advdistill_demo:large.json", "weights": ROBUST},
        strategy={"use": "adversarial-ce", "weighting": None, "slope": None},
        attack={"steps": 1, "step": "0.5/255"},
        optim={"lr": 5e-4, "schedule": {"use": "constant", "warmup": 6}},
        train={"steps": 16},
        evaluate=STRONG,
    )
    assert told == ["catastrophic-overfitting student"]


def test_a_robust_teacher_that_is_not(tmp_path: Path) -> None:
    told = digits(
        tmp_path,
        "quickstart",
        2,
        threat={"eps": "16/255"},
        teachers={"robust": {"path": "advdistill_demo:small.safetensors"}},
        train={"steps": 4},
    )
    assert told == ["teacher-fooled robust teacher"]


# What watching costs, and what it leaves alone

WATCHED = {"every": 2, "probe": {"limit": 12}}


def learning(folder: Path, name: str, **changes: Any) -> Recipe:
    """A toy run with a teacher that learns from its student."""
    how = {"teachers": {"clean": {"use": "toy", "train": True}}, "strategy": {"use": "drifting"}}
    return run_parts.recipe(folder, name, **{**how, "evaluate": WATCHED, **changes})


def test_watching_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_parts.train(learning(tmp_path, "watched"))
    run_parts.train(learning(tmp_path, "blind", evaluate={"every": 0}))
    assert run_parts.same(*(run_parts.tensors(tmp_path / name) for name in ("watched", "blind")))

    def nothing(self: Examiner, *_: Any) -> Glance:
        return Glance(LABELS, LABELS, None, Count(1, 2), None)

    monkeypatch.setattr(Examiner, "_looked", nothing)
    run_parts.train(learning(tmp_path, "incurious"))
    one, other = (
        [
            {key: event[key] for key in ("step", "clean", "robust")}
            for event in run_parts.events(tmp_path / name, "probed")
        ]
        for name in ("watched", "incurious")
    )
    assert one == other and len(one) == 3


def test_what_a_run_watches_and_took(tmp_path: Path) -> None:
    """A batch of 20: two attack steps, then the student once; the teacher once, where its gradient ends."""
    run_parts.train(learning(tmp_path, "run"))
    events = run_parts.events(tmp_path / "run", "probed")
    assert not events[0]["passes"] and "training attack" not in events[0]["watched"]
    for event in events:
        assert {"largest class", "effective rank", "clean teacher clean"} <= event["watched"].keys()
    step = {"student": {"forward": 60, "backward": 60}, "clean teacher": {"forward": 20, "backward": 20}}
    took = {who: {way: 4 * images for way, images in ways.items()} for who, ways in step.items()}
    assert events[-1]["passes"] == took
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert cost["passes"] == took and cost["steps"] == 4 and cost["seconds"] > 0


def test_passes_are_those_that_a_watch_counts(tmp_path: Path) -> None:
    made = learning(tmp_path, "run")
    folder = RunFolder(made, resume=False, overwrite=False, main=False)
    run = fit.Run(made, default_registry().with_files(made.plugin_hashes), folder, lambda event: None)
    batch = next(run.batches())
    with timing.watched(lambda: 0.0) as watch, timing.counted() as passes:
        run.take(batch)
    assert passes == watch.passes and sum(passes.values())


def test_a_run_without_probes_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hits", "shown"):
        monkeypatch.delattr(Step, name)
    run_parts.train(learning(tmp_path, "run", evaluate={"every": 0}))


def test_accuracy_under_the_training_attack(tmp_path: Path) -> None:
    """What the student said of the images that were attacked, each counted once, however often it is asked."""
    parts = run_parts.build(learning(tmp_path, "run"))
    batch = next(iter(read(parts.splits("train"), [list(range(12))])))
    s = Step(
        batch,
        Clock(0, 1, 0),
        student=parts.student,
        teachers=parts.teachers,
        attack=parts.attack,
        threat=parts.threat,
        noise=Noise(0, "train", 0, batch.samples),
    )
    images = s.attack()
    assert s.hits().tolist() == [0, 0] and not s.shown()
    s.teacher("clean")(s.images).logits, s.student(s.images).logits
    said = s.student(images)
    assert s.hits().tolist() == [0, 0] and not s.shown()
    right = float((said.logits.argmax(1) == batch.labels).sum())
    assert len(s.teacher("clean")(images).log_probs) == 12
    assert s.hits().tolist() == [right, 12] and s.shown() == {"clean"}
    s.forget()
    assert len(s.student(images).logits) == 12
    assert s.hits().tolist() == [0, 0]
    # Only some are attacked: the others are clean images.
    rows = torch.tensor([1, 5, 6])
    said = s.student(s.attack(rows=rows))
    right = float((said.logits.argmax(1) == batch.labels)[rows].sum())
    assert s.hits().tolist() == [right, 3]


def test_modalities_are_what_is_learned(tmp_path: Path) -> None:
    names = {}
    for recipe in ("apd_digits", "apd_digits_text", "fap_digits", "quickstart"):
        model = build.model(default_registry(), load_recipe(recipe).student)
        names[recipe] = model.modalities()
        assert {name for some in names[recipe].values() for name in some} <= model.learned().keys()
    assert names["apd_digits"] == {"text": ["text.prompts"], "visual": ["visual.prompts"]}
    assert all(len(names[recipe]) < 2 for recipe in ("apd_digits_text", "fap_digits", "quickstart"))


def test_reporters_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock, written = Clock(8, 40, 0), []

    class Writer:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            return lambda *given: written.append((name, *given))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    for reporter in (ConsoleReporter(Console(plain=True)), JsonlReporter(None), TensorBoardReporter(None)):
        reporter.handle(RunStarted("run", tmp_path, 40, 0, {}))
        reporter.handle(Probed(clock, Count(9, 10), None, {"largest class": 0.9}))
        reporter.handle(Symptom(clock, "one-class", "student", 0.9, 0.55, "90 % are one class", "lower optim.lr"))
        reporter.close()
    assert "symptom: 90 % are one class (step 8); lower optim.lr" in capsys.readouterr().err
    (probe,), (line,) = (run_parts.events(tmp_path, kind) for kind in ("probed", "symptom"))
    assert probe["watched"] == {"largest class": 0.9}
    assert line["name"] == "one-class" and line["value"] == 0.9 and line["advice"] == "lower optim.lr"
    assert ("add_scalar", "watched/largest class", 0.9, 8) in written
    assert ("add_text", "symptoms/one-class", "90 % are one class; lower optim.lr", 8) in written
