"""Attacks of our own. They climb any per-sample objective, so that methods can train against what their paper says."""

from __future__ import annotations

from collections.abc import Iterable

from advdistill import AttackSpec, hookimpl


@hookimpl
def advdistill_attacks() -> Iterable[AttackSpec]:
    yield AttackSpec(
        name="pgd",
        target="advdistill_attacks.pgd:PGD",
        config="advdistill_attacks.configs:PGD",
        norms={"linf", "l2"},
        objective=True,
        summary="Projected gradient ascent on any objective, with restarts and momentum",
        reference="https://arxiv.org/abs/1706.06083",
    )
    yield AttackSpec(
        name="fgsm",
        target="advdistill_attacks.pgd:FGSM",
        config="advdistill_attacks.configs:FGSM",
        norms={"linf", "l2"},
        objective=True,
        summary="One gradient step, with a random start if asked",
        reference="https://arxiv.org/abs/1412.6572",
    )
