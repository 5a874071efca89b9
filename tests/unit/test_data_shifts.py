"""ImageNet in CoOp's layout, and the images of its classes that come from elsewhere.

Guarantees:
- ImageNet reads `imagenet/images/{train,val}` and `imagenet/classnames.txt`; without that file open_clip's names count.
- Its classes are exactly those of the names, unless a file given in the recipe chooses some.
- The two ids to which CoOp's file gives another class's name get their own, with a warning; other doubles are errors.
- Shots are drawn from all training images as in the public protocol; what to validate on is taken from the others.
- imagenet-a and imagenet-r have their 200 classes, or are told from all 1,000; labels are places among these, and the
  record says how many they are. imagenet-sketch and imagenet-v2 have 1,000; V2's folders are labels.
- Each is found where CoOp keeps it and where its archive puts it, below the usual folder or a given one, or is it.
- Names come from `classnames.txt` in its own folder, or that of `imagenet` beside it, or from open_clip.
- They have a test split only; other numbers of classes, unknown ones and empty ones are errors.
"""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import ClassVar

import pytest
from advdistill_data import configs, shifts
from advdistill_data.ensembles import ensemble
from advdistill_data.imagenet import ImageNet, usual_names, wnids
from layouts import class_folders, put
from pydantic import ValidationError

from advdistill import DataError, MissingData, RunWarning
from advdistill.testing import check_dataset

SETS = {each.name: each for each in shifts.Shifted.__subclasses__()}
SOME = wnids()[::5]
"""200 of ImageNet's ids, every fifth."""
PLACES = {
    "imagenet-a": ("imagenet-adversarial/imagenet-a", "imagenet-a"),
    "imagenet-r": ("imagenet-rendition/imagenet-r", "imagenet-r"),
    "imagenet-sketch": ("imagenet-sketch/images", "sketch"),
    "imagenet-v2": ("imagenetv2/imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency-format-val"),
}


def classnames(path: Path, names: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{wnid} {name}\n" for wnid, name in names.items()))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four where CoOp keeps them, and as their archives come below `bare`."""
    found = tmp_path_factory.mktemp("data")
    for name, (place, bare) in PLACES.items():
        folders = SOME if name in ("imagenet-a", "imagenet-r") else wnids()
        if name == "imagenet-v2":
            folders = [str(label) for label in range(1000)]
        tree = found / place
        tree.parent.mkdir(parents=True)
        class_folders(tree, folders)
        (found / "bare").mkdir(exist_ok=True)
        (found / "bare" / bare).symlink_to(tree)
    return found


def shifted(name: str, root: Path | str, **settings) -> shifts.Shifted:
    return SETS[name](configs.Shifted(root=str(root), size=8, **settings))


class TestImageNet:
    COOP: ClassVar = {
        **{wnid: f"thing {wnid}" for wnid in ("n01440764", "n03773504", "n04008634", "n04355933", "n04356056")},
        "n03773504": "missile",
        "n04008634": "missile",
        "n04355933": "sunglasses",
        "n04356056": "sunglasses",
    }

    def tree(self, home: Path, names: dict[str, str]) -> Path:
        for part, count in (("train", 9), ("val", 2)):
            images = (f"{wnid}/{wnid}_{number}.JPEG" for wnid in names for number in range(count))
            put(home / "imagenet" / "images" / part, images)
        return home / "imagenet"

    def dataset(self, root: Path | str, **settings) -> ImageNet:
        return ImageNet(configs.ImageNet(root=str(root), **{"size": 8, "val_per_class": 2, **settings}))

    def test_coops_layout(self, tmp_path, monkeypatch):
        root = self.tree(tmp_path, self.COOP)
        file = classnames(root / "classnames.txt", self.COOP)
        with pytest.warns(RunWarning, match="n04008634 missile is read as projectile, n04355933 sunglasses is read as"):
            data = self.dataset(root)
        assert data.classes.names == ("thing n01440764", "missile", "projectile", "sunglass", "sunglasses")
        assert data.classes.templates == ("This is a photo of a {}",)
        assert [len(data.split(part)) for part in ("train", "val", "test")] == [35, 10, 10]
        assert data.split("test").ids[0] == "val/n01440764/n01440764_0.JPEG"
        assert data.parts() == [file] and list(data.record()["names"]) == ["classnames.txt"]
        monkeypatch.setenv("ADVDISTILL_DATA", str(tmp_path))
        for place in (tmp_path, ""):
            with pytest.warns(RunWarning):
                again = self.dataset(place, prompts="ensemble")
            assert again.split("train").digest == data.split("train").digest
            assert again.classes.templates == ensemble("imagenet")

    def test_classes_are_those_of_the_names(self, tmp_path):
        names = {wnid: wnid[::-1] for wnid in wnids()[:3]}
        root = self.tree(tmp_path, names)
        classnames(root / "classnames.txt", {**names, wnids()[3]: "ray"})
        with pytest.raises(DataError, match=rf"holds 3 classes, and .*txt has 4: {wnids()[3]} is not among them"):
            self.dataset(root)
        classnames(root / "classnames.txt", dict(list(names.items())[:2]))
        with pytest.raises(DataError, match=rf"has 2: {wnids()[2]} is none of these") as caught:
            self.dataset(root)
        assert "data.classnames" in caught.value.hint
        chosen = self.dataset(root, classnames=str(root / "classnames.txt"))
        assert chosen.classes.names == tuple(names.values())[:2]
        (root / "classnames.txt").unlink()
        with pytest.raises(DataError, match="ImageNet-1k has 1000"):
            self.dataset(root)

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ("n01440764 tench\nn01443537 tench\n", "calls two classes 'tench': n01440764 and n01443537"),
            ("n01440764 tench\nn01440764 cat\n", r"classnames\.txt:2: n01440764 stands twice"),
            ("n01440764\n", r"classnames\.txt:1: 'n01440764' is not a class"),
            ("n01440764 t\xe9nch\n", "cannot be read"),
        ],
    )
    def test_bad_names(self, tmp_path, lines, message):
        root = self.tree(tmp_path, {"n01440764": "", "n01443537": ""})
        (root / "classnames.txt").write_bytes(lines.encode("latin-1"))
        with pytest.raises(DataError, match=message):
            self.dataset(root)

    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_shots_come_from_all_training_images(self, tmp_path, seed):
        names = {wnid: wnid[::-1] for wnid in wnids()[:3]}
        root = self.tree(tmp_path, names)
        settings = {"classnames": str(classnames(tmp_path / "names.txt", names)), "shots_seed": seed}
        data = self.dataset(root, shots=4, **settings)
        rng = random.Random(seed)
        wanted = []
        for wnid in names:
            wanted += rng.sample([f"train/{wnid}/{wnid}_{number}.JPEG" for number in range(9)], 4)
        assert list(data.split("train").ids) == wanted
        assert len(data.split("val")) == 6 and not set(data.split("val").ids) & set(wanted)
        assert len(data.split("test")) == 6
        assert len(self.dataset(root, shots=9, val_per_class=0, **settings).split("train")) == 27
        with pytest.raises(DataError, match="has 9 training images; 9 to train on and 2 to validate on"):
            self.dataset(root, shots=9, **settings)


@pytest.mark.parametrize("name", SETS)
def test_own_classes(name, home):
    data = shifted(name, home)
    own = [wnid for wnid in wnids() if wnid in SOME] if data.count == 200 else list(wnids())
    assert data.classes.names == tuple(usual_names()[wnid] for wnid in own)
    assert data.split("test").labels.tolist() == list(range(len(own)))
    assert data.split("test").load(0).shape == (3, 8, 8)
    record = data.record()
    assert (record["classes"], record["among"], record["names"]) == (data.count, "own", "open_clip")
    check_dataset(data, ["test"], look_at=2)
    for part in ("train", "val"):
        with pytest.raises(DataError, match=f"{name} has test images only"):
            data.split(part)


@pytest.mark.parametrize("name", SETS)
def test_among_all_classes(name, home):
    data = shifted(name, home, among="imagenet", prompts="ensemble")
    assert len(data.classes) == data.record()["classes"] == 1000 and len(data.classes.templates) == 80
    assert data.split("test").labels.tolist() == list(range(0, 1000, 5 if data.count == 200 else 1))


def test_folders_of_v2_are_labels(home):
    split = shifted("imagenet-v2", home).split("test")
    assert [(split.ids[label], split.labels[label].item()) for label in (0, 2, 10, 999)] == [
        ("0/00.JPEG", 0),
        ("2/00.JPEG", 2),
        ("10/00.JPEG", 10),
        ("999/00.JPEG", 999),
    ]


@pytest.mark.parametrize("name", SETS)
def test_places(name, home, monkeypatch, tmp_path):
    place, bare = PLACES[name]
    digest = shifted(name, home).split("test").digest
    for root in (home / place, (home / place).parent, home / "bare", home / "bare" / bare):
        assert shifted(name, root).split("test").digest == digest, root
    monkeypatch.setenv("ADVDISTILL_DATA", str(home))
    assert shifted(name, "").split("test").digest == digest
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(MissingData, match=f"{name} is not in .*: there are no class folders in {place}, ") as caught:
        shifted(name, tmp_path)
    assert f"advdistill data fetch {name}" in caught.value.hint


@pytest.mark.parametrize("where", ["imagenet-rendition", "imagenet"])
def test_names_come_from_beside(tmp_path, where):
    tree = tmp_path / "imagenet-rendition" / "imagenet-r"
    tree.parent.mkdir()
    class_folders(tree, SOME)
    (tree / "README.txt").touch()
    file = classnames(tmp_path / where / "classnames.txt", {wnid: f"thing {wnid}" for wnid in wnids()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = shifted("imagenet-r", tmp_path)
    assert data.classes.names[1] == f"thing {SOME[1]}" and data.parts() == [file]
    assert str(file) in data.record()["names"] or "classnames.txt" in data.record()["names"]
    classnames(file, {wnid: f"thing {wnid}" for wnid in wnids()[:-1]})
    with pytest.raises(DataError, match=f"no name for {wnids()[-1]}"):
        shifted("imagenet-r", tmp_path)


def test_some_classes(home, tmp_path):
    chosen = {SOME[3]: "three", SOME[1]: "one", wnids()[1]: "not there"}
    file = str(classnames(tmp_path / "names.txt", chosen))
    data = shifted("imagenet-a", home, classnames=file)
    assert data.classes.names == ("one", "three") and data.split("test").labels.tolist() == [0, 1]
    among = shifted("imagenet-a", home, classnames=file, among="imagenet")
    assert among.classes.names == ("not there", "one", "three") and among.split("test").labels.tolist() == [1, 2]
    v2 = shifted("imagenet-v2", home, classnames=file).split("test")
    assert list(v2.ids) == ["1/00.JPEG", "5/00.JPEG", "15/00.JPEG"]


def test_trees_that_cannot_be_used(tmp_path):
    tree = class_folders(tmp_path / "imagenet-a", SOME[:-1])
    with pytest.raises(DataError, match="holds 199 classes, imagenet-a has 200") as caught:
        shifted("imagenet-a", tmp_path)
    assert "classnames" in caught.value.hint
    (tree / "n99999999").mkdir()
    with pytest.raises(DataError, match="n99999999 is none of ImageNet's"):
        shifted("imagenet-a", tmp_path)
    (tree / "n99999999").rename(tree / SOME[-1])
    with pytest.raises(DataError, match=f"{SOME[-1]} holds no images"):
        shifted("imagenet-a", tmp_path)
    (tree / SOME[-1] / "round").symlink_to(tree / SOME[-1])
    with pytest.raises(DataError, match=f"{SOME[-1]} holds no images"):
        shifted("imagenet-a", tmp_path)
    put(tree / SOME[-1], [b"\xff.jpg".decode(errors="surrogateescape")])
    with pytest.raises(DataError, match="is not UTF-8"):
        shifted("imagenet-a", tmp_path)


def test_shots_are_refused():
    with pytest.raises(ValidationError, match="test images only"):
        configs.Shifted(shots=1)
