"""What is pinned here:

- Each loss term alone sends gradients to exactly the parameters that it should: APD's student term to the student,
  its teacher and feedback terms to a teacher that learns; offline APD and both cross-entropies to the student.
- `kl(p, q)` is KL(p || q), as the formula says and as torch's kl_div with its arguments swapped; with a temperature.
- What each attack maximises, and which images each model is shown.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from advdistill_apd.configs import APD as APDConfig
from advdistill_apd.strategy import APD
from advdistill_finetuning.strategies import AdversarialCE, Clean
from strategy_tables import table

from advdistill import Clock, Noise, Step, Strategy, Threat, cross_entropy, kl
from advdistill.engine.data import Batch
from advdistill.engine.participant import Participant
from advdistill.testing import ToyAttack, ToyConfig, ToyDataset, ToyModel
from advdistill.testing.toy import CLASSES

# --- gradients ---------------------------------------------------------------------------------------------------

STUDENT, TEACHER = {"student.gain", "student.context"}, {"clean.gain", "clean.context"}
ONLINE = {"student": STUDENT, "teacher": TEACHER, "feedback": TEACHER}
CASES = [
    (APD(APDConfig()), {"clean"}, ONLINE),
    (APD(APDConfig(beta=0.3, temperature=2.0)), {"clean"}, ONLINE),
    (APD(APDConfig()), set(), {"student": STUDENT}),
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
