"""What is pinned here, beside the golden losses:

- Every knob does what it says: the direction of either KL, the temperature's square, the student's cross-entropy, the
  convex form; a weight of 0 asks nobody anything.
- Detached feedback reaches the teacher alone; feedback that is not detached reaches the student as well; the student's
  own loss never reaches the teacher.
- Alternating updates: one attack a batch, the student first, and the teacher hears the student as it then is. A run
  that fails between the two keeps what it saved last.
- Alternating with a teacher that does not learn, and a convex form with beta above 1, are told before anything runs.
- A teacher that follows the student is its moving average, survives a resume, and must be its twin.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
from advdistill_apd.configs import APD as Config
from advdistill_apd.strategy import APD
from pydantic import ValidationError
from torch import Tensor

from advdistill import Clock, Losses, Noise, Step, Threat, cross_entropy, kl
from advdistill.engine import fit
from advdistill.engine.data import Batch
from advdistill.engine.participant import Participant
from advdistill.errors import RecipeError, RunError
from advdistill.testing import ToyAttack, ToyConfig, ToyDataset, ToyModel
from advdistill.testing.toy import CLASSES


def scene(learning: bool = True) -> tuple[dict[str, Participant], Step]:
    """Twins that disagree a little, and a step over six images."""
    twins = {}
    for place, role in enumerate(("student", "clean")):
        model = ToyModel(ToyConfig(scale=3.0))
        with torch.no_grad():
            model.gain.mul_(1 + 0.3 * torch.linspace(-1, 1, len(model.gain)).roll(7 * place))
        twins[role] = Participant(model, CLASSES, learns=role == "student" or learning)
    split, samples = ToyDataset(None).split("train"), torch.arange(6)
    batch = Batch(torch.stack([split.load(i) for i in range(6)]), torch.tensor([0, 1, 2, 3, 5, 4]), samples)
    return twins, Step(batch, Clock(0, 1, 0), student=twins["student"], teachers={"clean": twins["clean"]},
                       attack=ToyAttack(None), threat=Threat("linf", 8 / 255),
                       noise=Noise(0, "test", 0, samples))  # fmt: skip


def reached(twins: dict[str, Participant]) -> set[str]:
    for twin in twins.values():
        twin.settle()
    return {
        role for role, twin in twins.items() for p in twin.trainable.values() if p.grad is not None and p.grad.any()
    }


# --- knobs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("student_first", [False, True])
def test_directions_and_temperatures(student_first: bool, squared: bool) -> None:
    direction = "student-first" if student_first else "teacher-first"
    strategy = APD(Config(student_kl=direction, feedback_kl=direction, temperature=2.0, temperature_squared=squared))
    _, s = scene()
    losses = strategy.step(s)
    teacher, student = s.teacher("clean")(s.images), s.student(strategy.adversarial(s))
    wanted = kl(student, teacher, 2.0) if student_first else kl(teacher, student, 2.0)
    for name in ("student", "feedback"):
        torch.testing.assert_close(losses.terms[name].value, wanted * (4 if squared else 1))


def test_student_cross_entropy_and_the_convex_form() -> None:
    strategy = APD(Config(beta=0.3, feedback_form="convex", student_ce_weight=0.5))
    _, s = scene()
    losses = strategy.step(s)
    said = cross_entropy(s.student(strategy.adversarial(s)), s.labels)
    torch.testing.assert_close(losses.weighted("student_ce"), 0.5 * said)
    torch.testing.assert_close(losses.weighted("teacher"), 0.7 * cross_entropy(s.teacher("clean")(s.images), s.labels))
    assert losses.terms["feedback"].weight == 0.3
    with pytest.raises(ValidationError, match=r"beta in \[0, 1\]"):
        Config(beta=1.5, feedback_form="convex")


def test_no_feedback_and_a_frozen_teacher_have_no_such_terms() -> None:
    assert set(APD(Config(beta=0)).step(scene()[1]).terms) == {"student", "teacher"}
    assert set(APD(Config()).step(scene(learning=False)[1]).terms) == {"student"}


@pytest.mark.parametrize("detach", [True, False])
def test_whom_each_term_reaches(detach: bool) -> None:
    wanted = {"student": {"student"}, "teacher": {"clean"}, "feedback": {"clean"} if detach else {"clean", "student"}}
    for name, who in wanted.items():
        twins, s = scene()
        APD(Config(feedback_detach=detach)).step(s).weighted(name).sum().backward()
        assert reached(twins) == who, name


# --- alternating -------------------------------------------------------------------------------------------------


class Attacks(ToyAttack):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__(None)
        self.calls = 0

    def run(self, problem: Any, threat: Any, noise: Any) -> Tensor:
        self.calls += 1
        return super().run(problem, threat, noise)


def test_taking_turns() -> None:
    twins, s = scene()
    s._attack = attack = Attacks()
    first, second = APD(Config(update_order="alternate")).phases
    losses = first(s)
    assert set(losses.terms) == {"student"}
    losses.total().mean().backward()
    assert reached(twins) == {"student"}
    s.forget()
    with torch.no_grad():
        twins["student"].model.gain.mul_(1.5)
    twins["student"].discard()
    adversarial = APD(Config()).adversarial(s)
    feedback = second(s).terms["feedback"].value
    fresh = twins["student"].logits(adversarial)
    torch.testing.assert_close(feedback, kl(fresh, twins["clean"].logits(s.images)))
    assert attack.calls == 1


def online(tmp_path: Path, name: str = "run", **changes: Any) -> Any:
    how = {"use": "apd", "update_order": "alternate"}
    teachers = {"clean": {"use": "toy", "train": True}}
    return run_parts.recipe(tmp_path, name, **{"strategy": how, "teachers": teachers, **changes})


def test_a_run_that_takes_turns(tmp_path: Path) -> None:
    run_parts.train(online(tmp_path))
    (first, *_) = run_parts.events(tmp_path / "run", "step_done")
    losses = first["losses"]
    assert losses["loss"] == pytest.approx(losses["student"] + losses["teacher"] + losses["feedback"])


def test_a_half_taken_step_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, calls = APD.teacher, []

    def failing(strategy: APD, s: Step) -> Losses:
        calls.append(1)
        losses = teacher(strategy, s)
        return losses if len(calls) < 3 else Losses(teacher=losses.terms["teacher"].value * torch.inf)

    run_parts.train(online(tmp_path, "two", train={"steps": 2}, optim={"schedule": {"use": "constant"}}))
    monkeypatch.setattr(APD, "teacher", failing)
    made = online(tmp_path, save={"every": 2}, optim={"schedule": {"use": "constant"}})
    with pytest.raises(RunError, match="not finite at step 3") as told:
        run_parts.train(made)
    assert "what was saved last" in told.value.hint
    resumed = run_parts.tensors(tmp_path / "run", "resume.safetensors")
    two = run_parts.tensors(tmp_path / "two")
    assert torch.equal(resumed["learned.gain"], two["gain"])


def test_taking_turns_with_somebody_who_does_not_learn_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="update_order: alternating updates need a teacher that learns"):
        online(tmp_path, teachers={"clean": {"use": "toy"}})


# --- a teacher that follows --------------------------------------------------------------------------------------


def following(folder: Path, name: str, **changes: Any) -> Any:
    teachers = {"clean": {"use": "toy", "ema": 0.75}}
    return run_parts.recipe(folder, name, **{"strategy": {"use": "apd"}, "teachers": teachers, **changes})


def test_a_teacher_that_follows_is_the_students_average(tmp_path: Path) -> None:
    average: dict[str, Tensor] = dict.fromkeys(("gain", "context"), torch.zeros(()))
    for steps in (1, 2, 3):
        run_parts.train(
            following(tmp_path, f"run{steps}", train={"steps": steps}, optim={"schedule": {"use": "constant"}})
        )
        found = run_parts.tensors(tmp_path / f"run{steps}")
        start = {"gain": torch.ones(192), "context": torch.zeros(192)}
        for name in average:
            average[name] = 0.75 * (start[name] if steps == 1 else average[name]) + 0.25 * found[name]
            torch.testing.assert_close(found[f"teacher.clean.{name}"], average[name])
            assert not torch.equal(found[f"teacher.clean.{name}"], found[name])


def test_a_teacher_that_follows_survives_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = following(tmp_path, "whole")
    run_parts.train(whole)
    cut = following(tmp_path, "cut", save={"every": 2})

    save = fit.Run._save

    def save_and_stop(run: fit.Run) -> None:
        save(run)
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(fit.Run, "_save", save_and_stop)
        run_parts.train(cut)
    run_parts.train(cut, resume=True)
    assert run_parts.same(run_parts.tensors(tmp_path / "cut"), run_parts.tensors(tmp_path / "whole"))


def test_who_follows_must_be_a_twin_and_not_train(tmp_path: Path) -> None:
    for other in ({"learns": "text"}, {"scale": 3.0}):  # other tensors; the same tensors in another model
        with pytest.raises(RecipeError, match="must be its twin"):
            following(tmp_path, "run", teachers={"clean": {"use": "toy", "ema": 0.5, **other}})
    with pytest.raises(RecipeError, match="follows the student"):
        following(tmp_path, "run", teachers={"clean": {"use": "toy", "ema": 0.5, "train": True}})
    with pytest.raises(RecipeError, match=r"teachers\.clean\.ema"):
        following(tmp_path, "run", teachers={"clean": {"use": "toy", "ema": 1.5}})
