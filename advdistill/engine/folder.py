"""A run's folder: one run at a time, never overwritten silently, its recipe beside its results."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from advdistill.engine.checkpoint import write_bytes, write_json
from advdistill.errors import RunError
from advdistill.recipe.dump import to_yaml

if TYPE_CHECKING:
    from advdistill.engine.evaluate import Results
    from advdistill.recipe.resolve import Recipe

_OURS = (
    "last.safetensors",
    "best.safetensors",
    "resume.safetensors",
    "cost.json",
    "results.json",
    "recipe.yaml",
    "metrics.jsonl",
    "manifest.json",
)


class RunFolder:
    """The folder `save.dir` of a recipe, locked while it is entered. Nothing in it changes before `begin`.

    Attributes:
        path: the folder. resuming: what is in it is to be continued.

    Args:
        recipe: whose run it is.
        resume: it holds that run's beginning.
        overwrite: a run that is in it may go.
        main: this process locks and writes; else it only knows where the folder is.

    Raises:
        RunError: another process is running in it, it holds a run already, or it cannot be written.
    """

    def __init__(self, recipe: Recipe, *, resume: bool, overwrite: bool, main: bool = True) -> None:
        self.path = Path(recipe.save.dir)
        self.resuming = resume
        self._recipe, self._overwrite, self._main = recipe, overwrite, main
        self._lock: IO[str] | None = None

    @property
    def ours(self) -> bool:
        """Whether this process writes in it."""
        return self._main

    @property
    def resume_point(self) -> Path:
        """Where the state to go on from lies."""
        return self.path / "resume.safetensors"

    def __enter__(self) -> RunFolder:
        if not self._main:
            return self
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise RunError(f"cannot write to {self.path}: {error.strerror}", "choose another save.dir=…") from error
        try:
            # lockf, not flock: workers that decode images would inherit a flock and outlive a killed run by seconds.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise RunError(
                f"another run is writing to {self.path}", "wait for it, or choose another save.dir=…"
            ) from error
        held = self._held()
        if held and not self.resuming and not self._overwrite:
            self._lock.close()
            finished = "results.json" in held
            raise RunError(
                f"{self.path} holds {'a finished run' if finished else 'a run that is not finished'}",
                "choose another save.dir=…, or --overwrite it"
                + ("" if finished else f", or go on with: advdistill train --resume {self.path}"),
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock:
            self._lock.close()

    def _held(self) -> list[str]:
        return [name for name in _OURS if (self.path / name).exists()]

    def begin(self) -> None:
        """The run starts: what it overwrites goes, its recipe is written. A run to be continued stays as it is."""
        if self.resuming or not self._main:
            return
        for name in self._held():
            (self.path / name).unlink()
        write_bytes(self.path / "recipe.yaml", to_yaml(self._recipe.tree).encode())

    def finish(self, rows: Sequence[Results], cost: Mapping[str, Any]) -> None:
        """Write `cost.json`, what training took, and `results.json`; the run is finished once that stands."""
        if not self._main:
            return
        write_json(self.path / "cost.json", cost)
        write_json(self.path / "results.json", [row.to_json() for row in rows])
