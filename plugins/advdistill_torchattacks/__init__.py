"""The torchattacks zoo behind one adapter: `ta-pgd`, `ta-apgd`, `ta-square` and others.

They are driven by labels alone and bring their own losses, so they cannot maximise a strategy's objective. The radius
and the norm are the recipe's threat; other settings carry torchattacks' names.

Left out, since they would not do what their names say:

- AutoAttack: 10 steps for AutoAttack's 100, all classes as targets for its 9, another schedule in Square. Its numbers
  do not compare. Use `ta-apgd` and `ta-apgdt` with `steps: 100` and say so.
- CW, and UPGD's margin loss: do nothing where all logits are negative (SigLIP); CW cannot move pixels that are 0 or 1.
- FAB, DeepFool, SparseFool, JSMA, EADL1, EADEN: look for the smallest perturbation, not within a radius, one backward
  pass a class, and leave gradients in parameters; so do PIFGSM and PIFGSMPP.
- APGDT in l2: takes the first sample's step size for all.
- PGDRS, PGDRSL2: attack a randomly smoothed model, which is not the one that is measured.
- GN, VANILA: noise, and nothing.
- MultiAttack, LGV: wrappers; a protocol does what the first does.
"""

from __future__ import annotations

from collections.abc import Iterable

from advdistill import AttackSpec, hookimpl

_LINF = frozenset({"linf"})
_ZOO: tuple[tuple[str, frozenset[str], str, str], ...] = (
    ("FGSM", _LINF, "One gradient step of length eps", "1412.6572"),
    ("FFGSM", _LINF, "One gradient step from a random start", "2001.03994"),
    ("RFGSM", _LINF, "Iterated FGSM from a random corner", "1705.07204"),
    ("BIM", _LINF, "Iterated FGSM", "1607.02533"),
    ("PGD", _LINF, "Projected gradient descent on cross-entropy", "1706.06083"),
    ("PGDL2", frozenset({"l2"}), "Projected gradient descent in l2", "1706.06083"),
    ("EOTPGD", _LINF, "PGD on averaged gradients, for random models", "1907.00895"),
    ("TPGD", _LINF, "Ascent on the KL divergence of TRADES", "1901.08573"),
    ("UPGD", _LINF, "PGD with momentum and a choice of loss", ""),
    ("Jitter", _LINF, "PGD on a noisy, rescaled squared error", "2105.10304"),
    ("MIFGSM", _LINF, "FGSM with momentum", "1710.06081"),
    ("NIFGSM", _LINF, "FGSM with Nesterov momentum", "1908.06281"),
    ("SINIFGSM", _LINF, "NI-FGSM over darkened copies", "1908.06281"),
    ("VMIFGSM", _LINF, "MI-FGSM with variance tuning", "2103.15571"),
    ("VNIFGSM", _LINF, "NI-FGSM with variance tuning", "2103.15571"),
    ("DIFGSM", _LINF, "FGSM through random resizing", "1803.06978"),
    ("TIFGSM", _LINF, "FGSM with a smoothed gradient, and random resizing", "1904.02884"),
    ("APGD", frozenset({"linf", "l2"}), "Auto-PGD on cross-entropy or DLR (10 steps unless told)", "2003.01690"),
    ("APGDT", _LINF, "Auto-PGD towards the likeliest wrong classes (10 steps unless told)", "2003.01690"),
    ("Square", frozenset({"linf", "l2"}), "Random search without gradients", "1912.00049"),
    ("SPSA", _LINF, "Estimated gradients", "1802.05666"),
    ("OnePixel", frozenset({"l0"}), "Differential evolution over a few pixels", "1710.08864"),
    ("Pixle", frozenset({"l0"}), "Copies patches of pixels elsewhere", "2202.02236"),
)

_MEASURES_ONLY = {"APGD", "APGDT", "Square"}


@hookimpl
def advdistill_attacks() -> Iterable[AttackSpec]:
    for name, norms, summary, paper in _ZOO:
        yield AttackSpec(
            name=f"ta-{name.lower()}",
            target="advdistill_torchattacks.adapter:Torchattack",
            config=f"advdistill_torchattacks.configs:{name}",
            check="advdistill_torchattacks.checks:measures_only" if name in _MEASURES_ONLY else None,
            norms=norms,
            summary=f"{summary} (torchattacks)",
            reference=f"https://arxiv.org/abs/{paper}" if paper else "",
        )
