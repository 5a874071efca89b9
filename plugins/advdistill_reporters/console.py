"""Progress for people: live on a terminal, lines elsewhere. All on stderr; results belong to stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import rich.console
from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from advdistill import (
    Count,
    Event,
    Measured,
    Measuring,
    Probed,
    Reporter,
    RunFinished,
    RunStarted,
    RunStopped,
    StepDone,
    Symptom,
    Warned,
)

_QUIET_SECONDS = 5.0


class ConsoleReporter(Reporter):
    """Plan, progress, losses by term, probes, and every measurement as it comes.

    On a terminal the last lines are live. Elsewhere a line is written at every tenth of the run, and between these
    at most every 5 seconds or hundredth of the expected time, whichever is longer.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._console = rich.console.Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._steps = self._first = 0
        self._done: StepDone | None = None
        self._measuring: Measuring | None = None
        self._probes: list[Probed] = []
        self._spoke = self._began = time.monotonic()

    def handle(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, StepDone):
            self._measuring = None
            previous, self._done = self._done, event
            self._on_step(event, previous.clock.step if previous else self._first)
        elif isinstance(event, Probed):
            self._measuring = None
            self._probes.append(event)
            if not self._live:
                self._say(self._probe_line())
        elif isinstance(event, Measuring):
            self._measuring = event
            if not self._live and self._silent_for(_QUIET_SECONDS):
                self._say(_measuring_line(event))
        elif isinstance(event, Measured):
            self._measuring = None
            self._say(_measured_line(event))
        elif isinstance(event, Warned):
            self._say(Text.assemble(("warning: ", "bold yellow"), event.message))
        elif isinstance(event, Symptom):
            where = (f" (step {event.clock.step:,})", "dim")
            self._say(Text.assemble(("symptom: ", "bold red"), event.message, where, "; ", event.advice))
        elif isinstance(event, RunFinished):
            self._finish(event)
        elif isinstance(event, RunStopped):
            self.close()
        if self._live:
            self._live.update(self._view())

    def close(self) -> None:
        if self._live:
            self._measuring = None
            self._live.update(self._view())
            self._live.stop()
            self._live = None

    def _start(self, event: RunStarted) -> None:
        self.close()
        self._steps, self._first = event.steps, event.first
        self._say(Text.assemble((event.name, "bold"), "  ", (str(event.dir), "dim")))
        width = max(map(len, event.plan), default=0)
        for key, value in event.plan.items():
            self._say(Text.assemble((f"  {key:<{width}}  ", "dim"), value))
        if event.first:
            self._say(Text(f"  taken up after step {event.first:,} of {event.steps:,}"))
        self._began = time.monotonic()
        if sys.stderr.isatty() and not self._console.is_dumb_terminal and not self.config.plain:
            # stdout is for results, and must reach whoever reads it.
            self._live = Live(self._view(), console=self._console, refresh_per_second=8, redirect_stdout=False)
            self._live.start()

    def _on_step(self, event: StepDone, previous: int) -> None:
        if self._live:
            return
        step, steps = event.clock.step, event.clock.steps
        expected = time.monotonic() - self._began + event.seconds_left
        tenth = step * 10 // steps > previous * 10 // steps
        if tenth or self._silent_for(max(_QUIET_SECONDS, expected / 100)):
            self._say(Text(f"{_pace(event)}  {_numbers(event.losses)}"))

    def _finish(self, event: RunFinished) -> None:
        self.close()
        self._say(Text.assemble(f"done in {_duration(event.seconds)}; all of it is in ", (str(event.dir), "bold")))

    def _silent_for(self, seconds: float) -> bool:
        return time.monotonic() - self._spoke >= seconds

    def _say(self, text: Text) -> None:
        self._spoke = time.monotonic()
        # Whole lines where a program may read them; folded to the window where a person does.
        self._console.print(text, soft_wrap=not self._console.is_terminal)

    def _view(self) -> RenderableType:
        lines: list[RenderableType] = []
        if self._done:
            clock = self._done.clock
            bar = ProgressBar(total=clock.steps, completed=clock.step, width=min(64, self._console.width))
            # A bar alone does not end its line.
            lines += [Padding(bar), Text(_pace(self._done)), Text(_numbers(self._done.losses))]
        if self._probes:
            lines.append(self._probe_line())
        if self._measuring:
            lines.append(_measuring_line(self._measuring))
        return Group(*lines)

    def _probe_line(self) -> Text:
        first, last = self._probes[0], self._probes[-1]
        line = Text(f"probe at step {last.clock.step:,}")
        for name in ("clean", "robust"):
            now, then = getattr(last, name), getattr(first, name)
            if now:
                line.append(f"  {name} {_percent(now)}", style="bold")
            if now and then and last is not first:
                change = 100 * (now.share - then.share)
                line.append(f" ({change:+.1f})", style="green" if change > 0 else "red" if change < 0 else "")
        if last is not first:
            line.append(f"  since step {first.clock.step:,}", style="dim")
        return line


def _pace(event: StepDone) -> str:
    return (
        f"step {event.clock.step:,}/{event.clock.steps:,}  {event.images_per_second:,.0f} img/s  "
        f"{_duration(event.seconds_left)} left"
    )


def _measuring_line(event: Measuring) -> Text:
    return Text(f"measuring {event.subject} · {event.protocol}  {event.done:,}/{event.total:,}", style="dim")


def _measured_line(event: Measured) -> Text:
    row = event.results
    line = Text.assemble((row.subject, "bold"))
    for protocol, count in row.counts.items():
        line.append(f"  {protocol} {_percent(count)}")
    return line.append("  (stored with the model)", style="dim") if row.stored else line


def _percent(count: Count) -> str:
    return f"{100 * count.share:.1f} %"


def _numbers(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")
