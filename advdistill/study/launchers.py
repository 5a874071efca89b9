"""Who does the work of a study at once: processes of this machine, or Ray. Both leave the same files.

(SLURM does it later: `advdistill.study.slurm`.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from advdistill.errors import RunError, UsageError
from advdistill.study.cells import Unit
from advdistill.study.work import attempt

News = Generator[tuple[Unit, "str | None"], None, None]
"""A unit, and what became of it: None: it has begun; "": it is done; else why it failed."""

AGAIN = 60.0
"""Seconds after which a worker that nobody talks to any more, and that is still busy, is told once more to stop: a run
that was asked in its last step goes on to its measurements."""


class Launcher(ABC):
    """Takes units and says what becomes of them."""

    @abstractmethod
    def run(self, units: Sequence[Unit]) -> News:
        """Do all of them, in any order. Closing the generator tells those under way to save and stop, and waits.

        Raises:
            RunError: nobody can be found to do it.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to let go
        """Let go of what it has started."""


class Local(Launcher):
    """Processes of this machine, each with its share of the cores, and of the GPUs where there are several.

    A unit whose process dies is tried once more, where it was cut off; the others do not notice.

    Args:
        jobs: units at a time; 0: as many as `at_once`.
    """

    def __init__(self, jobs: int = 0) -> None:
        self._jobs, self._share = jobs, 0
        self._workers: dict[Connection, _Worker] = {}

    def run(self, units: Sequence[Unit]) -> News:
        if not units:
            return
        waiting, tries, gpus = deque(units), Counter[Unit](), _gpus()
        share = min(self._jobs or at_once(), len(units))
        if share != self._share:
            self.close()  # those of the stage before have other shares of the cores
            self._share = share
        workers = self._workers
        try:
            while waiting or self._busy:
                while len(workers) < min(share, len(waiting) + self._busy):
                    worker = _Worker(self._environment(gpus, [each.gpu for each in workers.values()]))
                    workers[worker.connection] = worker
                for worker in list(workers.values()):
                    if worker.ready and not worker.unit and waiting:
                        worker.give(unit := waiting.popleft())
                        yield unit, None
                for ready in wait(list(workers)):
                    assert isinstance(ready, Connection)
                    worker = workers[ready]
                    try:
                        said = ready.recv()
                    except (EOFError, OSError):
                        del workers[ready]
                        said = worker.fate()
                        if worker.unit and not tries[worker.unit]:
                            tries[worker.unit] += 1
                            waiting.append(worker.unit)
                            continue
                    ended, worker.unit = worker.unit, None
                    if ended:
                        yield ended, said
                    elif said and not worker.ready:
                        raise RunError(f"a process for the runs of this study could not begin: {said}")
                    worker.ready = True
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        workers = list(self._workers.values())
        self._workers.clear()
        for worker in workers:
            worker.hang_up()
        try:
            for worker in workers:
                worker.wait()
        except KeyboardInterrupt:  # once more: it is urgent
            for worker in workers:
                worker.kill()
            raise

    @property
    def _busy(self) -> int:
        return sum(worker.unit is not None for worker in self._workers.values())

    def _environment(self, gpus: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
        """Of the next process: where there are several GPUs, it gets the one that is `taken` least often."""
        from advdistill.engine.launch import cores

        found = {"OMP_NUM_THREADS": str(max(cores() // self._share, 1)), **os.environ}
        if len(gpus) > 1:
            found["CUDA_VISIBLE_DEVICES"] = min(gpus, key=taken.count)
        return found


def at_once() -> int:
    """Units at a time on this machine, where nobody says how many: one for each GPU, or for each core where there is
    none."""
    from advdistill.engine.launch import cores

    return len(_gpus()) or cores()


def _gpus() -> list[str]:
    """Those that this process may use, as CUDA_VISIBLE_DEVICES calls them."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    told = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return told.split(",")[:count] if told else [str(number) for number in range(count)]


class _Worker:
    """A process that does units until nobody talks to it any more.

    Attributes:
        ready: it has begun. unit: what it has in hand. gpu: the GPUs that it sees; "": as its parent.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.ready = False
        self.unit: Unit | None = None
        self.gpu = environment.get("CUDA_VISIBLE_DEVICES", "")
        self.connection, far = Pipe()
        code = f"import sys; sys.path = {sys.path!r}; from {__name__} import serve; serve({far.fileno()})"
        # Out of reach of Ctrl-C, which goes to all of a terminal's session: each worker is told once, by this process.
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=[far.fileno()],
            start_new_session=True,
            env=environment,
        )
        far.close()

    def give(self, unit: Unit) -> None:
        """Hand it something to do."""
        self.unit = unit
        with contextlib.suppress(OSError):  # it has died: whoever listens to it learns that
            self.connection.send(unit)

    def fate(self) -> str:
        """How it died."""
        self.connection.close()
        code = self._process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"its process ended {how}" + ("; memory may have run out" if code == -signal.SIGKILL else "")

    def hang_up(self) -> None:
        """Let it save, stop and end."""
        self.connection.close()

    def wait(self) -> None:
        """Until it has ended."""
        self._process.wait()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


def serve(descriptor: int) -> None:
    """A worker's whole life: units come in, and what became of them goes out. When the other side hangs up, or dies,
    what is in hand is told to stop as by Ctrl-C.

    Args:
        descriptor: of the connection.
    """
    talk = Connection(descriptor)
    units = SimpleQueue[Unit]()
    lost, busy = threading.Event(), threading.Event()
    main = threading.main_thread().ident or 0

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                units.put(talk.recv())
        lost.set()
        while busy.is_set():
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(AGAIN)
        signal.pthread_kill(main, signal.SIGINT)  # it waits for units

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    with contextlib.suppress(OSError, KeyboardInterrupt):
        talk.send("")
        threading.Thread(target=listen, daemon=True).start()
        while unit := units.get():
            busy.set()
            said = "" if lost.is_set() else attempt(unit)
            busy.clear()
            talk.send(said)


class Ray(Launcher):
    """Workers of a Ray cluster: the one that `RAY_ADDRESS` names, or one on this machine for as long as it takes.

    A unit whose worker dies is given to another one, which goes on where it was cut off. All machines must see the
    study's folder, the current folder and the data at the same paths.

    Args:
        jobs: units at a time on each machine; 0: one for each GPU, or for each core where there is none.

    Raises:
        UsageError: Ray is not installed.
    """

    TRIES = 3
    """Times that a unit is begun anew after its worker has died."""
    STORE = 80 * 2**20
    """Bytes for Ray's own store of objects: nothing but words is handed around. (Ray takes no less than 75 MiB.)"""

    def __init__(self, jobs: int = 0) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise UsageError("Ray is not installed", "pip install 'advdistill[ray]'") from error
        self._ray: Any = ray
        self._jobs, self._own = jobs, False

    def run(self, units: Sequence[Unit]) -> News:
        ray = self._ray
        if not ray.is_initialized():
            self._join()
        waiting: list[Any] = []
        try:
            remote = ray.remote(**self._share(), max_retries=self.TRIES)(_elsewhere)
            known = {remote.remote(unit, Path.cwd()): unit for unit in units}
            waiting = list(known)
            while waiting:
                (done, *_), waiting = ray.wait(waiting)
                try:
                    said = ray.get(done)
                except ray.exceptions.RayError as error:
                    said = f"Ray: {_first_line(error)}"
                yield known[done], said
        finally:
            for each in waiting:
                ray.cancel(each)
            if waiting:
                ray.wait(waiting, num_returns=len(waiting))

    def close(self) -> None:
        if self._own:
            self._ray.shutdown()

    def _join(self) -> None:
        from advdistill.engine.launch import cores

        address = os.environ.get("RAY_ADDRESS", "local")
        how: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if address == "local":
            how |= {"object_store_memory": self.STORE, "include_dashboard": False, "num_cpus": cores()}
        before = signal.getsignal(signal.SIGTERM)
        try:
            self._ray.init(address, **how)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RunError(f"Ray: {_first_line(error)}", "is RAY_ADDRESS right?") from error
        self._own = True
        signal.signal(signal.SIGTERM, before)  # Ray puts its own in place, which ends this process without a word

    def _share(self) -> dict[str, float]:
        """What a unit takes of a machine, in what Ray counts in: whole numbers above 1."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cpus, gpus = (min(machine.get(kind, 0.0) for machine in machines) for kind in ("CPU", "GPU"))
        jobs = self._jobs or gpus or cpus
        return {
            name: each if each < 1 else int(each)
            for name, each in (("num_cpus", cpus / jobs), ("num_gpus", min(gpus / jobs, 1.0)))
        }


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _elsewhere(unit: Unit, folder: Path) -> str:
    os.chdir(folder)
    return attempt(unit)
