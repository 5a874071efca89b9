"""What is pinned here, for every method's recipe on the digits, in a real run's second step:

- Who looks at how many images, how often, under attack and in the loss, and where gradients pass: exactly what the
  method's equations need. K attack steps are K forwards and K backwards; a model sees all its views of a loss at once;
  a frozen teacher's answer about the clean batch serves attack and loss; nothing is asked twice.
- Class features are encoded once an update where they learn or follow, with one backward pass where they learn; frozen
  ones once a run. Nothing that is frozen gets a gradient.
- Where an image's answer depends on its mates (batch statistics) no forward is shared.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_parts import merged
from torch import Tensor

from advdistill.engine import build
from advdistill.engine.fit import Run
from advdistill.engine.folder import RunFolder
from advdistill.engine.participant import Participant
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe

SIZE, STEPS = 4, 3

CLIMB = "attack 3x4/3x4"
ONE, BOTH = f"{CLIMB}, loss 1x4/1x4", f"{CLIMB}, loss 1x8/1x8"
"""A student of one view, and of both at once."""
TEXT = "text 1/1"
CLEAN = {"clean": "loss 1x4/0"}
ROBUST = {"robust": "loss 1x4/0"}
TARGET = "attack 1x4/0"
"""Asked by the attack's objective, known in the loss."""
MMT_ARD = {"student": BOTH, "clean": TARGET, "robust": "loss 1x4/0"}
TABLE: dict[str, dict[str, str]] = {
    "demo_clean": {"student": "loss 1x4/1x4, text 1/1"},
    "tecoa_digits": {"student": ONE},
    "r_adapt_digits": {"student": ONE},
    "advclip_lora_digits": {"student": f"{ONE}, {TEXT}"},
    # Whoever asks for S(x) in the objective asks once more, without gradients.
    "trades_digits": {"student": "attack 4x4/3x4, loss 1x8/1x8"},
    "fap_digits": {"student": f"attack 4x4/3x4, loss 1x8/1x8, {TEXT}"},
    "fare_digits": {"student": ONE, "original": TARGET},
    "sim_clip_digits": {"student": ONE, "original": TARGET},
    "agft_digits": {"student": ONE, "original": TARGET},
    "pmg_aft_digits": {"student": BOTH, "original": "loss 1x4/0"},
    "hpt_gpd_digits": {"student": ONE, "proxy": "loss 1x4/0", "original": ""},
    # Learned tokens in the text tower alone: the loss sends no gradient through the visual one.
    "apt_digits": {"student": f"{CLIMB}, loss 1x4/0, {TEXT}"},
    "moapt_digits": {"student": f"{CLIMB}, loss 1x4/0, {TEXT}"},
    "adv_tp_digits": {"student": f"{CLIMB}, loss 1x4/0, {TEXT}"},
    "adv_vp_digits": {"student": ONE},
    "adv_vlp_digits": {"student": f"{ONE}, {TEXT}"},
    "adv_maple_digits": {"student": f"attack 3x2/3x2, loss 1x4/1x4, {TEXT}"},
    "capt_digits": {"student": f"{BOTH}, {TEXT}", "original": "loss 1x4/0"},
    "ard_digits": {"student": ONE, **ROBUST},
    "rslad_digits": {"student": BOTH, "robust": TARGET},
    "iad_digits": {"student": BOTH, "robust": "loss 1x8/0"},
    "iad2_digits": {"student": BOTH, **ROBUST, **CLEAN},
    "adaad_digits": {"student": ONE, "robust": f"{CLIMB}, loss 1x4/0"},
    "apd_digits": {"student": f"{ONE}, {TEXT}", "clean": f"loss 1x4/1x4, {TEXT}"},
    "apd_digits_nofeedback": {"student": f"{ONE}, {TEXT}", "clean": f"loss 1x4/1x4, {TEXT}"},
    "apd_digits_zeroshot": {"student": f"{ONE}, {TEXT}", **CLEAN},
    "apd_digits_ema": {"student": f"{ONE}, {TEXT}", "clean": "loss 1x4/0, text 1/0"},
    "apd_digits_text": {"student": f"{CLIMB}, loss 1x4/0, {TEXT}", "clean": f"loss 1x4/0, {TEXT}"},
    "apd_digits_visual": {"student": ONE, "clean": "loss 1x4/1x4"},
    # Two updates of a batch: each looks at what the one before it left.
    "apd_digits_alternate": {"student": f"{CLIMB}, loss 2x4/1x4, text 2/1", "clean": "loss 2x4/1x4, text 2/1"},
    "mtard_digits": {"student": BOTH, **ROBUST, **CLEAN},
    "b_mtard_digits": {"student": BOTH, **ROBUST, **CLEAN},
    "ciard_digits": {"student": BOTH, "clean": "loss 1x8/0", "robust": f"loss 1x4/1x4, {TEXT}"},
    **dict.fromkeys(("quickstart", "mmt_ard_code_digits", "mmt_ard_embedding_digits", "mmt_ard_saad_digits",
                     "mmt_ard_contrastive_digits"), MMT_ARD),
    "mmt_ard_three_digits": {**MMT_ARD, "peer": "loss 1x4/0"},
}  # fmt: skip
"""Recipe -> role -> its passes in a step, as `Counts.told` writes them."""


class Counts:
    """The passes of a run's latest step.

    Attributes:
        text: role -> forwards and backwards of class features in the whole run.
    """

    def __init__(self) -> None:
        self.attacking = False
        self.text = defaultdict[str, Counter[str]](Counter)
        self.restart()

    def restart(self) -> None:
        """Another step begins."""
        self.passes = defaultdict[tuple[str, str], list[tuple[str, int]]](list)
        self.of_step = defaultdict[str, Counter[str]](Counter)

    def watch(self, role: str, participant: Participant) -> None:
        """Count what a model does from now on."""
        model: Any = participant.model
        features, classifier = model.features, model.classifier

        def looks(images: Tensor) -> Tensor:
            where = "attack" if self.attacking else "loss"
            found = features(images)
            self.passes[role, where].append(("forward", len(images)))
            if found.requires_grad:
                found.register_hook(lambda _: self.passes[role, where].append(("backward", len(images))))
            return found

        def encodes(classes: Any, rows: Tensor | None = None) -> Tensor:
            found = classifier(classes, rows)
            for counter in (self.text[role], self.of_step[role]):
                counter["forward"] += 1
            if found.requires_grad:
                found.register_hook(lambda _: self.of_step[role].update(["backward"]))
            return found

        model.features, model.classifier = looks, encodes

    def during(self, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """An attack's `run` that says when it runs."""

        def wrapped(*given: Any) -> Tensor:
            self.attacking = True
            try:
                return run(*given)
            finally:
                self.attacking = False

        return wrapped

    def told(self, role: str) -> str:
        """Such as `attack 3x4/3x4, loss 1x8/1x8, text 1/1`: passes x images, forward/backward."""
        parts = []
        for where in ("attack", "loss"):
            sizes = [
                "+".join(f"{count}x{size}" for size, count in sorted(Counter(
                    n for kind, n in self.passes[role, where] if kind == direction).items())) or "0"
                for direction in ("forward", "backward")
            ]  # fmt: skip
            if sizes != ["0", "0"]:
                parts.append(f"{where} {'/'.join(sizes)}")
        text = self.of_step[role]
        if text:
            parts.append(f"text {text['forward']}/{text['backward']}")
        return ", ".join(parts)


def second_step(folder: Path, name: str, shares: bool = True, **changes: Any) -> tuple[Counts, dict[str, Participant]]:
    """Take two steps of a recipe, its batches and attack made short.

    Args:
        shares: whether models are said to look at each image for itself.
        changes: of the recipe.

    Returns:
        What passed in the second step, and who took part, by role.
    """
    tree = merged(
        load_recipe(name).tree,
        {
            "train": {"steps": 2, "epochs": None, "batch_size": SIZE, "device": "cpu"},
            "evaluate": {"every": 0, "undefended": False, "controls": None},
            "save": {"dir": str(folder / name), "every": 0},
            "report": None,
        },
    )
    if "attack" in tree:
        tree["attack"]["steps"] = STEPS
    made = folder / "short.yaml"
    made.write_text(yaml.safe_dump(merged(tree, changes)))
    recipe, counts = build.settled(load_recipe(made)), Counts()
    with RunFolder(recipe, resume=False, overwrite=False) as at:
        run = Run(recipe, default_registry(), at, lambda event: None)
        everybody = {"student": run.parts.student, **run.parts.teachers}
        for role, participant in everybody.items():
            counts.watch(role, participant)
            participant.model.batch_independent = shares
        if run.parts.attack:
            run.parts.attack.run = counts.during(run.parts.attack.run)  # type: ignore[method-assign]
        for batch in run.batches():
            counts.restart()
            run.take(batch)
    return counts, everybody


@pytest.mark.parametrize("name", TABLE)
def test_the_passes_are_those_of_the_equations(tmp_path: Path, name: str) -> None:
    counts, everybody = second_step(tmp_path, name)
    assert {role: counts.told(role) for role in everybody} == TABLE[name]
    for role, participant in everybody.items():
        if not participant.changes:
            assert counts.text[role]["forward"] <= 1
            assert not participant.trainable
        for parameter in participant.model.parameters():
            assert parameter.grad is None or any(parameter is learns for learns in participant.trainable.values())


def test_every_strategy_of_ours_is_in_the_table() -> None:
    used = {load_recipe(name).strategy.use for name in TABLE}
    assert used == {e.spec.name for e in default_registry().entries("strategy") if e.plugin.dist == "advdistill"}


@pytest.mark.parametrize(
    ("name", "strategy", "told"),
    [
        ("adaad_digits", {"alpha": 0.5}, {"student": f"{CLIMB}, loss 1x8/1x8", "robust": f"{CLIMB}, loss 1x8/0"}),
        ("sim_clip_digits", {"form": "siamese"}, {"student": f"{CLIMB}, loss 1x8/1x8", "original": "attack 1x4/0"}),
        ("ard_digits", {"alpha": 0.5}, {"student": f"{CLIMB}, loss 1x8/1x8", "robust": "loss 1x4/0"}),
        ("iad_digits", {"alpha": 0.5, "begin": 0.9}, {"student": f"{CLIMB}, loss 1x8/1x8", "robust": "loss 1x4/0"}),
    ],
)
def test_settings_that_look_twice(tmp_path: Path, name: str, strategy: dict[str, Any], told: dict[str, str]) -> None:
    counts, everybody = second_step(tmp_path, name, strategy=strategy)
    assert {role: counts.told(role) for role in everybody} == told


def test_batch_statistics_forbid_to_share(tmp_path: Path) -> None:
    counts, _ = second_step(tmp_path, "mtard_digits", shares=False)
    assert counts.told("student") == f"{CLIMB}, loss 2x4/2x4"
