"""Several processes on one run, as a user starts them.

Guarantees:
- one and two processes learn the same weights, report the same numbers step by step, and count the same samples;
- shares of a batch may differ in size; class features that learn are shared, and there may be fewer classes than
  processes; weights that adapt see the whole batch; alternating updates leave alone whom nobody pulled;
- an evaluation in two processes finds what one finds, attacks that look at teachers included, and either goes on with
  what the other began;
- only one process talks;
- a process that dies or fails ends the run, with its error said once and no traceback, and the run goes on from what
  was saved, in another number of processes too, which is told;
- an interrupted run saves and says how to go on as it was started; who started it takes its processes along;
- what cannot work in several processes is refused, once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_parts import Cli
from safetensors.torch import load_file
from torch import Tensor

from advdistill.engine import launch
from advdistill.engine.checkpoint import read

TOYS = Path(__file__).parents[1] / "unit" / "toy_plugin.py"
MORTAL = Path(__file__).with_name("mortal_plugin.py")
CONTROL = ("evaluate.undefended=false", "evaluate.teachers=false", "train.device=cpu")
LIMIT = 120.0


def begin(folder: Path, *words: object) -> subprocess.Popen[str]:
    """Start the program in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k not in (launch.STARTED, "RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [sys.executable, "-m", "advdistill", *map(str, words)],
        cwd=folder,
        env={**environment, "COLUMNS": "120", "TERM": "dumb"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(folder: Path, *words: object) -> tuple[int, str, str]:
    """Run the program to its end: exit status, stdout, stderr."""
    process = begin(folder, *words)
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def mortal(folder: Path, name: str = "run", steps: int = 6, **fate: Any) -> Path:
    """A recipe on toy parts that saves every step, and whose strategy may come to grief."""
    tree = {
        "advdistill": 1,
        "plugins": [str(TOYS), str(MORTAL)],
        "threat": {"eps": "8/255"},
        "data": {"use": "toy"},
        "student": {"use": "toy"},
        "attack": {"use": "toy"},
        "strategy": {"use": "mortal", **fate},
        "optim": {"lr": 0.01},
        "train": {"steps": steps, "batch_size": 7, "device": "cpu"},
        "evaluate": {"undefended": False, "protocols": [{"name": "clean", "limit": 12}], "probe": {"limit": 12}},
        "save": {"dir": str(folder / name), "every": 1},
        "report": [{"use": "console"}, {"use": "jsonl"}],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def told(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """What metrics.jsonl says, without what depends on the clock on the wall."""
    wall = {"time", "images_per_second", "seconds_left", "seconds", "path", "dir", "plan"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in wall} for line in lines if not kinds or line["event"] in kinds]


def numbers(value: Any) -> Any:
    """Plain data with its floats as what is close to them."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-3, abs=1e-5)
    if isinstance(value, dict):
        return {key: numbers(each) for key, each in value.items()}
    return [numbers(each) for each in value] if isinstance(value, list) else value


def apart(one: Path, other: Path) -> float:
    """The largest difference between two runs' weights.

    The bias of attention's keys is left out: softmax does not see it, so that its gradient is 0 but for rounding, which
    AdamW scales up to whole steps.
    """

    def seen(name: str, tensor: Tensor) -> Tensor:
        if not name.endswith("attn.in_proj_bias"):
            return tensor
        query, _, value = tensor.chunk(3)
        return torch.cat([query, value])

    mine, theirs = load_file(one / "last.safetensors"), load_file(other / "last.safetensors")
    assert mine.keys() == theirs.keys()
    return max((seen(name, mine[name]) - seen(name, theirs[name])).abs().max().item() for name in mine)


def counts(folder: Path) -> list[tuple[str, str, int, int]]:
    """Every count of a run's table."""
    rows = json.loads((folder / "results.json").read_text())
    return [(row["subject"], name, p["hits"], p["total"]) for row in rows for name, p in row["protocols"].items()]


RUNS = {
    "apd_digits": ("train.batch_size=9",),
    "apd_digits_alternate": ("train.batch_size=9",),
    "quickstart": ("train.batch_size=7", "evaluate.controls=null", "evaluate.select=robust"),  # MMT-ARD
}
PROTOCOLS = "evaluate.protocols=[{name: clean, limit: 90}, {name: PGD, attack: {use: pgd, steps: 2}, limit: 90}]"
PROBES = ("evaluate.every=10", "evaluate.batch_size=40", "evaluate.probe.limit=90")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RUNS)
def test_one_and_two_processes_are_equal(cli: Cli, tmp_path: Path, recipe: str) -> None:
    words = ("train", recipe, "train.steps=20", "train.epochs=0", *CONTROL, *PROBES, *RUNS[recipe], PROTOCOLS)
    words = (*words, "report=[{use: console}, {use: jsonl}]")
    alone = cli(*words, "save.dir=one")
    assert alone.code == 0, alone.err
    code, out, err = call(tmp_path, *words, "save.dir=two", "--processes", 2)
    assert code == 0, err
    one, two = tmp_path / "one", tmp_path / "two"
    assert apart(one, two) < 1e-5
    assert counts(one) == counts(two)
    assert told(two) == numbers(told(one))
    # One voice: the table on stdout, and every line of progress once.
    assert out == alone.out
    assert err.count("probe at step 20") == 1 and "2 processes" in err and "Traceback" not in err


@pytest.mark.slow
def test_more_processes_than_classes(cli: Cli, tmp_path: Path) -> None:
    """Class features that learn are then encoded by every process."""
    prompts = {"text": {"tokens": 2, "depth": 2}, "visual": {"tokens": 0}}
    student = {"use": "clip-prompts", "model": "advdistill_demo:small.json", "weights": "random", **prompts}
    changes = {"data": {"use": "pair"}, "student": student}
    for name, size in (("one", 1), ("three", 3)):
        path = mortal(tmp_path, name, steps=4)
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
        code, _, err = call(tmp_path, "train", path, *(("--processes", size) if size > 1 else ()))
        assert code == 0, err
    assert apart(tmp_path / "one", tmp_path / "three") < 1e-5
    assert counts(tmp_path / "one") == counts(tmp_path / "three")


@pytest.mark.slow
def test_an_attack_on_a_teacher_is_shared(cli: Cli, tmp_path: Path) -> None:
    """Also where a process has no batch left, and where the teacher learned."""
    across = "{use: cross-prompt, prompts: teacher, teacher: clean, attack: {use: pgd, steps: 1}}"
    words = ("train", "apd_digits", *CONTROL, "train.steps=1", "train.epochs=0", "train.batch_size=8")
    words = (*words, "evaluate.every=0", "report=[{use: jsonl}]")
    words = (*words, f"evaluate.protocols=[{{name: across, attack: {across}, limit: 16}}]")
    alone = cli(*words, "save.dir=one")
    assert alone.code == 0, alone.err
    code, _, err = call(tmp_path, *words, "save.dir=two", "--processes", 2)
    assert code == 0, err
    assert counts(tmp_path / "one") == counts(tmp_path / "two")


def columns(folder: Path) -> Any:
    return json.loads((folder / "card.json").read_text())["columns"]


def test_an_evaluation_is_shared(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", mortal(tmp_path), "--overwrite").code == 0
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        yaml.safe_dump(
            {
                "advdistill": 1,
                "protocols": {
                    "clean": {},
                    "toy": {"attack": {"use": "toy"}},
                    "pgd": {"attack": {"use": "pgd", "steps": 3}},
                },
            }
        )
    )
    words = ("evaluate", "--model", "run/last.safetensors", "--protocol", suite, "--batch-size", 7)
    words = (*words, "--device", "cpu", "--plugin", TOYS, "--plugin", MORTAL)
    alone = cli(*words, "--out", "one", "--json")
    assert alone.code == 0, alone.err
    code, out, err = call(tmp_path, *words, "--out", "two", "--json", "--processes", 2)
    assert code == 0, err
    said, other = json.loads(alone.out), json.loads(out)
    assert other["columns"] == numbers(said["columns"]) and other["indicators"] == numbers(said["indicators"])
    one, two = (load_file(tmp_path / name / "outcomes.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[k].double(), two[k].double(), 1e-4, 1e-5, equal_nan=True) for k in one)
    # What two began and did not finish, one finishes.
    packs = sorted((tmp_path / "two" / "packs").rglob("*.outcome.safetensors"))
    assert len(packs) == len(list((tmp_path / "one" / "packs").rglob("*.outcome.safetensors"))) > 4
    kept = {pack: pack.stat().st_mtime_ns for pack in packs[1::2]}
    for pack in packs[::2]:
        pack.unlink()
    again = cli(*words, "--out", "two", "--json")
    assert again.code == 0 and json.loads(again.out)["columns"] == numbers(said["columns"])
    assert {pack: pack.stat().st_mtime_ns for pack in kept} == kept


def test_a_process_that_is_killed_ends_the_run_which_then_goes_on(cli: Cli, tmp_path: Path) -> None:
    code, out, err = call(tmp_path, "train", mortal(tmp_path, how="killed", step=3), "--processes", 2)
    assert (code, out) == (1, "") and "Traceback" not in err
    assert err.count("error:") == 1 and "process 1 of 2 was ended by SIGKILL" in err
    command = f"advdistill train --resume {tmp_path / 'run'} --processes 2"
    assert command in err
    facts, _ = read(tmp_path / "run" / "resume.safetensors")
    assert (facts["step"], facts["processes"]) == (3, 2)
    went_on = cli("train", "--resume", "run")
    assert went_on.code == 0 and "saved by 2 process(es) and resumed by 1" in went_on.err
    assert cli("train", mortal(tmp_path, "whole"), "strategy.step=99").code == 0
    assert apart(tmp_path / "run", tmp_path / "whole") < 1e-5
    assert counts(tmp_path / "run") == counts(tmp_path / "whole")
    # Now its folder is taken, which the first process alone sees.
    code, _, err = call(tmp_path, "train", "run.yaml", "--processes", 2)
    assert code == 1 and err.count("error:") == 1 and "holds a finished run" in err


@pytest.mark.parametrize("rank", [pytest.param(1, marks=pytest.mark.slow, id="another"), pytest.param(-1, id="all")])
def test_an_error_is_said_once(tmp_path: Path, rank: int) -> None:
    code, out, err = call(tmp_path, "train", mortal(tmp_path, how="error", step=2, rank=rank), "--processes", 2)
    assert (code, out) == (5, "") and "Traceback" not in err
    assert err.count("an image is broken") == err.count("error:") == 1 and "mend it" in err


def until(path: Path, step: int) -> None:
    """Wait until a run has taken some steps."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):
            if len(told(path, "step_done")) >= step:
                return
        time.sleep(0.05)
    raise AssertionError("the run does not get on")


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    process = begin(tmp_path, "train", mortal(tmp_path, steps=500, pause=0.05), "--processes", 2)
    until(tmp_path / "run", 3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 130 and "Traceback" not in err
    step = read(tmp_path / "run" / "resume.safetensors")[0]["step"]
    assert 3 <= step < 500 and f"stopped after step {step} of 500" in err
    assert re.search(r"advdistill train --resume \S+ --processes 2$", err, re.M)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children")
def test_processes_do_not_outlive_who_started_them(tmp_path: Path) -> None:
    process = begin(tmp_path, "train", mortal(tmp_path, steps=5000, pause=0.05), "--processes", 2)
    until(tmp_path / "run", 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    process.kill()
    process.communicate(timeout=LIMIT)
    end = time.monotonic() + 60

    def alive(pid: str) -> bool:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False

    while any(map(alive, children)):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "run_stopped" in {line["event"] for line in told(tmp_path / "run")}


def test_gpus_that_are_not_there(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = cli("train", mortal(tmp_path), "--gpus", 2, "train.device=auto")
    assert said.code == 2 and "this machine has none" in said.err and "--processes 2" in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--gpus", 2), "the device is 'cpu'"),
        (("--gpus", 2, "--processes", 2), "give one of them"),
        (("--processes", 2, "--dry-run"), "--dry-run plans one process"),
        (("--gpus", 2, "--dry-run"), "--dry-run plans one process"),
    ],
)
def test_options_that_contradict(cli: Cli, tmp_path: Path, words: tuple[object, ...], why: str) -> None:
    said = cli("train", mortal(tmp_path), *words)
    assert said.code == 2 and why in said.err


def test_processes_started_twice(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    said = cli("train", mortal(tmp_path), "--processes", 2)
    assert said.code == 2 and "torchrun or srun has started several processes already" in said.err
