"""The losses that gradient attacks climb.

Pinned here:
- each equals its formula, written out class by class in float64, for two classes and more, for logits that are all
  negative, and for ties;
- a step along the gradient raises the label's rivals against it, and a targeted one its target;
- cross-entropy has its label's gradient where the label's probability rounds to 1; the scale-invariant one has a
  gradient at any scale, and a value that tells which of two saturated images is nearer to an error;
- dlr does not change under shift and scale, and refuses too few classes with what to do instead;
- kl and feature look at the model and the image that the settings name, once where that image is the clean one;
- no name: the objective of whoever asks; settings that say nothing, or name a loss without slope, are refused.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from advdistill_attacks import configs
from advdistill_attacks.losses import TARGETED, UNTARGETED, ce, dlr, dlr_to, sice, stated
from advdistill_attacks.pgd import PGD
from pydantic import ValidationError

from advdistill import ClassSet, Noise, Problem, Threat, UsageError, kl
from advdistill.engine.participant import Participant, Seen
from advdistill.testing import ToyConfig, ToyDataset, ToyModel

LOGITS = {
    "two classes": ([[1.5, -0.5], [-3.0, -1.0]], [0, 0]),
    "three classes, all negative": ([[-5.0, -2.0, -9.0], [-1.0, -7.0, -1.5]], [1, 2]),
    "six classes": ([[0.3, 2.0, -1.0, 4.0, 0.0, 3.5], [9.0, -2.0, 8.0, 1.0, 7.0, 7.5]], [3, 1]),
    "ties": ([[2.0, 2.0, 1.0, 0.0], [5.0, 5.0, 5.0, 1.0]], [0, 2]),
}


def spelled(name, z, y):
    """A loss of one sample, from its definition."""
    p = [math.exp(v - max(z)) / sum(math.exp(w - max(z)) for w in z) for v in z]
    others = [c for c in range(len(z)) if c != y]
    ranked = sorted(z, reverse=True)
    return {
        "ce": lambda: -math.log(p[y]),
        "sice": lambda: math.log(sum(math.exp(z[c] - z[y]) for c in others)),
        "cw": lambda: max(z[c] for c in others) - z[y],
        "dlr": lambda: -(z[y] - max(z[c] for c in others)) / (ranked[0] - ranked[2] + 1e-12),
        "margin": lambda: max(p[c] for c in others) - p[y],
    }[name]()


@pytest.mark.parametrize("case", LOGITS)
@pytest.mark.parametrize("name", UNTARGETED)
def test_formulas(name, case):
    z, y = LOGITS[case]
    if name == "dlr" and len(z[0]) < 3:
        pytest.skip("refused")
    found = UNTARGETED[name](torch.tensor(z, dtype=torch.float64), torch.tensor(y))
    expected = torch.tensor([spelled(name, *each) for each in zip(z, y, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_targeted_formulas():
    z, y, t = torch.tensor([[3.0, -1.0, 2.5, 0.5, 1.0]], dtype=torch.float64), torch.tensor([0]), torch.tensor([3])
    found = {name: loss(z, y, t).item() for name, loss in TARGETED.items()}
    assert found["ce"] == pytest.approx(F.log_softmax(z, 1)[0, 3].item())
    assert found["cw"] == pytest.approx(0.5 - 3.0)
    assert found["dlr"] == pytest.approx((0.5 - 3.0) / (3.0 - (1.0 + 0.5) / 2))


@pytest.mark.parametrize("name", UNTARGETED)
@pytest.mark.parametrize("offset", [0, -20])
def test_up_is_away_from_the_label(name, offset):
    z = torch.tensor([[0.3, 2.0, -1.0, 4.0], [9.0, -2.0, 8.0, 1.0], [-5.0, -2.0, -9.0, -3.0]], dtype=torch.float64)
    z, y = (z + offset).requires_grad_(), torch.tensor([3, 0, 1])
    (g,) = torch.autograd.grad(UNTARGETED[name](z, y).sum(), z)
    assert (g.gather(1, y.unsqueeze(1)) < 0).all()
    after = F.cross_entropy(z + 1e-3 * F.normalize(g, dim=1), y, reduction="none")
    assert (after > F.cross_entropy(z, y, reduction="none")).all()


@pytest.mark.parametrize("name", TARGETED)
def test_up_is_towards_the_target(name):
    z = torch.tensor([[3.0, -1.0, 2.5, 0.5, 1.0], [-9.0, -8.0, -3.0, -4.0, -5.0]], dtype=torch.float64)
    z, y, t = z.requires_grad_(), torch.tensor([0, 2]), torch.tensor([3, 0])
    (g,) = torch.autograd.grad(TARGETED[name](z, y, t).sum(), z)
    log_p = F.log_softmax(torch.stack([z, z + 1e-3 * F.normalize(g, dim=1)]), -1).gather(2, t.expand(2, 2)[..., None])
    assert (g.gather(1, t.unsqueeze(1)) > 0).all() and (log_p[1] > log_p[0]).all()


def test_saturation():
    z, y = torch.tensor([[60.0, 0.0, -5.0]], requires_grad=True), torch.tensor([0])
    assert F.softmax(z, 1)[0, 0] == 1 and torch.autograd.grad(F.cross_entropy(z, y), z)[0][0, 0] == 0
    (g,) = torch.autograd.grad(ce(z, y), z)
    error = math.exp(-60) + math.exp(-65)
    assert (g[0, 0].item(), ce(z, y).item()) == pytest.approx((-error, error), rel=1e-4)

    def slope(scale):
        w = (scale * torch.tensor([[6.0, 2.0, -3.0, 1.0]])).requires_grad_()
        return F.normalize(torch.autograd.grad(sice(w, y).sum(), w)[0])

    torch.testing.assert_close(slope(1e4), slope(1e-3))
    torch.testing.assert_close(slope(1.0).norm(), torch.tensor(1.0))
    near, far = (sice(1e4 * torch.tensor([row]), y) for row in ([6.0, 5.0, 0.0], [6.0, 1.0, 0.0]))
    assert near > far and torch.isfinite(sice(torch.zeros(1, 3), y)).all()


def test_dlr_is_invariant_and_needs_classes():
    z, y, t = torch.tensor([[3.0, -1.0, 2.5, 0.5]]), torch.tensor([0]), torch.tensor([1])
    torch.testing.assert_close(dlr(7 * z - 40, y), dlr(z, y))
    torch.testing.assert_close(dlr_to(7 * z - 40, y, t), dlr_to(z, y, t))
    with pytest.raises(UsageError, match="needs 3 classes, and there are 2") as error:
        dlr(z[:, :2], y)
    assert "loss: cw" in error.value.hint
    with pytest.raises(UsageError, match="needs 4 classes, and there are 3") as error:
        dlr_to(z[:, :3], y, t)
    assert "attacks: [{use: apgd}, {use: square}]" in error.value.hint


@pytest.fixture
def scene():
    """A problem on toys: itself, and another one called "clean"."""
    models = {"self": ToyModel(ToyConfig()), "clean": ToyModel(ToyConfig())}
    with torch.no_grad():
        models["clean"].gain.mul_(1 + 0.3 * torch.linspace(-1, 1, len(models["clean"].gain)))
    seen = {name: Seen(Participant(model, ToyDataset.classes)) for name, model in models.items()}
    split = ToyDataset(None).split("train")
    images, labels = split.images[:6], split.labels[:6]
    problem = Problem(
        images, labels, None, lambda x, rows: seen["self"].logits(x), Threat("linf", 8 / 255), seen=seen.__getitem__
    )
    moved = (images + 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    return problem, moved, seen


def test_no_name_is_the_askers_objective(scene):
    problem, *_ = scene
    assert stated(problem, configs.PGD()) is problem


@pytest.mark.parametrize("loss", UNTARGETED)
def test_stated(scene, loss):
    problem, moved, seen = scene
    rows = torch.tensor([4, 1])
    found = stated(problem, configs.PGD(loss=loss)).objective(moved[rows], rows)
    torch.testing.assert_close(found, UNTARGETED[loss](seen["self"].logits(moved[rows]), problem.labels[rows]))


@pytest.mark.parametrize(
    ("settings", "theirs"), [({}, "self"), ({"to": "clean"}, "clean"), ({"to": "clean", "of": "adversarial"}, "clean")]
)
def test_kl(scene, settings, theirs):
    problem, moved, seen = scene
    own = stated(problem, configs.PGD(loss="kl", **settings))
    rows = torch.tensor([4, 1])
    of = moved if settings.get("of") == "adversarial" else problem.images
    expected = kl(seen[theirs].logits(of[rows]), seen["self"].logits(moved[rows]))
    before = problem.tally.forwards.clone()
    gradient, values = own.gradient(moved[rows], rows)
    torch.testing.assert_close(values, expected)
    assert (gradient != 0).any()
    spent = (problem.tally.forwards - before)[rows].tolist()
    assert spent == [2, 2] if settings.get("of") == "adversarial" else spent == [1, 1]


@pytest.mark.parametrize("to", ["self", "clean"])
@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_feature(scene, to, distance):
    problem, moved, seen = scene
    own = stated(problem, configs.PGD(loss="feature", to=to, distance=distance))
    rows = torch.tensor([3, 0, 5])
    a, b = seen[to].features(moved[rows]), seen[to].features(problem.images[rows])
    expected = 1 - F.cosine_similarity(a, b) if distance == "cosine" else (a - b).square().sum(1)
    torch.testing.assert_close(own.objective(moved[rows], rows), expected)
    assert torch.isfinite(own.gradient(problem.images, problem.rows)[0]).all()


@pytest.mark.parametrize("settings", [{"loss": "feature"}, {"loss": "kl", "to": "clean"}, {"loss": "sice"}])
def test_pgd_climbs_it(scene, settings):
    problem, *_ = scene
    config = configs.PGD(steps=5, **settings)
    with torch.no_grad():
        own = stated(problem, config)
        before = own.objective(problem.images, problem.rows)
        found = PGD(config)(problem, problem.threat, Noise(0, "test", 0, torch.arange(6)))
        after = own.objective(found, problem.rows)
    assert (after > before).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "bce"},
        {"to": "clean"},
        {"loss": "ce", "to": "base"},
        {"loss": "feature", "of": "adversarial"},
        {"loss": "kl", "distance": "cosine"},
        {"loss": "kl", "of": "adversarial"},
        {"loss": "feature", "random_start": False},
        {"loss": "kl", "random_start": False},
    ],
)
def test_settings_that_cannot_be_meant(settings):
    with pytest.raises(ValidationError):
        configs.PGD(**settings)


def test_kl_to_another_model_needs_no_random_start():
    assert not configs.FGSM(loss="kl", to="clean").random_start
    with pytest.raises(ValidationError, match="random_start"):
        configs.FGSM(loss="kl")


def test_two_classes_will_do(scene):
    two = ClassSet(("ant", "bee"), ToyDataset.classes.templates)
    seen = Seen(Participant(ToyModel(ToyConfig()), two))
    images = scene[0].images
    problem = Problem(images, torch.zeros(6, dtype=torch.long), None, lambda x, r: seen.logits(x), Threat("linf", 0.03))
    for loss in set(UNTARGETED) - {"dlr"}:
        gradient, _ = stated(problem, configs.PGD(loss=loss)).gradient(images, problem.rows)
        assert torch.isfinite(gradient).all() and gradient.any()
