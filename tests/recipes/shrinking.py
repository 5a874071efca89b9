"""Shipped recipes with less of everything, and what they are pointed at in its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from advdistill.engine import fit
from advdistill.engine.evaluate import Results
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import Recipe, load_recipe

Tree = dict[str, Any]


def models(tree: Tree) -> Iterator[Tree]:
    """The blocks of the student and the teachers."""
    yield tree["student"]
    yield from tree["teachers"].values()


def shorten(tree: Tree, folder: Path, *, batch: int, samples: int, attack_steps: int) -> None:
    """Two steps of `batch` images, a probe after each, protocols of few samples and weaker attacks, a run in `folder`.

    What a training step is made of stays as the recipe has it.
    """
    tree["save"]["dir"] = str(folder / tree["name"])
    tree["train"] |= {"steps": 2, "epochs": 0, "batch_size": batch, "workers": 0, "device": "cpu"}
    tree["evaluate"] |= {"every": 1, "batch_size": batch}
    tree["evaluate"]["probe"]["limit"] = samples
    for protocol in tree["evaluate"]["protocols"]:
        protocol["limit"] = samples
        if protocol["attack"]:
            protocol["attack"]["steps"] = min(protocol["attack"]["steps"], attack_steps)


def imagenet_tree(root: Path, classes: Mapping[str, list[Path | Image.Image]], *, test: int) -> tuple[Path, Path]:
    """A tree as ImageNet has it and the list of its class names.

    Args:
        root: where to.
        classes: name -> images, as files to link to or in memory; the last `test` of each become its val folder.

    Returns:
        the tree, the file of names.
    """
    lines = []
    for number, (name, images) in enumerate(classes.items(), 1):
        wnid = f"n{number:08d}"
        lines.append(f"{wnid} {name}\n")
        for index, image in enumerate(images):
            path = root / ("val" if index >= len(images) - test else "train") / wnid / f"{index}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(image) if isinstance(image, Path) else image.save(path)
    names = root / "names.txt"
    names.write_text("".join(lines))
    return root, names


def noise_images(count: int, seed: int, side: int = 32) -> list[Path | Image.Image]:
    """Images to be told apart by nothing but chance."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, side, side, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(one.numpy()) for one in pixels]


def reload(tree: Tree, folder: Path) -> Recipe:
    """The recipe that a tree says, by way of a file, as a user would have written it."""
    path = folder / f"{tree['name']}.yaml"
    path.write_text(json.dumps(tree))
    return load_recipe(path)


def run(recipe: Recipe) -> list[Results]:
    """Train by a recipe on one thread, so that times and sums do not depend on the machine's load."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return fit.train(recipe, default_registry())
    finally:
        torch.set_num_threads(threads)


def terms(folder: Path) -> list[dict[str, float]]:
    """The losses of every step, from metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["losses"] for line in lines if line["event"] == "step_done"]
