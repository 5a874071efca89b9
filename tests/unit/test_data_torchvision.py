"""Data sets that torchvision's readers read.

Guarantees:
- Each known classification set of torchvision, generated in its own layout (JPEG, PNG, PPM, pickles, binaries, .mat,
  .h5, .csv, idx, lists), gives every image its class, in splits as published or by shares; none is decoded for that.
- Shots, halves of the classes and names of classes work with them; a twin has the same samples in the same order.
- Every class of torchvision.datasets is either known or refused by name; options are those of the class, and never
  fetch, transform or load anything.
- `cifar10`, `cifar100`, `stl10` and `pcam` have the names and sentences of the zero-shot benchmark, their own
  resolution unless told otherwise, which is recorded, and a validation split.
- What is absent, damaged or half there is an error that says what to do; no folder is made, nothing is fetched.
"""

from __future__ import annotations

import bz2
import hashlib
import inspect
import json
import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision
from advdistill_data import configs, torchvision_sets
from advdistill_data.torchvision_sets import Cifar10, Cifar100, Pcam, SmallSet, Stl10, TorchVision
from PIL import Image
from pydantic import ValidationError

from advdistill import DataError, MissingData
from advdistill.engine.data import HalfOfClasses, read
from advdistill.testing import check_dataset

Patch = pytest.MonkeyPatch
EVERYTHING = {"val_share": 0, "test_share": 0}


def level(label: int) -> int:
    """Red, or grey, of the images of a class: what is read can be told to belong to its label."""
    return 20 + 2 * label


def paint(path: Path, label: int, side: int = 16) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (level(label), 60, 60)).save(path)
    return path.name


def write(path: Path, lines: Iterator[str] | list[str]) -> str:
    """Returns the file's MD5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return md5(path)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def array(labels: list[int], side: int, channels: bool = True) -> np.ndarray:
    """(N, side, side, 3) or (N, side, side) uint8."""
    found = np.empty((len(labels), side, side) + (3,) * channels, np.uint8)
    for image, label in zip(found, labels, strict=True):
        image[...] = level(label)
    return found


def twice(classes: int) -> list[int]:
    return [*range(classes), *range(classes)]


def cifar10(root: Path, patch: Patch) -> None:
    reader, folder = torchvision.datasets.CIFAR10, root / "cifar-10-batches-py"
    _batches(folder, reader, patch, [f"data_batch_{n}" for n in range(1, 6)], ["test_batch"], 10, "labels")


def cifar100(root: Path, patch: Patch) -> None:
    reader, folder = torchvision.datasets.CIFAR100, root / "cifar-100-python"
    _batches(folder, reader, patch, ["train"], ["test"], 100, "fine_labels")


def _batches(
    folder: Path, reader: type, patch: Patch, train: list[str], test: list[str], classes: int, key: str
) -> None:
    folder.mkdir(parents=True)
    for names, attribute in (train, "train_list"), (test, "test_list"):
        for name in names:
            labels = twice(classes) if "train" in name or "data" in name else [*range(classes)]
            pixels = array(labels, 32).transpose(0, 3, 1, 2).reshape(len(labels), -1)
            (folder / name).write_bytes(pickle.dumps({"data": pixels, key: labels}))
        patch.setattr(reader, attribute, [[name, md5(folder / name)] for name in names])
    meta = dict(reader.meta)
    (folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: [f"no_{n}" for n in range(classes)]}))
    patch.setattr(reader, "meta", meta | {"md5": md5(folder / meta["filename"])})


def stl10(root: Path, patch: Patch) -> None:
    folder, reader = root / "stl10_binary", torchvision.datasets.STL10
    folder.mkdir(parents=True)
    for part in ("train", "test", "unlabeled"):
        labels = twice(10)
        (folder / f"{part}_X.bin").write_bytes(array(labels, 96).transpose(0, 3, 2, 1).tobytes())
        (folder / f"{part}_y.bin").write_bytes(bytes(label + 1 for label in labels))
    for attribute in ("train_list", "test_list"):
        patch.setattr(reader, attribute, [[name, md5(folder / name)] for name, _ in getattr(reader, attribute)])


def pcam(root: Path, patch: Patch) -> None:
    h5py = pytest.importorskip("h5py")
    (root / "pcam").mkdir(parents=True)
    for part in ("train", "valid", "test"):
        labels = [0, 1] * 6
        for kind, key, content in ("x", "x", array(labels, 96)), ("y", "y", np.array(labels).reshape(-1, 1, 1, 1)):
            with h5py.File(root / "pcam" / f"camelyonpatch_level_2_split_{part}_{kind}.h5", "w") as file:
                file[key] = content


def fgvc(root: Path, patch: Patch) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    write(data / "variants.txt", ["A300B4", "DC-10", "Fokker 50"])
    write(data / "manufacturers.txt", ["Airbus", "Fokker"])
    for place, part in enumerate(("train", "val", "test")):
        numbered = [(f"{place}{row:06d}", label) for row, label in enumerate(twice(3))]
        for name, label in numbered:
            paint(data / "images" / f"{name}.jpg", label)
        variants = ["A300B4", "DC-10", "Fokker 50"]
        write(data / f"images_variant_{part}.txt", [f"{name} {variants[label]}" for name, label in numbered])
        makers = [f"{name} {'Airbus' if label == 0 else 'Fokker'}" for name, label in numbered]
        write(data / f"images_manufacturer_{part}.txt", makers)


def dtd(root: Path, patch: Patch) -> None:
    folder, classes = root / "dtd" / "dtd", ("banded", "dotted", "lined")
    for place, part in enumerate(("train", "val", "test")):
        names = [f"{classes[label]}/{classes[label]}_{place}{row:03d}.jpg" for row, label in enumerate(twice(3))]
        for name, label in zip(names, twice(3), strict=True):
            paint(folder / "images" / name, label)
        for partition in (1, 2):
            write(folder / "labels" / f"{part}{partition}.txt", names[:: 1 if partition == 1 else -1])


def flowers(root: Path, patch: Patch) -> None:
    folder, reader = root / "flowers-102", torchvision.datasets.Flowers102
    labels = [label for _ in range(3) for label in range(102)]
    for number, label in enumerate(labels, 1):
        paint(folder / "jpg" / f"image_{number:05d}.jpg", label, 8)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([labels]) + 1})
    ids = np.arange(1, 307).reshape(3, 1, 102)
    scipy.io.savemat(folder / "setid.mat", dict(zip(("trnid", "valid", "tstid"), ids, strict=True)))
    files = {key: (name, md5(folder / name)) for key, (name, _) in reader._file_dict.items() if key != "image"}
    patch.setattr(reader, "_file_dict", files)


def pets(root: Path, patch: Patch) -> None:
    folder, classes = root / "oxford-iiit-pet", ("Abyssinian", "great_pyrenees", "pug")
    for part in ("trainval", "test"):
        rows = [(f"{classes[label]}_{part}{row}", label) for row, label in enumerate(twice(3))]
        for name, label in rows:
            paint(folder / "images" / f"{name}.jpg", label)
        write(folder / "annotations" / f"{part}.txt", [f"{name} {label + 1} 1 1" for name, label in rows])


def food(root: Path, patch: Patch) -> None:
    folder, classes = root / "food-101", ("apple_pie", "pho")
    for part in ("train", "test"):
        listed = {name: [f"{name}/{part}{row}" for row in range(3)] for name in classes}
        for label, names in enumerate(listed.values()):
            for name in names:
                paint(folder / "images" / f"{name}.jpg", label)
        write(folder / "meta" / f"{part}.json", [json.dumps(listed)])


def eurosat(root: Path, patch: Patch) -> None:
    for label, name in enumerate(("AnnualCrop", "Forest", "Highway")):
        for row in range(10):
            paint(root / "eurosat" / "2750" / name / f"{name}_{row}.jpg", label)


def gtsrb(root: Path, patch: Patch) -> None:
    folder, rows = root / "gtsrb" / "GTSRB", []
    for row, label in enumerate(twice(3)):
        paint(folder / "Training" / f"{label:05d}" / f"{row:05d}.ppm", label)
        rows.append(f"{paint(folder / 'Final_Test' / 'Images' / f'{row:05d}.ppm', label)};16;16;0;0;15;15;{label}")
    write(root / "gtsrb" / "GT-final_test.csv", ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId", *rows])


def svhn(root: Path, patch: Patch) -> None:
    root.mkdir(exist_ok=True)
    found = {}
    for part in ("train", "test"):
        file, labels = root / f"{part}_32x32.mat", np.array(twice(10))
        written = np.where(labels == 0, 10, labels).reshape(-1, 1)
        scipy.io.savemat(file, {"X": array(labels.tolist(), 32).transpose(1, 2, 3, 0), "y": written})
        found[part] = ["", file.name, md5(file)]
    patch.setattr(torchvision.datasets.SVHN, "split_list", found)


def caltech101(root: Path, patch: Patch) -> None:
    for label, name in enumerate(("Faces", "anchor", "BACKGROUND_Google")):
        for row in range(1, 11):
            paint(root / "caltech101" / "101_ObjectCategories" / name / f"image_{row:04d}.jpg", label)


def caltech256(root: Path, patch: Patch) -> None:
    for label, name in enumerate(("001.ak47", "002.american-flag")):
        for row in range(1, 11):
            paint(root / "caltech256" / "256_ObjectCategories" / name / f"{label + 1:03d}_{row:04d}.jpg", label)


def sun397(root: Path, patch: Patch) -> None:
    classes = ("/a/abbey", "/a/apartment_building/outdoor")
    write(root / "SUN397" / "ClassName.txt", [*classes])
    for label, name in enumerate(classes):
        for row in range(10):
            paint(root / "SUN397" / name[1:] / f"sun_{row}{label}.jpg", label)


def sst2(root: Path, patch: Patch) -> None:
    for part in ("train", "valid", "test"):
        for row, label in enumerate((0, 1) * 2):
            paint(root / "rendered-sst2" / part / ("negative", "positive")[label] / f"{row}.png", label)


def cars(root: Path, patch: Patch) -> None:
    folder, classes = root / "stanford_cars", ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")
    (folder / "devkit").mkdir(parents=True)
    scipy.io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(classes, dtype=object)})
    for part, file in ("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat"):
        painted = enumerate([0, 1] * 2)
        rows = [(label + 1, paint(folder / f"cars_{part}" / f"{row:05d}.jpg", label)) for row, label in painted]
        kinds = [("class", np.uint8), ("fname", object)]
        scipy.io.savemat(folder / file, {"annotations": np.array(rows, dtype=kinds)})


def country(root: Path, patch: Patch) -> None:
    for part in ("train", "valid", "test"):
        for row, label in enumerate((0, 1) * 2):
            paint(root / "country211" / part / ("AD", "ZW")[label] / f"{row}.jpg", label)


def imagenette(root: Path, patch: Patch) -> None:
    for part in ("train", "val"):
        for row, label in enumerate((0, 1) * 5):
            paint(root / "imagenette2-160" / part / ("n01440764", "n02979186")[label] / f"{row}.JPEG", label)
    # The reader looks for these by default.
    (root / "imagenette2").mkdir()


def places(root: Path, patch: Patch) -> None:
    reader, classes = torchvision.datasets.Places365, ("/a/airfield", "/b/bar")
    listed = write(root / "c.txt", [f"{name} {label}" for label, name in enumerate(classes)])
    patch.setattr(reader, "_CATEGORIES_META", ("c.txt", listed))
    lists = {}
    for part, folder in ("train-standard", "data_256_standard"), ("val", "val_256"):
        rows = [(f"/x/{row}.jpg", label) for row, label in enumerate((0, 1) * 5)]
        for name, label in rows:
            paint(root / folder / name[1:], label)
        lists[part] = (f"{part}.txt", write(root / f"{part}.txt", [f"{name} {label}" for name, label in rows]))
    patch.setattr(reader, "_FILE_LIST_META", lists)


def idx(path: Path, content: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = struct.pack(f">{content.ndim}I", *content.shape)
    path.write_bytes(bytes([0, 0, 8, content.ndim]) + shape + content.astype(np.uint8).tobytes())


def _digits(folder: Path, prefixes: tuple[str, str], labels: list[int], first: int = 0) -> None:
    for prefix in prefixes:
        idx(folder / f"{prefix}-images-idx3-ubyte", array(labels, 28, channels=False))
        idx(folder / f"{prefix}-labels-idx1-ubyte", np.array(labels) + first)


def mnist(root: Path, patch: Patch) -> None:
    _digits(root / "MNIST" / "raw", ("train", "t10k"), twice(10))


def fashion(root: Path, patch: Patch) -> None:
    _digits(root / "FashionMNIST" / "raw", ("train", "t10k"), twice(10))


def kmnist(root: Path, patch: Patch) -> None:
    _digits(root / "KMNIST" / "raw", ("train", "t10k"), twice(10))


def emnist(root: Path, patch: Patch) -> None:
    _digits(root / "EMNIST" / "raw", ("emnist-letters-train", "emnist-letters-test"), twice(26), first=1)


def qmnist(root: Path, patch: Patch) -> None:
    for part in ("train", "test"):
        idx(root / "QMNIST" / "raw" / f"qmnist-{part}-images-idx3-ubyte", array(twice(10), 28, channels=False))
        labels = np.zeros((20, 8), ">i4")
        labels[:, 0] = twice(10)
        head = bytes([0, 0, 12, 2]) + struct.pack(">2I", 20, 8)
        (root / "QMNIST" / "raw" / f"qmnist-{part}-labels-idx2-int").write_bytes(head + labels.tobytes())


def usps(root: Path, patch: Patch) -> None:
    root.mkdir(exist_ok=True)
    for name in ("usps.bz2", "usps.t.bz2"):
        values = [" ".join(f"{i + 1}:{(level(n) + 0.5) / 127.5 - 1:.5f}" for i in range(256)) for n in twice(10)]
        rows = [f"{label + 1} {value}" for label, value in zip(twice(10), values, strict=True)]
        (root / name).write_bytes(bz2.compress("\n".join(rows).encode()))


def semeion(root: Path, patch: Patch) -> None:
    rows = []
    for label in 5 * twice(10):
        pixels, which = [f"{(level(label) + 0.5) / 255:.4f}"] * 256, ["0"] * 10
        which[label] = "1"
        rows.append(" ".join(pixels + which))
    patch.setattr(torchvision.datasets.SEMEION, "md5_checksum", write(root / "semeion.data", rows))


def fer(root: Path, patch: Patch) -> None:
    rows = ["emotion,pixels,Usage"]
    for usage in ("Training", "PublicTest", "PrivateTest"):
        rows += [f"{label},{' '.join([str(level(label))] * 48 * 48)},{usage}" for label in twice(7)]
    found = write(root / "fer2013" / "fer2013.csv", rows)
    known = torchvision.datasets.FER2013._RESOURCES
    patch.setattr(torchvision.datasets.FER2013, "_RESOURCES", known | {"fer": ("fer2013.csv", found)})


def clevr(root: Path, patch: Patch) -> None:
    folder = root / "clevr" / "CLEVR_v1.0"
    for part in ("train", "val"):
        scenes = []
        for row, label in enumerate((0, 1) * 5):
            name = paint(folder / "images" / part / f"CLEVR_{part}_{row}.png", label)
            scenes.append({"image_filename": name, "objects": [{}] * (label + 3)})
        write(folder / "scenes" / f"CLEVR_{part}_scenes.json", [json.dumps({"scenes": scenes})])


THREE, TWO, DIVIDED = ("train", "val", "test"), ("train", "test"), {"val_share": 0.2, "test_share": 0.2}
SETS: dict[str, tuple[Callable[[Path, Patch], None], tuple[str, ...] | int, tuple[str, ...], dict]] = {
    "CIFAR10": (cifar10, 10, TWO, {}),
    "CIFAR100": (cifar100, 100, TWO, {}),
    "STL10": (stl10, 10, TWO, {}),
    "PCAM": (pcam, 2, THREE, {}),
    "FGVCAircraft": (fgvc, ("A300B4", "DC-10", "Fokker 50"), THREE, {}),
    "DTD": (dtd, ("banded", "dotted", "lined"), THREE, {"options": {"partition": 2}}),
    "Flowers102": (flowers, 102, THREE, {}),
    "OxfordIIITPet": (pets, ("Abyssinian", "Great Pyrenees", "Pug"), TWO, {}),
    "Food101": (food, ("apple pie", "pho"), TWO, {}),
    "EuroSAT": (eurosat, ("AnnualCrop", "Forest", "Highway"), THREE, DIVIDED),
    "GTSRB": (gtsrb, ("0", "1", "2"), TWO, {}),
    "SVHN": (svhn, 10, TWO, {}),
    "Caltech101": (caltech101, ("Faces", "anchor"), THREE, DIVIDED),
    "Caltech256": (caltech256, ("ak47", "american-flag"), THREE, DIVIDED),
    "SUN397": (sun397, ("abbey", "apartment building/outdoor"), THREE, DIVIDED),
    "RenderedSST2": (sst2, ("negative", "positive"), THREE, {}),
    "StanfordCars": (cars, ("AM General Hummer SUV 2000", "Acura RL Sedan 2012"), TWO, {}),
    "Country211": (country, ("AD", "ZW"), THREE, {}),
    "Imagenette": (imagenette, ("tench", "cassette player"), TWO, {"options": {"size": "160px"}}),
    "Places365": (places, ("airfield", "bar"), TWO, {"options": {"small": True}}),
    "MNIST": (mnist, ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"), TWO, {}),
    "FashionMNIST": (fashion, 10, TWO, {}),
    "KMNIST": (kmnist, 10, TWO, {}),
    "EMNIST": (emnist, tuple("abcdefghijklmnopqrstuvwxyz"), TWO, {"options": {"split": "letters"}}),
    "QMNIST": (qmnist, 10, TWO, {}),
    "USPS": (usps, 10, TWO, {}),
    "SEMEION": (semeion, 10, THREE, DIVIDED),
    "FER2013": (fer, 7, TWO, {}),
    "CLEVRClassification": (clevr, ("3", "4"), TWO, {}),
}


def torchvision_set(name: str, root: Path, **settings: object) -> TorchVision:
    return TorchVision(configs.TorchVision(name=name, root=str(root), **{"size": 0, **EVERYTHING, **settings}))


@contextmanager
def nothing_decoded() -> Iterator[None]:
    def forbid(*_: object, **__: object) -> None:
        raise AssertionError("an image was decoded while the set was listed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "load", forbid)
        patch.setattr(Image, "fromarray", forbid)
        yield


def test_every_class_of_torchvision_is_known_or_refused(tmp_path):
    assert set(SETS) == set(torchvision_sets._SETS)
    every = {name for name in torchvision.datasets.__all__ if inspect.isclass(getattr(torchvision.datasets, name))}
    assert set(SETS) <= every
    refused = every - set(SETS)
    assert {"CelebA", "CocoDetection", "VOCSegmentation", "Sintel", "UCF101", "ImageFolder", "Omniglot"} <= refused
    for name in refused:
        with pytest.raises(DataError, match="is no data set that gives every image one class") as caught:
            torchvision_set(name, tmp_path)
        assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SETS)
def test_every_set(tmp_path, monkeypatch, name):
    make, classes, splits, settings = SETS[name]
    make(tmp_path / "data", monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    with nothing_decoded():
        data = torchvision_set(name, tmp_path / "data", **settings)
    assert sorted(tmp_path.rglob("*")) == before
    assert data.classes.names == classes if isinstance(classes, tuple) else len(data.classes) == classes
    check_dataset(data, splits, look_at=4)
    for part in splits:
        split = data.split(part)
        assert set(split.labels.tolist()) == set(range(len(data.classes)))
        for index in range(0, len(split), max(len(split) // 12, 1)):
            seen, told = split.load(index)[0].float().mean(), level(int(split.labels[index]))
            assert abs(seen - told) <= 1, (part, index)
    few = torchvision_set(name, tmp_path / "data", shots=1, **settings)
    assert few.split("train").labels.bincount().tolist() == [1] * len(data.classes)
    assert set(few.split("train").ids) < set(data.split("train").ids) or name == "Flowers102"
    called = [f"class {number}" for number in range(len(data.classes))]
    assert torchvision_set(name, tmp_path / "data", classes=called, **settings).classes.names == tuple(called)


def test_halves_sizes_and_other_processes(tmp_path, monkeypatch):
    cifar10(tmp_path, monkeypatch)
    data = torchvision_set("CIFAR10", tmp_path, size=48, augment="crop-flip", val_share=0.2)
    check_dataset(data, look_at=4)
    new = HalfOfClasses(data, "new")
    assert new.classes.names == tuple(f"no {n}" for n in range(5, 10)) and len(new.split("test")) == 5
    batches = list(read(new.split("val"), [[0, 1], [2]], workers=1))
    assert batches[1].images.shape == (1, 3, 48, 48)


def test_files_are_listed_in_the_order_of_their_names(tmp_path, monkeypatch):
    eurosat(tmp_path, monkeypatch)
    data = torchvision_set("EuroSAT", tmp_path)
    ids = list(data.split("train").ids)
    assert ids == sorted(ids) and ids[0] == "eurosat/2750/AnnualCrop/AnnualCrop_0.jpg"
    assert data.split("train").size(0) == (tmp_path / ids[0]).stat().st_size
    (tmp_path / ids[0]).write_bytes(b"")
    with pytest.raises(DataError, match=r"AnnualCrop_0\.jpg is not an image"):
        data.split("train").load(0)
    (tmp_path / ids[1]).rename(tmp_path / "eurosat" / "2750" / "AnnualCrop" / os.fsdecode(b"gr\xfcn.jpg"))
    with pytest.raises(DataError, match="not UTF-8"):
        torchvision_set("EuroSAT", tmp_path)


def test_other_options(tmp_path, monkeypatch):
    fgvc(tmp_path, monkeypatch)
    data = torchvision_set("FGVCAircraft", tmp_path, options={"annotation_level": "manufacturer"})
    assert data.classes.names == ("Airbus", "Fokker") and data.split("train").labels.bincount().tolist() == [2, 4]
    for options, reason in [
        ({"annotation_level": "engine"}, "annotation_level"),
        ({"anotation_level": "family"}, "'anotation_level' is no option of FGVCAircraft; there are annotation_level"),
        ({"split": "trainval"}, "'split' is no option"),
    ]:
        with pytest.raises(DataError, match=reason):
            torchvision_set("FGVCAircraft", tmp_path, options=options)
    for name, option in [
        ("FGVCAircraft", "download"),
        ("FGVCAircraft", "root"),
        ("FGVCAircraft", "loader"),
        ("FGVCAircraft", "transform"),
        ("FGVCAircraft", "target_transform"),
        ("Caltech101", "target_type"),
        ("OxfordIIITPet", "target_types"),
        ("CIFAR10", "train"),
        ("QMNIST", "what"),
    ]:
        with pytest.raises(DataError, match=f"'{option}' is no option of {name}"):
            torchvision_set(name, tmp_path, options={option: "os.system"})
    with pytest.raises(ValidationError, match="must be a number, a text"):
        configs.TorchVision(name="DTD", options={"partition": [1]})
    with pytest.raises(DataError, match="split"):
        torchvision_set("EMNIST", tmp_path)


def test_wrong_names(tmp_path):
    with pytest.raises(DataError, match="no data set 'cifar-10'; did you mean 'CIFAR10'"):
        torchvision_set("cifar-10", tmp_path)
    with pytest.raises(DataError, match="no data set '__doc__'") as caught:
        torchvision_set("__doc__", tmp_path)
    assert "CIFAR10" in caught.value.hint
    with pytest.raises(DataError, match="is no data set") as caught:
        torchvision_set("ImageFolder", tmp_path)
    assert "use: folder" in caught.value.hint


@pytest.mark.parametrize("name", SETS)
def test_what_is_absent(tmp_path, name):
    with pytest.raises(MissingData) as caught:
        torchvision_set(name, tmp_path, options={"split": "letters"} if name == "EMNIST" else {})
    assert "download=" not in caught.value.message and str(tmp_path) in caught.value.message
    assert ("download=True" in caught.value.hint) != ("by hand" in caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_what_is_damaged(tmp_path, monkeypatch):
    cifar10(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(MissingData, match="corrupted"):
        torchvision_set("CIFAR10", tmp_path)
    food(tmp_path, monkeypatch)
    (tmp_path / "food-101" / "meta" / "test.json").write_text("{")
    with pytest.raises(DataError, match="cannot read Food101"):
        torchvision_set("Food101", tmp_path)
    dtd(tmp_path, monkeypatch)
    labels = tmp_path / "dtd" / "dtd" / "labels" / "test1.txt"
    labels.write_text("".join(line for line in labels.open() if "lined" not in line))
    with pytest.raises(DataError, match="the splits have different classes"):
        torchvision_set("DTD", tmp_path)
    labels.unlink()
    with pytest.raises(MissingData, match=r"test1\.txt"):
        torchvision_set("DTD", tmp_path)


def test_classes_without_images(tmp_path, monkeypatch):
    for part in ("train", "t10k"):
        idx(tmp_path / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", array(twice(8), 28, channels=False))
        idx(tmp_path / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", np.array(twice(8)))
    with pytest.raises(DataError, match="label 8 has no images"):
        torchvision_set("MNIST", tmp_path)
    eurosat(tmp_path, monkeypatch)
    with pytest.raises(DataError, match="has 10 training images, but 11 shots"):
        torchvision_set("EuroSAT", tmp_path, shots=11)


SMALL: dict[str, tuple[type[SmallSet], Callable[[Path, Patch], None], int, int]] = {
    "cifar10": (Cifar10, cifar10, 10, 32),
    "cifar100": (Cifar100, cifar100, 100, 32),
    "stl10": (Stl10, stl10, 10, 96),
    "pcam": (Pcam, pcam, 2, 96),
}


class TestSmall:
    @pytest.mark.parametrize("name", SMALL)
    def test_they_are_read(self, tmp_path, monkeypatch, name):
        target, make, count, side = SMALL[name]
        make(tmp_path, monkeypatch)

        def build(**settings: object) -> SmallSet:
            return target(configs.Small(root=str(tmp_path), val_share=0.5, **settings))

        with nothing_decoded():
            data = build()
        check_dataset(data, look_at=4)
        split = data.split("val")
        assert len(data.classes) == count and split.load(0).shape == (3, side, side)
        assert int(split.load(3)[0].float().mean()) == level(int(split.labels[3]))
        assert data.record()["side"] == side and data.classes.templates == ("This is a photo of a {}",)
        assert all(path.stat().st_size for path in data.parts()) and len(data.parts()) >= 2
        assert split.version == build().split("val").version
        os.utime(data.parts()[1], (1, 1))
        versions = {part: build().split(part).version for part in ("train", "val", "test")}
        assert versions != {part: data.split(part).version for part in versions}

        large = build(size=40, augment="crop-flip", shots=1, prompts="ensemble")
        assert large.record()["side"] == 40 and large.split("test").load(0).shape == (3, 40, 40)
        assert large.split("train").labels.bincount().tolist() == [1] * count
        assert len(large.classes.templates) >= 2 and all("{}" in template for template in large.classes.templates)
        assert build(templates=["{}"]).classes.templates == ("{}",)
        with pytest.raises(ValidationError, match="needs a size"):
            build(augment="crop-flip")

    def test_classes_of_the_benchmark(self, tmp_path, monkeypatch):
        found = {}
        for name, (target, make, _, _) in SMALL.items():
            make(tmp_path, monkeypatch)
            found[name] = target(configs.Small(root=str(tmp_path))).classes.names
        assert found["cifar10"][:2] == ("airplane", "automobile") and found["stl10"][:3] == ("airplane", "bird", "car")
        assert found["cifar100"][1] == "aquarium fish" and found["cifar100"][99] == "worm"
        assert found["pcam"] == ("lymph node", "lymph node containing metastatic tumor tissue")

    def test_roots(self, tmp_path, monkeypatch):
        cifar10(tmp_path / "cifar10", monkeypatch)
        monkeypatch.setenv("ADVDISTILL_DATA", str(tmp_path / "cifar10"))
        ways = ["", str(tmp_path), str(tmp_path / "cifar10"), str(tmp_path / "cifar10" / "cifar-10-batches-py")]
        assert len({Cifar10(configs.Small(root=way)).split("train").version for way in ways}) == 1
        assert len(torchvision_set("CIFAR10", "").split("test")) == 10

    @pytest.mark.parametrize("name", SMALL)
    def test_what_is_absent(self, tmp_path, name):
        with pytest.raises(MissingData) as caught:
            SMALL[name][0](configs.Small(root=str(tmp_path)))
        assert caught.value.hint == f"advdistill data fetch {name}"

    def test_without_h5py(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "h5py", None)
        with pytest.raises(DataError, match="h5py") as caught:
            Pcam(configs.Small(root=str(tmp_path)))
        assert caught.value.hint == "pip install h5py"
