"""A picture of some samples of a data set, with their names and classes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advdistill.engine.data import Dataset, Split, image_of, pixels, stratified
from advdistill.engine.pictures import FAINT, INK, STYLE, save
from advdistill.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LETTERS = 23
"""Characters of small print that are about as wide as an image."""


def contact_sheet(name: str, part: str, data: Dataset, count: int) -> Figure:
    """Samples of a split in the order of their classes, as evenly from all as `count` allows, as they are evaluated.

    Args:
        name: of the data set. part: "train", "val" or "test".
        count: how many images to show at most.

    Raises:
        DataError: there is no such split, or none of the images can be read.
    """
    import matplotlib
    from matplotlib.figure import Figure

    split = data.split(part)
    some = stratified(split.labels, count, seed=0)
    chosen = some[split.labels[some].argsort(stable=True)].tolist()
    images = _images(split, chosen)
    shown = [image for image in images if not isinstance(image, DataError)]
    if not shown:
        raise DataError(f"none of the {len(chosen)} images of {part} that were chosen can be read: {images[0]}")
    high, wide = shown[0].shape[:2]

    # All in inches, from the top left corner.
    columns = min(max(math.ceil(math.sqrt(1.6 * len(chosen))), 4), len(chosen))
    rows = math.ceil(len(chosen) / columns)
    cell, gap, text, head, edge = 1.5, 0.16, 0.46, 0.86, 0.22
    width = max(2 * edge + columns * cell + (columns - 1) * gap, 5.0)
    height = head + rows * (cell + text) + edge / 2
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))

        def write(x: float, y: float, words: str, **look: Any) -> None:
            figure.text(x / width, 1 - y / height, words, **{"va": "center", **look})

        write(edge, 0.32, f"{_short(name, 40)} · {part}", fontsize=13, weight="bold")
        less = f", {len(chosen)} of them here" if len(chosen) < len(split) else ""
        facts = f"{len(split):,} images{less} · {len(data.classes):,} classes · {wide} × {high} pixels"
        write(edge, 0.6, facts, color=FAINT)
        for place, (index, image) in enumerate(zip(chosen, images, strict=True)):
            row, column = divmod(place, columns)
            x, y = edge + column * (cell + gap), head + row * (cell + text)
            axes = figure.add_axes((x / width, 1 - (y + cell) / height, cell / width, cell / height))
            if isinstance(image, DataError):
                axes.set_facecolor("#eaeef2")
                axes.text(0.5, 0.5, "cannot be read", ha="center", color=FAINT, transform=axes.transAxes)
            else:
                axes.imshow(image, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            for spine in axes.spines.values():
                spine.set(visible=True, color="#d0d7de", linewidth=0.8)
            label = data.classes.names[int(split.labels[index])]
            write(x, y + cell + 0.12, _short(label, _LETTERS - 3), fontsize=8, color=INK)
            write(x, y + cell + 0.27, _short(Path(split.ids[index]).name, _LETTERS + 2), fontsize=6.5, color=FAINT)
    return figure


def save_sheet(figure: Figure, path: Path) -> None:
    """Write the picture; a letter that the font lacks is an empty box in it. Errors as for `pictures.save`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        save(figure, path)


def _images(split: Split, chosen: Sequence[int]) -> list[Any]:
    """(H, W, 3) of each; the error of one that cannot be read."""
    found: list[Any] = []
    for index in chosen:
        try:
            found.append(pixels(image_of(split, index)).permute(1, 2, 0).clamp(0, 1).numpy())
        except DataError as error:
            found.append(error)
    return found


def _short(text: str, most: int) -> str:
    """With its middle left out where it is too long: file names often end in what tells them apart."""
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"
