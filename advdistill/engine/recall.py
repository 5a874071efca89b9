"""What frozen teachers say of the training images, kept from one epoch to the next, or on disk for later runs.

A frozen teacher's answer to an image that no augmentation has changed is the same in every epoch. It is kept when it is
first found, so nothing is computed that would not have been, and what nobody asks for costs nothing. Adversarial and
augmented views are new each time; they are never kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advdistill.engine import checkpoint, timing
from advdistill.engine.build import Parts
from advdistill.engine.data import Split
from advdistill.engine.distributed import ALONE, World
from advdistill.engine.participant import Participant
from advdistill.errors import DataError, RunError, RunWarning

if TYPE_CHECKING:
    from advdistill.recipe.model import Train
    from advdistill.recipe.resolve import Recipe

ON_DEVICE = 2**28
"""Larger tables, in bytes, stay in the host's memory (inferred)."""


class Room:
    """How many bytes may still be kept."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, wanted: int) -> bool:
        """Whether they fit, and then they are taken."""
        fits = wanted <= self.left
        self.left -= wanted * fits
        return fits


class Recall:
    """What one teacher says first of the images of a split: features, or else logits; (N, D), as they become known.

    Args:
        who: for warnings.
        count: N.
        room: what tables may take.
        world: who fills the table together.
        path: the file on disk; None: there is none.
    """

    def __init__(self, who: str, count: int, room: Room, world: World = ALONE, path: Path | None = None) -> None:
        self._who, self._count, self._room, self._world, self._path = who, count, room, world, path
        self._known = torch.zeros(count, dtype=torch.bool)
        self._table: Tensor | None = None
        self._fresh: list[Tensor] = []
        self._full = self._closed = False
        if path is not None and path.exists():
            self._take_up(path)

    def __call__(self, samples: Tensor, images: Tensor, look: Callable[[Tensor], Tensor]) -> Tensor:
        """What it says of some images, (n, D); those that are not known yet are looked at.

        Args:
            samples: (n,) long, their indices in the split.
            images: (n, 3, H, W) as the split has them.
            look: the teacher's forward pass.
        """
        if self._closed:
            return look(images)
        if not self._full:  # else nothing has to be known on the host, for which a GPU would be waited for
            here = samples.cpu()
            known = self._known[here]
            if not known.all():
                new = ~known
                whole = not known.any()
                found = look(images if whole else images[new.to(images.device)]).detach()
                if self._put(here[new], found):
                    self._fresh.append(here[new])
                if whole:
                    return found
        assert self._table is not None
        return self._table[samples.to(self._table.device)].to(images.device)

    def share(self) -> None:
        """Tell the other processes what was found since the last time, and the disk; all processes call it together."""
        fresh = torch.cat([*self._fresh, torch.empty(0, dtype=torch.long)])
        self._fresh.clear()
        mine = (fresh, self._table[fresh.to(self._table.device)].cpu()) if self._table is not None else None
        told = [found for found in self._world.gather(mine) if found is not None and len(found[0])]
        for samples, rows in told if self._world.size > 1 else ():
            self._put(samples, rows)
        self._full = bool(self._known.all())
        if told and self._world.main and self._path is not None and not self._closed:
            self._write(self._path)

    def _put(self, samples: Tensor, rows: Tensor) -> bool:
        """Keep rows (n, D). Whether there is room for the table."""
        if self._table is None and not self._closed:
            needed = _table(self._count, rows)
            if not self._room.take(needed):
                self._close(f"would take {needed / 2**20:,.0f} MiB, more than is left of train.cache_limit")
                return False
            place = rows.device if needed <= ON_DEVICE else torch.device("cpu")
            self._table = torch.zeros(self._count, *rows.shape[1:], dtype=rows.dtype, device=place)
        if self._table is None:
            return False
        self._table[samples.to(self._table.device)] = rows.to(self._table.device)
        self._known[samples] = True
        return True

    def _close(self, why: str) -> None:
        self._closed, self._table = True, None
        warnings.warn(
            f"what the {self._who} says of training images is not kept, but found anew in every epoch: it {why}",
            RunWarning,
            stacklevel=2,
        )

    def _take_up(self, path: Path) -> None:
        try:
            facts, tensors = checkpoint.read(path)
            known, said = tensors["known"], tensors["said"]
            if facts["sha256"] != _sha256(known, said) or len(known) != self._count or len(said) != self._count:
                raise DataError("its content is not what was written")
        except (DataError, KeyError) as error:
            warnings.warn(
                f"{path} cannot be used, what the {self._who} says is found anew: {error}", RunWarning, stacklevel=2
            )
            return
        if not self._room.take(said.nbytes):
            self._close(f"takes {said.nbytes / 2**20:,.0f} MiB, more than is left of train.cache_limit")
            return
        self._known, self._table, self._full = known, said, bool(known.all())

    def _write(self, path: Path) -> None:
        assert self._table is not None
        said = self._table.cpu()
        # Two runs may write the same file at once; each has a name of its own until it is whole.
        whole = path.with_suffix(f".{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            facts = {"format": checkpoint.FORMAT, "sha256": _sha256(self._known, said)}
            checkpoint.write(whole, {"known": self._known, "said": said}, facts)
            whole.replace(path)
        except (RunError, OSError) as error:
            self._path = None
            warnings.warn(
                f"what the {self._who} says is kept in memory only, for this run: {path.parent} cannot be written "
                f"({error}); see train.cache_dir",
                RunWarning,
                stacklevel=2,
            )


def attach(recipe: Recipe, parts: Parts, split: Split, again: bool, world: World = ALONE) -> list[Recall]:
    """Let the frozen teachers of a run keep what they say of training images, where that is sound and of use: nothing
    is augmented, the teacher stays as it is, and its answer depends on the image alone.

    Args:
        again: the run sees images more than once.

    Returns:
        Whom to tell when an epoch ends, see `Recall.share`.
    """
    train, kept = recipe.train, []
    room, folder = Room(train.cache_limit), Path(train.cache_dir).expanduser()
    for role, teacher in _who_may(train, parts.teachers, split, again).items():
        path = None
        if train.cache_teachers == "disk":
            path = folder / f"{role}-{_key(recipe, parts, role, split)}.safetensors"
        teacher.recall = Recall(teacher.name, len(split), room, world, path)
        kept.append(teacher.recall)
    return kept


def _who_may(train: Train, teachers: Mapping[str, Participant], split: Split, again: bool) -> dict[str, Participant]:
    """Those of the teachers who may keep what they say, by role."""
    if train.cache_teachers == "off" or split.augments or not (again or train.cache_teachers == "disk"):
        return {}
    return {
        role: teacher
        for role, teacher in teachers.items()
        if not teacher.changes and teacher.model.batch_independent and teacher.model.deterministic
    }


@contextlib.contextmanager
def foreseen(
    train: Train, teachers: Mapping[str, Participant], split: Split, again: bool
) -> Iterator[dict[str, float]]:
    """Steps inside keep nothing, but tell what would be kept.

    Args:
        again: as for `attach`.

    Yields:
        Name of a teacher -> what its answers that would be kept have cost so far, as whoever watches counts (0 where
        nobody does, see `timing`); those alone who were asked, and whose table would be within the limit.
    """
    room, found = Room(train.cache_limit), dict[str, float]()

    def see(teacher: Participant, _: Tensor, images: Tensor, look: Callable[[Tensor], Tensor]) -> Tensor:
        with timing.billed() as bill:
            said = look(images)
        if teacher.name in found or room.take(_table(len(split), said)):
            found[teacher.name] = found.get(teacher.name, 0.0) + sum(bill.spent.values())
        return said

    asked = _who_may(train, teachers, split, again).values()
    for teacher in asked:
        teacher.recall = partial(see, teacher)
    try:
        yield found
    finally:
        for teacher in asked:
            teacher.recall = None


def _table(count: int, rows: Tensor) -> int:
    """Bytes of so many rows like these (n, D)."""
    return int(count * rows[0].numel() * rows.element_size())


def _key(recipe: Recipe, parts: Parts, role: str, split: Split) -> str:
    """Hash of all that the answers depend on: every weight, every setting and version, every image."""
    teacher = parts.teachers[role]
    told = {
        "teacher": recipe.tree["teachers"][role],
        "model": teacher.model.describe(),
        "classes": [teacher.classes.names, teacher.classes.templates],
        "data": recipe.tree["data"],
        "split": [split.digest, split.version, tuple(split.load(0).shape)],
        "precision": recipe.train.precision,
        "device": parts.device.type,
        "plugins": list(recipe.providers),
        "versions": checkpoint.versions(),
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in sorted(teacher.model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:32]


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
