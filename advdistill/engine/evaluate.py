"""Evaluation: whole protocols on one model, as counts with intervals, traceable to samples and settings.

A sample counts as robust if the model is right about it and about every image inside the ball that the attack looked
at; samples that are wrong already are not attacked. Numbers come with the statement of how they were taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from advdistill.engine.attack import Attack, Noise, Problem
from advdistill.engine.count import Count
from advdistill.engine.data import Batch, Split, read, stratified
from advdistill.engine.step import Participant
from advdistill.engine.types import Threat
from advdistill.errors import UsageError

Progress = Callable[[str, int, int], None]
"""`progress(protocol, done, total)` in samples."""

Found = Callable[[str, Batch, Tensor, Tensor], None]
"""`found(protocol, batch, images, right)`: the images that decided a batch, (B, 3, H, W); the outcome, (B,) bool."""


@dataclass(frozen=True)
class Protocol:
    """How one number is taken.

    Attributes:
        name: the column's head. split: which split. limit: a stratified subset of that many samples; 0: all.
        attack: None for clean accuracy. threat: the ball, None for clean accuracy.
        settings: what the attack was built from, JSON-able; part of the statement.
    """

    name: str
    split: str = "test"
    limit: int = 0
    attack: Attack | None = None
    threat: Threat | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def statement(self, split: Split, indices: Tensor, participant: Participant, seed: int) -> dict[str, Any]:
        """Everything that the number depends on beside the model's weights, and a `key` that hashes it."""
        said: dict[str, Any] = {
            "name": self.name,
            "attack": dict(self.settings) if self.attack else None,
            "threat": {"norm": self.threat.norm, "eps": self.threat.eps} if self.attack and self.threat else None,
            "split": {"name": self.split, "digest": split.digest, "samples": len(indices), "of": len(split)},
            "classes": participant.classes.digest,
            "templates": list(participant.classes.templates),
            "seed": seed,
            "precision": "fp32",
        }
        # The name is a label: two spellings of one protocol are the same measurement.
        facts = json.dumps({k: v for k, v in said.items() if k != "name"}, sort_keys=True)
        return {**said, "key": hashlib.sha256(facts.encode()).hexdigest()[:16]}


@dataclass(frozen=True)
class Results:
    """One row of a table: a model's counts, protocol by protocol.

    Attributes:
        subject: whose numbers they are.
        counts: protocol name -> Count. statements: protocol name -> its statement.
        outcomes: protocol name -> (n,) bool of each sample, in the order of `samples`.
        samples: protocol name -> the samples' ids.
        stored: measured when the model was made, under the very same statements, and read from its file.
    """

    subject: str
    counts: dict[str, Count]
    statements: dict[str, dict[str, Any]]
    outcomes: dict[str, Tensor] = field(default_factory=dict)
    samples: dict[str, list[str]] = field(default_factory=dict)
    stored: bool = False

    def to_json(self) -> dict[str, Any]:
        """The row as plain data: counts, shares, intervals, statements."""
        return {
            "subject": self.subject,
            "stored": self.stored,
            "protocols": {
                name: {
                    "hits": count.hits,
                    "total": count.total,
                    "accuracy": count.share,
                    "wilson95": list(count.wilson()),
                    "statement": self.statements[name],
                }
                for name, count in self.counts.items()
            },
        }

    @classmethod
    def from_json(cls, subject: str, row: Mapping[str, Any], stored: bool = False) -> Results:
        """The inverse of `to_json`, without outcomes."""
        protocols = row["protocols"]
        return cls(
            subject,
            {name: Count(p["hits"], p["total"]) for name, p in protocols.items()},
            {name: p["statement"] for name, p in protocols.items()},
            stored=stored,
        )


def evaluate(
    subject: str,
    participant: Participant,
    splits: Callable[[str], Split],
    protocols: Sequence[Protocol],
    *,
    seed: int,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress = lambda protocol, done, total: None,
    stored: Mapping[str, Any] | None = None,
    found: Found | None = None,
) -> Results:
    """Take `participant` through `protocols`.

    Args:
        subject: what to call it.
        splits: name -> Split.
        seed: of subsets and of the attacks' noise.
        found: is given each batch and what `correct` said of it.
        stored: a row of `Results.to_json`; it is returned instead if it has every protocol under the same key.

    Raises:
        UsageError: a protocol needs what the model says it does not have (gradients, determinism, independence).
    """
    chosen = {p.name: stratified(splits(p.split).labels, p.limit, seed) for p in protocols}
    statements = {p.name: p.statement(splits(p.split), chosen[p.name], participant, seed) for p in protocols}
    if stored and (known := _same(stored, statements)):
        return Results.from_json(subject, {"protocols": known}, stored=True)
    outcomes, samples = {}, {}
    for protocol in protocols:
        split, indices = splits(protocol.split), chosen[protocol.name].tolist()
        batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        right: list[Tensor] = []
        for batch in read(split, batches, workers=workers):
            progress(protocol.name, sum(map(len, right)), len(indices))
            batch = to_device(batch, participant.model.device)
            held, images = correct(participant, batch, protocol, seed)
            if found:
                found(protocol.name, batch, images, held)
            right.append(held.cpu())
        progress(protocol.name, len(indices), len(indices))
        outcomes[protocol.name] = torch.cat(right)
        samples[protocol.name] = [split.ids[i] for i in indices]
    counts = {name: Count(int(hit.sum()), len(hit)) for name, hit in outcomes.items()}
    return Results(subject, counts, statements, outcomes, samples)


def correct(participant: Participant, batch: Batch, protocol: Protocol, seed: int) -> tuple[Tensor, Tensor]:
    """One batch through one protocol.

    Returns:
        (B,) bool, right about the sample in spite of the attack; (B, 3, H, W) the images that decided it: the one
        that broke it, the attack's last if none did, the clean one where that was wrong already.
    """
    images, model = batch.images, participant.model
    with participant.deployed(), torch.no_grad():
        right = participant.logits(images).argmax(1) == batch.labels
    if protocol.attack is None or protocol.threat is None:
        return right, images
    if not (model.deterministic and model.batch_independent and model.differentiable):
        raise UsageError(
            f"{type(model).__name__} declares itself not deterministic, batch-independent and differentiable",
            "such a model cannot be measured by attacking its survivors alone",
        )
    survivors = right.nonzero().squeeze(1)
    if not len(survivors):
        return right, images
    clean, labels = images[survivors], batch.labels[survivors]
    with participant.deployed():
        problem = Problem(
            clean,
            labels,
            None,
            lambda some, rows: participant.logits(some, constant=True),
            protocol.threat,
            watch=True,
        )
        found = protocol.attack(problem, protocol.threat, Noise(seed, "evaluate", 0, batch.samples[survivors]))
        with torch.no_grad():
            # Judged once more, on the projected images alone: what counts as broken can be shown.
            held = participant.logits(found).argmax(1) == labels
    right = right.index_copy(0, survivors, held)
    return right, images.index_copy(0, survivors, found)


def split_reader(dataset: Any) -> Callable[[str], Split]:
    """`dataset.split` with every split built once."""
    known: dict[str, Split] = {}

    def split(name: str) -> Split:
        if name not in known:
            known[name] = dataset.split(name)
        return known[name]

    return split


def _same(stored: Mapping[str, Any], statements: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    by_key = {p["statement"]["key"]: p for p in stored["protocols"].values()}
    if not all(said["key"] in by_key for said in statements.values()):
        return None
    return {name: {**by_key[said["key"]], "statement": said} for name, said in statements.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`."""
    return Batch(*(t.to(device, non_blocking=True) for t in (batch.images, batch.labels, batch.samples)))


def examples(participant: Participant, split: Split, protocol: Protocol, count: int, seed: int) -> tuple[Batch, Tensor]:
    """At most `count` samples, evenly over the classes, and the images that `correct` judged them by."""
    indices = stratified(split.labels, count, seed).tolist()
    batch = to_device(next(iter(read(split, [indices]))), participant.model.device)
    return batch, correct(participant, batch, protocol, seed)[1]
