"""The way of training images: decoded once or as they are needed, brought to the device, augmented there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from advdistill.engine.data import Batch, Split, read
from advdistill.engine.distributed import ALONE, World
from advdistill.engine.noise import Noise


class Feed:
    """Training batches of a split, on a device.

    Args:
        split: the samples.
        device: where batches are wanted.
        workers: processes that decode; 0: this one.
        keep: bytes that decoded images may take in memory, from one epoch to the next.
        world: each process gets its share of every batch.
    """

    def __init__(
        self, split: Split, device: torch.device, *, workers: int = 0, keep: int = 0, world: World = ALONE
    ) -> None:
        self._split, self._device, self._workers, self._keep, self._world = split, device, workers, keep, world

    def batches(self, order: Sequence[Sequence[int]], noise: Callable[[Tensor], Noise]) -> Iterator[Batch]:
        """This process's share of each batch, augmented.

        Args:
            order: indices into the split, one list a batch.
            noise: samples (n,) long -> their draws for augmentation.
        """
        mine = [batch[self._world.share(len(batch))] for batch in order]
        for batch in read(self._split, mine, workers=self._workers, canvases=True):
            moved = Batch(*(t.to(self._device, non_blocking=True) for t in (batch.images, batch.labels, batch.samples)))
            yield Batch(self._split.augment(moved.images, noise(moved.samples)), moved.labels, moved.samples)
