"""Resume points: everything that the next optimizer step depends on, in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from advdistill.engine import checkpoint
from advdistill.engine.build import Parts
from advdistill.errors import DataError


class Stand(NamedTuple):
    """Where a run stands.

    Attributes:
        step: steps done. best: the best probe's score. processes: how many take its steps.
        spent: see `Spent`. signs: see `Signatures.state`. JSON-able; empty: unknown.
    """

    step: int
    best: float
    processes: int = 1
    spent: Mapping[str, Any] = MappingProxyType({})
    signs: Mapping[str, Any] = MappingProxyType({})


def save(path: Path, parts: Parts, optimizer: torch.optim.Optimizer, tree: dict[str, Any], stand: Stand) -> None:
    """Write a resume point: learned tensors, optimizer moments, strategy buffers, the clock."""
    tensors: dict[str, Tensor] = {
        **{f"learned.{name}": t for name, t in checkpoint.learned(parts.student, parts.teachers).items()},
        **{f"strategy.{name}": t for name, t in parts.strategy.state_dict().items()},
    }
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in entry.items()}
    facts = {"format": checkpoint.FORMAT, "recipe": _anywhere(tree), **stand._asdict()}
    checkpoint.write(path, tensors, facts)


def restore(path: Path, parts: Parts, optimizer: torch.optim.Optimizer, tree: dict[str, Any]) -> Stand:
    """Put everything back as `save` found it.

    Raises:
        DataError: the file is damaged, or belongs to another recipe or to other parts.
    """
    facts, tensors = checkpoint.read(path)
    if facts["recipe"] != _anywhere(tree):
        raise DataError(
            f"{path} belongs to another recipe than the one beside it",
            "undo what was changed in recipe.yaml, or begin anew with --overwrite",
        )

    def under(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    live, stored = checkpoint.learned(parts.student, parts.teachers), under("learned.")
    if live.keys() != stored.keys():
        raise DataError(f"{path} holds other tensors than the run learns", "was a plugin changed since?")
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(stored[name])
    parts.strategy.load_state_dict(under("strategy."))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in under("optimizer.").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Stand(
        facts["step"], facts["best"], facts.get("processes", 1), facts.get("spent", {}), facts.get("signs", {})
    )


def _anywhere(tree: dict[str, Any]) -> dict[str, Any]:
    """The recipe without the folder's place, which may have changed or be spelled differently."""
    return {**tree, "save": {key: value for key, value in tree["save"].items() if key != "dir"}}
