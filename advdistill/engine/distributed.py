"""Several processes that take one run's steps together.

Every process holds the whole model and takes its share of each batch. What they exchange: the gradients of what
learns, summed in one piece; class features, each encoded by one process; sums of losses; outcomes of an evaluation.
So all of them stay equal, bit for bit, and nothing is wrapped. What starts them is `launch`'s business.

The process group is destroyed before the interpreter ends, and nothing may keep a reference to it. gloo's threads
drop finished work, tensors included, a moment after whoever waited for it has gone on; to drop a tensor they take the
interpreter's lock, and Python ends a thread that asks for it while the interpreter is being torn down, in the midst of
a C++ destructor: "terminate called without an active exception", though all work was done. Destroying the group
joins those threads first.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from advdistill.engine import launch
from advdistill.errors import RunError

T = TypeVar("T")

JOINING = timedelta(minutes=5)
"""How long processes wait for all to have started."""

WAITING = timedelta(days=1)
"""How long one waits for another that is alive: it may be evaluating, or saving. One that has died is noticed at
once, by its connection (gloo), or by who started it."""


class Lost(RunError):
    """Another process of the run has ended, or cannot be reached."""

    def __init__(self, told: str) -> None:
        first = told.strip().partition("\n")[0]
        super().__init__(
            f"another process of this run has ended, or cannot be reached: {first}", "its own error says why"
        )


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: this one's number. size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process tells and writes."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Which of `count` things this process takes; shares differ by one at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each of `tensors`, the same shapes everywhere, by its sum over all processes; one exchange."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _exchanging():
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def whole(self, mine: Tensor, count: int) -> Tensor:
        """(count, ...) from everybody's `share` of the rows; no graph."""
        if self.size == 1:
            return mine.detach()
        rows = -(-count // self.size)
        padded = torch.cat([mine.detach(), mine.new_zeros(rows - len(mine), *mine.shape[1:])])
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with _exchanging():
            dist.all_gather(parts, padded)
        sizes = [len(range(count)[World(rank, self.size).share(count)]) for rank in range(self.size)]
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def gather(self, mine: T) -> list[T]:
        """What everybody has, picklable, by rank."""
        if self.size == 1:
            return [mine]
        everybody: list[Any] = [None] * self.size
        with _exchanging():
            dist.all_gather_object(everybody, mine)
        return everybody

    def told(self, find: Callable[[], T]) -> T:
        """What the main process finds, picklable, told to everybody; the others do not look."""
        return self.gather(find() if self.main else None)[0]  # type: ignore[return-value]

    def any(self, here: bool) -> bool:
        """Whether it is so for anybody."""
        told = torch.tensor(float(here))
        self.sum([told])
        return bool(told)

    def wait(self) -> None:
        """For all to come here."""
        self.any(False)


ALONE = World()
"""One process."""


@contextlib.contextmanager
def _exchanging() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise Lost(str(error)) from error


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes that were started together; one where there are no others.

    Args:
        device: this process's; where it is a GPU, they exchange what lies on GPUs too.

    Raises:
        RunError: they do not find each other, or lose one.
        SystemExit: they lose one, and this program started them; `launch.start` then says why.
    """
    place = launch.place()
    if place.size == 1:
        yield ALONE
        return
    launch.stop_with_parent()
    if place.address:  # SLURM's environment, said as torchrun would
        os.environ["MASTER_ADDR"], port = place.address
        os.environ |= {"MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(place.here)}
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    try:
        store, *_ = next(dist.rendezvous("env://", place.rank, place.size, timeout=JOINING))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=store,
            rank=place.rank,
            world_size=place.size,
            timeout=WAITING,
        )
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RunError(
            f"the {place.size} processes of this run do not find each other at {where}: {str(error).splitlines()[0]}",
            "were all of them started, and can their machines reach each other?",
        ) from error
    try:
        yield World(place.rank, place.size)
    except Lost as lost:
        if launch.STARTED in os.environ:
            if place.rank:  # kept from the terminal, and shown where nobody else had anything to say
                sys.stderr.write(lost.message)
            raise SystemExit(launch.LOST) from None
        raise
    finally:
        dist.destroy_process_group()
