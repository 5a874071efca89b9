"""torchattacks behind the contract of `Attack`: what that library does to its surroundings stays in here."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torchattacks
from torch import Tensor, nn

from advdistill import Attack, Noise, Problem, RunError, Threat, UsageError, UserError

_PORTION = 64  # images at a time where no gradient is asked; SPSA would send thousands


class Face(nn.Module):
    """The attacked model as torchattacks may see it: images -> (B, C) float32 logits, for some rows of a problem.

    It has no training mode to leave behind, and keeps no graph unless pixels ask for one; without a graph it hands out
    copies, since Square writes into the logits it gets. However many images come, they are taken for the rows over and
    over, as SPSA and OnePixel lay them out; where that is wrong no harm is done, for `Problem.predict` checks the ball.
    """

    def __init__(self, problem: Problem, rows: Tensor) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros((), device=rows.device), requires_grad=False)  # says the device
        super().train(False)
        self._problem, self._rows = problem, rows

    def forward(self, images: Tensor) -> Tensor:
        rows = self._rows[torch.arange(len(images), device=images.device) % len(self._rows)]
        if images.requires_grad and torch.is_grad_enabled():
            images = images.view_as(images)
            images.register_hook(_never_zero)
            return self._problem.predict(images, rows).float()
        with torch.no_grad():
            portion = max(_PORTION, len(self._rows))
            pairs = zip(images.split(portion), rows.split(portion), strict=True)
            return torch.cat([self._problem.predict(part, of).float() for part, of in pairs])

    def train(self, mode: bool = True) -> Face:
        return self


def _never_zero(gradient: Tensor) -> Tensor:
    """A gradient with a trace of something, in one pixel, where a sample had none.

    The momentum attacks divide by a gradient's mean size: after a zero one the momentum is NaN, and the sample stands
    still for good. The trace moves its one pixel only.
    """
    zero = (gradient == 0).flatten(1).all(1)
    trace = torch.zeros_like(gradient)
    trace[zero, :, gradient.shape[2] // 2, gradient.shape[3] // 2] = 1e-30
    return gradient + trace


@contextlib.contextmanager
def _borrowed_generators(seed: int) -> Iterator[None]:
    """The global generators, seeded for the attack and given back as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    state = np.random.get_state()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(state)


class Torchattack(Attack):
    """Any attack of torchattacks that `config.attack` names.

    Raises:
        UsageError: the model has fewer classes than its loss needs, or an l0 ball holds no whole pixel.
        RunError: torchattacks failed.
    """

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        images = problem.images.clone()
        rows = problem.open()
        if threat.eps == 0 or not len(rows):
            return images
        for part in rows.split(1 if self.config.one_by_one else len(rows)):
            seed = _seed(noise, part)
            attack_class = getattr(torchattacks, self.config.attack)
            arguments = self._arguments(attack_class, problem, threat, seed)
            with contextlib.redirect_stdout(sys.stderr), _borrowed_generators(seed), torch.enable_grad():
                try:
                    attack = attack_class(Face(problem, part), **arguments)
                    images[part] = attack(problem.images[part], problem.labels[part]).detach()
                except UserError:
                    raise
                except Exception as error:
                    raise RunError(
                        f"torchattacks.{self.config.attack} failed: {type(error).__name__}: {error}",
                        "Try other settings or a smaller batch; -v shows where it happened.",
                    ) from error
        return threat.project(images, problem.images)

    def _arguments(self, attack_class: type, problem: Problem, threat: Threat, seed: int) -> dict[str, Any]:
        arguments = dict(self.config)
        known = {"eps": threat.eps, "norm": {"linf": "Linf", "l2": "L2"}.get(threat.norm), "seed": seed}
        if self.config.fewest_classes > 2:
            with torch.no_grad():
                classes = problem.predict(problem.images[:1], problem.rows[:1]).shape[1]
            if classes < self.config.fewest_classes:
                raise UsageError(
                    f"torchattacks.{self.config.attack} with this loss needs at least {self.config.fewest_classes} "
                    f"classes; there are {classes}",
                    "Use ta-apgd with loss: ce.",
                )
            # One more than it aims at: it would aim at all others.
            known["n_classes"] = min(arguments.pop("targets", classes), classes - 1) + 1
        if threat.norm == "l0":
            channels = problem.images.shape[1]
            known["pixels"] = int(threat.eps) // channels
            if not known["pixels"]:
                raise UsageError(
                    f"an l0 ball of radius {threat.eps:g} holds no pixel: each has {channels} values",
                    f"Set threat.eps to {channels} or more.",
                )
        accepted = inspect.signature(attack_class).parameters
        return arguments | {name: value for name, value in known.items() if name in accepted}


def _seed(noise: Noise, rows: Tensor) -> int:
    """One number for these samples, whatever their order."""
    high, low = (noise.uniform((2,), rows=rows).double() * 2**24).long().sum(0).tolist()
    return ((high << 24) ^ low) % 2**63
