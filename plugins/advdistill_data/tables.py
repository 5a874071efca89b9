"""A table of images and their classes."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from advdistill import DataError, MissingData, resource
from advdistill_data import configs
from advdistill_data.labelled import ALIASES, Listing, PictureDataset, check_trained, numbered
from advdistill_data.pictures import Files
from advdistill_data.scan import check_name, existing_folder


class Csv(PictureDataset):
    """Images listed in a table: path, class and, where there is such a column, split.

    Labels follow the sorted classes, or are what the table says where it says whole numbers.

    Raises:
        DataError: no such table or column, a row that is not complete, an image that stands twice or is missing, a
            split of another name, labels with gaps, or what `PictureDataset` says.
    """

    config: configs.Csv

    def __init__(self, config: configs.Csv) -> None:
        file = resource(config.file)
        root = existing_folder(config.root) if config.root else file.parent
        content = _read(file)
        rows = list(_rows(content, file, root, config))
        _check_there(rows, file, root)
        keys, labels = numbered([label for _, label, _ in rows], str(file))
        samples: dict[str, tuple[list[str], list[int]]] = {}
        for (path, _, part), label in zip(rows, labels, strict=True):
            ids, found = samples.setdefault(part, ([], []))
            ids.append(path)
            found.append(label)
        check_trained(samples, keys, str(file))
        facts = {"table": hashlib.sha256(content).hexdigest()}
        shares = {"test": config.test_share, "val": config.val_share}
        super().__init__(config, Files(root), Listing(keys, samples, facts=facts, parts=[file]), shares)

    @property
    def place(self) -> str:
        return self.config.file


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise MissingData(
            f"there is no table {file}", "correct data.file; a relative path starts at the current folder"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"table {file} cannot be read: {error}", "correct data.file") from error


def _rows(content: bytes, file: Path, root: Path, config: configs.Csv) -> Iterator[tuple[str, str, str]]:
    """Path, class and split of each row."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"table {file} is not UTF-8: {error}", "save it as UTF-8, or convert it with iconv") from error
    separator = config.separator or ("\t" if file.suffix.lower() == ".tsv" else ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        columns = _columns(names, file, config)
        seen: dict[str, int] = {}
        for row in reader:
            where = f"{file}:{reader.line_num}"
            if not row:
                continue
            if len(row) != len(names):
                raise DataError(
                    f"{where}: {len(row)} columns; the first row names {len(names)}",
                    "put texts that hold the separator into quotation marks",
                )
            path, label, part = (row[place].strip() if place is not None else "train" for place in columns)
            if not path:
                raise DataError(f"{where}: {path!r} is no path", "name an image, or delete the row")
            check_name(path, where)
            if not label:
                raise DataError(f"{where}: {path} has no class", "name its class, or delete the row")
            if part.lower() not in ALIASES:
                raise DataError(f"{where}: {part!r} is no split", "write train, val or test")
            before = seen.setdefault(os.path.normpath(root / path), reader.line_num)
            if before != reader.line_num:
                raise DataError(f"{where}: {path} stands in line {before} already", "list every image once")
            yield path, label, ALIASES[part.lower()]
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: {error}", "correct the row, or data.separator") from error


def _columns(names: list[str], file: Path, config: configs.Csv) -> tuple[int, int, int | None]:
    """Where path, class and split stand in a row; None: there is no split."""
    wanted = {"path_column": config.path_column, "label_column": config.label_column}
    if config.split_column != "split" or "split" in names:
        wanted["split_column"] = config.split_column
    for setting, name in wanted.items():
        if names.count(name) != 1:
            told = "no column" if name not in names else "more than one column"
            raise DataError(
                f"{file}:1: there is {told} {name!r}; it names {', '.join(map(repr, names)) or 'none'}",
                f"name the columns in the first row, or correct data.{setting} or data.separator",
            )
    path, label, *split = (names.index(name) for name in wanted.values())
    return path, label, split[0] if split else None


def _check_there(rows: Sequence[tuple[str, str, str]], file: Path, root: Path) -> None:
    if not rows:
        raise DataError(f"table {file} lists no images", "write one image a row below the names of the columns")
    if absent := [path for path, _, _ in rows if not (root / path).is_file()]:
        raise DataError(
            f"{file} lists {absent[0]}, which is not in {root}"
            + (f", nor are {len(absent) - 1} others" if len(absent) > 1 else ""),
            "complete the images, correct the paths, or give the folder that they start at as data.root",
        )
