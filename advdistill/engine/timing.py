"""Where the seconds of a step go. Costs nothing while nobody watches."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class Watch:
    """Seconds by phase; a phase inside another one is not counted twice.

    Attributes:
        seconds: phase -> seconds so far. passes: (who, "forward" | "backward") -> images that went through.

    Args:
        device: whose work is waited for wherever a phase changes.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds, self.passes = defaultdict[str, float](float), Counter[tuple[str, str]]()
        self._device, self._phases, self._since = device, ["other"], time.perf_counter()

    def turn(self) -> None:
        """What has passed belongs to the phase on top."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[self._phases[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens in here belongs to `name`; whatever models do under attack belongs to the attack, but class
        features, which the whole step uses, are always their own."""
        if "attack" in self._phases and name != "class features":
            yield
            return
        self.turn()
        self._phases.append(name)
        try:
            yield
        finally:
            self.turn()
            self._phases.pop()

    def becomes(self, name: str) -> None:
        """From now on, until the present phase ends, time belongs to `name`."""
        self.turn()
        self._phases[-1] = name


_watch: Watch | None = None


@contextlib.contextmanager
def watched(device: torch.device) -> Iterator[Watch]:
    """Everything inside is timed."""
    global _watch
    before, _watch = _watch, Watch(device)
    try:
        yield _watch
    finally:
        _watch.turn()
        _watch = before


def phase(name: str) -> contextlib.AbstractContextManager[None]:
    """Work that belongs to `name`, if somebody watches."""
    return _watch.phase(name) if _watch else contextlib.nullcontext()


def passed(who: str, look: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """`look(images)`, `who`'s pass over them; its backward, where there is one, belongs to `who` as well."""
    watch = _watch
    if watch is None:
        return look(images)
    with watch.phase(who):
        found = look(images)
    watch.passes[who, "forward"] += len(images)
    if found.requires_grad:

        def arrives(gradient: Tensor) -> None:
            watch.passes[who, "backward"] += len(images)
            if "attack" not in watch._phases:
                watch.becomes(who)

        found.register_hook(arrives)
    return found
