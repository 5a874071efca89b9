"""One run of a study, from its words to its measurements; in whatever process, on whatever machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advdistill.errors import Diverged, RunError, UserError
from advdistill.recipe.suite import Suite
from advdistill.study.cells import FAILURE, LOG, Unit

if TYPE_CHECKING:
    from advdistill.engine.subject import Target

INTERRUPTED = "interrupted"
"""Why a unit failed that was told to stop; all is saved."""


def attempt(unit: Unit) -> str:
    """Do it. Returns "" once it is done, else why it could not be, which `Unit.failure` tells from then on, too.

    What it prints, warnings and tracebacks included, goes to the log in the run's folder.
    """
    folder = Path(unit.folder)
    try:
        with _claimed(folder), _logged(folder / LOG):
            (folder / FAILURE).unlink(missing_ok=True)
            why = _why(unit)
            if why and why != INTERRUPTED:
                (folder / FAILURE).write_text(f"{why}\n", encoding="utf-8")
            return why
    except (UserError, OSError) as error:
        return str(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def _why(unit: Unit) -> str:
    try:
        work(unit)
    except UserError as error:
        print(error.message, error.hint, sep="\n", file=sys.stderr)
        stopped = error.exit_code == 130
        return INTERRUPTED if stopped else ": ".join(filter(None, (error.message, error.hint)))
    except KeyboardInterrupt:
        return INTERRUPTED
    except (Exception, SystemExit) as error:  # one cell's bug must not lose the others
        traceback.print_exc()
        return f"internal error: {type(error).__name__}: {error}"
    return ""


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Only one process at a time is at work on a run. Another one waits: studies may share runs.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".unit").open("w")
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}", "choose another folder") from error
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"{folder}: another process is at work on this run; waiting for it", file=sys.stderr, flush=True)
            fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """All that is printed meanwhile goes to the end of a file, from whatever library."""
    with path.open("a", encoding="utf-8", buffering=1) as log:
        sys.stdout.flush()
        before = [os.dup(1), os.dup(2)]
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                yield
        finally:
            for number, kept in enumerate(before, 1):
                os.dup2(kept, number)
                os.close(kept)


def work(unit: Unit) -> None:
    """Train what is not trained, measure what is not measured; go on where either was cut off.

    Raises:
        UserError: as `train` and `evaluate`.
    """
    if unit.finished:
        return
    from advdistill.engine import fit
    from advdistill.hooks.registry import default_registry
    from advdistill.recipe.resolve import load_recipe

    recipe = load_recipe(unit.source, unit.words, plugins=unit.plugins)
    registry = default_registry().with_files(recipe.plugin_hashes)
    folder, began, diverged = Path(unit.folder), time.monotonic(), ""
    if not (folder / "results.json").is_file():
        try:
            fit.train(recipe, registry, resume=(folder / "recipe.yaml").is_file())
        except Diverged as error:
            if not unit.trial:
                raise
            diverged = error.message
    if unit.measured:
        _conclude(unit, registry, time.monotonic() - began, diverged)


def _conclude(unit: Unit, registry: Any, trained: float, diverged: str) -> None:
    """Measure it, unless its training diverged: then there is nothing to measure. Its note ends it."""
    from advdistill.engine.checkpoint import write_json
    from advdistill.engine.subject import Target, left_out
    from advdistill.recipe.suite import load_suite

    opened, began = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
    suite = load_suite(unit.suite, registry)
    folder = Path(unit.folder) / unit.measured
    said: dict[str, Any] = {"split": suite.model.split, "opened": opened, "machine": machine()}
    if diverged:
        folder.mkdir(exist_ok=True)
        said["diverged"] = diverged
    else:
        target = Target(f"{unit.folder}/last.safetensors", registry)
        lacks = left_out(target, suite, registry)  # before: what comes meanwhile is measured the next time
        said["accuracy"] = _accuracy(unit, target, suite, registry)
        if lacks:
            said["left out"] = dict(lacks)
    said |= {"trained here for": round(trained, 1), "measured here for": round(time.monotonic() - began, 1)}
    # Its last file: with it the unit is finished.
    write_json(folder / "unit.json", said)


def _accuracy(unit: Unit, target: Target, suite: Suite, registry: Any) -> dict[str, float]:
    """Measure it. Returns heading -> share."""
    from advdistill.engine.campaign import Campaign
    from advdistill.engine.subject import subjects

    with Campaign(Path(unit.folder) / unit.measured, target, suite, {}, overwrite=False) as campaign:
        found, _ = campaign.run(list(subjects(target, suite, registry)), registry, images=False)
    return {column.heading: column.outcome.count.share for column in found.columns}


def machine() -> str:
    """What this process computes on, in words."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
