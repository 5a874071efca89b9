"""advdistill: adversarial distillation for vision-language models. This is the public API.

`hookimpl` and the specs cost nothing to import; `Config` brings pydantic, the rest brings torch, on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from advdistill.errors import DataError, PluginError, RecipeError, RunError, UsageError, UserError
from advdistill.hooks.hookspecs import hookimpl
from advdistill.hooks.specs import (
    AttackSpec,
    CommandSpec,
    DatasetSpec,
    ReporterSpec,
    StrategySpec,
    StudentSpec,
    TeacherSpec,
)

if TYPE_CHECKING:
    from advdistill.engine.attack import Attack, Noise, Problem
    from advdistill.engine.checkpoint import load
    from advdistill.engine.data import Dataset, Split
    from advdistill.engine.events import Reporter
    from advdistill.engine.losses import cross_entropy, kl
    from advdistill.engine.model import Factored, VisionLanguageModel
    from advdistill.engine.step import Output, Step
    from advdistill.engine.strategy import Losses, Strategy, Term
    from advdistill.engine.types import ClassSet, Clock, Threat
    from advdistill.recipe.fields import Config, PixelDistance
    from advdistill.recipe.paths import resource

_LAZY = {
    "Attack": "engine.attack",
    "ClassSet": "engine.types",
    "Clock": "engine.types",
    "Config": "recipe.fields",
    "Dataset": "engine.data",
    "Factored": "engine.model",
    "Losses": "engine.strategy",
    "Noise": "engine.attack",
    "Output": "engine.step",
    "PixelDistance": "recipe.fields",
    "Problem": "engine.attack",
    "Reporter": "engine.events",
    "Split": "engine.data",
    "Step": "engine.step",
    "Strategy": "engine.strategy",
    "Term": "engine.strategy",
    "Threat": "engine.types",
    "VisionLanguageModel": "engine.model",
    "cross_entropy": "engine.losses",
    "kl": "engine.losses",
    "load": "engine.checkpoint",
    "resource": "recipe.paths",
}

__all__ = [
    "Attack",
    "AttackSpec",
    "ClassSet",
    "Clock",
    "CommandSpec",
    "Config",
    "DataError",
    "Dataset",
    "DatasetSpec",
    "Factored",
    "Losses",
    "Noise",
    "Output",
    "PixelDistance",
    "PluginError",
    "Problem",
    "RecipeError",
    "Reporter",
    "ReporterSpec",
    "RunError",
    "Split",
    "Step",
    "Strategy",
    "StrategySpec",
    "StudentSpec",
    "TeacherSpec",
    "Term",
    "Threat",
    "UsageError",
    "UserError",
    "VisionLanguageModel",
    "cross_entropy",
    "hookimpl",
    "kl",
    "load",
    "resource",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'advdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"advdistill.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
