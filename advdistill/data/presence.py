"""Whether the data of a recipe's block are on this machine: a look at a few paths, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from advdistill.data.place import exists, place
from advdistill.errors import UserError
from advdistill.recipe.paths import resource

if TYPE_CHECKING:
    from advdistill.hooks.registry import Registry
    from advdistill.recipe.resolved import Block
    from advdistill.recipe.suite import Suite


def lacking(block: Block, registry: Registry) -> str:
    """What of a data set is missing, in words; "": nothing that can be seen without opening it.

    Args:
        block: of a data set.
    """
    root = getattr(block.config, "root", "")
    try:
        origin = registry.load(block.spec, "origin")
        if root:  # the reader knows best what it finds in a place that somebody names
            path = resource(str(root))
            return "" if exists(path) else f"{block.use}: there is no {path}"
        if origin is None:
            return ""
        found = place(origin)
    except UserError as error:
        return f"{block.use}: {error.message}"
    if found.state == "there":
        return ""
    if found.state == "missing":
        return f"{block.use} is not in {found.folder}"
    what = f": it lacks {', '.join(found.missing)}" if found.missing else ""
    return f"{block.use} in {found.folder} is incomplete{what}"


def lacking_scopes(suite: Suite, registry: Registry, own: Block | None = None) -> Mapping[str, str]:
    """Scope of a suite -> what of its data is missing; those whose data are there are left out.

    Args:
        own: the data of scopes that name none; None: nothing is said of those.
    """
    blocks = {scope: suite.data.get(scope, own) for scope in suite.model.scopes}
    found = {scope: lacking(block, registry) for scope, block in blocks.items() if block}
    return {scope: why for scope, why in found.items() if why}
