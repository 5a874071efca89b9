"""MMT-ARD's algorithm (arXiv 2511.17448 and its released training code), for any number of teachers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from advdistill import (
    Clock,
    Losses,
    Output,
    Step,
    Strategy,
    Term,
    VisionLanguageModel,
    cross_entropy,
    factored,
    kl,
    same_width,
)
from advdistill_mmt_ard.levels import LEVELS, Scale
from advdistill_mmt_ard.weightings import WEIGHTINGS


class MMTARD(Strategy):
    """Teachers, each on the images that it is good at; who is sure of a sample has more to say about it.

        x' = argmax KL(T_clean(x) || S(x'))
        L  = sum over the teachers k of weight_k share_k D(T_k(x_k), S(x_k)),  x_clean = x, x_robust = x'

    D is KL(T || S) at `level: logits`. The share is one number per sample, without gradient; see `weighting`. With
    `weighting: cosine`, weights 5 and 50 and `reduction: element-mean` this is the released code.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.weighting = WEIGHTINGS[config.weighting](config)

    def prepare(self, models: Mapping[str, VisionLanguageModel]) -> None:
        roles = [role for role in models if role != "student" and self.config.weight(role)]
        for role in roles:
            if "embedding" in LEVELS[self.config.level]:
                same_width(models, role)
            elif self.config.weighting == "cosine":
                factored(models, role)
        if self.config.consistency and self.config.consistency_form == "cosine":
            factored(models, "student")
        self.weighting.prepare(roles, models["student"].device)

    @property
    def mixes(self) -> bool:
        return self.config.level == "contrastive" or self.weighting.mixes

    def step(self, s: Step) -> Losses:
        images = {"clean": s.images, "adversarial": s.attack(lambda images, rows: self.climb(s, images, rows))}
        looks = {role: s.teacher(role)(images[self.config.view(role)]) for role in s.roles if self.config.weight(role)}
        students = {role: s.student(images[self.config.student_view(role)]) for role in looks}
        gated = self.config.gate != "modalities"
        shares = self.weighting(looks, s.labels) if gated else dict.fromkeys(looks, 1.0)
        reported = {f"share/{role}": share for role, share in shares.items()} if gated else {}
        terms = {}
        for role, teacher in looks.items():
            value, parts = self.teach(role, teacher, students[role], s.labels)
            terms[role] = Term(value, self.config.weight(role) * shares[role])
            reported |= {f"share/{role}/{name}": part for name, part in parts.items()}
        if self.config.consistency:
            terms["consistency"] = Term(self.inconsistency(s, images["adversarial"]), self.config.consistency)
        return Losses({**reported, **self.weighting.report(looks)}, **terms)

    def climb(self, s: Step, images: Tensor, rows: Tensor) -> Tensor:
        """(n,) what the attack maximises."""
        if self.config.objective == "ce":
            return cross_entropy(s.student(images), s.labels[rows])
        return kl(s.teacher(self.config.objective_teacher)(s.images)[rows], s.student(images))

    def teach(self, role: str, teacher: Output, student: Output, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) what one teacher teaches, and the (B,) shares of its losses where the gate weighs them."""
        level = LEVELS[self.config.level]
        scale = Scale(
            self.weighting.temperature(role), self.config.temperature, self.config.reduction == "element-mean"
        )
        losses = {name: loss.distance(teacher, student, labels, scale) for name, loss in level.items()}
        if self.config.gate == "teachers":
            return torch.stack(list(losses.values())).mean(0), {}
        parts = self.weighting.split({name: loss.confidence(teacher, labels) for name, loss in level.items()})
        return torch.stack([parts[name].detach() * losses[name] for name in level]).sum(0), parts

    def inconsistency(self, s: Step, adversarial: Tensor) -> Tensor:
        """(B,) how far the student's modalities, or its two views, are apart."""
        if self.config.consistency_form == "cosine":
            return 1 - s.student(adversarial).cosine(s.labels)
        return kl(s.student(s.images), s.student(adversarial))

    def updated(self, means: Mapping[str, float], clock: Clock) -> None:
        self.weighting.updated(means, clock)
