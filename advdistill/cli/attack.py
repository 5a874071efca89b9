"""`advdistill attack`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advdistill.cli.options import (
    AttackSettings,
    BatchSize,
    Classes,
    DataFolder,
    Device,
    Json,
    ModelName,
    NormName,
    PluginFiles,
    Radius,
    complete_attack,
    radius,
    registry_with,
)
from advdistill.cli.output import print_json
from advdistill.errors import UsageError

if TYPE_CHECKING:
    from advdistill.engine.evaluate import Found


def attack(
    settings: AttackSettings = None,
    model: ModelName = None,
    attack: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Attack with this plugin; default: the protocols of the checkpoint's recipe.",
            autocompletion=complete_attack,
        ),
    ] = None,
    data: DataFolder = None,
    eps: Radius = None,
    norm: NormName = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Samples, evenly over the classes; default: all.")] = None,
    classes: Classes = "all",
    source: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Make the images on this model instead: base, a teacher's role, a checkpoint, NAME@WEIGHTS.",
        ),
    ] = "self",
    save_images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save the adversarial images as PNG, and what became of each.")
    ] = None,
    device: Device = "auto",
    batch_size: BatchSize = 256,
    json: Json = False,
    plugin: PluginFiles = None,
) -> None:
    """Attack a trained or an undefended model, and print what it withstands.

    A checkpoint brings everything: its classes, its data, the protocols of its recipe.

    Examples:
    advdistill attack --model runs/quickstart/last.safetensors
    advdistill attack --model runs/quickstart/last.safetensors --attack pgd steps=50 restarts=2 --eps 4/255
    advdistill attack --model ViT-B-32-quickgelu@openai --data photos --attack pgd --eps 1/255 --limit 200 --json
    """
    if model is None:
        raise UsageError("which model?", "give --model CHECKPOINT, or --model NAME@WEIGHTS such as ViT-B-32@openai")
    from advdistill.cli.progress import progress
    from advdistill.cli.tables import print_results
    from advdistill.engine.evaluate import Results
    from advdistill.engine.subject import subject

    found = subject(
        model,
        registry_with(plugin),
        data=data,
        attack=attack,
        settings=settings or (),
        norm=norm,
        eps=radius(eps),
        limit=limit,
        classes=classes,
        source=source,
        device=device,
    )
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    keep: Found | None = None
    if save_images is not None:
        from advdistill.engine.images import ImageFolder

        keep = ImageFolder(save_images, found).keep
    with progress() as show:
        columns = found.bench(batch_size=batch_size, progress=show).columns(found.protocols, keep)
        results = Results.of(found.name, columns)
    print_json(results.to_json()) if json else print_results([results])
