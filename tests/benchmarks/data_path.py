"""How fast training images come, and from where.

    python tests/benchmarks/data_path.py [--images 480] [--size 224] [--workers 1] [--runs 3] [--device cpu]
                                         [--photos DIR]

Photographs (a folder of class folders; else JPEG files of 500 x 375 pixels that are made up here) are trained on with
random crops and flips, by epochs:

usual   torchvision's transforms in a DataLoader, as the public implementations have it: every image is decoded,
        cropped, resized and flipped one by one in every epoch; float32 goes from process to process and to the device
first   ours, first epoch: decoded once into bytes, cropped and flipped all together on the device
later   ours, later epochs: from memory
stream  ours, where nothing stays in memory (`keep_images: 0`), a later epoch

Each run takes the four in turn; ratios are taken run by run; medians are printed, in images a second. Also printed is
what conversion, travel and augmentation take of an image's time. Files are in the system's memory after the first run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from advdistill_data.configs import Folder as FolderConfig
from advdistill_data.folder import Folder
from data_bars import photographs
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from advdistill.engine.data import Batch, Split, epoch_order, pixels
from advdistill.engine.feed import Feed
from advdistill.engine.noise import Noise
from advdistill.engine.timing import wait


def main() -> None:
    """Run the comparison."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=480)
    options.add_argument("--size", type=int, default=224)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--workers", type=int, default=1)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--device", default="cpu")
    options.add_argument("--photos", type=Path)
    given = options.parse_args()
    device = torch.device(given.device)
    with tempfile.TemporaryDirectory() as made:
        root = given.photos or photographs(Path(made), given.images, (500, 375))
        config = FolderConfig(root=str(root), size=given.size, augment="crop-flip", val_share=0, test_share=0)
        split = Folder(config).split("train")
        rates: dict[str, list[float]] = {"usual": [], "first": [], "later": [], "stream": []}
        for _ in range(given.runs):
            for name, rate in _run(split, config, given, device).items():
                rates[name].append(rate)
        canvases = torch.stack([split.canvas(i) for i in range(given.batch)])
        augmenting = _augmenting(split, canvases, device)
    print(f"{len(split)} images, {given.size} pixels, batch {given.batch}, {given.workers} workers, {device}")
    for name, found in rates.items():
        times = statistics.median(one / usual for one, usual in zip(found, rates["usual"], strict=True))
        print(f"{name:7} {statistics.median(found):8.0f} images/s   {times:6.2f} x usual")
    print(f"of these: conversion, travel and augmentation {1e3 * augmenting:.2f} ms an image")


def _run(split: Split, config: FolderConfig, given: argparse.Namespace, device: torch.device) -> dict[str, float]:
    count, size = min(given.images, len(split)), given.batch
    order = [[i % count for i in batch] for batch in epoch_order(count, size, 0, 0)]
    usual = DataLoader(
        _Usual(split, config.size, count),
        batch_sampler=order,  # type: ignore[arg-type]
        num_workers=given.workers,
        persistent_workers=given.workers > 0,
        pin_memory=device.type == "cuda",
    )
    kept, streamed = (Feed(split, device, workers=given.workers, keep=keep) for keep in (2**40, 0))

    def epoch(feed: Feed, number: int) -> Iterator[Batch]:
        return feed.batches(order, partial(Noise, 0, "augment", number))

    found = {}
    for name, batches in {
        "usual": lambda: (images.to(device, non_blocking=True) for images, _ in usual),
        "first": lambda: epoch(kept, 0),
        "later": lambda: epoch(kept, 1),
        "stream": lambda: epoch(streamed, 1),
    }.items():
        if name in ("usual", "stream"):
            list(batches())  # its processes have begun
        found[name] = _rate(batches, count // size * size or count, device)
    kept.close(), streamed.close()
    return found


def _rate(batches: Callable[[], Iterable[object]], images: int, device: torch.device) -> float:
    began = time.perf_counter()
    for _ in batches():
        pass
    wait(device)
    return images / (time.perf_counter() - began)


def _augmenting(split: Split, canvases: Tensor, device: torch.device, times: int = 10) -> float:
    """Seconds an image."""
    noise = Noise(0, "augment", 0, torch.arange(len(canvases), device=device))

    def batches() -> Iterator[Tensor]:
        for _ in range(times):
            yield split.augment(pixels(canvases.to(device)), noise)

    list(batches())
    return 1 / _rate(batches, times * len(canvases), device)


class _Usual(Dataset[tuple[Tensor, int]]):
    def __init__(self, split: Split, size: int, count: int) -> None:
        self._split, self._count = split, count
        self._look = v2.Compose([
            v2.RandomResizedCrop(size, interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ])  # fmt: skip

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        split = self._split
        return self._look(split.source.picture(split.ids[index])), int(split.labels[index])  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
