"""Classical adversarial robustness distillation, in CLIP form: logits at the models' own scales.

KLs are summed over classes and averaged over samples; the released codes of ARD, RSLAD and (on CIFAR-10) AdaAD average
over classes too, which only scales the loss where no cross-entropy stands beside it.

What is wanted of a model is asked for before anybody looks at it, so that its views share one forward pass.
"""

from __future__ import annotations

from torch import Tensor

from advdistill import Losses, Step, Strategy, Term, cross_entropy, kl


class ARD(Strategy):
    """The student learns on adversarial images the softened labels that the teacher gives clean ones (Goldblum et al.
    2020).

        x' = argmax CE(S(x'), y)
        L  = alpha T^2 KL(T(x); T || S(x'); T) + (1 - alpha) CE(S(x), y)
    """

    def step(self, s: Step) -> Losses:
        alpha, temperature = self.config.alpha, self.config.temperature
        student, robust, terms = s.student(s.attack()), s.teacher("robust")(s.images), {}
        if alpha < 1:
            terms["labels"] = Term(cross_entropy(s.student(s.images), s.labels), 1 - alpha)
        return Losses(robust=Term(kl(robust, student, temperature), alpha * temperature**2), **terms)


class RSLAD(Strategy):
    """The teacher's soft labels of clean images everywhere, in the attack too (Zi et al. 2021).

    x' = argmax KL(T(x) || S(x'))
    L  = 5/6 KL(T(x) || S(x')) + 1/6 KL(T(x) || S(x))
    """

    def step(self, s: Step) -> Losses:
        robust = s.teacher("robust")(s.images)
        student, terms = s.student(s.attack(lambda images, rows: kl(robust[rows], s.student(images)))), {}
        if self.config.clean_weight:
            terms["clean"] = Term(kl(robust, s.student(s.images)), self.config.clean_weight)
        return Losses(adversarial=Term(kl(robust, student), self.config.adversarial_weight), **terms)


class IAD(Strategy):
    """The teacher is trusted as far as it withstands the attack on the student; what is missing, the student teaches
    itself (Zhu et al. 2022).

        x' = argmax CE(S(x'), y),   a = p_T(y | x')^beta, without gradient; before `begin` a = 1

    IAD-I, with a robust teacher T:

        L = alpha [ T^2 KL(T(x) || S(x')) + (1 - a) KL(S(x) || S(x')) ] + (1 - alpha) CE(S(x), y)

    IAD-II, with a clean teacher C beside it, whose robust teacher sees the adversarial image:

        L = w_r T^2 [ a KL(T(x') || S(x')) + (1 - a) KL(S(x) || S(x')) ] + w_c T^2 KL(C(x') || S(x'))
            + (1 - w_r - w_c) CE(S(x'), y)

    The teachers' KLs are at temperature T, the student's own is at 1; its clean look gets a gradient too.
    """

    def step(self, s: Step) -> Losses:
        return self.second(s) if "clean" in s.roles else self.first(s)

    def first(self, s: Step) -> Losses:
        """IAD-I."""
        alpha, temperature = self.config.alpha, self.config.temperature
        adversarial, terms, report = s.attack(), {}, {}
        robust, student = s.teacher("robust")(s.images), s.student(adversarial)
        if self.introspective(s, 0.3):
            trust = report["trust"] = self.trust(s, adversarial)
            terms["self"] = Term(kl(s.student(s.images), student), alpha * (1 - trust))
        if alpha < 1:
            terms["labels"] = Term(cross_entropy(s.student(s.images), s.labels), 1 - alpha)
        return Losses(report, robust=Term(kl(robust, student, temperature), alpha * temperature**2), **terms)

    def second(self, s: Step) -> Losses:
        """IAD-II."""
        robust_weight, clean_weight = self.config.robust_weight, self.config.clean_weight
        temperature = self.config.temperature
        square = temperature**2
        adversarial = s.attack()
        student = s.student(adversarial)
        terms, report = {}, {}
        if robust_weight:
            trust: float | Tensor = 1.0
            if self.introspective(s, 0.2):
                trust = report["trust"] = self.trust(s, adversarial)
                terms["self"] = Term(kl(s.student(s.images), student), robust_weight * square * (1 - trust))
            robust = s.teacher("robust")(adversarial)
            terms["robust"] = Term(kl(robust, student, temperature), robust_weight * square * trust)
        if clean_weight:
            clean = s.teacher("clean")(adversarial)
            terms["clean"] = Term(kl(clean, student, temperature), clean_weight * square)
        if robust_weight + clean_weight < 1:
            terms["labels"] = Term(cross_entropy(student, s.labels), 1 - robust_weight - clean_weight)
        return Losses(report, **terms)

    def introspective(self, s: Step, default: float) -> bool:
        """Whether the teacher is weighed by now."""
        begin = default if self.config.begin is None else self.config.begin
        return s.clock.progress >= begin

    def trust(self, s: Step, adversarial: Tensor) -> Tensor:
        """(B,) in [0, 1]: the robust teacher's probability of the adversarial image's label, to the power beta."""
        return s.teacher("robust")(adversarial).confidence(s.labels) ** self.config.beta


class AdaAD(Strategy):
    """The attack seeks where teacher and student differ most, and moves both (Huang et al. 2023).

    x' = argmax KL(T(x') || S(x')), its gradient through T and S
    L  = alpha KL(T(x') || S(x')) + (1 - alpha) KL(T(x) || S(x))
    """

    def step(self, s: Step) -> Losses:
        alpha, robust = self.config.alpha, s.teacher("robust")
        adversarial = s.attack(lambda images, rows: kl(robust(images), s.student(images)))
        teacher, student, terms = robust(adversarial), s.student(adversarial), {}
        if alpha < 1:
            terms["clean"] = Term(kl(robust(s.images), s.student(s.images)), 1 - alpha)
        return Losses(adversarial=Term(kl(teacher, student), alpha), **terms)
