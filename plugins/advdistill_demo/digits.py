"""The digits of scikit-learn: 8x8 grey scans of handwriting, resized to 32x32."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from advdistill import ArraySplit, ClassSet, Dataset, MissingSplit, Noise, Split, few_shot, partition
from advdistill_demo import configs

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST, VAL = 400, 200


def shifted(canvases: Tensor, reach: int, noise: Noise) -> Tensor:
    """(B, 3, H, W) images moved by up to `reach` pixels each way, every move as likely, their edges repeated."""
    height, width = canvases.shape[-2:]
    padded = F.pad(canvases, (reach,) * 4, mode="replicate")
    moves = (noise.uniform((2, 1)) * (2 * reach + 1)).long()
    rows = moves[:, 0] + torch.arange(height, device=moves.device)
    columns = moves[:, 1] + torch.arange(width, device=moves.device)
    taken = padded.gather(2, rows[:, None, :, None].expand(-1, 3, -1, padded.shape[3]))
    return taken.gather(3, columns[:, None, None, :].expand(-1, 3, height, -1))


class Shifted(ArraySplit):
    """Images that are moved by up to `reach` pixels each way when they are trained on, and mirrored every other time if
    they `flip`."""

    def __init__(self, images: Tensor, labels: Tensor, ids: Sequence[str], reach: int, *, flip: bool = False) -> None:
        super().__init__(images, labels, ids)
        self._reach, self._flip, self.augments = reach, flip, reach > 0 or flip

    def augment(self, canvases: Tensor, noise: Noise) -> Tensor:
        if self._flip:
            canvases = torch.where(noise.uniform((1, 1, 1), draw=1) < 0.5, canvases.flip(3), canvases)
        return shifted(canvases, self._reach, noise) if self._reach else canvases


class Digits(Dataset):
    """1,797 real handwritten digits: 1,197 to train on, 200 to validate, 400 to test, classes in proportion.

    Images are (3, 32, 32) float32 of three equal channels in [1/34, 33/34]: no pixel is saturated, so that an
    attack can move every one both ways.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part).
    """

    def __init__(self, config: configs.Digits) -> None:
        super().__init__(config)
        self.classes = ClassSet(NAMES, tuple(config.templates))
        source = load_digits()
        labels = torch.from_numpy(source.target).long()
        # Levels are 0..16.
        small = (torch.from_numpy(source.images).float().unsqueeze(1) + 0.5) / 17
        images = F.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
        test, val, train = partition(labels, (TEST, VAL), config.split_seed)
        if config.shots:
            train = train[few_shot(labels[train], config.shots, random.Random(config.shots_seed), NAMES)]
        self._parts = {"train": train, "val": val, "test": test}
        self._splits = {
            name: Shifted(
                images[part].contiguous(), labels[part], [f"digits/{index:04d}" for index in part], config.shift
            )
            for name, part in self._parts.items()
        }

    def split(self, name: str) -> Split:
        if name not in self._splits:
            raise MissingSplit(f"digits have no split {name!r}", "use train, val or test")
        return self._splits[name]

    def record(self) -> dict[str, Any]:
        """Counts, digests and indices (into scikit-learn's array) of each split, and the seeds that made them."""
        return {
            "split_seed": self.config.split_seed,
            "shots": self.config.shots,
            "shots_seed": self.config.shots_seed,
            "splits": {
                name: {"count": len(part), "sha256": self._splits[name].digest, "indices": part.tolist()}
                for name, part in self._parts.items()
            },
        }
