"""What the benchmarks of attacks share: the demo's models and images, and one attack through the engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from advdistill import ArraySplit, Attack, ClassSet, Threat
from advdistill.engine import build
from advdistill.engine.checkpoint import open_checkpoint
from advdistill.engine.evaluate import Bench
from advdistill.engine.outcomes import Column
from advdistill.engine.participant import Participant
from advdistill.engine.protocol import Protocol
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import resolve_blocks

Forward = Callable[[Tensor], Tensor]


def digits(*names: str) -> tuple[ArraySplit, ClassSet]:
    """The images of some splits of the demo's digits as one split, and its classes."""
    registry = default_registry()
    block = resolve_blocks({"data": {"use": "digits"}}, registry)[("data",)]
    dataset = build.component(registry, block)
    splits = [dataset.split(name) for name in names]
    images = torch.stack([split.load(i) for split in splits for i in range(len(split))])
    ids = [name for split in splits for name in split.ids]
    return ArraySplit(images, torch.cat([split.labels for split in splits]), ids), dataset.classes


def model(checkpoint: str, classes: ClassSet) -> Participant:
    """A checkpoint's model, such as `advdistill_demo:small.safetensors`."""
    return Participant(open_checkpoint(checkpoint, default_registry()).model, classes)


@contextlib.contextmanager
def looked_at(participant: Participant) -> Iterator[Forward]:
    """images -> logits of the model as it is deployed, class features encoded once: what a plain attack gets."""
    with participant.deployed():
        participant.classifier()
        yield lambda images: participant.logits(images, constant=True)


def attack(block: Mapping[str, Any]) -> Attack:
    """Built from what a recipe says, such as `{"use": "pgd", "steps": 20}`."""
    registry = default_registry()
    built: Attack = build.component(registry, resolve_blocks({"attack": dict(block)}, registry)[("attack",)])
    return built


def ensemble(steps: int = 100, targets: int = 9, queries: int = 5000) -> dict[str, Any]:
    """The block of our standard ensemble, or of one with smaller budgets."""
    if (steps, targets, queries) == (100, 9, 5000):
        return {"use": "autoattack"}
    attacks = [
        {"use": "apgd", "steps": steps},
        {"use": "apgd-t", "steps": steps, "classes": targets},
        {"use": "fab-t", "steps": steps, "classes": targets},
        {"use": "square", "queries": queries},
    ]
    return {"use": "autoattack", "version": "custom", "attacks": attacks}


def measured(
    participant: Participant, split: ArraySplit, by: Attack, eps: float, *, seed: int = 0, batch: int = 250
) -> Column:
    """An attack in l-infinity on all samples of a split, as every evaluation runs it."""
    bench = Bench(participant, lambda name: split, seed, batch_size=batch)
    return next(bench.columns([Protocol("benchmark", attack=by, threat=Threat("linf", eps))]))


def part(split: ArraySplit, rows: Tensor | Sequence[int]) -> ArraySplit:
    """Some samples of a split."""
    rows = torch.as_tensor(rows)
    return ArraySplit(split.images[rows], split.labels[rows], [split.ids[i] for i in rows.tolist()])
