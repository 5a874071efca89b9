"""Trees of image files: listed afresh every time, in a fixed order.

Nothing is kept from one listing to the next. The operating system remembers folders better than a cache of ours could
know that one has changed: 100,000 files take some tenths of a second.
"""

from __future__ import annotations

import os
from pathlib import Path

from advdistill import DataError, MissingData, resource

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def existing_folder(path: str | Path) -> Path:
    """The folder at `path`. Raises MissingData where there is nothing, DataError where there is something else."""
    try:
        root = resource(str(path))
        if root.is_dir():
            return root
        there = root.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, ~ of a user that does not exist
        raise DataError(f"{path!r} is no path: {error}", "correct data.root") from error
    if there:
        raise DataError(f"{root} is not a folder", "if it is an archive, unpack it and give the folder")
    raise MissingData(f"there is no folder {root}", "correct data.root; a relative path starts at the current folder")


def is_folder(path: Path) -> bool:
    """Whether there is a folder. Raises DataError where there cannot be anything of that name."""
    try:
        return path.is_dir()
    except (OSError, ValueError) as error:  # too long, a NUL
        raise DataError(f"{str(path)[:80]!r} is no path: {error.__class__.__name__}", "correct the path") from error


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders in `folder`, sorted."""
    return [entry.name for entry in _entries(folder) if _is_folder(entry)]


def images_below(root: Path, folder: str) -> list[str]:
    """Image files anywhere below `root/folder`, as sorted `/`-separated paths relative to `root`.

    Hidden files and other suffixes are passed over. Symbolic links are followed, each folder once; one that leads to a
    folder which this one lies in is passed over, for what lies there is somebody else's.

    Raises:
        DataError: a folder cannot be listed, or a name is not UTF-8.
    """
    found: list[str] = []
    above = set((root / folder).resolve().parents)
    if folder:
        above |= {root.resolve(), *root.resolve().parents}
    seen = {_identity(str(each)) for each in above}

    def walk(relative: str) -> None:
        here = f"{root}/{relative}"
        if (known := _identity(here)) in seen:
            return
        seen.add(known)
        for entry in _entries(here):
            below = f"{relative}/{entry.name}" if relative else entry.name
            if _is_folder(entry):
                walk(below)
            elif entry.name.lower().endswith(SUFFIXES):
                found.append(below)

    walk(folder)
    return sorted(found)


def _identity(folder: str) -> tuple[int, int]:
    try:
        facts = os.stat(folder)  # noqa: PTH116
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}", "check its permissions") from error
    return facts.st_dev, facts.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if entry.name[0] != "." and entry.name != "__MACOSX"]
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}", "check its permissions") from error
    for entry in visible:
        if not entry.name.isprintable():
            check_name(entry.name, folder)
    return sorted(visible, key=lambda entry: entry.name)


def check_name(name: str, where: str | Path) -> None:
    """Raise DataError where a name has bytes that are not UTF-8, or control characters such as line breaks: it could
    stand in no record of the run, and a terminal would obey it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = repr(os.fsencode(name)).removeprefix("b")
        raise DataError(f"{where}: the name {shown} is not UTF-8", "rename it, for example with convmv") from None
    if any(letter < " " or letter == "\x7f" for letter in name):
        raise DataError(f"{where}: the name {name!r} has control characters", "rename it")
