"""From a recipe's `optim` block to torch: one parameter group for each model that learns, and a schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from advdistill.engine.participant import Participant

if TYPE_CHECKING:
    from advdistill.recipe.model import Optim, Schedule


def optimizer(optim: Optim, learners: Mapping[str, Participant]) -> torch.optim.Optimizer:
    """AdamW or SGD over the learners' trainables; `optim.groups.ROLE` overrides rate and decay.

    Args:
        learners: "student" or a teacher's role -> who learns. The groups keep these names under "name".
    """
    groups = []
    for role, learner in learners.items():
        own = optim.groups.get(role)
        rate = own.lr if own and own.lr is not None else optim.lr
        decay = own.weight_decay if own and own.weight_decay is not None else optim.weight_decay
        tensors = list(learner.trainable.values())
        decays = [t for t in tensors if t.ndim > 1 or optim.decay == "all"]
        stays = [t for t in tensors if t.ndim <= 1 and optim.decay != "all"]
        for params, weight_decay in ((decays, decay), (stays, 0.0)):
            if params:
                groups.append({"name": role, "params": params, "lr": rate, "peak": rate, "weight_decay": weight_decay})
    if optim.use == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)
    # One pass over the moments, not a dozen: on CPU a sixth of the time.
    return torch.optim.AdamW(groups, lr=optim.lr, fused=True)


def length(share_or_steps: float, steps: int) -> int:
    """Optimizer steps that a recipe's number means: below 1 a share of all `steps`, from 1 on itself."""
    return int(share_or_steps * steps) if share_or_steps < 1 else int(share_or_steps)


def rate(schedule: Schedule, peak: float, step: int, steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0) out of `steps`, for a group that peaks at `peak`.

    Warm-up is a linear ramp that reaches the peak on its last step, or constant at `warmup_lr`; then the cosine falls
    to 0 at the end.
    """
    warmup = length(schedule.warmup, steps)
    if step < warmup:
        return schedule.warmup_lr or peak * (step + 1) / warmup
    if schedule.use == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def set_rates(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int, steps: int) -> dict[str, float]:
    """Set every group's rate for `step`, before it is taken. Returns name -> rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate(schedule, group["peak"], step, steps)
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
