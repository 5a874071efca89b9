"""A strategy that stumbles, and says when it steps; for the tests of studies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from advdistill import Config, Losses, Step, Strategy, StrategySpec, cross_entropy, hookimpl
from advdistill.errors import DataError

PAUSE = "STUMBLING_PAUSE"
"""Variable that tells how many seconds a step takes; no setting, which would make other runs of the same ones."""


class Stumble(Config):
    """What happens, when and how often."""

    how: Literal["nothing", "killed", "error", "bug", "exit", "diverges"] = "nothing"
    """What happens."""
    step: int = 1
    """Steps that go well before."""
    once: str = ""
    """A file that is made when it happens; where it is there, nothing does. None: it happens always."""


class Stumbling(Strategy):
    """Cross-entropy on attacked images, but for what happens."""

    def step(self, s: Step) -> Losses:
        time.sleep(float(os.environ.get(PAUSE, "0")))
        if s.clock.step == self.config.step:
            self._stumble(self.config.how)
        loss = cross_entropy(s.student(s.attack()), s.labels)
        lost = self.config.how == "diverges" and s.clock.step == self.config.step
        return Losses(loss=loss * float("nan") if lost else loss)

    def _stumble(self, how: str) -> None:
        once = Path(self.config.once)
        if self.config.once:
            if once.exists():
                return
            once.touch()
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "error":
            raise DataError("an image is broken", "mend it")
        if how == "bug":
            raise ZeroDivisionError("a bug of a plugin")
        if how == "exit":
            raise SystemExit(3)


@hookimpl
def advdistill_strategies() -> Iterator[StrategySpec]:
    yield StrategySpec(name="stumbling", target=Stumbling, config=Stumble, attack="labels")
