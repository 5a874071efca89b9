"""CIARD (arXiv 2509.12633, ICCV 2025), in CLIP form; the objective is its released code's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from advdistill import Clock, Losses, Output, Step, Strategy, Term, VisionLanguageModel, cross_entropy, kl
from advdistill_mmt_ard.weightings import EntropyTemperature

ROLES = ("robust", "clean")


class CIARD(Strategy):
    """Two teachers; the student is pushed off what the clean one gets wrong under attack, and the robust one learns on.

        x' = argmax CE(S(x'), y)
        L_1 = KL(T_robust(x'; tau_robust) || S(x')),  L_2 = KL(T_clean(x; tau_clean) || S(x))
        L_push = mean of KL(T_clean(x') || S(x'; 5)) over the samples on which T_clean(x') is wrong
        L = w_robust L_1 + w_clean L_2 - c L_push             -> the student
        CE(T_robust(x'), y), after `teacher_start`            -> the robust teacher, where it trains

    c is the power of ten that brings L_push down or up to the order of the smaller of L_1 and L_2, and has no gradient.
    Temperatures, and weights if `balanced`, are B-MTARD's. Batch means are those of the portion in hand, summed over
    classes; the code's, averaged over them, can give another power of ten. In the code, rates end all but where they
    first drop, for they drop batch by batch.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.balance = EntropyTemperature(config)

    def prepare(self, models: Mapping[str, VisionLanguageModel]) -> None:
        self.balance.prepare(ROLES, models["student"].device)

    @property
    def mixes(self) -> bool:
        """What the clean teacher gets wrong is counted over the batch."""
        return bool(self.config.push)

    def step(self, s: Step) -> Losses:
        adversarial = s.attack()
        images = {"robust": adversarial, "clean": s.images}
        looks = {role: s.teacher(role)(images[role]) for role in ROLES}
        students = {role: s.student(images[role]) for role in ROLES}
        misled = s.teacher("clean")(adversarial) if self.config.push else None
        shares: Mapping[str, float | Tensor] = dict.fromkeys(ROLES, 1.0)
        if self.config.weighting == "balanced":
            shares = self.balance(looks, s.labels)
        lessons = {
            role: kl(looks[role].logits.detach() / self.balance.temperature(role), students[role]) for role in ROLES
        }
        terms = {role: Term(lessons[role], shares[role]) for role in ROLES}
        if misled:
            terms["push"] = self.push(misled, students["robust"], s.labels, lessons)
        shown = {f"share/{name}": torch.as_tensor(term.weight) for name, term in terms.items()}
        if s.learns("robust") and s.clock.progress >= self.config.teacher_start:
            terms["teacher"] = Term(cross_entropy(looks["robust"], s.labels))
        return Losses({**shown, **self.balance.report(looks)}, **terms)

    def push(self, misled: Output, student: Output, labels: Tensor, lessons: Mapping[str, Tensor]) -> Term:
        """The term that drives the student away from the clean teacher where that is wrong; 0 elsewhere.

        Args:
            misled, student: what the clean teacher and the student say of the adversarial images.
            lessons: role -> (B,) the terms whose size is matched.
        """
        wrong = misled.logits.argmax(1) != labels
        distance = kl(misled.logits, student.logits / self.config.push_temperature)
        if self.config.push_cap is not None:
            distance = distance.clamp_max(self.config.push_cap)
        distance = distance * wrong
        count = wrong.sum().to(distance.dtype)
        per_wrong = len(labels) / count.clamp_min(1)
        order = torch.stack([magnitude(lesson.mean()) for lesson in lessons.values()]).amin()
        matched = 10 ** (order - magnitude(distance.mean() * per_wrong))
        return Term(distance, -self.config.push * matched * per_wrong * (count > 0))

    def updated(self, means: Mapping[str, float], clock: Clock) -> None:
        self.balance.updated(means, clock)


def magnitude(value: Tensor) -> Tensor:
    """The exponent of a positive number's power of ten; what is nearly 0 counts as 1e-7."""
    return value.detach().clamp_min(1e-7).log10().floor()
