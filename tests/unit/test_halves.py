"""What is pinned here:

- A half of the classes is the first ceil(C / 2) of them or the others, in their order, and exactly their samples, with
  labels counted anew; every split of it, training's augmentation included.
- `data.half` is the host's own key: it is checked, stays when another data set is named, stands in the resolved recipe,
  and a data set's own settings keep their place beside it.
- Halves of fewer than two classes are refused.
- A run whose data are sealed cannot open the test split, and says so in its record; protocols and probes that would are
  told with the recipe.
"""

from __future__ import annotations

import pytest
import torch

from advdistill import ArraySplit, ClassSet, Noise, Split
from advdistill.engine import build
from advdistill.engine.data import HalfOfClasses
from advdistill.errors import DataError, RecipeError, UsageError
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe, resolve_blocks
from advdistill.testing import ToyDataset


class Odd(ToyDataset):
    """The toy with its last class left out of the names."""

    classes = ClassSet(ToyDataset.classes.names[:5], ToyDataset.classes.templates)


@pytest.mark.parametrize(("whole", "half", "first", "names"), [
    (ToyDataset, "base", 0, ("ant", "bee", "cat")),
    (ToyDataset, "new", 3, ("dog", "eel", "fox")),
    (Odd, "base", 0, ("ant", "bee", "cat")),
    (Odd, "new", 3, ("dog", "eel")),
])  # fmt: skip
def test_a_half_is_its_classes_and_their_samples(whole: type, half: str, first: int, names: tuple[str, ...]) -> None:
    data = whole(None)
    part = HalfOfClasses(data, half)
    assert part.classes == ClassSet(names, data.classes.templates)
    for name in ("train", "test"):
        split, all_ = part.split(name), data.split(name)
        assert sorted(set(split.labels.tolist())) == list(range(len(names)))
        wanted = [i for i, label in enumerate(all_.labels.tolist()) if first <= label < first + len(names)]
        assert split.ids == [all_.ids[i] for i in wanted]
        assert split.labels.tolist() == [all_.labels[i].item() - first for i in wanted]
        assert all(torch.equal(split.load(i), all_.load(place)) for i, place in enumerate(wanted))


def test_augmentation_goes_through() -> None:
    block = resolve_blocks({"data": {"use": "digits", "shift": 4, "half": "new"}})["data",]
    split = build.dataset(default_registry(), block).split("train")
    assert split.augments
    samples = torch.arange(8)
    images = torch.stack([split.canvas(i) for i in samples])
    assert not torch.equal(split.augment(images, Noise(0, "augment", 0, samples)), images)


def test_its_version_is_the_whole_ones_and_its_own_samples() -> None:
    base, new = (HalfOfClasses(ToyDataset(None), half).split("train").version for half in ("base", "new"))
    assert base == HalfOfClasses(ToyDataset(None), "base").split("train").version != new

    class Brighter(ToyDataset):
        def split(self, name: str) -> Split:
            split = super().split(name)
            assert isinstance(split, ArraySplit)
            split.images[-1, 0, 0, 0] = 1.0
            return split

    assert HalfOfClasses(Brighter(None), "base").split("train").version != base


def test_two_classes_are_the_least() -> None:
    class Three(ToyDataset):
        classes = ClassSet(ToyDataset.classes.names[:3], ToyDataset.classes.templates)

    assert len(HalfOfClasses(Three(None), "base").classes) == 2
    with pytest.raises(UsageError, match="at least two classes"):
        HalfOfClasses(Three(None), "new")


def test_the_key_is_the_hosts_own() -> None:
    assert load_recipe("quickstart").tree["data"]["half"] == "all"
    recipe = load_recipe("quickstart", ["data.half=base"])
    assert recipe.tree["data"]["half"] == "base" and recipe.tree["data"]["shift"] == 2
    assert len(build.dataset(default_registry(), recipe.data).classes) == 5
    assert len(build.dataset(default_registry(), recipe.data, "new").classes) == 5
    assert build.dataset(default_registry(), recipe.data, "new").classes.names[0] == "five"
    other = load_recipe("quickstart", ["data.half=base", "data={use: folder, root: photos}"])
    assert other.tree["data"]["half"] == "base" and "shift" not in other.tree["data"]
    with pytest.raises(RecipeError, match=r"data\.half: must be 'all', 'base' or 'new', not 'old'"):
        load_recipe("quickstart", ["data.half=old"])


def test_sealed_data_has_no_test_split() -> None:
    on_val = ["data.sealed=true", "evaluate.protocols=[{name: clean, split: val}]"]
    made, bare = load_recipe("quickstart", [*on_val, "train.device=cpu"]), load_recipe("quickstart")
    parts = build.parts(made, default_registry())
    with pytest.raises(DataError, match="sealed"):
        parts.splits("test")
    whole = build.dataset(default_registry(), bare.data)
    for name in ("train", "val"):
        assert parts.splits(name).digest == whole.split(name).digest
    assert parts.record()["splits"].keys() == {"train", "val"} and made.tree["data"]["sealed"] is True


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["evaluate.protocols=[{name: a, split: val}, {name: b}]"], r"evaluate\.protocols\.1"),
        (["evaluate.protocols=[{name: a, split: val}]", "evaluate.probe.split=test"], r"evaluate\.probe"),
    ],
)
def test_who_would_break_the_seal_is_told(words: list[str], place: str) -> None:
    with pytest.raises(RecipeError, match=f"{place}: looks at the test split"):
        load_recipe("quickstart", ["data.sealed=true", *words])
