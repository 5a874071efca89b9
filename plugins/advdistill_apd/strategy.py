"""APD's algorithm (arXiv 2411.15244; the equations are inferred from its abstract and published descriptions)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from advdistill import Losses, Output, Step, Strategy, Term, cross_entropy, kl


class APD(Strategy):
    """The student learns on adversarial images what the teacher says of the clean ones; the teacher learns from the
    labels and, with weight beta, from the student. Neither's loss sends gradients to the other.

        x'  = argmax CE(S(x'), y)
        L_S = KL(T(x) || S(x'))                          -> the student's prompts
        L_T = CE(T(x), y) + beta KL(S(x') || T(x))       -> the teacher's prompts, where it learns
    """

    @property
    def phases(self) -> tuple[Callable[[Step], Losses], ...]:
        return (self.step,) if self.config.update_order == "simultaneous" else (self.student, self.teacher)

    def step(self, s: Step) -> Losses:
        student = self.student(s)
        return Losses(**student.terms, **self.teacher(s).terms) if s.learns("clean") else student

    def student(self, s: Step) -> Losses:
        """L_S."""
        teacher, student = s.teacher("clean")(s.images), s.student(self.adversarial(s))
        terms = {"student": Term(self.distance(self.config.student_kl, teacher.detach(), student))}
        if self.config.student_ce_weight:
            terms["student_ce"] = Term(cross_entropy(student, s.labels), self.config.student_ce_weight)
        return Losses(**terms)

    def teacher(self, s: Step) -> Losses:
        """L_T."""
        teacher, beta = s.teacher("clean")(s.images), self.config.beta
        terms = {
            "teacher": Term(
                cross_entropy(teacher, s.labels), 1 - beta if self.config.feedback_form == "convex" else 1.0
            )
        }
        if beta:
            student = s.student(self.adversarial(s))
            student = student.detach() if self.config.feedback_detach else student
            terms["feedback"] = Term(self.distance(self.config.feedback_kl, teacher, student), beta)
        return Losses(**terms)

    def adversarial(self, s: Step) -> Tensor:
        """x', made once a batch."""
        return s.once("adversarial", s.attack)

    def distance(self, direction: str, teacher: Output, student: Output) -> Tensor:
        """(B,) KL(T || S) or KL(S || T)."""
        first, second = (teacher, student) if direction == "teacher-first" else (student, teacher)
        temperature = self.config.temperature
        scale = temperature**2 if self.config.temperature_squared else 1.0
        return kl(first, second, temperature) * scale
