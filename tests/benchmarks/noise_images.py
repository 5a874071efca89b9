"""A single-file plugin: a data set of noise under names of ImageNet, as large as a benchmark wants it."""

from __future__ import annotations

import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from advdistill import ArraySplit, ClassSet, Config, Dataset, DatasetSpec, Split, hookimpl


class NoiseImages(Config):
    """What there is."""

    classes: int = 100
    """How many. Beyond ImageNet's, its names come back with a number."""
    images: int = 64
    """In each split."""
    size: int = 224
    """Side of an image."""
    letters: int = 99
    """Longer names are cut off there, and numbered all."""


class Noise(Dataset):
    """Uniform noise, labels in turn."""

    def __init__(self, config: NoiseImages) -> None:
        self.config, known = config, list(dict.fromkeys(IMAGENET_CLASSNAMES))
        names = [f"{known[i % len(known)]} {i // len(known)}".removesuffix(" 0") for i in range(config.classes)]
        names = [
            name if len(name) <= config.letters else f"{name[: config.letters]} {i}" for i, name in enumerate(names)
        ]
        self.classes = ClassSet(tuple(names), ("a photo of a {}.",))

    def split(self, name: str) -> Split:
        count, size = self.config.images, self.config.size
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
        labels = torch.arange(count) % self.config.classes
        return ArraySplit(images, labels, [f"{name}/{i}" for i in range(count)])


@hookimpl
def advdistill_datasets() -> list[DatasetSpec]:
    """The only one."""
    return [DatasetSpec(name="noise-images", target=Noise, config=NoiseImages, summary="Noise")]
