"""Datasets as the engine sees them, and how their samples become batches."""

from __future__ import annotations

import hashlib
import signal
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from advdistill.engine.launch import cores, place
from advdistill.engine.noise import Noise
from advdistill.engine.types import ClassSet
from advdistill.errors import DataError, MissingSplit, RunError, RunWarning, UsageError, UserError

T = TypeVar("T")

SPLITS = ("train", "val", "test")
MOST_WORKERS = 8
WORTH_WORKERS = 256
"""Fewer images are decoded in about the time that processes take to start and to be fed."""


class Split(ABC):
    """Samples in a fixed order.

    Attributes:
        labels: (N,) long.
        ids: N stable names, such as paths relative to the data's root.
        augments: training sees other images than `load` gives.
        decodes: loading takes work that other processes could do.
        sources: (N, k) long; which underlying pictures each sample is made of, one number for one picture: samples
            that share some are not independent, and intervals must know. None: they share nothing.
        skipped: names of samples that would belong to it, but cannot be read (`data.on_error: skip`).
    """

    labels: Tensor
    ids: Sequence[str]
    sources: Tensor | None = None
    skipped: Sequence[str] = ()
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
        """What `augment` starts from, (3, H', W') uint8 or float32 in [0, 1], the same H' and W' for all and the same
        pixels every time; by default the image.

        Raises:
            DataError: as `load`.
        """
        return self.load(index)

    def augment(self, canvases: Tensor, noise: Noise) -> Tensor:
        """Training views, all samples in one pass on their device; by default what they are made from.

        Args:
            canvases: (B, 3, H', W') float32 in [0, 1]; not to be changed.
            noise: the only source of randomness, so that a view depends on its own sample and on the epoch alone.

        Returns:
            (B, 3, H, W) float32 in [0, 1]; where `augments` is False, the images.
        """
        return canvases

    def size(self, index: int) -> int | None:
        """Bytes of the file that holds this sample and nothing else; None: there is none. Raises DataError where the
        file is missing."""
        return None

    @cached_property
    def content(self) -> str:
        """Hash of the pixels of some samples, evenly spaced: the same names can stand for other images. All of up to
        511, at least 256 of more."""
        found = hashlib.sha256()
        for index in range(0, len(self), max(len(self) // 256, 1)):
            image = self.load(index)
            found.update(f"{tuple(image.shape)}".encode() + image.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    @cached_property
    def version(self) -> str:
        """Hash of all that the images are made from: changes when any of them does. By default of every pixel that
        `load` gives; a split that decodes overrides it by something that need not look at all pixels."""
        found = hashlib.sha256(self.digest.encode())
        for index in range(len(self)):
            image = self.load(index)
            found.update(f"{tuple(image.shape)}{image.dtype}".encode() + image.contiguous().numpy().tobytes())
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

    Raises:
        MissingData: it is not on this machine. DataError: it is, and cannot be used.

    Attributes:
        classes: names in label order, and the templates that the data set is usually classified with.
    """

    classes: ClassSet

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def split(self, name: str) -> Split:
        """The samples of "train", "val" or "test". Raises MissingSplit where there is no such split."""

    def listed(self, name: str) -> Split:
        """As `split`, for who asks for names and labels alone: no image is opened, and no split is sealed."""
        return self.split(name)

    def record(self) -> dict[str, Any]:
        """JSON-able facts for the checkpoint that say which samples were used (default: nothing beyond digests)."""
        return {}

    def parts(self) -> Sequence[Path]:
        """Files beside those of single samples that the samples depend on: archives and tables that hold many of them,
        lists that divide them (default: none)."""
        return ()


class Part(Dataset):
    """Another data set of which a part is used; this one uses all of it.

    Args:
        whole: the other one.
    """

    def __init__(self, whole: Dataset) -> None:
        super().__init__(whole.config)
        self.whole, self.classes = whole, whole.classes

    def split(self, name: str) -> Split:
        return self.whole.split(name)

    def listed(self, name: str) -> Split:
        return self.whole.listed(name)

    def record(self) -> dict[str, Any]:
        return self.whole.record()

    def parts(self) -> Sequence[Path]:
        return self.whole.parts()


class HalfOfClasses(Part):
    """The first or the second half of another data set's classes, in their order, and their samples.

    Args:
        whole: the other one.
        half: "base", the first ceil(C / 2) classes, or "new", the others; as in CoOp's base-to-new protocol
            (arXiv 2203.05557, section 4.1).

    Raises:
        UsageError: a half has fewer than two classes.
    """

    def __init__(self, whole: Dataset, half: str) -> None:
        super().__init__(whole)
        names = whole.classes.names
        middle = -(-len(names) // 2)
        self._first, last = (0, middle) if half == "base" else (middle, len(names))
        if last - self._first < 2:
            raise UsageError(
                f"the {half} half of {len(names)} classes is {last - self._first}: it takes at least two classes",
                "leave data.half out",
            )
        self.classes = ClassSet(names[self._first : last], whole.classes.templates)

    def split(self, name: str) -> Split:
        return self._of(self.whole.split(name))

    def listed(self, name: str) -> Split:
        return self._of(self.whole.listed(name))

    def _of(self, whole: Split) -> Split:
        last = self._first + len(self.classes)
        chosen = ((whole.labels >= self._first) & (whole.labels < last)).nonzero().squeeze(1)
        return Subset(whole, chosen, whole.labels[chosen] - self._first)


class Sealed(Part):
    """Another data set without its test split."""

    def split(self, name: str) -> Split:
        if name == "test":
            raise MissingSplit(
                "the test split is sealed in this run (data.sealed)", "measure on val, and `advdistill evaluate` later"
            )
        return super().split(name)


class Readable(Part):
    """Another data set without the images that cannot be read; each split is looked at once, in whole, when it is first
    asked for, and says which are `skipped`.

    Raises:
        DataError: of a split, or of one of its classes, no image is left.
    """

    def __init__(self, whole: Dataset) -> None:
        super().__init__(whole)
        self._known: dict[str, Split] = {}
        self._skipped: dict[str, list[str]] = {}

    def record(self) -> dict[str, Any]:
        return {**super().record(), "unreadable": dict(self._skipped)}

    def split(self, name: str) -> Split:
        if name not in self._known:
            self._known[name] = self._readable(name)
        return self._known[name]

    def _readable(self, name: str) -> Split:
        whole = super().split(name)
        errors = unreadable(whole)
        if not errors:
            return whole
        kept = torch.tensor([index for index in range(len(whole)) if index not in errors], dtype=torch.long)
        split = Subset(whole, kept)
        if lost := set(whole.labels.tolist()) - set(split.labels.tolist()):
            raise DataError(
                f"no image of class {self.classes.names[min(lost)]!r} in the {name} split can be read",
                "`advdistill data verify` lists them all",
            )
        self._skipped[name] = split.skipped = [whole.ids[index] for index in sorted(errors)]
        some = ", ".join(split.skipped[:3]) + (", …" if len(split.skipped) > 3 else "")
        warnings.warn(
            f"{len(split.skipped)} of {len(whole)} images of the {name} split cannot be read and are skipped: {some}",
            RunWarning,
            stacklevel=2,
        )
        return split


class Subset(Split):
    """Some samples of another split.

    Args:
        whole: the other one.
        places: (n,) long, where in it they stand.
        labels: (n,) long, if they have others here.
    """

    def __init__(self, whole: Split, places: Tensor, labels: Tensor | None = None) -> None:
        self._whole, self.augments, self.decodes = whole, whole.augments, whole.decodes
        self._places = places.tolist()
        self.labels = whole.labels[places] if labels is None else labels
        self.ids = [whole.ids[place] for place in self._places]
        self.sources = None if whole.sources is None else whole.sources[places]

    def size(self, index: int) -> int | None:
        return self._whole.size(self._places[index])

    def load(self, index: int) -> Tensor:
        return self._whole.load(self._places[index])

    def canvas(self, index: int) -> Tensor:
        return self._whole.canvas(self._places[index])

    def augment(self, canvases: Tensor, noise: Noise) -> Tensor:
        return self._whole.augment(canvases, noise)

    @cached_property
    def version(self) -> str:
        return hashlib.sha256(f"{self._whole.version}/{self.digest}".encode()).hexdigest()[:16]


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
    for members in order[labels[order].argsort(stable=True)].split(labels.bincount().tolist()):
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


def stacked(images: Sequence[Tensor]) -> Tensor:
    """(n, 3, H, W) uint8 or float32 of n images, as splits give them.

    Raises:
        DataError: they differ in shape or type, or hold something else than uint8, or float32 in [0, 1].
    """
    shapes = {(tuple(image.shape), str(image.dtype).removeprefix("torch.")) for image in images}
    if len(shapes) > 1:
        told = ", ".join(f"{shape} {dtype}" for shape, dtype in sorted(shapes))
        raise DataError(f"images of one batch differ: {told}", "let the dataset resize them")
    return valid(torch.stack(list(images)))


def valid(images: Tensor) -> Tensor:
    """`images`. Raises DataError unless they are uint8, or float32 in [0, 1]; NaN is not in [0, 1]."""
    if images.dtype == torch.uint8:
        return images
    low, high = (extreme.item() for extreme in images.aminmax())
    if not (images.dtype == torch.float32 and low >= 0 and high <= 1):
        raise DataError(
            f"images must be uint8, or float32 in [0, 1]; these are {images.dtype} in [{low:.3g}, {high:.3g}]"
        )
    return images


def pixels(images: Tensor) -> Tensor:
    """float32 in [0, 1] of uint8, or of what is float32 already, where they are."""
    if images.dtype != torch.uint8:
        return images
    # The divisor lies beside the images: by a number CUDA would multiply with its rounded inverse, and the same image
    # would be another one there than here.
    return images.to(torch.float32).div_(torch.full((), 255.0, device=images.device))


def workers_for(split: Split, asked: int | str, images: int | None = None) -> int:
    """How many processes decode for this one.

    Args:
        asked: a number, or "auto": one for each core of this machine but one, at most `MOST_WORKERS`, divided among
            the run's processes here; none where nothing is decoded, or fewer than `WORTH_WORKERS` images in all.
        images: how many will be decoded; None: no end of them.
    """
    if asked != "auto":
        return int(asked)
    if not split.decodes or (images is not None and images < WORTH_WORKERS):
        return 0
    return max(min(cores() // place().here - 1, MOST_WORKERS), 0)


class _Reader(torch.utils.data.Dataset[Any]):
    def __init__(self, look: Callable[[int], Any]) -> None:
        self._look = look

    def __getitem__(self, index: int) -> Any:
        try:
            return self._look(index)
        except UserError as error:
            # Handed over, not raised: DataLoader would make a traceback its message where a worker raised it.
            return error


def _collate(gather: Callable[[list[Any]], T], handed: list[Any]) -> T | UserError:
    for each in handed:
        if isinstance(each, UserError):
            return each
    try:
        return gather(handed)
    except UserError as error:
        return error


def _ignore_interrupt(_: int) -> None:
    """Ctrl-C reaches every process of a terminal; what becomes of it is for the one that trains to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Loader:
    """Images by batches of indices, decoded by this process or by others that stay from one call to the next.

    Args:
        look: index -> image, as splits give them.
        workers: processes that decode, some batches ahead; 0: this one, when the batch is asked for.
        gather: what becomes of a batch's; where `look` says something else of an image, this is something else, too.
    """

    def __init__(
        self, look: Callable[[int], Any], workers: int = 0, gather: Callable[[list[Any]], Any] = stacked
    ) -> None:
        self.workers, self._look, self._gather, self._plan = workers, look, gather, list[Sequence[int]]()
        self._loader: DataLoader[Any] | None = None

    def __call__(self, batches: Sequence[Sequence[int]]) -> Iterator[Any]:
        """(n, 3, H, W) uint8, or float32 in [0, 1], of each batch, on the CPU; a new call ends the one before.

        Raises:
            DataError: an image cannot be read, or does not match its batch mates.
            RunError: a process that decodes has died.
        """
        if not self.workers:
            return (self._gather([self._look(index) for index in batch]) for batch in batches)
        self._plan[:] = batches
        if self._loader is None:
            self._loader = DataLoader(
                _Reader(self._look),
                batch_sampler=self._plan,  # type: ignore[arg-type]
                collate_fn=partial(_collate, self._gather),
                num_workers=self.workers,
                persistent_workers=True,
                worker_init_fn=_ignore_interrupt,
                generator=torch.Generator(),  # else each call would draw from the global generator
            )
        # Torch would raise what becomes of a worker from a signal handler, in the middle of whatever goes on then.
        before = signal.getsignal(signal.SIGCHLD)
        ahead = _or_error(partial(iter, self._loader))
        if before is not None and before is not signal.getsignal(signal.SIGCHLD):
            signal.signal(signal.SIGCHLD, before)
        return self._handed_over(ahead)

    def _handed_over(self, ahead: Iterator[Any] | Exception) -> Iterator[Any]:
        while True:
            images = ahead if isinstance(ahead, Exception) else _or_error(partial(next, ahead, None))
            if images is None:
                return
            if isinstance(images, Exception):
                # The processes go with the last reference to them. The error would hold some, and the garbage collector
                # would take their queues apart before it tells them to end, and wait for them.
                self._loader = None
                del ahead
                raise images
            yield images


def _or_error(step: Callable[[], T]) -> T | Exception:
    """What `step` gives; else, without what led to it, what was raised in a process that decodes, or that one died."""
    try:
        return step()
    except Exception as error:
        if "in DataLoader worker process" in str(error):
            return error.with_traceback(None)  # the one of over there is in its message
        missed = isinstance(error, (EOFError, ConnectionError)) or "DataLoader worker (pid" in str(error)
        if not missed:
            raise
    return RunError(
        "a process that decodes images was killed",
        "often for want of memory: set train.workers to a smaller number, or to 0",
    )


def looked_at(split: Split, look: Callable[[int], T], workers: int | str = "auto") -> Iterator[T]:
    """What `look` says of every sample of `split`, by its index and in order, in processes as `workers_for` has it."""
    portions = [range(start, min(start + 32, len(split))) for start in range(0, len(split), 32)]
    for said in Loader(look, workers_for(split, workers, len(split)), gather=list)(portions):
        yield from said


def unreadable(split: Split) -> dict[int, str]:
    """What of `split` cannot be read: index -> why."""
    return {index: why for index, why in enumerate(looked_at(split, partial(_unreadable, split))) if why}


def _unreadable(split: Split, index: int) -> str:
    try:
        image_of(split, index)
    except DataError as error:
        return error.message
    return ""


def image_of(split: Split, index: int) -> Tensor:
    """An image of `split`, for who must not stumble: whatever is wrong with it is a DataError."""
    try:
        return valid(split.load(index))
    except DataError:
        raise
    except Exception as error:  # of a reader that does not keep its contract
        raise DataError(f"image {split.ids[index]} cannot be read: {type(error).__name__}: {error}") from error


def read(split: Split, batches: Sequence[Sequence[int]], *, workers: int = 0) -> Iterator[Batch]:
    """Batches of `split` in the order given, as they are evaluated, on the CPU.

    Args:
        batches: indices, one list a batch.
        workers: processes that decode; 0: this one. The result is the same.

    Raises:
        DataError, RunError: as `Loader`.
    """
    if not batches:
        return
    for indices, images in zip(batches, Loader(split.load, workers)(batches), strict=True):
        samples = torch.as_tensor(indices, dtype=torch.long)
        yield Batch(pixels(images), split.labels[samples], samples)
