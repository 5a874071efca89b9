"""The Square attack.

Pinned here:
- it asks exactly `queries` times, without gradients, and not about rows that are closed;
- the schedule is the published one at its breakpoints, pressed into fewer queries only if asked;
- more queries never leave a sample with a larger margin;
- it starts from stripes at the ball's corners; a proposal in linf is one square, the same side for all samples, in
  corner colours, at places and in colours of a sample's own, anywhere in the image;
- in l2 and l1 the hill and valley are the paper's; proposals spend the whole radius and move mass between two squares;
- it stays in the ball for images of any shape, also tiny ones;
- a sample's result does not depend on its batch mates.
"""

import pytest
import torch
from advdistill_attacks import configs
from advdistill_attacks.square import Square, _Bumps, _Squares, bump, share, window

from advdistill import Noise, Problem, Threat
from advdistill.testing import ToyConfig, ToyDataset, ToyModel

RADII = {"linf": 8 / 255, "l2": 1.0, "l1": 20.0}


def noise(count):
    return Noise(0, "test", 0, torch.arange(count))


def attack(**settings):
    return Square(configs.Square(**settings))


@pytest.fixture(scope="module")
def scene():
    model = ToyModel(ToyConfig()).requires_grad_(False)
    split = ToyDataset(None).split("train")
    prepared = model.prepare(ToyDataset.classes)
    images, labels = split.images[:12], split.labels[:12]
    return images, labels, lambda x, rows=None: model.predict(x, prepared)


def test_queries_are_counted():
    images, labels = torch.full((3, 3, 8, 8), 0.2), torch.zeros(3, dtype=torch.long)

    def logits(x, rows):
        assert not torch.is_grad_enabled()
        # Row 1 is broken by whatever makes its first pixel lighter, the others by nothing.
        light = (x[:, 0, 0, 0] > 0.2) & (rows == 1)
        return torch.stack([torch.ones(len(x)), 2.0 * light], 1)

    threat = Threat("linf", 8 / 255)
    problem = Problem(images, labels, None, logits, threat, watch=True)
    found = attack(queries=130).run(problem, threat, noise(3))
    assert problem.tally.forwards.tolist()[::2] == [130, 130] and not problem.tally.backwards.any()
    assert problem.open().tolist() == [0, 2] and problem.tally.forwards[1] < 130
    assert found[1, 0, 0, 0] > 0.2
    training = Problem(images, labels, None, logits, threat)
    attack(queries=7).run(training, threat, noise(3))
    assert (training.tally.forwards == 7).all()


def test_the_published_schedule():
    # Proposals 0..10 cover p, 11..50 half of it, and so on (AutoAttack's code and the authors' own).
    last = {10: 1, 50: 2, 200: 4, 500: 8, 1000: 16, 2000: 32, 4000: 64, 6000: 128, 8000: 256, 9999: 512}
    for query, divisor in last.items():
        assert share(query, 0.8) == 0.8 / divisor
        if query < 9999:
            assert share(query + 1, 0.8) == 0.4 / divisor
    assert share(0, 0.8) == 0.8
    # In 5,000 queries rescaled, each stage takes half as long.
    assert share(5, 0.8, 5000) == 0.8 and share(6, 0.8, 5000) == 0.4 and share(4001, 0.8, 5000) == 0.8 / 512


@pytest.mark.parametrize("norm", RADII)
def test_more_queries_never_hurt(scene, norm):
    images, labels, net = scene
    threat = Threat(norm, RADII[norm])

    def margin(queries):
        found = attack(queries=queries).run(Problem(images, labels, None, net, threat), threat, noise(12))
        assert threat.holds(found, images).all()
        logits = net(found)
        return logits.gather(1, labels[:, None]).squeeze(1) - logits.scatter(1, labels[:, None], -torch.inf).amax(1)

    margins = torch.stack([margin(queries) for queries in (1, 3, 10, 101, 203)])
    assert (margins.diff(dim=0) <= 1e-6).all() and (margins.diff(dim=0) < -1e-3).any(1).all()


def test_stripes():
    images = torch.rand(4, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    start = _Squares(images, Threat("linf", 0.1)).start(noise(4))
    free = (images > 0.1) & (images < 0.9)
    assert ((start - images).abs()[free] - 0.1).abs().max() < 1e-6
    sign = (start - images).sign()
    for row in range(1, 6):
        assert (sign[:, :, row] == sign[:, :, 0])[free[:, :, row] & free[:, :, 0]].all()
    assert sign.std(3).amax() > 0 and not torch.equal(sign[0], sign[1])


def test_a_proposal_is_one_square():
    images = torch.full((40, 3, 12, 10), 0.5)
    search = _Squares(images, Threat("linf", 0.1))
    draws = noise(40).uniform((search.draws,))
    rows = torch.arange(40)
    proposal = search.propose(images.clone(), rows, 0.3, draws)
    delta = proposal - images
    changed = delta.abs().amax(1) > 0
    side = round((0.3 * 120) ** 0.5)
    corners = set()
    for each, signs in zip(changed, delta, strict=True):
        at = each.nonzero()
        top, left = at.amin(0).tolist()
        assert len(at) == side**2 and at.amax(0).tolist() == [top + side - 1, left + side - 1]
        square = signs[:, top : top + side, left : left + side]
        torch.testing.assert_close(square.abs(), torch.full_like(square, 0.1))
        assert (square.sign() == square.sign()[:, :1, :1]).all()
        corners.add((top, left))
    assert len(corners) > 10
    # From a corner of the ball the other corner is reached, not what lies beyond.
    again = search.propose((images - 0.1).clone(), rows, 0.3, draws)
    assert ((again - images).abs() - 0.1).abs().max() < 1e-6


def test_squares_lie_anywhere():
    u = torch.linspace(0, 1 - 1e-6, 50)
    at = window(u, u.flip(0), 3, 7, 5)
    rows, columns = at // 5, at % 5
    assert rows.amin() == 0 and rows.amax() == 6 and columns.amin() == 0 and columns.amax() == 4
    assert ((rows.amax(1) - rows.amin(1)) == 2).all() and ((columns.amax(1) - columns.amin(1)) == 2).all()
    assert (at.sort(1).values.diff(dim=1) > 0).all()


@pytest.mark.parametrize("side", [1, 2, 3, 5, 6, 11])
def test_bumps_are_the_papers(side):
    def hill(height, width):
        delta = torch.zeros(height, width)
        row, column = height // 2, width // 2
        for k in range(max(height // 2, width // 2) + 1):
            rows, columns = (slice(max(c - k, 0), c + k + 1) for c in (row, column))
            delta[rows, columns] += 1 / (k + 1) ** 2
        return delta / delta.norm()

    expected = torch.zeros(side, side)
    if side > 1:
        expected[: side // 2] = hill(side // 2, side)
    expected[side // 2 :] = -hill(side - side // 2, side)
    torch.testing.assert_close(bump(side), expected / expected.norm())


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_bump_moves_mass(norm):
    images = torch.full((30, 3, 20, 20), 0.5)
    threat = Threat(norm, 0.3)
    search = _Bumps(images, threat)
    start = search.start(noise(30))
    torch.testing.assert_close(threat.size(start - images), torch.full((30,), 0.3), rtol=1e-4, atol=0)
    draws = noise(30).uniform((search.draws,), 1)
    moved = search.propose(start.clone(), torch.arange(30), 0.05, draws)
    torch.testing.assert_close(threat.size(moved - images), torch.full((30,), 0.3), rtol=1e-4, atol=0)
    side = 5  # round(sqrt(0.05 * 400)) is 4, and sides are odd
    to, since = (window(draws[:, i], draws[:, i + 1], side, 20, 20) for i in (0, 2))
    touched = torch.zeros(30, 400).scatter(1, to, 1.0).scatter(1, since, 1.0).bool()
    before, after = ((x - images).flatten(2) for x in (start, moved))
    assert (before - after).abs().masked_select(~touched.unsqueeze(1)).amax() < 1e-5
    only_since = torch.zeros(30, 400).scatter(1, since, 1.0).scatter(1, to, 0.0).bool()
    assert after.masked_select(only_since.unsqueeze(1)).abs().amax() < 1e-6
    assert (before - after).abs().gather(2, to.unsqueeze(1).expand(-1, 3, -1)).amax() > 1e-3


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4, 4), (14, 14), (9, 30)])
def test_images_of_any_shape(norm, shape):
    images = torch.rand(3, 3, *shape, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(images[0].numel(), 3, generator=torch.Generator().manual_seed(1))
    labels = (images.flatten(1) @ weight).argmax(1)
    threat = Threat(norm, 0.3)
    problem = Problem(images, labels, None, lambda x, rows: x.flatten(1) @ weight, threat)
    found = attack(queries=60).run(problem, threat, noise(3))
    assert threat.holds(found, images).all() and (found != images).any()


@pytest.mark.parametrize("norm", RADII)
def test_batch_mates_do_not_matter(scene, norm):
    images, labels, net = scene
    threat = Threat(norm, RADII[norm])

    def run(rows):
        problem = Problem(images[rows], labels[rows], None, net, threat)
        return attack(queries=120).run(problem, threat, noise(12).of(rows))

    rows = torch.tensor([7, 2, 5])
    torch.testing.assert_close(run(rows), run(torch.arange(12))[rows], atol=1e-5, rtol=0)
