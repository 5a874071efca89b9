"""Several attacks, each on what the ones before it left over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advdistill import Attack, Noise, Problem, Threat
from advdistill_attacks.configs import Climbing


def titled(attack: Attack) -> str:
    """The attack's name, with its loss where one has been chosen: `apgd-ce`."""
    loss = attack.config.loss if isinstance(attack.config, Climbing) else ""
    return f"{attack.name}-{loss}" if loss and not attack.name.endswith(f"-{loss}") else attack.name


class Ensemble(Attack):
    """An evaluation runs the `stages` one by one; in one batch each row keeps the image of the highest objective.

    Every attack has the same noise, as if it ran alone.
    """

    @property
    def studies(self) -> int:  # type: ignore[override]
        """As many as the attack that wants most."""
        return max(attack.studies for attack in self.inner)

    @property
    def fewest_classes(self) -> int:  # type: ignore[override]
        """As many as the attack that needs most."""
        return max(attack.fewest_classes for attack in self.inner)

    def study(self, problem: Problem, threat: Threat, noise: Noise) -> None:
        for attack in self.inner:
            if attack.studies:
                attack.study(problem, threat, noise)

    def stages(self) -> Sequence[Attack]:
        """Those of all attacks, in order, named after their losses."""
        found = [stage for attack in self.inner for stage in attack.stages()]
        for stage in found:
            stage.name = titled(stage)
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
