"""What was found, sample by sample, and the file it lies in: one safetensors file, readable without this package.

Everything that is said later (tables, intervals, comparisons, doubts, cards) is computed from these records, so that
nothing can be claimed that was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advdistill.engine import checkpoint
from advdistill.engine.count import Count
from advdistill.errors import DataError
from advdistill.recipe.header import FORMAT as HEADER

FORMAT = 1


@dataclass(frozen=True)
class Outcome:
    """One protocol on one model; tensors (N,), in the order of `indices`.

    Attributes:
        indices: long; each sample's position in its split.
        labels: long.
        clean: bool; right about the clean image.
        right: bool; right about the stored image that the attack ended with, judged afresh (`Judge`).
        claimed: bool; what the attacked model itself said of that image while it was attacked.
        recovered: bool; wrong about the clean image, yet right about the one that an attack ended with.
        rounded: bool; right about that image rounded to 8 bits towards the clean one.
        size: float; norm of the perturbation, in the threat's norm.
        rise: float; cross-entropy of that image minus that of the clean one, in nats.
        margin: float; the clean image's label logit minus the largest other one.
        certain: bool; the clean image's cross-entropy is exactly 0 in float32: nothing to climb.
        nearest: float; size of the smallest perturbation seen to mislead, in the ball or not; inf: none was.
        forwards, backwards, blank: int32; passes spent, and backward passes whose gradient was 0 everywhere.
        zeros: float; mean share of pixels whose gradient was 0; NaN where none was taken.
        stage: int16; which stage of the attack broke it; -1: none did, or it was wrong before.
        sources: (N, k) long; which sources each is made of (`Split.sources`); k 0: samples are independent.
    """

    indices: Tensor
    labels: Tensor
    clean: Tensor
    right: Tensor
    claimed: Tensor
    recovered: Tensor
    rounded: Tensor
    size: Tensor
    rise: Tensor
    margin: Tensor
    certain: Tensor
    nearest: Tensor
    forwards: Tensor
    backwards: Tensor
    blank: Tensor
    zeros: Tensor
    stage: Tensor
    sources: Tensor = field(default_factory=Tensor)

    def __post_init__(self) -> None:
        if not self.sources.numel():
            object.__setattr__(self, "sources", torch.empty(len(self), 0, dtype=torch.long))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: Tensor) -> Outcome:
        """Some samples, `rows` (n,) long or (N,) bool."""
        return Outcome(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})

    @property
    def attacked(self) -> Tensor:
        """(N,) bool: samples that anything was spent on."""
        return self.forwards > 0

    @property
    def count(self) -> Count:
        """Right out of all samples drawn."""
        return Count.of(self.right, self.sources)


@dataclass(frozen=True)
class Column:
    """A protocol's statement and what it found.

    Attributes:
        name: the heading. scope: whose images and classes, "" for the model's own.
        statement: everything that the number depends on beside the model, with its hash under `key`
            (`Protocol.statement`).
        stages: names of the attack's stages; empty for clean accuracy.
    """

    name: str
    statement: Mapping[str, Any]
    outcome: Outcome
    stages: tuple[str, ...] = ()
    scope: str = ""

    @property
    def heading(self) -> str:
        """`scope: name`, or the name alone."""
        return f"{self.scope}: {self.name}" if self.scope else self.name

    @property
    def attacked(self) -> bool:
        """Whether it is an attack's, not clean accuracy."""
        return self.statement["attack"] is not None


@dataclass(frozen=True)
class Evaluation:
    """One model's columns.

    Attributes:
        subject: what to call the model.
        facts: JSON-able: `model` {path, sha256, …}, `versions`, and for a checkpoint `recipe` {name, seed, shots, …}.
        columns: in the order measured; clean accuracy first, then white-box attacks.
    """

    subject: str
    facts: Mapping[str, Any]
    columns: tuple[Column, ...]

    def column(self, heading: str) -> Column:
        """The column of that heading. Raises DataError where there is none."""
        found = next((c for c in self.columns if c.heading == heading), None)
        if found is None:
            known = ", ".join(c.heading for c in self.columns)
            raise DataError(f"{self.subject} has no column {heading!r}", f"it has: {known}")
        return found

    def worst(self, scope: str = "") -> tuple[Tensor, Tensor]:
        """Over all attacks of a scope: (N,) long indices, (N,) bool right about every image.

        Raises:
            DataError: nothing was attacked there, or on different samples.
        """
        found = [c.outcome for c in self.columns if c.scope == scope and c.attacked]
        if not found or any(not torch.equal(o.indices, found[0].indices) for o in found):
            raise DataError(f"{self.subject}: the attacks of {scope or 'its own data'} looked at different samples")
        return found[0].indices, torch.stack([o.right for o in found]).all(0)

    def base_to_new(self) -> dict[str, tuple[float, float, float]]:
        """Column name -> accuracy on base classes, on new ones, and their harmonic mean; {} without such scopes."""
        base = {c.name: c.outcome.count.share for c in self.columns if c.scope == "base"}
        new = {c.name: c.outcome.count.share for c in self.columns if c.scope == "new"}
        both = [name for name in base if name in new]
        return {n: (base[n], new[n], 2 * base[n] * new[n] / max(base[n] + new[n], 1e-12)) for n in both}

    def save(self, path: Path) -> None:
        """Write everything to one file, whole or not at all. Raises RunError where that fails."""
        tensors = {
            f"{index}.{each.name}": tensor
            for index, column in enumerate(self.columns)
            for each in fields(Outcome)
            if (tensor := getattr(column.outcome, each.name)).ndim == 1 or tensor.shape[1]
        }
        heads = [
            {"name": c.name, "scope": c.scope, "stages": list(c.stages), "statement": dict(c.statement)}
            for c in self.columns
        ]
        facts = {
            "format": HEADER,
            "outcomes": FORMAT,
            "subject": self.subject,
            "facts": dict(self.facts),
            "columns": heads,
        }
        checkpoint.write(path, tensors, facts)

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """The inverse of `save`; `path` is the file or the folder that `evaluate` wrote it to.

        Raises:
            DataError: there is none, it is damaged, or of a newer format.
        """
        file = path / FILE if path.is_dir() else path
        if not file.exists():
            raise DataError(f"{path} holds no evaluation", "`advdistill evaluate --model … --out DIR` makes one")
        facts, tensors = checkpoint.read(file)
        if facts.get("outcomes") != FORMAT:
            raise DataError(f"{file} holds no evaluation of a format that this version reads", "evaluate again")
        columns = tuple(
            Column(
                name=head["name"],
                scope=head["scope"],
                stages=tuple(head["stages"]),
                statement=head["statement"],
                outcome=Outcome(
                    **{
                        each.name: tensors[f"{index}.{each.name}"]
                        for each in fields(Outcome)
                        # Without sources where samples have none, and in files from before there were any.
                        if each.name != "sources" or f"{index}.sources" in tensors
                    }
                ),
            )
            for index, head in enumerate(facts["columns"])
        )
        return cls(facts["subject"], facts["facts"], columns)


FILE = "outcomes.safetensors"
