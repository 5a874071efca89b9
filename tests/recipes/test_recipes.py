"""The shipped recipes on tiny parts.

Guarantees:
- every recipe on disk can be named, 73 in all, and is valid as it stands, without a warning;
- every file of a package that a recipe names is shipped;
- those for the largest models learn as many parameters as they should, found on the meta device without weights;
- each takes two steps: with tiny models where it names large ones, and a made-up ImageNet or photographs where it wants
  real ones, and pictures in the quickstart alone, all else as it stands; losses are finite, something was learned, and
  every protocol has its column.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shrinking import imagenet_tree, models, noise_images, reload, run, shorten, terms

from advdistill import resource
from advdistill.engine import build
from advdistill.hooks.registry import default_registry
from advdistill.recipe.loader import recipe_files
from advdistill.recipe.resolve import load_recipe

ROOT = Path(__file__).parents[2]
ON_DISK = sorted([*ROOT.glob("recipes/*.yaml"), *ROOT.glob("plugins/*/recipes/*.yaml")])
TINY = {"model": "advdistill_demo:small.json", "weights": "random"}
DEPTHS = {"text": 2, "visual": 4}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a made-up ImageNet of three classes, eight images each."""
    classes = {name: noise_images(8, seed) for seed, name in enumerate(["tench", "great white shark", "cock"])}
    root, names = imagenet_tree(tmp_path_factory.mktemp("imagenet"), classes, test=2)
    return {"root": str(root), "classnames": str(names), "size": 32, "val_per_class": 2}


def test_every_recipe_on_disk_has_a_name() -> None:
    assert len(ON_DISK) == 74
    named = [file.resolve() for file, dist in recipe_files(default_registry()) if dist == "advdistill"]
    assert sorted(named) == ON_DISK


@pytest.mark.parametrize("path", ON_DISK, ids=lambda path: path.stem)
def test_it_is_valid_as_it_stands(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.warnings == ()
    assert recipe.name.replace("-", "_") == path.stem
    text = path.read_text()
    assert text.startswith("# "), "a recipe says first what it is"


def shipped(value: Any) -> list[str]:
    """Every `package:file` of our packages in a tree."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [found for item in value for found in shipped(item)]
    return [value] if isinstance(value, str) and value.startswith("advdistill_") and ":" in value else []


def test_the_files_that_recipes_name_are_there() -> None:
    named = {name for path in ON_DISK for name in shipped(load_recipe(path).tree)}
    assert {name for name in named if not resource(name).is_file()} == set()
    assert len(named) >= 5


@pytest.mark.parametrize(
    ("name", "learns"),
    [
        ("apd_vitl14", {"student": 32_256, "clean": 32_256}),
        ("clean_vitl14", {"student": 303_966_208}),
        ("tecoa_vitl14", {"student": 303_966_208}),
        ("mmt_ard_rn101", {"student": 56_259_936}),
    ],
)
def test_what_the_largest_learn(name: str, learns: dict[str, int]) -> None:
    recipe = load_recipe(name)
    models = {"student": recipe.student, **{r: block for r, block in recipe.teachers.items() if block.train}}
    found = {role: build.model(default_registry(), block, weights=False) for role, block in models.items()}
    assert {role: sum(t.numel() for t in model.learned().values() if isinstance(t, torch.nn.Parameter))
            for role, model in found.items()} == learns  # fmt: skip


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of made-up photographs of ten classes, four to train on and two to test on each."""
    root = tmp_path_factory.mktemp("photographs")
    for number in range(10):
        for index, image in enumerate(noise_images(6, number)):
            folder = root / ("train" if index < 4 else "test") / f"kind {number}"
            folder.mkdir(parents=True, exist_ok=True)
            image.resize((32, 32)).save(folder / f"{index}.png")
    return {"root": str(root), "val": 20}


def shrink(tree: dict[str, Any], imagenet: dict[str, Any], photographs: dict[str, Any]) -> None:
    """Tiny models and data where the recipe's are large or not here, random weights where a run leaves some."""
    if tree["data"]["use"] == "imagenet":
        tree["data"] |= {**imagenet, "shots": min(tree["data"]["shots"], 2)}
    if tree["data"]["use"] in ("photos", "photo-pairs"):
        tree["data"] |= photographs
    for block in models(tree):
        if not block.get("model", "advdistill_demo:").startswith("advdistill_demo:"):
            block |= TINY
        if "runs/" in block.get("weights", ""):  # what another recipe's run leaves
            block["weights"] = "random"
        for branch, depth in DEPTHS.items():
            if branch in block:
                block[branch]["depth"] = min(block[branch]["depth"], depth)


@pytest.mark.parametrize("path", ON_DISK, ids=lambda path: path.stem)
def test_it_takes_two_steps_on_tiny_parts(
    path: Path, imagenet: dict[str, Any], photographs: dict[str, Any], tmp_path: Path
) -> None:
    tree = load_recipe(path).tree
    shorten(tree, tmp_path, batch=6, samples=4, attack_steps=2)
    shrink(tree, imagenet, photographs)
    if path.stem != "quickstart":  # drawing takes longer than all the rest
        tree["report"] = [block for block in tree["report"] if block["use"] != "pictures"]
    recipe = reload(tree, tmp_path)
    rows = run(recipe)

    columns = [protocol.name for protocol in recipe.evaluate.protocols]
    student = next(row for row in rows if row.subject == "student")
    assert list(student.counts) == columns
    assert {f"{role} teacher" for role in recipe.teachers} <= {row.subject for row in rows}
    folder = tmp_path / recipe.name
    steps = terms(folder)
    assert len(steps) == 2 and all(step and all(map(math.isfinite, step.values())) for step in steps)
    learned = load_file(folder / "last.safetensors")
    before = build.model(default_registry(), recipe.student).learned()
    # As a file of half precision would hold them: else rounding alone would pass for learning.
    assert any(not torch.equal(tensor.half(), learned[name].half()) for name, tensor in before.items())
    assert all(tensor.isfinite().all() for tensor in learned.values())
    assert (folder / "results.json").is_file()
