"""Where an evaluation is kept while it runs: pack by pack, so that nothing finished is ever done twice."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from advdistill.engine import checkpoint
from advdistill.engine.attack import Tally
from advdistill.engine.distributed import ALONE, World
from advdistill.recipe.header import FORMAT


@dataclass(frozen=True)
class Pack:
    """Samples that went through one stage of an attack together; tensors (n,) on the CPU, fields as in `Outcome`.

    Attributes:
        positions: long; each sample's place among those drawn.
        images: (n, 3, H, W) what the attack ended with; None where it was not kept.
        cross_entropy: of `images`, float64.
    """

    positions: Tensor
    right: Tensor
    claimed: Tensor
    rounded: Tensor
    size: Tensor
    cross_entropy: Tensor
    nearest: Tensor
    forwards: Tensor
    backwards: Tensor
    blank: Tensor
    zeros: Tensor
    images: Tensor | None = None

    @classmethod
    def of(cls, positions: Tensor, images: Tensor, size: Tensor, claimed: Tensor, tally: Tally) -> Pack:
        """What an attack says itself, before the verdict."""
        spent = {field.name: getattr(tally, field.name).cpu() for field in fields(tally)}
        claimed = claimed.cpu()
        nothing = torch.full((len(positions),), torch.nan, dtype=torch.float64)
        return cls(positions, claimed, claimed, claimed, size.cpu(), nothing, **spent, images=images.cpu())

    def judged(self, images: Tensor, right: Tensor, cross_entropy: Tensor, rounded: Tensor) -> Pack:
        """With the verdict on `images`."""
        return replace(self, images=images, right=right, cross_entropy=cross_entropy, rounded=rounded)


class Store(ABC):
    """Keeps packs by the key of a statement and the number of a stage."""

    @abstractmethod
    def packs(self, key: str, stage: int) -> Iterator[Pack]:
        """Those that are finished, one at a time."""

    @abstractmethod
    def keep(self, key: str, stage: int, pack: Pack) -> Tensor:
        """Store a pack's (n, 3, H, W) images losslessly, and give back what is stored: verdicts rest on that."""

    @abstractmethod
    def add(self, key: str, stage: int, pack: Pack) -> Pack:
        """Note a judged pack as finished, once its images are kept."""

    @abstractmethod
    def clean(self, key: str, look: Callable[[], dict[str, Tensor]]) -> Mapping[str, Tensor]:
        """What the model says of clean images: `look()`, or what it gave the last time under that key."""


class Memory(Store):
    """Keeps nothing but what was said of clean images; for measurements that belong to a run."""

    def __init__(self) -> None:
        self._clean: dict[str, dict[str, Tensor]] = {}

    def packs(self, key: str, stage: int) -> Iterator[Pack]:
        return iter(())

    def keep(self, key: str, stage: int, pack: Pack) -> Tensor:
        assert pack.images is not None
        return pack.images

    def add(self, key: str, stage: int, pack: Pack) -> Pack:
        return pack

    def clean(self, key: str, look: Callable[[], dict[str, Tensor]]) -> Mapping[str, Tensor]:
        if key not in self._clean:
            self._clean[key] = look()
        return self._clean[key]


class Folder(Store):
    """A folder with one file of outcomes for each pack, and one of images beside it.

    Args:
        path: the folder; made if it is not there.
        model: what identifies the attacked model; part of every name, so that nobody else's images are found.
        images: keep them once they have been judged.
        world: processes that share the folder; each writes the packs that it made, and all see them.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, path: Path, model: str, images: bool = True, world: World = ALONE) -> None:
        self._path, self._model, self._images, self._world = path, model, images, world

    def packs(self, key: str, stage: int) -> Iterator[Pack]:
        for file in sorted(self._place(key).glob(f"{stage:02d}-*.outcome.safetensors")):
            yield self._read(file)

    def keep(self, key: str, stage: int, pack: Pack) -> Tensor:
        assert pack.images is not None
        place = self._file(key, stage, pack, "images")
        checkpoint.write(place, {"images": pack.images}, {"format": FORMAT})
        return checkpoint.read(place)[1]["images"]

    def add(self, key: str, stage: int, pack: Pack) -> Pack:
        place, kept = (self._file(key, stage, pack, what) for what in ("outcome", "images"))
        tensors = {field.name: getattr(pack, field.name) for field in fields(pack) if field.name != "images"}
        checkpoint.write(place, tensors, {"format": FORMAT})
        if not self._images:
            kept.unlink()
        return pack

    def clean(self, key: str, look: Callable[[], dict[str, Tensor]]) -> Mapping[str, Tensor]:
        place = self._place(key) / "clean.safetensors"
        if not self._world.told(place.exists):
            found = look()
            if self._world.main:
                checkpoint.write(place, found, {"format": FORMAT})
        return self._world.told(lambda: checkpoint.read(place)[1])

    def _place(self, key: str) -> Path:
        """The folder of one statement on this model."""
        place = self._path / hashlib.sha256(f"{self._model}/{key}".encode()).hexdigest()[:16]
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _file(self, key: str, stage: int, pack: Pack, what: str) -> Path:
        # A position is in one finished pack of a stage at most, so that its first one names it. It is finished when its
        # outcome is written; images without one are of a pack that was cut off.
        return self._place(key) / f"{stage:02d}-{int(pack.positions[0]):06d}.{what}.safetensors"

    def _read(self, file: Path) -> Pack:
        kept = file.with_name(file.name.replace(".outcome.", ".images."))
        tensors = checkpoint.read(file)[1]
        return Pack(**tensors, images=checkpoint.read(kept)[1]["images"] if kept.exists() else None)
