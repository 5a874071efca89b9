"""Pictures of a diagnosis: where models look, and models side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advdistill.engine.card import distance, percent
from advdistill.engine.pictures import COLOURS, FAINT, INK, STYLE
from advdistill.engine.radar import Entry, Radar, written
from advdistill.engine.relevance import Maps
from advdistill.engine.teaching import Said
from advdistill.engine.types import Threat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, WRONG = "#1a7f37", "#c62828"
FINE = 192
"""Pixels a side that overlays are made at, at least, so that maps are smooth on small images too."""


@dataclass(frozen=True)
class Looker:
    """A model in the picture: its maps and what it says, of the samples shown."""

    name: str
    maps: Maps
    said: Said


def relevance_figure(
    title: str,
    clean: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    names: Sequence[str],
    threat: Threat,
    lookers: Sequence[Looker],
) -> Figure:
    """A row a sample: x, x', the perturbation, and for each model its map on x and on x' over the grey image, each map
    relative to its own maximum; beneath stands what the model says, green and with a tick where right.

    Args:
        clean, adversarial: (n, 3, H, W). labels: (n,) long. names: of the classes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows, count = len(clean), len(lookers)
    # All in inches, from the top left corner.
    left, cell, gap, apart, line, head, bar = 1.35, 1.2, 0.08, 0.28, 0.24, 1.32, 0.95
    step = cell + line + 0.06
    group = 2 * cell + gap + apart
    start = left + 3 * cell + 2 * gap + apart
    width, height = start + count * group + bar, head + rows * step + 0.1
    delta = adversarial - clean
    gain = 0.5 / (threat.eps if threat.norm == "linf" else max(delta.abs().max().item(), 1e-12))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))

        def write(x: float, y: float, text: str, **look: Any) -> None:
            figure.text(x / width, 1 - y / height, text, **{"va": "center", **look})

        def show(x: float, y: float, image: Tensor, wide: float = cell, high: float = cell) -> Any:
            axes = figure.add_axes((x / width, 1 - (y + high) / height, wide / width, high / height))
            axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest", aspect="auto")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            for spine in axes.spines.values():
                spine.set(visible=True, color="#d0d7de", linewidth=0.8)
            return axes

        def says(x: float, y: float, log_probs: Tensor, label: int) -> None:
            chosen = int(log_probs.argmax())
            right = chosen == label
            said = f"{_clip(names[chosen], 13)} {100 * log_probs[chosen].exp().item():.0f} %"
            mark, colour = ("✓", RIGHT) if right else ("✗", WRONG)
            write(x + cell / 2, y, f"{said} {mark}", ha="center", color=colour, fontsize=7.5)

        write(0.2, 0.3, _clip(title, int(7.5 * width)), fontsize=13, weight="bold")
        ball = distance(threat.norm, threat.eps)
        what = f"what speaks for the true class, on x and on x' made on the student ({ball})"
        write(0.2, 0.58, what, color=FAINT)
        for number, heading in enumerate(("x", "x'", f"x' − x, × {gain:.0f}")):
            write(left + number * (cell + gap) + cell / 2, head - 0.14, heading, ha="center", color=FAINT)
        for number, looker in enumerate(lookers):
            x = start + number * group
            write(x + cell + gap / 2, head - 0.4, _clip(looker.name, 34), ha="center", weight="bold")
            for second, heading in enumerate(("on x", "on x'")):
                write(x + second * (cell + gap) + cell / 2, head - 0.14, heading, ha="center", color=FAINT)
        for row in range(rows):
            y, label = head + row * step, int(labels[row])
            write(left - 0.15, y + cell / 2, _clip(names[label], 16), ha="right", weight="bold")
            for number, image in enumerate((clean[row], adversarial[row], 0.5 + gain * delta[row])):
                show(left + number * (cell + gap), y, image)
            if not delta[row].any():
                place = left + 2 * (cell + gap) + cell / 2
                write(place, y + cell / 2, "not attacked", ha="center", color="white", fontsize=8)
            for number, looker in enumerate(lookers):
                pairs = (
                    (clean, looker.maps.clean, looker.said.clean),
                    (adversarial, looker.maps.adversarial, looker.said.adversarial),
                )
                for second, (images, maps, said) in enumerate(pairs):
                    x = start + number * group + second * (cell + gap)
                    show(x, y, overlay(images[row], maps[row]))
                    if not maps[row].any():
                        write(x + cell / 2, y + cell / 2, "nothing", ha="center", color="white", fontsize=8)
                    says(x, y + cell + line / 2, said[row], label)
        scale = torch.linspace(1, 0, 256)[:, None]
        legend = show(width - bar + 0.05, head, _tinted(torch.full((256, 1), 0.5), scale), 0.14, 2 * cell)
        legend.yaxis.tick_right()
        legend.set_yticks([0, 127.5, 255], ["1", "½", "0"])
        legend.tick_params(length=0, labelsize=8)
        write(width - bar + 0.05, head - 0.25, "relevance,\nof the map's\nmaximum", fontsize=7, color=FAINT)
    return figure


def overlay(image: Tensor, relevance: Tensor) -> Tensor:
    """(3, H, W) and a map (h, w) of any size -> (3, S, S') grey where nothing speaks, tinted where much does."""
    grey = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    sides = tuple(side * max(1, math.ceil(FINE / side)) for side in grey.shape)
    fine = F.interpolate(relevance[None, None].float(), sides, mode="bicubic", align_corners=False)[0, 0]
    top = fine.max()
    share = (fine / top).clamp(0, 1) if top > 0 else torch.zeros_like(fine)
    return _tinted(F.interpolate(grey[None, None], sides, mode="nearest")[0, 0], share)


def _tinted(grey: Tensor, share: Tensor) -> Tensor:
    """(H, W) levels and shares in [0, 1] -> (3, H, W)."""
    import matplotlib

    colours = torch.from_numpy(matplotlib.colormaps["inferno"](0.15 + 0.8 * share.numpy())[..., :3]).float()
    weight = 0.85 * share[None] ** 0.75
    return (1 - weight) * (0.15 + 0.7 * grey[None]) + weight * colours.permute(2, 0, 1)


def radar_figure(radar: Radar, title: str, how: str) -> Figure:
    """The axes of a radar, each with what it measures, a line a model, and a table of the real values beside it.

    Args:
        how: under the title: attack, ball, samples.
    """
    import matplotlib
    from matplotlib.figure import Figure

    axes_, entries = radar.axes, radar.entries
    angles = [2 * math.pi * number / len(axes_) for number in range(len(axes_))]
    headings = ["model", *(axis.name for axis in axes_), "parameters"]
    with matplotlib.rc_context(STYLE):
        wide = 7.5 + 0.98 * len(headings)
        figure = Figure(figsize=(wide, 5.6))
        figure.text(0.2 / wide, 0.945, title, fontsize=13, weight="bold", va="center")
        figure.text(0.2 / wide, 0.895, how, color=FAINT, va="center")
        axes: Any = figure.add_axes((1.75 / wide, 0.11, 3.7 / wide, 3.7 / 5.6), projection="polar")
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        axes.set_ylim(0, 1)
        axes.set_yticks([0.25, 0.5, 0.75, 1], ["25 %", "50 %", "75 %", ""], fontsize=7, color=FAINT)
        axes.set_rlabel_position(180 / len(axes_))
        axes.set_xticks(angles, [""] * len(angles))
        axes.spines["polar"].set(visible=True, color="#afb8c1")
        for axis, angle in zip(axes_, angles, strict=True):
            side = math.sin(angle)
            ha = "center" if abs(side) < 0.1 else "left" if side > 0 else "right"
            va = "bottom" if math.cos(angle) > 0.1 else "top" if math.cos(angle) < -0.1 else "center"
            rim = "cheaper is further out" if axis.name == "cost" else "rim = 100 %"
            up, down = {"bottom": (22, 0), "center": (11, -4), "top": (0, -12)}[va]
            note: Any = {"textcoords": "offset points", "ha": ha, "annotation_clip": False}
            place, small = (angle, 1.06), {"color": FAINT, "fontsize": 7.5}
            axes.annotate(axis.name, place, (0, up), va=va, weight="bold", **note)
            axes.annotate(f"{axis.unit}\n{rim}", place, (0, down), va=va, **small, **note)
        for number in range(len(entries)):
            places = [axis.places[number] for axis in axes_]
            colour = COLOURS[number % len(COLOURS)]
            axes.plot([*angles, angles[0]], [*places, places[0]], color=colour, linewidth=1.8, marker="o", markersize=4)
            axes.fill(angles, places, color=colour, alpha=0.08)
        table_left, top, row = 6.85, 0.66, 0.075
        for column, heading in enumerate(headings):
            x = (table_left + (0 if column == 0 else 1.15 + 0.98 * column)) / wide
            figure.text(x, top, heading, weight="bold", ha="left" if column == 0 else "right")
            for number, entry in enumerate(entries):
                cells = table(entry, [axis.name for axis in axes_])
                colour = COLOURS[number % len(COLOURS)] if column == 0 else INK
                text = f"● {_clip(cells[0], 20)}" if column == 0 else cells[column]
                figure.text(
                    x, top - (number + 1) * row, text, color=colour, ha="left" if column == 0 else "right", fontsize=8.5
                )
        notes = [f"no {axis} axis: {why}" for axis, why in radar.left_out.items()]
        figure.text(table_left / wide, 0.04, "\n".join(notes), color=FAINT, fontsize=7.5, va="bottom")
    return figure


def table(entry: Entry, axes: Sequence[str]) -> list[str]:
    """A model's name, its real value on each axis, and its parameters."""
    shown = {
        "clean": percent(entry.clean.share),
        "robust": percent(entry.robust.share),
        "zero-shot": percent(entry.zero_shot.share) if entry.zero_shot else "",
        "shift": percent(entry.shift) if entry.shifts else "",
        "cost": written(entry.flops) if entry.flops else "",
    }
    return [entry.name, *(shown[axis] for axis in axes), f"{entry.parameters / 1e6:.3g} M"]


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
