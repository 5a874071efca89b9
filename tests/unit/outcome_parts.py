"""Evaluations built by hand, sample by sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advdistill.engine.outcomes import Column, Evaluation, Outcome
from advdistill.engine.protocol import key

WHITE = {
    "weights": "known", "prompts": "known", "templates": "known", "class names": "known", "asks": "gradients",
    "goal": "untargeted",
}  # fmt: skip
SCORES = {
    "weights": "unknown", "prompts": "unknown", "templates": "unknown", "class names": "known", "asks": "scores",
    "goal": "untargeted",
}  # fmt: skip
PGD = {"use": "advdistill:pgd", "steps": 20, "restarts": 2, "loss": ""}
EPS = 8 / 255


def statement(name: str, attack: dict[str, Any] | None = None, eps: float = EPS, **more: Any) -> dict[str, Any]:
    """A protocol's, with its key; `more` goes in place of its fields."""
    said: dict[str, Any] = {
        "name": name,
        "attack": attack,
        "threat": {"norm": "linf", "eps": eps} if attack else None,
        "attacker": WHITE if attack else None,
        "knowledge": "white-box" if attack else "none",
        "source": {"model": "self", "fingerprint": ""} if attack else None,
        "split": {"name": "test", "digest": "d1", "samples": 100, "of": 200, "drawn": "stratified by class"},
        "classes": "c1",
        "templates": ["a photo of a {}."],
        "resolution": [32, 24],
        "metric": "top-1",
        "seed": 0,
        "precision": "fp32",
        **more,
    }
    return {**said, "key": key(said)}


def outcome(clean: Tensor, right: Tensor | None = None, eps: float = EPS, **more: Any) -> Outcome:
    """What an attack of 20 steps found, or where `right` is not given, that nothing was attacked.

    Attacked samples move to the edge of the ball and rise by 1.5; broken ones break in the first stage, at half of the
    radius. Labels go round ten classes. `more` goes in place of fields.
    """
    attacked = clean if right is not None else torch.zeros_like(clean)
    right = clean if right is None else right
    broken = clean & ~right
    count = len(clean)

    def per(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.where(attacked, value, 0.0).to(dtype)

    fields: dict[str, Tensor] = {
        "indices": torch.arange(count),
        "labels": torch.arange(count) % 10,
        "clean": clean,
        "right": right,
        "claimed": right,
        "rounded": right,
        "recovered": torch.zeros(count, dtype=torch.bool),
        "size": per(eps),
        "rise": per(1.5, torch.float64),
        "margin": torch.ones(count),
        "certain": torch.zeros(count, dtype=torch.bool),
        "nearest": torch.where(broken, eps / 2, torch.inf),
        "forwards": per(21, torch.int32),
        "backwards": per(20, torch.int32),
        "blank": torch.zeros(count, dtype=torch.int32),
        "zeros": torch.zeros(count),
        "stage": torch.where(broken, 0, -1).to(torch.int16),
    }
    return Outcome(**{**fields, **more})


def clean_column(clean: Tensor, scope: str = "", **more: Any) -> Column:
    """Clean accuracy."""
    return Column("clean", statement("clean", **more), outcome(clean), scope=scope)


def column(name: str, found: Outcome, scope: str = "", eps: float = EPS, **more: Any) -> Column:
    """An attack's, by PGD where `more` does not say otherwise."""
    return Column(name, statement(name, **{"attack": PGD, "eps": eps, **more}), found, ("pgd",), scope)


def evaluation(name: str, *columns: Column, **facts: Any) -> Evaluation:
    """Of the model `name`, whose fingerprint it is, too."""
    return Evaluation(name, {"model": {"name": name, "fingerprint": name}, **facts}, columns)


def bits(share: float, seed: int, count: int = 100) -> Tensor:
    """(count,) bool; exactly round(share · count) are set, which ones is drawn."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order < round(share * count)
