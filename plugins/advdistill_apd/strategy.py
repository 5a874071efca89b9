"""APD's algorithm (arXiv 2411.15244; the equations are inferred from its abstract and published descriptions)."""

from __future__ import annotations

from advdistill import Losses, Step, Strategy, Term, cross_entropy, kl


class APD(Strategy):
    """The student learns on adversarial images what the teacher says of the clean ones; the teacher learns from the
    labels and, with weight beta, from the student. Neither's loss sends gradients to the other.

        x'  = argmax CE(S(x'), y)
        L_S = KL(T(x) || S(x'))                          -> the student's prompts
        L_T = CE(T(x), y) + beta KL(S(x') || T(x))       -> the teacher's prompts, where it learns
    """

    def step(self, s: Step) -> Losses:
        adversarial = s.attack(lambda images, rows: cross_entropy(s.student(images), s.labels[rows]))
        student, teacher = s.student(adversarial), s.teacher("clean")(s.images)
        distil = kl(teacher.detach(), student, self.config.temperature)
        if not s.learns("clean"):
            return Losses(student=distil)
        return Losses(
            student=distil,
            teacher=cross_entropy(teacher, s.labels),
            feedback=Term(kl(student.detach(), teacher, self.config.temperature), self.config.beta),
        )
