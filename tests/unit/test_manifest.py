"""Manifests, and images that cannot be read.

Guarantees:
- A run writes which files it used: names, labels, lengths, a digest of each split, and the files that divide or hold
  samples; an evaluation does, too. A sealed run lists its test split and looks at none of its pixels.
- What one run drew, another uses by `data.manifest`, sample for sample and in that order, whatever it would draw
  itself, with halves of the classes taken afterwards.
- A manifest that does not fit the data (a class, a file, a length, a label, a split) or is damaged is an error that
  names what; other pixels of the same files are a warning.
- A run that goes on with other data than it began with is refused.
- An image that cannot be read ends a run with its name, or with `on_error: skip` takes no part and is counted in every
  statement; a class that loses all its images is an error.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
from PIL import Image

from advdistill import DataError, MissingSplit, RunError
from advdistill.engine import build, fit, manifest
from advdistill.engine.data import Readable, Sealed, unreadable
from advdistill.errors import RecipeError, RunWarning
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe, resolve_blocks


def photographs(root: Path, classes: tuple[str, ...] = ("ant", "bee", "cat", "dog"), count: int = 12) -> Path:
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (10, 10), (60 * place, 20 * number, 99)).save(root / name / f"{number:02d}.png")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photographs(tmp_path / "photographs")


def block(root: Path, **settings):
    tree = {"use": "folder", "root": str(root), "size": 8, **settings}
    return resolve_blocks({"data": tree}, default_registry())[("data",)]


def data(root: Path, **settings):
    return build.dataset(default_registry(), block(root, **settings))


def written(path: Path, root: Path, **settings) -> Path:
    dataset = data(root, **settings)
    used = {name: dataset.split(name) for name in ("train", "val", "test")}
    said = manifest.manifest(dataset, block(root, **settings).tree(), used)
    path.mkdir(exist_ok=True)
    manifest.write(path, said)
    return path / "manifest.json"


class TestManifest:
    def test_it_says_which_files(self, root, tmp_path):
        said = json.loads(written(tmp_path / "run", root, shots=2).read_text())
        train = said["splits"]["train"]
        assert train["samples"] == len(train["files"]) == 8
        name, label, size = train["files"][0]
        assert (root / name).stat().st_size == size
        assert said["classes"][label] == name.split("/")[0] == "ant"
        assert train["digest"] == data(root, shots=2).split("train").digest
        assert len(said["splits"]["test"]["files"]) == 10

    @pytest.mark.parametrize("half", ["all", "base", "new"])
    def test_what_one_drew_another_uses(self, root, tmp_path, half):
        file = written(tmp_path / "run", root, shots=3, shots_seed=5)
        drawn = data(root, shots=3, shots_seed=5, half=half)
        again = data(root, manifest=str(file), half=half, split_seed=9, val_share=0, test_share=0.5)
        assert again.classes == drawn.classes
        for name in ("train", "val", "test"):
            ours, theirs = again.split(name), drawn.split(name)
            assert list(ours.ids) == list(theirs.ids)
            assert ours.digest == theirs.digest
            assert ours.content == theirs.content
            assert [ours.size(i) for i in range(len(ours))] == [theirs.size(i) for i in range(len(theirs))]

    def test_it_is_taken_with_shots_of_its_own_nowhere(self, root, tmp_path):
        file = written(tmp_path / "run", root, shots=3)
        with pytest.raises(RecipeError, match=r"data\.manifest.*shots"):
            block(root, manifest=str(file), shots=2)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda said: said["classes"].__setitem__(0, "cow"), "lists the class 'cow'"),
            (lambda said: said["splits"]["train"]["files"][0].__setitem__(0, "ant/99.png"), "ant/99.png, which is not"),
            (lambda said: said["splits"]["train"]["files"][0].__setitem__(2, 5), "bytes long, and 5 in"),
            (lambda said: said["splits"]["train"]["files"][0].__setitem__(1, 2), "the data say 'ant'"),
            (lambda said: said["splits"].pop("train"), "lists no train split"),
            (lambda said: said["splits"]["train"]["files"].append(["ant/00.png"]), "is damaged"),
            (lambda said: said["splits"]["train"]["files"][0].__setitem__(1, 7), "is damaged"),
            (lambda said: said.pop("classes"), "is damaged"),
            (lambda said: said["splits"]["train"].pop("digest"), "is damaged"),
            (lambda said: said["splits"]["train"]["files"].append(said["splits"]["train"]["files"][0]), "is damaged"),
            (lambda said: said["splits"]["train"].update(files=[]), "is damaged"),
            (lambda said: said.pop("advdistill manifest"), "is no manifest of format 1"),
        ],
    )
    def test_one_that_does_not_fit(self, root, tmp_path, change, message):
        file = written(tmp_path / "run", root, shots=3)
        said = json.loads(file.read_text())
        change(said)
        file.write_text(json.dumps(said))
        with pytest.raises(DataError, match=message):
            data(root, manifest=str(file)).split("train")

    def test_one_that_cannot_be_read(self, root, tmp_path):
        with pytest.raises(DataError, match="there is no manifest"):
            data(root, manifest=str(tmp_path / "none.json"))
        (tmp_path / "cut.json").write_text('{"advdistill')
        with pytest.raises(DataError, match="is damaged"):
            data(root, manifest=str(tmp_path / "cut.json"))

    def test_other_pixels_are_a_warning(self, root, tmp_path):
        file = written(tmp_path / "run", root, shots=3)
        with pytest.warns(RunWarning, match="not those that"):
            data(root, manifest=str(file), size=9).split("train")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data(root, manifest=str(file)).split("train")

    def test_a_sealed_test_split_is_listed_and_not_looked_at(self, root):
        dataset = data(root)
        file = written(root.parent / "run", root)
        for name in dataset.split("test").ids:  # whoever opened one would stumble
            (root / name).write_bytes(bytes((root / name).stat().st_size))
        for settings in ({}, {"on_error": "skip"}, {"manifest": str(file)}, {"half": "base", "on_error": "skip"}):
            sealed = Sealed(data(root, **settings))
            used = {"train": sealed.split("train")}
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                said = manifest.manifest(sealed, {}, used)
            assert said["splits"]["test"]["content"] is None
            assert len(said["splits"]["test"]["files"]) in (10, 6)
            with pytest.raises(MissingSplit, match="sealed"):
                sealed.split("test")


@pytest.fixture
def recipe(root: Path, tmp_path: Path) -> list[str]:
    return [
        f"data={{use: folder, root: {root}, size: 32, shots: 2}}",
        f"save.dir={tmp_path / 'run'}",
        "train={steps: 2, batch_size: 4}",
        "teachers=null",
        "strategy={use: adversarial-ce}",
        "attack.steps=1",
        "evaluate={every: 0, undefended: false, teachers: false, protocols: [{name: clean}]}",
        "evaluate.controls=null",
        "save.every=1",
        "report=[]",
    ]


def run(words: list[str], **how):
    return fit.train(load_recipe("quickstart", words), default_registry(), **how)


class TestRun:
    def test_it_notes_its_files_and_goes_on_with_no_others(self, recipe, root, tmp_path):
        run(recipe)
        said = json.loads((tmp_path / "run" / "manifest.json").read_text())
        assert said["splits"]["train"]["samples"] == 8
        assert said["data"]["shots"] == 2
        first = root / said["splits"]["train"]["files"][0][0]
        Image.new("RGB", (10, 10), (1, 2, 3)).save(first)
        with pytest.raises(RunError, match="images of the train split have changed"):
            run(recipe, resume=True)
        shutil.copy(root / said["splits"]["train"]["files"][1][0], first.with_name("a-new-one.png"))
        with pytest.raises(RunError, match="other samples"):
            run(recipe, resume=True)

    def test_an_unreadable_image_ends_it_by_name(self, recipe, root):
        name = data(root, shots=2).split("train").ids[0]
        (root / name).write_bytes(b"")
        with pytest.raises(DataError, match=name):
            run(recipe)

    def test_or_is_skipped_and_counted(self, recipe, root, tmp_path):
        # Whichever of these stand in the test split: the draw does not depend on what is in a file.
        splits = {part: data(root, shots=2).split(part).ids for part in ("train", "test")}
        (root / splits["train"][0]).write_bytes(b"")
        (root / splits["test"][0]).write_bytes(b"no image")
        rows = run([*recipe, "data.on_error=skip"])
        split = rows[0].statements["clean"]["split"]
        assert split["unreadable"] == 1
        assert split["of"] == split["samples"] == 9
        assert json.loads((tmp_path / "run" / "manifest.json").read_text())["splits"]["train"]["samples"] == 7

    def test_other_class_names_are_another_run(self, recipe, root, tmp_path):
        (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
        words = [recipe[0].replace("shots: 2", f"shots: 2, class_names: {tmp_path}/names.txt"), *recipe[1:]]
        run(words)
        (tmp_path / "names.txt").write_text("d\nc\nb\na\n")
        with pytest.raises(RunError, match="called otherwise"):
            run(words, resume=True)

    def test_its_own_manifest_serves_to_begin_anew(self, recipe, root, tmp_path):
        run(recipe)
        file = tmp_path / "run" / "manifest.json"
        before = json.loads(file.read_text())["splits"]
        words = [recipe[0].replace(", shots: 2", f", manifest: {file}"), *recipe[1:]]
        run(words, overwrite=True)
        assert json.loads(file.read_text())["splits"] == before

    def test_a_split_that_is_not_looked_at_may_be_broken(self, recipe, root):
        for name in data(root, shots=2).split("test").ids:
            (root / name).write_bytes(b"no image")
        run([*recipe, "evaluate.protocols=[]"])


class TestReadable:
    def test_halves_count_their_own(self, root, tmp_path):
        (root / "ant" / "00.png").write_bytes(b"")
        (root / "dog" / "00.png").write_bytes(b"")
        with pytest.warns(RunWarning, match=r"ant/00\.png"):
            half = data(root, half="base", on_error="skip", val_share=0, test_share=0)
            assert list(half.split("train").skipped) == ["ant/00.png"]
        assert half.record()["unreadable"] == {"train": ["ant/00.png"]}

    def test_of_a_manifest(self, root, tmp_path):
        file = written(tmp_path / "run", root, shots=3)
        name = data(root, shots=3).split("train").ids[0]
        (root / name).write_bytes(bytes((root / name).stat().st_size))
        with pytest.warns(RunWarning, match="1 of 12 images"):
            split = data(root, manifest=str(file), on_error="skip").split("train")
        assert len(split) == 11 and list(split.skipped) == [name]

    def test_what_cannot_be_read_is_told_with_its_reason(self, root):
        (root / "ant" / "03.png").write_bytes(b"")
        whole = data(root, val_share=0, test_share=0).split("train")
        found = unreadable(whole)
        assert [whole.ids[index] for index in found] == ["ant/03.png"]
        assert "ant/03.png" in found[3]

    def test_the_others_keep_their_order_and_labels(self, root):
        whole = data(root, val_share=0, test_share=0)
        (root / "bee" / "00.png").write_bytes(b"")
        with pytest.warns(RunWarning, match=r"1 of 48 images of the train split .* bee/00\.png"):
            split = Readable(whole).split("train")
        assert list(split.ids) == [name for name in whole.split("train").ids if name != "bee/00.png"]
        assert list(split.skipped) == ["bee/00.png"]

    def test_a_class_without_any_is_an_error(self, root):
        for file in (root / "cat").iterdir():
            file.write_bytes(b"")
        with pytest.raises(DataError, match="no image of class 'cat'"):
            data(root, on_error="skip").split("train")
