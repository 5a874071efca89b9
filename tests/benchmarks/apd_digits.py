"""Does Adversarial Prompt Distillation gain anything over zero-shot? Few-shot draws as pairs, rivals beside it.

    python tests/benchmarks/apd_digits.py [--seeds 1 2 3 4 5] [--out DIR] [key=value ...]

For every seed (few-shot draw, initialisation, order and noise) it runs `recipes/apd_digits.yaml` and, with the same
student, draw, attack and steps, two rivals: a frozen zero-shot teacher instead of the learning twin, and adversarial
cross-entropy without a teacher. It prints means over seeds, and each method's gain over the undefended model in robust
accuracy with its 95 % t-interval over seeds. Runs that are finished in DIR are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from scipy import stats

from advdistill.engine.fit import train
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe

BASE = 'model: "advdistill_demo:small.json", weights: "advdistill_demo:small.safetensors"'
METHODS = {
    "APD": [],
    "frozen teacher": [f"teachers.clean={{use: clip, train: false, {BASE}}}"],
    "adversarial CE": ["teachers=null", "strategy={use: adversarial-ce}"],
}
ROBUST = ("PGD-20", "APGD-CE")


def main() -> None:
    """Run what is missing, print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    options.add_argument("--out", type=Path, default=Path("runs/apd-seeds"))
    given, overrides = options.parse_known_args()
    shares: dict[str, dict[str, list[float]]] = {}
    for method, changes in METHODS.items():
        for seed in given.seeds:
            for subject, protocols in _run(given.out, method, seed, [*changes, *overrides]).items():
                if subject in ("undefended", "student"):
                    name = method if subject == "student" else "undefended"
                    for protocol, result in protocols.items():
                        shares.setdefault(name, {}).setdefault(protocol, []).append(100 * result["accuracy"])
    base = {protocol: values[: len(given.seeds)] for protocol, values in shares["undefended"].items()}
    heads = [*base, *(f"gain {protocol} [95 %]" for protocol in ROBUST)]
    print(" | ".join(["method", *heads]))
    for name, found in shares.items():
        cells = [f"{statistics.mean(values):.1f}" for values in found.values()]
        if name != "undefended":
            cells += [_interval([a - b for a, b in zip(found[p], base[p], strict=True)]) for p in ROBUST]
        print(" | ".join([name, *cells]))


def _run(out: Path, method: str, seed: int, changes: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    folder = out / f"{method.replace(' ', '-')}-{seed}"
    results = folder / "results.json"
    if not results.exists():
        words = [f"seed={seed}", f"data.shots_seed={seed}", f"student.init_seed={seed}", f"save.dir={folder}"]
        registry = default_registry()
        recipe = load_recipe("apd_digits", [*changes, *words, "evaluate.every=0", "report=[{use: jsonl}]"], registry)
        train(recipe, registry, overwrite=True)
    return {row["subject"]: row["protocols"] for row in json.loads(results.read_text())}


def _interval(gains: list[float]) -> str:
    mean, error = statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5
    half = float(stats.t.ppf(0.975, len(gains) - 1)) * error
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


if __name__ == "__main__":
    main()
