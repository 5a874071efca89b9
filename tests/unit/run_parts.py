"""Tiny recipes on toy parts, ready to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from advdistill.engine import fit
from advdistill.engine.build import Parts, parts
from advdistill.engine.evaluate import Results
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import Recipe, load_recipe

PLUGIN = Path(__file__).with_name("toy_plugin.py")
TOY: dict[str, Any] = {
    "advdistill": 1,
    "plugins": [str(PLUGIN)],
    "threat": {"eps": "8/255"},
    "data": {"use": "toy"},
    "student": {"use": "toy"},
    "attack": {"use": "toy"},
    "strategy": {"use": "adversarial-ce"},
    "optim": {"lr": 0.01},
    "train": {"steps": 4, "batch_size": 20, "device": "cpu"},
    "evaluate": {"undefended": False, "protocols": [{"name": "clean", "limit": 12}], "probe": {"limit": 12}},
    "report": [{"use": "jsonl"}],
}


def merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`tree` with `changes`, map by map; null deletes."""
    found = dict(tree)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return {key: value for key, value in found.items() if value is not None}


def write(folder: Path, name: str = "run", **changes: Any) -> Path:
    """A recipe file in `folder` whose run goes to `folder/name`."""
    path = folder / f"{name}.yaml"
    tree = merged(merged(TOY, {"save": {"dir": str(folder / name)}}), changes)
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def recipe(folder: Path, name: str = "run", **changes: Any) -> Recipe:
    """The toy recipe, read and checked."""
    return load_recipe(write(folder, name, **changes))


def build(made: Recipe) -> Parts:
    """The parts of a recipe."""
    return parts(made, default_registry().with_files(made.plugin_hashes))


def train(made: Recipe, **how: bool) -> list[Results]:
    """Run a recipe in this process."""
    return fit.train(made, default_registry().with_files(made.plugin_hashes), **how)


def tensors(folder: Path, name: str = "last.safetensors") -> dict[str, Tensor]:
    """What a run's file holds."""
    return load_file(folder / name)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """What metrics.jsonl says, without what depends on the clock on the wall."""
    wall = {"time", "images_per_second", "seconds_left", "seconds"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in wall} for line in lines if line["event"] in kinds]
