"""Two pictures side by side: classes that are combinations, some of which nobody has seen.

Ten kinds of picture make a hundred ordered pairs (a, b), grouped by (b - a) mod 10: within a group every kind stands
once on the left and once on the right. Names come group after group: 0, 1, 9, 2, 8 are the base half, 5, 4, 6, 3, 7 the
new half, and 3 and 7, the last 20 names, are left out of the shipped models' pre-training. Each of these sets holds
(b, a) with (a, b), so that changing places never leads out of it.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from advdistill import ClassSet, Dataset, MissingSplit, Noise, Split, few_shot
from advdistill_demo import configs
from advdistill_demo.digits import NAMES, shifted

KINDS = 10
SEEN, UNSEEN = (0, 1, 9, 2, 8, 5, 4, 6), (3, 7)
"""Groups of combinations, by (right - left) mod 10, in the order of the class names."""
GROUPS = {"all": SEEN + UNSEEN, "seen": SEEN, "unseen": UNSEEN}
TEST, VAL = 40, 20
"""Digits of each kind."""


def combinations(which: str) -> list[tuple[int, int]]:
    """Ordered pairs of kinds of "all", "seen" or "unseen" combinations, in the order of their class names."""
    return [(left, (left + group) % KINDS) for group in GROUPS[which] for left in range(KINDS)]


def deal(
    members: Sequence[Sequence[int]], which: str, each: int, rng: random.Random
) -> tuple[list[tuple[int, int]], list[int]]:
    """Pairs of pictures, `each` for every combination, in which all pictures of a kind occur equally often.

    Every picture stands on the left k times and on the right k times before any stands there k + 1 times, and never
    beside itself.

    Args:
        members: for each kind its pictures, two or more.
        which: combinations, as in `GROUPS`. rng: moved on.

    Returns:
        (left, right) pictures, combination after combination, and each pair's place in `combinations(which)`.
    """
    uses = each * len(GROUPS[which])
    lefts, rights = [], []
    for some in members:
        left: list[int] = []
        right: list[int] = []
        while len(left) < uses:
            order = rng.sample(list(some), len(some))
            middle = len(order) // 2
            left, right = left + order, right + order[middle:] + order[:middle]
        lefts.append(left)
        rights.append(right)
    pairs, places = [], []
    for place, (one, two) in enumerate(combinations(which)):
        dealt = slice(place // KINDS * each, (place // KINDS + 1) * each)
        pairs += list(zip(lefts[one][dealt], rights[two][dealt], strict=True))
        places += [place] * each
    return pairs, places


class Pairs(Split):
    """Pairs of pictures, put together when they are asked for.

    Args:
        tiles: (M, 1 or 3, h, w) uint8, in [0, 255]. names: M names of them.
        pairs: (left, right) tiles of each of N samples. labels: N of them.
        height: of the canvas; tiles stand in its middle. ground: level around them.
        variant: what is done to every image, see `configs.Variant`.
        shift: reach of the moves in training. flip: whether each half is mirrored every other time there.

    Attributes:
        sources: (N, 2) long; the tiles of each sample.
    """

    def __init__(
        self,
        tiles: Tensor,
        names: Sequence[str],
        pairs: Sequence[tuple[int, int]],
        labels: Sequence[int],
        *,
        height: int,
        ground: int = 0,
        variant: configs.Variant = "plain",
        shift: int = 0,
        flip: bool = False,
    ) -> None:
        self.sources = torch.tensor(pairs, dtype=torch.long).view(-1, 2)
        self.labels = torch.tensor(labels, dtype=torch.long)
        # Where there are more pairs than pictures allow, some are dealt again.
        times: Counter[tuple[int, int]] = Counter()
        self.ids = []
        for left, right in pairs:
            times[left, right] += 1
            again = f"#{times[left, right]}" if times[left, right] > 1 else ""
            self.ids.append(f"{names[left]}+{names[right]}{again}")
        self.augments = shift > 0 or flip
        self._tiles, self._height, self._ground = tiles, height, ground
        self._variant, self._shift, self._flip = variant, shift, flip

    def load(self, index: int) -> Tensor:
        pair = torch.cat(self._tiles[self.sources[index]].unbind(), dim=2)
        above, missing = divmod(self._height - pair.shape[1], 2)
        canvas = F.pad(pair, (0, 0, above, above + missing), value=self._ground)
        return _varied(canvas, self._variant).expand(3, -1, -1)

    def augment(self, canvases: Tensor, noise: Noise) -> Tensor:
        if self._flip:
            halves = torch.stack(canvases.chunk(2, dim=3), dim=1)  # (B, 2, 3, H, W / 2)
            mirrored = noise.uniform((2, 1, 1, 1), draw=1) < 0.5
            canvases = torch.cat(torch.where(mirrored, halves.flip(4), halves).unbind(1), dim=3)
        return shifted(canvases, self._shift, noise) if self._shift else canvases

    @cached_property
    def version(self) -> str:
        """Hash of the samples, the tiles, and what is done to them."""
        found = hashlib.sha256(f"{self.digest}/{self._variant}/{self._height}/{self._ground}".encode())
        found.update(self._tiles.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]


def _varied(canvas: Tensor, variant: configs.Variant) -> Tensor:
    """One image, (C, H, W) uint8, as `variant` says."""
    if variant == "inverted":
        return 255 - canvas
    if variant == "thick":
        return F.max_pool2d(canvas.float(), 3, stride=1, padding=1).to(torch.uint8)
    if variant == "blurred":
        return gaussian_blur(canvas, [7, 7], [1.0, 1.0])
    return canvas


class PairDataset(Dataset):
    """Combinations of ten kinds of picture.

    Args:
        config: its settings.
        names: of all hundred combinations, in the order of `combinations("all")`.
        tiles: (M, 1 or 3, h, w) uint8. ids: M names of them.
        members: split -> for each kind its tiles; no tile is in two splits.
        rounds: split -> how often a tile stands on each side, at most, unless there are too few for one pair of each
            combination; of "train" `config.pairs` decides.
        canvas: what else `Pairs` takes.
    """

    config: configs.PairSet

    def __init__(
        self,
        config: configs.PairSet,
        names: Sequence[str],
        tiles: Tensor,
        ids: Sequence[str],
        members: Mapping[str, Sequence[Sequence[int]]],
        rounds: Mapping[str, int],
        **canvas: Any,
    ) -> None:
        super().__init__(config)
        which = config.combinations
        all_, own = combinations("all"), combinations(which)
        known = own if config.names == "own" else all_
        self.classes = ClassSet(tuple(names[all_.index(pair)] for pair in known), tuple(config.templates))
        self._splits: dict[str, Split] = {}
        for split, kinds in members.items():
            rng = random.Random(f"{config.split_seed}/{split}/{which}")
            fewest = min(map(len, kinds))
            if fewest < 2:
                continue
            each = max(rounds[split] * fewest // len(GROUPS[which]), 1) if split in rounds else config.pairs
            pairs, places = deal(kinds, which, each, rng)
            if split == "train" and config.shots:
                drawn = few_shot(
                    torch.tensor(places),
                    config.shots,
                    random.Random(config.shots_seed),
                    [names[all_.index(pair)] for pair in own],
                ).tolist()
                pairs, places = [pairs[i] for i in drawn], [places[i] for i in drawn]
            combined = [own[place] for place in places]
            if config.variant == "swapped":
                pairs, combined = [pair[::-1] for pair in pairs], [pair[::-1] for pair in combined]
            labels = [known.index(pair) for pair in combined]
            self._splits[split] = Pairs(tiles, ids, pairs, labels, variant=config.variant, shift=config.shift, **canvas)

    def split(self, name: str) -> Split:
        if name not in self._splits:
            raise MissingSplit(
                f"there is no split {name!r}, or not two pictures of each kind in it", "use train, val or test"
            )
        return self._splits[name]

    def record(self) -> dict[str, Any]:
        return recorded(self.config, self._splits)


class NumberPairs(PairDataset):
    """Two real handwritten digits side by side: "the number three seven.", (3, 32, 32) uint8.

    The scans of `digits`, 40 of each kind for testing, 20 for validation and the other 1,197 for training; a pair never
    mixes them. Test and validation have 400 pairs, equally many of each combination; every test digit stands once on
    the left and once on the right, every validation digit twice. Scans are 16x16 on a canvas of 32x32; no pixel is
    saturated.
    """

    config: configs.NumberPairs

    def __init__(self, config: configs.NumberPairs) -> None:
        source = load_digits()
        # Levels are 0..16.
        small = (torch.from_numpy(source.images).float().unsqueeze(1) + 0.5) / 17 - 0.5
        tiles = F.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
        tiles = (127.5 + 255 * config.contrast * tiles).round().to(torch.uint8)
        members = divided(torch.from_numpy(source.target), {"test": TEST, "val": VAL}, NAMES, config.split_seed)
        super().__init__(
            config,
            [f"{NAMES[left]} {NAMES[right]}" for left, right in combinations("all")],
            tiles,
            [f"digits/{index:04d}" for index in range(len(tiles))],
            members,
            {"test": 1, "val": 2},
            height=32,
            ground=int(tiles.min()),
        )


def recorded(config: configs.PairSet | configs.Photos, splits: Mapping[str, Split]) -> dict[str, Any]:
    """Counts and digests of the splits, the seeds that made them, and a few-shot draw's samples."""
    facts: dict[str, Any] = {
        "split_seed": config.split_seed,
        "shots": config.shots,
        "shots_seed": config.shots_seed,
        "splits": {name: {"count": len(split), "sha256": split.digest} for name, split in splits.items()},
    }
    if config.shots:
        facts["ids"] = {"train": list(splits["train"].ids)}
    return facts


def divided(labels: Tensor, counts: Mapping[str, int], names: Sequence[str], seed: int) -> dict[str, list[list[int]]]:
    """Split -> for each kind its pictures: as many as `counts` says, drawn by `seed`; the others to train on.

    Args:
        labels: (M,) long, in [0, len(names)).

    Raises:
        DataError: there are not as many of some kind; names it.
    """
    left, rng = torch.arange(len(labels)), random.Random(seed)
    members = {}
    for split, count in counts.items():
        drawn = left[few_shot(labels[left], count, rng, names)]
        left = left[~torch.isin(left, drawn)]
        members[split] = [drawn[labels[drawn] == kind].tolist() for kind in range(len(names))]
    return members | {"train": [left[labels[left] == kind].tolist() for kind in range(len(names))]}
