"""Class features of one optimizer step: encoded once, however often they are asked for, with one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from advdistill.engine.distributed import ALONE, World

AT_MOST = 1024
"""Classes at a time where a recipe says `auto`: ImageNet's in one piece, without computing anything twice."""


class ClassFeatures:
    """(C, D) class features that many look at.

    They are handed out as a leaf, which collects everybody's gradients; `settle` carries the sum into the parameters.
    More than `chunk` classes are encoded a chunk at a time, and again in `settle` (all but the last), so that no more
    than one chunk's graph is ever held. Each process encodes its share of the classes. What models draw at random while
    they encode (dropout) is drawn again alike in `settle`; other chunks draw otherwise.

    Args:
        encode: classes (n,) long, on the CPU, or None for all -> (n, D), with a graph where gradients are on.
        count: C.
        learns: whether a graph is wanted.
        chunk: classes at a time; 0: all.
        world: who takes part.
        device: where `encode` computes.
    """

    def __init__(
        self,
        encode: Callable[[Tensor | None], Tensor],
        count: int,
        learns: bool,
        chunk: int = 0,
        world: World = ALONE,
        device: torch.device | str = "cpu",
    ) -> None:
        self._encode, self._count, self._learns, self._chunk, self._world = encode, count, learns, chunk, world
        # `checkpoint` restores the generators of the devices that its arguments lie on; classes lie on the CPU.
        self._place = torch.empty(0, device=device)
        self._mine: Tensor | None = None
        self._handed: Tensor | None = None

    def look(self) -> Tensor:
        """(C, D), encoded if they were not since the last `forget`."""
        if self._handed is None:
            with torch.set_grad_enabled(self._learns):
                self._mine = torch.cat(list(self._parts()))
            self._handed = self._world.whole(self._mine, self._count).requires_grad_(self._learns)
        return self._handed

    def settle(self) -> None:
        """Carry the gradients that the leaf collected into the parameters, once; then it is time to `forget`."""
        if self._learns and self._handed is not None and self._mine is not None:
            gradient = self._handed.grad
            # Where somebody has something to add, everybody takes part; where nobody has, nothing is reached by zeros.
            if self._world.size > 1 and self._world.any(gradient is not None):
                gradient = torch.zeros_like(self._handed) if gradient is None else gradient
                self._world.sum([gradient])
            if gradient is not None:
                self._mine.backward(gradient[self._world.share(self._count)])

    def forget(self) -> None:
        """An optimizer step has made them old."""
        self._mine = self._handed = None

    def _parts(self) -> Iterator[Tensor]:
        mine = torch.arange(self._count)[self._world.share(self._count)]
        pieces = max(-(-len(mine) // self._chunk), 1) if self._chunk else 1
        if pieces == self._world.size == 1:
            yield self._encode(None)
            return
        for number, classes in enumerate(mine.tensor_split(pieces)):
            if self._learns and number < pieces - 1:
                # The last piece's graph may stay: it is the first to be used and freed.
                yield checkpoint(lambda some, _: self._encode(some), classes, self._place, use_reentrant=False)
            else:
                yield self._encode(classes)
