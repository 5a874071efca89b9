"""Who provided each block of a recipe: noted in checkpoints, to say what to install where a plugin is missing later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from advdistill.errors import PluginError, RecipeError
from advdistill.hooks.registry import Entry, Registry
from advdistill.recipe.nodes import KeyPath, dotted

Record = Mapping[str, str]


def record(path: KeyPath, use: str, entry: Entry) -> dict[str, str]:
    """What `Recipe.providers` holds of one block."""
    plugin = entry.plugin
    return {
        "path": dotted(path),
        "kind": entry.spec.kind,
        "use": use,
        "name": entry.spec.name,
        "dist": plugin.dist,
        "version": plugin.version,
        "plugin": plugin.name,
        "file": str(plugin.file or ""),
        "sha256": plugin.sha256,
    }


def find(registry: Registry, kind: str, use: str, records: Iterable[Record]) -> Entry:
    """`registry.get(kind, use)`; where that fails and a record tells whose it was, the PluginError says so.

    Raises:
        RecipeError, PluginError: as `Registry.get`.
    """
    try:
        return registry.get(kind, use)
    except (RecipeError, PluginError) as error:
        known = next((each for each in records if (each["kind"], each["use"]) == (kind, use)), None)
        if known is None or known["dist"] == "advdistill":
            raise
        if known["dist"]:
            source = f"the package {known['dist']} {known['version']}"
            hint = f"Install it: pip install {known['dist']}=={known['version']}."
        else:
            source = f"the single file {known['plugin']}.py"
            digest = known["sha256"][:12]
            hint = f"Give that file: --plugin FILE, or plugins=[…] in Python (its sha256 was {digest}…)."
        raise PluginError(f"{kind} {use!r} comes from {source}: {error.message}", hint) from error
