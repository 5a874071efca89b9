"""Our own attacks.

Pinned here:
- pgd without random start equals torchattacks' PGD and PGDL2, step for step;
- MMT-ARD's momentum: v <- m v + sign(g), a step along sign(v), the last iterate;
- fgsm is one step of eps; from a random start it is 1.25 eps, cut to the ball;
- random starts fill the ball: uniform in linf; in l2 a uniform radius, whatever the direction;
- restarts keep each sample's best, and a restart's draws do not depend on how many there are; a plan can count their
  passes without values;
- `loss` names what is climbed instead of the problem's own objective;
- in evaluation rows close as soon as an iterate broke them and are not asked about again;
- no gradient is taken that nobody uses: `steps` of them a restart, and one look at the end only to compare restarts;
- a zero gradient, and one whose squares underflow, give a zero and a unit direction;
- settings that cannot be meant are refused.
"""

import itertools

import pytest
import torch
import torchattacks
from advdistill_attacks import configs
from advdistill_attacks.pgd import FGSM, PGD, direction, random_start
from pydantic import ValidationError

from advdistill import Noise, Problem, Threat, cross_entropy
from advdistill.testing import ToyConfig, ToyDataset, ToyModel

LINF, L2 = Threat("linf", 8 / 255), Threat("l2", 1.0)


@pytest.fixture
def scene():
    model = ToyModel(ToyConfig()).requires_grad_(False)
    split = ToyDataset(None).split("train")
    prepared = model.prepare(ToyDataset.classes)
    return split.images[:8], split.labels[:8], lambda images: model.predict(images, prepared)


def problem(scene, threat=LINF, watch=False, objective=None):
    images, labels, net = scene
    return Problem(images, labels, objective, lambda x, rows: net(x), threat, watch)


def noise(count=8, seed=0):
    return Noise(seed, "test", 0, torch.arange(count))


@pytest.mark.parametrize(
    ("threat", "theirs"),
    [
        (LINF, lambda m: torchattacks.PGD(m, eps=8 / 255, alpha=2 / 255, steps=7, random_start=False)),
        (L2, lambda m: torchattacks.PGDL2(m, eps=1.0, alpha=2 / 255, steps=7, random_start=False)),
    ],
)
def test_pgd_equals_torchattacks(scene, threat, theirs):
    images, labels, net = scene

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.place = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return net(x)

    ours = PGD(configs.PGD(steps=7, step="2/255", random_start=False))(problem(scene, threat), threat, noise())
    expected = theirs(Module())(images, labels)
    assert (ours - images).abs().max() > 1e-3
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_momentum_is_mmt_ards(scene):
    images, labels, net = scene
    step, momentum = 1 / 255, 0.9
    x, v = images.clone(), torch.zeros_like(images)
    for _ in range(5):
        x.requires_grad_()
        (g,) = torch.autograd.grad(torch.nn.functional.cross_entropy(net(x), labels, reduction="sum"), x)
        v = momentum * v + g.sign()
        x = (x.detach() + step * v.sign()).clamp(images - 8 / 255, images + 8 / 255).clamp(0, 1)
    attack = PGD(configs.PGD(steps=5, step="1/255", momentum=0.9, random_start=False))
    torch.testing.assert_close(attack(problem(scene), LINF, noise()), x, atol=1e-6, rtol=0)


def test_default_step_is_two_and_a_half_radii_over_steps(scene):
    default = PGD(configs.PGD(steps=5))(problem(scene), LINF, noise())
    explicit = PGD(configs.PGD(steps=5, step=2.5 * LINF.eps / 5))(problem(scene), LINF, noise())
    assert torch.equal(default, explicit)


def test_fgsm_is_one_step_of_eps(scene):
    images, labels, net = scene
    x = images.clone().requires_grad_()
    (g,) = torch.autograd.grad(cross_entropy(net(x), labels).sum(), x)
    found = FGSM(configs.FGSM())(problem(scene), LINF, noise())
    torch.testing.assert_close(found, (images + LINF.eps * g.sign()).clamp(0, 1))


def test_fgsm_from_a_random_start_steps_further(scene):
    found = FGSM(configs.FGSM(random_start=True))(problem(scene), LINF, noise())
    start = random_start(problem(scene), LINF, noise())
    x = start.clone().requires_grad_()
    (g,) = torch.autograd.grad(cross_entropy(scene[2](x), scene[1]).sum(), x)
    torch.testing.assert_close(found, LINF.project(start + 1.25 * LINF.eps * g.sign(), scene[0]))


def test_random_starts_fill_the_ball():
    images = torch.full((400, 3, 4, 4), 0.5)
    of = Problem(images, torch.zeros(400, dtype=torch.long), None, lambda x, rows: x.flatten(1), LINF)
    offset = (random_start(of, LINF, noise(400)) - images) / LINF.eps
    quarters = torch.histc(offset, 4, -1, 1) / offset.numel()
    assert (quarters - 0.25).abs().max() < 0.01
    small = Threat("l2", 0.25)
    radius = small.size(random_start(of, small, noise(400)) - images) / small.eps
    assert (torch.histc(radius, 4, 0, 1) / 400 - 0.25).abs().max() < 0.08
    first = ((random_start(of, small, noise(400)) - images)[:, 0, 0, 0] / radius).abs()
    assert torch.corrcoef(torch.stack([radius, first]))[0, 1].abs() < 0.2
    again = small.size(random_start(of, small, noise(400), 1) - images) / small.eps
    assert torch.corrcoef(torch.stack([radius, again]))[0, 1].abs() < 0.2


def test_restarts_keep_each_samples_best(scene):
    def values(images):
        return cross_entropy(scene[2](images), scene[1])

    def run(restarts):
        return PGD(configs.PGD(steps=1, step="1/255", restarts=restarts))(problem(scene), LINF, noise())

    one, five = values(run(1)), values(run(5))
    assert (five >= one - 1e-6).all() and (five > one + 1e-6).any()


def test_a_plan_has_no_values():
    with torch.device("meta"):
        images, labels, samples = torch.empty(4, 3, 6, 6), torch.zeros(4, dtype=torch.long), torch.arange(4)
    trial = Problem(images, labels, None, lambda x, rows: x.flatten(1)[:, :5], LINF)
    passes = 0

    def logits(x, rows):
        nonlocal passes
        passes += 1
        return x.flatten(1)[:, :5]

    PGD(configs.PGD(steps=3, restarts=2))(trial.restated(logits=logits), LINF, Noise(0, "test", 0, samples))
    assert passes == 2 * (3 + 1)


@pytest.mark.parametrize("attack", [PGD(configs.PGD(steps=3, loss="cw")), FGSM(configs.FGSM(loss="cw"))])
def test_a_named_loss_replaces_the_objective(scene, attack):
    down = problem(scene, objective=lambda x, rows: -cross_entropy(scene[2](x), scene[1][rows]))
    found = attack(down, LINF, noise())
    assert (cross_entropy(scene[2](found), scene[1]) > cross_entropy(scene[2](scene[0]), scene[1])).all()


def test_closed_rows_are_left_alone(scene):
    images, labels, net = scene
    labels = labels.clone()
    labels[3] = (labels[3] + 1) % 6  # wrong from the start: the first look closes it
    asked: list[list[int]] = []

    def logits(x, rows):
        asked.append(rows.tolist())
        return net(x)

    trial = Problem(images, labels, None, logits, LINF, watch=True)
    found = PGD(configs.PGD(steps=10, random_start=False))(trial, LINF, noise())
    assert asked[0] == list(range(8)) and all(3 not in rows for rows in asked[1:])
    assert torch.equal(found[3], images[3])
    assert all(set(later) <= set(earlier) for earlier, later in itertools.pairwise(asked))
    assert len(asked[-1]) < 8 and (net(found).argmax(1) != labels).all()


@pytest.mark.parametrize("watch", [False, True])
def test_no_look_is_wasted(scene, watch):
    looks = 0

    def logits(x, rows):
        nonlocal looks
        looks += 1
        return torch.stack([1 - x.flatten(1).mean(1), x.flatten(1).mean(1)], 1)  # cannot be broken: stays open

    images, labels = torch.full((4, 3, 4, 4), 0.2), torch.zeros(4, dtype=torch.long)

    def run(attack, threat=LINF):
        nonlocal looks
        looks = 0
        attack(Problem(images, labels, None, logits, threat, watch), threat, noise(4))
        return looks

    outcome = 1 if watch else 0
    assert run(FGSM(configs.FGSM())) == 1 + outcome
    assert run(PGD(configs.PGD(steps=6))) == 6 + outcome
    assert run(PGD(configs.PGD(steps=6, restarts=3))) == 3 * (6 + 1) + outcome


def test_directions_are_safe():
    gradient = torch.zeros(3, 3, 4, 4)
    gradient[1] = 1e-30
    gradient[2] = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    l2 = direction(gradient, "l2")
    assert not l2[0].any()
    torch.testing.assert_close(l2.flatten(1).norm(dim=1), torch.tensor([0.0, 1.0, 1.0]))
    assert torch.equal(direction(gradient, "linf"), gradient.sign())


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"restarts": 0},
        {"restarts": 2, "random_start": False},
        {"momentum": -0.1},
        {"momentum": 1.1},
        {"step": "-1/255"},
        {"eps": "8/255"},
    ],
)
def test_settings_that_cannot_be_meant(settings):
    with pytest.raises(ValidationError):
        configs.PGD(**settings)
