"""Several processes that take one run's steps together.

Every process holds the whole model and takes its share of each batch. What they exchange: the gradients of what
learns, summed in one piece; class features, each encoded by one process; sums of losses; outcomes of an evaluation.
So all of them stay equal, bit for bit, and nothing is wrapped.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


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
        dist.all_gather(parts, padded)
        sizes = [len(range(count)[World(rank, self.size).share(count)]) for rank in range(self.size)]
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def gather(self, mine: T) -> list[T]:
        """What everybody has, picklable, by rank."""
        if self.size == 1:
            return [mine]
        everybody: list[Any] = [None] * self.size
        dist.all_gather_object(everybody, mine)
        return everybody

    def any(self, here: bool) -> bool:
        """Whether it is so for anybody."""
        told = torch.tensor(float(here))
        self.sum([told])
        return bool(told)

    def wait(self) -> None:
        """For all to come here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()
"""One process."""


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """The processes that torchrun started; one where it did not."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    dist.init_process_group("gloo")
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
