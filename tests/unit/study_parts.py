"""Small studies on toys, and a launcher that needs no other process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import run_parts
import yaml
from run_parts import PLUGIN

from advdistill.hooks.registry import default_registry
from advdistill.recipe.study import load_study
from advdistill.study.cells import Plan, Unit
from advdistill.study.launchers import Launcher, News
from advdistill.study.run import Watcher
from advdistill.study.work import attempt

STUMBLING = Path(__file__).with_name("stumbling_plugin.py")
PROTOCOLS = {"clean": {}, "attacked": {"attack": {"use": "pgd", "steps": 2}}}
TREE: dict[str, Any] = {
    "advdistill": 1,
    "recipe": "toy.yaml",
    "protocol": "suite.yaml",
    "tuning": {"protocol": "val.yaml", "budget": 2},
    "seeds": [0, 1],
    "axes": {"rate": {"small": {}, "large": {"set": {"optim.lr": 0.1}}}},
}


def write(folder: Path, name: str = "study", recipe: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A study, with its recipe and suites, in `folder`."""
    plugins = [str(PLUGIN), str(STUMBLING)]
    run_parts.write(folder, "toy", **run_parts.merged({"plugins": plugins, "save": {"every": 1}}, recipe or {}))
    for suite, split in (("suite", "test"), ("val", "val")):
        tree = {"advdistill": 1, "split": split, "limit": 12, "protocols": PROTOCOLS}
        (folder / f"{suite}.yaml").write_text(yaml.safe_dump(tree))
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(run_parts.merged(TREE, changes), sort_keys=False))
    return path


def plan(study: Path, home: Path, *words: str) -> Plan:
    """What it comes to."""
    registry = default_registry()
    return Plan(load_study(study, registry, words), registry, home)


def cells(made: Plan) -> dict[str, str]:
    """Title -> name of the run's folder."""
    return {cell.unit.title: Path(cell.unit.folder).name for cell in made.cells({})}


class Here(Launcher):
    """Does everything in this process, and keeps what it did.

    Args:
        refuse: what titles of units contain that are to fail.
    """

    def __init__(self, refuse: str = "nothing at all") -> None:
        self.did: list[str] = []
        self._refuse = refuse

    def run(self, units: Sequence[Unit]) -> News:
        for unit in units:
            yield unit, None
            self.did.append(unit.title)
            yield unit, "it was refused" if self._refuse in unit.title else attempt(unit)


class Heard(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int, int]] = []
        self.warnings: list[str] = []

    def stage(self, name: str, total: int, finished: int) -> None:
        self.stages.append((name, total, finished))

    def warned(self, message: str) -> None:
        self.warnings.append(message)


def same(one: Unit, other: Unit) -> bool:
    """Whether two finished runs learned and measured the same, bit for bit."""
    files = (("", "last.safetensors"), (one.measured, "outcomes.safetensors"))
    return all(
        _bits(Path(one.folder) / place, name) == _bits(Path(other.folder) / place, name) for place, name in files
    )


def _bits(folder: Path, name: str) -> dict[str, bytes]:
    return {key: tensor.numpy().tobytes() for key, tensor in run_parts.tensors(folder, name).items()}
