"""The algorithms of robust fine-tuning. x: clean, x': adversarial, S: the student, T: the original model."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from advdistill import Losses, Step, Strategy, Term, VisionLanguageModel, cross_entropy, kl, same_width


class Clean(Strategy):
    """L = CE(S(x), y)."""

    def step(self, s: Step) -> Losses:
        return Losses(student=cross_entropy(s.student(s.images), s.labels))


class AdversarialCE(Strategy):
    """x' = argmax CE(S(x'), y);  L = CE(S(x'), y)  (Madry et al. 2018).

    With a text tower that does not learn this is TeCoA (arXiv 2212.07016).
    """

    def step(self, s: Step) -> Losses:
        return Losses(student=cross_entropy(s.student(s.attack()), s.labels))


class TRADES(Strategy):
    """What is said of the clean image shall be right, and be said of the adversarial one too (arXiv 1901.08573).

        x' = argmax KL(S(x) || S(x'))
        L  = CE(S(x), y) + beta KL(S(x) || S(x'))

    Both sides of the KL get gradients, as in the released code.
    """

    def step(self, s: Step) -> Losses:
        clean = s.student(s.images)
        adversarial = s.student(s.attack(lambda images, rows: kl(clean[rows], s.student(images))))
        return Losses(
            clean=cross_entropy(clean, s.labels),
            robust=Term(kl(clean, adversarial), self.config.beta),
        )


class FARE(Strategy):
    """Features f, not normalised, stay where they were, whatever is done to the image (arXiv 2402.12336).

        x' = argmax || f_S(x') - f_T(x) ||^2
        L  = || f_S(x') - f_T(x) ||^2                                                            form: l2
             1 - cos(f_S(x'), f_T(x))                                                            form: cosine
             1 - (cos(f_S(x'), sg f_S(x)) + cos(f_S(x), sg f_S(x'))) / 2   (arXiv 2407.14971)    form: siamese

    No label and no class feature has a part in it.
    """

    def prepare(self, models: Mapping[str, VisionLanguageModel]) -> None:
        same_width(models, "original")

    def step(self, s: Step) -> Losses:
        original = s.teacher("original")(s.images)
        adversarial = s.attack(lambda images, rows: squared(s.student(images).features, original[rows].features))
        student = s.student(adversarial)
        if self.config.form == "l2":
            return Losses(features=squared(student.features, original.features))
        if self.config.form == "cosine":
            return Losses(features=1 - F.cosine_similarity(student.features, original.features))
        clean, found = s.student(s.images).features, student.features
        both = F.cosine_similarity(found, clean.detach()) + F.cosine_similarity(clean, found.detach())
        return Losses(features=1 - both / 2)


def squared(a: Tensor, b: Tensor) -> Tensor:
    """(B,) squared Euclidean distance of (B, D) features."""
    return (a - b).square().sum(-1)


class PMGAFT(Strategy):
    """Adversarial cross-entropy with two guides (arXiv 2401.04350).

    x' = argmax CE(S(x'), y)
    L  = CE(S(x'), y) + w_original KL(T(x') || S(x')) + w_clean KL(S(x) || S(x'))
    """

    def step(self, s: Step) -> Losses:
        adversarial = s.attack()
        student, config, terms = s.student(adversarial), self.config, {}
        if config.clean_weight:
            terms["clean"] = Term(kl(s.student(s.images), student), config.clean_weight)
        if config.original_weight:
            terms["original"] = Term(kl(s.teacher("original")(adversarial), student), config.original_weight)
        return Losses(student=cross_entropy(student, s.labels), **terms)


class AGFT(Strategy):
    """The original's own view of a clean image, softened, is the target of attack and training (arXiv 2603.29410).

        q  = softmax(scale ratio logits_T(x)),    p(x') = softmax(scale logits_S(x'))
        x' = argmax KL(q || p(x'));    L = KL(q || p(x'))

    The released code has the cross-entropy of q and p, which differs by what no gradient reaches.
    """

    def step(self, s: Step) -> Losses:
        original, scale = s.teacher("original")(s.images), self.config.scale

        def apart(images: Tensor, rows: Tensor) -> Tensor:
            return kl(original[rows].logits * (scale * self.config.ratio), s.student(images).logits * scale)

        adversarial = s.attack(apart)
        return Losses(student=kl(original.logits * (scale * self.config.ratio), s.student(adversarial).logits * scale))


class HPTGPD(Strategy):
    """What fools the student does not fool a CLIP of another architecture, which can therefore teach it (arXiv
    2601.12865; the released code's loss lines are commented out, so the stages are inferred).

        x' = argmax CE(S(x'), y)
        L  = KL(T(x) || S(x'))                               in the warm-up; the proxy for T where there is no original
             KL(T_proxy(x') || S(x')) + w CE(S(x'), y)       after it

    `accuracy/proxy` shows how far its premise holds: the share of adversarial images that the proxy gets right.
    """

    def step(self, s: Step) -> Losses:
        config = self.config
        adversarial = s.attack()
        student = s.student(adversarial)
        warmup = config.warmup * s.clock.steps if config.warmup < 1 else config.warmup
        if s.clock.step < int(warmup):
            anchor = s.teacher("original" if "original" in s.roles else "proxy")
            return Losses(anchor=kl(anchor(s.images), student))
        proxy = s.teacher("proxy")(adversarial if config.view == "adversarial" else s.images)
        terms = {"proxy": Term(kl(proxy, student))}
        if config.ce_weight:
            terms["student"] = Term(cross_entropy(student, s.labels), config.ce_weight)
        right = proxy.logits.argmax(1) == s.labels
        return Losses({"accuracy/proxy": right.float()}, **terms)
