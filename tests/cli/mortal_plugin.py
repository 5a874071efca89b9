"""A strategy whose process comes to grief at a step, and two classes of toys, for test_many_processes.py."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Literal

from advdistill import (
    ClassSet,
    Config,
    DatasetSpec,
    Losses,
    Step,
    Strategy,
    StrategySpec,
    cross_entropy,
    hookimpl,
)
from advdistill.errors import DataError
from advdistill.testing import ToyDataset


class Fate(Config):
    """What happens, when and to whom."""

    how: Literal["nothing", "killed", "error"] = "nothing"
    """What happens."""
    step: int = 0
    """Steps that go well before."""
    rank: int = 1
    """To which process; -1: to all."""
    pause: float = 0.0
    """Seconds that every step takes."""


class Mortal(Strategy):
    """Cross-entropy on attacked images, until fate strikes a process that is one of several."""

    def step(self, s: Step) -> Losses:
        time.sleep(self.config.pause)
        struck = self.config.rank in (-1, int(os.environ.get("RANK", "-2")))
        if struck and s.clock.step == self.config.step:
            if self.config.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.config.how == "error":
                raise DataError("an image is broken", "mend it")
        return Losses(loss=cross_entropy(s.student(s.attack()), s.labels))


class Pair(ToyDataset):
    """Two classes."""

    classes = ClassSet(("ant", "bee"), ("a photo of a {}.",))


@hookimpl
def advdistill_datasets() -> Iterator[DatasetSpec]:
    yield DatasetSpec(name="pair", target=Pair)


@hookimpl
def advdistill_strategies() -> Iterator[StrategySpec]:
    yield StrategySpec(name="mortal", target=Mortal, config=Fate, attack="labels")
