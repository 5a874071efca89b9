"""Number pairs.

Guarantees:
- 100 ordered names, halves and the unseen 20 hold every digit equally often on each side, and (b, a) with (a, b);
- splits share no digit; test and validation have 400 pairs, classes even; every test digit stands once on each side,
  every validation digit twice; training digits equally often within one; none stands beside itself; all this for seen
  and unseen combinations, too;
- the picture is what its label, its id and its sources say, two 16x16 scans in the middle of 32x32, unsaturated;
- variants differ as they say: inverted levels, grown strokes, a Gaussian blur, swapped picture and label;
- training views are moved; shots are drawn from training pairs alone; the record finds the samples again;
- the shipped base recipe sees no combination of the last 20 names, and chooses among the 80 others;
- `half: new` ends in the 20 unseen, and halves keep their sources;
- mirrored halves stay where they are.
"""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from advdistill_demo import configs
from advdistill_demo.digits import NAMES
from advdistill_demo.pairs import NumberPairs, Pairs, combinations
from sklearn.datasets import load_digits

from advdistill import DataError, Noise
from advdistill.engine import build
from advdistill.engine.data import HalfOfClasses
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe

DIGESTS = {"train": "09c5c782ee86fe58", "val": "4ba2fee47b473e4d", "test": "9baad440dc37eefc"}
WHOLE = {"all": 100, "seen": 80, "unseen": 20}


def made(**settings: object) -> NumberPairs:
    return NumberPairs(configs.NumberPairs(**settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pairs() -> NumberPairs:
    return made()


def spelt(name: str) -> tuple[int, int]:
    left, right = name.split()
    return NAMES.index(left), NAMES.index(right)


def test_names_are_all_ordered_pairs_in_balanced_groups(pairs: NumberPairs) -> None:
    named = [spelt(name) for name in pairs.classes.names]
    assert len(set(named)) == 100 and pairs.classes.templates == ("the number {}.",)
    for some, each in ((named[:50], 5), (named[50:], 5), (named[80:], 2)):
        for side in (0, 1):
            assert Counter(pair[side] for pair in some) == dict.fromkeys(range(10), each)
        assert {pair[::-1] for pair in some} == set(some)
    assert [spelt(name) for name in made(combinations="unseen", names="own").classes.names] == named[80:]
    assert [spelt(name) for name in made(combinations="seen", names="own").classes.names] == named[:80]
    assert combinations("seen") == named[:80]


@pytest.mark.parametrize("which", WHOLE)
def test_digits_are_used_evenly_and_splits_share_none(which: str) -> None:
    data, digits = made(combinations=which), load_digits().target
    used = {}
    for name, uses in (("test", 1), ("val", 2), ("train", 0)):
        split = data.split(name)
        assert split.sources is not None and split.sources.shape == (len(split), 2)
        left, right = (Counter(column) for column in split.sources.T.tolist())
        assert not any(one == other for one, other in split.sources.tolist())
        assert len(set(split.labels.bincount(minlength=100).tolist()) - {0}) == 1
        assert len(split.labels.unique()) == WHOLE[which] and int(split.labels.min()) == (
            80 if which == "unseen" else 0
        )
        assert len(set(split.ids)) == len(split)
        used[name] = set(left) | set(right)
        if uses:
            assert len(split) == 400 and len(used[name]) == 400 // uses
            assert set(left.values()) == set(right.values()) == {uses}
        else:
            assert len(split) == 60 * WHOLE[which]
            for side in (left, right):
                for digit in range(10):
                    counts = [count for tile, count in side.items() if digits[tile] == digit]
                    assert max(counts) - min(counts) <= 1
    assert not (used["test"] & used["val"] or used["test"] & used["train"] or used["val"] & used["train"])
    assert len(used["train"]) <= 1197


def test_pictures_are_what_labels_ids_and_sources_say(pairs: NumberPairs) -> None:
    source, split = load_digits(), pairs.split("test")
    for index in (0, 57, 201, 399):
        image, (left, right) = split.load(index), split.sources[index].tolist()
        assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
        assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
        assert spelt(pairs.classes.names[split.labels[index]]) == (source.target[left], source.target[right])
        assert split.ids[index] == f"digits/{left:04d}+digits/{right:04d}"
        scans = torch.from_numpy(source.images[[left, right]]).float()
        half = torch.nn.functional.interpolate(scans.unsqueeze(1), size=(16, 16), mode="bilinear").squeeze(1)
        expected = 127.5 + 255 / 3 * ((half + 0.5) / 17 - 0.5)
        assert (image[0, 8:24] - torch.cat([*expected], 1)).abs().max() <= 0.51
        assert set(image[:, :8].flatten().tolist()) == set(image[:, 24:].flatten().tolist()) == {88}
    full = made(contrast=1).split("test")
    images = torch.stack([full.load(index) for index in range(400)])
    assert images.min() == 8 and 230 < images.max() < 250


def test_variants_do_what_they_say(pairs: NumberPairs) -> None:
    plain = pairs.split("test")
    inverted, thick, blurred = (made(variant=name).split("test") for name in ("inverted", "thick", "blurred"))
    assert len({split.content for split in (plain, inverted, thick, blurred)}) == 4
    assert len({split.version for split in (plain, inverted, thick, blurred)}) == 4
    assert plain.ids == inverted.ids == thick.ids == blurred.ids
    for index in (3, 250):
        image = plain.load(index)
        assert torch.equal(inverted.load(index), 255 - image)
        grown = thick.load(index)
        assert int(grown[0, 12, 10]) == int(image[0, 11:14, 9:12].max()) and bool((grown >= image).all())
        bell = torch.exp(-torch.arange(-3.0, 4.0).square() / 2)
        kernel = torch.outer(bell, bell) / bell.sum().square()
        around = (image[0, 12:19, 7:14].float() * kernel).sum()
        assert abs(int(blurred.load(index)[0, 15, 10]) - around) <= 0.51


@pytest.mark.parametrize("which", WHOLE)
def test_swapped_pictures_have_swapped_labels(which: str) -> None:
    plain, other = made(combinations=which), made(combinations=which, variant="swapped")
    assert plain.classes == other.classes
    for name in ("train", "test"):
        one, two = plain.split(name), other.split(name)
        assert torch.equal(two.sources, one.sources.flip(1))
        assert torch.equal(two.load(7), torch.cat([one.load(7)[..., 16:], one.load(7)[..., :16]], 2))
        names = plain.classes.names
        assert all(
            spelt(names[a]) == spelt(names[b])[::-1]
            for a, b in zip(one.labels.tolist(), two.labels.tolist(), strict=True)
        )


def test_training_views_are_moved(pairs: NumberPairs) -> None:
    split = made(shift=2).split("train")
    canvases = torch.stack([split.load(index) for index in range(64)]).float() / 255
    views = split.augment(canvases, Noise(0, "augment", 0, torch.arange(64)))
    assert split.augments and not pairs.split("train").augments
    same = (views == canvases).flatten(1).all(1)
    assert not same.all() and views.shape == canvases.shape
    inner = torch.nn.functional.pad(canvases, (2,) * 4, mode="replicate")
    for view, padded in zip(views, inner, strict=True):
        windows = [padded[:, y : y + 32, x : x + 32] for y in range(5) for x in range(5)]
        assert any(torch.equal(view, window) for window in windows)


def test_halves_are_mirrored_each_on_its_own() -> None:
    tiles = torch.arange(2 * 3 * 4 * 2, dtype=torch.uint8).view(2, 3, 4, 2)
    split = Pairs(tiles, ["a", "b"], [(0, 1)] * 64, [0] * 64, height=4, flip=True)
    canvas = split.load(0).float() / 255
    views = split.augment(canvas.expand(64, -1, -1, -1), Noise(0, "augment", 0, torch.arange(64)))
    sides = [(canvas[..., :2], views[..., :2]), (canvas[..., 2:], views[..., 2:])]
    mirrored = [(seen == side.flip(2)).flatten(1).all(1) for side, seen in sides]
    for flag, (side, seen) in zip(mirrored, sides, strict=True):
        assert (flag | (seen == side).flatten(1).all(1)).all() and 16 < int(flag.sum()) < 48
    assert not torch.equal(*mirrored)


def test_shots_come_from_training_pairs(pairs: NumberPairs) -> None:
    few = made(shots=4, combinations="unseen", names="all")
    assert few.split("train").labels.bincount().tolist() == [0] * 80 + [4] * 20
    assert set(few.split("train").ids) <= set(made(combinations="unseen").split("train").ids)
    assert few.split("test").digest == made(combinations="unseen").split("test").digest
    again = made(shots=4, combinations="unseen", names="all", shots_seed=2)
    assert again.split("train").digest != few.split("train").digest
    with pytest.raises(DataError, match="class 'zero zero' has 60 training images, but 61"):
        made(shots=61)
    record = json.loads(json.dumps(few.record()))
    assert record["ids"]["train"] == list(few.split("train").ids)
    assert record["splits"]["test"] == {"count": 400, "sha256": few.split("test").digest}
    with pytest.raises(DataError, match="'holdout'"):
        pairs.split("holdout")


def test_the_split_never_changes(pairs: NumberPairs) -> None:
    assert {name: pairs.split(name).digest for name in ("train", "val", "test")} == DIGESTS
    assert made(split_seed=1).split("test").digest != DIGESTS["test"]


@pytest.mark.parametrize("name", ["pairs_base", "pairs_clean", "pairs_robust", "pairs_resnet"])
def test_pre_training_sees_80_combinations(name: str) -> None:
    recipe = load_recipe(name, ["student.weights=random"])
    data = build.dataset(default_registry(), recipe.data)
    unseen = {spelt(each) for each in made(combinations="unseen", names="own").classes.names}
    digits = load_digits().target
    for split in map(data.split, ("train", "val", "test")):
        assert split.sources is not None
        assert not {(int(digits[left]), int(digits[right])) for left, right in split.sources.tolist()} & unseen
    assert len(data.classes) == 80 and not {spelt(each) for each in data.classes.names} & unseen
    assert not set(data.split("train").sources.flatten().tolist()) & set(
        made().split("test").sources.flatten().tolist()
    )


def test_halves_keep_the_sources(pairs: NumberPairs) -> None:
    new = HalfOfClasses(pairs, "new")
    assert new.classes.names[-20:] == made(combinations="unseen", names="own").classes.names
    split, whole = new.split("test"), pairs.split("test")
    assert split.sources is not None and len(split) == 200
    place = whole.ids.index(split.ids[11])
    assert torch.equal(split.sources[11], whole.sources[place])
