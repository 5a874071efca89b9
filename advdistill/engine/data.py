"""Datasets as the engine sees them, and how their samples become batches."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from advdistill.engine.distributed import ALONE, World
from advdistill.engine.noise import Noise
from advdistill.engine.types import ClassSet
from advdistill.errors import DataError, UserError


class Split(ABC):
    """Samples in a fixed order.

    Attributes:
        labels: (N,) long.
        ids: N stable names, such as paths relative to the data's root.
        augments: training sees other images than `load` gives.
        decodes: loading takes work that other processes could do.
    """

    labels: Tensor
    ids: Sequence[str]
    augments: bool = False
    decodes: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def load(self, index: int) -> Tensor:
        """One image as it is evaluated, (3, H, W): uint8, or float32 in [0, 1]; the same H and W for all.

        Raises:
            DataError: the image is missing or cannot be read; names the file.
        """

    def canvas(self, index: int) -> Tensor:
        """What `augment` starts from, (3, H', W') uint8 or float32 in [0, 1], alike for all; by default the image."""
        return self.load(index)

    def augment(self, canvases: Tensor, noise: Noise) -> Tensor:
        """Training views, all samples in one pass on their device; by default what they are made from.

        Args:
            canvases: (B, 3, H', W') float32 in [0, 1].
            noise: the only source of randomness.

        Returns:
            (B, 3, H, W) float32 in [0, 1].
        """
        return canvases

    @cached_property
    def content(self) -> str:
        """Hash of the pixels of up to 256 samples, evenly spaced: the same names can stand for other images."""
        found = hashlib.sha256()
        for index in range(0, len(self), max(len(self) // 256, 1)):
            image = self.load(index)
            found.update(f"{tuple(image.shape)}".encode() + image.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    @cached_property
    def digest(self) -> str:
        """Hash of ids and labels: two splits with one digest hold the same samples."""
        text = "\n".join(f"{name}\t{label}" for name, label in zip(self.ids, self.labels.tolist(), strict=True))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class ArraySplit(Split):
    """Samples that lie in memory.

    Args:
        images: (N, 3, H, W) uint8, or float32 in [0, 1].
        labels: (N,) long.
        ids: N names.
    """

    def __init__(self, images: Tensor, labels: Tensor, ids: Sequence[str]) -> None:
        self.images, self.labels, self.ids = images, labels, ids

    def load(self, index: int) -> Tensor:
        return self.images[index]


class Dataset(ABC):
    """Images, labels and class names.

    Args:
        config: the validated settings of this dataset.

    Attributes:
        classes: names in label order, and the templates that the data set is usually classified with.
    """

    classes: ClassSet

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def split(self, name: str) -> Split:
        """The samples of "train", "val" or "test". Raises DataError where there is no such split."""

    def record(self) -> dict[str, Any]:
        """JSON-able facts for the checkpoint that say which samples were used (default: nothing beyond digests)."""
        return {}


class HalfOfClasses(Dataset):
    """The first or the second half of another data set's classes, in their order, and their samples.

    Args:
        whole: the other one.
        half: "base", the first ceil(C / 2) classes, or "new", the others; as in CoOp's base-to-new protocol
            (arXiv 2203.05557, section 4.1).

    Raises:
        UsageError: a half has fewer than two classes.
    """

    def __init__(self, whole: Dataset, half: str) -> None:
        super().__init__(whole.config)
        self._whole = whole
        names = whole.classes.names
        middle = -(-len(names) // 2)
        self._first, last = (0, middle) if half == "base" else (middle, len(names))
        self.classes = ClassSet(names[self._first : last], whole.classes.templates)

    def split(self, name: str) -> Split:
        return _Classes(self._whole.split(name), self._first, self._first + len(self.classes))

    def record(self) -> dict[str, Any]:
        return self._whole.record()


class _Classes(Split):
    """The samples of a split with labels in [first, last), which become [0, last - first)."""

    def __init__(self, whole: Split, first: int, last: int) -> None:
        self._whole, self.augments, self.decodes = whole, whole.augments, whole.decodes
        self._places = ((whole.labels >= first) & (whole.labels < last)).nonzero().squeeze(1).tolist()
        self.labels = whole.labels[self._places] - first
        self.ids = [whole.ids[place] for place in self._places]

    def load(self, index: int) -> Tensor:
        return self._whole.load(self._places[index])

    def canvas(self, index: int) -> Tensor:
        return self._whole.canvas(self._places[index])

    def augment(self, canvases: Tensor, noise: Noise) -> Tensor:
        return self._whole.augment(canvases, noise)


@dataclass(frozen=True)
class Batch:
    """images (B, 3, H, W) float32 in [0, 1]; labels (B,) long; samples (B,) long, each one's index in its split."""

    images: Tensor
    labels: Tensor
    samples: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        return Batch(self.images[rows], self.labels[rows], self.samples[rows])


def seeded(*key: object) -> torch.Generator:
    """A CPU generator whose seed is a hash of `key`."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def stratified(labels: Tensor, limit: int, seed: int) -> Tensor:
    """Sorted indices of at most `limit` samples (0: all), with every class as evenly present as its size allows."""
    if limit <= 0 or limit >= len(labels):
        return torch.arange(len(labels))
    order = torch.randperm(len(labels), generator=seeded(seed, "subset"))
    # Rank within the class, then take ranks in turn: the first of every class, the second of every class, …
    rank = torch.empty_like(order)
    for label in labels.unique():
        members = order[labels[order] == label]
        rank[members] = torch.arange(len(members))
    return order[rank[order].argsort(stable=True)[:limit]].sort().values


def epoch_order(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffled batches of one epoch. The last, incomplete batch is dropped, unless it is the only one."""
    order = torch.randperm(count, generator=seeded(seed, "order", epoch)).tolist()
    batches = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) < batch_size else batches


def steps_per_epoch(count: int, batch_size: int) -> int:
    """How many batches `epoch_order` yields."""
    return max(count // batch_size, 1)


Sample = tuple[Tensor, int, int]


class _Reader(torch.utils.data.Dataset[Tensor]):
    def __init__(self, split: Split, look: Callable[[int], Tensor]) -> None:
        self.split, self.look = split, look

    def __getitem__(self, index: int) -> Sample | UserError:  # type: ignore[override]
        try:
            return self.look(index), int(self.split.labels[index]), index
        except UserError as error:
            # Handed over, not raised: DataLoader would make a traceback its message where a worker raised it.
            return error


def _collate(samples: list[Sample | UserError]) -> Batch | UserError:
    try:
        return _stack(samples)
    except UserError as error:
        return error


def _stack(handed: list[Sample | UserError]) -> Batch:
    samples: list[Sample] = []
    for sample in handed:
        if isinstance(sample, UserError):
            raise sample
        samples.append(sample)
    shapes = {tuple(image.shape) for image, _, _ in samples}
    if len(shapes) > 1:
        raise DataError(f"images of one batch differ in shape: {sorted(shapes)}", "let the dataset resize them")
    images = torch.stack([image for image, _, _ in samples])
    if images.dtype == torch.uint8:
        images = images.to(torch.float32).div_(255)
    if not (images.dtype == torch.float32 and images.amin() >= 0 and images.amax() <= 1):
        raise DataError(
            f"images must be uint8, or float32 in [0, 1]; these are {images.dtype} in "
            f"[{images.amin().item():.3g}, {images.amax().item():.3g}]"
        )
    labels, indices = (torch.tensor([sample[k] for sample in samples]) for k in (1, 2))
    return Batch(images, labels, indices)


def workers_for(split: Split, asked: int | str, world: World = ALONE) -> int:
    """How many processes decode for each of the run's: `asked`, or where that is "auto" one a core, at most 8."""
    if asked != "auto":
        return int(asked)
    return min((os.cpu_count() or 1) // world.size, 8) if split.decodes else 0


def read(
    split: Split, batches: Sequence[Sequence[int]], *, workers: int = 0, canvases: bool = False
) -> Iterator[Batch]:
    """Batches of `split` in the order given, on the CPU.

    Args:
        batches: indices, one list a batch.
        workers: processes that decode; 0: this one. The result is the same.
        canvases: what augmentation starts from is wanted, not the images themselves.

    Raises:
        DataError: an image cannot be read, or does not match its batch mates.
    """
    loader = DataLoader(
        _Reader(split, split.canvas if canvases else split.load),
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_collate,
        num_workers=workers,
        generator=torch.Generator(),  # else each epoch would draw from the global generator
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch
