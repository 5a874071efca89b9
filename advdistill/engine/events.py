"""What a run tells the world, and those who listen. Events are frozen: a reporter can watch a run, not change it."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from advdistill.engine.count import Count
    from advdistill.engine.evaluate import Results
    from advdistill.engine.types import Clock


@dataclass(frozen=True)
class Event:
    """Something that happened in a run."""


@dataclass(frozen=True)
class RunStarted(Event):
    """Models and data stand.

    Attributes:
        name: the recipe's name. dir: the run's folder. steps: optimizer steps in all. first: the step it starts at,
        above 0 after a resume. plan: lines that say what will be trained, on what, how.
    """

    name: str
    dir: Path
    steps: int
    first: int
    plan: Mapping[str, str]


@dataclass(frozen=True)
class StepDone(Event):
    """One batch has been learned.

    Attributes:
        losses: means over the global batch, `loss` first, then each term, then reported scalars.
        lr: learning rate of each group. images_per_second, seconds_left: of training so far.
    """

    clock: Clock
    losses: Mapping[str, float]
    lr: Mapping[str, float]
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Probed(Event):
    """Clean and robust accuracy on the probe's samples.

    Attributes:
        watched: numbers that signs of failure are read from, by name; see `Symptom`.
        seconds: of training so far, over all resumptions; probes, measuring and saving do not count.
        passes: who -> "forward" and "backward" -> images that went through in training so far, in all processes.
    """

    clock: Clock
    clean: Count
    robust: Count | None
    watched: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    passes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Symptom(Event):
    """A sign that the training fails, told once a run.

    Attributes:
        name: of the sign, like "teacher-forgets"; see `advdistill.engine.signatures`. who: shows it.
        value: what was seen. threshold: what it should not have crossed.
        message: both in words. advice: what to change in the recipe.
    """

    clock: Clock
    name: str
    who: str
    value: float
    threshold: float
    message: str
    advice: str


@dataclass(frozen=True)
class Measuring(Event):
    """An evaluation is under way: `done` of `total` samples of `protocol` on `subject`."""

    subject: str
    protocol: str
    done: int
    total: int


@dataclass(frozen=True)
class Measured(Event):
    """A model has been through the protocols; `moment` is "before" or "after" training."""

    moment: str
    results: Results


@dataclass(frozen=True)
class Saved(Event):
    """A file has been written, whole."""

    path: Path
    clock: Clock


@dataclass(frozen=True)
class Warned(Event):
    """Something to know that does not stop the run."""

    message: str


@dataclass(frozen=True)
class Examples(Event):
    """Images to look at.

    Attributes:
        clean: (N, 3, H, W) in [0, 1]. adversarial: subject -> (N, 3, H, W), each made on that subject itself.
        labels: N class names. said: subject -> N pairs (what it says of clean, of its own adversarial), each as
        (class name, probability).
        eps: the radius they were made with. norm: its norm.
    """

    clean: Tensor
    adversarial: Mapping[str, Tensor]
    labels: tuple[str, ...]
    said: Mapping[str, list[tuple[tuple[str, float], tuple[str, float]]]]
    eps: float
    norm: str


@dataclass(frozen=True)
class RunFinished(Event):
    """All steps are done and measured. `results`: every row of the final table, in order."""

    clock: Clock
    results: tuple[Results, ...]
    dir: Path
    seconds: float


@dataclass(frozen=True)
class RunStopped(Event):
    """The run ended early; `resume` is the command that goes on, if there is something to go on from."""

    clock: Clock
    reason: str
    resume: str | None


class Reporter(ABC):
    """A listener.

    Args:
        config: the validated settings of this reporter.
    """

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def handle(self, event: Event) -> None:
        """Take note of `event`. Must not raise for events it does not know."""

    def close(self) -> None:  # noqa: B027 - most reporters hold nothing open
        """Called once, however the run ended."""


class Reporters:
    """Announces events to reporters. One that fails is told off once and heard no more; the run goes on."""

    def __init__(self, listeners: Sequence[Reporter]) -> None:
        self._listeners = list(listeners)

    def tell(self, event: Event) -> None:
        """Announce `event` to every reporter."""
        for listener in list(self._listeners):
            try:
                listener.handle(event)
            except Exception as error:  # whatever a reporter does, the run must live
                self._dismiss(listener, error)

    def close(self) -> None:
        """Close every reporter."""
        for listener in list(self._listeners):
            try:
                listener.close()
            except Exception as error:  # as above
                self._dismiss(listener, error)

    def _dismiss(self, listener: Reporter, error: Exception) -> None:
        self._listeners.remove(listener)
        text = f"reporter {type(listener).__name__} failed and is switched off: {type(error).__name__}: {error}"
        print(f"warning: {text}", file=sys.stderr)
        self.tell(Warned(text))
