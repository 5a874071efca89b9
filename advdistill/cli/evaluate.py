"""`advdistill evaluate`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advdistill.cli.options import (
    BatchSize,
    DataFolder,
    Device,
    Gpus,
    Json,
    NormName,
    PluginFiles,
    Processes,
    Radius,
    complete_suite,
    one_of_classes,
    radius,
    registry_with,
)
from advdistill.cli.output import print_json
from advdistill.errors import UsageError

if TYPE_CHECKING:
    from advdistill.engine.doubt import Indicator
    from advdistill.engine.outcomes import Evaluation


def evaluate(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the protocol file, like seed=1.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL", help="A checkpoint, or NAME@WEIGHTS for an undefended model; may be given several times."
        ),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="quick, standard, paranoid, base-to-new, or a file like them.",
            autocompletion=complete_suite,
        ),
    ] = "standard",
    data: DataFolder = None,
    classes: Annotated[
        str,
        typer.Option(
            metavar="WHICH",
            help="all; base or new, the first or second half; data: the data's own, other than those trained on. "
            "Default: what the protocol says.",
            callback=one_of_classes,
        ),
    ] = "",
    eps: Radius = None,
    norm: NormName = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Samples, evenly over the classes; default: what the protocol says.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for outcomes and cards; default: evaluations/….")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Put another evaluation in this folder's place.")
    ] = False,
    drop_images: Annotated[
        bool, typer.Option("--drop-images", help="Keep outcomes, but not the adversarial images.")
    ] = False,
    device: Device = "auto",
    batch_size: BatchSize = 256,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 0,
    gpus: Gpus = None,
    processes: Processes = None,
    json: Json = False,
    plugin: PluginFiles = None,
) -> None:
    """Take models through whole protocols, and write what was found, sample by sample, with a card that doubts it.

    A killed evaluation goes on where it was: give the same command again.

    Examples:
    advdistill evaluate --model runs/quickstart/last.safetensors --protocol quick
    advdistill evaluate --model runs/quickstart/last.safetensors --protocol standard limit=200
    advdistill evaluate --model ViT-B-32-quickgelu@openai --data photos --eps 1/255 --protocol quick --json
    """
    if not model:
        raise UsageError("which model?", "give --model CHECKPOINT, or --model NAME@WEIGHTS such as ViT-B-32@openai")
    if out is not None and len(model) > 1:
        raise UsageError("--out is one folder, and there are several models", "leave it out, or evaluate one by one")
    from advdistill.engine import launch
    from advdistill.recipe.suite import load_suite

    registry = registry_with(plugin)
    suite = load_suite(protocol, registry, settings or ())
    width = radius(eps)
    how = {"data": data, "classes": classes, "norm": norm, "eps": width, "limit": limit}
    if twice := [name for name in model if model.count(name) > 1]:
        raise UsageError(f"{twice[0]} is given twice", "name each model once")
    if count := launch.needed(gpus, processes, device):
        raise typer.Exit(launch.start(count, "--gpus" if gpus else "--processes", "the same command"))
    from advdistill.cli.progress import progress
    from advdistill.engine import build, campaign, distributed
    from advdistill.engine.subject import Target, left_out, subjects

    said = []
    with contextlib.ExitStack() as claimed:
        world = claimed.enter_context(distributed.joined(build.device_of(device)))
        campaigns = []
        for name in model:  # all of them before the first is measured: what is wrong is told at once
            target = Target(name, registry, device)
            found = list(
                subjects(target, suite, registry, data=data, classes=classes, norm=norm, eps=width, limit=limit)
            )
            folder = out or campaign.folder_of(target, suite)
            one = campaign.Campaign(folder, target, suite, how, overwrite, world)
            campaigns.append((claimed.enter_context(one), found))
            lacks = left_out(target, suite, registry, data=data)
            told = [f"{scope} is left out: {why}" for scope, why in lacks.items()]
            for note in dict.fromkeys([*told, *(note for subject in found for note in subject.notes)]):
                if world.main:
                    typer.echo(f"note: {note}", err=True)
        for one, found in campaigns:
            try:
                with progress() as show:
                    evaluation, indicators = one.run(
                        found, registry, batch_size=batch_size, workers=workers, images=not drop_images, progress=show
                    )
            except BaseException:
                if world.main and any(one.path.glob("packs/*/*")):
                    typer.echo(f"what was finished is kept in {one.path}: the same command goes on", err=True)
                raise
            if not world.main:
                continue
            said.append((evaluation, indicators, one.path))
            if not json:
                _show(evaluation, indicators, one.path)
    if json and said:
        print_json([_plain(*each) for each in said] if len(said) > 1 else _plain(*said[0]))
        return
    if len(said) > 1:
        _shots([evaluation for evaluation, _, _ in said])


def _plain(evaluation: Evaluation, indicators: list[Indicator], folder: Path) -> object:
    from advdistill.engine.card import card

    return {**card(evaluation, indicators), "folder": str(folder)}


def _show(evaluation: Evaluation, indicators: list[Indicator], folder: Path) -> None:
    """One line a column, the worst of each ball, what base-to-new comes to, and the doubts."""
    from advdistill.cli.output import print_columns
    from advdistill.engine.card import card, distance

    said = card(evaluation, indicators)
    how = "interval over source pictures" if "sources95" in said["columns"][0] else "Wilson interval"
    typer.echo(f"{evaluation.subject}: accuracy over all samples drawn, in % [95 % {how}]")
    lines = []
    for each in said["columns"]:
        threat = each["statement"]["threat"]
        ball = distance(threat["norm"], threat["eps"]) if threat else ""
        lines.append([each["heading"], each["knowledge"] if threat else "", ball, _percent(each), f"{each['total']:,}"])
    for each in said["worst"]:
        if len(each["attacks"]) > 1:
            head = f"{each['scope']}: worst" if each["scope"] else "worst"
            ball = distance(each["norm"], each["eps"])
            lines.append([head, f"{len(each['attacks'])} attacks", ball, _percent(each), f"{each['total']:,}"])
    print_columns(["", "attacker", "ball", "accuracy", "of"], lines)
    for name, (base, new, mean) in evaluation.base_to_new().items():
        typer.echo(f"{name}: base {100 * base:.1f}, new {100 * new:.1f}, harmonic mean {100 * mean:.1f}")
    flagged = [each for each in indicators if each.verdict == "flag"]
    for each in flagged:
        typer.echo(f"doubt: {each.name}{f' ({each.column})' if each.column else ''}: {each.advice}")
    unknown = sum(each.verdict == "unknown" for each in indicators)
    typer.echo(f"{len(flagged)} of {len(indicators)} indicators doubt these numbers ({unknown} could not tell)")
    typer.echo(f"{folder}/card.md says what was measured, and how")


def _percent(said: Mapping[str, Any]) -> str:
    from advdistill.engine.card import ends

    low, high = ends(said)
    return f"{100 * said['accuracy']:.1f} [{100 * low:.1f}–{100 * high:.1f}]"


def _shots(evaluations: list[Evaluation]) -> None:
    """A picture of accuracy against shots, where the models differ in them."""
    from advdistill.engine.pictures import save, shots_figure

    shots = {evaluation.facts.get("recipe", {}).get("shots") for evaluation in evaluations}
    if len(shots) > 1 and None not in shots:
        path = Path("evaluations") / "shots.png"
        save(shots_figure(evaluations), path)
        typer.echo(f"{path}: accuracy against shots")
