"""`advdistill attack`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advdistill.cli.options import Json, PluginFiles, complete_attack, registry_with
from advdistill.cli.output import print_json
from advdistill.errors import UsageError

if TYPE_CHECKING:
    from advdistill.engine.evaluate import Found


def attack(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of the attack, like steps=20.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A checkpoint, or NAME@WEIGHTS for an undefended model.")
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Attack with this plugin; default: the protocols of the checkpoint's recipe.",
            autocompletion=complete_attack,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="A folder of class folders; default: the checkpoint's own data.")
    ] = None,
    eps: Annotated[str | None, typer.Option(metavar="EPS", help="Radius on the [0, 1] scale, like 4/255.")] = None,
    norm: Annotated[str | None, typer.Option(metavar="NORM", help="linf, l2, l1 or l0.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Samples, evenly over the classes; default: all.")] = None,
    save_images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save the adversarial images as PNG, and what became of each.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time; changes speed, not numbers.")] = 256,
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
    from advdistill.engine.evaluate import evaluate
    from advdistill.engine.subject import subject

    found = subject(
        model,
        registry_with(plugin),
        data=data,
        attack=attack,
        settings=settings or (),
        norm=norm,
        eps=_radius(eps),
        limit=limit,
        device=device,
    )
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    keep: Found | None = None
    if save_images is not None:
        from advdistill.engine.images import ImageFolder

        keep = ImageFolder(save_images, found).keep
    with progress() as show:
        results = evaluate(
            found.name,
            found.participant,
            found.splits,
            found.protocols,
            seed=found.seed,
            batch_size=batch_size,
            progress=show,
            found=keep,
        )
    print_json(results.to_json()) if json else print_results([results])


def _radius(text: str | None) -> float | None:
    from advdistill.recipe.fields import parse_distance

    try:
        radius = None if text is None else parse_distance(text)
    except ValueError as error:
        raise UsageError(f"--eps: {error}", "for example --eps 8/255") from error
    if radius is not None and radius <= 0:
        raise UsageError("--eps 0 attacks nothing", "for example --eps 8/255")
    return radius
