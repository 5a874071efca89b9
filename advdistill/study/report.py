"""What a study ends in: `study.md`, `study.csv` and pictures in its folder, whatever of it is there."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advdistill.errors import DataError, UserError
from advdistill.study import efficiency, figure, transfer
from advdistill.study.cells import Unit
from advdistill.study.efficiency import UNITS, Efficiency
from advdistill.study.table import EQUAL, Compared, Line, Share, Table, write_csv
from advdistill.study.transfer import Matrix, Told

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from advdistill.engine.compare import Row as Pair
    from advdistill.study.run import Found

Cells = Sequence[Sequence[str]]


def write(found: Found, told: Told = lambda what, done, total: None) -> list[Path]:
    """Write everything that can be said; what is missing or failed is named in it.

    Args:
        told: is told how far the matrix of transfer is, where the study asks for one.

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

    parts = [_head(table), _results(table), drawn("study.png", lambda: figure.draw(table))]
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
    parts += ["## Notes", "\n".join(f"- {note}" for note in _notes(table))]
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
    header += ["steps", "image passes", "seconds"]
    lines = []
    for row in table.rows:
        line = table.line(row)
        cells = [row.levels[axis] for axis in table.axes]
        shares = line.shares if line else {}
        cells += [_bold(_share(shares.get(name)), name == table.main) for name in table.headings]
        for axis in against:
            cells += _compared(table.compared.get((axis, row.name)))
        if line:
            cells += [_count(line.steps), _passes(table, line), f"{line.seconds:.3g}"]
        else:
            cells += ["–"] * 3
        lines.append(cells)
    left = {*range(len(table.axes)), *(place for place, name in enumerate(header) if name == "in words")}
    return markdown(header, lines, left)


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
        "that never gets there is counted with all that it spent, and the ratio is then an upper bound (“at most”)."
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


def _notes(table: Table) -> Iterator[str]:
    """What the numbers rest on, and what is not among them."""
    found, study = table.found, table.study
    yield from _bounds(table)
    yield from _tuning(table)
    yield f"Seeds {', '.join(map(str, study.seeds))}: the rows of one seed share draw, initialisation and noise."
    for title, why in found.failed.items():
        yield f"Failed: {title}: {' '.join(why.split())}"
    for title, why in table.unread.items():
        yield f"Cannot be read: {title}: {' '.join(why.split())}"
    if missing := table.missing:
        yield f"Missing: {', '.join(missing)}."
    if table.lines:
        yield _opened(table)
        yield from _where(table)
    yield f"Command: `{shlex.join(['advdistill', 'study', *_words(table)])}`"


def _words(table: Table) -> list[str]:
    """What was written after `advdistill study`; a study that ships by its name."""
    from advdistill.errors import RecipeError
    from advdistill.hooks.registry import default_registry
    from advdistill.recipe.loader import find_recipe
    from advdistill.recipe.study import FOLDER

    plan = table.found.plan
    path = plan.study.path
    try:
        ships = find_recipe(path.stem, default_registry(), folder=FOLDER) == path
    except RecipeError:
        ships = False
    words = [path.stem if ships else str(path), *plan.study.overrides]
    return [*words, *(word for plugin in plan.plugins for word in ("--plugin", plugin))]


def _bounds(table: Table) -> Iterator[str]:
    """Samples, how intervals are made, and what could not have been seen."""
    if not table.lines:
        return
    first = table.lines[0].cells[0]
    said = []
    for name in table.headings:
        if name in first.right:
            sources = first.sources[name]
            made = f" made of {len(set(sources.ravel().tolist())):,} pictures" if sources.shape[1] else ""
            said.append((name, f"{len(first.right[name]):,} test samples{made}"))
    if len({text for _, text in said}) == 1:
        yield f"Measured on {said[0][1]}, the same for every row."
    else:
        yield "Measured on " + "; ".join(f"{text} ({name})" for name, text in said) + "."
    drawn = "the pictures that samples are made of" if any(s.shape[1] for s in first.sources.values()) else "samples"
    yield f"Intervals are by bootstrap over {drawn} and seeds."
    pairs = [each.pair for each in table.compared.values() if each.pair]
    if pairs:
        yield (
            f"Differences are in {table.main}; p is the bootstrap's after Holm's correction over the table's "
            f"{len(pairs)} comparison{'s' if len(pairs) > 1 else ''}."
        )
        least, most = min(pair.detectable for pair in pairs), max(pair.detectable for pair in pairs)
        if most >= 1:
            yield "Some differences could not have been seen at all: too few seeds or samples."
        else:
            span = (
                f"{100 * least:.1f}" if round(1000 * (most - least)) < 1 else f"{100 * least:.1f} to {100 * most:.1f}"
            )
            yield f"Smaller differences than {span} points, by row, could not have been seen (80 % power, before Holm)."
    yield (
        "Image passes are images through any model of the run, forward and backward, while it trained (mean over "
        f"seeds); seconds are of training alone (median). Passes within {100 * EQUAL:.0f} % count as equal."
    )


def _tuning(table: Table) -> Iterator[str]:
    """Budget, grids and winners."""
    plan, chosen = table.found.plan, table.found.chosen
    tuned = [row for row in table.rows if len(row.configurations) > 1]
    if not tuned:
        return
    assert plan.tuning is not None
    said = [
        f"Tuned: {len(tuned[0].configurations)} configurations a row, one run each with seed "
        f"{table.study.tuning.seed}, chosen on validation data by the protocol {plan.tuning.name}:"
    ]
    for row in tuned:
        grid = {path: values for level in row.level for path, values in level.tune.items()}
        tried = "; ".join(f"{path} {', '.join(map(str, values))}" for path, values in grid.items())
        if best := chosen.get(row.name):
            robust, clean = best.scores[best.words]
            reached = f"{100 * robust:.1f} % robust, {100 * clean:.1f} % clean"
            said.append(f"{row.name}: `{' '.join(best.words)}` of {tried} ({reached})")
        else:
            said.append(f"{row.name}: of {tried}: not tuned, since trials failed or are missing")
    yield "\n  - ".join(said)


def _opened(table: Table) -> str:
    """When test data was looked at, and whether all was chosen by then."""
    opened = [datetime.fromisoformat(each.facts["opened"]) for line in table.lines for each in line.cells]
    first, last = min(opened), max(opened)
    span = f"{first:%Y-%m-%d %H:%M}" + ("" if first == last else f" to {last:%Y-%m-%d %H:%M}") + " UTC"
    said = f"Runs are trained with the test data out of reach; it was opened after them, {span}"
    units = [unit for _, units in table.found.plan.trials() for unit in units]
    ends = [end for unit in units if (end := _end(unit))]
    if not units:
        return f"{said}; nothing was tuned."
    # Times are kept in whole seconds.
    late = sum(end > first + timedelta(seconds=1) for end in ends)
    if late or len(ends) < len(units):
        return f"{said}; **{late} of {len(units)} trials were finished later, {len(units) - len(ends)} are not there**."
    return f"{said}; all {len(units)} trials were finished by {max(ends):%Y-%m-%d %H:%M}, before that."


def _end(trial: Unit) -> datetime | None:
    """When a trial was measured; None: it was not, or its note cannot be read."""
    import json

    try:
        said = json.loads((Path(trial.folder) / trial.measured / "unit.json").read_text(encoding="utf-8"))
        return datetime.fromisoformat(said["opened"]) + timedelta(seconds=said["measured here for"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _where(table: Table) -> Iterator[str]:
    """Machines and versions."""
    cells = [each for line in table.lines for each in line.cells]
    machines = Counter(each.facts["machine"] for each in cells)
    many = len(machines) > 1
    yield "Machine: " + "; ".join(f"{name} ({count} runs)" if many else name for name, count in machines.items()) + "."
    versions = {each.evaluation.facts.get("versions", {}).get("advdistill") for each in cells} - {None}
    if versions:
        yield f"advdistill {', '.join(sorted(versions))}."


def _tidy(table: Table) -> tuple[list[str], list[list[Any]]]:
    """Header and lines of `study.csv`: a line for each cell and column."""
    header = [*table.axes, "seed", "column", "hits", "total", "share", "steps", "passes", "seconds", "run"]
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
