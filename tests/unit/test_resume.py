"""What is pinned here:

- A run that is killed by SIGKILL, wherever it stands, and resumed gives the weights, the optimizer's moments, the
  strategy's state, the losses and the results of the uninterrupted run, bit for bit: with dropout, two learners, an
  adaptive strategy, accumulated portions, several epochs, probes that pick a best checkpoint, and a control that is
  measured before.
- Whenever a kill falls into the writing of a file, a whole file of that name remains, or none yet.
- A run may be killed again while it is resumed; a kill while it is measured at the end costs nothing.
- A resume point belongs to its recipe, wherever the folder lies and however its path is spelled; a damaged one is told.
- What a measurement draws from the global generators does not reach the training, before it or between its steps.
- Resuming needs no resume point: a run that was killed before the first one begins anew.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
from clip_parts import Parts, settings

from advdistill.engine.checkpoint import read
from advdistill.engine.examine import Examiner
from advdistill.errors import DataError
from advdistill.recipe.resolve import load_recipe

STEPS, SAVES = 8, 3
TINY = settings({"layers": 1, "width": 16, "head_width": 8}, {"layers": 1, "width": 16})


class Runs:
    """A process that runs one recipe as often as asked, and can be told when to die."""

    def __init__(self, folder: Path, recipe: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("killed_run.py"), recipe, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def do(self, run: str, **order: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"run": run, **order}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def killed(self, run: str, moment: int, **order: Any) -> None:
        assert self.do(run, kill=moment, **order)["signal"] == signal.SIGKILL


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("killed")
    clip = {"use": "clip-lora", "rank": 2, "dropout": 0.3, **Parts(folder, TINY).source}
    run_parts.train(run_parts.recipe(folder, "control", student=clip, train={"steps": 1}))
    recipe = run_parts.write(
        folder,
        student=clip,
        teachers={"clean": {"use": "toy", "train": True}},
        attack={"use": "pgd", "steps": 1},
        strategy={"use": "drifting"},
        train={"steps": STEPS, "batch_size": 20, "accumulate": 2},
        evaluate={
            "every": 2,
            "select": "harmonic",
            "protocols": [{"name": "clean", "limit": 12}, {"name": "pgd", "limit": 6, "attack": {"use": "pgd"}}],
            "controls": {"control": str(folder / "control" / "last.safetensors")},
        },
        save={"every": SAVES},
    )
    made = Runs(folder, recipe)
    yield made
    made.process.stdin.close()
    assert made.process.wait(20) == 0


@pytest.fixture(scope="module")
def whole(runs: Runs) -> dict[str, Any]:
    said = runs.do("whole")
    assert said["exit"] == 0 and said["signal"] == 0
    return said


def check_same(folder: Path, whole: Path) -> None:
    for name in ("last.safetensors", "best.safetensors", "resume.safetensors"):
        assert run_parts.same(run_parts.tensors(folder, name), run_parts.tensors(whole, name)), name
    one, other = (run_parts.events(each, "step_done", "probed") for each in (folder, whole))
    assert [line["step"] for line in one if line["event"] == "step_done"] == list(range(1, STEPS + 1))
    assert one == other
    assert json.loads((folder / "results.json").read_text()) == json.loads((whole / "results.json").read_text())


def test_the_uninterrupted_run_exercises_what_it_should(runs: Runs, whole: dict[str, Any]) -> None:
    folder = runs.folder / "whole"
    facts, state = read(folder / "resume.safetensors")
    assert facts["step"] == STEPS and state["strategy.weight"] != 1
    assert {"teacher.clean.gain", "teacher.clean.context"} <= run_parts.tensors(folder).keys()
    assert len({line["epoch"] for line in run_parts.events(folder, "step_done")}) >= 3
    # resume points after 3, 6 and 8 steps, `last` with each and at the end, the probes' best, recipe, results
    assert len(whole["files"]) >= 3 + 3 + 1 + 2 + 2


@pytest.mark.parametrize("share", [0.07, 0.31, 0.52, 0.68, 0.83, 0.97])
def test_killed_anywhere_and_resumed_is_the_uninterrupted_run(runs: Runs, whole: Any, share: float) -> None:
    name = f"at-{share:.3f}"
    runs.killed(name, int(share * whole["moments"]))
    assert runs.do(name, resume=True)["exit"] == 0
    check_same(runs.folder / name, runs.folder / "whole")


@pytest.mark.parametrize("file", [3, 4, 6, -3, -1])
def test_killed_while_writing_a_file(runs: Runs, whole: Any, file: int) -> None:
    name, moments = f"file-{file}", whole["files"][file]
    runs.killed(name, random.Random(file).choice(moments))
    for path in (runs.folder / name).glob("*.safetensors"):
        read(path)
    assert runs.do(name, resume=True)["exit"] == 0
    check_same(runs.folder / name, runs.folder / "whole")


def test_killed_again_while_resumed(runs: Runs, whole: Any) -> None:
    runs.killed("twice", whole["moments"] // 2)
    runs.killed("twice", whole["moments"] // 4, resume=True)
    assert runs.do("twice", resume=True)["exit"] == 0
    check_same(runs.folder / "twice", runs.folder / "whole")


def test_measurements_that_draw_do_not_move_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = {"use": "clip-lora", "rank": 2, "dropout": 0.3, **Parts(tmp_path, TINY).source}
    often = {"every": 1, "undefended": True}
    run_parts.train(run_parts.recipe(tmp_path, "quiet", student=clip, evaluate=often))
    measure = Examiner._evaluate

    def drawing(*given: Any) -> Any:
        torch.rand(7)
        return measure(*given)

    monkeypatch.setattr(Examiner, "_evaluate", drawing)
    run_parts.train(run_parts.recipe(tmp_path, "noisy", student=clip, evaluate=often))
    quiet, noisy = (run_parts.tensors(tmp_path / name, "resume.safetensors") for name in ("quiet", "noisy"))
    assert run_parts.same(quiet, noisy)


def test_a_resume_point_knows_its_recipe_not_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = run_parts.recipe(tmp_path, train={"steps": 4}, save={"every": 2})
    run_parts.train(begun)
    (tmp_path / "run" / "results.json").unlink()
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    run_parts.train(load_recipe(moved / "recipe.yaml", ["save.dir=elsewhere"]), resume=True)
    assert (moved / "results.json").exists()
    other = load_recipe(moved / "recipe.yaml", [f"save.dir={moved}", "optim.lr=0.5"])
    with pytest.raises(DataError, match="another recipe") as told:
        run_parts.train(other, resume=True)
    assert "recipe.yaml" in told.value.message + told.value.hint


def test_a_damaged_resume_point_is_told(tmp_path: Path) -> None:
    begun = run_parts.recipe(tmp_path, train={"steps": 2})
    run_parts.train(begun)
    point = tmp_path / "run" / "resume.safetensors"
    point.write_bytes(point.read_bytes()[:-7])
    with pytest.raises(DataError, match="damaged"):
        run_parts.train(begun, resume=True)


def test_resuming_a_run_that_never_saved_begins_anew(tmp_path: Path) -> None:
    begun = run_parts.recipe(tmp_path, train={"steps": 2})
    (tmp_path / "run").mkdir()
    run_parts.train(begun, resume=True)
    assert [line["step"] for line in run_parts.events(tmp_path / "run", "step_done")] == [1, 2]
