"""Data of one's own: tables, webdataset shards, and what the library datasets loads.

Guarantees:
- Every reader keeps the contract of a data set; shots, halves of the classes and names of classes work with each.
- `csv`: texts are classes in sorted order, whole numbers are labels; splits as the table says, or by shares.
- `webdataset`: the images and classes that the library reads from the same shards, in its order; any process may read.
- `huggingface`: folders of `save_to_disk`, of parquet files and of images, without a network; rows keep their order.
- `size: 0` leaves images as they are, and is refused together with an augmentation that has to know the size.
- What cannot be used (absent or doubled images, labels with gaps, unknown splits, names that lead out of an archive,
  damaged or compressed shards, rows without a class, addresses, missing libraries) is a DataError that says where.
- A version changes when a file that holds the images does.
- Real photographs go through a table.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
import tarfile
from pathlib import Path

import advdistill_data
import numpy as np
import pytest
from advdistill_data import configs
from advdistill_data.hub import HuggingFace
from advdistill_data.labelled import numbered
from advdistill_data.shards import WebDataset
from advdistill_data.tables import Csv
from PIL import Image
from pydantic import ValidationError
from webdataset import TarWriter

from advdistill import DataError, Dataset, MissingData
from advdistill.engine.data import HalfOfClasses, read
from advdistill.testing import check_dataset

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10_photos.tar.gz"
CLASSES = ("ant", "bee", "cow_bird", "dog")
EVERYTHING = {"val_share": 0, "test_share": 0}


def picture(number: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """Of one colour; every number's is another."""
    return Image.new("RGB", size, (number % 256, number // 256, 90))


def encoded(number: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture(number).save(file, kind)
    return file.getvalue()


def painted(root: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(root / name)
    return root


def told(error: pytest.ExceptionInfo[DataError], *words: str) -> None:
    assert error.value.hint and error.value.exit_code == 5
    for word in words:
        assert word in error.value.message


class Tables:
    """40 images in a table with splits: train 6, val 2 and test 2 of each of four classes."""

    def __init__(self, root: Path) -> None:
        self.file, self.root = root / "table.csv", root
        rows, names = ["path,label,split"], []
        for label, (part, count) in itertools.product(CLASSES, {"train": 6, "Validation": 2, "test": 2}.items()):
            for number in range(count):
                names.append(f"images/{part}-{label}-{number}.png")
                rows.append(f"{names[-1]},{label},{part}")
        painted(root, names)
        self.file.write_text("\n".join(rows))

    def __call__(self, **settings: object) -> Csv:
        return Csv(configs.Csv(file=str(self.file), **{"size": 8, **settings}))


class Tars:
    """The same in three folders of two shards each."""

    def __init__(self, root: Path, text: bool = False) -> None:
        self.root, numbers = root, itertools.count()
        for part, count in {"train": 6, "val": 2, "test": 2}.items():
            (root / part).mkdir(parents=True)
            for shard in range(2):
                with TarWriter(str(root / part / f"{shard:04d}.tar")) as sink:
                    for label, row in itertools.product(range(4), range(shard, count, 2)):
                        said = {"txt": CLASSES[label]} if text else {"cls": label}
                        sink.write({"__key__": f"{label}/s{row:03d}", "png": encoded(next(numbers)), **said})
        if not text:
            (root / "classnames.txt").write_text("ant\nbee\ncow bird\ndog\n")

    def __call__(self, **settings: object) -> WebDataset:
        where = {f"{part}_shards": f"{self.root}/{part}/{{0000..0001}}.tar" for part in ("train", "val", "test")}
        return WebDataset(configs.WebDataset(**{"size": 8, **where, **settings}))


class Saved:
    """The same as a DatasetDict on disk."""

    def __init__(self, root: Path) -> None:
        import datasets

        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES)))
        numbers, tables = itertools.count(), {}
        for part, count in {"train": 6, "validation": 2, "test": 2}.items():
            labels = [label for label in range(4) for _ in range(count)]
            rows = {"image": [{"bytes": encoded(next(numbers)), "path": None} for _ in labels], "label": labels}
            tables[part] = datasets.Dataset.from_dict(rows, features)
        datasets.DatasetDict(tables).save_to_disk(str(root / "saved"))
        self.root = root / "saved"

    def __call__(self, **settings: object) -> HuggingFace:
        return HuggingFace(configs.HuggingFace(path=str(self.root), **{"size": 8, **settings}))


@pytest.mark.parametrize("maker", [Tables, Tars, Saved])
def test_every_reader(tmp_path, maker):
    build = maker(tmp_path)
    data = build()
    check_dataset(data)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [24, 8, 8]
    assert data.classes.names == ("ant", "bee", "cow bird", "dog") and data.classes.templates == ("a photo of a {}.",)

    check_dataset(build(augment="crop-flip"))
    few = build(shots=3)
    check_dataset(few)
    assert few.split("train").labels.bincount().tolist() == [3, 3, 3, 3] and len(few.split("val")) == 8
    assert set(few.split("train").ids) < set(data.split("train").ids)
    assert json.loads(json.dumps(few.record()))["ids"]["train"] == list(few.split("train").ids)
    with pytest.raises(DataError, match="'ant' has 6 training images, but 7 shots"):
        build(shots=7)

    base, new = (HalfOfClasses(data, half) for half in ("base", "new"))
    assert base.classes.names == ("ant", "bee") and len(base.split("test")) == 4
    assert new.classes.names == ("cow bird", "dog") and new.split("train").labels.bincount().tolist() == [6, 6]
    assert set(new.split("test").ids).isdisjoint(base.split("test").ids)

    assert build(classes=list("abcd"), templates=["{}"]).classes.names == tuple("abcd")
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    assert build(class_names=str(tmp_path / "names.txt")).classes.names == tuple("abcd")
    with pytest.raises(DataError, match="two classes are called 'a'"):
        build(classes=list("abac"))
    with pytest.raises(DataError, match="2 class names are given for 4"):
        build(classes=["a", "b"])

    first = data.split("train")
    assert list(read(first, [[0, 1], [2]], workers=1))[1].images.shape == (1, 3, 8, 8)
    assert len(data.parts()) == {"Tables": 1, "Tars": 7, "Saved": 3}[maker.__name__]
    assert build(size=16).split("train").version != first.version


@pytest.mark.parametrize("maker", [Tars, Saved])
def test_images_as_they_are(tmp_path, maker):
    build = maker(tmp_path)
    data = build(size=0)
    check_dataset(data)
    assert data.split("train").load(0).shape == (3, 10, 12)
    for settings, reason in ({"size": 4}, "at least 8"), ({"size": 0, "augment": "crop-flip"}, "needs a size"):
        with pytest.raises(ValidationError, match=reason):
            build(**settings)


class TestTables:
    def table(self, root: Path, text: str, name: str = "t.csv", images: str = "a.png b.png c.png d.png") -> Path:
        painted(root, images.split())
        (root / name).write_bytes(text.encode())
        return root / name

    def read(self, file: Path, **settings: object) -> Csv:
        return Csv(configs.Csv(file=str(file), **{"size": 8, **EVERYTHING, **settings}))

    def test_columns_separators_and_marks(self, tmp_path):
        written = {
            "comma.csv": '\ufefflabel,path,note\r\nbee,a.png,"1,5"\r\n ant ,b.png,\r\n\r\nbee, c.png ,x\r\n',
            "tab.tsv": "path\tlabel\na.png\tbee\nb.png\tant\nc.png\tbee\n",
            "bar.csv": "file|kind\na.png|bee\nb.png|ant\nc.png|bee",
        }
        other = {"bar.csv": {"separator": "|", "path_column": "file", "label_column": "kind"}}
        for name, text in written.items():
            data = self.read(self.table(tmp_path, text, name), **other.get(name, {}))
            split = data.split("train")
            assert data.classes.names == ("ant", "bee") and list(split.ids) == ["a.png", "b.png", "c.png"]
            assert split.labels.tolist() == [1, 0, 1], name
        assert data.parts() == [tmp_path / "bar.csv"] and len(data.record()["table"]) == 64

    def test_roots(self, tmp_path):
        painted(tmp_path / "images", ["x/a.png", "x/b.png"])
        (tmp_path / "t.csv").write_text(f"path,label\na.png,0\n{tmp_path}/images/x/b.png,1\n")
        data = self.read(tmp_path / "t.csv", root=str(tmp_path / "images" / "x"))
        assert data.split("train").load(1).shape == (3, 8, 8)
        assert [data.split("train").size(index) for index in range(2)] == [
            (tmp_path / "images/x" / name).stat().st_size for name in ("a.png", "b.png")
        ]

    def test_numbers_are_labels(self, tmp_path):
        text = "path,label\n" + "".join(f"{number}.png,{number}\n" for number in range(11))
        file = self.table(tmp_path, text, images=" ".join(f"{number}.png" for number in range(11)))
        data = self.read(file)
        assert data.classes.names == tuple(map(str, range(11))) and data.split("train").labels.tolist() == [*range(11)]
        (tmp_path / "names.json").write_text(json.dumps({str(number): chr(97 + number) for number in range(11)}))
        assert self.read(file, class_names=str(tmp_path / "names.json")).classes.names[10] == "k"

    def test_shares_where_nothing_is_divided(self, tmp_path):
        names = [f"{label}{number}.png" for label in "ab" for number in range(10)]
        rows = "".join(f"{name},{name[0]}\n" for name in names)
        file = self.table(tmp_path, "path,label\n" + rows, images=" ".join(names))
        data = self.read(file, val_share=0.1, test_share=0.2)
        assert [len(data.split(name)) for name in ("train", "val", "test")] == [14, 2, 4]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", ["t.csv:1", "no column 'path'"]),
            ("file,label\na.png,x\n", ["no column 'path'", "'file', 'label'"]),
            ("path,label,label\na.png,x,y\n", ["more than one column 'label'"]),
            ("path,label\n", ["lists no images"]),
            ("path,label\na.png,x\nb.png\n", ["t.csv:3: 1 columns"]),
            ("path,label\na.png,x,y\n", ["t.csv:2: 3 columns"]),
            ("path,label\n,x\n", ["t.csv:2", "no path"]),
            ("path,label\na.png,x\nb\0.png,x\n", ["t.csv:3"]),
            ("path,label\na.png, \n", ["t.csv:2: a.png has no class"]),
            ("path,label,split\na.png,x,\n", ["t.csv:2: '' is no split"]),
            ("path,label,split\na.png,x,holdout\n", ["'holdout' is no split"]),
            ("path,label,split\na.png,x,train\nb.png,y,train\n./a.png,x,test\n", ["t.csv:4", "stands in line 2"]),
            ("path,label\na.png,x\na.png,y\n", ["stands in line 2"]),
            ("path,label\na.png,x\ne.png,y\nf.png,y\n", ["lists e.png", "nor are 1 others"]),
            ("path,label\na.png,0\nb.png,2\n", ["label 1 has no images", "up to 2"]),
            ("path,label\na.png,0\nb.png,999999999\n", ["label 1 has no images"]),
            ("path,label\na.png,1\nb.png,2\n", ["label 0 has no images"]),
            ("path,label\na.png,0\nb.png,-1\n", ["label -1 is negative"]),
            ("path,label\na.png,x\nb.png,x\n", ["one class only: x"]),
            ("path,label\na.png,x y\nb.png,x_y\n", ["two classes are called 'x y'"]),
            ("path,label,split\na.png,x,train\nb.png,y,train\nc.png,z,test\n", ["test split has the class 'z'"]),
            ('path,label\n"a.png,x\n', ["t.csv:2"]),
        ],
    )
    def test_what_cannot_be_used(self, tmp_path, text, words):
        with pytest.raises(DataError) as caught:
            self.read(self.table(tmp_path, text))
        told(caught, *words)

    def test_files_that_are_no_tables(self, tmp_path):
        with pytest.raises(MissingData, match="there is no table"):
            self.read(tmp_path / "none.csv")
        with pytest.raises(DataError, match="cannot be read"):
            self.read(tmp_path)
        (tmp_path / "latin.csv").write_bytes("path,label\ngrün.png,x\n".encode("latin-1"))
        with pytest.raises(DataError, match="not UTF-8"):
            self.read(tmp_path / "latin.csv")
        file = self.table(tmp_path, "path,label\na.png,x\nb.png,y\n")
        with pytest.raises(DataError, match="no column 'fold'"):
            self.read(file, split_column="fold")
        with pytest.raises(MissingData, match="there is no folder"):
            self.read(file, root=str(tmp_path / "nowhere"))

    def test_an_image_that_is_none_is_told_when_it_is_read(self, tmp_path):
        file = self.table(tmp_path, "path,label\na.png,x\nb.png,y\n")
        (tmp_path / "b.png").write_bytes(b"")
        with pytest.raises(DataError, match=r"b\.png is not an image"):
            self.read(file).split("train").load(1)

    @pytest.mark.skipif(not PHOTOS.exists(), reason="the archive of CIFAR-10 photographs is not on this machine")
    def test_real_photographs(self, tmp_path):
        with tarfile.open(PHOTOS) as archive:
            folders = itertools.groupby((m for m in archive if m.isfile()), lambda m: m.name.split("/")[1:3])
            members = [m for where, some in folders if len(where) == 2 for m in itertools.islice(some, 2)]
            archive.extractall(tmp_path, members=members, filter="data")
        rows = [f"{m.name},{m.name.split('/')[-2]},{m.name.split('/')[-3]}" for m in members]
        (tmp_path / "photos.csv").write_text("\n".join(["path,label,split", *rows]))
        data = self.read(tmp_path / "photos.csv", size=32)
        assert len(data.classes) == 10 and data.classes.names[0] == "airplane"
        assert 0.2 < (data.split("test").load(3) / 255).mean() < 0.8


class TestShards:
    def shard(self, path: Path, members: dict[str, bytes], kind: str = "w") -> Path:
        path.parent.mkdir(exist_ok=True, parents=True)
        with tarfile.open(path, kind) as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path

    def read(self, shards: Path | str, **settings: object) -> WebDataset:
        return WebDataset(configs.WebDataset(shards=str(shards), **{"size": 8, **EVERYTHING, **settings}))

    def test_as_the_library_reads_them(self, tmp_path):
        import webdataset

        Tars(tmp_path)
        data = self.read(tmp_path / "train", size=0)
        pattern = f"{tmp_path}/train/{{0000..0001}}.tar"
        streamed = list(
            webdataset.WebDataset(pattern, shardshuffle=False).decode("rgb8").to_tuple("__key__", "png", "cls")
        )
        split = data.split("train")
        assert [name.split("/", 1)[1] for name in split.ids] == [key for key, _, _ in streamed]
        assert split.labels.tolist() == [label for _, _, label in streamed]
        for index, (_, image, _) in enumerate(streamed):
            assert np.array_equal(split.load(index).permute(1, 2, 0).numpy(), image)

    def test_texts_folders_wildcards_and_shares(self, tmp_path):
        Tars(tmp_path, text=True)
        ways = [tmp_path / "train", f"{tmp_path}/t*n/*.tar", f"{tmp_path}/train/{{0000,0001}}.tar"]
        ways.append(f"{tmp_path}/train/0000.tar::{tmp_path}/train/0001.tar")
        digests = set()
        for way in ways:
            data = self.read(way, label="txt", val_share=0.25, test_share=0.25)
            assert data.classes.names == ("ant", "bee", "cow bird", "dog")
            assert [len(data.split(name)) for name in ("train", "val", "test")] == [12, 6, 6]
            digests.add(data.split("train").digest)
        assert len(digests) == 1 and data.split("train").ids[0].startswith("0000.tar/")

    def test_json_and_several_images(self, tmp_path):
        members = {}
        for number, label in enumerate(("bee", "ant")):
            members[f"{number}.depth.png"] = encoded(7)
            members[f"{number}.JPG"] = encoded(number, "JPEG")
            members[f"{number}.json"] = json.dumps({"what": label}).encode()
        data = self.read(self.shard(tmp_path / "x.tar", members), label="json", label_field="what")
        assert data.classes.names == ("ant", "bee") and data.split("train").labels.tolist() == [1, 0]
        seen = self.read(tmp_path / "x.tar", image="depth.png", label="json", label_field="what").split("train")
        assert seen.load(1)[:, 0, 0].tolist() == [7, 0, 90]
        with pytest.raises(DataError, match=r"1\.json|0\.json"):
            self.read(tmp_path / "x.tar", label="json", label_field="who")

    def test_what_the_library_passes_over(self, tmp_path):
        members = {"__meta__/x.png": b"", "readme": b"x", "a.png": encoded(1), "a.cls": b"0\n"}
        shard = self.shard(tmp_path / "x.tar", members | {"b.png": encoded(2), "b.cls": b"1"})
        assert list(self.read(shard).split("train").ids) == ["x.tar/a", "x.tar/b"]

    def test_version_follows_the_shard(self, tmp_path):
        members = {"a.png": encoded(1), "a.cls": b"0", "b.png": encoded(2), "b.cls": b"1"}
        shard = self.shard(tmp_path / "x.tar", members)
        before = self.read(shard).split("train")
        assert before.version == self.read(shard).split("train").version and before.size(0) is None
        os.utime(shard, (1, 1))
        assert before.version != self.read(shard).split("train").version
        shard.unlink()
        with pytest.raises(DataError, match=r"x\.tar"):
            before.load(0)

    @pytest.mark.parametrize(
        ("members", "words"),
        [
            ({"a.png": b"", "../b.png": b""}, ["leads out", "../b.png"]),
            ({"/etc/a.png": b""}, ["leads out", "/etc/a.png"]),
            ({"a.png": b"x", "b.cls": b"0"}, ["sample a has no class"]),
            ({"a.cls": b"0"}, ["sample a has no image"]),
            ({"a.png": b"x", "a.cls": b"0", "a.PNG": b"x"}, ["a.PNG", "duplicate"]),
            ({"a.png": b"x", "a.cls": b"0", "b.png": b"x", "b.cls": b"1", "a.txt": b"x"}, ["a stands in two places"]),
            ({"a.png": b"x", "a.cls": b""}, ["a.cls is not a class"]),
            ({"a.png": b"x", "a.cls": b"\xff"}, ["a.cls is not a class"]),
            ({"a.png": b"x", "a.cls": b"0", "b.png": b"x", "b.cls": b"2"}, ["label 1 has no images"]),
            ({os.fsdecode(b"gr\xfcn.png"): b"x"}, ["not UTF-8"]),
            ({}, ["one class only: none"]),
        ],
    )
    def test_what_cannot_be_used(self, tmp_path, members, words):
        self.shard(tmp_path / "bad.tar", members)
        with pytest.raises(DataError) as caught:
            self.read(tmp_path / "bad.tar")
        told(caught, *words)

    def test_files_that_are_no_shards(self, tmp_path):
        packed = self.shard(tmp_path / "x.tar.gz", {"a.png": b"x"}, "w:gz")
        with pytest.raises(DataError, match="compressed"):
            self.read(packed)
        with pytest.raises(DataError, match="compressed"):
            self.read(packed.rename(tmp_path / "y.tar"))
        (tmp_path / "text.tar").write_text("no archive")
        with pytest.raises(DataError, match=r"text\.tar cannot be read"):
            self.read(tmp_path / "text.tar")
        whole = self.shard(tmp_path / "z.tar", {"a.cls": b"0", "a.png": encoded(1) + bytes(4000)})
        whole.write_bytes(whole.read_bytes()[:2000])
        with pytest.raises(DataError, match=r"z\.tar cannot be read"):
            self.read(whole)
        (tmp_path / "none").mkdir()
        for absent in ("none", "nowhere", "w-{00..01}.tar", "*.tgz"):
            with pytest.raises(MissingData, match="there are no shards"):
                self.read(tmp_path / absent)

    def test_a_shard_that_is_cut_off(self, tmp_path):
        members = {}
        for number in range(6):
            members |= {f"{number}.png": encoded(number), f"{number}.cls": b"%d" % (number % 2)}
        whole = self.shard(tmp_path / "x.tar", members).read_bytes()
        assert len(self.read(tmp_path / "x.tar").split("train")) == 6
        with tarfile.open(tmp_path / "x.tar") as tar:
            third = tar.getmembers()[4].offset
        damaged = bytearray(whole)
        damaged[third : third + 512] = b"x" * 512
        for content in (whole[:third], whole[: third + 100], bytes(damaged)):
            (tmp_path / "x.tar").write_bytes(content)
            with pytest.raises(DataError, match=r"cut off or damaged behind the member 1\.cls"):
                self.read(tmp_path / "x.tar")

    def test_paths_that_cannot_be(self):
        for where in ("~nobody-of-that-name/x.tar", "x" * 5000):
            with pytest.raises(DataError, match="is no path"):
                self.read(where)

    def test_addresses_and_commands_are_refused(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WDS_HIDDEN", f"pipe:touch {tmp_path}/ran")
        for where in ("https://example.org/x.tar", f"pipe:touch {tmp_path}/ran", "s3://b/x.tar", "${HIDDEN}"):
            with pytest.raises(DataError, match="not a file on this machine"):
                self.read(where)
        assert not (tmp_path / "ran").exists()
        with pytest.raises(DataError, match="no pattern"):
            self.read("${UNKNOWN_HERE}.tar")

    def test_contradictions(self, tmp_path):
        for settings in ({}, {"shards": "a", "train_shards": "b"}):
            with pytest.raises(ValidationError, match="either shards"):
                configs.WebDataset(**settings)
        Tars(tmp_path)
        with pytest.raises(DataError, match="listed twice"):
            WebDataset(configs.WebDataset(train_shards=f"{tmp_path}/train", test_shards=f"{tmp_path}/train/0000.tar"))
        (tmp_path / "classnames.txt").write_text("one\n")
        with pytest.raises(DataError, match=r"classnames\.txt names 1 classes"):
            self.read(tmp_path / "train")

    def test_without_the_library(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
        with pytest.raises(DataError, match="library webdataset") as caught:
            self.read(tmp_path)
        assert "advdistill[webdataset]" in caught.value.hint

    def test_a_damaged_image_is_told_when_it_is_read(self, tmp_path):
        members = {"a.png": encoded(1)[:40], "a.cls": b"0", "b.png": b"", "b.cls": b"1"}
        split = self.read(self.shard(tmp_path / "x.tar", members)).split("train")
        for index, name in enumerate("ab"):
            with pytest.raises(DataError, match=rf"x\.tar/{name}\.png"):
                split.load(index)


class TestHub:
    @pytest.fixture(autouse=True)
    def offline(self, tmp_path, monkeypatch):
        import datasets
        import huggingface_hub.constants

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def read(self, path: Path | str, **settings: object) -> HuggingFace:
        return HuggingFace(configs.HuggingFace(path=str(path), **{"size": 8, **EVERYTHING, **settings}))

    def rows(self, labels: list[object], feature: object, **more: object) -> object:
        import datasets

        features = datasets.Features(image=datasets.Image(), label=feature)
        images = [{"bytes": encoded(number), "path": None} for number in range(len(labels))]
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features)

    def test_parquet(self, tmp_path):
        import datasets

        rows = self.rows(["bee", "ant", "bee", "ant"], datasets.Value("string"))
        (tmp_path / "data").mkdir()
        rows.to_parquet(str(tmp_path / "data" / "train-00000-of-00001.parquet"))
        rows.to_parquet(str(tmp_path / "data" / "test-00000-of-00001.parquet"))
        data = self.read(tmp_path / "data", size=0)
        check_dataset(data, ("train", "test"))
        assert data.classes.names == ("ant", "bee") and list(data.split("test").ids)[1] == "test/000001"
        assert data.split("test").labels.tolist() == [1, 0, 1, 0]
        assert [data.split("test").load(row)[0, 0, 0].item() for row in range(4)] == [0, 1, 2, 3]

    def test_folder_of_images(self, tmp_path):
        painted(
            tmp_path / "data", [f"{part}/{label}/{n}.png" for part in ("train", "test") for label in "ab" for n in "01"]
        )
        data = self.read(tmp_path / "data")
        assert data.classes.names == ("a", "b") and data.split("train").labels.tolist() == [0, 0, 1, 1]
        before = data.split("train").version
        os.utime(tmp_path / "data" / "train" / "a" / "0.png", (1, 1))
        assert data.split("train").load(0).shape == (3, 8, 8)
        assert self.read(tmp_path / "data").split("train").version != before
        (tmp_path / "data" / "train" / "a" / "0.png").write_bytes(b"")
        with pytest.raises(DataError, match=r"train/000000 .*0\.png.* is not an image"):
            data.split("train").load(0)

    def test_one_table_columns_and_shuffled_rows(self, tmp_path):
        import datasets

        rows = self.rows([number % 3 for number in range(9)], datasets.Value("int64")).add_column("other", [0] * 9)
        rows.rename_columns({"image": "img", "label": "fine"}).shuffle(seed=0).save_to_disk(str(tmp_path / "saved"))
        with pytest.raises(DataError, match="no single column of classes"):
            self.read(tmp_path / "saved")
        data = self.read(tmp_path / "saved", label="fine", image="img", size=0)
        split = data.split("train")
        assert split.labels.tolist() == [split.load(row)[0, 0, 0].item() % 3 for row in range(9)]
        assert data.classes.names == ("0", "1", "2")

    def test_what_cannot_be_used(self, tmp_path):
        import datasets

        saved = tmp_path / "saved"
        named = datasets.ClassLabel(names=["a", "b"])
        self.rows([0, 1], named).save_to_disk(str(saved))
        for settings, reason in [
            ({"train_split": "holdout"}, "no split 'holdout', but train"),
            ({"image": "label"}, "no column 'label' of images; its columns are image, label"),
            ({"label": "image"}, "no column 'image' of classes"),
            ({"label": "x"}, "no column 'x' of classes"),
        ]:
            with pytest.raises(DataError, match=reason):
                self.read(saved, **settings)
        for name, labels, feature, reason in [
            ("unlabelled", [0, -1], named, "row 1 of the train split .* has no class"),
            ("none", ["a", None], datasets.Value("string"), "row 1 of the train split .* has no class"),
            ("empty", [0, 0], named, "label 1 has no images"),
            ("gaps", [0, 2], datasets.Value("int32"), "label 1 has no images"),
        ]:
            self.rows(labels, feature).save_to_disk(str(tmp_path / name))
            with pytest.raises(DataError, match=reason):
                self.read(tmp_path / name)
        parts = {"holdout": self.rows([0, 1], named)}
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "holdout"))
        with pytest.raises(DataError, match="no split called train, val or test, but holdout"):
            self.read(tmp_path / "holdout")
        assert len(self.read(tmp_path / "holdout", train_split="holdout").split("train")) == 2
        parts = {"val": self.rows([0, 1], named), "validation": self.rows([0, 1], named)}
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "twice"))
        with pytest.raises(DataError, match="two val splits"):
            self.read(tmp_path / "twice")

    def test_images_that_are_none(self, tmp_path):
        import datasets

        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
        images = [{"bytes": encoded(1)[:30], "path": None}, None]
        rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features)
        rows.save_to_disk(str(tmp_path / "saved"))
        split = self.read(tmp_path / "saved").split("train")
        for row, reason in enumerate(("cannot be read|not an image", "holds no image")):
            with pytest.raises(DataError, match=rf"train/00000{row} of .*({reason})"):
                split.load(row)

    def test_what_is_not_here(self, tmp_path):
        with pytest.raises(MissingData, match="datasets cannot load nobody/nothing"):
            self.read("nobody/nothing")
        (tmp_path / "folder").mkdir()
        with pytest.raises(DataError, match="datasets cannot load") as caught:
            self.read(tmp_path / "folder")
        assert not isinstance(caught.value, MissingData) and caught.value.hint
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        with pytest.raises(DataError, match="datasets cannot load"):
            self.read(tmp_path / "code")
        assert not (tmp_path / "ran").exists()

    def test_without_the_library(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(DataError, match="library datasets") as caught:
            self.read(tmp_path)
        assert "advdistill[huggingface]" in caught.value.hint


def test_numbers():
    assert numbered(["10", "0", "1"] + [str(n) for n in range(2, 10)], "x")[1][0] == 10
    assert numbered(["b", "1", "a"], "x") == (["1", "a", "b"], [2, 0, 1])


def test_they_are_registered():
    specs = {spec.name: spec for spec in advdistill_data.advdistill_datasets()}
    assert {"csv", "webdataset", "huggingface", "torchvision"} <= specs.keys()
    for name in ("csv", "webdataset", "huggingface"):
        module, _, target = specs[name].target.partition(":")
        assert issubclass(getattr(sys.modules[module], target), Dataset)
        assert hasattr(configs, specs[name].config.partition(":")[2])
