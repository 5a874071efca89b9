"""advdistill: adversarial distillation for vision-language models. This is the public API.

`hookimpl` and the specs cost nothing to import; `Config` brings pydantic, the rest brings torch, on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from advdistill.errors import (
    DataError,
    MissingData,
    MissingSplit,
    PluginError,
    RecipeError,
    RunError,
    RunWarning,
    UsageError,
    UserError,
)
from advdistill.hooks.hookspecs import hookimpl
from advdistill.hooks.origin import Origin, Remote
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
    from advdistill.data.place import data_folder
    from advdistill.engine.attack import Attack, Problem, right
    from advdistill.engine.build import model_of
    from advdistill.engine.checkpoint import load
    from advdistill.engine.count import Count
    from advdistill.engine.data import ArraySplit, Dataset, Split
    from advdistill.engine.evaluate import Results
    from advdistill.engine.events import (
        Event,
        Examples,
        Measured,
        Measuring,
        Probed,
        Reporter,
        RunFinished,
        RunStarted,
        RunStopped,
        Saved,
        StepDone,
        Symptom,
        Warned,
    )
    from advdistill.engine.losses import cross_entropy, kl
    from advdistill.engine.model import Encoded, Factored, VisionLanguageModel
    from advdistill.engine.noise import Noise
    from advdistill.engine.participant import Seen
    from advdistill.engine.splits import few_shot, partition
    from advdistill.engine.step import Output, Step
    from advdistill.engine.strategy import Losses, Strategy, Term, factored, same_width
    from advdistill.engine.types import ClassSet, Clock, Threat
    from advdistill.recipe.fields import Config, PixelDistance
    from advdistill.recipe.paths import data_home, resource

_LAZY = {
    "ArraySplit": "engine.data",
    "Attack": "engine.attack",
    "ClassSet": "engine.types",
    "Clock": "engine.types",
    "Config": "recipe.fields",
    "Count": "engine.count",
    "Dataset": "engine.data",
    "Encoded": "engine.model",
    "Event": "engine.events",
    "Examples": "engine.events",
    "Factored": "engine.model",
    "Losses": "engine.strategy",
    "Measured": "engine.events",
    "Measuring": "engine.events",
    "Noise": "engine.noise",
    "Output": "engine.step",
    "PixelDistance": "recipe.fields",
    "Probed": "engine.events",
    "Problem": "engine.attack",
    "Reporter": "engine.events",
    "Results": "engine.evaluate",
    "RunFinished": "engine.events",
    "RunStarted": "engine.events",
    "RunStopped": "engine.events",
    "Saved": "engine.events",
    "Seen": "engine.participant",
    "Split": "engine.data",
    "Step": "engine.step",
    "StepDone": "engine.events",
    "Strategy": "engine.strategy",
    "Symptom": "engine.events",
    "Term": "engine.strategy",
    "Threat": "engine.types",
    "VisionLanguageModel": "engine.model",
    "Warned": "engine.events",
    "cross_entropy": "engine.losses",
    "data_folder": "data.place",
    "data_home": "recipe.paths",
    "factored": "engine.strategy",
    "few_shot": "engine.splits",
    "kl": "engine.losses",
    "load": "engine.checkpoint",
    "model_of": "engine.build",
    "partition": "engine.splits",
    "resource": "recipe.paths",
    "right": "engine.attack",
    "same_width": "engine.strategy",
}

__all__ = [
    "ArraySplit",
    "Attack",
    "AttackSpec",
    "ClassSet",
    "Clock",
    "CommandSpec",
    "Config",
    "Count",
    "DataError",
    "Dataset",
    "DatasetSpec",
    "Encoded",
    "Event",
    "Examples",
    "Factored",
    "Losses",
    "Measured",
    "Measuring",
    "MissingData",
    "MissingSplit",
    "Noise",
    "Origin",
    "Output",
    "PixelDistance",
    "PluginError",
    "Probed",
    "Problem",
    "RecipeError",
    "Remote",
    "Reporter",
    "ReporterSpec",
    "Results",
    "RunError",
    "RunFinished",
    "RunStarted",
    "RunStopped",
    "RunWarning",
    "Saved",
    "Seen",
    "Split",
    "Step",
    "StepDone",
    "Strategy",
    "StrategySpec",
    "StudentSpec",
    "Symptom",
    "TeacherSpec",
    "Term",
    "Threat",
    "UsageError",
    "UserError",
    "VisionLanguageModel",
    "Warned",
    "cross_entropy",
    "data_folder",
    "data_home",
    "factored",
    "few_shot",
    "hookimpl",
    "kl",
    "load",
    "model_of",
    "partition",
    "resource",
    "right",
    "same_width",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'advdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"advdistill.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
