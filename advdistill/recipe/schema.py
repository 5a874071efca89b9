"""JSON Schema of recipes, for editors that complete and check YAML while it is typed."""

from __future__ import annotations

from typing import Any

from advdistill.errors import PluginError
from advdistill.hooks.registry import Registry
from advdistill.hooks.specs import KINDS
from advdistill.recipe.check import HOSTS_OWN
from advdistill.recipe.fields import Config
from advdistill.recipe.model import RecipeModel


def recipe_schema(registry: Registry) -> dict[str, Any]:
    """A schema (draft 2020-12) that knows the plugins of `registry` and their settings.

    Nothing below the top level is required, since `extends` may bring it. A plugin whose Config cannot be imported is
    known by name only.
    """
    schema = RecipeModel.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for kind in KINDS:
        definitions[f"{kind}-block"] = _block(kind, registry, definitions)
    schema = _relaxed(schema)
    schema["properties"]["extends"] = {"type": "string", "description": "The recipe to start from: a path or a name."}
    needed = [key for key, field in RecipeModel.model_fields.items() if field.is_required() and key != "name"]
    schema["anyOf"] = [{"required": ["extends"]}, {"required": needed}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "advdistill recipe"}


def _block(kind: str, registry: Registry, definitions: dict[str, Any]) -> dict[str, Any]:
    """`{use: NAME, …}`: the name decides which other keys there are."""
    cases = []
    for name in registry.names(kind):
        try:
            entry = registry.get(kind, name)
            config = registry.load(entry.spec, "config") or Config
        except PluginError:
            continue
        prefix = f"{entry.spec.kind}.{name}"
        settings = config.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
        definitions.update({f"{prefix}.{key}": value for key, value in settings.pop("$defs", {}).items()})
        settings["properties"] = {"use": {"description": entry.spec.summary}, **settings.get("properties", {})}
        if kind in HOSTS_OWN:
            settings["properties"] |= HOSTS_OWN[kind].model_json_schema()["properties"]
        cases.append({"if": {"properties": {"use": {"const": name}}, "required": ["use"]}, "then": settings})
    return {"type": "object", "properties": {"use": {"enum": registry.names(kind)}}, "allOf": cases}


def _relaxed(value: Any) -> Any:
    """Without `required` (but for conditions), and with blocks linked to their definitions."""
    if isinstance(value, list):
        return [_relaxed(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {
        key: item if key == "if" else _relaxed(item)
        for key, item in value.items()
        if not (key == "required" and isinstance(item, list)) and key != "block"
    }
    return {**kept, "$ref": f"#/$defs/{value['block']}-block"} if isinstance(value.get("block"), str) else kept
