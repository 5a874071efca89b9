"""What `advdistill diagnose` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from advdistill.cli.output import print_columns

if TYPE_CHECKING:
    from advdistill.engine.count import Count
    from advdistill.engine.diagnosis import Patient
    from advdistill.engine.doubt import Indicator
    from advdistill.engine.radar import Radar
    from advdistill.engine.relevance import Similarity
    from advdistill.engine.teaching import Mean, Teaching


def show(patient: Patient, count: Count, indicators: Sequence[Indicator] | None, one: Mapping[str, Any]) -> None:
    """What was found of one model.

    Args:
        count: right under attack. indicators: None: nothing was doubted.
        one: the same as plain data, which says what else is there: `flags`, `teachers`, `relevance`.
    """
    from advdistill.engine.card import distance

    ball = distance(patient.threat.norm, patient.threat.eps)
    typer.echo(f"{patient.found.name}: right about {count.hits} of {count.total} after {patient.protocol.name}, {ball}")
    if indicators is not None:
        typer.echo()
        _show_doubts(indicators)
        unknown = sum(each.verdict == "unknown" for each in indicators)
        typer.echo(f"\n{one['flags']} of {len(indicators)} indicators doubt these numbers ({unknown} could not tell)")
    if "teachers" in one:
        _show_teachers(patient)
    if "relevance" in one:
        _show_relevance(patient)


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
    typer.echo("\nteachers on these images x and the examples x' made on the student: % [95 % interval]")
    rows, bounds, whys = [], [], []
    for name, each in patient.teaching.items():
        for images, view in (("x", each.clean), ("x'", each.adversarial)):
            rows.append([name, images, _percent(view.right), _percent(view.agree), _mean(view.divergence, 3)])
        split = [_percent(each.wrong_too), _percent(each.apart), _percent(each.fooled)]
        terms = [_percent(term) for term in (each.student_wrong, each.teacher_wrong, each.disagree)]
        bounds.append([name, *split, f"{terms[0]} ≤ {terms[1]} + {terms[2]}", _slack(each)])
        whys.append(f"{name}: {each.advice}")
    print_columns(["teacher", "on", "right", "says what the student says", "KL(teacher || student) in nats"], rows)
    typer.echo("\nthe student's errors on x', and the bound: student wrong ≤ teacher wrong + they disagree")
    head = ["teacher", "teacher wrong too", "teacher right", "fooled too", "bound", "slack"]
    print_columns(head, bounds)
    for why in whys:
        typer.echo(why)


def _slack(each: Teaching) -> str:
    return f"{100 * each.excess.value:.1f}, from {100 * each.slack.share:.1f} % of the images"


def _show_relevance(patient: Patient) -> None:
    typer.echo("\nhow alike relevance maps of the true class are: mean over images [95 % interval]")
    rows = []
    for name, own in patient.alike.items():
        for what, each in own.items():
            rows.append([name, what, *_similarity(each), f"{each.cosine.count if each else 0}"])
    print_columns(["model", "its maps and", "cosine", "Spearman", "of"], rows)


def _similarity(each: Similarity | None) -> list[str]:
    return [_mean(each.cosine, 2), _mean(each.rank, 2)] if each else ["–", "–"]


def show_radar(drawn: Radar, attack: str) -> None:
    """The values behind the radar, and what it has no axis for."""
    from advdistill.engine.portraits import table

    typer.echo(f"\nmodels side by side: robust under {attack}, each attacked itself; all else on clean images")
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
