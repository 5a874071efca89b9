"""What a step costs, counted and not measured: models stand on the meta device, where tensors have shapes and no
values; the step's operations are gone through there while their FLOPs, and the bytes that graphs hold, are added up."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from advdistill.engine import timing
from advdistill.engine.attack import Problem
from advdistill.engine.memory import Ledger
from advdistill.engine.participant import Participant, tf32
from advdistill.engine.step import Step
from advdistill.engine.strategy import Strategy
from advdistill.errors import UserError


class NeedsValues(UserError):
    """A part of the step decides by values, so that shapes alone do not tell what it would do."""


@dataclass(frozen=True)
class Cost:
    """What one portion of a batch takes.

    Attributes:
        flops: phase (as in `timing`) -> floating-point operations of matrix products, convolutions and attention.
        activations: the most bytes that graphs hold at once, beside the weights.
    """

    flops: dict[str, float]
    activations: int


class Walk(Step):
    """A step on the meta device. Of an attack's gradients that cost the same each time, the first two are gone through
    (the first may encode class features) and every further one is billed like the second: a hundred attack steps take
    no longer than two. What else the attack does is gone through as it is."""


class _Walked(Problem):
    def __init__(self, *given: Any, **how: Any) -> None:
        super().__init__(*given, **how)
        # Problems that are restated from this one share it.
        self._bills: dict[object, list[timing.Bill]] = {}

    def gradient(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        # A function that is made anew for each step of an attack may ask something else each time, and is gone through.
        bills = self._bills.setdefault((self._objective, self._logits, self._draws, images.shape), [])
        if len(bills) == 2:
            timing.bill(bills[-1])
            return torch.empty_like(images), images.new_empty(len(images))
        with timing.billed() as bill:
            found = super().gradient(images, rows)
        bills.append(bill)
        return found


Walk.poses = _Walked


def walk(strategy: Strategy, s: Walk, everyone: Iterable[Participant], weights: set[int]) -> Cost:
    """Go through all phases of a portion.

    Args:
        strategy, everyone: on the meta device.
        weights: storages that activations do not count.

    Raises:
        NeedsValues: see there.
    """
    ledger, everyone = Ledger(weights), list(everyone)
    try:
        with ExitStack() as stack:
            counter = stack.enter_context(FlopCounterMode(display=False))
            watch = stack.enter_context(timing.watched(counter.get_total_flops))
            stack.enter_context(ledger)
            for phase in strategy.phases:
                loss = phase(s).total().sum()
                with timing.backward():
                    loss.backward()
                s.forget()
                for participant in everyone:
                    participant.settle()
    except (RuntimeError, NotImplementedError) as error:
        raise NeedsValues(
            "the attack or the method looks at values on its way, and a plan has shapes alone (steps can be measured)"
        ) from error
    finally:
        for participant in everyone:
            participant.discard()
    return Cost({phase: flops for phase, flops in watch.spent.items() if flops}, ledger.peak)


def of_step(portion: Cost, portions: float) -> dict[str, float]:
    """FLOPs by phase of a whole step, whose batch is so many times the portion; class features are encoded once."""
    return {name: flops * (1 if name == timing.CLASS_FEATURES else portions) for name, flops in portion.flops.items()}


@functools.cache
def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOPs a second of a product of matrices as large as a tower's, in that precision, measured once.

    Args:
        precision: fp32, tf32 or bf16.
    """
    rows, inner, columns = (8192, 4096, 4096) if device.type == "cuda" else (512, 768, 3072)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(inner, columns, device=device, dtype=dtype)
    read = timing.clock(device)

    def seconds() -> float:
        start = read()
        torch.mm(a, b)
        return read() - start

    with tf32(precision == "tf32"):
        seconds()
        return 2 * rows * inner * columns / median_of(seconds, least=3, budget=0.3)


def median_of(seconds: Callable[[], float], least: int, budget: float) -> float:
    """The median of at least so many results, and of as many as come within a `budget` of seconds, 50 at most."""
    found, started = [seconds()], time.perf_counter()
    while len(found) < least or (len(found) < 50 and time.perf_counter() - started < budget):
        found.append(seconds())
    return statistics.median(found)
