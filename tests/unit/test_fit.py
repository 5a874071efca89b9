"""What is pinned here:

- A batch worked through in portions gives the update of the whole batch, learning class features included.
- A loss or gradient that is not finite stops the run, names what it was, and leaves the last good state on disk;
  weights that have become infinite never replace it.
- SIGTERM finishes the step in hand, saves, and says how to go on; exit code 130.
- A folder belongs to one run at a time; a run in it is never overwritten unasked; one that cannot be written is
  told. A run that cannot begin changes nothing. The processes that a killed run leaves behind do not hold it.
- A full disk while saving stops the run; what was saved before is whole, and the run can go on from it.
- The radius grows, the learning rate warms up and falls, groups have their own rates, only matrices decay.
- `best.safetensors` holds the weights that the probe liked best, and measuring them leaves the last ones alone.
- Alternating phases are one optimizer update each.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch

from advdistill import Losses, Threat, cross_entropy
from advdistill.engine import examine, fit, optim
from advdistill.engine.checkpoint import read
from advdistill.engine.data import Batch
from advdistill.engine.distributed import Lost
from advdistill.engine.evaluate import Results
from advdistill.engine.examine import Examiner
from advdistill.engine.fit import Interrupted
from advdistill.engine.folder import RunFolder
from advdistill.engine.participant import Participant
from advdistill.errors import DataError, RunError
from advdistill.recipe.model import Optim, Schedule
from advdistill.testing import ToyAttack, ToyModel

TEACHER = {"clean": {"use": "toy", "train": True}}
DRIFTING: dict[str, Any] = {"strategy": {"use": "drifting"}, "teachers": TEACHER}


def all_finite(folder: Path, name: str) -> bool:
    return all(t.isfinite().all() for t in run_parts.tensors(folder, name).values() if t.is_floating_point())


# --- the update --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("portions", [4, 3])  # of 20 images: 5 5 5 5, and 7 7 6
def test_portions_give_the_update_of_the_batch(tmp_path: Path, portions: int) -> None:
    train = {"steps": 2, "batch_size": 20}
    sgd = {"use": "sgd", "lr": 10.0}  # adam's first steps would hide the scale of a gradient
    run_parts.train(run_parts.recipe(tmp_path, "whole", train=train, optim=sgd, **DRIFTING))
    train["accumulate"] = portions
    made = run_parts.write(tmp_path, "split", train={**train, "accumulate": 1}, optim=sgd, **DRIFTING)
    recipe = run_parts.load_recipe(made)
    object.__setattr__(recipe, "train", recipe.train.model_copy(update=train))  # 3 would be refused
    run_parts.train(recipe)
    whole, split = (run_parts.tensors(tmp_path / name) for name in ("whole", "split"))
    assert {"gain", "context", "teacher.clean.gain", "teacher.clean.context"} == whole.keys()
    for name, tensor in whole.items():
        start = torch.ones_like(tensor) if name.endswith("gain") else torch.zeros_like(tensor)
        assert (tensor - start).abs().max() > 1e-3, name
        torch.testing.assert_close(split[name], tensor, rtol=0, atol=1e-6)
    first, second = (run_parts.events(tmp_path / name, "step_done") for name in ("whole", "split"))
    for one, other in zip(first, second, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], abs=1e-5)


def test_phases_are_updates_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = {"train": {"steps": 1}, "optim": {"use": "sgd", "lr": 10.0, "momentum": 0}}
    made = run_parts.recipe(tmp_path, **once, attack=None, strategy={"use": "clean"})
    run_parts.train(made)
    strategy = type(run_parts.build(made).strategy)

    def half(self: Any, s: Any) -> Losses:
        return Losses(half=cross_entropy(s.student(s.images), s.labels))

    def other(self: Any, s: Any) -> Losses:
        return Losses(other=cross_entropy(s.student(s.images), s.labels))

    monkeypatch.setattr(strategy, "phases", property(lambda self: (half.__get__(self), other.__get__(self))))
    run_parts.train(run_parts.recipe(tmp_path, "phased", **once, attack=None, strategy={"use": "clean"}))
    one, two = (run_parts.tensors(tmp_path / name)["gain"] - 1 for name in ("run", "phased"))
    assert 1.5 < (two.norm() / one.norm()).item() < 2.5
    (done,) = run_parts.events(tmp_path / "phased", "step_done")
    assert done["losses"]["other"] < done["losses"]["half"]


def test_clip_norm_bounds_the_update(tmp_path: Path) -> None:
    plain = {"use": "sgd", "momentum": 0.0, "lr": 1.0}
    run_parts.train(run_parts.recipe(tmp_path, train={"steps": 1}, optim={**plain, "clip_norm": 1e-3}))
    moved = run_parts.tensors(tmp_path / "run")
    size = torch.cat([moved["gain"] - 1, moved["context"]]).norm().item()
    assert size == pytest.approx(1e-3, rel=1e-2)


# --- going wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "named", "spared"), [("loss", "loss, poison", "healthy"),
                                                        ("gradient", "gradient norm", "poison")])  # fmt: skip
def test_what_is_not_finite_stops_the_run_and_is_named(tmp_path: Path, where: str, named: str, spared: str) -> None:
    made = run_parts.recipe(tmp_path, attack=None, strategy={"use": "poisoned", "step": 2, "where": where})
    with pytest.raises(RunError, match=f"not finite at step 3: {named}") as told:
        run_parts.train(made)
    folder = tmp_path / "run"
    assert told.value.exit_code == 1 and spared not in told.value.message
    assert "optim.lr" in told.value.hint and str(folder) in told.value.hint
    facts, _ = read(folder / "resume.safetensors")
    assert facts["step"] == 2
    assert all_finite(folder, "last.safetensors") and all_finite(folder, "resume.safetensors")
    good = run_parts.recipe(tmp_path, "good", train={"steps": 4}, attack=None, strategy={"use": "poisoned", "step": 9})
    run_parts.train(good)
    losses = [run_parts.events(tmp_path / name, "step_done")[:2] for name in ("run", "good")]
    assert losses[0] == losses[1]
    assert run_parts.events(folder, "run_stopped")[0]["reason"] == told.value.message


@pytest.mark.parametrize("every", [1, 2, 0])  # resume points before the ruin: after steps 1 and 2; after step 2; none
def test_weights_that_are_not_finite_replace_nothing_that_was_saved(tmp_path: Path, every: int) -> None:
    rates = {"use": "sgd", "lr": 1e37, "schedule": {"warmup": 2, "warmup_lr": 1e-3}}
    made = run_parts.recipe(tmp_path, strategy={"use": "poisoned", "step": 2, "where": "weights"}, attack=None,
                            save={"every": every}, train={"steps": 6}, optim=rates)  # fmt: skip
    when = "after step 3: weights" if every == 1 else "at step 4: loss"
    with pytest.raises(RunError, match=f"not finite {when}") as told:
        run_parts.train(made)
    assert "what was saved last is in" in told.value.hint
    folder = tmp_path / "run"
    assert (folder / "resume.safetensors").exists() == bool(every)
    for path in folder.glob("*.safetensors"):
        assert read(path)[0].get("step", 2) == 2 and all_finite(folder, path.name)


def test_an_attack_that_meets_numbers_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, run = [], ToyAttack.run

    def overflowing(self: Any, *given: Any) -> Any:
        calls.append(1)
        return run(self, *given) * (torch.inf if len(calls) == 3 else 1)

    monkeypatch.setattr(ToyAttack, "run", overflowing)
    with pytest.raises(RunError, match="ToyAttack returned pixels that are not finite, at step 3") as told:
        run_parts.train(run_parts.recipe(tmp_path))
    assert "the state after step 2 is in" in told.value.hint
    assert read(tmp_path / "run" / "resume.safetensors")[0]["step"] == 2


# --- being stopped -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    run_parts.train(run_parts.recipe(tmp_path, "whole"))
    run, before = ToyAttack.run, signal.getsignal(number)
    calls = []

    def signalled(self: Any, *given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(number)
        return run(self, *given)

    monkeypatch.setattr(ToyAttack, "run", signalled)
    made = run_parts.recipe(tmp_path)
    with pytest.raises(Interrupted, match="step 2 of 4") as told:
        run_parts.train(made)
    folder = tmp_path / "run"
    assert told.value.exit_code == 130 and f"advdistill train --resume {folder}" in told.value.hint
    assert signal.getsignal(number) is before
    assert read(folder / "resume.safetensors")[0]["step"] == 2
    run_parts.train(made, resume=True)
    assert run_parts.same(run_parts.tensors(folder), run_parts.tensors(tmp_path / "whole"))


# --- the folder --------------------------------------------------------------------------------------------------


def test_one_run_at_a_time(tmp_path: Path) -> None:
    made, folder = run_parts.recipe(tmp_path), tmp_path / "run"
    folder.mkdir()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold, folder / ".lock"], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout and other.stdout.readline() == "1\n"
        for how in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(RunError, match="another run is writing") as told:
                run_parts.train(made, **how)
            assert "save.dir" in told.value.hint
        other.communicate("\n")
    run_parts.train(made)


def test_the_workers_of_a_killed_run_do_not_hold_its_folder(tmp_path: Path) -> None:
    made = run_parts.recipe(tmp_path)
    wait, release = os.pipe()
    killed = os.fork()
    if killed == 0:
        with RunFolder(made, resume=False, overwrite=False):
            if os.fork() == 0:
                os.close(release)
                os.read(wait, 1)  # like a worker that has not noticed yet
                os._exit(0)
            (tmp_path / "begun").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(killed, 0)
    assert (tmp_path / "begun").exists()
    run_parts.train(made, resume=True)
    os.close(release)
    os.close(wait)


def test_a_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    made = run_parts.recipe(tmp_path)
    run_parts.train(made)
    folder = tmp_path / "run"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RunError, match="a finished run") as told:
        run_parts.train(made)
    assert "--overwrite" in told.value.hint and "--resume" not in told.value.hint
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "results.json").unlink()
    with pytest.raises(RunError, match="not finished") as told:
        run_parts.train(made)
    assert f"--resume {folder}" in told.value.hint

    other = run_parts.recipe(tmp_path, seed=1, train={"steps": 2})
    run_parts.train(other, overwrite=True)
    assert read(folder / "last.safetensors")[0]["clock"]["steps"] == 2
    assert len(run_parts.events(folder, "step_done")) == 2
    assert "seed: 1" in (folder / "recipe.yaml").read_text()


def test_a_run_that_cannot_begin_changes_nothing(tmp_path: Path) -> None:
    run_parts.train(run_parts.recipe(tmp_path))
    folder = tmp_path / "run"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    teacher = {"clean": {"use": "checkpoint", "path": str(tmp_path / "gone.safetensors")}}
    for broken in ({**DRIFTING, "teachers": teacher}, {"evaluate": {"controls": {"it": "gone.safetensors"}}}):
        with pytest.raises(DataError, match=r"gone\.safetensors"):
            run_parts.train(run_parts.recipe(tmp_path, **broken), overwrite=True)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    made = run_parts.recipe(tmp_path, save={"dir": str(tmp_path / "file" / "run")})
    with pytest.raises(RunError, match="cannot write to") as told:
        run_parts.train(made)
    assert "save.dir" in told.value.hint


def test_a_full_disk_leaves_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_parts.train(run_parts.recipe(tmp_path, "whole", save={"every": 1}))
    made = run_parts.recipe(tmp_path, save={"every": 1})
    folder, sync = tmp_path / "run", os.fsync

    def full(file: int) -> None:
        # The disk fills up while the second resume point is written: `last` of step 2 stands, its twin does not.
        target = str(Path(f"/proc/self/fd/{file}").readlink())
        if ".resume" in target and (folder / "resume.safetensors").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left") as told:
        run_parts.train(made)
    assert told.value.exit_code == 1 and "as it was before is kept" in told.value.message and told.value.hint
    monkeypatch.undo()
    assert not list(folder.glob(".*partial"))
    assert read(folder / "resume.safetensors")[0]["step"] == 1
    run_parts.train(made, resume=True)
    assert run_parts.same(run_parts.tensors(folder), run_parts.tensors(tmp_path / "whole"))


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        made = run_parts.recipe(tmp_path, save={"dir": str(disk / "run"), "every": 1})
        run_parts.train(made)
        kept = (disk / "run" / "last.safetensors").read_bytes()
        (disk / "run" / "results.json").unlink()
        with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            while True:
                filler.write(b"0" * 512)
        with pytest.raises(RunError, match="No space left"):
            run_parts.train(made, resume=True)
        assert (disk / "run" / "last.safetensors").read_bytes() == kept
        (disk / "filler").unlink()
        run_parts.train(made, resume=True)
        assert (disk / "run" / "results.json").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_resuming_a_finished_run_changes_no_weight(tmp_path: Path) -> None:
    made = run_parts.recipe(tmp_path)
    run_parts.train(made)
    folder = tmp_path / "run"
    results, weights = (folder / "results.json").read_bytes(), run_parts.tensors(folder)
    run_parts.train(made, resume=True)
    assert (folder / "results.json").read_bytes() == results
    assert run_parts.same(run_parts.tensors(folder), weights)
    assert len(run_parts.events(folder, "step_done")) == 4


# --- schedules ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [3, 0.5])  # steps, or a share of all 6
def test_the_radius_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warmup: float) -> None:
    seen, run = [], ToyAttack.run

    def watching(self: Any, problem: Any, threat: Threat, noise: Any) -> Any:
        seen.append((threat.eps * 255, problem.threat.eps * 255))
        return run(self, problem, threat, noise)

    monkeypatch.setattr(ToyAttack, "run", watching)
    run_parts.train(run_parts.recipe(tmp_path, train={"steps": 6, "eps_warmup": warmup}))
    radii = [8 / 3, 16 / 3, 8, 8, 8, 8]
    assert [eps for eps, _ in seen] == pytest.approx(radii) == [eps for _, eps in seen]


def rates(steps: int = 10, **settings: Any) -> list[float]:
    return [optim.rate(Schedule(**settings), 2.0, step, steps) for step in range(steps)]


def test_learning_rates() -> None:
    cosine = rates(warmup=4)
    assert cosine[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert cosine[4] == pytest.approx(2.0) and cosine[7] == pytest.approx(1.0) and 0 < cosine[9] < 0.2
    assert all(a >= b for a, b in itertools.pairwise(cosine[4:]))
    assert rates(warmup=0.2, warmup_lr=0.1)[:3] == pytest.approx([0.1, 0.1, 2.0])
    assert rates(use="constant", warmup=2) == pytest.approx([1.0, 2.0, *[2.0] * 8])
    assert rates()[0] == pytest.approx(2.0)
    assert rates(warmup=10) == pytest.approx([0.2 * (i + 1) for i in range(10)])


def test_the_schedule_acts_before_the_step(tmp_path: Path) -> None:
    schedule = {"use": "constant", "warmup": 4}
    made = run_parts.recipe(tmp_path, optim={"lr": 0.08, "schedule": schedule}, train={"steps": 1, "batch_size": 60})
    run_parts.train(made)
    (done,) = run_parts.events(tmp_path / "run", "step_done")
    assert done["lr"] == {"student": pytest.approx(0.02)}
    # Adam's first step has the length of the learning rate.
    assert (run_parts.tensors(tmp_path / "run")["gain"] - 1).abs().max() == pytest.approx(0.02, rel=1e-3)


def test_groups_and_decay(tmp_path: Path) -> None:
    groups = {"clean": {"lr": 0.002, "weight_decay": 0.5}}
    made = run_parts.recipe(tmp_path, **DRIFTING, optim={"weight_decay": 0.1, "decay": "all", "groups": groups})
    learners = run_parts.build(made).learners
    found = {group["name"]: group for group in optim.optimizer(made.optim, learners).param_groups}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in found.items()} == {
        "student": (0.01, 0.1),
        "clean": (0.002, 0.5),
    }
    assert {id(p) for p in found["clean"]["params"]} == {id(p) for p in learners["clean"].trainable.values()}
    run_parts.train(made)
    assert run_parts.events(tmp_path / "run", "step_done")[0]["lr"] == {"student": 0.01, "clean": 0.002}

    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    learners["student"].trainable = {"matrix": matrix, "vector": vector}
    matrices = optim.optimizer(Optim(lr=1.0, weight_decay=0.1), {"student": learners["student"]}).param_groups
    assert [(g["params"][0].ndim, g["weight_decay"]) for g in matrices] == [(2, 0.1), (1, 0.0)]


# --- the best one ------------------------------------------------------------------------------------------------


def test_the_best_is_what_the_probe_liked_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, at_score = iter([0.1, 0.2, 0.9, 0.9, 0.3]), []

    def probe(self: Examiner, clock: Any, *watching: Any) -> float:
        model = self._parts.student.model
        assert isinstance(model, ToyModel)
        at_score.append(model.gain.detach().clone())
        return next(scores)

    monkeypatch.setattr(Examiner, "probe", probe)
    rows = run_parts.train(run_parts.recipe(tmp_path, evaluate={"every": 1, "select": "robust"}))
    folder = tmp_path / "run"
    assert torch.equal(run_parts.tensors(folder, "best.safetensors")["gain"], at_score[2])
    assert torch.equal(run_parts.tensors(folder)["gain"], at_score[-1])
    assert read(folder / "best.safetensors")[0]["clock"]["step"] == 2
    assert [row.subject for row in rows] == ["student", "student, best probe"]
    facts, _ = read(folder / "best.safetensors")
    assert [row["subject"] for row in facts["results"]] == ["student"]
    assert [row["subject"] for row in json.loads((folder / "results.json").read_text())] == [r.subject for r in rows]


def test_teachers_are_deployed_while_others_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an attack looks at in an evaluation computes in float32, by itself, whatever the training does."""
    asked, measure = [], examine.evaluate

    def listen(subject: str, participant: Participant, *given: Any, seen: Any, **how: Any) -> Results:
        teacher = seen("clean")._participant
        asked.append((teacher._manner.precision, teacher._class_features is teacher._when_deployed))
        return measure(subject, participant, *given, seen=seen, **how)

    monkeypatch.setattr(examine, "evaluate", listen)
    changes = {"train": {"precision": "bf16"}, "evaluate": {"every": 2, "undefended": True}}
    run_parts.train(run_parts.recipe(tmp_path, **changes, **DRIFTING))
    assert len(asked) >= 4 and set(asked) == {("fp32", True)}


def test_a_lost_process_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, take = run_parts.recipe(tmp_path), fit.Run.take

    def lost(self: fit.Run, batch: Batch) -> Any:
        if self.step == 2:
            raise Lost("connection closed by peer")
        return take(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(fit.Run, "take", lost)
        with pytest.raises(Lost, match="connection closed by peer"):
            run_parts.train(made)
    steps: list[int] = []
    monkeypatch.setattr(fit.Run, "take", lambda self, batch: steps.append(self.step) or take(self, batch))
    run_parts.train(made, resume=True)
    assert steps == [2, 3]
