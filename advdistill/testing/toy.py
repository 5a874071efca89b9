"""Toy parts: a model that is right about a toy dataset without training, and loses its head in a small ball.

A class is a faint pattern of signs, drawn from its name; the model compares images with the patterns of the names.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdistill.engine.attack import Attack, Problem
from advdistill.engine.data import ArraySplit, Dataset, Split, seeded
from advdistill.engine.model import Factored
from advdistill.engine.noise import Noise
from advdistill.engine.types import ClassSet, Threat
from advdistill.errors import MissingSplit
from advdistill.recipe.fields import Config

CLASSES = ClassSet(("ant", "bee", "cat", "dog", "eel", "fox"), ("a photo of a {}.",))
SIDE = 8  # of a pattern; images are twice as large
DIM = 3 * SIDE * SIDE


def pattern(name: str) -> Tensor:
    """(3, 8, 8) of -1 and 1, the same for a name every time."""
    return torch.randint(2, (3, SIDE, SIDE), generator=seeded("toy pattern", name)) * 2.0 - 1


class ToyConfig(Config):
    """Settings of the toy model."""

    learns: Literal["image", "text", "both"] = "both"
    """Which side has parameters that learn."""
    scale: float = 12.0
    """Of the logits."""


class ToyModel(Factored):
    """A `Factored` model of two vectors: a gain on pixels and a context added to class features."""

    image_size = 2 * SIDE
    width = DIM
    scale: Tensor

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.classifier_learns = config.learns != "image"
        self.gain = nn.Parameter(torch.ones(DIM))
        self.context = nn.Parameter(torch.zeros(DIM))
        self.register_buffer("scale", torch.tensor(config.scale))

    @classmethod
    def from_config(cls, config: ToyConfig, *, weights: bool = True) -> ToyModel:
        with torch.device("cpu" if weights else "meta"):
            return cls(config)

    def prepare(self, classes: ClassSet) -> Tensor:
        return torch.stack([pattern(name).flatten() for name in classes.names]).to(self.device)

    def classifier(self, classes: Tensor, rows: Tensor | None = None) -> Tensor:
        return F.normalize((classes if rows is None else classes[rows]) + self.context, dim=-1)

    def features(self, images: Tensor) -> Tensor:
        small = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        return torch.tanh(4 * (small - 0.5).flatten(1) * self.gain)

    def logits(self, features: Tensor, classifier: Tensor) -> Tensor:
        return self.scale * F.normalize(features, dim=-1) @ classifier.T

    def learned(self) -> dict[str, Tensor]:
        image: dict[str, Tensor] = {"gain": self.gain} if self.config.learns != "text" else {}
        text: dict[str, Tensor] = {"context": self.context} if self.config.learns != "image" else {}
        return image | text

    def undefended(self) -> ToyModel:
        return ToyModel(self.config)

    def describe(self) -> dict[str, Any]:
        return {
            "base": {"model": "toy", "weights": "toy", "fingerprint": "toy"},
            "preprocessing": {"mean": [0.5] * 3, "std": [1.0] * 3, "size": self.image_size},
            "activation": "tanh",
        }


class ToyDataset(Dataset):
    """Noise around grey, with the faint pattern of a class in each image: 16 × 16, float32, ten images a class."""

    classes = CLASSES

    def split(self, name: str) -> Split:
        if name not in ("train", "val", "test"):
            raise MissingSplit(f"there is no split {name!r}", "use train, val or test")
        labels = torch.arange(len(self.classes)).repeat(10)
        patterns = torch.stack([pattern(each) for each in self.classes.names]).repeat_interleave(2, 2)
        noise = torch.rand(len(labels), 3, 2 * SIDE, 2 * SIDE, generator=seeded("toy images", name)) - 0.5
        images = 0.5 + 0.03 * patterns.repeat_interleave(2, 3)[labels] + 0.2 * noise
        return ArraySplit(images, labels, [f"{name}/{i}" for i in range(len(labels))])


class ToyAttack(Attack):
    """Two signed steps up any objective, from a random start; linf only."""

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        rows, clean = problem.rows, problem.images
        images = clean + threat.eps * (2 * noise.uniform(tuple(clean.shape[1:])) - 1)
        for _ in range(2):
            gradient, _ = problem.gradient(threat.project(images, clean), rows)
            images = images + threat.eps * gradient.sign()
        return threat.project(images, clean)
