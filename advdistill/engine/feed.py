"""The way of training images: decoded once or as they are needed, brought to the device, augmented there.

Images stay 8 bits a value until they are on the device. What a batch holds depends on its samples and on their noise
alone: neither on who decodes, nor on what stays in memory, nor on how many processes share the batch.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from advdistill.engine import build
from advdistill.engine.data import (
    ArraySplit,
    Batch,
    Loader,
    Split,
    epoch_order,
    pixels,
    stacked,
    valid,
    workers_for,
)
from advdistill.engine.distributed import ALONE, World
from advdistill.engine.launch import place
from advdistill.engine.noise import Noise
from advdistill.engine.participant import exact
from advdistill.engine.timing import wait
from advdistill.errors import DataError

if TYPE_CHECKING:
    from advdistill.hooks.registry import Registry
    from advdistill.recipe.resolve import Recipe

T = TypeVar("T")


class Feed:
    """Training batches of a split, on a device.

    Args:
        split: the samples.
        device: where batches are wanted.
        workers: processes that decode; 0: this one; "auto": see `workers_for`.
        keep: bytes that decoded images may take in the memory of one machine, from one epoch to the next. Either all
            images fit, or none is kept. Every process keeps what it has seen, which in the end may be everything.
        world: each process gets its share of every batch.
    """

    def __init__(
        self,
        split: Split,
        device: torch.device,
        *,
        workers: int | str = 0,
        keep: int = 0,
        world: World = ALONE,
    ) -> None:
        if device.type == "cuda" and device.index is None:  # it would be another one to the thread that runs ahead
            device = torch.device("cuda", torch.cuda.current_device())
        self._split, self._device, self._world = split, device, world
        self._asked, self._keep = workers, keep
        self._like: Tensor | None = None
        self._memory: Tensor | None = None
        self._has = bytearray(len(split))
        self._loader: Loader | None = None

    @property
    def workers(self) -> int:
        """Processes that decode for this one at present."""
        return self._loader.workers if self._loader else 0

    @property
    def keeps(self) -> bool:
        """Whether images stay in memory; known once batches were asked for."""
        return self._memory is not None

    def batches(self, order: Sequence[Sequence[int]], noise: Callable[[Tensor], Noise]) -> Iterator[Batch]:
        """This process's share of each batch, augmented.

        Args:
            order: indices into the split, one list a batch, none empty for any process. One call at a time: a new one
                ends the one before.
            noise: samples (n,) long -> their draws for augmentation.

        Raises:
            DataError: an image cannot be read, or is not like the others.
            RunError: a process that decodes has died.
        """
        mine = [batch[self._world.share(len(batch))] for batch in order]
        for batch in self._brought(self._canvases(mine)):
            yield Batch(self._augmented(batch.images, noise(batch.samples)), batch.labels, batch.samples)

    def close(self) -> None:
        """Let go of the processes that decode; what is kept stays."""
        self._loader = None

    def _augmented(self, canvases: Tensor, noise: Noise) -> Tensor:
        with exact():  # augmentation may multiply matrices; pixels are float32 whatever the towers compute in
            return self._split.augment(pixels(canvases), noise)

    def _canvases(self, batches: list[Sequence[int]]) -> Iterator[Batch]:
        """Canvases as they are stored, on the CPU. Processes that decode begin when this is called."""
        if self._like is None and batches:
            self._like = self._first_look(batches[0][0])
        missing = [[index for index in batch if not self._has[index]] for batch in batches]
        wanted = [indices for indices in missing if indices]
        if all(self._has):
            self.close()
        elif wanted and self._loader is None:
            images = len(self._split) if self.keeps else None
            workers = workers_for(self._split, self._asked, images)
            self._loader = Loader(self._split.canvas, workers)
        loaded = self._loader(wanted) if self._loader and wanted else iter(())
        return self._joined(batches, missing, loaded)

    def _first_look(self, index: int) -> Tensor:
        """One canvas, which the others must be like. Provides the memory for all, if they may stay."""
        split = self._split
        if isinstance(split, ArraySplit) and type(split).load is ArraySplit.load and type(split).canvas is Split.canvas:
            self._memory, self._has = valid(split.images), bytearray(b"\1" * len(split))
            return split.images[index]
        canvas = stacked([split.canvas(index)])[0]
        size = len(split) * canvas.numel() * canvas.element_size()
        if size * place().here <= self._keep:
            self._memory = torch.empty((len(split), *canvas.shape), dtype=canvas.dtype)
        return canvas

    def _joined(
        self, batches: list[Sequence[int]], missing: list[list[int]], loaded: Iterator[Tensor]
    ) -> Iterator[Batch]:
        for batch, indices in zip(batches, missing, strict=True):
            fresh = self._alike(next(loaded)) if indices else None
            if self._memory is None:
                assert fresh is not None
                yield self._batch(fresh, batch)
                continue
            if fresh is not None:
                self._memory[indices] = fresh
                for index in indices:
                    self._has[index] = 1
            yield self._batch(self._memory[list(batch)], batch)

    def _alike(self, canvases: Tensor) -> Tensor:
        assert self._like is not None
        wanted, found = _kind(self._like), _kind(canvases[0])
        if wanted != found:
            raise DataError(f"images of one split differ: {wanted} and {found}", "let the dataset resize them")
        return canvases

    def _batch(self, canvases: Tensor, indices: Sequence[int]) -> Batch:
        samples = torch.as_tensor(indices, dtype=torch.long)
        return Batch(canvases, self._split.labels[samples], samples)

    def _brought(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches on the device. To a GPU the next one travels while the present one is worked on."""
        if self._device.type != "cuda":
            for batch in batches:
                yield Batch(*(tensor.to(self._device) for tensor in _tensors(batch)))
            return
        stream = torch.cuda.Stream(self._device)

        def bring() -> Iterator[tuple[Batch, torch.cuda.Event]]:
            for batch in batches:
                with torch.cuda.stream(stream):
                    moved = Batch(*(t.pin_memory().to(self._device, non_blocking=True) for t in _tensors(batch)))
                yield moved, stream.record_event()

        for moved, arrived in ahead(bring()):
            present = torch.cuda.current_stream(self._device)
            present.wait_event(arrived)
            for tensor in _tensors(moved):
                tensor.record_stream(present)  # else its memory could be given away while it is still read
            yield moved


def _kind(image: Tensor) -> str:
    return f"{tuple(image.shape)} {image.dtype}".replace("torch.", "")


def _tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.images, batch.labels, batch.samples


def ahead(source: Iterator[T], depth: int = 2) -> Iterator[T]:
    """What `source` yields, made by a thread that is up to `depth` things ahead; raises what it raises, in its place.

    Args:
        source: yields anything but None.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        waiting = deque(thread.submit(next, source, None) for _ in range(depth))
        while (found := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, source, None))
            yield found
    finally:
        thread.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class LoadingRates:
    """How fast training images come, when nothing else is done.

    Attributes:
        first: images a second in the first epoch, decoded by `workers`; files that the operating system still has in
            memory come faster than from the disk.
        later: images a second in later epochs.
        augment_seconds_per_image: of these, what conversion, the way to the device and augmentation take.
        workers: processes that decode in the first epoch; 0: the training process itself.
        kept: whether images stay in memory from one epoch to the next.
    """

    first: float
    later: float
    augment_seconds_per_image: float
    workers: int
    kept: bool


def loading_rates(recipe: Recipe, registry: Registry, seconds: float = 3.0) -> LoadingRates:
    """Feed the recipe's batches to nobody, for about `seconds` in the first epoch and again in later ones.

    Raises:
        DataError, PluginError: from the data.
        UsageError: its device cannot be used.
    """
    train, device = recipe.train, build.device_of(recipe.train.device)
    split = build.dataset(registry, recipe.data).split("train")
    feed = Feed(split, device, workers=train.workers, keep=train.keep_images)

    def epoch(number: int, order: list[list[int]]) -> Iterator[Batch]:
        return feed.batches(order, partial(Noise, recipe.seed, "augment", number))

    order = epoch_order(len(split), train.batch_size, recipe.seed, 0)
    first, count = _paced(epoch(0, order), seconds, device)
    workers, again = feed.workers, order[:count] if feed.keeps else order
    later, _ = _paced(chain.from_iterable(epoch(number, again) for number in itertools.count(1)), seconds, device)

    canvases = next(feed._canvases([order[0]]))
    noise = Noise(recipe.seed, "augment", 1, canvases.samples.to(device))

    def augmented() -> Iterator[Batch]:
        while True:
            yield Batch(feed._augmented(canvases.images.to(device), noise), canvases.labels, canvases.samples)

    augmenting, _ = _paced(augmented(), min(seconds, 1.0), device)
    return LoadingRates(first, later, 1 / augmenting, workers, feed.keeps)


def _paced(batches: Iterator[Batch], seconds: float, device: torch.device) -> tuple[float, int]:
    """Images a second, and how many batches came, until there are no more or `seconds` are over."""
    images = count = 0
    began = time.perf_counter()
    for batch in batches:
        images, count = images + len(batch), count + 1
        if time.perf_counter() - began > seconds:
            break
    wait(device)
    return images / (time.perf_counter() - began), count
