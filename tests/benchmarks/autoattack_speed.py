"""How long the standard ensemble takes: ours, and the usual way, with the same budgets and on survivors alone.

    python tests/benchmarks/autoattack_speed.py [--only plain|prompted] [--runs 3] [--threads 1] [--samples 32]
        [--steps 100] [--targets 9] [--queries 5000]
        [--prompted-samples 16] [--prompted-steps 10] [--prompted-targets 2] [--prompted-queries 100]

plain      a partly robust digits model (`advdistill_demo:adversarial_ce.safetensors`, eps 16/255). The usual way is
           torchattacks' APGD, APGDT, FAB (multi-targeted) and Square, with as many steps, targets and queries and
           Square's original schedule, each on what the one before left over; class features are encoded once for both.
           Robust samples pay the whole budget in both. Passes at a ratio ours / usual of at most 1.
prompted   the same tower with random weights and a text context of 77, learned text prompts (4 tokens in both blocks)
           and 100 random class names; the labels are its own answers. The usual way is the same list of attacks, with
           the class names encoded at 77 tokens in every forward pass. Budgets are smaller, for what is compared is the
           cost of a pass; the fewer samples, the more those names weigh. Passes at a ratio usual / ours of at least 5.

The two run in turn; ratios are taken run by run, of CPU time, which other processes disturb less; medians are printed,
wall time beside them. `engine` is what ours takes beside its attacks: clean answers, reading, verdicts.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import attack_parts as parts
import torch
import torch.nn.functional as F
import torchattacks
from advdistill_clip.configs import Prompts
from advdistill_clip.prompts import ClipPrompts
from advdistill_clip.text import encode_padded
from torch import Tensor, nn

from advdistill import ArraySplit, Attack, ClassSet, Noise, Problem, Threat
from advdistill.engine.participant import Participant
from advdistill.recipe.paths import resource

EPS = {"plain": 16 / 255, "prompted": 1 / 255}


@dataclass
class Times:
    """Seconds of each part of one run, CPU and wall, and how many samples were still right at the end."""

    cpu: dict[str, float] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)
    left: int = 0

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Add what runs inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.cpu[name] = self.cpu.get(name, 0) + time.process_time() - cpu
        self.wall[name] = self.wall.get(name, 0) + time.perf_counter() - wall


class Timed(Attack):
    """An attack whose stages are timed under the names `NAMES`."""

    NAMES = ("apgd-ce", "apgd-t", "fab-t", "square")

    def __init__(self, attack: Attack, times: Times) -> None:
        super().__init__(attack.config)
        pairs = zip(self.NAMES, attack.stages(), strict=True)
        self._stages = [_Stage(stage, times, name) for name, stage in pairs]

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        raise NotImplementedError("an evaluation runs the stages")

    def stages(self) -> list[_Stage]:
        return self._stages


class _Stage(Attack):
    def __init__(self, attack: Attack, times: Times, name: str) -> None:
        super().__init__(attack.config)
        self.name, self._attack, self._times = name, attack, times

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        with self._times.of(self.name):
            return self._attack.run(problem, threat, noise)


def main() -> None:
    """Run both, print the ratios."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=EPS)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    for prefix, defaults in (("", (32, 100, 9, 5000)), ("prompted-", (16, 10, 2, 100))):
        for name, value in zip(("samples", "steps", "targets", "queries"), defaults, strict=True):
            options.add_argument(f"--{prefix}{name}", type=int, default=value)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    good = True
    if given.only != "prompted":
        split, classes = parts.digits("test")
        split = parts.part(split, range(given.samples))
        participant = parts.model("advdistill_demo:adversarial_ce.safetensors", classes)
        with parts.looked_at(participant) as forward:
            ratio = compare("plain", participant, split, forward, given, "")
        print(f"\nours / usual {ratio:.2f}, at most 1 allowed: {'passes' if ratio <= 1 else 'FAILS'}\n")
        good &= ratio <= 1
    if given.only != "plain":
        participant, split, forward = prompted(given.prompted_samples)
        with participant.deployed():
            ratio = compare("prompted", participant, split, forward, given, "prompted_")
        print(f"\nusual / ours {1 / ratio:.1f}, at least 5 asked: {'passes' if ratio <= 0.2 else 'FAILS'}")
        good &= ratio <= 0.2
    sys.exit(not good)


def compare(
    name: str,
    participant: Participant,
    split: ArraySplit,
    forward: parts.Forward,
    given: argparse.Namespace,
    prefix: str,
) -> float:
    """Print both ways' medians; the median of ours / usual."""
    budget = {key: getattr(given, prefix + key) for key in ("steps", "targets", "queries")}
    runs: list[tuple[Times, Times]] = []
    for _ in range(given.runs):
        mine = ours(participant, split, EPS[name], budget)
        runs.append((mine, usual(forward, split, EPS[name], budget)))
    said = ", ".join(f"{value} {key}" for key, value in budget.items())
    print(f"{name}: {len(split)} samples, {said}, {given.threads} thread(s), {given.runs} runs in turn")
    print(f"still right: {[mine.left for mine, _ in runs]} ours, {[theirs.left for _, theirs in runs]} usual\n")
    print("part | ours CPU s | usual CPU s | ours / usual | ours wall s | usual wall s")
    print("--- | --- | --- | --- | --- | ---")
    for part in (*Timed.NAMES, "engine", "all"):

        def median(side: int, clock: str, part: str = part) -> float:
            return statistics.median(_spent(getattr(times[side], clock), part) for times in runs)

        ratio = _ratio(runs, part)
        cells = [part, f"{median(0, 'cpu'):.2f}", f"{median(1, 'cpu'):.2f}", "" if ratio is None else f"{ratio:.2f}"]
        print(" | ".join([*cells, f"{median(0, 'wall'):.2f}", f"{median(1, 'wall'):.2f}"]))
    total = _ratio(runs, "all")
    assert total is not None
    return total


def _spent(seconds: dict[str, float], part: str) -> float:
    attacks = sum(seconds.get(name, 0) for name in Timed.NAMES)
    if part == "engine":
        return seconds["all"] - attacks
    return seconds.get(part, 0)


def _ratio(runs: list[tuple[Times, Times]], part: str) -> float | None:
    pairs = [(_spent(mine.cpu, part), _spent(theirs.cpu, part)) for mine, theirs in runs]
    if part == "engine" or not all(theirs for _, theirs in pairs):
        return None
    return statistics.median(mine / theirs for mine, theirs in pairs)


def ours(participant: Participant, split: ArraySplit, eps: float, budget: dict[str, int]) -> Times:
    """Our ensemble through the engine."""
    times = Times()
    with times.of("all"):
        column = parts.measured(participant, split, Timed(parts.attack(parts.ensemble(**budget)), times), eps)
    times.left = column.outcome.count.hits
    return times


class _Face(nn.Module):
    """A function as torchattacks wants to see it: a parameter says its device."""

    def __init__(self, forward: parts.Forward) -> None:
        super().__init__()
        self.place, self._forward = nn.Parameter(torch.zeros(()), requires_grad=False), forward

    def forward(self, images: Tensor) -> Tensor:
        return self._forward(images)


def usual(forward: parts.Forward, split: ArraySplit, eps: float, budget: dict[str, int]) -> Times:
    """torchattacks' four attacks, one after the other on what is left."""
    face = _Face(forward).eval()
    steps, classes = budget["steps"], budget["targets"] + 1
    attacks: list[Callable[[], Any]] = [
        lambda: torchattacks.APGD(face, eps=eps, steps=steps),
        lambda: torchattacks.APGDT(face, eps=eps, steps=steps, n_classes=classes),
        lambda: torchattacks.FAB(face, eps=eps, steps=steps, multi_targeted=True, n_classes=classes),
        lambda: torchattacks.Square(face, eps=eps, n_queries=budget["queries"], resc_schedule=False),
    ]
    times = Times()
    images, labels = split.images, split.labels
    with times.of("all"):
        with torch.no_grad():
            rows = (face(images).argmax(1) == labels).nonzero().squeeze(1)
        for name, build in zip(Timed.NAMES, attacks, strict=True):
            if not len(rows):
                break
            with times.of(name):
                found = build()(images[rows], labels[rows])
            with torch.no_grad():
                rows = rows[face(found).argmax(1) == labels[rows]]
    times.left = len(rows)
    return times


def prompted(count: int) -> tuple[Participant, ArraySplit, parts.Forward]:
    """A model with learned prompts and 100 classes, images that it is right about, and the usual forward pass."""
    tower = json.loads(resource("advdistill_demo:small.json").read_text())
    tower["model_cfg"]["text_cfg"]["context_length"] = 77
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompted.json"
        file.write_text(json.dumps(tower))
        text = {"tokens": 4, "depth": 2, "init": "a photo of a"}
        config = {"model": str(file), "weights": "random", "text": text, "visual": {"tokens": 0}}
        model = ClipPrompts.from_config(Prompts.model_validate(config))
    letters = random.Random(0)
    names = {"".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=letters.randint(3, 12))) for _ in range(110)}
    participant = Participant(model, ClassSet(tuple(sorted(names))[:100], ("a photo of a {}.",)))
    images = parts.digits("test")[0].images[:count]
    with parts.looked_at(participant) as forward, torch.no_grad():
        labels = forward(images).argmax(1)
    template = participant.classes.templates[0]
    sentences = model.base.tokenizer([template.replace("{}", name) for name in participant.classes.names])
    ids = torch.tensor([[*row, *[0] * (77 - len(row))] for row in model.place_prompts(sentences, template)])

    def encode(images: Tensor) -> Tensor:
        classifier = F.normalize(encode_padded(model.model, ids, model.text), dim=-1)
        return model.logits(model.features(images), classifier)

    with torch.no_grad(), parts.looked_at(participant) as forward:
        apart = (encode(images) - forward(images)).abs().max()
    if apart > 1e-3:
        sys.exit(f"the usual forward pass is another model: logits differ by {apart:.1e}")
    return participant, ArraySplit(images, labels, [str(i) for i in range(count)]), encode


if __name__ == "__main__":
    main()
