"""How results reach stdout: JSON, or columns that stay readable in a pipe."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import typer


def print_json(data: Any) -> None:
    """Pretty JSON and nothing else."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def print_columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Left-aligned columns, as wide as their widest cell; the last one is not padded."""
    table = [list(header), *map(list, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header) - 1)]
    for row in table:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        typer.echo("  ".join([*padded, row[-1]]).rstrip())


def written(value: Any) -> str:
    """A setting's value in a column: text as it is, all else, and text that is empty, as JSON."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
