"""How a study is told on stderr while it runs: bars on a terminal, a line a unit elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from advdistill.study.cells import Unit
from advdistill.study.run import Watcher

if TYPE_CHECKING:
    from rich.progress import TaskID

SHOWN = 3
"""Units under way that are named in the bar."""


def duration(seconds: float) -> str:
    """Short, in words: 45 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Lines(Watcher):
    """A line for each unit that ends: stage, how many, what it came to, how long it took, how long the stage may take
    yet."""

    def stage(self, name: str, total: int, finished: int) -> None:
        self._stage, self._total, self._done, self._before = name, total, finished, finished
        self._since = time.monotonic()
        self._begun: dict[Unit, float] = {}
        if total and finished:
            self._say(f"{name}: {finished} of {total} are finished already")

    def began(self, unit: Unit) -> None:
        self._begun[unit] = time.monotonic()

    def ended(self, unit: Unit, why: str) -> None:
        self._done += 1
        now = time.monotonic()
        times = [duration(now - self._begun.pop(unit))] if unit in self._begun else []
        if left := self._total - self._done:
            times.append(f"about {duration((now - self._since) / (self._done - self._before) * left)} left")
        told = f"failed: {why}" if why else came_to(unit)
        self._say(f"{self._stage} {self._done}/{self._total}  {unit.title}: {told}  ({', '.join(times) or 'the last'})")

    def warned(self, message: str) -> None:
        self._say(f"warning: {message}")

    def _say(self, line: str) -> None:
        typer.echo(line, err=True)


class Bars(Lines):
    """A bar for each stage, with what is under way; above it what has ended."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._bar: TaskID | None = None

    def stage(self, name: str, total: int, finished: int) -> None:
        if total and name != "needs":
            self._bar = self._progress.add_task(name, total=total, completed=finished, running="")
        super().stage(name, total, finished)

    def began(self, unit: Unit) -> None:
        super().began(unit)
        self._show()

    def ended(self, unit: Unit, why: str) -> None:
        super().ended(unit, why)
        self._show()

    def _show(self) -> None:
        if self._bar is not None:
            titles = [unit.title for unit in self._begun]
            more = f" and {len(titles) - SHOWN} more" if len(titles) > SHOWN else ""
            self._progress.update(self._bar, completed=self._done, running=", ".join(titles[:SHOWN]) + more)

    def _say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


def came_to(unit: Unit) -> str:
    """The main numbers of what is finished."""
    facts = unit.facts() if unit.measured else {}
    if "diverged" in facts:
        return f"diverged: {facts['diverged']}"
    accuracy = facts.get("accuracy")
    if not isinstance(accuracy, dict):
        return "done"
    return ", ".join(f"{heading} {100 * share:.1f} %" for heading, share in list(accuracy.items())[:4])


@contextmanager
def watching() -> Iterator[Watcher]:
    """Gives whoever tells of a study."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[running]}", style="dim"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bars(progress)
