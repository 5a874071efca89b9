"""The ten data sets of CoOp's benchmark beside ImageNet.

Guarantees:
- Each is read in the layout that CoOp's users have, by its `split_zhou_*.json`, with CoOp's class names and templates.
- Without that file each is read by the division it was published with, or divided 50/20/30, with a warning; the images
  to test on are exactly those of its lists. The record says which, by which files, with their digests.
- k shots (seeds 1 to 3) are image for image those of an independent account of the public protocol, and of pinned
  lists; a class with too few images to validate on gives all, without a draw.
- The halves of the classes, taken after the shots, are those of CoOp's `subsample_classes`.
- Each keeps the contract of data sets.
- A root may be the set's own folder, one that holds it, or nothing; a folder of something else is an error.
- Bad split files are errors that name file and place: no JSON, other types, absent images, gaps, two names, two labels
  of one name, a class without training images, paths that lead out of the folder, NUL, half surrogates.
- So are bad lists: a line of another form, an unknown class, MATLAB files that are none or say something else.
- Templates: one by default, CLIP's list by `prompts: ensemble`, in the published number for each set, or the recipe's.
- Every published data set has an origin that names its folder, and needs what the tree holds.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import warnings
from collections import defaultdict
from pathlib import Path

import pytest
from advdistill_data import configs, coop, origins
from advdistill_data.ensembles import ensemble, names
from layouts import LAYOUTS, PARTS, USUAL, Entries, build, entries, put
from pydantic import ValidationError
from scipy.io import savemat

from advdistill import DataError, MissingData, RunWarning, Split
from advdistill.engine.data import HalfOfClasses, read
from advdistill.testing import check_dataset

CLASSES = {each.name: each for each in coop.Published.__subclasses__()}
WITH_ZHOU = [name for name, layout in LAYOUTS.items() if layout.zhou]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all ten."""
    found = tmp_path_factory.mktemp("data")
    for name in LAYOUTS:
        build(name, found)
    return found


def dataset(name: str, root: Path, **settings) -> coop.Published:
    return CLASSES[name](configs.Published(root=str(root), size=8, **settings))


def own(name: str, home: Path) -> Path:
    return home / LAYOUTS[name].folder


def whole(name: str) -> Entries:
    """What the tree of `home` holds."""
    return entries(LAYOUTS[name], USUAL)


def pairs(split: Split) -> list[tuple[str, int]]:
    return [*zip(split.ids, split.labels.tolist(), strict=True)]


def test_there_are_ten():
    assert list(CLASSES) == list(LAYOUTS)


@pytest.mark.parametrize("name", WITH_ZHOU)
def test_by_the_split_file(name, home):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = dataset(name, home)
    layout, found = LAYOUTS[name], whole(name)
    assert data.classes.names == tuple(each.replace("_", " ") for each in layout.names)
    for part in PARTS:
        split = data.split(part)
        assert pairs(split) == [(image, label) for image, label, _ in found[part]]
    file = own(name, home) / layout.zhou
    assert data.parts() == [file]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert data.record()["split"] == {"kind": "zhou", "files": {layout.zhou: digest}}
    assert data.split("test").load(0).shape == (3, 8, 8)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_by_the_published_division(name, home):
    data, layout, found = dataset(name, home, split="published"), LAYOUTS[name], whole(name)
    assert data.classes.names == tuple(each.replace("_", " ") for each in layout.names)
    labels = {image: label for some in found.values() for image, label, _ in some}
    splits = {part: data.split(part) for part in PARTS}
    ids = [image for split in splits.values() for image in split.ids]
    assert len(ids) == len(set(ids)) == len(labels) and set(ids) == set(labels)
    for split in splits.values():
        assert split.labels.tolist() == [labels[image] for image in split.ids]
    record, classes = data.record()["split"], len(layout.names)
    if layout.lists is None:
        assert record == {"kind": "drawn", "files": {}} and data.parts() == []
        for part, share in (("train", 0.5), ("val", 0.2), ("test", 0.3)):
            assert abs(len(splits[part]) - share * 14 * classes) <= 1
            assert splits[part].labels.bincount().min() >= int(share * 14)
        return
    assert record["kind"] == "published" and len(record["files"]) == len(data.parts()) >= 2
    for path, digest in record["files"].items():
        assert hashlib.sha256((own(name, home) / path).read_bytes()).hexdigest() == digest
    assert list(splits["test"].ids) == [image for image, _, _ in found["test"]]
    if layout.divides:
        assert list(splits["val"].ids) == [image for image, _, _ in found["val"]]
    else:
        assert len(splits["val"]) == round(0.2 * 11 * classes) and splits["val"].labels.bincount().min() >= 2


@pytest.mark.parametrize("name", WITH_ZHOU)
def test_a_missing_split_file_is_told(name, home, tmp_path):
    layout = LAYOUTS[name]
    shutil.copytree(own(name, home), tmp_path / layout.folder)
    (tmp_path / layout.folder / layout.zhou).unlink()
    with pytest.warns(RunWarning, match=rf"no {layout.zhou}: .* cannot be compared with CoOp's"):
        data = dataset(name, tmp_path)
    assert data.split("test").digest == dataset(name, home, split="published").split("test").digest
    with pytest.raises(DataError, match=f"has no {layout.zhou}") as caught:
        dataset(name, tmp_path, split="zhou")
    assert origins.COOP_PAGE in caught.value.hint


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_contract(name, home):
    check_dataset(dataset(name, home, augment="crop-flip", split="published"), look_at=2)


def test_the_lists_of_aircraft_are_coops_too(home):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        digests = {
            dataset("fgvc-aircraft", home, split=split).split("train").digest for split in ("auto", "zhou", "published")
        }
    assert len(digests) == 1


def test_background_and_easy_faces_are_no_categories(home, tmp_path):
    root = tmp_path / "caltech-101"
    shutil.copytree(own("caltech101", home), root)
    put(root / "101_ObjectCategories", ["BACKGROUND_Google/image_0001.jpg", "Faces_easy/image_0001.jpg"])
    assert dataset("caltech101", root, split="published").classes == dataset("caltech101", home).classes


# --- the protocol ------------------------------------------------------------------------------------------------


def protocol(found: Entries, shots: int, seed: int) -> dict[str, list[str]]:
    """The public protocol, as its code does it: one global seed; by class in the order of first appearance
    `random.sample`, or all where there are too few; first to train on, then to validate on."""
    before = random.getstate()
    random.seed(seed)
    drawn = {}
    for part, count in (("train", shots), ("val", min(shots, 4))):
        by_label = defaultdict(list)
        for image, label, _ in found[part]:
            by_label[label].append(image)
        drawn[part] = []
        for some in by_label.values():
            drawn[part] += random.sample(some, count) if len(some) >= count else some
    random.setstate(before)
    return drawn


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Entries]:
    """Five classes of Caltech101 with 20 images of each to train on, and 4 to validate on, of one class 3."""
    root, found = build("caltech101", tmp_path_factory.mktemp("many"), {"train": 20, "val": 4, "test": 2})
    found = {part: [entry for entry in some if entry[1] < 5] for part, some in found.items()}
    found["val"].remove(next(entry for entry in found["val"] if entry[1] == 1))
    (root / LAYOUTS["caltech101"].zhou).write_text(json.dumps(found))
    return root, found


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_shots_are_those_of_the_public_protocol(many, shots, seed):
    root, found = many
    data = dataset("caltech101", root, shots=shots, shots_seed=seed)
    wanted = protocol(found, shots, seed)
    assert {part: list(data.split(part).ids) for part in wanted} == wanted == data.record()["ids"]
    assert list(data.split("test").ids) == [image for image, _, _ in found["test"]]


PINNED = {
    1: [
        "polka-dotted_0001 polka-dotted_0005 banded_0004 banded_0006 blotchy_0006 blotchy_0002",
        "polka-dotted_0010 polka-dotted_0007 blotchy_0008 blotchy_0011 banded_0007 banded_0011",
    ],
    2: [
        "polka-dotted_0004 polka-dotted_0003 banded_0004 banded_0006 blotchy_0004 blotchy_0003",
        "polka-dotted_0009 polka-dotted_0008 blotchy_0007 blotchy_0010 banded_0010 banded_0009",
    ],
    3: [
        "polka-dotted_0001 polka-dotted_0005 banded_0003 banded_0001 blotchy_0003 blotchy_0001",
        "polka-dotted_0010 polka-dotted_0011 blotchy_0007 blotchy_0010 banded_0011 banded_0008",
    ],
}


@pytest.mark.parametrize("seed", PINNED)
def test_shots_are_pinned(home, seed):
    data = dataset("dtd", home, shots=2, shots_seed=seed)
    drawn = [" ".join(image.partition("/")[2][:-4] for image in data.split(part).ids) for part in ("train", "val")]
    assert drawn == PINNED[seed]


@pytest.mark.parametrize(("half", "kept"), [("base", [0, 1, 2]), ("new", [3, 4])])
def test_halves_come_after_the_shots(many, half, kept):
    root, found = many
    whole_set = dataset("caltech101", root, shots=4, shots_seed=2)
    data = HalfOfClasses(whole_set, half)
    assert data.classes.names == tuple(whole_set.classes.names[label] for label in kept)
    labels = {image: label for some in found.values() for image, label, _ in some}
    drawn = {**protocol(found, 4, 2), "test": [image for image, _, _ in found["test"]]}
    for part, images in drawn.items():
        wanted = [(image, kept.index(labels[image])) for image in images if labels[image] in kept]
        assert pairs(data.split(part)) == wanted


def test_fewer_images_than_shots(home):
    with pytest.raises(DataError, match="has 6 training images, but 7 shots"):
        dataset("dtd", home, shots=7)
    assert len(dataset("dtd", home, shots=6).split("val")) == 12


# --- places and bad input ----------------------------------------------------------------------------------------


def test_places(home, monkeypatch, tmp_path):
    digest = dataset("dtd", home).split("train").digest
    assert dataset("dtd", home / "dtd").split("train").digest == digest
    monkeypatch.setenv("ADVDISTILL_DATA", str(home))
    assert CLASSES["dtd"](configs.Published(size=8)).split("train").digest == digest
    (tmp_path / "link").symlink_to(home / "dtd")
    assert dataset("dtd", tmp_path / "link").split("train").digest == digest
    monkeypatch.setenv("ADVDISTILL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(MissingData, match=r"dtd is not here: there is no folder .*nowhere/dtd") as caught:
        CLASSES["dtd"](configs.Published())
    assert "advdistill data fetch dtd" in caught.value.hint


def test_wrong_roots(home, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="not a folder"):
        dataset("dtd", tmp_path / "file")
    with pytest.raises(DataError, match=r"neither split_zhou_Desc\w+\.json nor labels/train1\.txt") as caught:
        dataset("dtd", home / "eurosat")
    assert "usually called dtd" in caught.value.hint
    with pytest.raises(DataError, match=r"has no variants\.txt"):
        dataset("fgvc-aircraft", home / "eurosat")
    with pytest.raises(DataError, match=r"there is no folder .*2750"):
        dataset("eurosat", home / "dtd")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError):
        dataset("dtd", tmp_path / "loop")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return build("dtd", tmp_path, {"train": 2, "val": 1, "test": 1}, lists=False)[0]


def changed(root: Path, change) -> Path:
    """The tree with another split file: what `change` makes of it, or the text itself."""
    file = root / LAYOUTS["dtd"].zhou
    content = json.loads(file.read_text())
    if callable(change):
        change(content)
        file.write_text(json.dumps(content))
    else:
        file.write_bytes(change)
    return root


def renamed(part: str, index: int, place: int, value):
    def change(content: Entries) -> None:
        content[part][index][place] = value

    return change


BAD_SPLITS = {
    "no JSON": (b"{", "cannot be read"),
    "not UTF-8": (b'{"train": ["\xff"]}', "cannot be read"),
    "too deep": (b"[" * 100_000, "cannot be read"),
    "a list": (b"[]", "has no list 'train'"),
    "no val": (b'{"train": [], "test": []}', "has no list 'val'"),
    "nothing in it": (b'{"train": [], "val": [], "test": []}', "holds one class only"),
    "nothing to train on": (lambda content: content.update(train=[]), "class 'banded' has no training images"),
    "split is no list": (b'{"train": {"a": 1}, "val": [], "test": []}', "has no list 'train'"),
    "entry is no list": (renamed("train", 0, 0, None), r"train\[0\] is \[None"),
    "short entry": (lambda content: content["val"][0].pop(), r"val\[0\] is \["),
    "label is a text": (renamed("test", 0, 1, "3"), r"test\[0\] is \["),
    "label is true": (renamed("test", 0, 1, True), r"test\[0\] is \["),
    "label is negative": (renamed("test", 0, 1, -1), r"test\[0\] is \["),
    "label is NaN": (renamed("test", 0, 1, float("nan")), r"test\[0\] is \["),
    "no name": (renamed("test", 0, 2, " "), r"test\[0\] is \["),
    "huge label": (lambda content: [entry.__setitem__(1, 10**15) for part in content.values() for entry in part
                                    if entry[1] == 2], "label 2 has no images"),
    "gap": (lambda content: [entry.__setitem__(1, 3) for part in content.values() for entry in part
                             if entry[1] == 1], "label 1 has no images"),
    "two names": (renamed("test", 0, 2, "other"), "is called .* 'other'"),
    "one name twice": (lambda content: [entry.__setitem__(2, "a_b" if entry[1] else "a b")
                                        for part in content.values() for entry in part if entry[1] < 2],
                       "the classes 0 and 1 are both called 'a_b'"),
    "untrained class": (lambda content: content.update(train=[e for e in content["train"] if e[1] != 1]),
                        "class 'blotchy' has no training images"),
    "absent image": (renamed("train", 0, 0, "banded/none.jpg"), r"dtd/images/banded/none\.jpg, which is not there$"),
    "absent folder": (lambda content: [entry.__setitem__(0, f"x/{entry[0]}") for entry in content["test"]],
                      r"is not there, nor are 2 others"),
    "absolute": (renamed("train", 0, 0, "/etc/passwd"), "'/etc/passwd' is not a path below"),
    "way out": (renamed("train", 0, 0, "../images/banded/banded_0001.jpg"), "is not a path below"),
    "nothing": (renamed("train", 0, 0, ""), "is not a path below"),
    "NUL": (renamed("train", 0, 0, "banded/a\0.jpg"), "is not a path below"),
    "half a pair in a path": (renamed("train", 0, 0, "banded/\ud800.jpg"), r"\\ud800.* is not UTF-8"),
    "half a pair in a name": (lambda content: [entry.__setitem__(2, "\udcff") for part in content.values()
                                               for entry in part if entry[1] == 0], r"\\udcff' is not UTF-8"),
    "too long a path": (renamed("train", 0, 0, f"{'x' * 400}/a.jpg"), "cannot be listed"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SPLITS)
def test_bad_split_files(small, case):
    change, message = BAD_SPLITS[case]
    with pytest.raises(DataError, match=message) as caught:
        dataset("dtd", changed(small, change))
    assert LAYOUTS["dtd"].zhou in caught.value.message or case in ("too long a path", "nothing in it")
    assert caught.value.hint and caught.value.exit_code == 5


def test_an_image_that_cannot_be_read_is_named(small):
    image = small / "images" / "banded" / "banded_0001.jpg"
    image.write_text("not an image")
    split = dataset("dtd", small).split("train")
    with pytest.raises(DataError, match="banded_0001"):
        list(read(split, [list(range(len(split)))], workers=0))


BAD_LISTS = {
    "oxford-pets": ("annotations/test.txt", "Abyssinian 1\n", r"test\.txt:1: 'Abyssinian 1' is not a line like"),
    "food101": ("meta/test.txt", "apple_pie\n", r"test\.txt:1"),
    "fgvc-aircraft": ("images_variant_val.txt", "0000003 Concorde\n", "the class 'Concorde', which .*variants.txt"),
    "sun397": ("Testing_01.txt", "/a/airfield/sun_1.jpg\n", "names the class 'a/airfield'"),
    "ucf101": ("ucfTrainTestlist/testlist01.txt", "Nothing/v_1.avi\n", "names the class 'Nothing'"),
    "dtd": ("labels/val1.txt", "banded/banded_9999.jpg\n", r"banded_9999\.jpg, which is not there"),
    "oxford-flowers": ("cat_to_name.json", '{"1": "rose"}', "it has no name for"),
    "stanford-cars": ("devkit/cars_meta.mat", "text", r"cars_meta\.mat cannot be read"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_bad_lists(name, tmp_path):
    file, content, message = BAD_LISTS[name]
    root, _ = build(name, tmp_path, {"train": 2, "val": 1, "test": 1}, zhou=False)
    (root / file).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        dataset(name, root, split="published")
    assert caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        {"other": [1]},
        {"annotations": [1, 2]},
        {"annotations": [[]]},
        {"annotations": {"fname": "00001.jpg", "class": 9.0}},
        {"annotations": {"fname": "00001.jpg", "class": float("inf")}},
        {"annotations": {"fname": "00001.jpg"}},
    ],
)
def test_bad_matlab_files(content, tmp_path):
    root, _ = build("stanford-cars", tmp_path, {"train": 1, "val": 1, "test": 1}, zhou=False)
    savemat(root / "devkit" / "cars_train_annos.mat", content)
    with pytest.raises(DataError, match=r"cars_train_annos|no training images"):
        dataset("stanford-cars", root, split="published")


def test_cut_matlab_files(tmp_path):
    root, _ = build("oxford-flowers", tmp_path, {"train": 2, "val": 1, "test": 1}, zhou=False)
    whole = (root / "setid.mat").read_bytes()
    for length in (0, 10, 128, 140, len(whole) - 7):
        (root / "setid.mat").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"setid\.mat"):
            dataset("oxford-flowers", root, split="published")


def test_empty_class_folders_and_odd_names(tmp_path):
    root, _ = build("eurosat", tmp_path, {"train": 2, "val": 1, "test": 1}, zhou=False)
    (root / "2750" / "River").mkdir()
    with pytest.raises(DataError, match="River holds no images"):
        dataset("eurosat", root, split="published")
    (root / "2750" / "River" / "loop").symlink_to(root / "2750")
    with pytest.raises(DataError, match="River holds no images"):
        dataset("eurosat", root, split="published")
    put(root / "2750", [b"River/\xff.jpg".decode(errors="surrogateescape")])
    with pytest.raises(DataError, match="is not UTF-8"):
        dataset("eurosat", root, split="published")


# --- sentences and origins ---------------------------------------------------------------------------------------


def test_sentences(home):
    counts = {
        "caltech101": 34, "oxford-pets": 1, "stanford-cars": 8, "oxford-flowers": 1, "food101": 1, "fgvc-aircraft": 2,
        "sun397": 2, "dtd": 8, "eurosat": 3, "ucf101": 48,
    }  # fmt: skip
    for name, count in counts.items():
        assert dataset(name, home, prompts="ensemble").classes.templates == ensemble(name)
        assert len(ensemble(name)) == count
    others = {"imagenet": 80, "cifar10": 18, "cifar100": 18, "stl10": 2, "pcam": 2}
    assert {name: len(ensemble(name)) for name in others} == others
    for name in (*counts, *others):
        assert len(set(ensemble(name))) == len(ensemble(name)) and all(each.count("{}") == 1 for each in ensemble(name))
    assert {name: len(names(name)) for name in ("cifar10", "cifar100", "stl10", "pcam")} == {
        "cifar10": 10, "cifar100": 100, "stl10": 10, "pcam": 2,
    }  # fmt: skip
    assert ensemble("stanford-cars")[3] == "i love my {}!" and ensemble("dtd")[-1] == "a photo of the {} object."
    assert ensemble("caltech101")[8:11] == ("a embroidered {}.", "a cartoon {}.", "a {} in a video game.")
    assert ensemble("caltech101")[25:28] == ("the embroidered {}.", "the cartoon {}.", "the {} in a video game.")
    assert ensemble("ucf101")[-1] == "a demonstration of the person practicing {}."
    assert names("cifar100")[41] == "lawn mower"
    assert dataset("dtd", home).classes.templates == ("{} texture.",)
    assert dataset("dtd", home, templates=["a {}", "the {}"]).classes.templates == ("a {}", "the {}")
    with pytest.raises(ValidationError, match="not both"):
        configs.Published(templates=["a {}"], prompts="ensemble")


def test_what_origins_name_is_there(home):
    for name, each in CLASSES.items():
        root = home / each.origin.folder
        for path in (*each.origin.needs, *(each.origin.wants or ())):
            assert any((root / one).exists() for one in path.split("|")), (name, path)
