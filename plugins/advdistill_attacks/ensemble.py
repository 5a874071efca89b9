"""Several attacks, each on what the ones before it left over."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from advdistill import Attack, Noise, Problem, Threat
from advdistill_attacks.configs import Climbing


def titled(attack: Attack) -> str:
    """The attack's name, and its loss where that has been chosen: `apgd-ce`."""
    loss = attack.config.loss if isinstance(attack.config, Climbing) else ""
    return f"{attack.name}-{loss}" if loss else attack.name


class Ensemble(Attack):
    """An evaluation runs the `stages` one by one; in one batch each row keeps the image of the highest objective."""

    def stages(self) -> Sequence[Attack]:
        """Those of all attacks, in order."""
        found = []
        for stage in (stage for attack in self.inner for stage in attack.stages()):
            stage, name = copy.copy(stage), titled(stage)
            stage.name = name
            found.append(stage)
        return found

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        best, highest = problem.images.clone(), torch.full_like(problem.images[:, 0, 0, 0], -torch.inf)
        for attack in self.inner:
            if not len(problem.open()):
                break
            images = threat.project(attack.run(problem, threat, noise), problem.images)
            rows = problem.open()
            if not len(rows):
                break
            with torch.no_grad():
                values = problem.objective(images[rows], rows).to(highest.dtype)
            better = values > highest[rows]
            best = best.index_copy(0, rows, torch.where(better.view(-1, 1, 1, 1), images[rows], best[rows]))
            highest = highest.index_copy(0, rows, torch.where(better, values, highest[rows]))
        return best
