"""Transferable attacks, and noise.

Pinned here:
- mi-fgsm equals torchattacks' MIFGSM, ti-fgsm its TIFGSM without diversity, step for step; the specs differ in their
  defaults alone: momentum, smoothing, diversity, all three;
- smoothing is the convolution with that kernel, also for kernels larger than the image;
- an image that is made smaller is what interpolation and padding give, of the old size and never larger, H x W kept;
  size and place are a sample's own, new in every look; probability 0 and 1 mean never and always;
- gradients of zero, or that are no numbers, are borne: the momentum goes on;
- default steps are eps / steps; l2 keeps to its ball;
- noise is spread over the ball, or at its corners; it takes no gradient and looks at no answer; an evaluation counts
  any of its draws;
- a sample's result does not depend on its batch mates.
"""

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from advdistill_attacks import configs
from advdistill_attacks.noise import RandomNoise, anywhere, corners
from advdistill_attacks.transfer import Transfer, diversify, smooth
from pydantic import ValidationError

from advdistill import Noise, Problem, Threat
from advdistill.testing import ToyConfig, ToyDataset, ToyModel

LINF, L2 = Threat("linf", 8 / 255), Threat("l2", 1.0)


@pytest.fixture(scope="module")
def scene():
    model = ToyModel(ToyConfig()).requires_grad_(False)
    split = ToyDataset(None).split("train")
    prepared = model.prepare(ToyDataset.classes)
    return split.images[:12], split.labels[:12], lambda x: model.predict(x, prepared)


def problem(scene, threat=LINF, watch=False, rows=slice(None)):
    images, labels, net = scene
    return Problem(images[rows], labels[rows], None, lambda x, r: net(x), threat, watch)


def noise(count=12, seed=0):
    return Noise(seed, "test", 0, torch.arange(count))


def module(net):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.place = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return net(x)

    return Module()


@pytest.mark.parametrize(
    ("config", "theirs"),
    [
        (configs.MIFGSM, lambda m: torchattacks.MIFGSM(m, eps=8 / 255, alpha=2 / 255, steps=6, decay=1.0)),
        (
            configs.TIFGSM,
            lambda m: torchattacks.TIFGSM(m, eps=8 / 255, alpha=2 / 255, steps=6, decay=0.0, diversity_prob=0.0),
        ),
    ],
)
def test_they_equal_torchattacks(scene, config, theirs):
    images, labels, net = scene
    expected = theirs(module(net))(images, labels)
    found = Transfer(config(steps=6, step="2/255"))(problem(scene), LINF, noise())
    # Sums in another order can turn the sign of a gradient that is nearly 0.
    assert ((found - expected).abs() > 1e-5).float().mean() < 0.002
    assert (found - images).abs().amax() > 7 / 255


def test_the_switches():
    default = configs.Transfer()
    assert (default.decay, default.kernel, default.probability) == (0, 1, 0)
    for config, switches in {
        configs.MIFGSM: {"decay": 1.0},
        configs.TIFGSM: {"kernel": 15},
        configs.DIFGSM: {"probability": 0.5},
        configs.TIMIDIFGSM: {"decay": 1.0, "kernel": 15, "probability": 0.5},
    }.items():
        assert config().model_dump() == configs.Transfer(**switches).model_dump()
    with pytest.raises(ValidationError, match="no middle"):
        configs.TIFGSM(kernel=4)


@pytest.mark.parametrize(("kernel", "shape"), [(3, (8, 8)), (15, (20, 9)), (15, (6, 6)), (1, (6, 6))])
def test_smoothing_is_a_gaussian(kernel, shape):
    gradient = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    theirs = torchattacks.TIFGSM(module(lambda x: x), len_kernel=kernel, nsig=2)
    weights = theirs.stacked_kernel if kernel > 1 else torch.ones(3, 1, 1, 1)
    expected = F.conv2d(gradient, weights, padding="same", groups=3)
    torch.testing.assert_close(smooth(gradient, kernel, 2.0), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(20, 20), (12, 30), (3, 2), (1, 1)])
def test_smaller_images_are_interpolated_and_padded(shape):
    height, width = shape
    images = torch.rand(16, 3, height, width, generator=torch.Generator().manual_seed(0))
    draws = noise(16).uniform((4,))
    smaller = diversify(images, draws, 1.0, 0.6)
    assert smaller.shape == images.shape
    sizes = set()
    for image, drawn, result in zip(images, draws, smaller, strict=True):
        _, size, down, across = drawn.tolist()
        least = max(int(0.6 * height), 1), max(int(0.6 * width), 1)
        rows, columns = (low + int(size * (side - low)) for low, side in zip(least, shape, strict=True))
        top, left = int(down * (height - rows + 1)), int(across * (width - columns + 1))
        small = F.interpolate(image[None], size=(rows, columns), mode="bilinear", align_corners=False)
        frame = (left, width - columns - left, top, height - rows - top)
        torch.testing.assert_close(result, F.pad(small, frame)[0], atol=1e-5, rtol=0)
        sizes.add((rows, columns, top, left))
    assert len(sizes) > 8 or shape in ((3, 2), (1, 1))


def test_how_often_images_are_changed():
    images = torch.rand(400, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    draws = noise(400).uniform((4,))
    changed = (diversify(images, draws, 0.3, 0.5) != images).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.4
    assert torch.equal(diversify(images, draws, 0.0, 0.5), images)
    assert (diversify(images, draws, 1.0, 0.5) != images).flatten(1).any(1).all()


def test_every_look_has_a_size_and_place_of_its_own(scene):
    images, labels, net = scene
    asked = []

    def logits(x, rows):
        asked.append(x.detach().clone())
        return net(x)

    still = Threat("linf", 0.0)
    watched = Problem(images, labels, None, logits, still)
    Transfer(configs.DIFGSM(steps=4, probability=1.0, resize_rate=0.5)).run(watched.restated(draws=2), still, noise())
    assert len(asked) == 8
    for first in range(8):
        for second in range(first):
            assert ((asked[first] - asked[second]).abs().flatten(1).amax(1) > 1e-3).float().mean() > 0.6
    again = asked.copy()
    asked.clear()
    Transfer(configs.DIFGSM(steps=4, probability=1.0, resize_rate=0.5)).run(watched.restated(draws=2), still, noise())
    assert all(torch.equal(a, b) for a, b in zip(asked, again, strict=True))


@pytest.mark.parametrize("config", [configs.MIFGSM, configs.TIMIDIFGSM])
@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_gradients_of_zero_are_borne(config, threat):
    images, labels = torch.full((2, 3, 6, 6), 0.5), torch.tensor([0, 0])
    looks = 0

    def objective(x, rows):
        nonlocal looks
        looks += 1
        # The second look finds nothing to climb, and the second sample never does.
        if looks == 3:  # a gradient of 0 / 0
            return (x - x.detach()).flatten(1).square().sum(1).sqrt()
        return x.flatten(1).sum(1) * torch.tensor([1.0, 0.0])[rows] * (looks != 2)

    still = Problem(images, labels, objective, lambda x, rows: x.flatten(1)[:, :2], threat)
    found = Transfer(config(steps=4, decay=1.0)).run(still, threat, noise(2))
    assert torch.equal(found[1], images[1])
    moved = found[0] - images[0]
    assert torch.isfinite(found).all() and (moved > 0).float().mean() > 0.9
    if config is configs.MIFGSM:  # four steps, two of them on momentum alone
        torch.testing.assert_close(threat.size(moved[None]), torch.tensor([threat.eps]))


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_steps_are_a_share_of_eps(scene, threat):
    images = scene[0]
    found = Transfer(configs.MIFGSM(steps=1)).run(problem(scene, threat), threat, noise())
    torch.testing.assert_close(threat.size(found - images), torch.full((12,), threat.eps), rtol=1e-3, atol=0)
    half = Transfer(configs.MIFGSM(steps=1, step=threat.eps / 2)).run(problem(scene, threat), threat, noise())
    torch.testing.assert_close(threat.size(half - images), torch.full((12,), threat.eps / 2), rtol=1e-3, atol=0)
    started = Transfer(configs.TIMIDIFGSM(random_start=True)).run(problem(scene, threat), threat, noise())
    assert threat.holds(started, images).all()


def test_closed_rows_cost_nothing(scene):
    watched = problem(scene, watch=True)
    Transfer(configs.MIFGSM(steps=20, step="2/255"))(watched, LINF, noise())
    closed = torch.ones(12, dtype=torch.bool).index_fill(0, watched.open(), False)
    assert (watched.tally.backwards[closed] < 20).sum() > 6
    assert (watched.tally.backwards[~closed] == 20).all()


def test_noise_is_spread_over_the_ball():
    shape = (3, 16, 16)
    spread = anywhere(LINF, noise(40), shape, 0) / LINF.eps
    quarters = torch.histc(spread, 4, -1, 1) / spread.numel()
    assert (quarters - 0.25).abs().max() < 0.02
    for norm in ("l2", "l1"):
        ball = Threat(norm, 2.0)
        torch.testing.assert_close(ball.size(anywhere(ball, noise(40), shape, 0)), torch.full((40,), 2.0))
    for norm in ("linf", "l2", "l1"):
        ball = Threat(norm, 0.5)
        corner = corners(ball, noise(40), shape, 1)
        torch.testing.assert_close(ball.size(corner), torch.full((40,), 0.5))
        magnitude = corner.abs()
        torch.testing.assert_close(magnitude, magnitude[:1, :1, :1, :1].expand_as(magnitude))
        assert 0.45 < (corner > 0).float().mean() < 0.55
    draws = [f(Threat("l2", 1.0), noise(40), shape, d) for d in range(3) for f in (anywhere, corners)]
    for first in range(1, 6):
        for second in range(first):
            pair = torch.stack([draws[first].flatten(), draws[second].flatten()])
            # A draw's corners and its spread may share numbers: only one of the two is ever used.
            assert first // 2 == second // 2 or torch.corrcoef(pair)[0, 1].abs() < 0.02


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("draws", [1, 2, 10])
def test_noise_does_not_choose_by_answers(scene, norm, draws):
    threat = Threat(norm, {"linf": 8 / 255, "l2": 1.0, "l1": 20.0}[norm])
    asked = problem(scene, threat)
    attack = RandomNoise(configs.RandomNoise(draws=draws))
    found = attack.run(asked, threat, noise())
    assert (asked.tally.forwards == draws - 1).all() and not asked.tally.backwards.any()
    shape = tuple(scene[0].shape[1:])
    assert torch.equal(found, threat.project(scene[0] + anywhere(threat, noise(), shape, 0), scene[0]))


def test_an_evaluation_counts_any_draw(scene):
    images, labels, _ = scene
    shape = tuple(images.shape[1:])
    lucky = LINF.project(images + anywhere(LINF, noise(), shape, 2), images)

    def logits(some, rows):
        # Wrong about draw 2 of the even rows, and about nothing else.
        hit = (some == lucky[rows]).flatten(1).all(1) & (rows % 2 == 0)
        return torch.nn.functional.one_hot((labels[rows] + hit.long()) % 6, 6).float()

    for draws in (2, 3):
        asked = Problem(images, labels, None, logits, LINF, watch=True)
        RandomNoise(configs.RandomNoise(draws=draws))(asked, LINF, noise())
        assert torch.equal(asked.broken, (asked.rows % 2 == 0) & (draws == 3))


@pytest.mark.parametrize(
    "attack",
    [
        RandomNoise(configs.RandomNoise()),
        Transfer(configs.TIMIDIFGSM()),
        Transfer(configs.MIFGSM(random_start=True)),
    ],
    ids=["noise", "ti-mi-di-fgsm", "mi-fgsm"],
)
@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_batch_mates_do_not_matter(scene, attack, threat):
    rows = torch.tensor([7, 2, 5])
    alone = attack.run(problem(scene, threat, rows=rows), threat, noise().of(rows))
    together = attack.run(problem(scene, threat), threat, noise())[rows]
    assert ((alone - together).abs() > 1e-4).float().mean() < 0.01
