"""Where the seconds of a step go, or what else a meter reads. Costs nothing while nobody watches."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

OTHER = "other"
"""What belongs to nobody: losses, bookkeeping."""

CLASS_FEATURES = "class features"
"""What models that compare images with classes know of these: encoded once a step, whoever asks first."""


@dataclass
class Bill:
    """What a piece of work cost; see `Watch`."""

    spent: dict[str, float] = field(default_factory=dict)
    passes: Counter[tuple[str, str]] = field(default_factory=Counter)
    attacks: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass
class Spent:
    """What training took so far, all processes together; over all resumptions.

    Attributes:
        steps: counted ones. seconds: of this process. passes: who -> "forward" | "backward" -> images that went
            through.
    """

    steps: int = 0
    seconds: float = 0.0
    passes: dict[str, dict[str, int]] = field(default_factory=dict)

    def step(self, seconds: float, passes: Mapping[tuple[str, str], int]) -> None:
        """One more."""
        self.steps, self.seconds = self.steps + 1, self.seconds + seconds
        for (who, way), images in passes.items():
            ways = self.passes.setdefault(who, {"forward": 0, "backward": 0})
            ways[way] += images


class Watch:
    """What was spent in each phase; a phase inside another one is not counted twice.

    Attributes:
        spent: phase -> in the meter's unit. passes: (who, "forward" | "backward") -> images that went through.
        attacks: those of the passes that an attack took; their backward goes to the pixels.

    Args:
        meter: what has been spent since some beginning.
    """

    def __init__(self, meter: Callable[[], float]) -> None:
        self.spent = defaultdict[str, float](float)
        self.passes, self.attacks = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        self._meter, self._phases, self._returning, self._since = meter, [OTHER], False, meter()

    def turn(self) -> None:
        """What has been spent belongs to the phase on top."""
        now = self._meter()
        self.spent[self._phases[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def phase(self, name: str, own: bool = False) -> Iterator[None]:
        """What happens in here belongs to `name`; but what models do under attack to the attack, unless it is their
        own: the whole step uses it."""
        if self.attacking and not own:
            yield
            return
        self.turn()
        self._phases.append(name)
        try:
            yield
        finally:
            self.turn()
            self._phases.pop()

    @contextlib.contextmanager
    def backward(self) -> Iterator[None]:
        """A backward pass, which belongs to nobody until it comes to a model: autograd goes through what was computed
        last first, so that from a model's output on it is that model's, until it comes to the next one's."""
        with self.phase(OTHER):
            self._returning = True
            try:
                yield
            finally:
                self._returning = False

    @property
    def attacking(self) -> bool:
        """Whether an attack is under way, and pays."""
        return self._phases[-1] == "attack"

    def goes(self, who: str, way: str, images: int) -> None:
        """So many images go through `who`, "forward" or "backward"."""
        self.passes[who, way] += images
        if self.attacking:
            self.attacks[who, way] += images
        if way == "backward" and self._returning:
            self.turn()
            self._phases[-1] = who

    def seen(self) -> Bill:
        """All so far."""
        self.turn()
        return Bill(dict(self.spent), self.passes.copy(), self.attacks.copy())


_watch: Watch | None = None
_counts: Counter[tuple[str, str]] | None = None


@contextlib.contextmanager
def counted() -> Iterator[Counter[tuple[str, str]]]:
    """Counts everybody's passes in here, as `Watch.passes` does."""
    global _counts
    before, _counts = _counts, Counter()
    try:
        yield _counts
    finally:
        _counts = before


@contextlib.contextmanager
def watched(meter: Callable[[], float]) -> Iterator[Watch]:
    """Everything inside is measured by `meter`, such as `clock`."""
    global _watch
    before, _watch = _watch, Watch(meter)
    try:
        yield _watch
    finally:
        _watch.turn()
        _watch = before


def wait(device: torch.device) -> None:
    """For all that was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds; the device's work is waited for whenever they are read."""

    def read() -> float:
        wait(device)
        return time.perf_counter()

    return read


def phase(name: str, own: bool = False) -> contextlib.AbstractContextManager[None]:
    """Work that belongs to `name`, if somebody watches; see `Watch.phase`."""
    return _watch.phase(name, own) if _watch else contextlib.nullcontext()


def backward() -> contextlib.AbstractContextManager[None]:
    """A backward pass, if somebody watches; see `Watch.backward`."""
    return _watch.backward() if _watch else contextlib.nullcontext()


@contextlib.contextmanager
def billed() -> Iterator[Bill]:
    """A bill, which once this is over says what was done in here, if somebody watches."""
    found, watch = Bill(), _watch
    before = watch.seen() if watch else Bill()
    yield found
    after = watch.seen() if watch else Bill()
    found.spent = {name: value - before.spent.get(name, 0) for name, value in after.spent.items()}
    found.passes, found.attacks = after.passes - before.passes, after.attacks - before.attacks


def bill(known: Bill) -> None:
    """As if what is on the bill were done once more, if somebody watches."""
    if _watch:
        for name, value in known.spent.items():
            _watch.spent[name] += value
        _watch.passes += known.passes
        _watch.attacks += known.attacks


def passed(who: str, look: Callable[[Tensor], Tensor], images: Tensor, own: bool = False) -> Tensor:
    """`look(images)`, `who`'s pass over them; its backward, where there is one, belongs to `who` as well.

    Args:
        own: even if an attack is under way.
    """
    watch, counts, count = _watch, _counts, len(images)

    def goes(way: str) -> None:
        if counts is not None:
            counts[who, way] += count
        if watch is not None:
            watch.goes(who, way, count)

    if watch is None and counts is None:
        return look(images)
    with phase(who, own):
        found = look(images)
        goes("forward")
    if found.requires_grad:
        found.register_hook(lambda _: goes("backward"))
    return found
