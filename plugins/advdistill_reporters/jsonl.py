"""metrics.jsonl: what happened, one JSON object a line, valid at any moment."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from advdistill import Clock, Event, Examples, Measuring, Reporter, Results, RunStarted

FILE = "metrics.jsonl"


def read_metrics(folder: Path, last: int) -> list[dict[str, Any]]:
    """What `metrics.jsonl` in `folder` says up to step `last`; nothing where there is no file.

    A line that a killed process left unfinished is passed over.
    """
    try:
        lines = (folder / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    kept = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and (entry.get("step") or 0) <= last:
            kept.append(entry)
    return kept


class JsonlReporter(Reporter):
    """Appends every event but progress and images to `metrics.jsonl`, each line flushed.

    A line holds `event` (`step_done`, `probed`, …), `time` (seconds since 1970) and the event's own fields; a clock
    becomes `step`, `steps`, `epoch`. A number that is not finite is null, and `not_finite` lists where. When a run is
    taken up at a step, what was written of later steps goes.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._file: IO[str] | None = None

    def handle(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._open(event.dir, event.first)
        if self._file and not isinstance(event, (Measuring, Examples)):
            self._file.write(_line(_entry(event)))
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def _open(self, folder: Path, first: int) -> None:
        self.close()
        path = folder / FILE
        fresh = path.with_name(FILE + ".tmp")
        with fresh.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, read_metrics(folder, first) if first else []))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        self._file = path.open("a", encoding="utf-8")


def _entry(event: Event) -> dict[str, Any]:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
    entry: dict[str, Any] = {"event": name, "time": round(time.time(), 3)}
    bad: list[str] = []
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        if isinstance(value, Clock):
            entry |= dataclasses.asdict(value)
        else:
            entry[field.name] = _plain(value, field.name, bad)
    return entry | ({"not_finite": bad} if bad else {})


def _plain(value: Any, where: str, bad: list[str]) -> Any:
    """`value` as JSON data; numbers that JSON does not know become null and are added to `bad`."""
    if isinstance(value, float) and not math.isfinite(value):
        bad.append(f"{where}: {value}")
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Results):
        return _plain(value.to_json(), where, bad)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        value = {name: item for name, item in held.items() if item is not None}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}", bad) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, f"{where}.{index}", bad) for index, item in enumerate(value)]
    return str(value)


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"
