"""Recipes that do well show no sign of failure, and show what signs are read from.

Full runs of every recipe are tests/benchmarks/signatures.py's; here two take a few steps on smaller batches, with the
shape of their whole schedule.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from advdistill.engine import fit
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe

WATCHED = {
    "quickstart": {"robust teacher on the student's examples"},
    "apd_digits": {"clean teacher clean", "student text gradient", "clean teacher visual gradient"},
}


@pytest.mark.parametrize("recipe", WATCHED)
def test_a_recipe_that_does_well_is_silent(tmp_path: Path, recipe: str) -> None:
    words = ["train.steps=16", "train.epochs=0", "train.batch_size=32", "evaluate.every=4", "evaluate.probe.limit=60"]
    words += ["evaluate.undefended=false", "evaluate.teachers=false", "evaluate.protocols=[{name: clean, limit: 10}]"]
    words += ["report=[{use: jsonl}]", f"save.dir={tmp_path / 'run'}"]
    fit.train(load_recipe(recipe, words), default_registry())
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not [event for event in events if event["event"] == "symptom"]
    last = [event for event in events if event["event"] == "probed"][-1]
    assert WATCHED[recipe] | {"largest class", "effective rank", "training attack"} <= last["watched"].keys()
