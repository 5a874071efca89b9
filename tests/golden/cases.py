"""Every strategy of ours beside its equation, with settings for each turn that the formula can take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import equations
from equations import Result, World

from advdistill import Strategy
from advdistill.hooks.registry import default_registry


@dataclass(frozen=True)
class Case:
    """A strategy with some settings, and its equation, which knows the same settings by the same names.

    Args:
        told: false: the equation is this case's alone, and is not told the settings.
    """

    strategy: str
    equation: Callable[..., Result]
    teachers: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    learns: tuple[str, ...] = ()
    told: bool = True

    def __str__(self) -> str:
        settings = [f"{name}={value}" for name, value in self.settings.items()]
        return ", ".join([f"{self.strategy} of {'+'.join(self.teachers) or 'nobody'}", *self.learns, *settings])

    def says(self, w: World) -> Result:
        """What the equation says."""
        return self.equation(w, **(self.settings if self.told else {}))

    def build(self) -> Strategy:
        """The strategy, as a recipe gets it."""
        registry = default_registry()
        spec = registry.get("strategy", self.strategy).spec
        config = registry.load(spec, "config")
        made: Strategy = registry.load(spec)(config(**self.settings) if config else None)
        return made


def cases(strategy: str, equation: Callable[..., Result], *settings: Mapping[str, Any], **facts: Any) -> list[Case]:
    """One with the settings as they are, and one for each of `settings`."""
    return [Case(strategy, equation, settings=each, **facts) for each in ({}, *settings)]


TWO: Any = {"teachers": ("clean", "robust")}
THREE: Any = {"teachers": ("clean", "robust", "third")}
ROBUST: Any = {"teachers": ("robust",)}
ORIGINAL: Any = {"teachers": ("original",)}
TWINS: Any = {"teachers": ("clean",), "learns": ("clean",)}
PROMPTED = ("apt", "adv-vp", "adv-tp", "adv-vlp", "adv-maple", "moapt")
QUICK = {"weight_rate": 0.3, "loss_power": 2.0, "drops": [0.4, 0.8]}
HOT = {**QUICK, "temperature_rate": 0.2, "temperature_max": 1.3}
SAAD = {"weighting": "saad", "entropy_scale": 3.0, "entropy_temperature": 2.0}
CASES = [
    *cases("clean", equations.clean),
    *cases("adversarial-ce", equations.adversarial_ce),
    *cases("tecoa", equations.adversarial_ce),
    *(Case(name, equations.adversarial_ce) for name in PROMPTED),
    *(Case(name, equations.half_adversarial_ce, settings={"batch": "half"}) for name in PROMPTED),
    *cases("trades", equations.trades, {"beta": 2.0}),
    *cases("fap", equations.fap, {"weight": 0.7}),
    *cases("fare", equations.fare, {"form": "cosine"}, {"form": "siamese"}, **ORIGINAL),
    *cases("pmg-aft", equations.pmg_aft, {"original_weight": 0.0}, {"clean_weight": 0.0},
           {"original_weight": 5.0, "clean_weight": 3.0}, **ORIGINAL),
    *cases("agft", equations.agft, {"scale": 1.0, "ratio": 1.0}, **ORIGINAL),
    *cases("hpt-gpd", equations.hpt_gpd, {"warmup": 0.4}, {"warmup": 0.0, "view": "clean", "ce_weight": 0.5},
           teachers=("proxy",)),
    Case("hpt-gpd", equations.hpt_gpd, ("proxy", "original"), {"warmup": 0.4, "ce_weight": 0.5}),
    *cases("capt", equations.capt, {"balance": "fixed", "share": 0.3, "weight": 2.0}, {"direction": "target-first"},
           {"ce_view": "adversarial"}, {"ce_view": "both", "objective": "kl"}, **ORIGINAL),
    *cases("ard", equations.ard, {"temperature": 2.0, "alpha": 0.6}, **ROBUST),
    *cases("rslad", equations.rslad, {"adversarial_weight": 1.0, "clean_weight": 0.0}, **ROBUST),
    *cases("iad", equations.iad, {"alpha": 0.7, "beta": 2.0, "begin": 0.5, "temperature": 2.0}, **ROBUST),
    *cases("iad", equations.iad_two, {"robust_weight": 0.3, "clean_weight": 0.7},
           {"beta": 2.0, "begin": 0.5, "temperature": 2.0}, **TWO),
    *cases("adaad", equations.adaad, {"alpha": 0.4}, **ROBUST),
    *cases("apd", equations.apd, {"student_kl": "student-first", "student_ce_weight": 0.3}, teachers=("clean",)),
    *cases("apd", equations.apd, {"beta": 0.0}, {"beta": 0.3, "feedback_form": "convex"}, {"feedback_detach": False},
           {"student_kl": "student-first", "feedback_kl": "teacher-first"}, {"temperature": 2.0},
           {"temperature": 2.0, "temperature_squared": True}, {"student_ce_weight": 0.5},
           {"update_order": "alternate", "beta": 0.7}, **TWINS),
    *cases("mtard", equations.mtard, QUICK, {**QUICK, "loss_power": 0.0}, **TWO),
    *cases("b-mtard", equations.b_mtard, HOT, **TWO),
    *cases("ciard", equations.ciard, HOT, {**HOT, "weighting": "balanced"}, {"push": 0.0},
           {"push": 0.5, "push_temperature": 2.0}, {"push_cap": 0.5}, **TWO),
    *cases("ciard", equations.ciard, {"teacher_start": 0.5}, **TWO, learns=("robust",)),
    Case("mmt-ard", equations.mmt_ard_released, settings={"weighting": "cosine", "clean_weight": 5, "robust_weight": 50,
         "reduction": "element-mean"}, told=False, **TWO),
    *cases("mmt-ard", equations.mmt_ard, {"weighting": "fixed", "clean_weight": 0.25, "robust_weight": 3.0},
           {"weighting": "fixed", "robust_weight": 0.0}, {"weighting": "fixed", "clean_weight": 0.0},
           {"weighting": "fixed", "objective": "ce", "reduction": "element-mean"}, {"objective_teacher": "robust"},
           {"weighting": "fixed", "temperature": 2.0}, {"weighting": "cosine", "clamp_min": 0.1},
           {"weighting": "probability"}, {"slope": 3.0, "tau": 0.5, "favour": "hard"}, {"midpoint": 0.3, "slope": 2.0},
           {"midpoint": 0.3, "favour": "hard"}, {"views": {"robust": "clean"}},
           {"views": {"clean": "adversarial"}, "student_views": {"robust": "clean"}},
           SAAD, {"weighting": "relative-loss", **QUICK}, {"weighting": "entropy-temperature", **HOT},
           {"consistency": 0.5}, {"consistency": 0.5, "consistency_form": "kl"}, {"level": "embedding"},
           *({"level": level, "gate": gate, "slope": 2.0} for level in ("logits-embedding", "contrastive")
             for gate in ("teachers", "modalities", "both")),
           {"level": "contrastive", "gate": "both", "weighting": "probability"},
           {"level": "contrastive", "temperature": 2.0, "reduction": "element-mean"}, **TWO),
    *cases("mmt-ard", equations.mmt_ard, {"weighting": "relative-loss", **QUICK}, {"slope": 3.0, "favour": "hard"},
           {"weighting": "fixed", "weights": {"third": 0.5}, "views": {"third": "adversarial"}},
           {**SAAD, "views": {"third": "adversarial"}, "clean_weight": 0.5}, **THREE),
]  # fmt: skip
