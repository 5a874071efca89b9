"""Who is misled by images that were made on whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from advdistill.engine.evaluate import Progress, Results
from advdistill.engine.subject import Target, subject

if TYPE_CHECKING:
    from advdistill.hooks.registry import Registry


def matrix(
    targets: Sequence[Target],
    registry: Registry,
    *,
    attack: str,
    settings: Sequence[str] = (),
    data: str | None = None,
    classes: str = "all",
    norm: str | None = None,
    eps: float | None = None,
    limit: int | None = None,
    seed: int | None = None,
    batch_size: int = 256,
    told: Progress = lambda pair, done, total: None,
) -> list[dict[str, Results]]:
    """Make images on each model and show them to every other; one ball, one data set and one seed for all, the first
    checkpoint's where none is given: all see the same samples.

    Args:
        targets: two or more, of different names. seed: of the subset and of the attack's noise. told: pairs are written
            "made on → shown to". The other arguments: as for `subject`.

    Returns:
        One mapping a target, in their order: name of the model that the images were made on -> columns `clean` and the
        attack's. The diagonal is white-box.

    Raises:
        UsageError, DataError, PluginError, RecipeError: as `subject`.
    """
    lead = next((target for target in targets if target.opened), None)
    if seed is None:
        seed = lead.facts["recipe"]["seed"] if lead else 0
    rows = []
    for target in targets:
        said = {}
        for source in targets:
            found = subject(
                target,
                registry,
                data=data,
                attack=attack,
                settings=settings,
                limit=limit,
                classes=classes,
                source="self" if source is target else source.name,
                data_of=lead,
                norm=norm,
                eps=eps,
            )
            show = relabelled(told, f"{source.name} → {target.name}")
            bench = replace(found, seed=seed).bench(batch_size=batch_size, progress=show)
            said[source.name] = Results.of(target.name, bench.columns(found.protocols))
        rows.append(said)
    return rows


def relabelled(told: Progress, label: str) -> Progress:
    """Progress whose every part is called `label`."""

    def under_label(_: str, done: int, total: int) -> None:
        told(label, done, total)

    return under_label
