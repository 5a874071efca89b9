"""The algorithms of adversarial prompt tuning. x: clean, x': adversarial, S: the student with its prompts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from advdistill import (
    Losses,
    Output,
    Step,
    Strategy,
    Term,
    VisionLanguageModel,
    cross_entropy,
    factored,
    kl,
)


class PromptTuning(Strategy):
    """Which prompts learn is the student's business, and makes the method.

        x' = argmax CE(S(x'), y)
        L  = CE(S(x'), y)                                                    batch: adversarial
             CE(S(first half of x), y) and CE(S(second half of x'), y)       batch: half

    The first is APT (arXiv 2403.01849) and the baselines of FAP's repository, the second MAPT's `adv_half`.
    """

    @property
    def mixes(self) -> bool:
        return self.config.batch == "half"

    def step(self, s: Step) -> Losses:
        first = len(s.images) // 2 if self.config.batch == "half" else 0
        attacked = torch.arange(first, len(s.images), device=s.images.device) if first else None
        mixed = s.attack(rows=attacked)
        return Losses(student=cross_entropy(s.student(mixed), s.labels))


class FAP(Strategy):
    """Consistent in what is said, yet apart in feature space (arXiv 2403.14774).

        x' = argmax KL(S(x) || S(x'))
        L  = CE(S(x), y) + lambda KL(S(x) || S(x')) (cos(f(x), f(x')) + 1)

    Everything in the product gets gradients, as in the released code.
    """

    def prepare(self, models: Mapping[str, VisionLanguageModel]) -> None:
        factored(models, "student")

    def step(self, s: Step) -> Losses:
        clean = s.student(s.images)
        adversarial = s.student(s.attack(lambda images, rows: kl(clean[rows], s.student(images))))
        near = F.cosine_similarity(clean.features, adversarial.features) + 1
        return Losses(
            clean=cross_entropy(clean, s.labels),
            robust=Term(kl(clean, adversarial) * near, self.config.weight),
        )


class CAPT(Strategy):
    """Adversarial predictions are held to the student's clean ones and to the frozen CLIP's (arXiv 2405.11154).

        x' = argmax CE(S(x'), y)
        L  = CE(S(x), y) + lambda ((1 - a) KL(S(x') || S(x)) + a KL(S(x') || T(x)))

    a, the frozen model's share of a sample, gets no gradient.
    """

    def step(self, s: Step) -> Losses:
        config = self.config
        clean, original = s.student(s.images), s.teacher("original")(s.images)

        def objective(images: Tensor, rows: Tensor) -> Tensor:
            if config.objective == "kl":
                return kl(clean[rows], s.student(images))
            return cross_entropy(s.student(images), s.labels[rows])

        adversarial = s.student(s.attack(objective))
        share = self.share(clean, original, s.labels)
        return Losses(
            {"share/original": torch.as_tensor(share)},
            student=self.supervise(clean, adversarial, s.labels),
            clean=Term(self.apart(adversarial, clean), config.weight * (1 - share)),
            original=Term(self.apart(adversarial, original), config.weight * share),
        )

    def share(self, clean: Output, original: Output, labels: Tensor) -> float | Tensor:
        """A number or (B,), in [0, 1]: how much of the consistency is the frozen model's."""
        if self.config.balance == "fixed":
            return float(self.config.share)
        theirs, mine = original.confidence(labels), clean.confidence(labels)
        return theirs / (theirs + mine).clamp_min(torch.finfo(theirs.dtype).tiny)

    def supervise(self, clean: Output, adversarial: Output, labels: Tensor) -> Tensor:
        """(B,) cross-entropy on the images that `ce_view` names."""
        views = {"clean": [clean], "adversarial": [adversarial], "both": [clean, adversarial]}[self.config.ce_view]
        return torch.stack([cross_entropy(view, labels) for view in views]).mean(0)

    def apart(self, student: Output, target: Output) -> Tensor:
        """(B,) KL in the direction that is set."""
        return kl(student, target) if self.config.direction == "student-first" else kl(target, student)
