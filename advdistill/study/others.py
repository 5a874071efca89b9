"""Models that stand beside a study's cells without being trained by it: undefended ones, teachers.

They are measured with the cells' suite, on their data and for their threat, below `home/others`; that is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from advdistill.errors import DataError
from advdistill.study.cells import digest
from advdistill.study.table import Share, Table, share, verdicts

if TYPE_CHECKING:
    from advdistill.engine.evaluate import Progress

FOLDER = "others"


def measure(table: Table, told: Progress) -> dict[str, dict[str, Share]]:
    """Name -> heading -> share, one run each, of `others`.

    Raises:
        DataError: no cell is finished, whose data it could be measured on; a model cannot be read.
        UsageError, PluginError, RecipeError: as `evaluate`.
    """
    from advdistill.engine.campaign import Campaign
    from advdistill.engine.subject import Target, subjects
    from advdistill.engine.transfer import relabelled
    from advdistill.recipe.paths import file_name

    if not table.lines:
        raise DataError("other models are measured on the data of a finished cell, and there is none")
    plan = table.found.plan
    registry, suite = plan.registry, plan.suite
    lead = Target(f"{table.lines[0].cells[0].cell.unit.folder}/last.safetensors", registry)
    data = {"data": lead.facts["recipe"]["data"], "threat": lead.facts["threat"]}
    found = {}
    for name, model in table.study.others.items():
        target = Target(model, registry)
        key = digest([target.fingerprint, suite.tree, data])
        folder = plan.home / FOLDER / f"{file_name(name)}-{key[:12]}"
        beside = subjects(target, suite, registry, classes="" if suite.model.scopes else "data", data_of=lead)
        with Campaign(folder, target, suite, data, overwrite=False) as campaign:
            evaluation, _ = campaign.run(list(beside), registry, images=False, progress=relabelled(told, name))
        right, sources = verdicts(evaluation)
        found[name] = {heading: share(bits[None], sources[heading]) for heading, bits in right.items()}
    return found
