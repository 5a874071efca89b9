"""Where in a run this process stands, by what started it; and starting several of them on one machine.

This module imports no torch: whoever starts processes only waits for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import IO

from advdistill.errors import RunError, UsageError

STARTED = "ADVDISTILL_STARTED"
"""Variable that tells a process which option of this program started it, such as `--gpus 4`."""

LOST = 75
"""Exit status of a process that was started here and ended because another one had."""

GRACE = 20.0
"""Seconds that the others get to end by themselves when one process has, before they are told to; as many again
before they are killed."""

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """This process among those of a run.

    Attributes:
        rank: its number. size: how many there are. local: its number on this machine.
        here: how many of them are on this machine.
        address: host and port where they meet; None: torch is told by its own environment.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    here: int = 1
    address: tuple[str, int] | None = None


def place(environment: Environment = os.environ) -> Place:
    """Where this process stands, by torchrun's environment, or by that of a SLURM job step.

    A batch script has the job's variables, but is one process: only `srun` numbers processes, and a step of several
    tasks is what counts (sbatch's own step has one; `SLURM_STEP_NUM_TASKS`, srun(1), "output environment variables").

    Raises:
        UsageError: the environment contradicts itself.
    """
    try:
        if "WORLD_SIZE" in environment:
            size = int(environment["WORLD_SIZE"])
            rank = int(environment["RANK"]) if size > 1 else 0
            local = int(environment.get("LOCAL_RANK", rank))
            return Place(rank, size, local, int(environment.get("LOCAL_WORLD_SIZE", size)))
        size = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
        if size == 1 or "SLURM_PROCID" not in environment:
            return Place()
        here = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        return Place(
            int(environment["SLURM_PROCID"]),
            size,
            int(environment["SLURM_LOCALID"]),
            int(here[0]) if here else 1,
            (_first_host(environment["SLURM_STEP_NODELIST"]), _port(environment)),
        )
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"what started this process says that it is one of several, but not which: {error}",
            "start them with torchrun, srun, or --gpus",
        ) from error


def _first_host(hosts: str) -> str:
    """The first of SLURM's `gpu[003-005,9],login`: gpu003."""
    first = re.match(r"([^\[,]+)(?:\[([^\]]*)\])?([^,]*)", hosts)
    if first is None:
        raise ValueError(f"SLURM_STEP_NODELIST={hosts!r}")
    head, numbers, tail = first.groups()
    return head + re.split("[,-]", numbers or "")[0] + tail


def _port(environment: Environment) -> int:
    """Steps of one machine must not meet at one port: it comes from the numbers of job and step."""
    job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return 20000 + (job * 31 + step) % 20000


def resumed(folder: object, environment: Environment = os.environ) -> str:
    """The command that goes on with the run in `folder`, as this one was started."""
    return f"advdistill train --resume {folder} {environment.get(STARTED, '')}".rstrip()


def needed(gpus: int | None, processes: int | None, device: str) -> int:
    """How many processes `--gpus` or `--processes` want started; 0: this one does the work itself.

    Args:
        device: what the recipe or `--device` says.

    Raises:
        UsageError: they contradict each other or the device, are more than there is, or something else has started
            several already.
    """
    count = gpus or processes or 0
    if not count or STARTED in os.environ:
        return 0
    if gpus and processes:
        raise UsageError("--gpus and --processes are two ways to say how many", "give one of them")
    option = "--gpus" if gpus else "--processes"
    if place().size > 1:
        raise UsageError(f"{option}: torchrun or srun has started several processes already", "leave it out")
    if gpus:
        if device not in ("auto", "cuda"):
            raise UsageError(f"--gpus gives each process a GPU of its own, and the device is {device!r}", "take auto")
        import torch

        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if gpus > found:
            raise UsageError(
                f"--gpus {gpus}: this machine has {found or 'none'} that torch can use",
                f"--processes {gpus} starts as many on its CPU cores" if not found else f"take --gpus {found}",
            )
    elif device not in ("auto", "cpu"):
        raise UsageError(f"--processes works on CPU cores, and the device is {device!r}", "take cpu or auto, or --gpus")
    return count if count > 1 or processes else 0


def start(count: int, option: str, again: str, arguments: Sequence[str] | None = None) -> int:
    """Run this program's command line in `count` processes that work together, and wait for them.

    The first has this process's terminal. What the others say on stderr is shown only if one of them ended the run.
    SIGINT and SIGTERM are passed on; where this process dies, they stop as if told to.

    Args:
        option: `--gpus` or `--processes`.
        again: how to go on where a process was killed.
        arguments: the command line, without the program; None: this process's.

    Returns:
        The exit status of all of it.

    Raises:
        RunError: a process was killed.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        STARTED: f"{option} {count}",
    }
    common.setdefault("OMP_NUM_THREADS", str(max(cores() // count, 1)))
    if sys.platform == "linux":
        common.setdefault("GLOO_SOCKET_IFNAME", "lo")  # whatever this machine's name resolves to
    if option == "--processes":
        common["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "advdistill", *arguments]
    with contextlib.ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        running: list[subprocess.Popen[bytes]] = []
        passed = stack.enter_context(_passing_on(running))
        stack.callback(_end, running)
        for rank in range(count):
            mine = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            streams = {"stdout": subprocess.DEVNULL, "stderr": said[rank]} if rank else {}
            # A session of its own: the terminal's Ctrl-C comes here alone, and is passed on once.
            running.append(subprocess.Popen(command, env={**common, **mine}, start_new_session=True, **streams))  # type: ignore[call-overload]
        return _verdict(running, _first_to_fail(running), said, bool(passed), again)


def _first_to_fail(running: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all have ended. Where one failed, the first and those that know why get some time, the others none.
    Returns who failed first, if possible one that did not only lose another."""
    failed, noticed = None, 0.0
    while True:
        bad = [rank for rank, process in enumerate(running) if process.poll()]
        if bad and failed is None:
            noticed = noticed or time.monotonic()
            failed = next((rank for rank in bad if running[rank].returncode != LOST), None)
        if all(process.returncode is not None for process in running):
            return failed if failed is not None else next(iter(bad), None)
        known = failed is not None and running[0].returncode is not None
        if known or (noticed and time.monotonic() - noticed > GRACE):
            _end(running)
        time.sleep(0.05)


def _verdict(
    running: Sequence[subprocess.Popen[bytes]],
    failed: int | None,
    said: Sequence[IO[bytes]],
    passed: bool,
    again: str,
) -> int:
    """The exit status of all; says what the first to fail said, where the first process could not know."""
    main = running[0].returncode
    if failed is None or (main > 0 and main != LOST):
        return main  # it has told everything itself
    if passed and (main < 0 or main == LOST):
        return 130
    status = running[failed].returncode
    said[failed].seek(0)
    if status == LOST:
        told = said[failed].read().decode(errors="replace")
        raise RunError(f"the processes of this run have lost each other {told}".strip(), f"go on with: {again}")
    if status < 0:
        name = signal.Signals(-status).name
        memory = "is there enough memory? " if status == -signal.SIGKILL else ""
        raise RunError(
            f"process {failed} of {len(running)} was ended by {name}, and the run with it",
            f"{memory}go on from what was saved with: {again}",
        )
    sys.stderr.write(said[failed].read().decode(errors="replace"))
    sys.stderr.flush()
    return status


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """End those that still run: they are asked, and killed if that does not help."""
    left = [process for process in running if process.poll() is None]
    for process in left:
        process.terminate()
    until = time.monotonic() + GRACE
    for process in left:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(until - time.monotonic(), 0.01))
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _passing_on(running: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """SIGINT and SIGTERM go to all `running`. Gives those that came."""
    came: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def cores() -> int:
    """Of this machine, those that this process may use."""
    # `os.cpu_count` does not know of those that it may not (taskset, SLURM); macOS knows nothing else.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port() -> int:
    """A port that nobody on this machine listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def stop_with_parent() -> None:
    """Where this program started this process: be told to stop when that one dies. Linux knows how; elsewhere nothing
    happens."""
    if STARTED in os.environ and sys.platform == "linux":
        set_pdeathsig = 1  # prctl(2)
        ctypes.CDLL(None).prctl(set_pdeathsig, signal.SIGTERM)
