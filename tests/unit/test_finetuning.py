"""What is pinned here, for every strategy of robust fine-tuning:

- its loss, its terms and what its attack maximises are the formula in its paper or released code, computed from the
  models' logits and features by torch's own functions; so are the gradients, stop-gradients included;
- gradients reach the student and nobody else; TeCoA's none of the text, FARE's none even of a text that could learn;
- FARE's attack and loss ignore labels, and compare features that are not normalised; other widths are refused;
- PMG-AFT's KLs are between logits at each model's own scale; a weight of 0 asks nobody;
- AGFT without its temperatures is KL(T(x) || S(x'));
- HPT-GPD warms up towards what the original, or without one the proxy, says of clean images, for as long as it is told;
- a recipe with a text tower that learns, or an attack that starts where the objective is flat
  is refused before anything is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
import torch.nn.functional as F
from advdistill_finetuning.configs import AGFT as AGFTConfig
from advdistill_finetuning.configs import FARE as FAREConfig
from advdistill_finetuning.configs import HPTGPD as HPTGPDConfig
from advdistill_finetuning.configs import PMGAFT as PMGAFTConfig
from advdistill_finetuning.configs import TRADES as TRADESConfig
from advdistill_finetuning.strategies import AGFT, FARE, HPTGPD, PMGAFT, TRADES, AdversarialCE, Clean
from strategy_scenes import Scene, ce, kl, same_gradients
from torch import Tensor

from advdistill import Clock, Strategy, UsageError
from advdistill.recipe.nodes import InvalidRecipe

IMAGE, BOTH = {"student.gain"}, {"student.gain", "student.context"}
LATER = Clock(5, 10, 0)
CASES = [
    (Clean(None), (), {"student": BOTH}),
    (AdversarialCE(None), (), {"student": BOTH}),
    (TRADES(TRADESConfig()), (), {"clean": BOTH, "robust": BOTH}),
    (FARE(FAREConfig()), ("original",), {"features": IMAGE}),
    (FARE(FAREConfig(form="cosine")), ("original",), {"features": IMAGE}),
    (FARE(FAREConfig(form="siamese")), ("original",), {"features": IMAGE}),
    (PMGAFT(PMGAFTConfig()), ("original",), {"student": BOTH, "original": BOTH, "clean": BOTH}),
    (AGFT(AGFTConfig()), ("original",), {"student": BOTH}),
    (HPTGPD(HPTGPDConfig()), ("proxy", "original"), {"proxy": BOTH}),
    (HPTGPD(HPTGPDConfig(warmup=6, ce_weight=0.5)), ("proxy", "original"), {"anchor": BOTH}),
    (HPTGPD(HPTGPDConfig(ce_weight=0.5)), ("proxy",), {"proxy": BOTH, "student": BOTH}),
]


@pytest.mark.parametrize(("strategy", "roles", "terms"), CASES)
def test_each_term_alone_reaches_exactly_its_parameters(
    strategy: Strategy, roles: tuple[str, ...], terms: dict[str, set[str]]
) -> None:
    scene = Scene(*roles)
    assert set(scene.losses(strategy, LATER).terms) == set(terms)
    for name, reached in terms.items():
        assert set(scene.gradients(scene.losses(strategy, LATER).weighted(name))) == reached, name


def test_tecoa_is_adversarial_cross_entropy_and_its_text_gets_nothing() -> None:
    scene = Scene(learns="image")
    losses = scene.losses(AdversarialCE(None))
    wanted = ce(scene.logits("student", scene.adversarial), scene.labels)
    torch.testing.assert_close(losses.total(), wanted)
    torch.testing.assert_close(scene.attack.climbed, wanted)
    found = scene.gradients(losses.total())
    assert set(found) == IMAGE
    same_gradients(found, scene.gradients(wanted))


# --- TRADES ------------------------------------------------------------------------------------------------------


def test_trades_is_its_formula_with_both_sides_attached() -> None:
    scene = Scene()
    losses = scene.losses(TRADES(TRADESConfig()))
    clean, adversarial = (scene.logits("student", images) for images in (scene.images, scene.adversarial))
    wanted = ce(clean, scene.labels) + 6 * kl(clean, adversarial)
    torch.testing.assert_close(losses.total(), wanted)
    torch.testing.assert_close(scene.attack.climbed, kl(clean, adversarial))
    assert not torch.allclose(scene.attack.climbed, kl(adversarial, clean), rtol=1e-3), "the direction must show"
    same_gradients(scene.gradients(losses.total()), scene.gradients(wanted))


def test_trades_weighs_its_term() -> None:
    one, other = (Scene().losses(TRADES(TRADESConfig(beta=beta))) for beta in (6.0, 1.0))
    torch.testing.assert_close(one.weighted("robust"), 6 * other.weighted("robust"))


# --- FARE --------------------------------------------------------------------------------------------------------


def forms(scene: Scene) -> dict[str, Tensor]:
    """Each form by its formula."""
    found, clean = (scene.features("student", images) for images in (scene.adversarial, scene.images))
    original = scene.features("original", scene.images)
    unit = lambda features: features / features.norm(dim=1, keepdim=True)  # noqa: E731
    towards = lambda moving, still: (unit(moving) * unit(still.detach())).sum(1)  # noqa: E731
    return {
        "l2": ((found - original) ** 2).sum(1),
        "cosine": 1 - towards(found, original),
        "siamese": 1 - 0.5 * towards(found, clean) - 0.5 * towards(clean, found),
    }


@pytest.mark.parametrize("form", ["l2", "cosine", "siamese"])
def test_fare_is_its_formula_and_attacks_by_the_l2_form(form: Any) -> None:
    scene = Scene("original")
    losses = scene.losses(FARE(FAREConfig(form=form)))
    wanted = forms(scene)
    torch.testing.assert_close(losses.total(), wanted[form])
    torch.testing.assert_close(scene.attack.climbed, wanted["l2"])
    same_gradients(scene.gradients(losses.total()), scene.gradients(wanted[form]))


def test_the_siamese_form_stops_gradients() -> None:
    scene = Scene("original")
    found, clean = (scene.features("student", images) for images in (scene.adversarial, scene.images))
    one_sided = 1 - F.cosine_similarity(found, clean.detach())
    stopped = scene.gradients(scene.losses(FARE(FAREConfig(form="siamese"))).total())
    halves = scene.gradients(one_sided)
    assert not torch.allclose(stopped["student.gain"], halves["student.gain"], rtol=1e-3)


@pytest.mark.parametrize("form", ["l2", "cosine", "siamese"])
def test_fare_knows_no_labels(form: Any) -> None:
    def run(labels: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        scene = Scene("original")
        scene.labels = torch.tensor(labels)
        losses = scene.losses(FARE(FAREConfig(form=form)))
        return losses.total(), scene.attack.climbed, scene.attack.slope

    assert all(map(torch.equal, run([0, 1, 2, 3, 5, 4]), run([5, 4, 3, 2, 1, 0])))


def test_fare_needs_features_of_one_width() -> None:
    scene = Scene("original")
    scene.everybody["original"].model.width = 7
    with pytest.raises(UsageError, match="original teacher 7"):
        scene.losses(FARE(FAREConfig()))


# --- PMG-AFT -----------------------------------------------------------------------------------------------------


def test_pmg_aft_is_three_terms_at_each_models_own_scale() -> None:
    scene = Scene("original")
    losses = scene.losses(PMGAFT(PMGAFTConfig(original_weight=2.0, clean_weight=3.0)))
    student, clean = (scene.logits("student", images) for images in (scene.adversarial, scene.images))
    original = scene.logits("original", scene.adversarial)
    # The toys' scales are 3 and 4: cosines times those, not bare cosines.
    assert scene.everybody["original"].model.scale == 4 and original.abs().amax() > 1
    wanted = ce(student, scene.labels) + 2 * kl(original, student) + 3 * kl(clean, student)
    torch.testing.assert_close(losses.total(), wanted)
    torch.testing.assert_close(scene.attack.climbed, ce(student, scene.labels))
    same_gradients(scene.gradients(losses.total()), scene.gradients(wanted))


def test_pmg_aft_asks_nobody_for_a_weight_of_0() -> None:
    scene = Scene("original")
    scene.everybody["original"].features = None  # type: ignore[assignment]
    losses = scene.losses(PMGAFT(PMGAFTConfig(original_weight=0.0, clean_weight=0.0)))
    assert set(losses.terms) == {"student"}
    assert set(scene.losses(PMGAFT(PMGAFTConfig(original_weight=0.0))).terms) == {"student", "clean"}


# --- AGFT --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "ratio"), [(1.8, 0.4), (1.0, 1.0)])
def test_agft_attacks_and_learns_against_the_softened_original(scale: float, ratio: float) -> None:
    scene = Scene("original")
    losses = scene.losses(AGFT(AGFTConfig(scale=scale, ratio=ratio)))
    q = (ratio * scale * scene.logits("original", scene.images)).softmax(1).detach()
    log_p = (scale * scene.logits("student", scene.adversarial)).log_softmax(1)
    soft = -(q * log_p).sum(1)  # the released code's cross-entropy
    entropy = -(q * q.log()).sum(1)
    torch.testing.assert_close(losses.total(), soft - entropy)
    torch.testing.assert_close(scene.attack.climbed, soft - entropy)
    same_gradients(scene.gradients(losses.total()), scene.gradients(soft))
    plain = kl(scene.logits("original", scene.images), scene.logits("student", scene.adversarial))
    assert torch.allclose(losses.total(), plain, rtol=1e-4) == (scale == ratio == 1)


# --- HPT-GPD -----------------------------------------------------------------------------------------------------


def test_hpt_gpd_teaches_by_proxy() -> None:
    scene = Scene("proxy", "original")
    losses = scene.losses(HPTGPD(HPTGPDConfig(ce_weight=0.5)), LATER)
    student = scene.logits("student", scene.adversarial)
    proxy = scene.logits("proxy", scene.adversarial)
    torch.testing.assert_close(losses.total(), kl(proxy, student) + 0.5 * ce(student, scene.labels))
    torch.testing.assert_close(scene.attack.climbed, ce(student, scene.labels))
    assert torch.equal(losses.report["accuracy/proxy"], (proxy.argmax(1) == scene.labels).float())
    clean = Scene("proxy").losses(HPTGPD(HPTGPDConfig(view="clean")), LATER).total()
    torch.testing.assert_close(clean, kl(scene.logits("proxy", scene.images), student))


@pytest.mark.parametrize("roles", [("proxy", "original"), ("proxy",)])
def test_hpt_gpd_warms_up_towards_clean_views(roles: tuple[str, ...]) -> None:
    scene = Scene(*roles)
    losses = scene.losses(HPTGPD(HPTGPDConfig()))
    anchor = kl(scene.logits(roles[-1], scene.images), scene.logits("student", scene.adversarial))
    torch.testing.assert_close(losses.total(), anchor)


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 0), (0.2, 2), (1, 1), (7, 7)])
def test_hpt_gpd_warms_up_as_long_as_it_is_told(warmup: float, steps: int) -> None:
    scene, strategy = Scene("proxy"), HPTGPD(HPTGPDConfig(warmup=warmup))
    stages = ["anchor" in scene.losses(strategy, Clock(step, 10, 0)).terms for step in range(10)]
    assert stages == [step < steps for step in range(10)]


# --- recipes -----------------------------------------------------------------------------------------------------

CLIP = {"model": "advdistill_demo:small.json", "weights": "random"}
ORIGINAL = {"original": {"use": "clip", **CLIP}}
VISUAL = {"use": "clip-tune", **CLIP}
STILL = {"use": "pgd", "steps": 2, "random_start": False}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strategy": {"use": "tecoa"}, "student": {**VISUAL, "tower": "all"}}, "student.tower lets them learn"),
        (
            {"strategy": {"use": "tecoa"}, "student": {"use": "clip-prompts", **CLIP, "text": {"tokens": 2}}},
            "student.text.tokens lets them learn",
        ),
        (
            {"strategy": {"use": "tecoa"}, "student": {"use": "clip-lora", **CLIP, "towers": ["visual", "text"]}},
            "student.towers lets them learn",
        ),
        ({"strategy": {"use": "tecoa"}, "student": {"use": "clip-moapt", **CLIP}}, "student.prompts lets them learn"),
        (
            {"strategy": {"use": "fare"}, "teachers": ORIGINAL, "student": {**VISUAL, "tower": "all"}},
            "what student.tower asks for would not learn",
        ),
        ({"strategy": {"use": "fare"}, "teachers": ORIGINAL, "attack": STILL}, "no gradient at the clean image"),
        ({"strategy": {"use": "trades"}, "attack": STILL}, "no gradient at the clean image"),
        ({"strategy": {"use": "trades", "beta": 0}}, "greater than 0"),
        ({"strategy": {"use": "agft"}}, "needs a teacher in this role"),
        ({"strategy": {"use": "hpt-gpd"}, "teachers": ORIGINAL}, "another architecture"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRecipe, match=told):
        run_parts.recipe(tmp_path, **{"student": VISUAL, "attack": {"use": "pgd", "steps": 2}, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": {"use": "tecoa"}},
        {"strategy": {"use": "trades"}},
        {"strategy": {"use": "fare"}, "teachers": ORIGINAL},
        {"strategy": {"use": "fare"}, "teachers": ORIGINAL,
         "student": {"use": "clip-prompts", **CLIP, "text": {"tokens": 0}, "visual": {"depth": 2}}},
        {"strategy": {"use": "agft"}, "teachers": ORIGINAL, "attack": STILL},
        {"strategy": {"use": "hpt-gpd"}, "teachers": {"proxy": {"use": "clip", **CLIP}}},
    ],
)  # fmt: skip
def test_a_recipe_that_can_is_taken(tmp_path: Path, changes: dict[str, Any]) -> None:
    made = run_parts.recipe(tmp_path, **{"student": VISUAL, "attack": {"use": "pgd", "steps": 2}, **changes})
    assert made.strategy.use == changes["strategy"]["use"]
