"""`advdistill diagnose`."""

from __future__ import annotations

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
    from collections.abc import Sequence

    from advdistill.engine.doubt import Indicator


def diagnose(
    settings: AttackSettings = None,
    model: ModelName = None,
    attack: Annotated[
        str, typer.Option(metavar="NAME", help="The attack in question.", autocompletion=complete_attack)
    ] = "apgd",
    data: DataFolder = None,
    eps: Radius = None,
    norm: NormName = None,
    limit: Annotated[int, typer.Option(min=1, help="Samples, evenly over the classes.")] = 64,
    classes: Classes = "all",
    device: Device = "auto",
    batch_size: BatchSize = 256,
    json: Json = False,
    plugin: PluginFiles = None,
) -> None:
    """Doubt what an attack reports: is the model robust, or the attack too weak for it?

    Runs the attack on a subset, then what must not beat it: more steps, other starts, noise, a single step, random
    search, examples from the undefended model. It also asks the model whether it is random or depends on batch mates,
    checks its gradients, and plants adversarial examples that the attack must find.

    Examples:
    advdistill diagnose --model runs/quickstart/last.safetensors
    advdistill diagnose --model runs/quickstart/last.safetensors --attack pgd steps=10 --limit 200
    advdistill diagnose --model ViT-B-32-quickgelu@openai --data photos --eps 1/255 --json
    """
    if model is None:
        raise UsageError("which model?", "give --model CHECKPOINT, or --model NAME@WEIGHTS such as ViT-B-32@openai")
    from advdistill.cli.progress import progress
    from advdistill.engine import doubt
    from advdistill.engine.subject import Target, subject
    from advdistill.recipe.resolve import resolve_blocks

    registry = registry_with(plugin)
    target = Target(model, registry, device)
    found = subject(
        target,
        registry,
        data=data,
        attack=attack,
        settings=settings or (),
        norm=norm,
        eps=radius(eps),
        limit=limit,
        classes=classes,
    )
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    words = [f"attack.{word}" for word in settings or ()]
    provided = target.facts.get("plugins", [])
    block = resolve_blocks({"attack": {"use": attack}}, registry, provided=provided, overrides=words)[("attack",)]
    asked = found.protocols[-1]
    assert asked.threat is not None  # an attack was named
    threat, how = asked.threat, {"split": asked.split, "batch_size": batch_size}
    with progress() as show:
        column, indicators = doubt.diagnose(found, block, threat, limit, registry, progress=show, **how)
    flags = sum(each.verdict == "flag" for each in indicators)
    count = column.outcome.count
    if json:
        print_json(
            {
                "subject": found.name,
                "hits": count.hits,
                "total": count.total,
                "statement": dict(column.statement),
                "indicators": [each.to_json() for each in indicators],
                "flags": flags,
            }
        )
        return
    ball = f"{threat.eps * 255:g}/255" if threat.norm == "linf" else f"{threat.eps:g}"
    what = " ".join([attack, *(settings or ())])
    typer.echo(f"{found.name}: right about {count.hits} of {count.total} after {what}, {threat.norm} {ball}\n")
    _print(indicators)
    unknown = sum(each.verdict == "unknown" for each in indicators)
    typer.echo(f"\n{flags} of {len(indicators)} indicators doubt these numbers ({unknown} could not tell)")


def _print(indicators: Sequence[Indicator]) -> None:
    """Flags first, then what could not be told; drawn on a terminal, plain columns in a pipe."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from advdistill.cli.output import print_columns

    order = {"flag": 0, "unknown": 1, "ok": 2}
    rows = [
        (each.verdict, each.name, _number(each.value), _number(each.threshold), each.advice)
        for each in sorted(indicators, key=lambda each: order[each.verdict])
    ]
    header = ("verdict", "indicator", "seen", "threshold", "what to do")
    console = Console()
    if not console.is_terminal:
        print_columns(header, rows)
        return
    table = Table(*header, box=box.SIMPLE_HEAD)
    styles = {"flag": "bold red", "unknown": "yellow", "ok": ""}
    for row in rows:
        table.add_row(*row, style=styles[row[0]])
    console.print(table)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
