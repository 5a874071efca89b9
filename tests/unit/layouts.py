"""Small trees in exactly the layouts that published data sets have on disk: real pictures, lists, JSON, MATLAB files.

`build(name, home)` makes one of the ten sets of CoOp's benchmark, `class_folders` any tree of class folders.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

PARTS = ("train", "val", "test")
USUAL = {"train": 6, "val": 5, "test": 3}
"""Images of each class."""
Entry = tuple[str, int, str]
Entries = dict[str, list[Entry]]


def picture(side: int = 12, kind: str = "JPEG") -> bytes:
    data = io.BytesIO()
    Image.linear_gradient("L").resize((side + 4, side)).convert("RGB").save(data, kind)
    return data.getvalue()


def put(root: Path, names: Iterable[str], content: bytes | None = None) -> None:
    """Write a picture under each name."""
    content = content or picture()
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


@dataclass(frozen=True)
class Layout:
    """One of the ten.

    Attributes:
        folder, images, zhou: its own folder, that of its images, CoOp's split file; "": none.
        names: as the split file writes them, in label order.
        image: of a label and a number from 1, below `images`.
        lists: writes the published division; None: it has none.
        divides: it has its own validation images.
    """

    folder: str
    images: str
    zhou: str
    names: tuple[str, ...]
    image: Callable[[int, int], str]
    lists: Callable[[Path, Entries], None] | None = None
    divides: bool = False


def entries(layout: Layout, counts: Mapping[str, int]) -> Entries:
    """Samples in an order that is not that of the labels."""
    found: Entries = {}
    number = 0
    for part in PARTS:
        some = []
        for _ in range(counts[part]):
            number += 1
            some += [(layout.image(label, number), label, name) for label, name in enumerate(layout.names)]
        random.Random(len(found)).shuffle(some)
        found[part] = some
    return found


def build(
    name: str,
    home: Path,
    counts: Mapping[str, int] | None = None,
    *,
    zhou: bool = True,
    lists: bool = True,
) -> tuple[Path, Entries]:
    """A tree below `home` in its usual folder.

    Args:
        counts: split -> images of each class.

    Returns:
        Its own folder, and what is in it.
    """
    layout = LAYOUTS[name]
    root = home / layout.folder
    found = entries(layout, counts or USUAL)
    put(root / layout.images, (image for some in found.values() for image, _, _ in some))
    if zhou and layout.zhou:
        (root / layout.zhou).write_text(json.dumps(found))
    if lists and layout.lists:
        layout.lists(root, found)
    return root, found


def _trainval(found: Entries) -> list[Entry]:
    return found["train"] + found["val"]


def _pets(root: Path, found: Entries) -> None:
    for file, some in (("trainval", _trainval(found)), ("test", found["test"])):
        write(
            root / "annotations" / f"{file}.txt",
            (f"{image.removesuffix('.jpg')} {label + 1} 1 1" for image, label, _ in some),
        )


def _cars(root: Path, found: Entries) -> None:
    """In the published tree images to validate on lie among those to train on."""
    kind = np.dtype([("bbox_x1", "O"), ("class", "O"), ("fname", "O")])

    def save(path: Path, some: list[Entry]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(1, label + 1, image.rpartition("/")[2]) for image, label, _ in some]
        savemat(path, {"annotations": np.array([rows], dtype=kind).reshape(1, -1)})

    put(root / "cars_train", (image.rpartition("/")[2] for image, _, _ in _trainval(found)))
    put(root / "cars_test", (image.rpartition("/")[2] for image, _, _ in found["test"]))
    save(root / "devkit" / "cars_train_annos.mat", _trainval(found))
    save(root / "cars_test_annos_withlabels.mat", found["test"])
    names = [" ".join([*name.split(" ")[1:], name.split(" ")[0]]) for name in LAYOUTS["stanford-cars"].names]
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array(names, dtype=object).reshape(1, -1)})


def _flowers(root: Path, found: Entries) -> None:
    number = {image: int(image[6:11]) for some in found.values() for image, _, _ in some}
    labels = {number[image]: label for some in found.values() for image, label, _ in some}
    savemat(root / "imagelabels.mat", {"labels": np.array([[labels[key] + 1 for key in sorted(labels)]], np.uint8)})
    keys = {"train": "trnid", "val": "valid", "test": "tstid"}
    savemat(
        root / "setid.mat",
        {keys[part]: np.array([[number[image] for image, _, _ in some]], np.uint16) for part, some in found.items()},
    )
    names = {str(label + 1): name for label, name in enumerate(LAYOUTS["oxford-flowers"].names)}
    (root / "cat_to_name.json").write_text(json.dumps(names))


def _food(root: Path, found: Entries) -> None:
    for file, some in (("train", _trainval(found)), ("test", found["test"])):
        write(root / "meta" / f"{file}.txt", (image.removesuffix(".jpg") for image, _, _ in some))


def _aircraft(root: Path, found: Entries) -> None:
    write(root / "variants.txt", LAYOUTS["fgvc-aircraft"].names)
    for part, some in found.items():
        write(root / f"images_variant_{part}.txt", (f"{image.removesuffix('.jpg')} {name}" for image, _, name in some))


def _sun(root: Path, found: Entries) -> None:
    folders = {label: image.rpartition("/")[0] for image, label, _ in found["train"]}
    write(root / "ClassName.txt", (f"/{folders[label]}" for label in sorted(folders)))
    for file, some in (("Training_01", _trainval(found)), ("Testing_01", found["test"])):
        write(root / f"{file}.txt", (f"/{image}" for image, _, _ in some))


def _dtd(root: Path, found: Entries) -> None:
    for part, some in found.items():
        write(root / "labels" / f"{part}1.txt", (image for image, _, _ in some))


def _ucf(root: Path, found: Entries) -> None:
    lists = root / "ucfTrainTestlist"
    actions = [name.replace("_", "") for name in LAYOUTS["ucf101"].names]
    write(lists / "classInd.txt", (f"{label + 1} {action}" for label, action in enumerate(actions)))

    def video(image: str, label: int) -> str:
        return f"{actions[label]}/{image.rpartition('/')[2].removesuffix('.jpg')}.avi"

    train = (f"{video(image, label)} {label + 1}" for image, label, _ in _trainval(found))
    write(lists / "trainlist01.txt", train)
    write(lists / "testlist01.txt", (video(image, label) for image, label, _ in found["test"]))


_CALTECH = ("Faces", "Leopards", "Motorbikes", "accordion", "airplanes", "ceiling_fan")
_PETS = ("Abyssinian", "american_bulldog", "Egyptian_Mau")
_SUN = ("a/abbey", "a/athletic_field/outdoor", "b/bedroom")
_DTD = ("banded", "blotchy", "polka-dotted")
_EUROSAT = ("AnnualCrop", "Forest", "SeaLake")
_UCF = ("Apply_Eye_Makeup", "Archery", "Tai_Chi")

LAYOUTS: dict[str, Layout] = {
    "caltech101": Layout(
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        ("face", "leopard", "motorbike", "accordion", "airplane", "ceiling_fan"),
        lambda label, number: f"{_CALTECH[label]}/image_{number:04d}.jpg",
    ),
    "oxford-pets": Layout(
        "oxford_pets",
        "images",
        "split_zhou_OxfordPets.json",
        ("abyssinian", "american_bulldog", "egyptian_mau"),
        lambda label, number: f"{_PETS[label]}_{number}.jpg",
        _pets,
    ),
    "stanford-cars": Layout(
        "stanford_cars",
        "",
        "split_zhou_StanfordCars.json",
        ("2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 Ram C/V Cargo Van Minivan"),
        lambda label, number: f"cars_{'test' if number > 11 else 'train'}/{3 * number + label:05d}.jpg",
        _cars,
    ),
    "oxford-flowers": Layout(
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        ("pink primrose", "hard-leaved pocket orchid", "canterbury bells"),
        lambda label, number: f"image_{3 * (number - 1) + label + 1:05d}.jpg",
        _flowers,
        divides=True,
    ),
    "food101": Layout(
        "food-101",
        "images",
        "split_zhou_Food101.json",
        ("apple_pie", "baby_back_ribs", "waffles"),
        lambda label, number: f"{('apple_pie', 'baby_back_ribs', 'waffles')[label]}/{1000 + number}.jpg",
        _food,
    ),
    "fgvc-aircraft": Layout(
        "fgvc_aircraft",
        "images",
        "",
        ("707-320", "A300B4", "Gulfstream IV"),
        lambda label, number: f"{3 * number + label:07d}.jpg",
        _aircraft,
        divides=True,
    ),
    "sun397": Layout(
        "sun397",
        "SUN397",
        "split_zhou_SUN397.json",
        ("abbey", "outdoor athletic_field", "bedroom"),
        lambda label, number: f"{_SUN[label]}/sun_{number:04d}.jpg",
        _sun,
    ),
    "dtd": Layout(
        "dtd",
        "images",
        "split_zhou_DescribableTextures.json",
        _DTD,
        lambda label, number: f"{_DTD[label]}/{_DTD[label]}_{number:04d}.jpg",
        _dtd,
        divides=True,
    ),
    "eurosat": Layout(
        "eurosat",
        "2750",
        "split_zhou_EuroSAT.json",
        ("Annual Crop Land", "Forest", "Sea or Lake"),
        lambda label, number: f"{_EUROSAT[label]}/{_EUROSAT[label]}_{number}.jpg",
    ),
    "ucf101": Layout(
        "ucf101",
        "UCF-101-midframes",
        "split_zhou_UCF101.json",
        _UCF,
        lambda label, number: f"{_UCF[label]}/v_{_UCF[label].replace('_', '')}_g{number:02d}_c01.jpg",
        _ucf,
    ),
}


def class_folders(root: Path, folders: Iterable[str], count: int = 1, suffix: str = ".JPEG") -> Path:
    """Folders of the same few pictures, by links, which a thousand folders take a tenth of a second for."""
    root.mkdir(parents=True, exist_ok=True)
    source = root.parent / "one.JPEG"
    source.write_bytes(picture())
    for folder in folders:
        (root / folder).mkdir()
        for number in range(count):
            (root / folder / f"{number:02d}{suffix}").symlink_to(source)
    return root
