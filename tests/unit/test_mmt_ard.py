"""What is pinned here, beside the golden losses:

- MMT-ARD with cosine weights of 5 and 50 and element means is the released code's loss on any logits; batch means are
  the same times the number of classes. A negative cosine turns its sample round unless clamped.
- Sigmoid shares add up to 1 and favour the surer teacher (easy) or the other (hard); with a midpoint each stands alone.
- Any number of teachers, each with a weight, a view and a student's view of its own; who has a weight of 0 is asked
  nothing; shares get no gradient; every term's gradients reach the student alone.
- Levels and gates are their formulas, on features of one width (else told before the first step) and on logits.
- MTARD's weights and B-MTARD's temperatures follow their papers' codes step by step, drops included; MMT-ARD's
  weightings of that kind are the same; a resumed run has the state, the losses and the weights of an unbroken one.
- SAAD's shares are its code's. CIARD's push, its scale and its retrained teacher are its code's, in order.
- Bad input: roles that nobody has, settings that do not fit.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
import torch.nn.functional as F
from advdistill_mmt_ard.ciard import CIARD
from advdistill_mmt_ard.configs import BMTARD as BMTARDConfig
from advdistill_mmt_ard.configs import CIARD as CIARDConfig
from advdistill_mmt_ard.configs import MMTARD as MMTARDConfig
from advdistill_mmt_ard.configs import MTARD as MTARDConfig
from advdistill_mmt_ard.mtard import BMTARD, MTARD
from advdistill_mmt_ard.strategy import MMTARD
from advdistill_mmt_ard.weightings import WEIGHTINGS
from clip_parts import Parts, settings
from strategy_scenes import Scene
from strategy_tables import Table, table
from torch import Tensor, nn

from advdistill import Clock, Losses, Strategy, UsageError, kl
from advdistill.engine import fit
from advdistill.errors import RecipeError
from advdistill.testing import ToyConfig, ToyModel

CPU = torch.device("cpu")
TOY = ToyModel(ToyConfig())  # anybody's, for `prepare`


def step(s: Table, **knobs: Any) -> Losses:
    """MMT-ARD on a table, prepared."""
    strategy = MMTARD(MMTARDConfig(**knobs))
    strategy.prepare(dict.fromkeys(("student", *s.roles), TOY))
    return strategy.step(s)


# --- the released code -------------------------------------------------------------------------------------------


def released_loss(s: Table) -> Tensor:
    """MMT-ARD's loss as its released code computes it: the mean over all B x C elements of weighted pointwise KLs."""
    p_a, p_c = s.table["robust", "adversarial"].logits.softmax(1), s.table["clean", "clean"].logits.softmax(1)
    q_a, q_c = s.table["student", "adversarial"].logits.softmax(1), s.table["student", "clean"].logits.softmax(1)
    total = torch.zeros((), dtype=torch.float64)
    for i, y in enumerate(s.labels.tolist()):
        sure_a = s.table["robust", "adversarial"]._cosines[i, y]
        sure_c = s.table["clean", "clean"]._cosines[i, y]
        for c in range(p_a.shape[1]):
            total += 50 * sure_a * p_a[i, c] * (p_a[i, c].log() - q_a[i, c].log())
            total += 5 * sure_c * p_c[i, c] * (p_c[i, c].log() - q_c[i, c].log())
    return total / p_a.numel()


RELEASED: dict[str, Any] = {"weighting": "cosine", "clean_weight": 5.0, "robust_weight": 50.0}


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_released_loss(seed: int) -> None:
    s = table(seed)
    losses = step(s, **RELEASED, reduction="element-mean")
    assert losses.total().mean().item() == pytest.approx(released_loss(s).item(), abs=1e-12)
    batch_means = step(s, **RELEASED)
    assert batch_means.total().mean().item() == pytest.approx(7 * released_loss(s).item(), abs=1e-11)
    assert s.asked == set(s.table)
    clean, student = (s.table[who].logits for who in (("clean", "clean"), ("student", "adversarial")))
    torch.testing.assert_close(s.climbed, kl(clean, student))


def test_a_negative_cosine_turns_its_sample_round_unless_clamped() -> None:
    s = table()
    said = s.table["robust", "adversarial"]
    y, z = s.labels[:2].tolist()
    said._cosines[0, y], said._cosines[1, z] = -0.3, 0.3
    losses = step(s, weighting="cosine")
    weighted = losses.weighted("robust")
    assert weighted[0] < 0 < weighted[1] and (losses.terms["robust"].value > 0).all()
    clamped = step(s, weighting="cosine", clamp_min=0.1).terms["robust"].weight
    assert clamped[0] == 0.1 and clamped[1] == 0.3
    assert losses.total().mean().item() == pytest.approx((weighted + losses.weighted("clean")).mean().item(), abs=1e-12)


# --- shares ------------------------------------------------------------------------------------------------------


def confidences(s: Table) -> tuple[Tensor, Tensor]:
    return s.table["clean", "clean"].confidence(s.labels), s.table["robust", "adversarial"].confidence(s.labels)


@pytest.mark.parametrize(("favour", "sign"), [("easy", 1), ("hard", -1)])
def test_sigmoid_shares(favour: str, sign: int) -> None:
    s = table()
    clean, robust = confidences(s)
    assert (robust > clean).any() and (robust < clean).any()
    losses = step(s, favour=favour, slope=4.0, tau=0.5, robust_weight=3.0, clean_weight=2.0)
    share = torch.sigmoid(sign * 8 * (robust - clean))
    torch.testing.assert_close(losses.terms["robust"].weight, 3 * share)
    torch.testing.assert_close(losses.terms["clean"].weight, 2 * (1 - share))
    torch.testing.assert_close(losses.report["share/robust"], share)
    alone = step(s, favour=favour, slope=4.0, midpoint=0.3)
    torch.testing.assert_close(alone.terms["clean"].weight, torch.sigmoid(sign * 4 * (clean - 0.3)))


def test_other_shares() -> None:
    s = table()
    found = step(s, weighting="probability").terms
    for term, sure in zip(("clean", "robust"), confidences(s), strict=True):
        torch.testing.assert_close(found[term].weight, sure)
    fixed = step(s, weighting="fixed", robust_weight=2.0).total()
    student = {kind: s.table["student", kind].logits for kind in ("clean", "adversarial")}
    wanted = 2 * kl(s.table["robust", "adversarial"].logits, student["adversarial"])
    torch.testing.assert_close(fixed, wanted + kl(s.table["clean", "clean"].logits, student["clean"]))


def test_shares_get_no_gradient() -> None:
    s = table()
    for said in s.table.values():
        said.logits = said.logits.clone().requires_grad_()
    step(s, weighting="probability").total().sum().backward()
    plain = s.table["robust", "adversarial"].logits.grad
    value = kl(s.table["robust", "adversarial"].logits, s.table["student", "adversarial"].logits)
    weight = s.table["robust", "adversarial"].confidence(s.labels).detach()
    (wanted,) = torch.autograd.grad((weight * value).sum(), s.table["robust", "adversarial"].logits)
    torch.testing.assert_close(plain, wanted)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_saad_shares(temperature: float) -> None:
    s = table()
    found = step(s, weighting="saad", entropy_temperature=temperature).terms
    p = (s.table["robust", "adversarial"].logits / temperature).softmax(1)
    entropies = [-sum(q * math.log(q) for q in row) for row in p.tolist()]
    weights = [5 * (entropy - min(entropies)) for entropy in entropies]
    scaled = [(w - min(weights)) / (max(weights) - min(weights) + 1e-8) for w in weights]
    assert found["robust"].weight.tolist() == pytest.approx(weights, abs=1e-12)
    assert found["clean"].weight.tolist() == pytest.approx([1 - w for w in scaled], abs=1e-12)


# --- many teachers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", sorted(WEIGHTINGS))
def test_any_number_of_teachers(weighting: str) -> None:
    s = table(more=(("ensemble", "clean"), ("other", "adversarial")))
    losses = step(s, weighting=weighting, weights={"other": 3.0}, views={"other": "adversarial"})
    assert set(losses.terms) == {"clean", "robust", "ensemble", "other"}
    assert {f"share/{role}" for role in losses.terms} <= losses.report.keys()
    student = s.table["student", "adversarial"].logits
    torch.testing.assert_close(losses.terms["other"].value, kl(s.table["other", "adversarial"].logits, student))
    weights = {
        role: torch.as_tensor(term.weight) / (3 if role == "other" else 1) for role, term in losses.terms.items()
    }
    if weighting in ("sigmoid", "relative-loss", "entropy-temperature"):
        assert ((torch.stack(list(weights.values())).sum(0) - 1).abs() < 1e-6).all()
    if weighting == "sigmoid":
        sure = torch.stack([s.table[who].confidence(s.labels) for who in s.table if who[0] != "student"])
        torch.testing.assert_close(weights["clean"], sure[0].exp() / sure.exp().sum(0))


def test_views() -> None:
    more = (("clean", "adversarial"), ("robust", "clean"))
    s = table(more=more)
    losses = step(
        s, weighting="fixed", objective="ce", views={"clean": "adversarial", "robust": "clean"},
        student_views={"robust": "adversarial"},
    )  # fmt: skip
    student = s.table["student", "adversarial"].logits
    torch.testing.assert_close(losses.terms["clean"].value, kl(s.table["clean", "adversarial"].logits, student))
    torch.testing.assert_close(losses.terms["robust"].value, kl(s.table["robust", "clean"].logits, student))
    assert s.asked == {("student", "adversarial"), *more}
    torch.testing.assert_close(s.climbed, F.cross_entropy(student, s.labels, reduction="none"))


def test_the_attack_leads_away_from_the_objectives_teacher() -> None:
    s = table(more=(("robust", "clean"),))
    step(s, objective_teacher="robust", temperature=3.0)
    student = s.table["student", "adversarial"].logits
    torch.testing.assert_close(s.climbed, kl(s.table["robust", "clean"].logits, student))


@pytest.mark.parametrize("weighting", sorted(WEIGHTINGS))
def test_a_weight_of_0_costs_no_look(weighting: str) -> None:
    s = table(more=(("third", "clean"),))
    losses = step(s, weighting=weighting, clean_weight=0.0, weights={"third": 0}, objective="ce")
    assert set(losses.terms) == {"robust"}
    assert s.asked == {("student", "adversarial"), ("robust", "adversarial")}
    if weighting in ("sigmoid", "relative-loss", "entropy-temperature"):
        assert (torch.as_tensor(losses.terms["robust"].weight) == 1).all()


def test_consistency() -> None:
    s = table()
    term = step(s, consistency=0.5).terms["consistency"]
    torch.testing.assert_close(term.value, 1 - s.table["student", "adversarial"].cosine(s.labels))
    assert term.weight == 0.5
    looks = [s.table["student", kind].logits for kind in ("clean", "adversarial")]
    torch.testing.assert_close(step(s, consistency=0.5, consistency_form="kl").terms["consistency"].value, kl(*looks))


def test_temperatures_divide_both_sides() -> None:
    s = table()
    teacher, student = s.table["clean", "clean"].logits, s.table["student", "clean"].logits
    torch.testing.assert_close(step(s, temperature=3.0).terms["clean"].value, kl(teacher / 3, student / 3))


GRADIENTS: list[dict[str, Any]] = [
    {"consistency": 0.5},
    {"consistency": 0.5, "consistency_form": "kl", "weighting": "entropy-temperature", "objective": "ce"},
    {"level": "contrastive", "gate": "both"},
    {"level": "logits-embedding", "gate": "modalities", "weighting": "probability"},
    {"weighting": "saad", "level": "embedding", "weights": {"third": 0.5}},
]  # fmt: skip


@pytest.mark.parametrize("knobs", GRADIENTS, ids=str)
def test_every_term_reaches_the_student_alone(knobs: dict[str, Any]) -> None:
    roles = ("clean", "robust", "third") if "weights" in knobs else ("clean", "robust")
    scene = Scene(*roles, learns="image")
    losses = scene.losses(MMTARD(MMTARDConfig(**knobs)))
    assert set(losses.terms) == {*roles, *(["consistency"] if "consistency" in knobs else [])}
    for name in losses.terms:
        found = scene.gradients(scene.losses(MMTARD(MMTARDConfig(**knobs))).weighted(name))
        assert set(found) == {"student.gain"}, name


# --- levels and gates --------------------------------------------------------------------------------------------


def test_the_embedding_level() -> None:
    scene = Scene("clean", "robust")
    value = scene.losses(MMTARD(MMTARDConfig(level="embedding"))).terms["clean"].value
    teacher, student = (F.normalize(scene.features(role, scene.images)) for role in ("clean", "student"))
    torch.testing.assert_close(value, 0.5 * (teacher - student).square().sum(1))


def text_to_image(teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:
    """KL over the images, given the text of each sample's label."""
    return torch.stack([kl(teacher[:, y][None], student[:, y][None])[0] for y in labels])


def test_the_contrastive_level_reads_logits_both_ways() -> None:
    s = table(samples=6, classes=4)
    losses = step(s, level="contrastive", weighting="fixed")
    for role, kind in (("clean", "clean"), ("robust", "adversarial")):
        teacher, student = s.table[role, kind].logits, s.table["student", kind].logits
        wanted = (kl(teacher, student) + text_to_image(teacher, student, s.labels)) / 2
        torch.testing.assert_close(losses.terms[role].value, wanted)
    averaged = step(s, level="contrastive", weighting="fixed", reduction="element-mean").terms["clean"].value
    teacher, student = s.table["clean", "clean"].logits, s.table["student", "clean"].logits
    wanted = (kl(teacher, student) / 4 + text_to_image(teacher, student, s.labels) / 6) / 2
    torch.testing.assert_close(averaged, wanted)


@pytest.mark.parametrize("gate", ["modalities", "both"])
def test_gates_of_modalities(gate: str) -> None:
    s = table(samples=6, classes=4)
    assert len(set(s.labels.tolist())) < 6, "two images share a text"
    losses = step(s, level="contrastive", gate=gate, slope=3.0)
    teacher, student = s.table["robust", "adversarial"].logits, s.table["student", "adversarial"].logits
    clean, sure = confidences(s)
    columns = teacher.softmax(0)
    found = torch.stack([columns[s.labels == y, y].sum() for y in s.labels])
    share = torch.sigmoid(3 * (found - sure))
    wanted = (1 - share) * kl(teacher, student) + share * text_to_image(teacher, student, s.labels)
    torch.testing.assert_close(losses.terms["robust"].value, wanted)
    torch.testing.assert_close(losses.report["share/robust/text-image"], share)
    weight = torch.sigmoid(3 * (sure - clean)) if gate == "both" else 1.0
    torch.testing.assert_close(torch.as_tensor(losses.terms["robust"].weight), torch.as_tensor(weight))
    assert ("share/robust" in losses.report) == (gate == "both")


def test_the_gate_between_logits_and_embedding() -> None:
    scene = Scene("clean", "robust")
    losses = scene.losses(MMTARD(MMTARDConfig(level="logits-embedding", gate="modalities", weighting="probability")))
    teacher, student = scene.logits("clean", scene.images), scene.logits("student", scene.images)
    a, b = (F.normalize(scene.features(role, scene.images)) for role in ("clean", "student"))
    rows = torch.arange(len(scene.labels))
    cosine = teacher[rows, scene.labels] / scene.everybody["clean"].model.scale
    wanted = teacher.softmax(1)[rows, scene.labels] * kl(teacher, student) + (1 + cosine) / 2 * (1 - (a * b).sum(1))
    torch.testing.assert_close(losses.terms["clean"].value, wanted)


# --- weights and temperatures that follow the losses -------------------------------------------------------------


MEANS = [(2.0, 0.5), (1.0, 0.5), (1.5, 0.1), (0.2, 0.4), (0.1, 0.6), (0.1, 0.05)]  # of the robust and the clean loss


def mtard_reference(power: float, rate: float, drops: list[float]) -> list[tuple[float, float]]:
    """The weights after each step, as MTARD's code moves them."""
    weight_nat, found = 0.5, []
    for step, (adv, nat) in enumerate(MEANS):
        if step / len(MEANS) in drops:
            rate *= 0.1
        rate_adv, rate_nat = (adv / MEANS[0][0]) ** power, (nat / MEANS[0][1]) ** power
        weight_nat = weight_nat - rate * (weight_nat - rate_nat / (rate_adv + rate_nat))
        found.append((1 - weight_nat, weight_nat))
    return found


@pytest.mark.parametrize("power", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["mtard", "mmt-ard"])
def test_mtards_weights(kind: str, power: float) -> None:
    knobs: dict[str, Any] = {"weight_rate": 0.3, "loss_power": power, "drops": [3 / 6, 5 / 6]}
    strategy: Strategy = MTARD(MTARDConfig(**knobs))
    if kind == "mmt-ard":
        strategy = MMTARD(MMTARDConfig(weighting="relative-loss", **knobs))
    s = table()
    strategy.prepare(dict.fromkeys(("student", "robust", "clean"), TOY))
    assert [strategy.step(s).terms[role].weight.item() for role in ("robust", "clean")] == [0.5, 0.5]
    for number, (wanted, (robust, clean)) in enumerate(
        zip(mtard_reference(power, 0.3, [3 / 6, 5 / 6]), MEANS, strict=True)
    ):
        strategy.updated({"robust": robust, "clean": clean, "loss": 7.0}, Clock(number + 1, len(MEANS), 0))
        losses = strategy.step(s)
        assert [losses.terms[role].weight.item() for role in ("robust", "clean")] == pytest.approx(wanted, abs=1e-6)
        assert losses.report["share/clean"].item() == pytest.approx(wanted[1], abs=1e-6)


def test_mtard_is_its_equations() -> None:
    s = table()
    strategy = MTARD(MTARDConfig())
    strategy.weighting.prepare(("robust", "clean"), CPU)
    losses = strategy.step(s)
    student = s.table["student", "adversarial"].logits
    torch.testing.assert_close(losses.terms["robust"].value, kl(s.table["robust", "adversarial"].logits, student))
    torch.testing.assert_close(
        losses.terms["clean"].value, kl(s.table["clean", "clean"].logits, s.table["student", "clean"].logits)
    )
    torch.testing.assert_close(s.climbed, F.cross_entropy(student, s.labels, reduction="none"))


def softened(logits: Tensor, temperature: float) -> float:
    p = (logits / temperature).softmax(1)
    return (p * p.log()).sum(1).mean().item()


@pytest.mark.parametrize("kind", ["b-mtard", "mmt-ard", "ciard"])
def test_b_mtards_temperatures(kind: str) -> None:
    knobs: dict[str, Any] = {"temperature_rate": 0.4, "temperature_max": 1.3, "drops": [0.5]}
    strategy: Strategy = {
        "b-mtard": lambda: BMTARD(BMTARDConfig(**knobs)),
        "mmt-ard": lambda: MMTARD(MMTARDConfig(weighting="entropy-temperature", **knobs)),
        "ciard": lambda: CIARD(CIARDConfig(push=0.0, **knobs)),
    }[kind]()
    s = table()
    teachers = {"robust": s.table["robust", "adversarial"], "clean": s.table["clean", "clean"]}
    teachers["clean"].logits = teachers["clean"].logits * 0.7  # the less sure one
    strategy.prepare(dict.fromkeys(("student", "robust", "clean"), TOY))
    adv, nat, moved = 1.0, 1.0, set()
    for number in range(8):
        losses = strategy.step(s)
        for role, temperature in (("robust", adv), ("clean", nat)):
            kind_of = "adversarial" if role == "robust" else "clean"
            value = kl(teachers[role].logits / temperature, s.table["student", kind_of].logits)
            torch.testing.assert_close(losses.terms[role].value, value, atol=1e-5, rtol=1e-5)
            assert losses.report[f"temperature/{role}"].item() == pytest.approx(temperature, abs=1e-6)
        strategy.updated({name: value.item() / 5 for name, value in losses.sums().items()}, Clock(number + 1, 8, 0))
        # as the published code does it, with negated entropies
        h_adv, h_nat = softened(teachers["robust"].logits, adv), softened(teachers["clean"].logits, nat)
        rate = 0.4 if number < 4 else 0.04
        adv -= rate * math.copysign(1, h_adv / h_nat - 1)
        nat -= rate * math.copysign(1, h_nat / h_adv - 1)
        adv, nat = (max(min(1.3, each), 1) for each in (adv, nat))
        moved.add((round(adv, 6), round(nat, 6)))
    assert len(moved) > 2 and any(1.3 in each for each in moved)


STATEFUL: list[dict[str, Any]] = [
    {"use": "mtard", "weight_rate": 0.5},
    {"use": "b-mtard", "weight_rate": 0.5, "temperature_rate": 0.2},
    {"use": "mmt-ard", "weighting": "entropy-temperature", "temperature_rate": 0.2},
    {"use": "ciard", "weighting": "balanced", "temperature_rate": 0.2},
]


@pytest.mark.parametrize("strategy", STATEFUL, ids=lambda strategy: strategy["use"])
def test_a_resumed_run_goes_on_with_its_weights(tmp_path: Path, strategy: dict[str, Any]) -> None:
    def made(folder: str) -> Any:
        teachers = {role: {"use": "toy", "scale": scale} for role, scale in (("clean", 9.0), ("robust", 3.0))}
        save = {"dir": str(tmp_path / folder), "every": 2}
        return run_parts.recipe(tmp_path, teachers=teachers, strategy=strategy, save=save)

    run_parts.train(made("whole"))
    written = fit.resume.save

    class Killed(Exception):
        pass

    def once(*given: Any) -> None:
        written(*given)
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(fit.resume, "save", once)
        run_parts.train(made("broken"))
    run_parts.train(made("broken"), resume=True)
    whole, broken = (run_parts.tensors(tmp_path / folder, "resume.safetensors") for folder in ("whole", "broken"))
    assert run_parts.same(whole, broken)
    weights = next(tensor for key, tensor in whole.items() if key.startswith("strategy.") and key.endswith(".weights"))
    assert weights.sum().item() == pytest.approx(1) and abs(weights[0].item() - 0.5) > 1e-3
    assert run_parts.events(tmp_path / "whole", "step_done") == run_parts.events(tmp_path / "broken", "step_done")


def test_a_loss_of_nothing_disturbs_no_weights() -> None:
    strategy = MTARD(MTARDConfig(weight_rate=0.5))
    strategy.weighting.prepare(("robust", "clean"), CPU)
    strategy.updated({"robust": 0.0, "clean": 0.0}, Clock(1, 4, 0))
    assert strategy.weighting.weights.tolist() == [0.5, 0.5]
    strategy.updated({"robust": 2.0, "clean": 3.0}, Clock(2, 4, 0))
    strategy.updated({"robust": 0.0, "clean": 0.0}, Clock(3, 4, 0))
    assert strategy.weighting.weights.tolist() == [0.5, 0.5]


# --- CIARD -------------------------------------------------------------------------------------------------------


def ciard_table(learning: bool = False) -> Table:
    return table(samples=8, learning=learning, more=(("clean", "adversarial"),))


def ciard_reference(s: Table) -> tuple[float, float]:
    """CIARD's L_push, over the samples that the clean teacher gets wrong under attack, and its scale."""
    misled, student = s.table["clean", "adversarial"].logits, s.table["student", "adversarial"].logits
    wrong = [i for i, y in enumerate(s.labels.tolist()) if misled[i].argmax().item() != y]
    assert 0 < len(wrong) < len(s.labels)
    push = sum(kl(misled[i][None], student[i][None] / 5).item() for i in wrong) / len(wrong)
    one = kl(s.table["robust", "adversarial"].logits, student).mean().item()
    two = kl(s.table["clean", "clean"].logits, s.table["student", "clean"].logits).mean().item()
    orders = [math.floor(math.log10(each)) for each in (one, two, push)]
    return push, 10.0 ** (min(orders[:2]) - orders[2])


@pytest.mark.parametrize("small", [1.0, 0.01])
def test_ciards_push(small: float) -> None:
    s = ciard_table()
    s.table["clean", "adversarial"].logits[0, s.labels[0]] = 100.0  # one that it gets right
    s.table["clean", "clean"].logits = small * s.table["clean", "clean"].logits
    s.table["student", "clean"].logits = small * s.table["student", "clean"].logits
    strategy = CIARD(CIARDConfig())
    strategy.balance.prepare(("robust", "clean"), CPU)
    losses = strategy.step(s)
    push, scale = ciard_reference(s)
    assert scale == 1.0 if small == 1.0 else scale < 0.1
    assert losses.weighted("push").mean().item() == pytest.approx(-scale * push, rel=1e-9)
    right = s.table["clean", "adversarial"].logits.argmax(1) == s.labels
    assert (losses.weighted("push")[right] == 0).all()
    assert losses.terms["robust"].weight == losses.terms["clean"].weight == 1.0
    assert losses.report["share/push"].item() == pytest.approx(-scale * len(right) / (~right).sum().item())
    assert set(losses.terms) == {"robust", "clean", "push"}
    least = CIARD(CIARDConfig(push_cap=0.1))
    least.balance.prepare(("robust", "clean"), CPU)
    assert least.step(s).terms["push"].value.amax().item() == pytest.approx(0.1)


def test_nobody_is_pushed_where_the_clean_teacher_is_right() -> None:
    s = ciard_table()
    rows = torch.arange(len(s.labels))
    s.table["clean", "adversarial"].logits[rows, s.labels] = 100.0
    strategy = CIARD(CIARDConfig())
    strategy.balance.prepare(("robust", "clean"), CPU)
    losses = strategy.step(s)
    assert (losses.weighted("push") == 0).all() and losses.report["share/push"] == 0


def test_without_push_the_clean_teacher_sees_no_adversarial_image() -> None:
    s = ciard_table()
    strategy = CIARD(CIARDConfig(push=0.0, weighting="balanced"))
    strategy.balance.prepare(("robust", "clean"), CPU)
    assert set(strategy.step(s).terms) == {"robust", "clean"} and ("clean", "adversarial") not in s.asked


def test_ciards_robust_teacher_learns_from_the_labels_alone_and_only_later() -> None:
    s = ciard_table(learning=True)
    strategy = CIARD(CIARDConfig(teacher_start=0.4))
    strategy.balance.prepare(("robust", "clean"), CPU)
    for progress, retrained in ((3, False), (4, True)):
        s.clock = Clock(progress, 10, 0)
        for said in s.table.values():
            said.logits = said.logits.detach().clone().requires_grad_()
        losses = strategy.step(s)
        assert ("teacher" in losses.terms) == retrained
        losses.total().sum().backward()
        taught = s.table["robust", "adversarial"].logits
        assert s.table["clean", "clean"].logits.grad is None
        if not retrained:
            assert taught.grad is None
            continue
        wanted = taught.detach().softmax(1) - F.one_hot(s.labels, 7)
        torch.testing.assert_close(taught.grad, wanted.double())


# --- bad input ---------------------------------------------------------------------------------------------------

TOYS: dict[str, Any] = {"clean": {"use": "toy"}, "robust": {"use": "toy"}}
BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"weights": {"robst": 2}}, {}, "strategy.weights.robst: there is no teacher in this role"),
    ({"views": {"third": "clean"}}, {}, "strategy.views.third: there is no teacher in this role"),
    ({"student_views": {"third": "clean"}}, {}, "strategy.student_views.third"),
    ({"weights": {"clean": 2}}, {}, "is written clean_weight"),
    ({"objective_teacher": "third"}, {}, "strategy.objective_teacher: there is no teacher in this role"),
    ({"clean_weight": 0, "robust_weight": 0}, {}, "nobody teaches"),
    ({"robust_weight": 0}, {}, "would see clean images alone"),
    ({"views": {"robust": "clean"}}, {}, "would see clean images alone"),
    ({"gate": "modalities"}, {}, "has one modality"),
    ({"gate": "both", "level": "contrastive", "weighting": "cosine"}, {}, "cannot weigh modalities"),
    ({"level": "embedding", "weighting": "entropy-temperature"}, {}, "features have no temperature"),
    ({"weighting": "saad", "views": {"robust": "clean"}}, {}, "nobody who teaches sees them"),
    ({}, {"consistency": {"use": "toy"}}, "a loss term has that name"),
    ({"use": "mtard"}, {"third": {"use": "toy"}}, "has no such role"),
    ({"use": "mtard", "drops": [0.9, 0.5]}, {}, "must rise"),
    ({"clamp_min": float("nan")}, {}, "finite"),
]


@pytest.mark.parametrize(("strategy", "teachers", "told"), BAD, ids=[case[2] for case in BAD])
def test_bad_input_is_told_by_the_recipe(
    tmp_path: Path, strategy: dict[str, Any], teachers: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError) as error:
        run_parts.recipe(
            tmp_path, strategy={"use": "mmt-ard", **strategy}, teachers=run_parts.merged(TOYS, teachers),
            attack={"use": "pgd"},
        )  # fmt: skip
    assert told in f"{error.value.message} {error.value.hint}"


def test_ciards_robust_teacher_may_train(tmp_path: Path) -> None:
    teachers = {**TOYS, "robust": {"use": "toy", "train": True}}
    run_parts.train(run_parts.recipe(tmp_path, strategy={"use": "ciard", "teacher_start": 0}, teachers=teachers))
    steps = run_parts.events(tmp_path / "run", "step_done")
    assert all("teacher" in line["losses"] for line in steps)


@pytest.mark.parametrize("level", ["embedding", "logits-embedding"])
def test_features_of_other_widths_are_told_before_the_first_step(tmp_path: Path, level: str) -> None:
    wide = Parts(tmp_path, settings(embed_dim=24), "wide").source
    narrow = Parts(tmp_path, settings(), "narrow").source

    def made(**knobs: Any) -> Any:
        teachers = {"clean": {"use": "clip", **narrow}, "robust": {"use": "clip", **wide}}
        return run_parts.recipe(
            tmp_path, teachers=teachers, student={"use": "clip-lora", "rank": 1, **narrow}, train={"steps": 1},
            strategy={"use": "mmt-ard", "level": level, "weighting": "fixed", **knobs},
        )  # fmt: skip

    with pytest.raises(UsageError, match="16 dimensions, those of the robust teacher 24"):
        run_parts.train(made())
    run_parts.train(made(robust_weight=0, student_views={"clean": "adversarial"}))
    run_parts.train(made(level="contrastive"), overwrite=True)


@pytest.mark.parametrize(
    ("knobs", "who"),
    [({"consistency": 0.5}, "student"), ({"weighting": "cosine"}, "robust"), ({"level": "embedding"}, "robust")],
)
def test_models_without_features_of_their_own_are_told_before_the_first_step(knobs: dict[str, Any], who: str) -> None:
    class Whole(nn.Module):
        pass

    models = {"student": TOY, "clean": TOY, "robust": TOY, who: Whole()}
    with pytest.raises(UsageError, match=f"{who}: Whole has no features of images"):
        MMTARD(MMTARDConfig(**knobs)).prepare(models)
