"""Tables of results: one row a model, one column a protocol, every number with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from advdistill.engine.count import Count
    from advdistill.engine.evaluate import Results

TITLE = "accuracy in % [95 % Wilson interval]"
STORED = "* stored: measured when the model was made, under the same statement"


def results_table(rows: Sequence[Results], strong: Sequence[str] = ("student",)) -> Table:
    """The table of `rows`, in their order, for a terminal of any width.

    Args:
        rows: what `evaluate` returned, several models or one.
        strong: subjects whose rows are set in bold.
    """
    names = _protocols(rows)
    caption = STORED if any(row.stored for row in rows) else None
    table = Table(title=TITLE, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.add_column("model")
    for name in names:
        told = "".join(f"\n{line}" for line in (_knowledge(rows, name), _condition(rows, name)) if line)
        table.add_column(Text.assemble(name, (told, "dim")), justify="right")
    for row in rows:
        style = "bold" if row.subject in strong else ""
        table.add_row(_subject(row), *(_styled(row.counts.get(name)) for name in names), style=style)
    return table


def results_text(rows: Sequence[Results]) -> str:
    """The same table as aligned plain text, for files and pipes; ends in a newline."""
    names = _protocols(rows)
    heads = [["", *(said(rows, name) for name in names)] for said in (_knowledge, _condition)]
    cells = [["model", *names], *(head for head in heads if any(head))]
    cells += [[_subject(row), *(_styled(row.counts.get(name)).plain for name in names)] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names) + 1)]
    lines = [TITLE]
    for first, *others in cells:
        numbers = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([f"{first:<{widths[0]}}", *numbers]).rstrip())
    lines += [STORED] if any(row.stored for row in rows) else []
    return "\n".join(lines) + "\n"


def _protocols(rows: Sequence[Results]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.counts))


def _condition(rows: Sequence[Results], protocol: str) -> str:
    """Ball and number of samples, such as "linf 8/255, n=400"; "n varies" where rows differ."""
    row = next(row for row in rows if protocol in row.counts)
    totals = {row.counts[protocol].total for row in rows if protocol in row.counts}
    count = f"n={totals.pop():,}" if len(totals) == 1 else "n varies"
    threat: dict[str, Any] | None = row.statements.get(protocol, {}).get("threat")
    if not threat:
        return count
    unit = f"{threat['eps'] * 255:.4g}/255" if threat["norm"] == "linf" else f"{threat['eps']:g}"
    return f"{threat['norm']} {unit}, {count}"


def _knowledge(rows: Sequence[Results], protocol: str) -> str:
    """What the attacker has to go on; "" for clean accuracy."""
    said = {row.statements[protocol].get("knowledge", "") for row in rows if protocol in row.statements}
    return " or ".join(sorted(said - {"", "none"}))


def _subject(row: Results) -> str:
    return f"{row.subject} *" if row.stored else row.subject


def _styled(count: Count | None) -> Text:
    if count is None:
        return Text("–")
    low, high = count.wilson()
    return Text.assemble(f"{100 * count.share:.1f} ", (f"[{100 * low:.1f}–{100 * high:.1f}]", "dim"))


def print_results(rows: Sequence[Results]) -> None:
    """The table on stdout: drawn on a terminal, plain columns in a pipe."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(results_table(rows))
    else:
        typer.echo(results_text(rows), nl=False)
