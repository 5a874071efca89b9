"""MTARD (Zhao et al., ECCV 2022) and B-MTARD (arXiv 2306.16170), in CLIP form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from advdistill import Clock, Losses, Step, Strategy, Term, VisionLanguageModel, kl
from advdistill_mmt_ard.weightings import EntropyTemperature, RelativeLoss

ROLES = ("robust", "clean")


class MTARD(Strategy):
    """Two teachers whose weights follow how far the student has come with each; see `RelativeLoss`.

        x' = argmax CE(S(x'), y)
        L  = w_robust KL(T_robust(x') || S(x')) + w_clean KL(T_clean(x) || S(x))

    KLs are summed over classes, not averaged as in the code, which scales the loss by their number and no weight.
    """

    balance: ClassVar[type[RelativeLoss]] = RelativeLoss

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.weighting = self.balance(config)

    def prepare(self, models: Mapping[str, VisionLanguageModel]) -> None:
        self.weighting.prepare(ROLES, models["student"].device)

    def step(self, s: Step) -> Losses:
        adversarial = s.attack()
        images = {"robust": adversarial, "clean": s.images}
        looks = {role: s.teacher(role)(images[role]) for role in ROLES}
        students = {role: s.student(images[role]) for role in ROLES}
        shares = self.weighting(looks, s.labels)
        terms = {
            role: Term(kl(looks[role].logits / self.weighting.temperature(role), students[role]), shares[role])
            for role in ROLES
        }
        shown = {f"share/{role}": share for role, share in shares.items()}
        return Losses({**shown, **self.weighting.report(looks)}, **terms)

    def updated(self, means: Mapping[str, float], clock: Clock) -> None:
        self.weighting.updated(means, clock)


class BMTARD(MTARD):
    """MTARD whose teachers are softened until they are equally unsure; see `EntropyTemperature`. The student is not.

    x' = argmax CE(S(x'), y)
    L  = w_robust KL(T_robust(x'; tau_robust) || S(x')) + w_clean KL(T_clean(x; tau_clean) || S(x))
    """

    balance = EntropyTemperature
