"""What does a frozen teacher cost once its answers about the training images are known?

    python tests/benchmarks/cached_teachers.py [--model ViT-B-32] [--teacher ViT-L-14] [--batch 8] [--runs 5]
        [--threads 2] [--device cuda --precision bf16 --compile]

Steps of MMT-ARD with two frozen teachers, weights random, with `train.cache_teachers` off and in memory, where an epoch
is one batch and the first is not counted. The clean teacher's time is that from asking for its features or logits to
having them. (The robust teacher looks at adversarial images, new in each step.) The two are run in turn; medians are
printed.

Passes where the clean teacher takes less than 1 % of a later step.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from step_parts import a_run, in_turn, parser, ratio, table

from advdistill.engine import recall
from advdistill.engine.fit import Run
from advdistill.engine.timing import wait

ALLOWED = 0.01


class Clock:
    """Seconds that the clean teacher takes, step by step.

    Args:
        run: whose. kept: what its teachers keep.
    """

    def __init__(self, run: Run, kept: Sequence[recall.Recall] = ()) -> None:
        self.steps: list[float] = []
        self._kept = kept
        self._run, self._batch, self._inside = run, next(run.batches()), False
        self._device, teacher = run.parts.device, run.parts.teachers["clean"]
        for name in ("features", "logits", "recall"):
            if asked := getattr(teacher, name):
                setattr(teacher, name, self._timed(asked))

    def step(self) -> None:
        """Take one, which ends an epoch."""
        self.steps.append(0.0)
        self._run.take(self._batch)
        for kept in self._kept:
            kept.share()

    def _timed(self, asked: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def timed(*given: Any, **how: Any) -> torch.Tensor:
            if self._inside:
                return asked(*given, **how)
            self._inside = True
            wait(self._device)
            since = time.perf_counter()
            try:
                return asked(*given, **how)
            finally:
                wait(self._device)
                self.steps[-1] += time.perf_counter() - since
                self._inside = False

        return timed


def main() -> None:
    """Measure."""
    options = parser(__doc__)
    options.set_defaults(method="mmt-ard", teacher="ViT-L-14", runs=5)
    given = options.parse_args()
    with a_run(given) as off, a_run(given, cache_teachers="memory") as kept:
        recalls = recall.attach(kept.recipe, kept.parts, kept.split, again=True)
        clocks = {"off": Clock(off), "later": Clock(kept, recalls)}
        times = in_turn({name: clock.step for name, clock in clocks.items()}, given.runs, off.parts.device)
    print(f"student {given.model}, teachers {given.teacher}, batch {given.batch}, {given.attack_steps} attack steps, "
          f"{given.precision}, {torch.get_num_threads()} threads, {given.device}")  # fmt: skip
    print(table(times))
    for name, clock in clocks.items():
        spent = clock.steps[-given.runs :]
        share = statistics.median(teacher / step for teacher, step in zip(spent, times[name], strict=True))
        print(f"{name:6} clean teacher {statistics.median(spent):9.5f} s, {100 * share:6.3f} % of the step")
    print(f"off / later {ratio(times, 'off', 'later'):.2f}")
    print("passes" if share < ALLOWED else "FAILS")
    sys.exit(share >= ALLOWED)


if __name__ == "__main__":
    main()
