"""Training steps on noise, ready to be timed: what the benchmarks of steps share."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from advdistill.engine import build
from advdistill.engine.distributed import ALONE, World
from advdistill.engine.fit import Run
from advdistill.engine.folder import RunFolder
from advdistill.engine.participant import tf32
from advdistill.engine.timing import wait
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe

STEP, TINY = 1 / 255, "advdistill_demo:"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that all of them have."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--method", choices=["apd", "mmt-ard"], default="apd")
    options.add_argument("--model", default="ViT-B-32")
    options.add_argument("--teacher", default="", help="of MMT-ARD; default: the student's model")
    options.add_argument("--classes", type=int, default=100)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--attack-steps", type=int, default=2)
    options.add_argument("--runs", type=int, default=7)
    options.add_argument("--threads", type=int, default=0)
    options.add_argument("--device", default="cpu")
    options.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "bf16"])
    options.add_argument("--compile", action="store_true")
    return options


@contextlib.contextmanager
def a_run(given: argparse.Namespace, world: World = ALONE, **train: Any) -> Iterator[Run]:
    """A run of APD (prompts in both towers of both twins) or of MMT-ARD (a visual tower, two frozen teachers), weights
    random, in a folder that goes away; TF32 is on or off meanwhile, as asked; `world` takes its steps; `train`: further
    settings."""
    if given.threads:
        torch.set_num_threads(given.threads)
    model = {"model": given.model, "weights": "random"}
    taught = {"use": "clip", "model": given.teacher or given.model, "weights": "random"}
    prompts = {"use": "clip-prompts", **model}
    if given.model.startswith(TINY):
        prompts |= {"text": {"depth": 2}, "visual": {"depth": 4}}
    methods: dict[str, dict[str, Any]] = {
        "apd": {
            "student": prompts,
            "teachers": {"clean": {**prompts, "train": True}},
            "optim": {"use": "sgd", "lr": 1e-3},
        },
        "mmt-ard": {
            "student": {"use": "clip-tune", "tower": "visual", **model},
            "teachers": {"clean": taught, "robust": taught},
            "optim": {"use": "adamw", "lr": 1e-6},
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        tree = {
            "advdistill": 1,
            "plugins": [str(Path(__file__).with_name("noise_images.py"))],
            "threat": {"norm": "linf", "eps": "4/255"},
            "data": {
                "use": "noise-images",
                "classes": given.classes,
                "images": given.batch,
                "size": size(given.model),
                "letters": 14 if given.model.startswith(TINY) else 99,  # the tiny one reads 40 bytes
            },
            "attack": {"use": "pgd", "steps": given.attack_steps, "step": "1/255"},
            "strategy": {"use": given.method},
            "train": {
                "steps": 1_000_000,
                "batch_size": given.batch,
                "device": given.device,
                "precision": given.precision,
                "compile": "on" if given.compile else "off",
                "cache_teachers": "off",
                **train,
            },
            "evaluate": {"every": 0, "undefended": False, "protocols": [{"name": "clean"}]},
            "save": {"dir": str(Path(folder) / "run")},
            "report": [],
            **methods[given.method],
        }
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree))
        recipe = build.settled(load_recipe(path))
        registry = default_registry().with_files(recipe.plugin_hashes)
        with tf32(given.precision == "tf32"), RunFolder(recipe, resume=False, overwrite=False) as at:
            yield Run(recipe, registry, at, lambda event: None, world)


def size(model: str) -> int:
    """Side of the images that a model takes."""
    return 32 if model.startswith(TINY) else 336 if "336" in model else 224


def in_turn(
    ways: Mapping[str, Callable[[], object]], runs: int, device: torch.device, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each way, run after run in turn; the first `warm_up` are not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(-warm_up, runs):
        for name, way in ways.items():
            wait(device)
            start = time.perf_counter()
            way()
            wait(device)
            if run >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Mapping[str, list[float]], above: str, below: str) -> float:
    """The median of the ratios, each of one turn."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def table(times: Mapping[str, list[float]]) -> str:
    """A line each: median, least, most."""
    return "\n".join(
        f"{name:6} {statistics.median(seconds):9.4f} s  (min {min(seconds):.4f}, max {max(seconds):.4f})"
        for name, seconds in times.items()
    )
