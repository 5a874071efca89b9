"""`advdistill inspect`: what a checkpoint says of itself, or what could be learned in a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from advdistill.cli.options import Json, PluginFiles, registry_with
from advdistill.cli.output import print_columns, print_json
from advdistill.errors import UsageError


def inspect(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="[CKPT]", help="A checkpoint (.safetensors) of advdistill.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="In place of a checkpoint: what can be learned in this model?")
    ] = None,
    json: Json = False,
    plugin: PluginFiles = None,
) -> None:
    """See what a checkpoint says of itself, or which prompts and adapters a model takes and why not the others.

    A checkpoint's recipe, base model, classes and results are read without weights and torch; a model is built from
    its architecture alone.

    Examples:
    advdistill inspect runs/quickstart/last.safetensors
    advdistill inspect --model ViT-B-32-quickgelu
    advdistill inspect --model RN50-quickgelu --json
    """
    if (checkpoint is None) == (model is None):
        raise UsageError("what shall be inspected?", "give a checkpoint or --model NAME, one of the two")
    if checkpoint:
        _inspect_checkpoint(checkpoint, json)
    elif model:
        _inspect_model(model, json, plugin)


def _inspect_model(name: str, json: bool, plugins: list[str] | None) -> None:
    from advdistill.engine.model import Factored
    from advdistill.engine.subject import undefended

    model = undefended(name, registry_with(plugins), weights=False)
    facts = {
        "model": name,
        "image_size": model.image_size,
        "width": model.width if isinstance(model, Factored) else None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    takes = model.takes()
    if json:
        print_json({**facts, "takes": {kind: {"possible": not why, "why": why} for kind, why in takes.items()}})
        return
    typer.echo(f"{name}: {facts['parameters']:,} parameters, {model.image_size} px, embeds into {facts['width']}")
    typer.echo()
    print_columns(("TAKES", "", "WHY NOT"), [(kind, "no" if why else "yes", why) for kind, why in takes.items()])


def _inspect_checkpoint(checkpoint: Path, json: bool) -> None:
    from advdistill.recipe.header import read_header

    facts, tensors = read_header(checkpoint)
    totals = {
        "count": len(tensors),
        "parameters": sum(math.prod(tensor["shape"]) for tensor in tensors.values()),
        "bytes": sum(tensor["data_offsets"][1] - tensor["data_offsets"][0] for tensor in tensors.values()),
    }
    if json:
        shapes = {name: {"dtype": t["dtype"], "shape": t["shape"]} for name, t in tensors.items()}
        print_json({"path": str(checkpoint), "facts": facts, "tensors": {**totals, "names": shapes}})
        return
    for key, value in _lines(facts):
        typer.echo(f"{key:<12} {value}")
    typer.echo(
        f"{'tensors':<12} {totals['count']:,} with {totals['parameters']:,} values, {totals['bytes'] / 2**20:.2f} MiB"
    )
    rows = _results(facts)
    if rows:
        typer.echo()
        print_columns(
            ("RESULTS", *rows[0]["protocols"]), [(row["subject"], *row["protocols"].values()) for row in rows]
        )


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts worth a line each; what a file lacks is left out."""
    recipe, base, threat = facts.get("recipe", {}), facts.get("base", {}), facts.get("threat", {})
    classes = facts.get("classes", [])
    shown = [
        ("recipe", recipe.get("name")),
        ("student", recipe.get("student", {}).get("use")),
        ("strategy", recipe.get("strategy", {}).get("use")),
        ("teachers", ", ".join(f"{role}: {block['use']}" for role, block in recipe.get("teachers", {}).items())),
        ("base", " ".join(f"{base[key]}" for key in ("model", "weights") if base.get(key))),
        ("fingerprint", base.get("fingerprint")),
        ("activation", facts.get("activation")),
        (
            "classes",
            f"{len(classes):,}: {', '.join(classes[:6])}{', …' if len(classes) > 6 else ''}" if classes else "",
        ),
        ("templates", ", ".join(facts.get("templates", [])[:3])),
        ("threat", f"{threat['norm']} {recipe.get('threat', {}).get('eps', threat['eps'])}" if threat else ""),
        ("clock", ", ".join(f"{key} {value}" for key, value in facts.get("clock", {}).items())),
        ("versions", ", ".join(f"{key} {value}" for key, value in facts.get("versions", {}).items())),
        ("plugins", ", ".join(dict.fromkeys(_owner(record) for record in facts.get("plugins", [])))),
        ("format", facts.get("format")),
    ]
    return [(key, str(value)) for key, value in shown if value]


def _owner(record: dict[str, Any]) -> str:
    return f"{record['dist']} {record['version']}" if record.get("dist") else f"{record.get('file')}"


def _results(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Each subject with its accuracy by protocol, as text; protocols in the order of the recipe."""
    rows = facts.get("results") or []
    wanted = [protocol["name"] for protocol in facts.get("recipe", {}).get("evaluate", {}).get("protocols", [])]
    measured = dict.fromkeys(name for row in rows for name in row["protocols"])
    names = [*(name for name in wanted if name in measured), *(name for name in measured if name not in wanted)]
    return [
        {
            "subject": row["subject"],
            "protocols": {
                name: f"{100 * row['protocols'][name]['accuracy']:.1f} %" if name in row["protocols"] else "-"
                for name in names
            },
        }
        for row in rows
    ]
