"""What a study ends in: `study.md`, `study.csv` and pictures in its folder, whatever of it is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advdistill.errors import DataError, UserError
from advdistill.study import efficiency, figure, others, transfer
from advdistill.study.efficiency import UNITS, Efficiency
from advdistill.study.notes import notes
from advdistill.study.table import EQUAL, Compared, Line, Share, Table, write_csv
from advdistill.study.transfer import Matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from advdistill.engine.compare import Row as Pair
    from advdistill.engine.evaluate import Progress
    from advdistill.study.run import Found

Cells = Sequence[Sequence[str]]


def write(found: Found, told: Progress = lambda what, done, total: None) -> list[Path]:
    """Write everything that can be said; what is missing or failed is named in it.

    Args:
        told: is told how far other models and the matrix of transfer are, where the study asks for them.

    Returns:
        The files: `study.md`, `study.csv`, and as far as there is something to draw `study.png`, `efficiency.png`,
        `transfer.csv`, `transfer.png`.

    Raises:
        RunError: a file cannot be written.
    """
    table = Table(found)
    folder = found.plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[Path] = []

    def drawn(name: str, picture: Callable[[], Figure]) -> str:
        """Draw it, and how `study.md` shows it, or why there is none."""
        from advdistill.engine.pictures import save

        try:
            made = picture()
        except DataError as error:
            (folder / name).unlink(missing_ok=True)  # a picture of what was there before
            return f"*{error.message}*"
        save(made, folder / name)
        pictures.append(folder / name)
        return f"![{name.removesuffix('.png')}]({name})"

    parts = [_head(table), _results(table)]
    if table.study.others:
        parts += _others(table, told)
    parts.append(drawn("study.png", lambda: figure.draw(table)))
    if table.study.efficiency:
        parts += _efficiency(table, drawn)
    if asked := table.study.transfer:
        parts.append("## Who is misled by whose images")
        try:
            matrices = transfer.measure(table, told)
        except UserError as error:
            parts.append(f"*Not measured: {error.message}*")
        else:
            transfer.save(matrices, folder / "transfer.csv")
            pictures.append(folder / "transfer.csv")
            parts += [*_transfer(matrices), drawn("transfer.png", lambda: transfer.draw(matrices, asked.attack))]
            parts.append(_transfer_note(table))
    parts += ["## Notes", "\n".join(f"- {note}" for note in notes(table))]
    from advdistill.engine.checkpoint import write_bytes

    write_csv(folder / "study.csv", *_tidy(table))
    write_bytes(folder / "study.md", ("\n\n".join(part for part in parts if part) + "\n").encode())
    return [folder / "study.md", folder / "study.csv", *pictures]


def summary(found: Found) -> dict[str, Any]:
    """The table as plain data: shares in [0, 1], differences row minus the one that it is compared with."""
    table = Table(found)
    return {
        "study": found.plan.study.name,
        "title": table.study.title,
        "main": table.main,
        "clean": table.clean,
        "seeds": list(table.study.seeds),
        "rows": [
            {
                "name": line.row.name,
                "levels": dict(line.row.levels),
                "seeds": [cell.cell.seed for cell in line.cells],
                "columns": {
                    name: {"accuracy": share.mean, "interval95": [share.low, share.high], "seeds": list(share.seeds)}
                    for name, share in line.shares.items()
                },
                "differences": {
                    axis: _difference(each) for (axis, name), each in table.compared.items() if name == line.row.name
                },
                "steps": line.steps,
                "passes": line.passes,
                "seconds": line.seconds,
                "chosen": list(found.chosen[line.row.name].words) if line.row.name in found.chosen else [],
            }
            for line in table.lines
        ],
        "failed": dict(found.failed),
        "unread": dict(table.unread),
        "missing": table.missing,
    }


def _difference(each: Compared) -> dict[str, Any]:
    if each.pair is None:
        return {"against": each.against.name, "why": each.why}
    pair = each.pair
    return {
        "against": each.against.name,
        "difference": pair.difference,
        "interval95": [pair.low, pair.high],
        "p": pair.p,
        "p_holm": pair.adjusted,
        "detectable": pair.detectable,
        "seen": pair.seen,
        "words": pair.words,
    }


def _head(table: Table) -> str:
    rows, seeds = len(table.rows), len(table.study.seeds)
    read = sum(len(line.cells) for line in table.lines)
    there = "all of them finished" if read == rows * seeds else f"**{read} of {rows * seeds} are there**"
    title = table.study.title or f"Study {table.found.plan.study.name}"
    return (
        f"# {title}\n\nAccuracy in %, mean over {seeds} seeds ± half of its 95 % interval; "
        f"{rows * seeds} runs, {there}."
    )


def _results(table: Table) -> str:
    """The table: a line a row, finished or not."""
    if not table.lines:
        return "*No run is finished.*"
    against = table.study.against
    header = [*table.axes, *(_bold(table.titled(name), name == table.main) for name in table.headings)]
    for level in against.values():
        header += [f"difference to {level}, points [95 %]; p", "in words"]
    header += ["optimizer steps", "image passes", "seconds"]
    lines = []
    for row in table.rows:
        line = table.line(row)
        cells = [row.levels[axis] for axis in table.axes]
        shares = line.shares if line else {}
        cells += [_bold(_share(shares.get(name)), name == table.main) for name in table.headings]
        if line and len(line.cells) < len(table.study.seeds):
            cells[-len(table.headings)] += f" ({len(line.cells)} of {len(table.study.seeds)} seeds)"
        for axis in against:
            cells += _compared(table.compared.get((axis, row.name)))
        if line:
            cells += [_count(line.steps), _passes(table, line), f"{line.seconds:.3g}"]
        else:
            cells += ["–"] * 3
        lines.append(cells)
    left = {*range(len(table.axes)), *(place for place, name in enumerate(header) if name == "in words")}
    return markdown(header, lines, left)


def _others(table: Table, told: Progress) -> Iterator[str]:
    """Models that no cell trained."""
    yield "Beside them, measured in the same way, one model each:"
    try:
        found = others.measure(table, told)
    except UserError as error:
        yield f"*Not measured: {error.message}*"
        return
    header = ["", *(_bold(table.titled(name), name == table.main) for name in table.headings)]
    lines = [
        [name, *(_bold(_share(shares.get(heading)), heading == table.main) for heading in table.headings)]
        for name, shares in found.items()
    ]
    yield markdown(header, lines)


def markdown(header: Sequence[str], lines: Cells, left: Iterable[int] = (0,)) -> str:
    """A Markdown table; columns not in `left` are set to the right."""
    rule = ["---" if place in set(left) else "---:" for place in range(len(header))]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (header, rule, *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _bold(text: str, so: bool) -> str:
    return f"**{text}**" if so and text != "–" else text


def _share(share: Share | None) -> str:
    return f"{100 * share.mean:.1f} ± {100 * share.half:.1f}" if share else "–"


def _compared(each: Compared | None) -> list[str]:
    """Difference with interval and p, and what can be said of it in a few words."""
    if each is None:
        return ["", ""]
    if each.pair is None:
        return ["–", each.why]
    pair = each.pair
    interval = f"[{100 * pair.low:+.1f}, {100 * pair.high:+.1f}]"
    p = f"{pair.adjusted:.3f}" if pair.adjusted >= 0.001 else "<0.001"
    return [f"{100 * pair.difference:+.1f} {interval}; {p}", _verdict(pair)]


def _verdict(pair: Pair) -> str:
    """`pair.words` where the header says beside whom."""
    from advdistill.engine.compare import LEVEL

    side = "better" if pair.difference > 0 else "worse"
    if pair.seen:
        return f"**{side}**"
    if pair.detectable >= 1:
        return "no difference seen, and none could have been"
    unseen = f"less than {100 * pair.detectable:.1f} could not have been seen"
    return f"seems {side}, but not after Holm; {unseen}" if pair.p <= LEVEL else f"no difference seen; {unseen}"


def _passes(table: Table, line: Line) -> str:
    """Image passes, and beside those of the row whose it is meant to spend."""
    said = _count(line.passes)
    if meant := table.passes(line):
        row, ratio = meant
        if math.isnan(ratio):
            return f"{said} (as {row.name}: not there)"
        word = "as" if abs(ratio - 1) <= EQUAL else "**not** as"
        said += f" ({word} {row.name}: {ratio:.2f}×)"
    return said


def _count(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    return f"{value:,.0f}"


def _efficiency(table: Table, drawn: Callable[[str, Callable[[], Figure]], str]) -> Iterator[str]:
    yield "## How much sooner"
    try:
        found = Efficiency(table)
    except DataError as error:
        yield f"*{error.message}: {error.hint}*"
        return
    if found.sooner:
        lines = []
        for first in found.sooner[:: len(UNITS)]:
            same = [each for each in found.sooner if (each.row, each.against) == (first.row, first.against)]
            reached = f"{first.reached} of {first.seeds}"
            lines.append([first.row.name, first.against.name, *(each.words for each in same), reached])
        header = ["", "beside", *(f"by {words}" for words in UNITS.values()), "seeds that got there"]
        yield markdown(header, lines, left=(0, 1))
    if found.apart:
        yield (
            f"No ratio for {', '.join(found.apart)}: the probes are made by another attack than those of the row "
            "beside, and cannot be compared (`evaluate.probe.attack` sets one for all)."
        )
    yield drawn("efficiency.png", lambda: efficiency.draw(table, found))
    if not found.sooner:
        return
    yield (
        "Times sooner that a row comes to the final robust accuracy of the one beside it, on the probes of training: "
        "what that one spent until it first got there, over what the row spent; geometric mean over seeds [95 % "
        "interval, Student's t over seeds]. Curves are made monotone (isotonic regression) before they are read. A run "
        "that never gets there is counted with all that it spent, and the ratio is then an upper bound (“at most”), "
        "without an interval."
    )


def _transfer(matrices: Sequence[Matrix]) -> Iterator[str]:
    for matrix in matrices:
        if matrix.where:
            yield "**" + " · ".join(matrix.where.values()) + "**"
        lines = [
            [shown, _pair(matrix.clean(shown)), *(_pair(matrix.attacked(shown, made)) for made in matrix.names)]
            for shown in matrix.names
        ]
        yield markdown(["shown to", "clean", *(f"made on {name}" for name in matrix.names)], lines)


def _transfer_note(table: Table) -> str:
    asked = table.study.transfer
    assert asked is not None
    settings = "".join(f", {key} {value}" for key, value in asked.settings.items())
    some = f" on {asked.limit} samples" if asked.limit else ""
    return (
        f"Accuracy in % of the model in the line on images made by {asked.attack}{settings} on the model of the "
        f"column{some}; mean over seeds ± half of its 95 % interval (Student's t over seeds). On the diagonal a model "
        "sees images made on itself."
    )


def _pair(found: tuple[float, float]) -> str:
    mean, half = found
    return f"{100 * mean:.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def _tidy(table: Table) -> tuple[list[str], list[list[Any]]]:
    """Header and lines of `study.csv`: a line for each cell and column. (An axis may well be called "steps".)"""
    header = [
        *table.axes,
        "seed",
        "column",
        "hits",
        "total",
        "share",
        "optimizer_steps",
        "image_passes",
        "seconds",
        "run",
    ]
    lines = [
        [
            *(line.row.levels[axis] for axis in table.axes),
            each.cell.seed,
            heading,
            int(right.sum()),
            len(right),
            float(right.mean()),
            each.steps,
            each.passes,
            round(each.seconds, 3),
            each.cell.unit.folder,
        ]
        for line in table.lines
        for each in line.cells
        for heading, right in each.right.items()
    ]
    return header, lines
