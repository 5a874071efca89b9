"""Models side by side.

Guarantees:
- axes: accuracies as they are, shifts in the mean, the cheapest model at the rim of the cost; those without data are
  left out, and said so;
- FLOPs of an image are a hand count's, whatever the machine, and no model is changed by counting; those of a model that
  decides by values are not known;
- a data block is checked as in a recipe: a name, a flow map with or without braces; what is none says how to write it;
- the picture names every axis and has every real value in its table; none covers another.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from advdistill_clip import configs
from advdistill_clip.models import Clip
from clip_parts import TEXT, VISION, Parts, settings

from advdistill.engine.count import Count
from advdistill.engine.diagnosis import labels_of
from advdistill.engine.portraits import radar_figure
from advdistill.engine.radar import Entry, Radar, block_data, flops, left_out, parameters
from advdistill.engine.types import ClassSet
from advdistill.errors import RecipeError, UsageError
from advdistill.hooks.registry import default_registry
from advdistill.testing import ToyConfig, ToyModel

CLASSES = ClassSet(("cat", "dog", "ox"), ("a {}.",))


def entry(name: str, cost: float | None = 2e9, **more: Any) -> Entry:
    given = {"zero_shot": Count(30, 100), "shifts": (Count(50, 100), Count(70, 100)), "parameters": 1_500_000}
    given |= {"clean": Count(90, 100), "robust": Count(40, 100)}
    return Entry(name=name, flops=cost, **{**given, **more})


def test_axes():
    radar = Radar((entry("a"), entry("b", 8e9)), left_out([entry("a"), entry("b", 8e9)]))
    assert [(axis.name, axis.places[1]) for axis in radar.axes] == [
        ("clean", 0.9), ("robust", 0.4), ("zero-shot", 0.3), ("shift", 0.6), ("cost", 0.25),
    ]  # fmt: skip
    assert radar.axes[-1].places[0] == 1 and "2 GFLOP" in radar.axes[-1].unit and not radar.left_out


def test_axes_without_data_are_left_out():
    bare = [entry("a", None, zero_shot=None, shifts=()), entry("b", zero_shot=None, shifts=())]
    radar = Radar(tuple(bare), left_out(bare))
    assert [axis.name for axis in radar.axes] == ["clean", "robust"]
    assert set(radar.left_out) == {"zero-shot", "shift", "cost"} and "of a depend" in radar.left_out["cost"]
    assert radar.to_json()["models"][0]["shift"] is None


def test_flops_are_counted_by_hand(tmp_path):
    model = Clip.from_config(configs.Base(**Parts(tmp_path, settings()).source))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    width, tokens, side = VISION["width"], 17, VISION["patch_size"]
    patches = 2 * 16 * width * 3 * side * side
    attention = 2 * 2 * tokens * tokens * width
    block = 2 * tokens * (3 + 1 + 4 + 4) * width * width + attention
    # The last block computes keys and values of all tokens, but of queries only the class token's mix and its MLP.
    last = 2 * tokens * 3 * width * width + 2 * 2 * tokens * width + 2 * (1 + 4 + 4) * width * width
    head = 2 * width * 16 + 2 * 16 * len(CLASSES)
    assert flops(model, CLASSES) == patches + 2 * block + last + head
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert parameters(model) == sum(p.numel() for p in model.parameters()) and TEXT["layers"] == 3


def test_a_model_that_decides_by_values_has_no_count():
    class Deciding(ToyModel):
        def features(self, images: torch.Tensor) -> torch.Tensor:
            return super().features(images if images.mean() > 0 else -images)

    assert flops(ToyModel(ToyConfig()), CLASSES) is not None
    assert flops(Deciding(ToyConfig()), CLASSES) is None


@pytest.mark.parametrize("text", ["digits", "use: digits, shots: 2", "{use: digits, shots: 2}"])
def test_blocks(text):
    assert len(block_data(text, default_registry(), "--shift").classes) == 10


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("shots: 2", UsageError, "names no data set"),
        ("{use: digits", RecipeError, "--shift"),
        ("use: digits, shotz: 2", RecipeError, "shotz"),
        ("digitz", RecipeError, "digitz"),
        ("", UsageError, "names no data set"),
    ],
)
def test_what_is_no_block(text, kind, told):
    with pytest.raises(kind, match=told):
        block_data(text, default_registry(), "--shift")


def test_the_picture():
    entries = [entry("one"), entry("two", 8e9), entry("pairs_resnet teacher", clean=Count(100, 100))]
    figure = radar_figure(Radar(tuple(entries), {}), "a title", "how")
    texts = {text.get_text() for text in figure.texts}
    assert {"a title", "how", "● one", "90.0 %", "60.0 %", "2 GFLOP", "8 GFLOP", "1.5 M", "parameters"} <= texts
    assert {"clean", "robust", "zero-shot", "shift", "cost"} <= {text.get_text() for text in figure.axes[0].texts}
    assert len(figure.axes[0].lines) == 3
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.texts if text.get_text()]
    assert not any(one.overlaps(two) for one, two in itertools.combinations(boxes, 2))


def test_labels():
    assert labels_of(["runs/a/last.safetensors", "p:b.safetensors", "n@w"]) == ["a", "b", "n@w"]
    assert labels_of(["x/a/last.safetensors", "y/a/last.safetensors"]) == [
        "x/a/last.safetensors",
        "y/a/last.safetensors",
    ]
    assert labels_of(["last.safetensors"]) == ["last"]
    assert labels_of(["/a/b.json@/c/d.safetensors", "ViT-B-32@openai"]) == ["b@d", "ViT-B-32@openai"]
