"""What is pinned here, for every strategy of adversarial prompt tuning:

- the cross-entropy of APT and the Adv* family is on adversarial images; with `batch: half` exactly the second half of a
  batch is attacked, its first half stays clean, and the cross-entropy is over both;
- FAP's and CAPT's losses, terms and attacks are their formulas, computed from the models' logits and features by
  torch's own functions; so are the gradients: FAP detaches nothing, CAPT's share gets none;
- gradients reach the student and nobody else;
- FAP refuses a student without image features; MoAPT's algorithm needs none;
- each name demands the student that makes its method, when the recipe is read.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import run_parts
import torch
import torch.nn.functional as F
from advdistill_prompting import TUNING, checks
from advdistill_prompting.configs import CAPT as CAPTConfig
from advdistill_prompting.configs import FAP as FAPConfig
from advdistill_prompting.configs import PromptTuning as PromptTuningConfig
from advdistill_prompting.strategies import CAPT, FAP, PromptTuning
from strategy_scenes import Scene, ce, kl, same_gradients
from torch import Tensor, nn

from advdistill import Strategy, UsageError
from advdistill.recipe.nodes import InvalidRecipe

BOTH, THREE = {"student.gain", "student.context"}, {"student", "clean", "original"}
CASES = [
    (PromptTuning(PromptTuningConfig()), (), {"student"}),
    (PromptTuning(PromptTuningConfig(batch="half")), (), {"student"}),
    (FAP(FAPConfig()), (), {"clean", "robust"}),
    (CAPT(CAPTConfig()), ("original",), {"student", "clean", "original"}),
    (
        CAPT(CAPTConfig(balance="fixed", ce_view="both", objective="kl")),
        ("original",),
        {"student", "clean", "original"},
    ),
]


@pytest.mark.parametrize(("strategy", "roles", "terms"), CASES)
def test_each_term_alone_reaches_the_student_and_nobody_else(
    strategy: Strategy, roles: tuple[str, ...], terms: set[str]
) -> None:
    scene = Scene(*roles)
    assert set(scene.losses(strategy).terms) == terms
    for name in terms:
        assert set(scene.gradients(scene.losses(strategy).weighted(name))) == BOTH, name


# --- the batch ---------------------------------------------------------------------------------------------------


def test_prompt_tuning_attacks_every_image() -> None:
    scene = Scene()
    losses = scene.losses(PromptTuning(PromptTuningConfig()))
    wanted = ce(scene.logits("student", scene.adversarial), scene.labels)
    torch.testing.assert_close(losses.total(), wanted)
    torch.testing.assert_close(scene.attack.climbed, wanted)


@pytest.mark.parametrize(("size", "clean"), [(6, 3), (5, 2), (2, 1), (1, 0)])
def test_half_a_batch_is_attacked(size: int, clean: int) -> None:
    scene = Scene(size=size)
    losses = scene.losses(PromptTuning(PromptTuningConfig(batch="half")))
    assert torch.equal(scene.attack.images, scene.images[clean:])
    adversarial = scene.adversarial
    assert (adversarial != scene.images).flatten(1).any(1).all()
    mixed = torch.cat([scene.images[:clean], adversarial[clean:]])
    wanted = ce(scene.logits("student", mixed), scene.labels)
    torch.testing.assert_close(losses.total(), wanted)
    torch.testing.assert_close(scene.attack.climbed, wanted[clean:])


class Unfactored(nn.Module):
    """Says logits, and has no features apart from its classes."""


def test_fap_needs_image_features_and_prompt_tuning_does_not() -> None:
    PromptTuning(PromptTuningConfig()).prepare({"student": Unfactored()})  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="no features of images apart from its classes"):
        FAP(FAPConfig()).prepare({"student": Unfactored()})  # type: ignore[dict-item]


# --- FAP ---------------------------------------------------------------------------------------------------------


def test_fap_is_its_formula_with_nothing_detached() -> None:
    scene = Scene()
    losses = scene.losses(FAP(FAPConfig()))
    clean, adversarial = (scene.logits("student", images) for images in (scene.images, scene.adversarial))
    z, moved = (scene.features("student", images) for images in (scene.images, scene.adversarial))
    cosine = (z * moved).sum(1) / (z.norm(dim=1) * moved.norm(dim=1))
    wanted = ce(clean, scene.labels) + 1.5 * kl(clean, adversarial) * (cosine + 1)
    torch.testing.assert_close(losses.total(), wanted)
    torch.testing.assert_close(scene.attack.climbed, kl(clean, adversarial))
    found = scene.gradients(losses.total())
    same_gradients(found, scene.gradients(wanted))


def test_faps_cosine_has_its_own_gradient() -> None:
    scene = Scene()
    found = scene.gradients(scene.losses(FAP(FAPConfig())).weighted("robust"))
    clean, adversarial = (scene.logits("student", images) for images in (scene.images, scene.adversarial))
    z, moved = (scene.features("student", images).detach() for images in (scene.images, scene.adversarial))
    held = scene.gradients(1.5 * kl(clean, adversarial) * (F.cosine_similarity(z, moved) + 1))
    torch.testing.assert_close(found["student.context"], held["student.context"])  # no class feature is in the cosine
    assert (found["student.gain"] - held["student.gain"]).norm() > 1e-3 * held["student.gain"].norm()


def test_fap_weighs_its_term() -> None:
    one, other = (Scene().losses(FAP(FAPConfig(weight=weight))) for weight in (1.5, 3.0))
    torch.testing.assert_close(2 * one.weighted("robust"), other.weighted("robust"))
    torch.testing.assert_close(one.weighted("clean"), other.weighted("clean"))


# --- CAPT --------------------------------------------------------------------------------------------------------


def capt(scene: Scene, share: float | None, swap: bool, view: str, weight: float) -> Tensor:
    """CAPT's loss by its formula; `share` None: by confidence."""
    clean, adversarial = (scene.logits("student", images) for images in (scene.images, scene.adversarial))
    original = scene.logits("original", scene.images)
    mine, theirs = (said.softmax(1)[range(6), scene.labels].detach() for said in (clean, original))
    a = theirs / (theirs + mine) if share is None else share
    apart = (lambda target: kl(target, adversarial)) if swap else (lambda target: kl(adversarial, target))
    views = {"clean": [clean], "adversarial": [adversarial], "both": [clean, adversarial]}[view]
    supervised = torch.stack([ce(said, scene.labels) for said in views]).mean(0)
    return supervised + weight * ((1 - a) * apart(clean) + a * apart(original))


@pytest.mark.parametrize(
    ("settings", "share", "swap", "view", "weight"),
    [
        ({}, None, False, "clean", 1.0),
        ({"balance": "fixed"}, 0.5, False, "clean", 1.0),
        ({"balance": "fixed", "share": 0.3, "weight": 2.0}, 0.3, False, "clean", 2.0),
        ({"direction": "target-first"}, None, True, "clean", 1.0),
        ({"ce_view": "adversarial"}, None, False, "adversarial", 1.0),
        ({"ce_view": "both"}, None, False, "both", 1.0),
    ],
)
def test_capt_is_its_formula(
    settings: dict[str, Any], share: float | None, swap: bool, view: str, weight: float
) -> None:
    scene = Scene("original")
    losses = scene.losses(CAPT(CAPTConfig(**settings)))
    wanted = capt(scene, share, swap, view, weight)
    torch.testing.assert_close(losses.total(), wanted)
    adversarial = scene.logits("student", scene.adversarial)
    torch.testing.assert_close(scene.attack.climbed, ce(adversarial, scene.labels))
    same_gradients(scene.gradients(losses.total()), scene.gradients(wanted))


def test_capt_can_attack_by_kl() -> None:
    scene = Scene("original")
    scene.losses(CAPT(CAPTConfig(objective="kl")))
    clean, adversarial = (scene.logits("student", images) for images in (scene.images, scene.adversarial))
    torch.testing.assert_close(scene.attack.climbed, kl(clean, adversarial))


def test_capt_reports_the_frozen_models_share() -> None:
    fixed = Scene("original").losses(CAPT(CAPTConfig(balance="fixed", share=0.25))).report["share/original"]
    assert fixed == 0.25
    shares = Scene("original").losses(CAPT(CAPTConfig())).report["share/original"]
    assert shares.shape == (6,) and ((shares > 0) & (shares < 1)).all() and shares.std() > 0


# --- who makes which method --------------------------------------------------------------------------------------

TEXT, VISUAL = {"text": {"tokens": 2}}, {"visual": {"tokens": 3}}
NO_TEXT, NO_VISUAL = {"text": {"tokens": 0}}, {"visual": {"tokens": 0}}
STUDENTS: dict[str, dict[str, Any]] = {
    "text": TEXT | NO_VISUAL,
    "visual": NO_TEXT | VISUAL,
    "pixels": NO_TEXT | NO_VISUAL | {"pixels": {"form": "frame"}},
    "both": TEXT | VISUAL | {"coupling": "none"},
    "coupled": TEXT | VISUAL | {"coupling": "text-to-visual"},
    "coupled back": TEXT | VISUAL | {"coupling": "visual-to-text"},
    "text and pixels": TEXT | NO_VISUAL | {"pixels": {"form": "additive"}},
    "no prompts": {"rank": 4},
}
MAKES = {
    "apt": {"text"},
    "adv-tp": {"text"},
    "adv-vp": {"visual", "pixels"},
    "adv-vlp": {"both"},
    "adv-maple": {"coupled", "coupled back"},
    "moapt": set(),
}


def space(tree: Any) -> Any:
    return SimpleNamespace(**{key: space(value) for key, value in tree.items()}) if isinstance(tree, dict) else tree


@pytest.mark.parametrize("method", MAKES)
@pytest.mark.parametrize("kind", STUDENTS)
def test_a_name_demands_its_student(method: str, kind: str) -> None:
    student = {"use": "clip-some", "spec": {"name": "clip-some"}, "config": STUDENTS[kind]}
    recipe = space({"student": student, "strategy": {"spec": {"name": method}}})
    problems = list(getattr(checks, method.replace("-", "_"))(None, recipe))
    assert bool(problems) == (kind not in MAKES[method])
    for key, message in problems:
        assert key == "use" and message.startswith(f"{method} learns ") and "adversarial-ce" in message


def test_every_name_has_its_demand() -> None:
    assert set(MAKES) == set(TUNING)


CLIP = {"model": "advdistill_demo:small.json", "weights": "random"}
PROMPTS = {"use": "clip-prompts", **CLIP}
ORIGINAL = {"original": {"use": "clip", **CLIP}}
STILL = {"use": "pgd", "steps": 2, "random_start": False}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strategy": {"use": "adv-tp"}, "student": PROMPTS}, "learns text tokens alone, which this clip-prompts"),
        ({"strategy": {"use": "adv-vp"}, "student": {"use": "clip-lora", **CLIP}}, "which this clip-lora does not"),
        ({"strategy": {"use": "moapt"}, "student": PROMPTS}, "set student.use: clip-moapt"),
        ({"strategy": {"use": "fap"}, "student": PROMPTS, "attack": STILL}, "no gradient at the clean image"),
        ({"strategy": {"use": "fap", "weight": 0}, "student": PROMPTS}, "greater than 0"),
        (
            {"strategy": {"use": "capt", "objective": "kl"}, "student": PROMPTS, "teachers": ORIGINAL, "attack": STILL},
            "no gradient at the clean image",
        ),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_meant_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRecipe, match=told):
        run_parts.recipe(tmp_path, **{"attack": {"use": "pgd", "steps": 2}, **changes})


@pytest.mark.parametrize(
    ("method", "student"),
    [
        ("apt", TEXT | NO_VISUAL),
        ("adv-vp", NO_TEXT | VISUAL),
        ("adv-vp", NO_TEXT | NO_VISUAL | {"pixels": {"form": "frame"}}),
        ("adv-vlp", TEXT | VISUAL),
        ("adv-maple", {"text": {"tokens": 2, "depth": 2}, "visual": {"tokens": 2, "depth": 2},
                       "coupling": "text-to-visual"}),
        ("moapt", {"use": "clip-moapt"}),
        ("fap", TEXT | VISUAL),
    ],
)  # fmt: skip
def test_the_students_that_make_methods_are_taken(tmp_path: Path, method: str, student: dict[str, Any]) -> None:
    made = run_parts.recipe(
        tmp_path, strategy={"use": method}, student={**PROMPTS, **student}, attack={"use": "pgd", "steps": 2}
    )
    assert made.strategy.use == method
