"""Who does the work of a study: processes of this machine, Ray, or SLURM. All leave the same files."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from advdistill.engine.launch import cores
from advdistill.errors import UsageError
from advdistill.study.cells import Unit
from advdistill.study.work import attempt


class Launcher(ABC):
    """Takes units and says, in the order in which they end, what became of them."""

    @abstractmethod
    def run(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, str]]:
        """Do all of them, in any order.

        Yields:
            A unit, and why it failed; "" if it did not.
        """


class Local(Launcher):
    """Processes of this machine, each with its share of the cores. One that dies costs its unit alone.

    Args:
        jobs: units at a time; 0: one for each core.
    """

    def __init__(self, jobs: int = 0) -> None:
        self._jobs = jobs or cores()

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, str]]:
        waiting, busy = deque(units), dict[Connection, Unit]()
        workers = {worker.connection: worker for worker in self._start(min(self._jobs, len(units)))}
        try:
            idle = list(workers)
            while waiting or busy:
                while idle and waiting:
                    free, unit = idle.pop(), waiting.popleft()
                    free.send(unit)
                    busy[free] = unit
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)
                    unit = busy.pop(ready)
                    try:
                        said = ready.recv()
                    except (EOFError, ConnectionResetError):
                        said = workers.pop(ready).fate()
                        (fresh,) = self._start(1)
                        workers[fresh.connection] = fresh
                        ready = fresh.connection
                    idle.append(ready)
                    yield unit, said
        finally:
            for worker in workers.values():
                worker.leave()

    def _start(self, count: int) -> list[_Worker]:
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = before or str(max(cores() // self._jobs, 1))
        try:
            return [_Worker() for _ in range(count)]
        finally:
            if before is None:
                del os.environ["OMP_NUM_THREADS"]


class _Worker:
    """A process that does units until nobody talks to it any more."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far,), daemon=True)
        self._process.start()
        far.close()

    def fate(self) -> str:
        """How it died."""
        self._process.join()
        code = self._process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"its process ended {how}" + ("; memory may have run out" if code == -signal.SIGKILL else "")

    def leave(self) -> None:
        """Ask it to stop where it is, save, and go."""
        self.connection.close()
        if self._process.is_alive() and self._process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGINT)
        self._process.join()


def _serve(connection: Connection) -> None:
    # Ctrl-C reaches the whole group of a terminal; whoever started this process passes it on, once.
    os.setsid()
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            connection.send(attempt(connection.recv()))


class Ray(Launcher):
    """Workers of a Ray cluster: the one that `RAY_ADDRESS` names, or one on this machine.

    A unit whose worker dies is given to another one, which goes on where it was cut off. All machines must see the
    study's folder at the same path.

    Args:
        jobs: units at a time for each machine; 0: one for each core.

    Raises:
        UsageError: Ray is not installed.
    """

    def __init__(self, jobs: int = 0) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError("Ray is not installed", "pip install 'advdistill[ray]'") from error
        self._ray: Any = ray
        self._jobs = jobs

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, str]]:
        ray = self._ray
        share = cores() // self._jobs if self._jobs else 1
        if not ray.is_initialized():
            ray.init(configure_logging=False, include_dashboard=False)
        environment = {"env_vars": {"OMP_NUM_THREADS": str(max(share, 1))}}
        remote = ray.remote(num_cpus=max(share, 1), max_retries=3, runtime_env=environment)(attempt)
        known = {remote.remote(unit): unit for unit in units}
        waiting = list(known)
        while waiting:
            (done, *_), waiting = ray.wait(waiting)
            try:
                said = ray.get(done)
            except ray.exceptions.RayError as error:
                said = f"Ray: {str(error).strip().splitlines()[0]}"
            yield known[done], said
