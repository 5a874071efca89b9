"""What is pinned here:

- Each loss term alone sends gradients to exactly the parameters that it should: APD's student term to the student,
  its teacher and feedback terms to a teacher that learns; offline APD, MMT-ARD and both cross-entropies to the student.
- MMT-ARD with cosine weights of 5 and 50 and element means is the released code's loss on any logits; batch means are
  the same times the number of classes. A negative cosine turns its sample round, as documented.
- The sigmoid shares sum to 1 and favour the teacher that is surer (easy) or less sure (hard).
- `kl(p, q)` is KL(p || q), as the formula says and as torch's kl_div with its arguments swapped; with a temperature.
- What each attack maximises, and which images each model is shown.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from advdistill_apd.configs import APD as APDConfig
from advdistill_apd.strategy import APD
from advdistill_finetuning.strategies import AdversarialCE, Clean
from advdistill_mmt_ard.configs import MMTARD as MMTARDConfig
from advdistill_mmt_ard.strategy import MMTARD
from torch import Tensor

from advdistill import Clock, Noise, Step, Strategy, Threat, cross_entropy, kl
from advdistill.engine.data import Batch
from advdistill.engine.step import Participant
from advdistill.testing import ToyAttack, ToyConfig, ToyDataset, ToyModel
from advdistill.testing.toy import CLASSES

# --- gradients ---------------------------------------------------------------------------------------------------

STUDENT, TEACHER = {"student.gain", "student.context"}, {"clean.gain", "clean.context"}
ONLINE = {"student": STUDENT, "teacher": TEACHER, "feedback": TEACHER}
CASES = [
    (APD(APDConfig()), {"clean"}, ONLINE),
    (APD(APDConfig(beta=0.3, temperature=2.0)), {"clean"}, ONLINE),
    (APD(APDConfig()), set(), {"student": STUDENT}),
    (MMTARD(MMTARDConfig(consistency=0.5)), set(), {"robust": STUDENT, "clean": STUDENT, "consistency": STUDENT}),
    (MMTARD(MMTARDConfig(weighting="cosine", objective="ce")), set(), {"robust": STUDENT, "clean": STUDENT}),
    (Clean(None), set(), {"student": STUDENT}),
    (AdversarialCE(None), set(), {"student": STUDENT}),
]  # fmt: skip


def scene(taught: set[str]) -> tuple[dict[str, Participant], Step]:
    """Three toys that disagree a little, everybody unsure, and a step over six images."""
    everybody = {}
    for place, role in enumerate(("student", "clean", "robust")):
        model = ToyModel(ToyConfig(scale=3.0))
        with torch.no_grad():
            model.gain.mul_(1 + 0.3 * torch.linspace(-1, 1, len(model.gain)).roll(7 * place))
            model.context.add_(0.2 * torch.linspace(-1, 1, len(model.gain)).roll(11 * place))
        everybody[role] = Participant(model, CLASSES, learns=role == "student" or role in taught)
    split, samples = ToyDataset(None).split("train"), torch.arange(6)
    batch = Batch(torch.stack([split.load(i) for i in range(6)]), torch.tensor([0, 1, 2, 3, 5, 4]), samples)
    teachers = {role: everybody[role] for role in ("clean", "robust")}
    return everybody, Step(batch, Clock(0, 1, 0), student=everybody["student"], teachers=teachers,
                           attack=ToyAttack(None), threat=Threat("linf", 8 / 255),
                           noise=Noise(0, "test", 0, samples))  # fmt: skip


@pytest.mark.parametrize(("strategy", "taught", "terms"), CASES)
def test_each_term_alone_reaches_exactly_its_parameters(
    strategy: Strategy, taught: set[str], terms: dict[str, set[str]]
) -> None:
    everybody, s = scene(taught)
    assert set(strategy.step(s).terms) == set(terms)
    for name, wanted in terms.items():
        everybody, s = scene(taught)
        strategy.step(s).weighted(name).sum().backward()
        for participant in everybody.values():
            participant.settle()
        reached = {
            f"{role}.{parameter}"
            for role, participant in everybody.items()
            for parameter, tensor in participant.model.named_parameters()
            if tensor.grad is not None and tensor.grad.any()
        }
        assert reached == wanted, name


# --- formulas ----------------------------------------------------------------------------------------------------


class Said:
    """What a model says, made up."""

    def __init__(self, logits: Tensor, cosines: Tensor | None = None) -> None:
        self.logits, self._cosines = logits, cosines

    def cosine(self, labels: Tensor) -> Tensor:
        assert self._cosines is not None
        return self._cosines.gather(1, labels[:, None])[:, 0]

    def confidence(self, labels: Tensor) -> Tensor:
        return self.logits.softmax(1).gather(1, labels[:, None])[:, 0]

    def detach(self) -> Said:
        return Said(self.logits.detach())

    def __getitem__(self, rows: Tensor) -> Said:
        return Said(self.logits[rows])


class Table:
    """A step whose models say what a table says: (role, "clean" or "adversarial") -> Said."""

    images, adversarial = torch.zeros(1), torch.ones(1)

    def __init__(self, table: dict[tuple[str, str], Said], labels: Tensor, learning: bool = False) -> None:
        self.table, self.labels, self.learning, self.asked = table, labels, learning, set()

    def _say(self, role: str, images: Tensor) -> Said:
        kind = "clean" if images is self.images else "adversarial"
        self.asked.add((role, kind))
        return self.table[role, kind]

    def student(self, images: Tensor) -> Said:
        return self._say("student", images)

    def teacher(self, role: str) -> Any:
        return lambda images: self._say(role, images)

    def learns(self, role: str) -> bool:
        return self.learning

    def attack(self, objective: Any, rows: Tensor | None = None) -> Tensor:
        self.climbed = objective(self.adversarial, torch.arange(len(self.labels)))
        return self.adversarial


def table(seed: int = 0, samples: int = 5, classes: int = 7, learning: bool = False) -> Table:
    generator = torch.Generator().manual_seed(seed)

    def said() -> Said:
        cosines = 2 * torch.rand(samples, classes, generator=generator, dtype=torch.float64) - 1
        return Said(10 * cosines, cosines)

    everyone = [("student", "clean"), ("student", "adversarial"), ("clean", "clean"), ("robust", "adversarial")]
    labels = torch.randint(classes, (samples,), generator=generator)
    return Table({who: said() for who in everyone}, labels, learning)


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


RELEASED = {"weighting": "cosine", "clean_weight": 5.0, "robust_weight": 50.0}


@pytest.mark.parametrize("seed", range(3))
def test_mmt_ard_is_the_released_loss(seed: int) -> None:
    s = table(seed)
    losses = MMTARD(MMTARDConfig(**RELEASED, reduction="element-mean")).step(s)
    assert losses.total().mean().item() == pytest.approx(released_loss(s).item(), abs=1e-12)
    batch_means = MMTARD(MMTARDConfig(**RELEASED)).step(s)
    assert batch_means.total().mean().item() == pytest.approx(7 * released_loss(s).item(), abs=1e-11)
    assert s.asked == set(s.table)
    clean, student = (s.table[who].logits for who in (("clean", "clean"), ("student", "adversarial")))
    torch.testing.assert_close(s.climbed, kl(clean, student))


def test_a_negative_cosine_turns_its_sample_round() -> None:
    s = table()
    said = s.table["robust", "adversarial"]
    said._cosines[0], said._cosines[1] = -0.3, 0.3
    losses = MMTARD(MMTARDConfig(weighting="cosine")).step(s)
    weighted = losses.weighted("robust")
    assert weighted[0] < 0 < weighted[1] and (losses.terms["robust"].value > 0).all()


@pytest.mark.parametrize(("favour", "surer_gets"), [("easy", "more"), ("hard", "less")])
def test_sigmoid_shares(favour: str, surer_gets: str) -> None:
    s = table()
    clean, robust = s.table["clean", "clean"], s.table["robust", "adversarial"]
    one, other = MMTARD(MMTARDConfig(favour=favour, slope=4.0)).weigh(clean, robust, s.labels)
    torch.testing.assert_close(one + other, torch.ones_like(one))
    gap = robust.confidence(s.labels) - clean.confidence(s.labels)
    assert ((other > 0.5) == ((gap > 0) if surer_gets == "more" else (gap < 0))).all() and gap.gt(0).any()
    torch.testing.assert_close(other, torch.sigmoid((4 if favour == "easy" else -4) * gap))


def test_other_shares() -> None:
    s = table()
    clean, robust = s.table["clean", "clean"], s.table["robust", "adversarial"]
    by_probability = MMTARD(MMTARDConfig(weighting="probability")).weigh(clean, robust, s.labels)
    assert [torch.equal(a, b.confidence(s.labels)) for a, b in zip(by_probability, (clean, robust), strict=True)]
    fixed = MMTARD(MMTARDConfig(weighting="fixed")).weigh(clean, robust, s.labels)
    assert all((share == 1).all() for share in fixed)
    losses = MMTARD(MMTARDConfig(weighting="fixed", clean_weight=0.0, robust_weight=2.0)).step(s)
    torch.testing.assert_close(losses.total(), 2 * kl(robust.logits, s.table["student", "adversarial"].logits))


def test_shares_get_no_gradient() -> None:
    s = table()
    for said in s.table.values():
        said.logits = said.logits.clone().requires_grad_()
    MMTARD(MMTARDConfig(weighting="probability")).step(s).total().sum().backward()
    plain = s.table["robust", "adversarial"].logits.grad
    value = kl(s.table["robust", "adversarial"].logits, s.table["student", "adversarial"].logits)
    weight = s.table["robust", "adversarial"].confidence(s.labels).detach()
    (wanted,) = torch.autograd.grad((weight * value).sum(), s.table["robust", "adversarial"].logits)
    torch.testing.assert_close(plain, wanted)


def test_consistency_is_one_minus_the_adversarial_cosine() -> None:
    s = table()
    term = MMTARD(MMTARDConfig(consistency=0.5)).step(s).terms["consistency"]
    torch.testing.assert_close(term.value, 1 - s.table["student", "adversarial"].cosine(s.labels))
    assert term.weight == 0.5


@pytest.mark.parametrize("learning", [True, False])
def test_apd_is_its_equations(learning: bool) -> None:
    s = table(learning=learning)
    losses = APD(APDConfig(beta=0.3, temperature=2.0)).step(s)
    student, teacher = s.table["student", "adversarial"].logits, s.table["clean", "clean"].logits
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    torch.testing.assert_close(losses.weighted("student"), (p * (p.log() - q.log())).sum(1))
    assert s.asked == {("student", "adversarial"), ("clean", "clean")}
    torch.testing.assert_close(s.climbed, F.cross_entropy(student, s.labels, reduction="none"))
    assert set(losses.terms) == ({"student", "teacher", "feedback"} if learning else {"student"})
    if learning:
        torch.testing.assert_close(losses.weighted("teacher"), F.cross_entropy(teacher, s.labels, reduction="none"))
        torch.testing.assert_close(losses.weighted("feedback"), 0.3 * (q * (q.log() - p.log())).sum(1))


def test_cross_entropies() -> None:
    s = table()
    clean = Clean(None).step(s).total()
    torch.testing.assert_close(clean, F.cross_entropy(s.table["student", "clean"].logits, s.labels, reduction="none"))
    said = s.table["student", "adversarial"].logits
    torch.testing.assert_close(AdversarialCE(None).step(s).total(), F.cross_entropy(said, s.labels, reduction="none"))
    torch.testing.assert_close(s.climbed, cross_entropy(said, s.labels))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_is_the_formula_and_torchs_with_swapped_arguments(temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    p, q = (4 * torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    found = kl(p, q, temperature)
    soft_p, soft_q = (p / temperature).softmax(1), (q / temperature).softmax(1)
    torch.testing.assert_close(found, (soft_p * torch.log(soft_p / soft_q)).sum(1))
    torch.testing.assert_close(found.mean(), F.kl_div(soft_q.log(), soft_p, reduction="batchmean"))
    assert (found > 0).all() and not torch.allclose(found, kl(q, p, temperature))
    torch.testing.assert_close(kl(p, p), torch.zeros(6, dtype=torch.float64))


def test_kl_of_certain_models_is_finite() -> None:
    sure, other = torch.tensor([[300.0, 0.0, 0.0]]), torch.tensor([[0.0, 300.0, 0.0]])
    assert kl(sure, other).item() == pytest.approx(300.0)
    assert kl(sure, sure).item() == 0.0
