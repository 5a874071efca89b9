"""How much of a batch fits into memory, and what is said when something does not.

A GPU says that it is full, so it is tried. A host may kill the process that asks for too much; there the bytes that
graphs hold are counted on two small portions, and what a larger one would hold is compared with what is free.
"""

from __future__ import annotations

import contextlib
import gc
import resource
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from advdistill.engine.distributed import ALONE, World
from advdistill.errors import RunError

IN_TRAINING = "raise train.accumulate (or set it to auto), or lower train.class_chunk, train.keep_images or cache_limit"
NOT_ONE = "not one image fits: lower train.class_chunk, or take a smaller model or another device"
USED = 0.5
"""Share of a host's free memory that graphs may fill; the rest is for what operations need meanwhile (inferred)."""


class OutOfMemory(RunError):
    """There was not enough memory."""


@contextlib.contextmanager
def named(hint: str) -> Iterator[None]:
    """Out of memory in here is an `OutOfMemory` that says what to change; what was computed in here is let go of."""
    said = ""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        traceback.clear_frames(error.__traceback__)
    if said:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        raise OutOfMemory(f"out of memory: {said}", hint)


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an allocator raised this: torch's on any device, or Python's."""
    told = ("can't allocate memory", "out of memory", "bad_alloc", "cannot allocate memory")
    by_name = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in told)
    return by_name or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def fewest_portions(
    count: int, attempt: Callable[[int], None], device: torch.device, reserve: int = 0, world: World = ALONE
) -> int:
    """In how many portions, as few as fit, a batch can be worked through.

    Args:
        count: this process's images of it.
        attempt: works through so many of them, all at once, and leaves nothing behind.
        reserve: bytes that will be wanted later, such as the optimizer's.
        world: the largest need of all processes counts.

    Raises:
        OutOfMemory: not even one image fits.
    """
    if device.type == "cuda":
        most = _tried(count, attempt, device, reserve)
    else:
        with named(NOT_ONE):
            most = _reckoned(count, attempt, reserve, world)
    return max(world.gather(-(-count // most)))


def _tried(count: int, attempt: Callable[[int], None], device: torch.device, reserve: int) -> int:
    while True:
        try:
            with named(NOT_ONE):
                ballast = torch.empty(reserve, dtype=torch.uint8, device=device)
                attempt(count)
                del ballast
            return count
        except OutOfMemory:
            if count == 1:
                raise
        count = -(-count // 2)


def _reckoned(count: int, attempt: Callable[[int], None], reserve: int, world: World) -> int:
    held = []
    for few in range(1, min(count, 2) + 1):
        ledger = Ledger()
        with ledger:
            attempt(few)
        held.append(ledger.peak)
    free = available()
    if free is None:
        return count
    each = max(held[-1] - held[0], 1)
    room = USED * (free / world.size - reserve) - (held[0] - each)
    if room < each:
        raise MemoryError(
            f"the graph of one image takes {held[0] / 2**20:,.0f} MiB, {USED * free / world.size / 2**20:,.0f} are free"
        )
    return min(int(room // each), count)


class Ledger:
    """Bytes that autograd graphs hold while it is entered, by storage.

    Attributes:
        peak: the most they ever held at once.

    Args:
        ignored: storages that do not count, such as weights.
    """

    def __init__(self, ignored: set[int] | None = None) -> None:
        self.peak, self.now = 0, 0
        self._ignored, self._holders = ignored or set(), Counter[int]()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Held(self, tensor), lambda h: h.tensor)

    def __enter__(self) -> Ledger:
        self._hooks.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._hooks.__exit__(*raised)

    def turn(self, tensor: Tensor, holders: int) -> None:
        """So many holders more of `tensor`, or fewer."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        before = self._holders[key]
        self._holders[key] += holders
        if key not in self._ignored and bool(before) != bool(self._holders[key]):
            self.now += storage.nbytes() * holders
            self.peak = max(self.peak, self.now)


class _Held:
    def __init__(self, ledger: Ledger, tensor: Tensor) -> None:
        # Detached: an operation's own output, held by the operation, would never be let go of.
        self.ledger, self.tensor = ledger, tensor.detach()
        ledger.turn(self.tensor, 1)

    def __del__(self) -> None:
        self.ledger.turn(self.tensor, -1)


def available() -> int | None:
    """Bytes that this process can still take on the host: what is free, and what limits leave; None: nobody says.

    Limits are those of the process (RLIMIT_AS, RLIMIT_DATA) and of its control groups, of either version.
    """
    found = [*_of_limits(), *_of_groups()]
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    return max(min(found), 0) if found else None


def _of_limits() -> Iterator[int]:
    with contextlib.suppress(OSError, AttributeError):
        sizes = [int(pages) * resource.getpagesize() for pages in Path("/proc/self/statm").read_text().split()]
        for limit, used in ((resource.RLIMIT_AS, sizes[0]), (resource.RLIMIT_DATA, sizes[5])):
            soft, _ = resource.getrlimit(limit)
            if soft != resource.RLIM_INFINITY:
                yield soft - used


def _of_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if "memory" in kinds.split(","):
                top, limit = root / "memory", "memory.limit_in_bytes"
                used, cached = "memory.usage_in_bytes", "total_inactive_file"
            elif not kinds:
                top, limit, used, cached = root, "memory.max", "memory.current", "inactive_file"
            else:
                continue
            inner = top / place.lstrip("/")
            # Seen from within a container its own group is the root, whatever name it has outside.
            for folder in {top, inner, *inner.parents} - set(top.parents):
                with contextlib.suppress(OSError, ValueError):
                    stat = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                    free = int((folder / limit).read_text()) - int((folder / used).read_text())
                    yield free + int(stat.get(cached, 0))
