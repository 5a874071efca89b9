"""How fast data are found, decoded, and brought into memory.

    python tests/benchmarks/data_bars.py scan   [--files 100000] [--classes 1000]
    python tests/benchmarks/data_bars.py loader [--images 600] [--side 500] [--workers 2] [--photos DIR]
    python tests/benchmarks/data_bars.py memory [--images 30000] [--shots 16] [--workers 2] [--photos DIR]

scan    a tree of empty files in class folders is made and listed again and again, the second time with every file's
        length and time, as a run does that notes its files; one file is changed in between, and must be noticed
loader  images a second that come out of the loader (decoded, brought to 224 pixels, batched), as they are evaluated and
        as they are augmented, over those that the same number of processes decode and throw away; ratios run by run
memory  seconds until photographs of CIFAR-10's size (made up, or from a folder of class folders) are listed, drawn
        few-shot and all in memory as the first epoch leaves them

Medians of three runs. JPEG files are made up with detail on every scale.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from advdistill_data.configs import Folder as FolderConfig
from advdistill_data.folder import Folder
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from advdistill.engine.data import Loader, Split, epoch_order
from advdistill.engine.feed import Feed
from advdistill.engine.noise import Noise

RUNS = 3


def main() -> None:
    """Run what was asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=["scan", "loader", "memory"])
    options.add_argument("--files", type=int, default=100_000)
    options.add_argument("--classes", type=int, default=1000)
    options.add_argument("--images", type=int)
    options.add_argument("--side", type=int, default=500)
    options.add_argument("--shots", type=int, default=16)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--photos", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as made:
        {"scan": _scan, "loader": _loader, "memory": _memory}[given.what](given, Path(made))


def _scan(given: argparse.Namespace, root: Path) -> None:
    each = given.files // given.classes
    for number in range(given.classes):
        folder = root / f"class{number:05d}"
        folder.mkdir()
        for image in range(each):
            (folder / f"{image:06d}.jpg").touch()

    def listed() -> tuple[int, str, list[int | None]]:
        split = _whole(root).split("train")
        return len(split), split.version, [split.size(index) for index in range(len(split))]

    count, before, _ = listed()
    seconds = [_seconds(lambda: _whole(root)) for _ in range(RUNS)]
    noted = [_seconds(listed) for _ in range(RUNS)]
    (root / "class00000" / "000000.jpg").write_bytes(b"changed")
    assert listed()[1] != before, "a change was not noticed"
    print(f"{count} files in {given.classes} folders: listed in {statistics.median(seconds):.2f} s")
    print(f"with lengths, times and a digest of all: {statistics.median(noted):.2f} s; a changed file is noticed")


def _loader(given: argparse.Namespace, made: Path) -> None:
    root = given.photos or photographs(made, given.images or 600, (given.side, given.side * 3 // 4))
    splits = {how: _whole(root, augment=how).split("train") for how in ("none", "crop-flip")}
    count = min(given.images or 600, len(splits["none"]))
    order = [list(range(start, min(start + 32, count))) for start in range(0, count, 32)]
    bare = DataLoader(_Bare(root, splits["none"]), batch_sampler=order, num_workers=given.workers,
                      persistent_workers=given.workers > 0, collate_fn=len)  # type: ignore[arg-type]  # fmt: skip
    ours = {how: Loader(split.canvas, given.workers) for how, split in splits.items()}
    ways: dict[str, Callable[[], Iterator[object]]] = {"bare": lambda: iter(bare)}
    ways |= {how: partial(loader, order) for how, loader in ours.items()}
    for way in ways.values():
        list(way())  # its processes have begun, and the files are in the system's memory
    rates = [{name: count / _seconds(lambda way=way: list(way())) for name, way in ways.items()} for _ in range(RUNS)]
    print(f"{count} images, {given.workers} workers; bare decoding {_median(rates, 'bare'):.0f} images/s")
    for how in ours:
        ratio = statistics.median(run[how] / run["bare"] for run in rates)
        print(f"augment {how:9}: {_median(rates, how):.0f} images/s, {ratio:.2f} of bare decoding")


def _memory(given: argparse.Namespace, made: Path) -> None:
    root = given.photos or photographs(made, given.images or 30_000, (32, 32), ".png")
    found = []
    for shots in (given.shots, 0):
        seconds = [_seconds(lambda shots=shots: _in_memory(root, shots, given.workers)) for _ in range(RUNS)]
        found.append(f"{f'{shots} shots' if shots else 'all'}: {statistics.median(seconds):.2f} s")
    print(f"{len(_whole(root).split('train'))} photographs, {given.workers} workers; {'; '.join(found)}")


def _in_memory(root: Path, shots: int, workers: int) -> None:
    split = _whole(root, shots=shots, size=32).split("train")
    feed = Feed(split, torch.device("cpu"), workers=workers, keep=2**40)
    order = epoch_order(len(split), 256, 0, 0)
    for _ in feed.batches(order, partial(Noise, 0, "augment", 0)):
        pass
    assert feed.keeps
    feed.close()


def _whole(root: Path, **settings: object) -> Folder:
    return Folder(FolderConfig(root=str(root), val_share=0, test_share=0, **settings))  # type: ignore[arg-type]


def _seconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def _median(rates: list[dict[str, float]], name: str) -> float:
    return statistics.median(run[name] for run in rates)


class _Bare(Dataset[int]):
    """Decodes with libjpeg, by way of Pillow, and throws away."""

    def __init__(self, root: Path, split: Split) -> None:
        self._files = [root / name for name in split.ids]

    def __getitem__(self, index: int) -> int:
        with Image.open(self._files[index]) as image:
            image.load()
        return index


def photographs(root: Path, count: int, size: tuple[int, int], suffix: str = ".jpg") -> Path:
    """Images with detail on every scale, as photographs have, in ten class folders."""
    generator = np.random.default_rng(0)
    scales = [max(size[0] >> shift, 2) for shift in (7, 5, 3, 2)]
    for index in range(count):
        image = np.zeros((size[1], size[0], 3))
        for cells in scales:
            coarse = generator.integers(0, 256, (max(cells * size[1] // size[0], 2), cells, 3), dtype=np.uint8)
            image += np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), float) / len(scales)
        folder = root / f"class{index % 10}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{index:05d}{suffix}", quality=90)
    return root


if __name__ == "__main__":
    main()
