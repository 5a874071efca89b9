"""What do further classes cost: seconds of a step, and memory?

    python tests/benchmarks/many_classes.py [--counts 10 100 1000 10000] [--model ViT-B-32] [--chunk auto] [--small]
        [--batch 8] [--attack-steps 2] [--runs 3] [--threads 2] [--device cpu]

Steps of APD with learned prompts in both towers of both models, so that class features of both learn; names of
ImageNet, then again with numbers. Each count has a process of its own, whose peak memory (resident; on CUDA allocated)
is read after its steps. `--small` takes the tiny model of the recipes on digits. More classes than the chunk holds are
encoded twice, so a step beyond grows by up to half as much again a class (a frozen tower's backward costs as much as
its forward).

Passes where memory at the last count is at most 1.5 times that at the last but one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
from typing import Any

import torch
from step_parts import a_run, in_turn, parser

ALLOWED = 1.5


def main() -> None:
    """Measure in one process for each count, print seconds, memory and how they grow."""
    options = parser(__doc__)
    options.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    options.add_argument("--chunk", default="auto")
    options.add_argument("--small", action="store_true")
    options.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options.set_defaults(runs=3)
    given = options.parse_args()
    if given.small:
        given.model = "advdistill_demo:small.json"
    if given.child:
        print(json.dumps(measure(given)))
        return
    found = []
    for count in given.counts:
        words = [sys.executable, *sys.argv, "--child", "--classes", str(count)]
        said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
        found.append(json.loads(said.splitlines()[-1]))
        print("{classes:7,} classes  {seconds:9.3f} s a step  {peak:8.2f} GiB".format(**found[-1]), flush=True)
    fixed, each = statistics.linear_regression(given.counts, [one["seconds"] for one in found])[::-1]
    print(f"least squares: {fixed:.3f} s + {1000 * each:.3f} ms a class")
    for less, more in itertools.pairwise(found):
        a_class = (more["seconds"] - less["seconds"]) / (more["classes"] - less["classes"])
        print(f"{less['classes']:7,} to {more['classes']:7,}: {1000 * a_class:.3f} ms a class")
    ratio = found[-1]["peak"] / found[-2]["peak"]
    print(f"peak memory at {found[-1]['classes']:,} / at {found[-2]['classes']:,}: {ratio:.2f}")
    print("passes" if ratio <= ALLOWED else "FAILS")
    sys.exit(ratio > ALLOWED)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Take steps, and say what they took."""
    with a_run(given, class_chunk=given.chunk if given.chunk == "auto" else int(given.chunk)) as run:
        device, batch = run.parts.device, next(run.batches())
        times = in_turn({"step": lambda: run.take(batch)}, given.runs, device)["step"]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
    return {"classes": given.classes, "seconds": statistics.median(times), "peak": peak / 2**30}


if __name__ == "__main__":
    main()
