"""Random images in the place of training data that is not on this machine: neither a plan nor a step's cost looks at
what is in them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advdistill.engine import build
from advdistill.engine.data import Dataset, Split
from advdistill.engine.types import ClassSet
from advdistill.errors import MissingData
from advdistill.hooks.specs import DatasetSpec

if TYPE_CHECKING:
    from advdistill.hooks.registry import Registry
    from advdistill.recipe.resolve import Recipe

CLASSES, SIDE, IMAGES = 1000, 224, 1_281_167
"""ImageNet's (ILSVRC 2012) number of classes and training images, and the side that most recipes take them at."""


def with_data(recipe: Recipe, registry: Registry) -> tuple[Recipe, str]:
    """The recipe, and ""; or where its data is missing, the recipe on random images instead, and what is missing.

    Raises:
        DataError: its data is there, and cannot be used.
    """
    try:
        build.dataset(registry, recipe.data).split("train")
        return recipe, ""
    except MissingData as error:
        spec = DatasetSpec(name="random-images", target=RandomImages)
        shots = _shots(recipe.data.config)
        assumed = f"{CLASSES:,} classes of {shots} images are" if shots else "ImageNet's size is"
        return replace(recipe, data=replace(recipe.data, spec=spec)), f"data: {error.message}; {assumed} assumed"


class RandomImages(Dataset):
    """As many as ImageNet has, or as the block's `shots` says of each class, in the size and with the templates of the
    block.

    Args:
        config: the settings of the data set that is not there.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        templates = tuple(getattr(config, "templates", ())) or ("a photo of a {}.",)
        self.classes = ClassSet(tuple(f"class {number}" for number in range(CLASSES)), templates)
        self._count = CLASSES * _shots(config) or IMAGES

    def split(self, name: str) -> Split:
        augments = getattr(self.config, "augment", "none") != "none"
        return _Random(self._count, getattr(self.config, "size", SIDE), augments)


class _Random(Split):
    """Eight images, over and over. Where the data would be augmented these are not, but pass for it: nothing is known
    of them from one epoch to the next."""

    def __init__(self, count: int, side: int, augments: bool) -> None:
        self.augments = augments
        self.labels = torch.arange(count) % CLASSES
        self.ids = [""] * count
        draws = torch.Generator().manual_seed(0)
        self._images = torch.randint(256, (8, 3, side, side), generator=draws, dtype=torch.uint8)

    def load(self, index: int) -> Tensor:
        return self._images[index % len(self._images)]


def _shots(config: Any) -> int:
    return int(getattr(config, "shots", 0))
