"""`advdistill diagnose`."""

from __future__ import annotations

import json as plain_json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from advdistill.cli.output import print_columns, print_json
from advdistill.errors import RunError, UsageError, did_you_mean

if TYPE_CHECKING:
    from advdistill.engine.count import Count
    from advdistill.engine.diagnosis import Patient
    from advdistill.engine.doubt import Indicator
    from advdistill.engine.evaluate import Progress
    from advdistill.engine.outcomes import Column
    from advdistill.engine.radar import Radar
    from advdistill.engine.relevance import Similarity
    from advdistill.engine.subject import Subject
    from advdistill.engine.teaching import Mean
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
    from advdistill.engine.pictures import save
    from advdistill.engine.subject import Target, subject
    from advdistill.engine.teaching import teachers_of

    registry = registry_with(plugin)
    targets = [Target(name, registry, device) for name in model]
    more = {name: Target(name, registry, device) for name in teacher or ()}
    more = dict(zip(diagnosis.labels_of(list(more)), more.values(), strict=True))
    lead = next((target for target in targets if target.opened), None)
    # One ball and one data set for all: the first checkpoint's.
    trained = lead.facts["threat"] if lead and len(targets) > 1 else {"norm": None, "eps": None}
    own = trained["eps"] if norm in (None, trained["norm"]) else None  # a radius is one of its norm
    ball: dict[str, Any] = {"norm": norm or trained["norm"], "eps": radius(eps) or own}
    where: dict[str, Any] = {"data": data, "data_of": lead, "classes": classes, "limit": limit, **ball}
    patients = []
    for label, target in zip(diagnosis.labels_of(model), targets, strict=True):
        found = subject(target, registry, attack=attack, settings=settings or (), **where)
        teachers = teachers_of(target, found.participant, registry, more)
        patients.append(diagnosis.Patient(label, found, teachers, batch_size))
    notes = [note for patient in patients for note in patient.found.notes]
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
    what = " ".join([attack, *(settings or ())])
    with progress() as show:
        measure = diagnosis.side_by_side(rows, new, moved, limit, batch_size, show) if rows else None
        for patient in patients:
            patient.progress, found = show, patient.found
            indicators: list[Indicator] | None = None
            if "doubts" in wanted:
                column, indicators = _doubts(found, attack, settings or (), limit, registry, batch_size, show)
            else:
                column = patient.crafted.column
            one = {"subject": found.name, **_counted(column)}
            if indicators is not None:
                flags = sum(each.verdict == "flag" for each in indicators)
                one |= {"indicators": [each.to_json() for each in indicators], "flags": flags}
            if "teachers" in wanted and patient.teachers:
                one["teachers"] = {name: each.to_json() for name, each in patient.teaching.items()}
            if "relevance" in wanted and "student" not in patient.blind:
                one["relevance"] = _alike(patient)
                if out:
                    name = "relevance.png" if len(patients) == 1 else f"relevance-{_file(patient.label)}.png"
                    pictures[name] = patient.figure()
            said.append(one)
            if not json:
                if len(said) > 1:
                    typer.echo()
                _show(patient, column, what, indicators, one)
        drawn = measure() if measure else None
    if drawn:
        if out:
            head = f"{patients[0].label} and its relatives" if len(patients) == 1 else "models side by side"
            samples = drawn.entries[0].robust.total
            caption = f"robust: {what}, {_ball(patients[0])}, {samples} samples, each model attacked itself"
            pictures["radar.png"] = portraits.radar_figure(drawn, head, caption)
        if not json:
            _show_radar(drawn, what)
    whole: dict[str, Any] = dict(said[0]) if len(said) == 1 else {"models": said}
    if drawn:
        whole["radar"] = drawn.to_json()
    if out:
        for name, figure in pictures.items():
            save(figure, out / name)
        _write(out / "diagnosis.json", whole)
    if json:
        print_json(whole)
    elif out:
        typer.echo(f"\n{out}: {', '.join([*pictures, 'diagnosis.json'])}")


def _doubts(
    found: Subject,
    attack: str,
    settings: Sequence[str],
    limit: int,
    registry: Registry,
    batch_size: int,
    show: Progress,
) -> tuple[Column, list[Indicator]]:
    from advdistill.engine import doubt
    from advdistill.recipe.resolve import resolve_blocks

    words, provided = [f"attack.{word}" for word in settings], found.target.facts.get("plugins", [])
    block = resolve_blocks({"attack": {"use": attack}}, registry, provided=provided, overrides=words)[("attack",)]
    asked = found.protocols[-1]
    assert asked.threat is not None  # an attack was named
    how = {"split": asked.split, "batch_size": batch_size, "progress": show}
    return doubt.diagnose(found, block, asked.threat, limit, registry, **how)


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


def _no_radar(rows: Sequence[Any]) -> str:
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


def _write(path: Path, whole: dict[str, Any]) -> None:
    from advdistill.engine.checkpoint import write_bytes

    write_bytes(path, (plain_json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode())


def _file(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in label)


# What was found, as plain data and on stdout


def _counted(column: Column) -> dict[str, Any]:
    count = column.outcome.count
    return {"hits": count.hits, "total": count.total, "statement": dict(column.statement)}


def _alike(patient: Patient) -> dict[str, Any]:
    return {
        name: {what: each.to_json() if each else None for what, each in own.items()}
        for name, own in patient.alike.items()
    }


def _show(patient: Patient, column: Column, what: str, indicators: list[Indicator] | None, one: dict[str, Any]) -> None:
    count = column.outcome.count
    typer.echo(f"{patient.found.name}: right about {count.hits} of {count.total} after {what}, {_ball(patient)}")
    if indicators is not None:
        typer.echo()
        _show_doubts(indicators)
        unknown = sum(each.verdict == "unknown" for each in indicators)
        typer.echo(f"\n{one['flags']} of {len(indicators)} indicators doubt these numbers ({unknown} could not tell)")
    if "teachers" in one:
        _show_teachers(patient)
    if "relevance" in one:
        _show_relevance(patient)


def _ball(patient: Patient) -> str:
    threat = patient.found.protocols[-1].threat
    assert threat is not None  # an attack was named
    return f"{threat.norm} {threat.eps * 255:g}/255" if threat.norm == "linf" else f"{threat.norm} {threat.eps:g}"


def _show_doubts(indicators: Sequence[Indicator]) -> None:
    """Flags first, then what could not be told; drawn on a terminal, plain columns in a pipe."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

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


def _show_teachers(patient: Patient) -> None:
    typer.echo("\nteachers on these images x and the examples x' made on the student: % [95 % Wilson interval]")
    rows, bounds, whys = [], [], []
    for name, each in patient.teaching.items():
        for images, view in (("x", each.clean), ("x'", each.adversarial)):
            rows.append([name, images, _percent(view.right), _percent(view.agree), _mean(view.divergence, 3)])
        split = [_percent(each.wrong_too), _percent(each.apart), _percent(each.fooled)]
        terms = [_percent(term) for term in (each.student_wrong, each.teacher_wrong, each.disagree)]
        bounds.append([name, *split, f"{terms[0]} ≤ {terms[1]} + {terms[2]}", _slack(each)])
        whys.append(f"{name}: {each.advice}")
    print_columns(
        [
            "teacher",
            "on",
            "right",
            "says what the student says",
            "KL(teacher || student) in nats [95 % bootstrap interval]",
        ],
        rows,
    )
    typer.echo("\nthe student's errors on x', and the bound: student wrong ≤ teacher wrong + they disagree")
    head = ["teacher", "teacher wrong too", "teacher right", "fooled too", "bound", "slack"]
    print_columns(head, bounds)
    for why in whys:
        typer.echo(why)


def _slack(each: Any) -> str:
    return f"{100 * each.excess.value:.1f}, from {100 * each.slack.share:.1f} % of the images"


def _show_relevance(patient: Patient) -> None:
    typer.echo("\nhow alike relevance maps of the true class are: mean over images [95 % bootstrap interval]")
    rows = []
    for name, own in patient.alike.items():
        for what, each in own.items():
            rows.append([name, what, *_similarity(each), f"{each.cosine.count if each else 0}"])
    print_columns(["model", "its maps and", "cosine", "Spearman", "of"], rows)


def _similarity(each: Similarity | None) -> list[str]:
    return [_mean(each.cosine, 2), _mean(each.rank, 2)] if each else ["–", "–"]


def _show_radar(drawn: Radar, what: str) -> None:
    from advdistill.engine.portraits import table

    typer.echo(f"\nmodels side by side: robust under {what}, each attacked itself; all else on clean images")
    axes = [axis.name for axis in drawn.axes]
    print_columns(["model", *axes, "parameters"], [table(entry, axes) for entry in drawn.entries])
    for axis, why in drawn.left_out.items():
        typer.echo(f"no {axis} axis: {why}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _percent(count: Count) -> str:
    if not count.total:
        return "– of 0"
    low, high = count.wilson()
    return f"{100 * count.share:.1f} [{100 * low:.1f}–{100 * high:.1f}] of {count.total}"


def _mean(mean: Mean, digits: int) -> str:
    return f"{mean.value:.{digits}f} [{mean.low:.{digits}f}–{mean.high:.{digits}f}]"
