"""Cross-entropy on clean or on adversarial images."""

from __future__ import annotations

from advdistill import Losses, Step, Strategy, cross_entropy


class Clean(Strategy):
    """L = CE(S(x), y)."""

    def step(self, s: Step) -> Losses:
        return Losses(student=cross_entropy(s.student(s.images), s.labels))


class AdversarialCE(Strategy):
    """x' = argmax CE(S(x'), y);  L = CE(S(x'), y)  (Madry et al. 2018)."""

    def step(self, s: Step) -> Losses:
        adversarial = s.attack(lambda images, rows: cross_entropy(s.student(images), s.labels[rows]))
        return Losses(student=cross_entropy(s.student(adversarial), s.labels))
