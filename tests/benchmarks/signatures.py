"""Which signs of failure the shipped recipes of the digits show: none should.

    python tests/benchmarks/signatures.py [--steps 1.0] [NAME …]

Runs each recipe (all whose data are the digits; or those named) with a probe every tenth of its steps, and prints the
signs told, how far its numbers came from the thresholds, and its seconds of training. `--steps 0.3` takes that share of
the steps. Nothing but training and probes is measured; runs go to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from advdistill.engine import fit
from advdistill.engine.build import dataset
from advdistill.engine.data import steps_per_epoch
from advdistill.errors import UserError
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
BARE = [
    "report=[{use: jsonl}]",
    "save.every=0",
    "evaluate.undefended=false",
    "evaluate.teachers=false",
    "evaluate.select=none",
    "evaluate.protocols=[{name: clean, limit: 10}]",
]


def run(name: str, share: float, folder: Path) -> list[dict[str, Any]]:
    """One recipe, `share` of its steps. Returns what it said."""
    registry = default_registry()
    whole = load_recipe(name, registry=registry)
    train = whole.train
    images = len(dataset(registry, whole.data).split("train"))
    steps = train.steps or train.epochs * steps_per_epoch(images, train.batch_size)
    steps = max(round(share * steps), 10)
    words = [f"train.steps={steps}", "train.epochs=0", f"evaluate.every={steps // 10}", f"save.dir={folder / name}"]
    fit.train(load_recipe(name, [*BARE, *words], registry), registry)
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    """All of them."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", metavar="NAME")
    options.add_argument("--steps", type=float, default=1.0, help="share of each recipe's steps")
    chosen = options.parse_args()
    names = chosen.names or sorted(path.stem for path in RECIPES.glob("*.yaml") if _digits(path.stem))
    shown = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            try:
                said = run(name, chosen.steps, Path(folder))
            except UserError as error:
                print(f"{name}: {error.message}", flush=True)
                continue
            probes = [each for each in said if each["event"] == "probed"]
            symptoms = [each for each in said if each["event"] == "symptom"]
            shown += len(symptoms)
            first, last = probes[0], probes[-1]
            print(f"{name}: {last['step']} steps, {last['seconds']:.0f} s, {_told(first)} -> {_told(last)}", flush=True)
            print("  " + "  ".join(f"{key} {_range(probes, key)}" for key in sorted(last["watched"])))
            for each in symptoms:
                print(f"  SYMPTOM {each['name']} of {each['who']} at step {each['step']}: {each['message']}")
    print(f"{len(names)} recipes, {shown} signs")


def _digits(name: str) -> bool:
    return load_recipe(name).data.use == "digits"


def _told(probe: dict[str, Any]) -> str:
    found = {name: probe[name] for name in ("clean", "robust") if probe[name]}
    return " ".join(f"{name} {count['hits']}/{count['total']}" for name, count in found.items())


def _range(probes: list[dict[str, Any]], key: str) -> str:
    values = [each["watched"][key] for each in probes if key in each["watched"]]
    return f"{min(values):.3g}..{max(values):.3g}"


if __name__ == "__main__":
    main()
