"""`advdistill diagnose`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advdistill.cli.diagnosis_text import show, show_radar
from advdistill.cli.options import (
    AttackSettings,
    BatchSize,
    Classes,
    DataFolder,
    Device,
    Json,
    NormName,
    PluginFiles,
    Radius,
    complete_attack,
    radius,
    registry_with,
)
from advdistill.cli.output import print_json
from advdistill.errors import RunError, UsageError, did_you_mean
from advdistill.recipe.paths import file_name

if TYPE_CHECKING:
    from advdistill.engine.diagnosis import Patient, Row
    from advdistill.engine.doubt import Indicator
    from advdistill.engine.outcomes import Column
    from advdistill.hooks.registry import Registry

PARTS = ("doubts", "teachers", "relevance", "radar")


def known_parts(values: list[str] | None) -> list[str]:
    """The values of `--part`. Raises UsageError where one is none."""
    for value in values or ():
        if value not in PARTS:
            raise UsageError(f"--part {value!r} is not one of {', '.join(PARTS)}{did_you_mean(value, PARTS)}")
    return values or []


def diagnose(
    settings: AttackSettings = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL", help="A checkpoint, or NAME@WEIGHTS for an undefended model; may be given several times."
        ),
    ] = None,
    attack: Annotated[
        str, typer.Option(metavar="NAME", help="The attack in question.", autocompletion=complete_attack)
    ] = "apgd",
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="doubts, teachers, relevance, radar; may be given several times. Default: all that apply.",
            autocompletion=lambda incomplete: [name for name in PARTS if name.startswith(incomplete)],
            callback=known_parts,
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="A teacher beside those of the checkpoint's recipe; several times."),
    ] = None,
    zero_shot: Annotated[
        str | None,
        typer.Option(metavar="BLOCK", help="Data with classes not trained for, like 'use: folder, root: photos'."),
    ] = None,
    shift: Annotated[
        list[str] | None,
        typer.Option(metavar="BLOCK", help="Shifted images, written likewise; several times, the mean is drawn."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for pictures and diagnosis.json; default: none.")
    ] = None,
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
    """Doubt what an attack reports, and ask why a model is as robust as it is.

    doubts: runs the attack on a subset, then what must not beat it: more steps, other starts, noise, a single step,
    random search, examples from the undefended model. It also asks the model whether it is random or depends on batch
    mates, checks its gradients, and plants adversarial examples that the attack must find.

    teachers: what each teacher says of the examples made on the student, and whether more distillation could help.

    relevance: where student and teachers look, on clean images and on adversarial ones.

    radar: models side by side, or one beside its undefended self and its teachers: clean, robust, zero-shot, shift and
    cost.

    Examples:
    advdistill diagnose --model runs/quickstart/last.safetensors
    advdistill diagnose --model runs/quickstart/last.safetensors --attack pgd steps=10 --limit 200 --part doubts
    advdistill diagnose --model runs/quickstart/last.safetensors --part teachers --part relevance --out why
    advdistill diagnose --model ViT-B-32-quickgelu@openai --data photos --eps 1/255 --json
    """
    if not model:
        raise UsageError("which model?", "give --model CHECKPOINT, or --model NAME@WEIGHTS such as ViT-B-32@openai")
    if twice := [name for name in model if model.count(name) > 1]:
        raise UsageError(f"{twice[0]} is given twice", "name each model once")
    wanted = part or list(PARTS)
    if (zero_shot is not None or shift) and "radar" not in wanted:
        raise UsageError("--zero-shot and --shift are drawn in the radar only", "add --part radar")
    from advdistill.cli.progress import progress
    from advdistill.engine import diagnosis, portraits, radar
    from advdistill.engine.card import distance
    from advdistill.engine.checkpoint import write_json
    from advdistill.engine.pictures import save
    from advdistill.engine.subject import Target, other_classes, subject
    from advdistill.engine.teaching import teachers_of

    registry = registry_with(plugin)
    targets = [Target(name, registry, device) for name in model]
    more = {name: Target(name, registry, device) for name in teacher or ()}
    more = dict(zip(diagnosis.labels_of(list(more)), more.values(), strict=True))
    lead = next((target for target in targets if target.opened), None)
    # One ball and one data set for all: the first checkpoint's.
    given: dict[str, Any] = {"data": data, "norm": norm, "eps": radius(eps), "classes": classes, "limit": limit}
    patients, notes = [], list[str]()
    for label, target in zip(diagnosis.labels_of(model), targets, strict=True):
        found = subject(target, registry, attack=attack, settings=settings or (), data_of=lead, **given)
        notes += found.notes
        for other in more.values():
            notes += other_classes(other, found.participant.classes, classes)
        teachers = teachers_of(target, found.participant, registry, more)
        patients.append(diagnosis.Patient(label, found, teachers, batch_size))
    if "teachers" in wanted:
        notes += _without_teachers(patients, asked=bool(part))
    if "relevance" in wanted:
        notes += _without_maps(patients, asked=bool(part))
    rows = []
    if "radar" in wanted:
        rows = [diagnosis.row_of(p, p.label) for p in patients]
        if len(patients) == 1:
            rows = diagnosis.relatives(patients[0])
        if why := _no_radar(rows):
            if part or zero_shot is not None or shift or len(patients) > 1:
                raise UsageError(why, "give two to six models: --model A --model B")
            notes.append(f"{why}: the radar is left out")
            rows = []
    new = radar.block_data(zero_shot, registry, "--zero-shot") if zero_shot is not None else None
    moved = [radar.block_data(text, registry, "--shift") for text in shift or ()]
    for note in dict.fromkeys(notes):
        typer.echo(f"note: {note}", err=True)
    _writable(out)

    said: list[dict[str, Any]] = []
    pictures: dict[str, Any] = {}
    with progress() as told:
        measure = diagnosis.side_by_side(rows, new, moved, limit, batch_size, told) if rows else None
        for patient in patients:
            patient.progress = told
            indicators: list[Indicator] | None = None
            if "doubts" in wanted:
                column, indicators = _doubts(patient, attack, settings or (), limit, registry)
            else:
                column = patient.crafted.column
            said.append(_plain(patient, column, indicators, wanted))
            if out and "relevance" in said[-1]:
                label = "" if len(patients) == 1 else f"-{file_name(patient.label)}"
                pictures[f"relevance{label}.png"] = patient.figure()
            if not json:
                if len(said) > 1:
                    typer.echo()
                show(patient, column.outcome.count, indicators, said[-1])
        drawn = measure() if measure else None
    if drawn:
        if out:
            head = f"{patients[0].label} and its relatives" if len(patients) == 1 else "models side by side"
            first, samples = patients[0], drawn.entries[0].robust.total
            how = f"{first.protocol.name}, {distance(first.threat.norm, first.threat.eps)}, {samples} samples"
            pictures["radar.png"] = portraits.radar_figure(drawn, head, f"robust: {how}, each model attacked itself")
        if not json:
            show_radar(drawn, patients[0].protocol.name)
    whole: dict[str, Any] = dict(said[0]) if len(said) == 1 else {"models": said}
    if drawn:
        whole["radar"] = drawn.to_json()
    if out:
        for name, figure in pictures.items():
            save(figure, out / name)
        write_json(out / "diagnosis.json", whole)
    if json:
        print_json(whole)
    elif out:
        typer.echo(f"\n{out}: {', '.join([*pictures, 'diagnosis.json'])}")


def _doubts(
    patient: Patient, attack: str, settings: Sequence[str], limit: int, registry: Registry
) -> tuple[Column, list[Indicator]]:
    from advdistill.engine import doubt
    from advdistill.recipe.resolve import resolve_blocks

    words, provided = [f"attack.{word}" for word in settings], patient.found.target.facts.get("plugins", [])
    block = resolve_blocks({"attack": {"use": attack}}, registry, provided=provided, overrides=words)[("attack",)]
    how = {"split": patient.protocol.split, "batch_size": patient.batch_size, "progress": patient.progress}
    return doubt.diagnose(patient.found, block, patient.threat, limit, registry, **how)


def _plain(
    patient: Patient, column: Column, indicators: Sequence[Indicator] | None, wanted: Sequence[str]
) -> dict[str, Any]:
    """What was found of one model, as plain data; measures what is wanted and applies."""
    count = column.outcome.count
    one = {"subject": patient.found.name, "hits": count.hits, "total": count.total, "statement": dict(column.statement)}
    if indicators is not None:
        flags = sum(each.verdict == "flag" for each in indicators)
        one |= {"indicators": [each.to_json() for each in indicators], "flags": flags}
    if "teachers" in wanted and patient.teachers:
        one["teachers"] = {name: each.to_json() for name, each in patient.teaching.items()}
    if "relevance" in wanted and "student" not in patient.blind:
        one["relevance"] = {
            name: {what: each.to_json() if each else None for what, each in own.items()}
            for name, own in patient.alike.items()
        }
    return one


# Before anything is measured


def _without_teachers(patients: Sequence[Patient], asked: bool) -> list[str]:
    """Who has no teachers, as notes. Raises UsageError where nobody has and the part was asked for."""
    alone = [patient.found.name for patient in patients if not patient.teachers]
    if asked and len(alone) == len(patients):
        raise UsageError(f"{alone[0]} had no teachers", "name one: --teacher CHECKPOINT, or --teacher NAME@WEIGHTS")
    return [f"{name} had no teachers (--teacher names one): the teachers part is left out" for name in alone]


def _without_maps(patients: Sequence[Patient], asked: bool) -> list[str]:
    """Who has no maps, as notes. Raises UsageError where a model has none and the part was asked for."""
    notes = []
    for patient in patients:
        patient.sees()
        if asked and (why := patient.blind.get("student")):
            raise UsageError(f"{patient.found.name}: {why}", f"leave out --part {PARTS[2]}")
        notes += [f"{patient.label}, {name}: {why}" for name, why in patient.blind.items()]
    return notes


def _no_radar(rows: Sequence[Row]) -> str:
    """Why these models make no radar; "" if they do."""
    from advdistill.engine.radar import AT_MOST

    if len(rows) < 2:
        return f"a radar compares models, and {rows[0].name} is alone: it has no undefended self and no teachers"
    return f"a radar of {len(rows)} models cannot be read, {AT_MOST} is the most" if len(rows) > AT_MOST else ""


def _writable(out: Path | None) -> None:
    """Make the folder. Raises RunError where that fails."""
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot use {out}: {error.strerror}", "choose another --out") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise RunError(f"cannot write to {out}", "choose another --out")
