"""`advdistill plugins`: what recipes can name, who offers it, and its settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advdistill.cli.options import Json, PluginFiles, complete_plugin, examples, registry_with
from advdistill.cli.output import print_columns, print_json, written
from advdistill.errors import RecipeError, did_you_mean
from advdistill.hooks.specs import KINDS, Spec

if TYPE_CHECKING:
    from advdistill.hooks.registry import Entry, Registry
    from advdistill.recipe.fields import Config

app = typer.Typer(
    help="See what recipes can name, and settings.", no_args_is_help=True, rich_markup_mode="rich", add_completion=False
)


@app.command("list", epilog=examples("advdistill plugins list", "advdistill plugins list --plugin my_attack.py --json"))
def list_plugins(json: Json = False, plugin: PluginFiles = None) -> None:
    """List every component that recipes can name, and the plugins that are broken."""
    registry = registry_with(plugin)
    conflicts = registry.conflicts()
    if json:
        print_json(
            {
                "components": [_facts(entry) for entry in registry.entries()],
                "commands": [spec.name for spec, _ in registry.commands().values()],
                "plugins": [
                    {
                        "name": each.name,
                        "dist": each.dist,
                        "version": each.version,
                        "file": str(each.file or ""),
                        "sha256": each.sha256,
                        "error": each.cause,
                    }
                    for each in registry.plugins
                ],
                "conflicts": conflicts,
            }
        )
        return
    rows = [(e.spec.kind, e.spec.name, e.plugin.name, e.spec.summary) for e in registry.entries()]
    rows += [("command", spec.name, owner.name, spec.summary) for spec, owner in registry.commands().values()]
    print_columns(("KIND", "NAME", "PLUGIN", "SUMMARY"), rows)
    for each in registry.broken:
        typer.echo(f"broken: {each.label}: {each.cause}")
    for conflict in conflicts:
        typer.echo(f"conflict: {conflict}")


@app.command(
    epilog=examples(
        "advdistill plugins show pgd",
        "advdistill plugins show teacher:clip",
        "advdistill plugins show attack:pgd --json",
    )
)
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[KIND:]NAME", help="A component, like pgd or attack:pgd.", autocompletion=complete_plugin
        ),
    ],
    json: Json = False,
    plugin: PluginFiles = None,
) -> None:
    """Show a component: who offers it, what it is for, and all its settings."""
    registry = registry_with(plugin)
    found = _find(registry, name)
    described = [{**_facts(entry), **_declared(entry), "settings": _settings_of(registry, entry)} for entry in found]
    if json:
        print_json(described)
        return
    for index, facts in enumerate(described):
        if index:
            typer.echo()
        _print(facts)


def _find(registry: Registry, name: str) -> list[Entry]:
    """The components of that name: of one kind, or where none is given, of every kind that has it."""
    kind, _, rest = name.partition(":")
    if kind in KINDS and rest:
        return [registry.get(kind, rest)]
    found = {}
    for each in KINDS:
        try:
            entry = registry.get(each, name)
        except RecipeError:
            continue
        found[id(entry.spec)] = entry
    if not found:
        suggestion = did_you_mean(name, [entry.spec.name for entry in registry.entries()])
        raise RecipeError(
            f"there is no component named {name!r}{suggestion}", "`advdistill plugins list` shows them all."
        )
    return list(found.values())


def _facts(entry: Entry) -> dict[str, Any]:
    plugin, spec = entry.plugin, entry.spec
    return {
        "kind": spec.kind,
        "name": spec.name,
        "plugin": plugin.name,
        "dist": plugin.dist,
        "version": plugin.version,
        "file": str(plugin.file or ""),
        "summary": spec.summary,
        "reference": spec.reference,
    }


def _declared(entry: Entry) -> dict[str, Any]:
    """What the spec of this kind declares beyond every spec's fields."""
    common = {field.name for field in fields(Spec)}
    declared = {f.name: getattr(entry.spec, f.name) for f in fields(entry.spec) if f.name not in common}
    return {key: sorted(value) if isinstance(value, frozenset) else value for key, value in declared.items()}


def _settings_of(registry: Registry, entry: Entry) -> list[dict[str, Any]]:
    config = registry.load(entry.spec, "config")
    return list(_settings(config, "")) if config else []


def _settings(config: type[Config], prefix: str) -> Iterator[dict[str, Any]]:
    from advdistill.recipe.fields import Config

    properties = config.model_json_schema()["properties"]
    defaults = config.model_construct().model_dump(mode="json", warnings=False)
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield from _settings(field.annotation, f"{prefix}{name}.")
            continue
        yield {
            "name": prefix + name,
            "type": _type(properties[name]),
            "required": field.is_required(),
            "default": defaults.get(name),
            "doc": " ".join((field.description or "").split()),
        }


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema in a word or two."""
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    if "anyOf" in schema:
        kinds = {part.get("type") for part in schema["anyOf"]}
        return "distance" if kinds == {"number", "string"} else " or ".join(map(_type, schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}" if "items" in schema else "list"
    names = {"integer": "int", "number": "float", "boolean": "bool", "string": "text", "object": "map"}
    text = names.get(schema.get("type", ""), schema.get("type", "any"))
    limits = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    return " ".join([text, *(f"{sign} {schema[key]:g}" for key, sign in limits if key in schema)])


_ROLES = {"teachers": "teacher", "optional": "optional teacher"}


def _print(facts: dict[str, Any]) -> None:
    origin = facts["file"] or f"{facts['plugin']} ({facts['dist']} {facts['version']})"
    typer.echo(f"{facts['kind']} {facts['name']}: {facts['summary']}".rstrip(": "))
    for key, value in facts.items():
        if key in ("kind", "name", "summary", "settings", "plugin", "dist", "version", "file"):
            continue
        if isinstance(value, dict):
            for role, text in value.items():
                typer.echo(f"  {_ROLES[key]} {role}: {text}")
        elif value not in ("", None, False, []):
            shown = ", ".join(value) if isinstance(value, list) else "yes" if value is True else value
            typer.echo(f"  {key}: {shown}")
    typer.echo(f"  from: {origin}")
    if not facts["settings"]:
        typer.echo("  It takes no settings.")
        return
    typer.echo()
    rows = [
        (s["name"], s["type"], "(required)" if s["required"] else written(s["default"]), s["doc"])
        for s in facts["settings"]
    ]
    print_columns(("SETTING", "TYPE", "DEFAULT", "MEANING"), rows)
