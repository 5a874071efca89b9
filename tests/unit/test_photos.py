"""Photographs and pairs of them.

Guarantees:
- an archive and the folder that it was made of give the same samples, whatever order its members come in, and nothing
  is unpacked; a file is decoded once in a process;
- validation photographs come from those to train on, in proportion; shots from what is left; training views are
  mirrored and moved;
- missing, empty or damaged roots, members that lead out of the archive, files that are no images, of another size,
  twice there, or outside of train/CLASS and test/CLASS, and a class without test images are DataErrors that name them;
- pairs squeeze each photograph to 16 columns, their labels and names are those of the photographs, splits share none,
  and every test photograph stands once on each side; a number of classes other than ten is refused.
"""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from advdistill_demo import configs, photos
from advdistill_demo.photos import PhotoPairs, Photos
from PIL import Image

from advdistill import DataError, MissingData, Noise

KINDS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")
SPEC = {"train": 12, "test": 10}


def png(seed: int, side: int = 32) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, seed = tmp_path_factory.mktemp("album"), 0
    for split, count in SPEC.items():
        for kind in KINDS:
            place = root / "pictures" / split / kind
            place.mkdir(parents=True)
            for number in range(count):
                (place / f"{number:02d}.png").write_bytes(png(seed))
                seed += 1
    (root / "README").write_text("not an image")
    return root


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            file.addfile(facts, io.BytesIO(content))
    return path


def made(root: Path, **settings: object) -> Photos:
    return Photos(configs.Photos(root=str(root), **{"val": 20, **settings}))  # type: ignore[arg-type]


def test_an_archive_is_its_folder(folder: Path, tmp_path: Path) -> None:
    files = sorted((file for file in folder.rglob("*.png")), reverse=True)
    packed = archive(tmp_path / "a.tar.gz", {str(file.relative_to(folder)): file.read_bytes() for file in files})
    one, two = made(folder, shift=2), made(packed, shift=2)
    assert one.classes == two.classes and one.classes.names == KINDS and one.record() == two.record()
    for name, count in (("train", 100), ("val", 20), ("test", 100)):
        assert len(one.split(name)) == count
        assert one.split(name).version == two.split(name).version
    split = one.split("test")
    assert split.ids[11] == "test/bee/01.png" and split.labels[11] == 1
    stored = np.asarray(Image.open(folder / "pictures" / split.ids[11]))
    assert torch.equal(split.load(11), torch.from_numpy(stored.copy()).permute(2, 0, 1))
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar.gz"]


def test_an_archive_is_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(folder)
    monkeypatch.setattr(photos, "_decoded", lambda path: pytest.fail("decoded again"))
    assert made(folder, shots=2).split("test").digest == first.split("test").digest


def test_validation_and_shots_come_from_training_photographs(folder: Path) -> None:
    data, few = made(folder), made(folder, shots=3)
    train, val = data.split("train"), data.split("val")
    assert val.labels.bincount().tolist() == [2] * 10 and train.labels.bincount().tolist() == [10] * 10
    assert not set(train.ids) & set(val.ids) and all(name.startswith("train/") for name in (*train.ids, *val.ids))
    assert few.split("train").labels.bincount().tolist() == [3] * 10
    assert set(few.split("train").ids) <= set(train.ids) and few.split("val").digest == val.digest
    assert few.record()["ids"]["train"] == list(few.split("train").ids)
    assert made(folder, split_seed=1).split("val").digest != val.digest
    with pytest.raises(DataError, match="class 'ant' has 10"):
        made(folder, shots=11)
    with pytest.raises(DataError, match="120 of 120"):
        made(folder, val=120)
    with pytest.raises(DataError, match="'holdout'"):
        data.split("holdout")


def test_training_views_are_mirrored(folder: Path) -> None:
    split = made(folder).split("train")
    images = torch.stack([split.load(index) for index in range(100)]).float() / 255
    views = split.augment(images, Noise(0, "augment", 0, torch.arange(100)))
    mirrored = (views == images.flip(3)).flatten(1).all(1)
    assert (mirrored | (views == images).flatten(1).all(1)).all() and 30 < int(mirrored.sum()) < 70
    assert split.augments and not made(folder, flip=False).split("train").augments


GOOD = {f"{split}/{kind}/{n}.png": png(n) for split in SPEC for kind in "ab" for n in range(2)}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({**GOOD, "../train/a/9.png": png(1)}, r"'\.\./train/a/9\.png' leads out"),
        ({**GOOD, "/train/a/9.png": png(1)}, r"'/train/a/9\.png' leads out"),
        ({**GOOD, "train/a/9.png": b"no image"}, r"train/a/9\.png is not a readable image"),
        ({**GOOD, "train/a/9.png": png(1)[:500]}, r"train/a/9\.png is not a readable image"),
        ({**GOOD, "train/a/9.png": png(1, 28)}, r"train/a/9\.png is 28x28, not 32x32"),
        ({**GOOD, "more/train/a/1.png": png(1)}, r"train/a/1\.png twice"),
        ({**GOOD, "odd/a/1.png": png(1)}, r"odd/a/1\.png lies in no train/CLASS or test/CLASS"),
        (
            {name: content for name, content in GOOD.items() if "test/b" not in name},
            "class 'b' has no photographs in test",
        ),
        ({name: content for name, content in GOOD.items() if "/a/" in name}, "photographs of 1 classes"),
        ({"notes.txt": b""}, "photographs of 0 classes"),
    ],
)
def test_bad_members_are_named(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    root = archive(tmp_path / "bad.tar.gz", members)
    with pytest.raises(DataError, match=message) as told:
        made(root, val=1)
    assert str(root) in told.value.message and told.value.hint


def test_links_are_no_photographs(tmp_path: Path) -> None:
    root = tmp_path / "links.tar"
    with tarfile.open(root, "w") as file:
        link = tarfile.TarInfo("train/a/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        file.addfile(link)
    with pytest.raises(DataError, match="no plain file"):
        made(root)


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"not an archive" * 99]
)
def test_bad_archives_are_told(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    root = archive(tmp_path / "a.tar.gz", GOOD)
    root.write_bytes(damage(root.read_bytes()))
    with pytest.raises(DataError, match="not a readable tar archive"):
        made(root)


def test_a_missing_root_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="nowhere") as told:
        made(tmp_path / "nowhere")
    assert "data.root" in told.value.hint
    with pytest.raises(DataError, match="0 classes"):
        made(tmp_path)


def test_pairs_of_photographs(folder: Path, tmp_path: Path) -> None:
    data = PhotoPairs(configs.PhotoPairs(root=str(folder), val=20, pairs=4))
    assert data.classes.names[0] == "an ant and an ant" and data.classes.names[11] == "a bee and a cat"
    train, val, test = (data.split(name) for name in ("train", "val", "test"))
    assert (len(train), len(test)) == (400, 100)
    for column in test.sources.T.tolist():
        assert set(Counter(column).values()) == {1}
    used = [set(split.sources.flatten().tolist()) for split in (train, val, test)]
    assert not (used[0] & used[1] or used[0] & used[2] or used[1] & used[2])
    for index in (0, 42, 99):
        names = test.ids[index].split("+")
        said = [name.split("/")[1] for name in names]
        assert data.classes.names[test.labels[index]] == " and ".join(
            f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}" for kind in said
        )
        for place, name in enumerate(names):
            whole = np.asarray(Image.open(folder / "pictures" / name)).astype(float).reshape(32, 16, 2, 3).mean(2)
            half = test.load(index)[:, :, 16 * place : 16 * place + 16].permute(1, 2, 0).numpy()
            assert half.shape == (32, 16, 3) and np.abs(half - whole).max() <= 0.5
    few = PhotoPairs(configs.PhotoPairs(root=str(folder), val=20, combinations="seen"))
    assert len(few.split("val")) == 80  # two photographs of each kind, and one pair of each combination all the same
    with pytest.raises(DataError, match="not two pictures of each kind"):
        PhotoPairs(configs.PhotoPairs(root=str(folder), val=0)).split("val")
    with pytest.raises(DataError, match="has 2 classes, not 10"):
        PhotoPairs(configs.PhotoPairs(root=str(archive(tmp_path / "a.tar", GOOD)), val=1))
