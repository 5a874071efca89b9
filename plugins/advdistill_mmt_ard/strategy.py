"""MMT-ARD's algorithm (arXiv 2511.17448 and its released training code)."""

from __future__ import annotations

import torch
from torch import Tensor

from advdistill import Losses, Output, Step, Strategy, Term, cross_entropy, kl


class MMTARD(Strategy):
    """Two teachers, each on the images it is good at; who is sure of a sample has more to say about it.

        x' = argmax KL(T_clean(x) || S(x'))
        L  = w_robust KL(T_robust(x') || S(x')) + w_clean KL(T_clean(x) || S(x))

    With `weighting: cosine`, weights 5 and 50 and `reduction: element-mean` this is the released code.
    """

    def step(self, s: Step) -> Losses:
        clean = s.teacher("clean")(s.images)

        def objective(images: Tensor, rows: Tensor) -> Tensor:
            if self.config.objective == "ce":
                return cross_entropy(s.student(images), s.labels[rows])
            return kl(clean[rows], s.student(images))

        adversarial = s.attack(objective)
        robust = s.teacher("robust")(adversarial)
        clean_share, robust_share = self.weigh(clean, robust, s.labels)
        scale = 1 / clean.logits.shape[1] if self.config.reduction == "element-mean" else 1.0
        terms = {
            "robust": Term(
                kl(robust, s.student(adversarial), self.config.temperature) * scale,
                self.config.robust_weight * robust_share,
            ),
            "clean": Term(
                kl(clean, s.student(s.images), self.config.temperature) * scale, self.config.clean_weight * clean_share
            ),
        }
        if self.config.consistency:
            distance = 1 - s.student(adversarial).cosine(s.labels)
            terms["consistency"] = Term(distance, self.config.consistency)
        return Losses({"share/robust": robust_share, "share/clean": clean_share}, **terms)

    def weigh(self, clean: Output, robust: Output, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B,), (B,): the clean and the robust teacher's share of each sample, each from its own look at it.

        `cosine` can be negative, which turns a sample's distillation round; the released code does so too.
        """
        if self.config.weighting == "cosine":
            return clean.cosine(labels), robust.cosine(labels)
        sure_clean, sure_robust = clean.confidence(labels), robust.confidence(labels)
        if self.config.weighting == "probability":
            return sure_clean, sure_robust
        if self.config.weighting == "fixed":
            return torch.ones_like(sure_clean), torch.ones_like(sure_robust)
        sign = 1 if self.config.favour == "easy" else -1
        share = torch.sigmoid(sign * self.config.slope * (sure_robust - sure_clean))
        return 1 - share, share
