"""One run of a study, from its words to its measurements; in whatever process, on whatever machine."""

from __future__ import annotations

import contextlib
import json
import platform
import time
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from advdistill.errors import UserError
from advdistill.study.cells import Unit


def attempt(unit: Unit) -> str:
    """Do it. Returns "" once it is done, else why it could not be."""
    try:
        work(unit)
    except UserError as error:
        return f"{error.message}\n{error.hint}".strip()
    except KeyboardInterrupt:
        return "interrupted"
    except Exception as error:  # one cell's bug must not lose the others
        note = Path(unit.folder) / "traceback.txt"
        with contextlib.suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(traceback.format_exc(), encoding="utf-8")
        return f"internal error: {type(error).__name__}: {error} ({note})"
    return ""


def work(unit: Unit) -> None:
    """Train what is not trained, measure what is not measured; go on where either was cut off.

    Raises:
        UserError: as `train` and `evaluate`.
    """
    from advdistill.engine import fit
    from advdistill.hooks.registry import default_registry
    from advdistill.recipe.loader import find_recipe
    from advdistill.recipe.resolve import load_recipe

    if unit.finished:
        return
    registry = default_registry().with_files(unit.plugins)
    folder, began = Path(unit.folder), time.monotonic()
    if not (folder / "results.json").is_file():
        recipe = load_recipe(find_recipe(unit.source, registry), unit.words, registry, unit.plugins)
        fit.train(recipe, registry, resume=(folder / "recipe.yaml").is_file())
    if unit.measured:
        _measure(unit, registry, time.monotonic() - began)


def _measure(unit: Unit, registry: Any, trained: float) -> None:
    from advdistill.engine.campaign import Campaign
    from advdistill.engine.checkpoint import write_bytes
    from advdistill.engine.subject import Target, subjects
    from advdistill.recipe.suite import load_suite

    opened = datetime.now(timezone.utc).isoformat(timespec="seconds")
    suite = load_suite(unit.suite, registry)
    target = Target(f"{unit.folder}/last.safetensors", registry)
    with Campaign(Path(unit.folder) / unit.measured, target, suite, {}, overwrite=False) as campaign:
        began = time.monotonic()
        campaign.run(list(subjects(target, suite, registry)), registry, images=False)
    said = {
        "split": suite.model.split,
        "opened": opened,
        "machine": machine(),
        "trained here for": round(trained, 1),
        "measured here for": round(time.monotonic() - began, 1),
    }
    # Its last file: with it the unit is finished.
    write_bytes(Path(unit.folder) / unit.measured / "unit.json", (json.dumps(said, indent=1) + "\n").encode())


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
