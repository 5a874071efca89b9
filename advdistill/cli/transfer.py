"""`advdistill transfer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from advdistill.cli.options import (
    BatchSize,
    Classes,
    Device,
    Json,
    NormName,
    PluginFiles,
    Radius,
    complete_attack,
    radius,
    registry_with,
)
from advdistill.cli.output import print_columns, print_json
from advdistill.errors import UsageError

if TYPE_CHECKING:
    from advdistill.engine.evaluate import Results


def transfer(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL… [KEY=VALUE…]", help="Two or more models, then settings of the attack."),
    ] = None,
    attack: Annotated[
        str, typer.Option(metavar="NAME", help="Make the images with this plugin.", autocompletion=complete_attack)
    ] = "mi-fgsm",
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="A folder of class folders; default: the first checkpoint's data.")
    ] = None,
    classes: Classes = "all",
    eps: Radius = None,
    norm: NormName = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Samples, evenly over the classes; default: all.")] = None,
    device: Device = "auto",
    batch_size: BatchSize = 256,
    json: Json = False,
    plugin: PluginFiles = None,
) -> None:
    """Make images on each model and show them to every other: who is misled by whose?

    A row is the model that is measured, a column the one that the images were made on; the diagonal is white-box.

    Examples:
    advdistill transfer runs/a/last.safetensors runs/b/last.safetensors
    advdistill transfer runs/a/last.safetensors ViT-B-32-quickgelu@openai --attack apgd steps=50 --limit 200
    """
    models = [word for word in words or () if "=" not in word]
    settings = [word for word in words or () if "=" in word]
    if len(models) < 2:
        raise UsageError("transfer takes two models or more", "advdistill transfer A.safetensors B.safetensors")
    if len(set(models)) < len(models):
        raise UsageError("a model is given twice", "name each once: the diagonal of the matrix is the model itself")
    from advdistill.cli.progress import progress
    from advdistill.engine.subject import Target
    from advdistill.engine.transfer import matrix

    registry = registry_with(plugin)
    with progress() as show:
        rows = matrix(
            [Target(name, registry, device) for name in models],
            registry,
            attack=attack,
            settings=settings,
            data=data,
            classes=classes,
            norm=norm,
            eps=radius(eps),
            limit=limit,
            batch_size=batch_size,
            told=show,
        )
    if json:
        print_json(
            [
                {"model": name, "sources": {of: row.to_json() for of, row in said.items()}}
                for name, said in zip(models, rows, strict=True)
            ]
        )
        return
    typer.echo(f"accuracy in % [95 % Wilson interval] under {attack} made on the model at the head of the column")
    table = []
    for number, (name, said) in enumerate(zip(models, rows, strict=True), 1):
        clean = next(iter(said.values())).counts["clean"]
        table.append([f"{number}", f"{100 * clean.share:.1f}", *(_percent(row) for row in said.values()), name])
    print_columns(["", "clean", *(f"on {number}" for number in range(1, len(rows) + 1)), "model"], table)


def _percent(row: Results) -> str:
    """The attacked column of a row."""
    robust = list(row.counts.values())[-1]
    low, high = robust.wilson()
    return f"{100 * robust.share:.1f} [{100 * low:.1f}–{100 * high:.1f}]"
