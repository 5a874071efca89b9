"""Datasets of image files.

Guarantees:
- Whatever is a valid image becomes upright 8-bit RGB of the size asked for: grey, palette, 16 bit, CMYK, alpha, EXIF.
- What is not (truncated, no image, missing, float) is a DataError that names the file, exit code 5.
- Class folders and train/val/test trees are told apart, a class called "train" included; order is sorted and stable.
- Splits that a tree lacks are taken from its training images, disjoint, in proportion, the same every time.
- Shots draw k per class as Python's `random.sample` does and min(k, 4) (or all) to validate on; `record` lists them.
- Every tree that cannot be used is a DataError that says what is wrong and what to do.
- `crop-flip` brings random boxes of a larger square to size as torchvision does one by one (bicubic, antialiased), and
  flips every other; boxes are spread as told; every draw is the sample's own; evaluated images know nothing of it.
- A split's version changes when a file's length or time, a name or a setting does, and only then.
- `imagenet` reads its usual tree and subsets named by a classnames file; validation images are the test split.
- Real photographs decode and batch through the engine's reader.
"""

from __future__ import annotations

import json
import math
import os
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from advdistill_data import configs
from advdistill_data.crops import crop_flip, random_crops, resampled
from advdistill_data.folder import Folder
from advdistill_data.imagenet import ImageNet, wnids
from advdistill_data.pictures import PictureSplit
from advdistill_data.pictures import decode as decode_file
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from advdistill import DataError, Noise
from advdistill.engine.data import read

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10_photos.tar.gz"


def paint(path: Path, colour: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = (20, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def tree(root: Path, counts: dict[str, int], suffix: str = ".png") -> Path:
    for position, (folder, count) in enumerate(counts.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            paint(root / folder / f"{number:03d}{suffix}", (10 * position, number % 256, 90))
    return root


def folder(root: Path, **settings) -> Folder:
    return Folder(configs.Folder(root=str(root), **{"size": 8, **settings}))


def decode(path: Path) -> Image.Image:
    return decode_file(path, str(path))


def pixel(path: Path) -> tuple[int, ...]:
    return decode(path).getpixel((2, 2))


class TestDecode:
    def test_rgb_is_exact(self, tmp_path):
        assert pixel(paint(tmp_path / "a.png")) == (200, 100, 50)

    def test_grey_and_palette(self, tmp_path):
        Image.new("L", (8, 8), 77).save(tmp_path / "grey.jpg")
        Image.new("1", (8, 8), 1).save(tmp_path / "bit.png")
        Image.new("RGB", (8, 8), (200, 100, 50)).quantize(4).save(tmp_path / "palette.gif")
        assert pixel(tmp_path / "grey.jpg") == (77, 77, 77)
        assert pixel(tmp_path / "bit.png") == (255, 255, 255)
        assert pixel(tmp_path / "palette.gif") == (200, 100, 50)

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_16_bit_grey_is_scaled_not_clipped(self, tmp_path, suffix):
        path = tmp_path / f"deep.{suffix}"
        Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)).save(path)
        assert pixel(path) == (128, 128, 128)

    def test_cmyk(self, tmp_path):
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
        red, green, blue = pixel(tmp_path / "red.jpg")
        assert red > 240 and green < 15 and blue < 15

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_transparent_pixels_lie_on_white(self, tmp_path, mode):
        image = Image.new("RGBA", (8, 8), (10, 10, 10, 0))
        image.paste((10, 10, 10, 255), (4, 4, 8, 8))
        image.convert(mode).save(tmp_path / "a.png")
        seen = decode(tmp_path / "a.png")
        assert seen.mode == "RGB" and seen.getpixel((1, 1)) == (255, 255, 255) and seen.getpixel((6, 6))[0] < 20

    def test_exif_rotation_is_applied(self, tmp_path):
        image = Image.new("RGB", (20, 10), "blue")
        image.paste("red", (0, 0, 10, 10))
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise: the left half comes to lie on top
        image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
        seen = decode(tmp_path / "turned.jpg")
        assert seen.size == (10, 20)
        assert seen.getpixel((5, 3))[0] > 200 and seen.getpixel((5, 16))[2] > 200

    def test_what_cannot_be_read_names_the_file(self, tmp_path):
        whole = tmp_path / "whole.jpg"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
        (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        (tmp_path / "text.png").write_text("not an image")
        (tmp_path / "empty.jpg").touch()
        Image.new("F", (8, 8), 0.5).save(tmp_path / "float.tif")
        (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
        for name, reason in {
            "cut.jpg": "truncated",
            "text.png": "not an image",
            "empty.jpg": "not an image",
            "float.tif": "floating-point",
            "dangling.png": "missing",
        }.items():
            with pytest.raises(DataError, match=reason) as caught:
                decode(tmp_path / name)
            assert name in caught.value.message and caught.value.hint and caught.value.exit_code == 5


class TestTrees:
    def test_class_folders(self, tmp_path):
        data = folder(tree(tmp_path, {"great_tit": 20, "blackbird": 30, "owl": 10}))
        assert data.classes.names == ("blackbird", "great tit", "owl")
        assert data.classes.templates == ("a photo of a {}.",)
        splits = {name: data.split(name) for name in ("train", "val", "test")}
        assert {name: len(split) for name, split in splits.items()} == {"train": 42, "val": 6, "test": 12}
        ids = [name for split in splits.values() for name in split.ids]
        assert len(set(ids)) == 60 and "great_tit/000.png" in ids
        for split in splits.values():
            shares = split.labels.bincount(minlength=3) / len(split)
            assert (shares - torch.tensor([1 / 2, 1 / 3, 1 / 6])).abs().max() <= 1 / len(split)
            for name, label in zip(split.ids, split.labels.tolist(), strict=True):
                assert name.startswith(("blackbird", "great_tit", "owl")[label])
        again, other = folder(tmp_path), folder(tmp_path, split_seed=1)
        assert again.split("train").digest == splits["train"].digest != other.split("train").digest

    def test_split_folders(self, tmp_path):
        tree(tmp_path, {"train/a": 10, "train/b": 10, "valid/a": 2, "valid/b": 3, "Test/a": 1, "Test/b": 2})
        tree(tmp_path, {"annotations": 1})
        data = folder(tmp_path)
        assert [len(data.split(name)) for name in ("train", "val", "test")] == [20, 5, 3]
        assert list(data.split("test").ids) == ["Test/a/000.png", "Test/b/000.png", "Test/b/001.png"]

    def test_missing_val_is_taken_from_train(self, tmp_path):
        tree(tmp_path, {"train/a": 10, "train/b": 10, "test/a": 4, "test/b": 4})
        data = folder(tmp_path, val_share=0.2)
        assert [len(data.split(name)) for name in ("train", "val", "test")] == [16, 4, 8]
        assert data.split("val").labels.bincount().tolist() == [2, 2]
        assert not set(data.split("val").ids) & set(data.split("train").ids)

    def test_everything_can_be_tested(self, tmp_path):
        data = folder(tree(tmp_path, {"a": 3, "b": 4}), val_share=0, test_share=1)
        assert len(data.split("test")) == 7
        with pytest.raises(DataError, match=r"train split .* holds no images"):
            data.split("train")
        only_test = folder(tree(tmp_path / "more", {"test/a": 2, "test/b": 2}))
        assert len(only_test.split("test")) == 4

    def test_a_class_may_be_called_train(self, tmp_path):
        data = folder(tree(tmp_path, {"train": 5, "bus": 5}))
        assert data.classes.names == ("bus", "train")

    def test_nested_linked_and_foreign_files(self, tmp_path):
        tree(tmp_path, {"a/images": 2, "b": 3}, ".JPG")
        for name in ("a/notes.txt", "a/.hidden.jpg", "b/._000.jpg", ".git/x.jpg", "__MACOSX/b/x.jpg", "readme.md"):
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name).write_text("x")
        (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
        (tmp_path / "c").symlink_to(tmp_path / "b")
        data = folder(tmp_path, val_share=0, test_share=0)
        assert data.classes.names == ("a", "b", "c")
        assert list(data.split("train").ids) == [
            *(f"a/images/00{i}.JPG" for i in range(2)),
            *(f"b/00{i}.JPG" for i in range(3)),
            *(f"c/00{i}.JPG" for i in range(3)),
        ]

    def test_class_names(self, tmp_path):
        tree(tmp_path / "data", {"x1": 4, "x2": 4})
        (tmp_path / "map.json").write_text(json.dumps({"x2": "bee", "x1": "ant", "x3": "fly"}))
        (tmp_path / "list.json").write_text('["ant", "bee"]')
        (tmp_path / "lines.txt").write_text("\ufeffant\nbee\n\n", encoding="utf-8")
        ways = [{"classes": ["ant", "bee"]}]
        ways += [{"class_names": str(tmp_path / name)} for name in ("map.json", "list.json", "lines.txt")]
        for way in ways:
            assert folder(tmp_path / "data", **way).classes.names == ("ant", "bee"), way

    def test_sizes(self, tmp_path):
        for name in ("a", "b"):
            image = Image.new("RGB", (40, 20), "red")
            image.paste("blue", (10, 0, 30, 20))  # the central square
            (tmp_path / name).mkdir()
            image.save(tmp_path / name / "x.png")
        everything = {"val_share": 0, "test_share": 0}
        cropped = folder(tmp_path, size=16, **everything).split("train").load(0)
        squashed = folder(tmp_path, size=16, resize="squash", **everything).split("train").load(0)
        assert cropped.dtype == torch.uint8 and cropped.shape == squashed.shape == (3, 16, 16)
        assert cropped[2].float().mean() > 240 and squashed[:, 8, 1].tolist() == [255, 0, 0]


class TestShots:
    def test_draw_is_random_sample_in_class_order(self, tmp_path):
        data = folder(tree(tmp_path, {"train/a": 9, "train/b": 9, "val/a": 5, "val/b": 2, "test/a": 3}), shots=6)
        rng = random.Random(1)
        train = [f"train/{c}/{i:03d}.png" for c in "ab" for i in rng.sample(range(9), 6)]
        val = [f"val/a/{i:03d}.png" for i in rng.sample(range(5), 4)]
        val += ["val/b/000.png", "val/b/001.png"]  # too few: all, without a draw
        assert list(data.split("train").ids) == train and list(data.split("val").ids) == val
        record = json.loads(json.dumps(data.record()))
        assert record["ids"] == {"train": train, "val": val} and record["splits"]["train"]["count"] == 12
        assert folder(tmp_path, shots=6, shots_seed=2).split("train").digest != data.split("train").digest

    def test_long_draws_are_recorded_by_digest(self, tmp_path):
        data = folder(tree(tmp_path, {"a": 10, "b": 10}))
        assert "ids" not in data.record()
        assert data.record()["splits"]["test"] == {"count": 4, "sha256": data.split("test").digest}

    def test_too_few_images(self, tmp_path):
        tree(tmp_path, {"train/a": 9, "train/rare_one": 3})
        with pytest.raises(DataError, match=r"'rare one' has 3 training images, but 4 shots") as caught:
            folder(tmp_path, shots=4, val_share=0, test_share=0)
        assert "3" in caught.value.hint


class TestBadTrees:
    @pytest.mark.parametrize(
        ("counts", "settings", "told"),
        [
            ({}, {}, "no class folders"),
            ({"a": 3}, {}, "one class only: a"),
            ({"train/a": 3}, {}, "one class only: a"),
            ({"a": 3, "b": 0}, {}, r"b holds no images"),
            ({"train/a": 3, "train/b": 3, "test/a": 1, "test/B": 1}, {}, "test folder has the class 'B'"),
            ({"train/a": 1, "train/b": 1, "val/a": 1, "valid/a": 1}, {}, "two val folders"),
            ({"a": 2, "b": 2}, {"classes": ["ant"]}, "1 class names are given for 2"),
            ({"a": 2, "b": 2}, {"class_names": "nowhere.json"}, "nowhere.json cannot be read"),
        ],
    )
    def test_told_and_with_a_hint(self, tmp_path, counts, settings, told):
        with pytest.raises(DataError, match=told) as caught:
            folder(tree(tmp_path, counts), **settings)
        assert caught.value.hint and caught.value.exit_code == 5

    def test_roots(self, tmp_path):
        with pytest.raises(DataError, match="there is no folder"):
            folder(tmp_path / "nowhere")
        (tmp_path / "data.zip").touch()
        with pytest.raises(DataError, match="not a folder"):
            folder(tmp_path / "data.zip")

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may list any folder")
    def test_folder_that_may_not_be_listed(self, tmp_path):
        tree(tmp_path, {"a": 1, "b": 1})
        (tmp_path / "b").chmod(0)
        try:
            with pytest.raises(DataError, match="cannot be listed"):
                folder(tmp_path)
        finally:
            (tmp_path / "b").chmod(0o755)

    @pytest.mark.parametrize("name", ["a\nb.png", "\x1b[31mred.png"])
    def test_names_that_a_terminal_would_obey(self, tmp_path, name):
        tree(tmp_path / "data", {"cat": 2, "dog": 2})
        paint(tmp_path / "data" / "cat" / name)
        with pytest.raises(DataError, match="has control characters"):
            folder(tmp_path / "data")

    def test_a_class_that_links_to_the_root(self, tmp_path):
        tree(tmp_path / "data", {"cat": 2, "dog": 2})
        (tmp_path / "data" / "loop").symlink_to(".")
        with pytest.raises(DataError, match="loop holds no images"):
            folder(tmp_path / "data")

    def test_a_very_long_picture(self, tmp_path):
        tree(tmp_path / "data", {"cat": 1, "dog": 1})
        paint(tmp_path / "data" / "cat" / "long.png", size=(1, 20_000))
        split = folder(tmp_path / "data", size=224, val_share=0, test_share=0).split("train")
        assert {split.load(index).shape for index in range(3)} == {(3, 224, 224)}

    def test_names_file_without_a_folder(self, tmp_path):
        (tmp_path / "names.json").write_text('{"a": "ant"}')
        with pytest.raises(DataError, match="no name for the class 'b'"):
            folder(tree(tmp_path / "data", {"a": 2, "b": 2}), class_names=str(tmp_path / "names.json"))

    @pytest.mark.parametrize("text", ["3", "[]", '["a", 2]', "{", '{"a": null, "b": "x"}'])
    def test_names_file_of_another_form(self, tmp_path, text):
        (tmp_path / "names.json").write_text(text)
        with pytest.raises(DataError, match=r"names\.json"):
            folder(tree(tmp_path / "data", {"a": 2, "b": 2}), class_names=str(tmp_path / "names.json"))

    def test_settings_that_contradict_each_other(self, tmp_path):
        with pytest.raises(ValidationError, match="must not exceed 1"):
            configs.Folder(root=str(tmp_path), val_share=0.5, test_share=0.6)
        with pytest.raises(ValidationError, match="not both"):
            configs.Folder(root=str(tmp_path), classes=["a", "b"], class_names="x.json")

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_bad_image_is_told_when_it_is_read(self, tmp_path, workers):
        data = folder(tree(tmp_path, {"train/a": 2, "train/b": 2}), val_share=0, test_share=0)
        (tmp_path / "train" / "b" / "001.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
        with pytest.raises(DataError, match=r"b.001\.png is not an image") as caught:
            list(read(data.split("train"), [[0, 1], [2, 3]], workers=workers))
        assert caught.value.hint == "replace or remove the file" and "Traceback" not in caught.value.message


class TestAugmentation:
    def split(self, root: Path, count: int = 6, **settings) -> PictureSplit:
        generator = np.random.default_rng(0)
        for name in ("a", "b"):
            (root / name).mkdir(exist_ok=True)
            for number in range(count // 2):
                blocks = generator.integers(0, 256, (9, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
                Image.fromarray(blocks).save(root / name / f"{number}.png")
        split = folder(root, val_share=0, test_share=0, **{"size": 28, "augment": "crop-flip", **settings})
        return split.split("train")

    def views(self, split: PictureSplit, noise: Noise) -> torch.Tensor:
        canvases = torch.stack([split.canvas(i) for i in range(len(split))])
        return split.augment(canvases / 255, noise)

    @pytest.mark.parametrize("resize", ["crop", "squash"])
    def test_canvases_are_larger_and_evaluated_images_are_as_ever(self, tmp_path, resize):
        split, plain = self.split(tmp_path, resize=resize), self.split(tmp_path, resize=resize, augment="none")
        assert split.augments and not plain.augments
        assert split.canvas(0).shape == (3, 32, 32) and split.canvas(0).dtype == torch.uint8
        assert torch.equal(split.load(0), plain.load(0)) and torch.equal(plain.canvas(0), plain.load(0))
        small = F.resize(split.canvas(0), [28, 28], InterpolationMode.BICUBIC, antialias=True)
        assert (
            small.float() - split.load(0).float()
        ).abs().mean() < 25  # the same stretch of the file to a pixel; 85 between others
        images = torch.rand(2, 3, 28, 28)
        assert torch.equal(plain.augment(images, Noise(0, "augment", 0, torch.arange(2))), images)

    def test_views_are_the_crops_of_torchvision(self, tmp_path):
        split, samples = self.split(tmp_path, 60), torch.arange(60)
        noise = Noise(0, "augment", 3, samples)
        views, boxes, flips = self.views(split, noise), random_crops(noise, 32), noise.uniform((), draw=1) < 0.5
        assert views.shape == (60, 3, 28, 28) and views.dtype == torch.float32 and views.is_contiguous()
        assert 15 < flips.sum() < 45
        assert (boxes[:, 2:] > 28).any() and (boxes[:, 2:] < 28).any()  # some shrink, some grow
        for index, (top, left, height, width) in enumerate(boxes.int().tolist()):
            canvas = split.canvas(index) / 255
            view = F.resized_crop(
                canvas, top, left, height, width, [28, 28], InterpolationMode.BICUBIC, antialias=True
            ).clamp(0, 1)
            assert torch.allclose(views[index], view.flip(2) if flips[index] else view, atol=1e-4)

    def test_much_detail_is_smoothed_away_before_pixels_are_left_out(self):
        images = torch.arange(64).remainder(2).float().view(1, 1, 64, 1).repeat(2, 3, 1, 5)
        box = {"start": torch.tensor([0.0, 10.0]), "length": torch.tensor([64.0, 33.0]), "size": 7}
        small = resampled(images, **box)
        assert small.shape == (2, 3, 7, 5)
        assert (small - 0.5)[:, :, 1:-1].abs().max() < 0.02  # at an end one of two neighbours is missing
        images[1, :, :10], images[1, :, 43:] = 9.0, 9.0
        assert torch.equal(resampled(images, **box), small)
        backwards = resampled(images, **box, backwards=torch.tensor([True, False]))
        assert torch.equal(backwards, torch.stack([small[0].flip(1), small[1]]))

    def test_draws_are_the_samples_own(self, tmp_path):
        split = self.split(tmp_path)

        def draw(seed: int, epoch: int) -> torch.Tensor:
            return self.views(split, Noise(seed, "augment", epoch, torch.arange(6)))

        before = torch.get_rng_state()
        assert torch.equal(draw(1, 0), draw(1, 0))
        assert not torch.equal(draw(1, 0), draw(2, 0)) and not torch.equal(draw(1, 0), draw(1, 1))
        some = torch.tensor([4, 1])
        canvases = torch.stack([split.canvas(i) for i in some.tolist()]) / 255
        alone = split.augment(canvases, Noise(1, "augment", 0, some))
        assert torch.equal(alone, draw(1, 0)[some])
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("side", [9, 256])
    def test_boxes_lie_inside_and_vary(self, side):
        count = 4000
        top, left, height, width = random_crops(Noise(0, "augment", 0, torch.arange(count)), side).unbind(1)
        assert min(top.min(), left.min()) >= 0 and min(height.min(), width.min()) >= 1
        assert (top + height).max() <= side and (left + width).max() <= side
        if side == 256:
            area, aspect = height * width / side**2, (width / height).log()
            assert 0.078 < area.min() < 0.09 and area.max() > 0.97
            # Even, but that boxes near the whole area are often not inside; the exact shares by drawing one by one.
            one = random.Random(0)
            drawn = [self.one_by_one(one, side) for _ in range(count)]
            for mine, other in (
                (area, torch.tensor([h * w / side**2 for _, _, h, w in drawn])),
                (aspect, torch.tensor([w / h for _, _, h, w in drawn]).log()),
                (top / (side - height).clamp(min=1), torch.tensor([t / max(side - h, 1) for t, _, h, _ in drawn])),
                (left / (side - width).clamp(min=1), torch.tensor([x / max(side - w, 1) for _, x, _, w in drawn])),
            ):
                shares = torch.linspace(0.1, 0.9, 9)
                assert torch.allclose(mine.quantile(shares), other.quantile(shares), atol=0.03)
            assert abs(aspect.max() - 0.2877) < 0.02 and abs(aspect.min() + 0.2877) < 0.02

    def one_by_one(self, one: random.Random, side: int) -> tuple[int, int, int, int]:
        """As torchvision's `RandomResizedCrop.get_params` describes it."""
        while True:
            area, ratio = one.uniform(0.08, 1) * side**2, math.exp(one.uniform(math.log(3 / 4), math.log(4 / 3)))
            height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if height <= side and width <= side:
                return one.randint(0, side - height), one.randint(0, side - width), height, width

    def test_flips_are_every_other_one(self):
        noise = Noise(0, "augment", 0, torch.arange(4000))
        gradient = torch.linspace(0, 1, 9).expand(4000, 3, 9, 9)
        views = crop_flip(gradient, 8, noise)
        share = (views[:, 0, :, 0] > views[:, 0, :, -1]).all(1).float().mean()
        assert abs(share - 0.5) < 0.03


def test_a_version_changes_with_any_file(tmp_path):
    root = tree(tmp_path, {"a": 400, "b": 3})

    def version(**settings) -> str:
        return folder(root, val_share=0, test_share=0, **settings).split("train").version

    before = version()
    assert version() == before
    assert version(augment="crop-flip") == before  # evaluated images are the same
    assert version(size=9) != before and version(resize="squash") != before
    odd = root / "a" / "131.png"
    facts = odd.stat()
    paint(odd, (1, 2, 3))
    os.utime(odd, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    changed = version()
    assert changed != before
    os.utime(odd, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert version() == before or odd.stat().st_size != facts.st_size
    split = folder(root, val_share=0, test_share=0).split("train")
    odd.unlink()
    with pytest.raises(DataError, match=r"131\.png is missing"):
        _ = split.version


class TestImageNet:
    WNIDS = ("n01440764", "n01443537", "n02084071")

    def imagenet(self, root: Path, **settings) -> ImageNet:
        return ImageNet(configs.ImageNet(root=str(root), **{"size": 8, "val_per_class": 2, **settings}))

    def subset(self, root: Path, prefix: str = "") -> dict[str, str]:
        tree(root, {f"{prefix}train/{wnid}": 8 for wnid in self.WNIDS}, ".JPEG")
        tree(root, {f"{prefix}val/{wnid}": 3 for wnid in self.WNIDS}, ".JPEG")
        (root / "names.txt").write_text("n01440764 tench\nn01443537 goldfish\nn02084071 dog, any\nn99999999 absent\n")
        return {"classnames": str(root / "names.txt")}

    @pytest.mark.parametrize("prefix", ["", "images/"])
    def test_subset_with_names(self, tmp_path, prefix):
        data = self.imagenet(tmp_path, **self.subset(tmp_path, prefix))
        assert data.classes.names == ("tench", "goldfish", "dog, any")
        assert data.classes.templates == ("This is a photo of a {}",)
        assert [data.split(name).labels.bincount().tolist() for name in ("train", "val", "test")] == [
            [6] * 3,
            [2] * 3,
            [3] * 3,
        ]
        assert set(data.split("test").ids) == {f"val/{wnid}/00{i}.JPEG" for wnid in self.WNIDS for i in range(3)}
        ids = [*data.split("train").ids, *data.split("val").ids]
        assert len(set(ids)) == 24 and all(name.startswith("train/") for name in ids)
        few = self.imagenet(tmp_path, shots=1, **self.subset(tmp_path, prefix))
        assert [len(few.split(name)) for name in ("train", "val", "test")] == [3, 6, 9]

    def test_all_thousand_by_their_usual_names(self, tmp_path):
        source = paint(tmp_path / "one.png")
        for wnid in wnids():
            (tmp_path / "val" / wnid).mkdir(parents=True)
            (tmp_path / "val" / wnid / "x.JPEG").symlink_to(source)
        data = self.imagenet(tmp_path)
        assert len(data.classes) == len(set(data.classes.names)) == 1000
        assert data.classes.names[0] == "tench" and data.classes.names[837] == "sunglasses"
        assert data.split("test").labels.tolist() == list(range(1000))
        with pytest.raises(DataError, match="train split"):
            data.split("train")

    def test_trees_that_cannot_be_used(self, tmp_path):
        names = self.subset(tmp_path / "some")
        with pytest.raises(DataError, match="holds 3 classes") as caught:
            self.imagenet(tmp_path / "some")
        assert "classnames" in caught.value.hint
        with pytest.raises(DataError, match="8 training images; 1 to train on and 8 to validate on"):
            self.imagenet(tmp_path / "some", val_per_class=8, **names)
        with pytest.raises(DataError, match="n01440764 has 8 training images; 7 to train on and 2"):
            self.imagenet(tmp_path / "some", shots=7, **names)
        (tmp_path / "bad.txt").write_text("tench n01440764\n")
        with pytest.raises(DataError, match=r"bad\.txt:1"):
            self.imagenet(tmp_path / "some", classnames=str(tmp_path / "bad.txt"))
        (tmp_path / "other.txt").write_text("n00000001 nothing\n")
        with pytest.raises(DataError, match="names none"):
            self.imagenet(tmp_path / "some", classnames=str(tmp_path / "other.txt"))
        paint(tmp_path / "flat" / "val" / "ILSVRC2012_val_00000001.png")
        with pytest.raises(DataError, match="no class folders") as caught:
            self.imagenet(tmp_path / "flat")
        assert "unsorted" in caught.value.hint
        (tmp_path / "none").mkdir()
        with pytest.raises(DataError, match="neither a train nor a val"):
            self.imagenet(tmp_path / "none")
        for image in (tmp_path / "some" / "val" / "n01443537").iterdir():
            image.unlink()
        with pytest.raises(DataError, match="n01443537 holds no images"):
            self.imagenet(tmp_path / "some", **names)


@pytest.mark.skipif(not PHOTOS.exists(), reason="the archive of CIFAR-10 photographs is not on this machine")
def test_real_photographs(tmp_path):
    with tarfile.open(PHOTOS) as archive:
        members = [m for m in archive if m.name.rpartition("/")[2] < "0100.jpg" or m.isdir()]
        archive.extractall(tmp_path, members=members, filter="data")
    data = folder(tmp_path / "cifar10_photos", size=224, shots=2)
    assert len(data.classes) == 10 and data.classes.names[0] == "airplane"
    batches = list(read(data.split("train"), [list(range(20))], workers=0))
    assert batches[0].images.shape == (20, 3, 224, 224) and 0.2 < batches[0].images.mean() < 0.8
    assert batches[0].labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert {name.split("/")[0] for name in data.split("test").ids} == {"test"}
