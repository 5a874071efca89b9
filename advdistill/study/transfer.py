"""The matrix of transfer between the rows of a study: for each seed, images made on each model, shown to every other.

What was measured is kept below the study's folder, a file for each seed, and is not measured again unless a model or
the attack has changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advdistill.errors import DataError
from advdistill.recipe.paths import resource
from advdistill.recipe.study import Transfer
from advdistill.study.cells import digest
from advdistill.study.table import Line, Table, over_seeds, write_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from advdistill.engine.evaluate import Progress

FOLDER = "transfer"


@dataclass(frozen=True)
class Matrix:
    """One matrix for all seeds.

    Attributes:
        where: axis -> level, of the axes that do not vary in it.
        names: its models: levels of the axis that does, then the others.
        seeds: seed -> what was measured under it: `clean`, name -> [hits, total]; `attacked`, name of the model that
            was shown the images -> name of the one that they were made on -> [hits, total].
    """

    where: Mapping[str, str]
    names: Sequence[str]
    seeds: Mapping[int, Mapping[str, Any]]

    def clean(self, name: str) -> tuple[float, float]:
        """Accuracy on images as they are: mean over seeds, half of its 95 % interval (NaN: too few seeds)."""
        return _mean(said["clean"][name] for said in self.seeds.values())

    def attacked(self, shown: str, made: str) -> tuple[float, float]:
        """The same of `shown`, on images that were made on `made`."""
        return _mean(said["attacked"][shown][made] for said in self.seeds.values())


def measure(table: Table, told: Progress) -> list[Matrix]:
    """A matrix over the levels of the last axis, for each combination of levels of the others.

    Raises:
        DataError: a cell is missing, or a model cannot be read. UsageError, PluginError, RecipeError: as `transfer`.
    """
    asked = table.study.transfer
    assert asked is not None
    if not table.complete:
        missing = [*table.missing, *table.unread, *table.found.failed]
        raise DataError(f"it is measured once all runs are there, and these are not: {', '.join(missing)}")
    groups: dict[tuple[str, ...], list[Line]] = {}
    *fixed, varying = table.axes
    for line in table.lines:
        groups.setdefault(tuple(line.row.levels[axis] for axis in fixed), []).append(line)
    found = []
    for where, lines in groups.items():
        seeds = {}
        for place, seed in enumerate(table.study.seeds):
            cells = {line.row.levels[varying]: line.cells[place].cell for line in lines}
            models = {name: f"{cell.unit.folder}/last.safetensors" for name, cell in cells.items()}
            seeds[seed] = _measured(table, asked, {**models, **table.study.others}, seed, told)
        names = [*(line.row.levels[varying] for line in lines), *table.study.others]
        found.append(Matrix(dict(zip(fixed, where, strict=True)), names, seeds))
    return found


def save(matrices: Sequence[Matrix], path: Path) -> None:
    """As CSV: a line for each pair and seed; `made_on` is empty for images as they are."""
    header = [*matrices[0].where, "seed", "shown_to", "made_on", "hits", "total", "share"]
    lines = [
        [*matrix.where.values(), seed, shown, made, hits, total, hits / total]
        for matrix in matrices
        for seed, said in matrix.seeds.items()
        for shown in matrix.names
        for made, (hits, total) in {"": said["clean"][shown], **said["attacked"][shown]}.items()
    ]
    write_csv(path, header, lines)


def draw(matrices: Sequence[Matrix], attack: str) -> Figure:
    """Heat maps, one a matrix: a row is the model that is shown the images, a column the one that they were made on."""
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    from advdistill.engine.pictures import STYLE

    size = max(len(matrix.names) for matrix in matrices)
    side = max(3.6, 1.8 + 0.75 * (size + 1))
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side * len(matrices), 0.85 * side), layout="constrained")
        panels = figure.subplots(1, len(matrices), squeeze=False)[0]
        for axes, matrix in zip(panels, matrices, strict=True):
            cells = [
                [matrix.clean(shown), *(matrix.attacked(shown, made) for made in matrix.names)]
                for shown in matrix.names
            ]
            axes.imshow([[mean for mean, _ in line] for line in cells], vmin=0, vmax=1, cmap="Blues", aspect="auto")
            for (row, column), _ in np.ndenumerate(np.empty((len(cells), len(cells[0])))):
                mean, half = cells[row][column]
                text = f"{100 * mean:.1f}" + ("" if math.isnan(half) else f"\n± {100 * half:.1f}")
                colour = "white" if mean > 0.6 else "#1f2328"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
            axes.set_xticks(range(len(cells) + 1), ["clean", *matrix.names], rotation=30, ha="right")
            axes.set_yticks(range(len(cells)), matrix.names)
            axes.axvline(0.5, color="white", linewidth=4)
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
            axes.set_xlabel("images made on")
            axes.set_ylabel("shown to")
            axes.set_title(" · ".join(matrix.where.values()) or f"accuracy in % under {attack}")
        if any(matrix.where for matrix in matrices):
            figure.suptitle(f"accuracy in % under {attack}", x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def _mean(counts: Iterable[Sequence[int]]) -> tuple[float, float]:
    shares = [hits / total for hits, total in counts]
    return statistics.mean(shares), over_seeds(shares)


def _measured(table: Table, asked: Transfer, models: Mapping[str, str], seed: int, told: Progress) -> dict[str, Any]:
    """One seed's matrix, from its file where there is one."""
    from advdistill.engine.checkpoint import write_json

    words = [f"{key}={json.dumps(value)}" for key, value in asked.settings.items()]
    key = [asked.attack, words, asked.limit, seed, {name: _fingerprint(path) for name, path in models.items()}]
    path = table.found.plan.folder / FOLDER / f"{digest(key)[:12]}.json"
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if all(said["attacked"][shown][made][1] for shown in models for made in models) and said["clean"]:
            return said
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not whole
    said = _transfer(table, asked, words, models, seed, told)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, said)
    return said


def _transfer(
    table: Table, asked: Transfer, words: Sequence[str], models: Mapping[str, str], seed: int, told: Progress
) -> dict[str, Any]:
    from advdistill.engine.subject import Target
    from advdistill.engine.transfer import matrix

    registry = table.found.plan.registry
    targets = {name: Target(path, registry) for name, path in models.items()}
    called = {target.name: name for name, target in targets.items()}
    rows = matrix(
        list(targets.values()),
        registry,
        attack=asked.attack,
        settings=words,
        limit=asked.limit or None,
        classes="data",
        seed=seed,
        told=lambda pair, done, total: told(" → ".join(called[part] for part in pair.split(" → ")), done, total),
    )
    said: dict[str, Any] = {"attack": asked.attack, "settings": words, "models": dict(models), "clean": {}}
    said["attacked"] = {}
    for shown, columns in zip(models, rows, strict=True):
        counts = {called[made]: list(found.counts.values()) for made, found in columns.items()}
        clean = counts[shown][0]
        said["clean"][shown] = [clean.hits, clean.total]
        said["attacked"][shown] = {made: [both[1].hits, both[1].total] for made, both in counts.items()}
    return said


def _fingerprint(model: str) -> str:
    """A hash of a checkpoint's file; NAME@WEIGHTS as it is."""
    path = resource(model)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else model
