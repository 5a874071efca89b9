"""The independent rendering of AutoAttack's standard ensemble that ours is measured against is itself faithful.

Pinned here:
- apgd (both losses, both norms), apgd-t, fab-t (both norms) and square walk where torchattacks' attacks, which descend
  from the authors' program, walk under the same seed and the same settings;
- fab's step crosses the plane, stays in the box, is no longer than torchattacks', and goes as far as it can where the
  plane lies outside the box;
- square's squares shrink as published;
- the ensemble: survivors alone are asked about, what broke a sample is misclassified and in the ball, masks only
  shrink, an attack alone is that attack, one seed is one result, and the global generator is left alone.
"""

import itertools
import sys
from pathlib import Path

import pytest
import torch
import torchattacks
from torch import nn
from torchattacks.attacks.fab import projection_l2, projection_linf

from advdistill.hooks.registry import default_registry

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import reference_autoattack as reference

EPS = {"linf": 16 / 255, "l2": 1.0}
STEPS = 12


class Digits(nn.Module):
    """The partly robust demo model, for torchattacks: a parameter says its device, and `asked` is what it was asked."""

    def __init__(self, participant):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)
        self._participant, self.asked = [participant], 0

    def forward(self, images):
        self.asked += len(images)
        return self._participant[0].logits(images, constant=True)


@pytest.fixture(scope="module")
def scene():
    from advdistill_demo.configs import Digits as Config
    from advdistill_demo.digits import Digits as Data

    from advdistill.engine.checkpoint import open_checkpoint
    from advdistill.engine.participant import Participant

    data = Data(Config())
    opened = open_checkpoint("advdistill_demo:adversarial_ce.safetensors", default_registry())
    model = Digits(Participant(opened.model, data.classes)).eval()
    split = data.split("test")
    return model, split.images[:40], split.labels[:40]


def same_path(model, x, y, ours, theirs, eps, norm):
    found, broken = ours
    with torch.no_grad():
        adversarial = theirs(x, y)
        small = (adversarial - x).flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2) <= eps * 1.0001
        wrong = (model(adversarial).argmax(1) != y) & small
    assert torch.equal(broken, wrong)
    assert 0.05 < broken.float().mean() < 0.95  # else nothing is compared
    apart = (found - adversarial)[broken].flatten(1).abs().amax(1)
    assert (apart < 1e-4).float().mean() > 0.8, apart  # rounding may turn the sign of a pixel that hardly matters


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_walks_where_torchattacks_walks(scene, norm, loss):
    model, x, y = scene
    for seed in (0, 1):
        mine = reference.apgd(model, x, y, EPS[norm], loss, seed, norm=norm, iterations=STEPS)
        attack = torchattacks.APGD(model, {"linf": "Linf", "l2": "L2"}[norm], EPS[norm], STEPS, seed=seed, loss=loss)
        same_path(model, x, y, mine, attack, EPS[norm], norm)


def test_apgd_t_walks_where_torchattacks_walks(scene):
    model, x, y = scene
    mine = reference.apgd_t(model, x, y, EPS["linf"], 3, iterations=STEPS, targets=3)
    attack = torchattacks.APGDT(model, eps=EPS["linf"], steps=STEPS, seed=3, n_classes=4)
    same_path(model, x, y, mine, attack, EPS["linf"], "linf")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_t_walks_where_torchattacks_walks(scene, norm):
    model, x, y = scene
    mine = reference.fab_t(model, x, y, EPS[norm], norm=norm, iterations=STEPS, targets=2)
    name = {"linf": "Linf", "l2": "L2"}[norm]
    attack = torchattacks.FAB(model, name, EPS[norm], STEPS, multi_targeted=True, n_classes=3)
    same_path(model, x, y, mine, attack, EPS[norm], norm)


def test_square_walks_where_torchattacks_walks(scene):
    model, x, y = scene
    mine = reference.square(model, x, y, 24 / 255, 5, queries=80)
    attack = torchattacks.Square(model, eps=24 / 255, n_queries=80, seed=5, resc_schedule=False)
    same_path(model, x, y, mine, attack, 24 / 255, "linf")


@pytest.mark.parametrize("norm, theirs", [("linf", projection_linf), ("l2", projection_l2)])
def test_the_smallest_step_onto_a_plane(norm, theirs):
    generator = torch.Generator().manual_seed(0)
    points, normal = torch.rand(60, 48, generator=generator), torch.randn(60, 48, generator=generator)
    normal[:, :6] = 0
    points[:, 6:12] = (points[:, 6:12] > 0.5).float()  # at their walls already
    gap = torch.randn(60, generator=generator) * torch.logspace(-2, 2, 60)
    move = reference.onto_plane(points, normal, gap, norm)
    assert (move[:, :6] == 0).all()
    assert ((points + move >= 0) & (points + move <= 1)).all()
    corner = torch.where(normal * gap[:, None] > 0, 1 - points, -points) * (normal != 0)
    reachable = (normal * corner).sum(1).abs() > gap.abs()
    assert 0.3 < reachable.float().mean() < 0.95
    assert torch.allclose((normal * move).sum(1)[reachable], gap[reachable], atol=1e-4)
    assert torch.equal(move[~reachable], corner[~reachable])
    assert torch.allclose(move, theirs(points, normal, (normal * points).sum(1) + gap), atol=1e-4)


def test_the_squares_shrink_as_published():
    shares = [reference._share(query, 0.8) for query in (0, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001, 4999)]
    assert shares == [0.8 / part for part in (1, 1, 2, 2, 4, 8, 16, 32, 64, 128, 128)]


def test_the_ensemble(scene):
    model, x, y = scene
    x, y, few = x[:30], y[:30].clone(), {"steps": 4, "targets": 2, "queries": 20, "batch": 16}
    y[0] = (model(x[:1]).argmax(1)[0] + 1) % 10
    state = torch.random.get_rng_state()
    masks, found = reference.standard(model, x, y, EPS["linf"], 7, **few)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(masks) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert not masks["clean"][0] and torch.equal(found[0], x[0])
    rows = list(masks.values())
    assert all((later <= earlier).all() for earlier, later in itertools.pairwise(rows))
    broken = masks["clean"] & ~masks["square"]
    assert broken.any() and masks["square"].any()
    assert (model(found[broken]).argmax(1) != y[broken]).all()
    assert torch.equal(found[masks["square"]], x[masks["square"]])
    assert (found - x).abs().max() <= EPS["linf"] + 1e-6 and found.min() >= 0 and found.max() <= 1
    again, _ = reference.standard(model, x, y, EPS["linf"], 7, **few)
    assert all(torch.equal(again[name], masks[name]) for name in masks)
    alone, _ = reference.standard(model, x, y, EPS["linf"], 7, attacks=("square",), **few)
    assert list(alone) == ["clean", "square"]
    rest = alone["clean"].nonzero().squeeze(1)[:16]  # its first batch
    assert torch.equal(~alone["square"][rest], reference.square(model, x[rest], y[rest], EPS["linf"], 7, queries=20)[1])


def test_survivors_alone_are_asked_about(scene):
    model, x, y = scene
    model.asked = 0
    wrong = (model(x).argmax(1) + 1) % 10
    model.asked = 0
    reference.standard(model, x, wrong, EPS["linf"])
    assert model.asked == len(x)
    model.asked = 0
    reference.square(model, x, y, 1.0, queries=1000)
    assert model.asked < 200 * len(x)
