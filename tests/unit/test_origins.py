"""Published data sets from their archives.

Guarantees:
- An archive that is laid out as upstream's, beside which nothing lies, is unpacked by `fetch` into the folders that the
  reader of that data set reads: every set of CoOp's benchmark that can be fetched, and ImageNet's variants.
- Every origin is a whole one: addresses on the web, digests that can be digests, unique file names, something to do for
  whoever must do it by hand, and a data set that names it.
"""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import layouts
import pytest
from advdistill_data import configs, coop, imagenet, origins, shifts

from advdistill import Origin, Remote
from advdistill.data.fetch import fetch
from advdistill.hooks.registry import default_registry

SETS = {reader.name: reader for reader in (coop.Caltech101, coop.OxfordPets, coop.OxfordFlowers, coop.Food101,
        coop.FGVCAircraft, coop.DescribableTextures, coop.EuroSAT)}  # fmt: skip
OWN = {
    "102flowers.tgz": ["jpg"],
    "images.tar.gz": ["images"],
    "annotations.tar.gz": ["annotations"],
    "101_ObjectCategories.tar.gz": ["101_ObjectCategories"],
    "EuroSAT.zip": ["2750"],
}
"""What of a tree an archive holds; all of it where it is not here."""
ORIGINS = {name: value for name, value in vars(origins).items() if isinstance(value, Origin)}


def packed(file: str, tree: Path, parts: list[str], below: str) -> bytes:
    data = io.BytesIO()
    files = [path for part in parts for path in (tree / part, *sorted((tree / part).rglob("*"))) if path.is_file()]
    found = [(path, f"{below}/{path.relative_to(tree)}".lstrip("/")) for path in files]
    if file.endswith(".zip"):
        with zipfile.ZipFile(data, "w") as archive:
            for path, name in found:
                archive.write(path, name)
    else:
        with tarfile.open(fileobj=data, mode="w:gz" if file.endswith("gz") else "w") as archive:
            for path, name in found:
                archive.add(path, name)
    return data.getvalue()


def unchecked(origin: Origin) -> Origin:
    """The same without what only upstream's own files can satisfy."""
    return replace(origin, remotes=tuple(replace(each, size=0, md5="", sha256="") for each in origin.remotes))


def brought(remotes: tuple[Remote, ...], tree: Path, own: Path) -> None:
    """Put files where `fetch` takes them from if somebody has brought them."""
    own.mkdir(parents=True)
    for remote in remotes:
        if not remote.urls:
            continue
        if not remote.unpack:
            (own / remote.into / remote.file).write_bytes((tree / remote.file).read_bytes())
            continue
        parts = OWN.get(remote.file, [path.name for path in tree.iterdir()])
        content = packed(remote.file, tree, parts, remote.inside)
        if remote.file == "caltech-101.zip":  # an archive that holds an archive
            inner = tree.parent / "inner" / "101_ObjectCategories.tar.gz"
            inner.parent.mkdir()
            inner.write_bytes(packed(inner.name, tree, OWN[inner.name], ""))
            content = packed(remote.file, inner.parent, [inner.name], remote.inside)
        (own / remote.file).write_bytes(content)


@pytest.mark.parametrize("name", SETS)
def test_an_archive_lands_where_its_reader_reads(name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    tree, _ = layouts.build(name, tmp_path / "made", {"train": 4, "val": 2, "test": 2}, zhou=False)
    reader, own = SETS[name], tmp_path / "data" / SETS[name].origin.folder
    brought(reader.origin.remotes, tree, own)
    for missing in ("cat_to_name.json",):  # upstream has no such file
        if (tree / missing).exists():
            (own / missing).write_bytes((tree / missing).read_bytes())
    done = fetch(name, unchecked(reader.origin), str(own))
    assert done.place.state == "there" and set(done.brought) == {r.file for r in reader.origin.remotes if r.unpack}
    ours, theirs = (reader(configs.Published(root=str(root), size=8)) for root in (own, tree))
    assert [ours.split(part).digest for part in ("train", "test")] == [
        theirs.split(part).digest for part in ("train", "test")
    ]


@pytest.mark.parametrize(
    ("reader", "folder", "names"),
    [
        (shifts.ImageNetA, "imagenet-a", None),
        (shifts.ImageNetR, "imagenet-r", None),
        (shifts.ImageNetSketch, "sketch", None),
        (shifts.ImageNetV2, "imagenetv2-matched-frequency-format-val", ["0", "1", "2"]),
    ],
)
def test_imagenets_variants(reader: type, folder: str, names: list[str] | None, tmp_path: Path) -> None:
    wnids = imagenet.wnids()[:3]
    tree = tmp_path / "made"
    layouts.put(tree / folder, [f"{kind}/1.JPEG" for kind in names or wnids])
    own = tmp_path / "data" / reader.origin.folder
    brought(reader.origin.remotes, tree, own)
    assert fetch(reader.name, unchecked(reader.origin), str(own)).place.state == "there"
    listed = tmp_path / "names.txt"
    layouts.write(listed, (f"{wnid} kind {number}" for number, wnid in enumerate(wnids)))
    found = reader(configs.Shifted(root=str(own), size=8, classnames=str(listed)))
    assert found.split("test").labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("origin", ORIGINS.values(), ids=list(ORIGINS))
def test_an_origin_is_whole(origin: Origin) -> None:
    assert origin.needs and origin.page.startswith("http") and origin.images > 0
    assert origin.steps or (origin.remotes and not origin.gone)
    files = [remote.file for remote in origin.remotes]
    assert len(set(files)) == len(files)
    for remote in origin.remotes:
        assert all(url.startswith(("https://", "http://")) for url in remote.urls)
        assert re.fullmatch(r"([0-9a-f]{64})?", remote.sha256) and re.fullmatch(r"([0-9a-f]{32})?", remote.md5)
        assert remote.urls or files.index(remote.file) > 0  # brought by the one before


def test_every_origin_is_of_a_data_set() -> None:
    registry = default_registry()
    known = [registry.load(entry.spec, "origin") for entry in registry.entries("dataset")]
    assert sorted(o.folder for o in known if o) == sorted(o.folder for o in ORIGINS.values())
