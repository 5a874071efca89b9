"""What is pinned here:

- training with what frozen teachers said kept, in memory or on disk, gives the weights of training without, to
  rounding; each image goes through such a teacher once, whatever batches it comes in, and after a resume too;
- what is on disk serves later runs, which look at nothing; other weights, settings or images never find it, also under
  the same name; a damaged file is found anew, and told;
- what would take more than `cache_limit` is not kept, and told; a folder that cannot be written is told, and memory
  serves; the run goes on;
- nothing is kept of augmented images, of teachers that change, or whose answers depend on more than the image; nor is
  there anything for teachers that nobody asks, or adversarial views.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
from torch import Tensor

from advdistill.engine import checkpoint
from advdistill.engine.distributed import World
from advdistill.engine.fit import Run
from advdistill.engine.participant import Participant
from advdistill.engine.recall import Recall, Room
from advdistill.errors import RunError
from advdistill.testing import ToyDataset, ToyModel

EPOCHS = 4
SPLIT = ToyDataset(None).split("train")
TWO: dict[str, Any] = {
    "strategy": {"use": "drifting"},
    "teachers": {"clean": {"use": "toy"}},
    "optim": {"use": "sgd", "lr": 1.0},
    "train": {"steps": None, "epochs": EPOCHS, "batch_size": 16},
    "evaluate": {"teachers": False},
}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Images that went through the teacher in training."""
    seen = Counter[str]()
    original = Participant.features

    def counted(who: Participant, images: Tensor) -> Tensor:
        seen[who.name] += len(images)
        return original(who, images)

    monkeypatch.setattr(Participant, "features", counted)
    return seen


def run(folder: Path, name: str, cache: str, **train: Any) -> dict[str, Tensor]:
    changes = {"cache_teachers": cache, "cache_dir": str(folder / "cache"), **train}
    run_parts.train(run_parts.recipe(folder, name, **{**TWO, "train": {**TWO["train"], **changes}}))
    return run_parts.tensors(folder / name)


def warned(folder: Path, name: str) -> str:
    return " ".join(event["message"] for event in run_parts.events(folder / name, "warned"))


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, other[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_each_image_is_looked_at_once_and_the_weights_are_the_same(
    tmp_path: Path, looks: Counter[str], cache: str
) -> None:
    without = run(tmp_path, "off", "off")
    assert looks.pop("clean teacher") == EPOCHS * 48
    close(run(tmp_path, "kept", cache), without)
    first = looks.pop("clean teacher")
    assert 48 < first <= 60  # an epoch leaves 12 of 60 out, other ones each time
    close(run(tmp_path, "again", cache), without)
    assert looks["clean teacher"] == (first if cache == "memory" else 0)
    assert not warned(tmp_path, "kept") + warned(tmp_path, "again")


@pytest.mark.parametrize(("cache", "epochs_seen"), [("memory", 2), ("disk", 1)])
def test_a_resumed_run_goes_on_with_it(
    tmp_path: Path, looks: Counter[str], monkeypatch: pytest.MonkeyPatch, cache: str, epochs_seen: int
) -> None:
    whole = run(tmp_path, "whole", "off", batch_size=20)
    looks.clear()
    original = Run._save

    def save_and_end(self: Run) -> None:
        original(self)
        raise KeyboardInterrupt

    train = {**TWO["train"], "batch_size": 20, "cache_teachers": cache, "cache_dir": str(tmp_path / "cache")}
    made = run_parts.recipe(tmp_path, "parted", **{**TWO, "train": train, "save": {"every": 6}})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "_save", save_and_end)
        run_parts.train(made)
    run_parts.train(made, resume=True)
    close(run_parts.tensors(tmp_path / "parted"), whole)
    assert looks["clean teacher"] == epochs_seen * 60


def test_other_weights_images_or_settings_find_nothing(
    tmp_path: Path, looks: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, "first", "disk", batch_size=20)
    looks.clear()
    original = ToyModel.__init__

    def changed(self: ToyModel, config: Any) -> None:
        original(self, config)
        with torch.no_grad():
            self.gain[7] += 1e-4

    with monkeypatch.context() as patch:
        patch.setattr(ToyModel, "__init__", changed)
        run(tmp_path, "weights", "disk", batch_size=20)
    assert looks.pop("clean teacher") == 60
    with monkeypatch.context() as patch:
        split = ToyDataset.split
        patch.setattr(ToyDataset, "split", lambda self, name: _brighter(split(self, name)))
        run(tmp_path, "images", "disk", batch_size=20)
    assert looks.pop("clean teacher") == 60
    monkeypatch.setitem(TWO, "teachers", {"clean": {"use": "toy", "scale": 3.0}})
    run(tmp_path, "settings", "disk", batch_size=20)
    assert looks.pop("clean teacher") == 60
    assert len(list((tmp_path / "cache").iterdir())) == 4


def _brighter(split: Any) -> Any:
    split.images = split.images.clone()
    split.images[-1] *= 0.999  # one image, under the same name
    return split


@pytest.mark.parametrize("damage", ["cut", "bit", "text"])
def test_a_damaged_file_is_found_anew(tmp_path: Path, looks: Counter[str], damage: str) -> None:
    whole = run(tmp_path, "first", "disk", batch_size=20)
    (path,) = (tmp_path / "cache").iterdir()
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[-100] ^= 1
    path.write_bytes(content[:-9] if damage == "cut" else b"no" if damage == "text" else content)
    looks.clear()
    close(run(tmp_path, "second", "disk", batch_size=20), whole)
    assert looks.pop("clean teacher") == 60 and "cannot be used" in warned(tmp_path, "second")
    run(tmp_path, "third", "disk", batch_size=20)
    assert looks["clean teacher"] == 0 and not warned(tmp_path, "third")


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_what_is_too_large_is_not_kept(tmp_path: Path, looks: Counter[str], cache: str) -> None:
    without = run(tmp_path, "off", "off")
    looks.clear()
    needed = 60 * 192 * 4
    close(run(tmp_path, "tight", cache, cache_limit=needed - 1), without)
    assert looks.pop("clean teacher") == EPOCHS * 48
    assert warned(tmp_path, "tight").count("train.cache_limit") == 1
    run(tmp_path, "enough", cache, cache_limit=needed)
    assert looks["clean teacher"] <= 60 and not warned(tmp_path, "enough")


def test_a_folder_that_cannot_be_written_is_told_and_memory_serves(tmp_path: Path, looks: Counter[str]) -> None:
    (tmp_path / "cache").write_text("a file")
    run(tmp_path, "run", "disk", batch_size=20)
    assert looks["clean teacher"] == 60
    assert warned(tmp_path, "run").count("memory only") == 1 and "train.cache_dir" in warned(tmp_path, "run")


def test_a_full_disk_is_told_and_memory_serves(
    tmp_path: Path, looks: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = checkpoint.write

    def full(path: Path, *args: Any) -> None:
        if "cache" in path.parts:
            raise RunError("No space left on device")
        original(path, *args)

    monkeypatch.setattr(checkpoint, "write", full)
    run(tmp_path, "run", "disk", batch_size=20)
    assert looks["clean teacher"] == 60 and "No space left" in warned(tmp_path, "run")


@pytest.mark.parametrize("why", ["augmented", "learns", "batch", "random", "one epoch"])
def test_what_cannot_be_kept_is_not(
    tmp_path: Path, looks: Counter[str], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    changes = dict(TWO)
    if why == "augmented":
        monkeypatch.setattr(type(SPLIT), "augments", True)
    elif why == "learns":
        changes["teachers"] = {"clean": {"use": "toy", "train": True}}
    elif why == "batch":
        monkeypatch.setattr(ToyModel, "batch_independent", False)
    elif why == "random":
        monkeypatch.setattr(ToyModel, "deterministic", False)
    else:
        changes["train"] = {**changes["train"], "epochs": 1}
    run_parts.train(run_parts.recipe(tmp_path, **changes))
    assert looks["clean teacher"] >= changes["train"]["epochs"] * 48


def test_adversarial_views_are_not_kept_and_who_is_not_asked_costs_nothing(tmp_path: Path, looks: Counter[str]) -> None:
    teachers = {"clean": {"use": "toy"}, "robust": {"use": "toy"}}
    needed = 60 * 192 * 4  # room for one of them
    train = {**TWO["train"], "cache_limit": needed}
    run_parts.train(
        run_parts.recipe(tmp_path, **{**TWO, "strategy": {"use": "mmt-ard"}, "teachers": teachers, "train": train})
    )
    assert looks["robust teacher"] == EPOCHS * 48 and looks["clean teacher"] <= 60
    assert not warned(tmp_path, "run")


def test_only_what_is_new_is_looked_at_and_rows_keep_their_places() -> None:
    recall, images, seen = Recall("teacher", 6, Room(10**6)), torch.rand(6, 3, 2, 2), []

    def look(some: Tensor) -> Tensor:
        seen.append(len(some))
        return some.flatten(1)

    for samples in ([4, 1], [1, 0, 4, 5], [5, 5, 2], [3, 2, 1, 0], [0, 1, 2, 3, 4, 5]):
        rows = torch.tensor(samples)
        assert torch.equal(recall(rows, images[rows], look), images[rows].flatten(1))
    assert seen == [2, 2, 1, 1]
    recall.share()
    assert torch.equal(recall(torch.tensor([5, 0]), images[:2], look), images[[5, 0]].flatten(1))


def test_processes_tell_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    images, told = torch.rand(4, 3, 2, 2), list[Any]()
    both = [Recall("teacher", 4, Room(10**6), World(rank, 2)) for rank in range(2)]
    for rank, recall in enumerate(both):
        mine = torch.tensor([rank, rank + 2])
        recall(mine, images[mine], lambda some: some.flatten(1))
    monkeypatch.setattr(World, "gather", lambda self, mine: told.append(mine) or [])
    for recall in both:
        recall.share()
    assert [found[0].tolist() for found in told] == [[0, 2], [1, 3]]
    monkeypatch.setattr(World, "gather", lambda self, mine: told)
    for recall in both:
        recall.share()
        found = recall(torch.arange(4), images, lambda some: pytest.fail("is known"))
        assert torch.equal(found, images.flatten(1))
