"""What does every method's recipe on the digits reach? Several seeds each, many runs at a time.

    python tests/benchmarks/methods.py [--seeds 0 1 2] [--jobs 2] [--out DIR] [--recipes NAME ...] [key=value ...]

Runs each shipped recipe on the digits as it is, but that the seeds of the run, of the few-shot draw and of every
initialisation are moved by SEED, one process and one thread each, and prints the means over seeds of the students'
accuracies, with their range. Recipes of one threat and one amount of data stand together: only those are comparable. A
run that fails is named and loses no other; what is finished in DIR is not run again while its recipe is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from advdistill.hooks.registry import default_registry
from advdistill.recipe.dump import to_yaml
from advdistill.recipe.loader import recipe_files
from advdistill.recipe.resolve import Recipe, load_recipe


def main() -> None:
    """Run what is missing, print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--jobs", type=int, default=2)
    options.add_argument("--out", type=Path, default=Path("runs/methods"))
    options.add_argument("--recipes", nargs="+")
    given, overrides = options.parse_known_args()
    registry = default_registry()
    names = given.recipes or [p.stem for p, _ in recipe_files(registry) if not p.stem.startswith("demo_")]
    recipes = {name: load_recipe(name, overrides, registry) for name in names}
    recipes = {name: recipe for name, recipe in recipes.items() if recipe.data.use == "digits"}
    with ThreadPoolExecutor(given.jobs) as pool:
        jobs = {(name, seed): pool.submit(_run, given.out, name, recipe, seed, overrides)
                for name, recipe in recipes.items() for seed in given.seeds}  # fmt: skip
    failed = [f"{name}, seed {seed}: {job.result()}" for (name, seed), job in jobs.items() if job.result()]
    settings: dict[str, list[str]] = {}
    for name, recipe in recipes.items():
        settings.setdefault(_setting(recipe), []).append(name)
    for setting, together in settings.items():
        print(f"\n{setting}\n")
        _table({name: [_rows(given.out, name, seed) for seed in given.seeds] for name in together}, recipes)
    for line in failed:
        print(f"\nfailed: {line}")
    sys.exit(bool(failed))


def _setting(recipe: Recipe) -> str:
    shots = getattr(recipe.data.config, "shots", 0)
    eps = round(255 * recipe.threat.eps, 2)
    return f"{recipe.threat.norm}, eps {eps:g}/255, {f'{shots} shots a class' if shots else 'all training images'}"


def _run(out: Path, name: str, recipe: Recipe, seed: int, overrides: list[str]) -> str:
    """Train in a process of its own. Returns the last line of what it said where it failed."""
    folder = out / f"{name}-{seed}"
    words = [
        *overrides,
        f"seed={recipe.seed + seed}",
        f"save.dir={folder}",
        "evaluate.every=0",
        "report=[{use: jsonl}]",
    ]
    blocks = {"data": recipe.data, "student": recipe.student}
    blocks |= {f"teachers.{role}": block for role, block in recipe.teachers.items()}
    for block in blocks:
        for key in ("shots_seed", "init_seed"):
            if hasattr(blocks[block].config, key):
                words.append(f"{block}.{key}={getattr(blocks[block].config, key) + seed}")
    wanted = to_yaml(load_recipe(name, words).tree)
    if (folder / "results.json").exists() and (folder / "recipe.yaml").read_text() == wanted:
        return ""
    done = subprocess.run(
        [sys.executable, "-c", "from advdistill.cli.main import main; main()", "train", name, *words, "--overwrite"],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no word"])[-1]


def _rows(out: Path, name: str, seed: int) -> dict[str, dict[str, Any]]:
    file = out / f"{name}-{seed}" / "results.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    return {row["subject"]: row["protocols"] for row in rows}


def _table(found: dict[str, list[dict[str, dict[str, Any]]]], recipes: dict[str, Recipe]) -> None:
    heads = list(dict.fromkeys(p for runs in found.values() for rows in runs for p in rows.get("student", {})))
    print(" | ".join(["recipe", "strategy", "student", *heads]))
    print(" | ".join(["---"] * (3 + len(heads))))
    undefended = [rows["undefended"] for runs in found.values() for rows in runs[:1] if "undefended" in rows]
    if undefended:
        print(" | ".join(["(undefended)", "", "", *(_cell([undefended[0]], head) for head in heads)]))
    for name, runs in found.items():
        students = [rows["student"] for rows in runs if "student" in rows]
        recipe = recipes[name]
        cells = [name, recipe.strategy.use, recipe.student.use, *(_cell(students, head) for head in heads)]
        print(" | ".join(cells))


def _cell(students: list[dict[str, Any]], head: str) -> str:
    values = [100 * student[head]["accuracy"] for student in students if head in student]
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} [{min(values):.1f}–{max(values):.1f}]"


if __name__ == "__main__":
    main()
