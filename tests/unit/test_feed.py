"""The way of training images.

Guarantees:
- Batches are the same, bit for bit, whoever decodes, whatever stays in memory, however many processes share them, on
  the first epoch and on later ones, and after an epoch that was broken off; no global generator is touched.
- What fits is decoded once and never asked for again; where not all fit, nothing is kept; the bytes count for every
  process of the machine. Images that lie in memory are not copied.
- Processes that decode stay from one epoch to the next, and go when everything is kept; `auto` starts none where they
  cannot pay. One that is killed is an error that says so; Ctrl-C is not theirs to obey.
- A byte becomes the same number in training as in evaluation. Images that are not what they must be are told.
- What runs ahead keeps order, hands errors on in their place, and stops when nobody wants more.
- `loading_rates` counts what comes, once it is there.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
import run_parts
import torch
from torch import Tensor
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from advdistill.engine.data import (
    ArraySplit,
    Batch,
    HalfOfClasses,
    Split,
    epoch_order,
    pixels,
    read,
    seeded,
    stacked,
    workers_for,
)
from advdistill.engine.distributed import World
from advdistill.engine.feed import Feed, _paced, ahead, loading_rates
from advdistill.engine.noise import Noise
from advdistill.errors import DataError, RunError
from advdistill.hooks.registry import default_registry
from advdistill.testing import ToyDataset

CPU, COUNT, SIZE = torch.device("cpu"), 23, 5
BYTES = COUNT * 3 * 6 * 6


class Painted(Split):
    """Images that are painted when asked for; `asked` tells for which, as far as this process was."""

    augments = decodes = True

    def __init__(self, dtype: torch.dtype = torch.uint8) -> None:
        self.labels = torch.arange(COUNT) % 4
        self.ids = [str(i) for i in range(COUNT)]
        self.dtype, self.asked = dtype, list[int]()

    def load(self, index: int) -> Tensor:
        return self.canvas(index)[:, 1:-1, 1:-1]

    def canvas(self, index: int) -> Tensor:
        self.asked.append(index)
        levels = torch.randint(256, (3, 6, 6), generator=seeded("painted", index), dtype=torch.uint8)
        return levels if self.dtype == torch.uint8 else levels / 255

    def augment(self, canvases: Tensor, noise: Noise) -> Tensor:
        return canvases[..., 1:-1, 1:-1] * noise.uniform((1, 1, 1))


def fed(feed: Feed, epochs: int = 3) -> list[Batch]:
    found = []
    for epoch in range(epochs):
        found += feed.batches(epoch_order(COUNT, SIZE, 0, epoch), partial(Noise, 0, "augment", epoch))
    return found


def expected(split: Split, epochs: int = 3) -> Iterator[Batch]:
    for epoch in range(epochs):
        for indices in epoch_order(COUNT, SIZE, 0, epoch):
            samples = torch.tensor(indices)
            images = torch.stack([split.canvas(i) for i in indices])
            images = images.float() / 255 if images.dtype == torch.uint8 else images
            yield Batch(split.augment(images, Noise(0, "augment", epoch, samples)), split.labels[samples], samples)


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


@pytest.mark.parametrize(("workers", "keep"), [*itertools.product([0, 2], [0, BYTES])])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batches_are_the_same_whoever_makes_them(workers: int, keep: int, dtype: torch.dtype) -> None:
    split = Painted(dtype)
    before = torch.get_rng_state()
    found = fed(Feed(split, CPU, workers=workers, keep=keep * dtype.itemsize))
    assert torch.equal(torch.get_rng_state(), before)
    wanted = list(expected(split))
    assert len(found) == len(wanted) == 12
    assert all(same(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("workers", "keep"), [(0, 0), (2, 0), (2, BYTES)])
def test_a_gpu_gets_the_same(workers: int, keep: int) -> None:
    split = Painted()
    for mine, other in zip(
        fed(Feed(split, torch.device("cuda"), workers=workers, keep=keep)), expected(split), strict=True
    ):
        assert mine.images.is_cuda and same(Batch(*(getattr(mine, name).cpu() for name in vars(mine))), other)


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_very_batches(size: int) -> None:
    split = Painted()
    shares = [fed(Feed(split, CPU, keep=BYTES, world=World(rank, size))) for rank in range(size)]
    for parts, whole in zip(zip(*shares, strict=True), expected(split), strict=True):
        joined = Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(whole)))
        assert same(joined, whole) and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_what_lies_in_memory_is_taken_from_there() -> None:
    images = torch.rand(COUNT, 3, 6, 6)
    feed = Feed(ArraySplit(images, torch.arange(COUNT), [str(i) for i in range(COUNT)]), CPU, workers="auto")
    found = fed(feed, 1)
    assert all(torch.equal(batch.images, images[batch.samples]) for batch in found)
    assert feed._memory is images and feed.workers == 0

    class Moved(ArraySplit):
        def load(self, index: int) -> Tensor:
            return 1 - super().load(index)

    feed = Feed(Moved(images, torch.arange(COUNT), [str(i) for i in range(COUNT)]), CPU)
    assert all(torch.equal(batch.images, 1 - images[batch.samples]) for batch in fed(feed, 1))


def test_half_of_the_classes() -> None:
    split = HalfOfClasses(ToyDataset(None), "new").split("train")
    feed = Feed(split, CPU, keep=10**6)
    order = epoch_order(len(split), 7, 0, 0)
    for batch in feed.batches(order, partial(Noise, 0, "augment", 0)):
        assert torch.equal(batch.images, torch.stack([split.load(i) for i in batch.samples.tolist()]))
        assert torch.equal(batch.labels, split.labels[batch.samples])


def test_what_fits_is_decoded_once() -> None:
    split = Painted()
    feed = Feed(split, CPU, keep=BYTES)
    fed(feed, 8)
    assert feed.keeps
    first = split.asked.pop(0)  # looked at to find out how large images are
    assert sorted(split.asked) == list(range(COUNT)) and first in split.asked


def test_what_does_not_fit_is_decoded_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    split = Painted()
    feed = Feed(split, CPU, keep=BYTES - 1)
    fed(feed, 3)
    assert not feed.keeps and len(split.asked) == 1 + 3 * 20
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    feed = Feed(split, CPU, keep=2 * BYTES - 1, world=World(0, 2))
    fed(feed, 1)
    assert not feed.keeps
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # two machines
    feed = Feed(split, CPU, keep=BYTES, world=World(0, 2))
    fed(feed, 1)
    assert feed.keeps


class Signed(Painted):
    """Every image is the number of the process that painted it."""

    def canvas(self, index: int) -> Tensor:
        return torch.tensor(list(os.getpid().to_bytes(4, "little")), dtype=torch.uint8).view(1, 1, 4).expand(3, 1, 4)

    def augment(self, canvases: Tensor, noise: Noise) -> Tensor:
        return canvases


def painters(feed: Feed, epoch: int) -> set[int]:
    batches = feed.batches(epoch_order(COUNT, SIZE, 0, epoch), partial(Noise, 0, "augment", epoch))
    rows = torch.cat([batch.images[:, 0, 0] for batch in batches]).mul(255).round().long().tolist()
    return {int.from_bytes(bytes(row), "little") for row in rows}


def alive(pids: set[int]) -> bool:
    def runs(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    return any(map(runs, pids))


def test_processes_stay_over_epochs_and_go_when_all_is_kept() -> None:
    feed = Feed(Signed(), CPU, workers=2)
    first = painters(feed, 0)
    assert len(first) == 2 and os.getpid() not in first and feed.workers == 2
    assert painters(feed, 1) == first and alive(first)
    feed.close()
    assert not alive(first)

    feed = Feed(Signed(), CPU, workers=2, keep=COUNT * 12)
    first = painters(feed, 0)
    for epoch in range(1, 8):
        assert painters(feed, epoch) == first
    assert feed.workers == 0 and not alive(first)


def test_an_epoch_that_is_broken_off_leaves_nothing_behind() -> None:
    split = Painted()
    feed = Feed(split, CPU, workers=2)
    for _ in range(2):
        for batch in feed.batches(epoch_order(COUNT, SIZE, 0, 7), partial(Noise, 0, "augment", 7)):
            assert len(batch) == SIZE
            break
    assert all(same(one, other) for one, other in zip(fed(feed), expected(split), strict=True))


def test_how_many_processes_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    painted, ready = Painted(), ToyDataset(None).split("train")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert workers_for(painted, "auto") == workers_for(painted, "auto", 256) == 5
    assert workers_for(painted, "auto", 255) == workers_for(ready, "auto") == 0
    assert workers_for(ready, 3) == 3 and workers_for(painted, 0) == 0
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert workers_for(painted, "auto") == 2
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert workers_for(painted, "auto") == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert workers_for(painted, "auto") == 8


class Deadly(Painted):
    """Kills the process that paints one of its images, unless that is this one."""

    home = os.getpid()

    def canvas(self, index: int) -> Tensor:
        if index == 13 and os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().canvas(index)

    def load(self, index: int) -> Tensor:
        return self.canvas(index)


def test_a_killed_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))  # seconds; else 5
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(RunError, match="a process that decodes images was killed"):
        fed(Feed(Deadly(), CPU, workers=2))
    with pytest.raises(RunError, match="was killed"):
        list(read(Deadly(), [[i] for i in range(COUNT)], workers=1))
    assert signal.getsignal(signal.SIGCHLD) is handler


def test_a_fault_of_a_plugin_is_no_death() -> None:
    class Faulty(Painted):
        def canvas(self, index: int) -> Tensor:
            raise (RuntimeError, ConnectionError)[index % 2]("the plugin's own")

        def load(self, index: int) -> Tensor:
            return self.canvas(index)

    for index, kind in enumerate((RuntimeError, ConnectionError)):
        with pytest.raises(kind, match="the plugin's own"):
            list(read(Faulty(), [[index]], workers=1))


def test_ctrl_c_is_not_for_processes_that_decode() -> None:
    feed = Feed(Signed(), CPU, workers=2)
    pids = painters(feed, 0)
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert painters(feed, 1) == pids


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("keep", [0, 10**6])
@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (torch.zeros(3, 6, 7, dtype=torch.uint8), "differ"),
        (torch.zeros(3, 6, 6), "differ"),
        (DataError("image 11.png is missing", "restore it"), "11.png is missing"),
    ],
)
@pytest.mark.parametrize("size", [1, SIZE])
def test_an_odd_image_is_told(odd: Tensor | DataError, told: str, workers: int, keep: int, size: int) -> None:
    class Odd(Painted):
        def canvas(self, index: int) -> Tensor:
            if index != 11:
                return super().canvas(index)
            if isinstance(odd, DataError):
                raise odd
            return odd

    feed = Feed(Odd(), CPU, workers=workers, keep=keep)
    order = [list(range(i, min(i + size, COUNT))) for i in range(0, COUNT, size)]
    with pytest.raises(DataError, match=rf"^images? [^\n]*{told}[^\n]*\Z"):  # a line, no traceback
        list(feed.batches(order, partial(Noise, 0, "augment", 0)))


@pytest.mark.parametrize("odd", [1.5, -0.1, float("nan")])
def test_pixels_out_of_range_are_told(odd: float) -> None:
    images = torch.full((4, 3, 2, 2), 0.5)
    stacked(list(images))
    images[2, 0, 0, 0] = odd
    with pytest.raises(DataError, match=r"float32 in \[0, 1\]"):
        stacked(list(images))
    split = ArraySplit(images, torch.zeros(4, dtype=torch.long), list("abcd"))
    with pytest.raises(DataError, match=r"float32 in \[0, 1\]"):
        list(Feed(split, CPU).batches([[0, 1]], partial(Noise, 0, "augment", 0)))
    with pytest.raises(DataError, match=r"float64"):
        stacked(list(torch.zeros(4, 3, 2, 2).double()))


def test_a_byte_is_the_same_number_everywhere() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pixels(levels), levels.float() / 255)
    assert torch.equal(pixels(levels), torch.tensor([level / 255 for level in range(256)]))
    images = torch.randint(256, (4, 3, 2, 2), dtype=torch.uint8)
    split = ArraySplit(images, torch.zeros(4, dtype=torch.long), list("abcd"))
    [trained] = Feed(split, CPU).batches([[0, 1, 2, 3]], partial(Noise, 0, "augment", 0))
    [evaluated] = read(split, [[0, 1, 2, 3]])
    assert same(trained, evaluated) and torch.equal(trained.images, images.float() / 255)


def test_ahead_keeps_order_and_runs_but_so_far() -> None:
    made = []

    def source() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    assert list(ahead(source())) == list(range(10))
    made.clear()
    taken = ahead(source(), depth=2)
    assert next(taken) == 0
    taken.close()
    assert len(made) <= 4 and not any(thread.name.startswith("ahead") for thread in threading.enumerate())


def test_ahead_hands_errors_on_in_their_place() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise DataError("gone")

    taken = ahead(source())
    assert [next(taken), next(taken)] == [1, 2]
    with pytest.raises(DataError, match="gone"):
        next(taken)


def test_ahead_works_while_the_present_thing_is_used() -> None:
    made = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        made.set()
        yield 2

    taken = ahead(source())
    assert next(taken) == 1 and made.wait(10)
    assert list(taken) == [2]


def test_loading_rates(tmp_path) -> None:
    recipe = run_parts.recipe(tmp_path)
    registry = default_registry().with_files(recipe.plugin_hashes)
    began = time.monotonic()
    rates = loading_rates(recipe, registry, seconds=0.05)
    assert time.monotonic() - began < 10
    assert rates.first > 0 and rates.later > 0 and rates.augment_seconds_per_image > 0
    assert (rates.workers, rates.kept) == (0, True)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_rates_wait_for_the_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append("cuda"))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    _paced(iter(()), 1.0, torch.device(kind))
    assert waited == [kind]
