"""The embedded digits, and how samples are divided.

Guarantees:
- `digits` are scikit-learn's own scans: no pixel saturated, three equal channels, 32x32 float32.
- The default split is 1,197 / 200 / 400, disjoint, complete, in proportion per class, and never changes.
- `shots` draws k per class from the training part alone, reproducibly; too many is an error that names the class.
- `shift` moves training images by every whole number of pixels up to it each way, all alike often, edges repeated.
- `record` holds what is needed to find the very samples again.
- `partition` sizes are exact and every class of at least one sample reaches the last part.
- `few_shot` draws what Python's `random.sample` draws, class by class.
"""

from __future__ import annotations

import json
import random

import pytest
import torch
from advdistill_demo import configs
from advdistill_demo.digits import NAMES, Digits
from sklearn.datasets import load_digits

from advdistill import DataError, Noise, UsageError, few_shot, partition


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(configs.Digits())


def test_images_are_the_scans(digits):
    source = load_digits()
    split = digits.split("val")
    for position in (0, 77, 199):
        image, index = split.load(position), int(split.ids[position].removeprefix("digits/"))
        assert image.shape == (3, 32, 32) and image.dtype == torch.float32
        assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
        assert split.labels[position] == source.target[index]
        # The middle 2x2 of each 4x4 block lies 1/8 of a source pixel from its centre: 7/8 itself, 1/16 each neighbour.
        scan = (torch.from_numpy(source.images[index]).float() + 0.5) / 17
        padded = torch.nn.functional.pad(scan[None, None], (1, 1, 1, 1), mode="replicate")
        weights = torch.tensor([1 / 16, 7 / 8, 1 / 16])
        expected = torch.nn.functional.conv2d(padded, torch.outer(weights, weights)[None, None])[0, 0]
        middle = image[0].view(8, 4, 8, 4)[:, 1:3, :, 1:3].mean((1, 3))
        assert torch.allclose(middle, expected, atol=1e-5)
    images = torch.stack([split.load(i) for i in range(len(split))])
    assert 0 < images.min() < 0.03 and 0.97 < images.max() < 1


def test_split_is_fixed_and_in_proportion(digits):
    splits = {name: digits.split(name) for name in ("train", "val", "test")}
    assert {name: len(split) for name, split in splits.items()} == {"train": 1197, "val": 200, "test": 400}
    ids = [name for split in splits.values() for name in split.ids]
    assert len(set(ids)) == 1797
    sizes = torch.from_numpy(load_digits().target).bincount()
    for split in splits.values():
        assert (split.labels.bincount(minlength=10) - sizes * len(split) / 1797).abs().max() <= 1
    assert splits["test"].digest == "7a487be657b9f5d3"
    assert splits["val"].digest == "022822e778d6160e"
    assert splits["train"].digest == "7d55cc6f6cf0dc88"
    other = Digits(configs.Digits(split_seed=1)).split("test")
    assert other.digest != splits["test"].digest


def test_shots(digits):
    few = Digits(configs.Digits(shots=16))
    assert few.split("train").labels.bincount().tolist() == [16] * 10
    assert set(few.split("train").ids) <= set(digits.split("train").ids)
    assert few.split("test").digest == digits.split("test").digest
    assert few.split("train").digest == Digits(configs.Digits(shots=16)).split("train").digest
    assert few.split("train").digest != Digits(configs.Digits(shots=16, shots_seed=2)).split("train").digest
    with pytest.raises(DataError, match=r"class 'eight' has 116 .* 117 shots") as caught:
        Digits(configs.Digits(shots=117))
    assert caught.value.exit_code == 5 and "116" in caught.value.hint


def test_shifts_are_windows_of_the_padded_image_all_alike_often():
    split = Digits(configs.Digits(shift=2)).split("train")
    samples = torch.arange(len(split))
    counts = torch.zeros(5, 5)
    for epoch in range(2):
        noise = Noise(0, "augment", epoch, samples)
        moved = split.augment(split.images, noise)
        for index, (top, left) in enumerate((noise.uniform((2, 1)) * 5).long().squeeze(2).tolist()):
            padded = torch.nn.functional.pad(split.load(index).unsqueeze(0), (2,) * 4, mode="replicate")[0]
            assert torch.equal(moved[index], padded[:, top : top + 32, left : left + 32])
            counts[top, left] += 1
    # 2,394 draws of 25 windows: 96 each, with a standard deviation of 9.6.
    assert counts.min() > 58 and counts.max() < 134
    assert not Digits(configs.Digits()).split("train").augments


def test_record_finds_the_samples_again(digits):
    record = json.loads(json.dumps(digits.record()))
    for name in ("train", "val", "test"):
        split, stored = digits.split(name), record["splits"][name]
        assert [f"digits/{index:04d}" for index in stored["indices"]] == list(split.ids)
        assert stored["sha256"] == split.digest and stored["count"] == len(split)
    assert record["split_seed"] == 0


def test_classes_and_unknown_split(digits):
    assert digits.classes.names == NAMES
    assert digits.classes.templates == ("a photo of the digit {}.",)
    with pytest.raises(DataError, match="'holdout'"):
        digits.split("holdout")
    with pytest.raises(UsageError, match="exactly one"):
        Digits(configs.Digits(templates=["a digit"]))


def test_partition_is_exact_and_keeps_small_classes_in_the_last_part():
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] + [3] * 2 + [4] * 44)
    parts = partition(labels, (20, 10), seed=3)
    assert [len(part) for part in parts] == [20, 10, 70]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(100))
    assert set(labels[parts[2]].tolist()) == {0, 1, 2, 3, 4}
    assert [part.tolist() for part in partition(labels, (20, 10), seed=3)] == [part.tolist() for part in parts]
    assert [part.tolist() for part in partition(labels, (20, 10), seed=4)] != [part.tolist() for part in parts]


def test_few_shot_is_random_sample_class_by_class():
    labels = torch.tensor([1, 0, 1, 0, 1, 0, 0])
    reference = random.Random(7)
    expected = reference.sample([1, 3, 5, 6], 2) + reference.sample([0, 2, 4], 2)
    assert few_shot(labels, 2, random.Random(7), ("a", "b")).tolist() == expected
