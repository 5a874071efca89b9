"""What the numbers of a study rest on, and what is not among them: the notes below its tables."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from advdistill.recipe.study import BETWEEN
from advdistill.study.cells import Unit, word
from advdistill.study.table import EQUAL, Table, number


def notes(table: Table) -> Iterator[str]:
    """One Markdown text each, of one item or of an item with a list below."""
    found, study = table.found, table.study
    yield from _bounds(table)
    yield from _tuning(table)
    yield f"Seeds {', '.join(map(str, study.seeds))}: the rows of one seed share draw, initialisation and noise."
    for title, why in found.failed.items():
        yield f"Failed: {title}: {' '.join(why.split())}"
    for title, why in table.unread.items():
        yield f"Cannot be read: {title}: {' '.join(why.split())}"
    lacks = {row for rows in found.lacks.values() for row in rows}
    if missing := [title for title in table.missing if title.rpartition(BETWEEN)[0] not in lacks]:
        yield f"Missing: {', '.join(missing)}."
    for why, rows in found.lacks.items():
        yield f"Cannot be run here: {', '.join(rows)}: {why}."
    for scope, why in found.plan.left_out(found.cells).items():
        yield f"{scope} was not measured where it is missing: {why}."
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
    yield _samples(table)
    made = {bool(s.shape[1]) for line in table.lines for s in line.cells[0].sources.values()}
    drawn = " or ".join("the pictures that samples are made of" if so else "samples" for so in sorted(made))
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


def _samples(table: Table) -> str:
    """How many, apart for columns or rows only where these differ in it."""
    shown = [(name, line) for name in table.headings for line in table.lines if name in line.shares]
    said: dict[str, list[tuple[str, str]]] = {}
    for name, line in shown:
        first = line.cells[0]
        sources = first.sources[name]
        made = f" made of {len(set(sources.ravel().tolist())):,} pictures" if sources.shape[1] else ""
        said.setdefault(f"{len(first.right[name]):,} test samples{made}", []).append((name, line.row.name))
    if len(said) == 1:
        return f"Measured on {next(iter(said))}."
    columns = [{name for name, _ in places} for places in said.values()]
    by = 0 if sum(map(len, columns)) == len({name for name, _ in shown}) else 1
    told = (f"{text} ({', '.join(dict.fromkeys(each[by] for each in places))})" for text, places in said.items())
    return f"Measured on {'; '.join(told)}."


def _tuning(table: Table) -> Iterator[str]:
    """Budget, grids and winners."""
    plan, chosen = table.found.plan, table.found.chosen
    tuned = [row for row in table.rows if row.tuned]
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
            lost = [" ".join(words) for words, score in best.scores.items() if score is None]
            diverged = f"; {len(lost)} diverged: `{'`, `'.join(lost)}`" if lost else ""
            if score := best.scores[best.words]:
                edges = _edges(grid, best.words)
                edge = f"; at the edge of its grid: {', '.join(edges)}" if edges else ""
                reached = f"{100 * score[0]:.1f} % robust, {100 * score[1]:.1f} % clean{edge}{diverged}"
                said.append(f"{row.name}: `{' '.join(best.words)}` of {tried} ({reached})")
            else:
                said.append(f"{row.name}: of {tried}: all diverged; the first is taken")
        else:
            said.append(f"{row.name}: of {tried}: not tuned, since trials failed or are missing")
    yield "\n  - ".join(said)


def _edges(grid: Mapping[str, Sequence[Any]], won: Sequence[str]) -> list[str]:
    """Settings of which the least or the largest number won: a wider grid may hold a better one."""
    found = []
    for path, values in grid.items():
        numbers = {word(path, value): number(str(value)) for value in values}
        known = [each for each in numbers.values() if each is not None]
        best = next(numbers[each] for each in won if each in numbers)
        if len(known) == len(values) > 1 and best in (min(known), max(known)):
            found.append(path)
    return found


def _opened(table: Table) -> str:
    """When test data was looked at, and whether all was chosen by then."""
    opened = [each.facts["opened"] for line in table.lines for each in line.cells]
    first, last = min(opened), max(opened)
    span = " to ".join(dict.fromkeys(f"{when:%Y-%m-%d %H:%M}" for when in (first, last))) + " UTC"
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
    said = trial.facts()
    try:
        return datetime.fromisoformat(said["opened"]) + timedelta(seconds=said["measured here for"])
    except (ValueError, KeyError, TypeError):
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
