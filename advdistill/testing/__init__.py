"""For plugin authors: contracts that a component must keep, and toy parts to try it on, in milliseconds.

A whole test module of a plugin with an attack:

    from advdistill.testing import check_attack
    from my_attacks.momentum import MomentumFGSM, MomentumConfig

    def test_contract():
        check_attack(MomentumFGSM(MomentumConfig()), norms={"linf"}, objective=True)

A broken contract raises `Broken`, an AssertionError that says which clause and by how much.
"""

from __future__ import annotations

from advdistill.testing.contracts import (
    Broken,
    check_attack,
    check_dataset,
    check_model,
    check_reporter,
    check_strategy,
)
from advdistill.testing.toy import ToyAttack, ToyConfig, ToyDataset, ToyModel

__all__ = [
    "Broken",
    "ToyAttack",
    "ToyConfig",
    "ToyDataset",
    "ToyModel",
    "check_attack",
    "check_dataset",
    "check_model",
    "check_reporter",
    "check_strategy",
]
