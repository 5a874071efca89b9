"""What it saves to attack survivors alone: PGD-100 on an undefended model, and all steps on all samples.

    python tests/benchmarks/pgd_survivors.py [--steps 100] [--eps 16] [--runs 3] [--threads 1] [--samples 0]

The undefended digits tower (`advdistill_demo:small.safetensors`), the test images, l-infinity, eps 16/255, step
eps / 4, the same random start. Ours is the engine's whole evaluation: clean answers, attack, verdicts. The other way is
a plain loop: every step on every sample in batches of 250, class features encoded once, and any misclassified iterate
counts, as it does in ours. Run in turn; the median of the ratios of CPU time is printed, wall time beside it. Passes at
15 times as fast with the same number of samples right.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import attack_parts as parts
import torch
import torch.nn.functional as F

from advdistill import ArraySplit, Noise
from advdistill.engine.participant import Participant


def main() -> None:
    """Run both, print the ratio."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--eps", type=float, default=16, help="in 255ths")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--samples", type=int, default=0)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    split, classes = parts.digits("test")
    split = parts.part(split, range(given.samples or len(split)))
    participant = parts.model("advdistill_demo:small.safetensors", classes)
    eps = given.eps / 255
    pgd = parts.attack({"use": "pgd", "steps": given.steps, "step": eps / 4})

    ways: dict[str, Callable[[], int]] = {
        "ours": lambda: parts.measured(participant, split, pgd, eps).outcome.count.hits,
        "all": lambda: everything(participant, split, eps, given.steps),
    }
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    right: dict[str, int] = {}
    for run in range(given.runs + 1):
        for name, way in ways.items():
            began = time.perf_counter(), time.process_time()
            right[name] = way()
            if run:  # the first is for warming up
                wall[name].append(time.perf_counter() - began[0])
                cpu[name].append(time.process_time() - began[1])
    print(
        f"PGD-{given.steps}, eps {given.eps:g}/255, {len(split)} digits, {given.threads} thread(s), {given.runs} runs"
    )
    print(f"right        {right['ours']} ours, {right['all']} by all steps on all samples")
    ratios = {}
    for name, times in (("CPU time", cpu), ("wall time", wall)):
        ratios[name] = statistics.median(b / a for a, b in zip(times["ours"], times["all"], strict=True))
        medians = [statistics.median(times[way]) for way in ("ours", "all")]
        print(f"{name:12} {medians[0]:.2f} s ours, {medians[1]:.2f} s: {ratios[name]:.1f} times as fast")
    good = ratios["CPU time"] >= 15 and right["ours"] == right["all"]
    print("passes" if good else "FAILS")
    sys.exit(not good)


def everything(participant: Participant, split: ArraySplit, eps: float, steps: int, batch: int = 250) -> int:
    """How many samples stay right through every step of a plain loop."""
    held = 0
    with parts.looked_at(participant) as forward:
        for rows in torch.arange(len(split)).split(batch):
            clean, labels = split.images[rows], split.labels[rows]
            start = 2 * Noise(0, "evaluate", 0, rows).uniform(tuple(clean.shape[1:])) - 1
            images, robust = (clean + eps * start).clamp(0, 1), torch.ones_like(labels, dtype=torch.bool)
            with torch.no_grad():
                robust &= forward(clean).argmax(1) == labels
            for _ in range(steps):
                images = images.detach().requires_grad_()
                logits = forward(images)
                (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), images)
                robust &= logits.argmax(1) == labels
                ahead = images.detach() + eps / 4 * gradient.sign()
                images = torch.minimum(torch.maximum(ahead, clean - eps), clean + eps).clamp(0, 1)
            with torch.no_grad():
                robust &= forward(images).argmax(1) == labels
            held += int(robust.sum())
    return held


if __name__ == "__main__":
    main()
