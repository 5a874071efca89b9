"""Honest models are believed.

Guarantee: ten models that hide nothing (undefended, adversarially trained, distilled, prompted, with adapters; some
trained here for a moment) together raise at most one flag, by all indicators under one and the same attack.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import defences

from advdistill.engine import doubt, fit
from advdistill.engine.subject import Subject, subject
from advdistill.engine.types import Threat
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe, resolve_blocks

LIMIT = 16
EPS = 4 / 255
SHIPPED = ("clean", "robust", "adversarial_ce", "clean_prompts")
TRAINED = ("apd_digits", "tecoa_digits", "fare_digits", "advclip_lora_digits", "apt_digits")
SHORT = (
    "train.steps=12",
    "train.epochs=0",
    "train.batch_size=32",
    "evaluate.every=12",
    "evaluate.probe.limit=10",
    "evaluate.protocols=[{name: clean, limit: 10}]",
    "report=[]",
)


def flags(model: Subject) -> list[str]:
    """The names of those that it raises."""
    registry = default_registry()
    block = resolve_blocks({"attack": {"use": "apgd", "steps": 40}}, registry)[("attack",)]
    column, indicators = doubt.diagnose(model, block, Threat("linf", EPS), LIMIT, registry)
    unknown = [each.name for each in indicators if each.verdict == "unknown"]
    assert len(unknown) <= 2, f"{model.name}: could not be told: {unknown}"
    raised = [each for each in indicators if each.verdict == "flag"]
    print(f"{model.name}: {column.outcome.count}", *raised, sep="\n  ")
    return [each.name for each in raised]


def opened(path: str) -> Subject:
    """A checkpoint on its own data."""
    registry = default_registry()
    return subject(path, registry, attack="apgd", norm="linf", eps=EPS)


def trained(recipe: str, folder: Path) -> Subject:
    """A student after a few steps of that recipe."""
    fit.train(load_recipe(recipe, [*SHORT, f"save.dir={folder}"]), default_registry())
    return opened(str(folder / "last.safetensors"))


@pytest.mark.slow
def test_ten_honest_models_raise_at_most_one_flag(tmp_path: Path) -> None:
    found = {"undefended": flags(defences.subject(defences.base(), "undefended"))}
    for name in SHIPPED:
        found[name] = flags(opened(f"advdistill_demo:{name}.safetensors"))
    for name in TRAINED:
        found[name] = flags(trained(name, tmp_path / name))
    assert len(found) == 10
    assert sum(map(len, found.values())) <= 1, found
