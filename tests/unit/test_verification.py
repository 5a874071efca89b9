"""`verify` and the contact sheet: what is found in a data set by looking at all of it.

Guarantees:
- every image that cannot be read is named with its reason, however many there are, with one process or several, also
  where `on_error: skip` would pass over it and where its reader stumbles;
- every image that is there twice is named, within a split and between splits, with labels that differ; images whose
  files differ in length are no twins;
- counts, smallest and largest class, splits that there are not, images that would not fit in one batch;
- of a published data set: too many or too few images, though not where settings choose among them, an unfinished
  fetch, and what it does without;
- a contact sheet shows as many images as asked for, evenly over the classes, whatever they are called, and one that
  cannot be read as such.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from advdistill import ArraySplit, ClassSet, Config, Dataset, DatasetSpec, Origin, Split
from advdistill.data.place import STATE, WORK
from advdistill.engine.contact_sheet import contact_sheet, save_sheet
from advdistill.engine.verification import Verification, verify
from advdistill.errors import DataError, MissingSplit
from advdistill.hooks.manager import Plugin
from advdistill.hooks.registry import Registry, default_registry
from advdistill.recipe.resolve import resolve_blocks


def picture(path: Path, colour: int, side: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = torch.arange(3 * side * side, dtype=torch.int64).mul(colour * 7 + 1).remainder(251)
    Image.fromarray(image.to(torch.uint8).view(side, side, 3).numpy()).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`cat` and `dog`, four images each to train on, two each to test on, all different."""
    colour = 0
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                colour += 1
                picture(tmp_path / "set" / part / name / f"{number}.png", colour)
    return tmp_path / "set"


def look(root: Path, workers: int | str = 0, show: Any = lambda *_: None, **settings: Any) -> Verification:
    tree = {"use": "folder", "root": str(root), "size": 8, "val_share": 0, **settings}
    registry = default_registry()
    return verify(registry, resolve_blocks({"data": tree}, registry)[("data",)], show, workers)


def test_a_sound_data_set(root: Path) -> None:
    picture(root / "train/dog/more.png", 99)
    shown: list[tuple[str, int, int]] = []
    found = look(root, show=lambda *told: shown.append(told))
    assert found.findings == []
    train, test = found.splits["train"], found.splits["test"]
    assert (train.images, train.classes, train.smallest, train.largest) == (9, 2, ("cat", 4), ("dog", 5))
    assert (test.images, test.smallest) == (4, ("cat", 2))
    assert list(found.absent) == ["val"] and "holds no images" in found.absent["val"]
    assert shown == [("train", 9, 9), ("test", 4, 4)]
    assert found.record["splits"]["train"]["count"] == 9
    assert "split_seed: 0" in found.notes


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images(root: Path, workers: int) -> None:
    (root / "train/cat/1.png").write_bytes(b"junk")
    (root / "train/dog/0.png").write_bytes((root / "train/dog/0.png").read_bytes()[:60])
    (root / "test/dog/1.png").unlink()
    (root / "test/dog/1.png").symlink_to("nowhere")
    found = look(root, workers, on_error="skip")
    assert [(each.split, each.name) for each in found.unreadable] == [
        ("train", "train/cat/1.png"),
        ("train", "train/dog/0.png"),
        ("test", "test/dog/1.png"),
    ]
    first, second, third = found.findings
    assert first == f"unreadable: {root}/train/cat/1.png is not an image of a known format (train)"
    assert second.startswith(f"unreadable: image {root}/train/dog/0.png cannot be read: ")
    assert "1.png is missing" in third


def test_twins(root: Path) -> None:
    (root / "train/dog/copy.png").write_bytes((root / "train/cat/2.png").read_bytes())
    (root / "test/cat/copy.png").write_bytes((root / "train/cat/2.png").read_bytes())
    (root / "test/dog/0.png").write_bytes((root / "test/dog/1.png").read_bytes())
    other = Image.open(root / "train/dog/3.png")
    other.save(root / "train/dog/other.png", compress_level=0)  # the same pixels in a file of another length
    assert look(root).findings == [
        "twice: train/cat/2.png (train) and train/dog/copy.png (train); their labels differ: cat, dog",
        "twice: train/cat/2.png (train) and test/cat/copy.png (test)",
    ]
    assert "twice: test/dog/0.png (test) and test/dog/1.png (test)" in map(str, look(root).twins)  # harmless, but said


def test_twins_where_a_file_is_missing(root: Path) -> None:
    """Lengths are not known then: pixels alone decide."""
    (root / "test/cat/0.png").write_bytes((root / "train/cat/2.png").read_bytes())
    (root / "test/dog/1.png").unlink()
    (root / "test/dog/1.png").symlink_to("nowhere")
    assert len(look(root).twins) == 1


def test_a_split_share_is_taken_from_the_training_images(root: Path) -> None:
    found = look(root, val_share=0.25)
    assert {name: each.images for name, each in found.splits.items()} == {"train": 6, "val": 2, "test": 4}


# A published data set, as a plugin has it


class Settings(Config):
    root: str = ""
    """Its folder."""
    take: int = 6
    """How many."""


class Odd(Split):
    """Its reader stumbles over the third image, and the last one is larger."""

    def __init__(self, count: int) -> None:
        self.labels, self.ids = torch.arange(count) % 4, [f"#{index}" for index in range(count)]

    def load(self, index: int) -> torch.Tensor:
        if index == 2:
            raise KeyError("x" * 5000 + "\U0001f600")
        side = 9 if index == len(self) - 1 else 8
        return torch.full((3, side, side), index, dtype=torch.uint8)


class Published(Dataset):
    classes = ClassSet(("a", "b", "c", "d"), ("a {}",))

    def split(self, name: str) -> Split:
        count = self.config.take
        if name == "val":
            return Odd(5)
        if name == "test":
            raise MissingSplit("there is no test split")
        return ArraySplit(torch.rand(count, 3, 8, 8), torch.arange(count) % 4, [f"train/{i}" for i in range(count)])


ORIGIN = Origin(folder="own", needs=("images",), wants={"split.json": "its own division"}, images=10)


def published(*words: str, **block: Any) -> Verification:
    spec = DatasetSpec(name="own", target=Published, config=Settings, origin=ORIGIN)
    registry = Registry([Plugin(name="own", offers=(spec,))])
    blocks = resolve_blocks({"data": {"use": "own", **block}}, registry, overrides=words)
    return verify(registry, blocks[("data",)], workers=0)


def test_a_published_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVDISTILL_DATA", str(tmp_path))
    (tmp_path / "own/images").mkdir(parents=True)
    found = published()
    count, size, unreadable = found.findings
    assert count == "count: 11 images, where 10 are published"
    assert size == "size: #4 (val) is 9 × 9, where others are 8 × 8"
    assert unreadable.startswith("unreadable: image #2 cannot be read: KeyError: 'xxx") and len(unreadable) < 500
    assert "without split.json: its own division" in found.notes
    assert found.absent == {"test": "there is no test split"}
    assert not any("count" in line for line in published("data.take=5").findings)
    assert not any("count" in line for line in published(half="base").findings)
    assert any("count" in line for line in published(f"data.root={tmp_path}/own", "data.take=6").findings)


def test_an_unfinished_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVDISTILL_DATA", str(tmp_path))
    (tmp_path / "own" / WORK).mkdir(parents=True)
    state = {"command": "advdistill data fetch own", "done": {}}
    (tmp_path / "own" / WORK / STATE).write_text(json.dumps(state))
    assert "incomplete: a fetch was not finished; go on with: advdistill data fetch own" in published().findings


# The contact sheet


class Sheet(Dataset):
    classes = ClassSet(("cat", "日本犬 $x$", "a very long name that does not fit", "b\udcff"), ("a {}",))

    def split(self, name: str) -> Split:
        images = torch.rand(40, 3, 6, 10)
        labels = torch.arange(40).remainder(4)
        return ArraySplit(images, labels, [f"folder/{'n' * index}\udcfe.jpg" for index in range(40)])


def words(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_a_contact_sheet(tmp_path: Path) -> None:
    figure = contact_sheet("toys", "test", Sheet(None), 12)
    title, facts, *captions = words(figure)
    assert title == "toys · test"
    assert facts == "40 images, 12 of them here · 4 classes · 10 × 6 pixels"
    classes = captions[::2]
    assert classes == [classes[0]] * 3 + [classes[3]] * 3 + [classes[6]] * 3 + [classes[9]] * 3
    assert list(dict.fromkeys(classes)) == ["cat", "日本犬 $x$", "a very lon…s not fit", "b\\udcff"]
    assert len(figure.axes) == 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_sheet(figure, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width > 600 and image.height > 300
    assert len(contact_sheet("toys", "test", Sheet(None), 500).axes) == 40


class Broken(Sheet):
    def split(self, name: str) -> Split:
        return Lost(super().split(name), range(2, 40) if name == "test" else range(0))


class Lost(ArraySplit):
    def __init__(self, whole: Any, readable: range) -> None:
        super().__init__(whole.images, whole.labels, whole.ids)
        self.readable = readable

    def load(self, index: int) -> torch.Tensor:
        if index not in self.readable:
            raise DataError(f"image {index} is missing")
        return super().load(index)


def test_a_contact_sheet_of_images_that_cannot_be_read() -> None:
    figure = contact_sheet("toys", "test", Broken(None), 40)
    assert sum(bool(axes.texts) for axes in figure.axes) == 2
    with pytest.raises(DataError, match=r"none of the 8 images of train that were chosen can be read: image \d+ is"):
        contact_sheet("toys", "train", Broken(None), 8)
