"""What is pinned here, beside the golden losses:

- ARD, RSLAD, IAD-I, IAD-II and AdaAD are their equations on fixed logits: attack, images, weights, temperatures.
- IAD trusts its teacher wholly before `begin`, and later as far as it is right under attack; the trust has no gradient,
  the student's own clean look has one.
- AdaAD's attack climbs through the teacher too: its pixel gradient is that of both models, not of a constant teacher.
- Every term's gradients reach the student alone; a weight of 0 costs no look.
- Bad input: weights that leave no adversarial image to learn from, weights above 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
from advdistill_classic import configs
from advdistill_classic.strategies import ARD, IAD, RSLAD, AdaAD
from strategy_scenes import Scene, ce, kl
from strategy_tables import Table, table

from advdistill import Clock, Strategy
from advdistill.errors import RecipeError

EVERYTHING = (("robust", "clean"), ("clean", "adversarial"))


def looks(s: Table, *names: str) -> list[torch.Tensor]:
    """Logits, named as T, T', S, S', C' are: `T'` is what the robust teacher says of the adversarial images."""
    roles = {"T": "robust", "S": "student", "C": "clean"}
    return [s.table[roles[name[0]], "adversarial" if name.endswith("'") else "clean"].logits for name in names]


def alone(s: Table) -> Table:
    """The same with the robust teacher only."""
    s.roles = ("robust",)
    return s


def test_ard() -> None:
    s = alone(table(more=EVERYTHING))
    losses = ARD(configs.ARD(temperature=3.0, alpha=0.75)).step(s)
    teacher, student, attacked = looks(s, "T", "S", "S'")
    torch.testing.assert_close(losses.total(), 0.75 * 9 * kl(teacher / 3, attacked / 3) + 0.25 * ce(student, s.labels))
    torch.testing.assert_close(s.climbed, ce(attacked, s.labels))
    default = ARD(configs.ARD()).step(s)
    torch.testing.assert_close(default.total(), 900 * kl(teacher / 30, attacked / 30))


def test_rslad() -> None:
    s = alone(table(more=EVERYTHING))
    teacher, student, attacked = looks(s, "T", "S", "S'")
    losses = RSLAD(configs.RSLAD()).step(s)
    torch.testing.assert_close(losses.total(), 5 / 6 * kl(teacher, attacked) + 1 / 6 * kl(teacher, student))
    torch.testing.assert_close(s.climbed, kl(teacher, attacked))


@pytest.mark.parametrize(("step", "introspective"), [(2, False), (3, True)])
def test_iad_1(step: int, introspective: bool) -> None:
    s = alone(table(more=EVERYTHING))
    s.clock = Clock(step, 10, 0)
    losses = IAD(configs.IAD(alpha=0.75, beta=0.5, temperature=2.0)).step(s)
    teacher, guide, student, attacked = looks(s, "T", "T'", "S", "S'")
    wanted = 0.75 * 4 * kl(teacher / 2, attacked / 2) + 0.25 * ce(student, s.labels)
    if introspective:
        trust = guide.softmax(1)[torch.arange(5), s.labels] ** 0.5
        wanted = wanted + 0.75 * (1 - trust) * kl(student, attacked)
        torch.testing.assert_close(losses.report["trust"], trust)
    torch.testing.assert_close(losses.total(), wanted)
    assert (("robust", "adversarial") in s.asked) == introspective and ("clean", "adversarial") not in s.asked
    torch.testing.assert_close(s.climbed, ce(attacked, s.labels))


@pytest.mark.parametrize(("step", "introspective"), [(1, False), (2, True)])
def test_iad_2(step: int, introspective: bool) -> None:
    s = table(more=EVERYTHING)
    s.clock = Clock(step, 10, 0)
    losses = IAD(configs.IAD(temperature=2.0)).step(s)
    robust, clean, student, attacked = looks(s, "T'", "C'", "S", "S'")
    trust = robust.softmax(1)[torch.arange(5), s.labels] ** 0.1 if introspective else torch.ones(5).double()
    wanted = 0.25 * ce(attacked, s.labels) + 0.25 * 4 * kl(clean / 2, attacked / 2)
    wanted = wanted + 0.5 * 4 * (trust * kl(robust / 2, attacked / 2) + (1 - trust) * kl(student, attacked))
    torch.testing.assert_close(losses.total(), wanted)
    assert ("robust", "clean") not in s.asked and (("student", "clean") in s.asked) == introspective


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_adaad(alpha: float) -> None:
    s = alone(table(more=EVERYTHING))
    losses = AdaAD(configs.AdaAD(alpha=alpha)).step(s)
    teacher, guide, student, attacked = looks(s, "T", "T'", "S", "S'")
    torch.testing.assert_close(losses.total(), alpha * kl(guide, attacked) + (1 - alpha) * kl(teacher, student))
    torch.testing.assert_close(s.climbed, kl(guide, attacked))


def test_adaads_attack_climbs_through_both_models() -> None:
    scene = Scene("robust")
    scene.losses(AdaAD(configs.AdaAD()))
    half = ((scene.images + scene.adversarial) / 2).requires_grad_()
    teacher, student = scene.logits("robust", half), scene.logits("student", half)
    (both,) = torch.autograd.grad(kl(teacher, student).sum(), half, retain_graph=True)
    (constant,) = torch.autograd.grad(kl(teacher.detach(), student).sum(), half)
    torch.testing.assert_close(scene.attack.slope, both)
    assert (both - constant).abs().max() > 0.1 * constant.abs().max()


CASES: list[tuple[Strategy, tuple[str, ...], set[str]]] = [
    (ARD(configs.ARD(alpha=0.5)), ("robust",), {"robust", "labels"}),
    (RSLAD(configs.RSLAD()), ("robust",), {"adversarial", "clean"}),
    (IAD(configs.IAD(begin=0.0, alpha=0.5)), ("robust",), {"robust", "self", "labels"}),
    (IAD(configs.IAD(begin=0.0)), ("clean", "robust"), {"robust", "self", "clean", "labels"}),
    (AdaAD(configs.AdaAD(alpha=0.5)), ("robust",), {"adversarial", "clean"}),
]


@pytest.mark.parametrize(("strategy", "roles", "terms"), CASES)
def test_every_term_reaches_the_student_alone(strategy: Strategy, roles: tuple[str, ...], terms: set[str]) -> None:
    scene = Scene(*roles)
    assert set(scene.losses(strategy).terms) == terms
    for name in terms:
        found = scene.gradients(scene.losses(strategy).weighted(name))
        assert set(found) == {"student.gain", "student.context"}, name


def test_iads_own_clean_look_learns_and_its_trust_does_not() -> None:
    s = alone(table(more=EVERYTHING))
    for said in s.table.values():
        said.logits = said.logits.clone().requires_grad_()
    IAD(configs.IAD(begin=0.0)).step(s).weighted("self").sum().backward()
    guide, student, attacked = looks(s, "T'", "S", "S'")
    assert guide.grad is None and student.grad.abs().amax() > 0 and attacked.grad.abs().amax() > 0


SPARING: list[tuple[Strategy, tuple[str, ...], set[tuple[str, str]]]] = [
    (ARD(configs.ARD()), ("robust",), {("student", "adversarial"), ("robust", "clean")}),
    (RSLAD(configs.RSLAD(clean_weight=0.0)), ("robust",), {("student", "adversarial"), ("robust", "clean")}),
    (
        IAD(configs.IAD(robust_weight=0.0, clean_weight=1.0)),
        ("clean", "robust"),
        {("student", "adversarial"), ("clean", "adversarial")},
    ),
    (AdaAD(configs.AdaAD()), ("robust",), {("student", "adversarial"), ("robust", "adversarial")}),
]


@pytest.mark.parametrize(("strategy", "roles", "wanted"), SPARING)
def test_a_weight_of_0_costs_no_look(strategy: Strategy, roles: tuple[str, ...], wanted: set[tuple[str, str]]) -> None:
    s = table(more=EVERYTHING)
    s.roles = roles
    losses = strategy.step(s)
    assert s.asked == wanted and len(losses.terms) == 1


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"use": "ard"}, {"clean": {"use": "toy"}}, "has no such role"),
    ({"use": "rslad", "adversarial_weight": 0}, {}, "adversarial_weight: must be greater than 0"),
    ({"use": "ard", "alpha": 0}, {}, "alpha: must be greater than 0"),
    ({"use": "iad", "robust_weight": 0.8}, {"clean": {"use": "toy"}}, "add up to more than 1"),
    ({"use": "adaad", "alpha": 1.5}, {}, "alpha"),
]


@pytest.mark.parametrize(("strategy", "teachers", "told"), BAD, ids=[case[2] for case in BAD])
def test_bad_input_is_told_by_the_recipe(
    tmp_path: Path, strategy: dict[str, Any], teachers: dict[str, Any], told: str
) -> None:
    teachers = run_parts.merged({"robust": {"use": "toy"}}, teachers)
    with pytest.raises(RecipeError) as error:
        run_parts.recipe(tmp_path, strategy=strategy, teachers=teachers, attack={"use": "pgd"})
    assert told in f"{error.value.message} {error.value.hint}"
