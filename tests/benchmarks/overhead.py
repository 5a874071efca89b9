"""What a training step spends on anything but its models, and how often it waits for the device.

    python tests/benchmarks/overhead.py [--method apd|mmt-ard] [--model ViT-B-32] [--batch 8] [--runs 7] [--threads 2]
        [--device cuda --precision bf16 --compile]

models    forward passes of images and classes, and the backward passes from what they found on
engine    all else: noise, the attack's bookkeeping, logits, losses and their backward, gradient norm, optimizer
optimizer of that, the optimizer's own step, which every way of training has

On CUDA each change between them waits for the device: the engine is charged for what it asks for and for asking.
`synchronisations` are torch's own warnings in a step without such waiting.

Passes where the engine takes at most 3 % of a step.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from step_parts import a_run, in_turn, parser
from torch import Tensor
from torch.autograd import Variable

from advdistill.engine.data import Batch
from advdistill.engine.fit import Run
from advdistill.engine.timing import wait

T = TypeVar("T")
ALLOWED = 0.03


class Inside:
    """Seconds inside the models.

    Attributes:
        seconds: so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds, self._device, self._since = 0.0, device, 0.0

    def spend(self, work: Callable[[], T]) -> T:
        """Do it, timed."""
        self._enter()
        try:
            return work()
        finally:
            self._leave()

    def watch(self, look: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`look`, and the backward pass from what it returns, timed."""

        def watched(*given: Any) -> Tensor:
            found = self.spend(lambda: look(*given))
            if found.requires_grad:
                found.register_hook(self._returns)
            return found

        return watched

    def _returns(self, gradient: Tensor) -> None:
        # Autograd has been to the losses; from here on it is in this model, until it comes to the next or ends.
        self._leave()
        self._enter()
        Variable._execution_engine.queue_callback(self._leave)

    def _enter(self) -> None:
        wait(self._device)
        self._since = time.perf_counter()

    def _leave(self) -> None:
        if self._since:
            wait(self._device)
            self.seconds += time.perf_counter() - self._since
            self._since = 0.0


def main() -> None:
    """Measure."""
    given = parser(__doc__).parse_args()
    with a_run(given) as run:
        device, batch = run.parts.device, next(run.batches())
        for _ in range(3):
            run.take(batch)
        waits = _synchronisations(run, batch) if device.type == "cuda" else None
        models = Inside(device)
        for participant in (run.parts.student, *run.parts.teachers.values()):
            participant.features = models.watch(participant.features)  # type: ignore[method-assign]
            participant.model.classifier = models.watch(participant.model.classifier)
        updates, update = Inside(device), run.optimizer.step
        run.optimizer.step = lambda: updates.spend(update)  # type: ignore[method-assign, assignment]
        shares, engines, optimizers, steps = [], [], [], []
        for _ in range(given.runs):
            models.seconds = updates.seconds = 0.0
            (whole,) = in_turn({"step": lambda: run.take(batch)}, 1, device, warm_up=0)["step"]
            steps.append(whole)
            shares.append(1 - models.seconds / whole)
            engines.append(whole - models.seconds)
            optimizers.append(updates.seconds)
    median = statistics.median
    print(f"{given.method}, {given.model}, batch {given.batch}, {given.attack_steps} attack steps, {given.precision}, "
          f"{torch.get_num_threads()} threads, {device}")  # fmt: skip
    print(f"step {median(steps):.4f} s, engine {median(engines):.4f} s, of it optimizer {median(optimizers):.4f} s")
    print(f"engine / step {100 * median(shares):.2f} %")
    if waits is not None:
        print(f"synchronisations a step: {sum(waits.values())}")
        for where, count in waits.most_common():
            print(f"  {count:3} {where}")
    passes = median(shares) <= ALLOWED
    print("passes" if passes else "FAILS")
    sys.exit(not passes)


def _synchronisations(run: Run, batch: Batch) -> Counter[str]:
    """Where a step waits for the device, and how often."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run.take(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    told = [w for w in caught if "synchroniz" in str(w.message)]
    return Counter(f"{'/'.join(w.filename.split('/')[-2:])}:{w.lineno}" for w in told)


if __name__ == "__main__":
    main()
