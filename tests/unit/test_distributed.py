"""Processes that work together: where each stands, what they exchange, how they part.

Guarantees:
- torchrun's and a SLURM step's environment say who is who; a batch script's does not; what contradicts itself is told;
- shares cover everything once and differ by one at most; sums, gathered rows and objects, and what the main process
  tells are the same everywhere;
- a process that leaves is missed at once, by an error of ours;
- when the processes part, with an error too, no thread of theirs is left that could abort the interpreter's end;
- processes that find different resume points are refused;
- students that learn by statistics of a batch, and batches smaller than the number of processes, are refused;
- each process has a GPU of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch

from advdistill.engine import build, fit, launch
from advdistill.engine.distributed import World
from advdistill.engine.folder import RunFolder
from advdistill.engine.launch import Place, place, resumed
from advdistill.errors import RunError, UsageError
from advdistill.hooks.registry import default_registry

SCRIPT = Path(__file__).with_name("process.py")
STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2)",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "1",
}
BATCH_SCRIPT = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "6", "SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "gpu[003-004]"}


def test_nothing_started_several() -> None:
    assert place({}) == place({"WORLD_SIZE": "1"}) == place(BATCH_SCRIPT) == Place()
    assert place({**STEP, "SLURM_STEP_NUM_TASKS": "1"}) == Place()


def test_torchrun_says_who_is_who() -> None:
    said = {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert place(said) == Place(5, 8, 1, 4)
    assert place({**STEP, **said}) == Place(5, 8, 1, 4), "torchrun that srun started"


def test_a_slurm_step_says_who_is_who() -> None:
    found = place(STEP)
    assert (found.rank, found.size, found.local, found.here) == (4, 6, 1, 3)
    assert found.address is not None and found.address[0] == "gpu003" and 1024 < found.address[1] < 65536
    other = place({**STEP, "SLURM_STEP_ID": "3"}).address
    assert other is not None and other != found.address, "two steps of a job may share a machine"
    assert place({**STEP, "SLURM_PROCID": "0"}).address == found.address


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("login", "login"),
        ("a7,b[1-2]", "a7"),
        ("gpu[003-005,9],login", "gpu003"),
        ("n[12,15].cluster", "n12.cluster"),
    ],
)
def test_the_first_host(hosts: str, first: str) -> None:
    found = place({**STEP, "SLURM_STEP_NODELIST": hosts}).address
    assert found is not None and found[0] == first


@pytest.mark.parametrize(
    "environment", [{"WORLD_SIZE": "4"}, {"WORLD_SIZE": "many"}, {**STEP, "SLURM_LOCALID": ""}], ids=str
)
def test_a_contradiction_is_told(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="one of several"):
        place(environment)


def test_going_on_as_it_was_started() -> None:
    assert resumed("runs/a", {}) == "advdistill train --resume runs/a"
    assert resumed("runs/a", {launch.STARTED: "--gpus 4"}) == "advdistill train --resume runs/a --gpus 4"


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_cover_everything(size: int) -> None:
    for count in range(10):
        shares = [range(count)[World(rank, size).share(count)] for rank in range(size)]
        assert [each for share in shares for each in share] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def torchrun() -> list[dict[str, str]]:
    """What torchrun tells two processes of this machine."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch.free_port()), "WORLD_SIZE": "2"}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def srun() -> list[dict[str, str]]:
    """What srun tells two tasks on this machine."""
    common = {**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_ID": "0"}
    common |= {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_JOB_ID": str(os.getpid())}
    return [{**common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]


def two(order: str, said: Callable[[], list[dict[str, str]]] = torchrun) -> list[dict[str, Any]]:
    """What two processes print; nothing for one that printed nothing."""
    running = [
        subprocess.Popen(
            [sys.executable, SCRIPT, order],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        for environment in said()
    ]
    printed = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 7 if order == "leave" else 0]
    return [json.loads(text) if text else {} for text in printed]


@pytest.mark.parametrize("started", [torchrun, srun])
def test_what_processes_exchange_and_how_they_part(started: Callable[[], list[dict[str, str]]]) -> None:
    said = two("part", started)
    for rank, each in enumerate(said):
        assert each["rank"] == rank
        assert each["sum"] == [[[3.0] * 3] * 2, 10.0]
        assert each["whole"] == [[float(i)] * 2 for i in range(5)]
        assert each["gather"] == [[0, [0]], [1, [1]]]
        assert each["told"] == "process 0" and each["any"] == [False, True, True]
        # gloo's threads abort an interpreter that ends while they let go of a tensor.
        assert any("gloo" in name for name in each["inside"]) and not any("gloo" in name for name in each["after"])


def test_who_fails_parts_as_well() -> None:
    main, other = two("fail")
    assert other["failed"] == "on purpose" and main["lost"].startswith("another process of this run has ended")
    for each in (main, other):
        assert any("gloo" in name for name in each["inside"]) and not any("gloo" in name for name in each["after"])


def test_who_vanishes_is_missed() -> None:
    main, other = two("leave")
    assert main["lost"].startswith("another process of this run has ended") and not other


class Refused(World):
    """Nothing is exchanged: what is wrong must be seen before."""

    def sum(self, tensors: Any) -> None:
        raise AssertionError

    def gather(self, mine: Any) -> Any:
        raise AssertionError


class Elsewhere(World):
    """The other process begins anew."""

    def gather(self, mine: Any) -> Any:
        return [mine, 0]


def test_all_go_on_from_the_same_step(tmp_path: Path) -> None:
    made = build.settled(run_parts.recipe(tmp_path, save={"every": 1}))
    run_parts.train(made)
    registry = default_registry().with_files(made.plugin_hashes)
    folder = RunFolder(made, resume=True, overwrite=False)
    with pytest.raises(RunError, match="after different steps: 0, 4"):
        fit.Run(made, registry, folder, lambda event: None, Elsewhere(0, 2))


def begin(made: Any, size: int = 2) -> fit.Run:
    made = build.settled(made)
    registry = default_registry().with_files(made.plugin_hashes)
    folder = RunFolder(made, resume=False, overwrite=False)
    return fit.Run(made, registry, folder, lambda event: None, Refused(0, size))


def test_more_processes_than_images(tmp_path: Path) -> None:
    begin(run_parts.recipe(tmp_path, train={"batch_size": 7}), 7)
    with pytest.raises(UsageError, match="8 processes cannot share a batch of 7"):
        begin(run_parts.recipe(tmp_path, train={"batch_size": 7}), 8)


def test_statistics_of_a_batch_are_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run_parts.recipe(tmp_path)
    monkeypatch.setattr("advdistill.testing.ToyModel.batch_independent", False)
    begin(made, 1)
    with pytest.raises(UsageError, match="statistics of the whole batch"):
        begin(made)


def test_each_process_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    for name, value in {"WORLD_SIZE": "8", "RANK": "7", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert build.device_of("auto") == build.device_of("cuda") == torch.device("cuda", 3)
    assert build.device_of("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="'cuda:1' is one, and there are 8 processes"):
        build.device_of("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(UsageError, match="has no GPU: there are 4"):
        build.device_of("auto")
    # SLURM may show each task its own alone.
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    assert build.device_of("auto") == torch.device("cuda", 1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert build.device_of("auto") == torch.device("cuda", 0)
