"""The fast adaptive boundary attack.

Pinned here:
- the projection onto a hyperplane inside [0, 1] is the smallest move in linf, l2 and l1 (against linear programs, and
  the optimality conditions), goes as far as the box lets where it lets no further, and bears zero and tiny normals;
- on a linear model the attack finds each sample's distance to the boundary, and the nearest class, which need not be
  the one with the highest logit; the final search brings it nearer;
- it looks outside the ball, keeps the nearest mistake, and leaves samples alone that are wrong already;
- it takes two forward passes and one backward pass a step and target, and none for rows that are closed;
- fewer classes are fewer targets; restarts start elsewhere; gradients of zero, or that are no numbers, are borne;
- a sample's result does not depend on its batch mates.
"""

import pytest
import torch
from advdistill_attacks import configs
from advdistill_attacks.fab import FABT, onto_hyperplane
from scipy.optimize import linprog

from advdistill import Noise, Problem, Threat
from advdistill.testing import ToyConfig, ToyDataset, ToyModel

DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def hyperplanes(pixels, count=24):
    """Points with some pixels at 0 and 1, normals of all sizes with some zeros, gaps that the box reaches."""
    draw = seeded(pixels)
    points = torch.rand(count, pixels, generator=draw, dtype=torch.float64)
    points = torch.where(torch.rand(count, pixels, generator=draw) < 0.2, points.round(), points)
    normal = torch.randn(count, pixels, generator=draw, dtype=torch.float64)
    normal = normal * torch.logspace(-6, 2, count, dtype=torch.float64).unsqueeze(1)
    normal[torch.rand(count, pixels, generator=draw) < 0.1] = 0
    up, down = ((normal.abs() * room).sum(1) for room in rooms(points, normal))
    share = 0.99 * torch.rand(count, generator=draw, dtype=torch.float64)
    return points, normal, torch.where(torch.arange(count) % 2 == 0, share * up, -share * down)


def rooms(points, normal):
    up = torch.where(normal > 0, 1 - points, points)
    return up, 1 - up


def program(*tensors_and_bounds):
    *tensors, bounds = tensors_and_bounds
    return linprog(*(None if t is None else t.numpy() for t in tensors), bounds=bounds)


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("pixels", [2, 30])
def test_projections_are_linear_programs(norm, pixels):
    points, normal, gap = hyperplanes(pixels)
    moves = onto_hyperplane(points, normal, gap, norm)
    assert ((points + moves).clamp(0, 1) - points - moves).abs().max() < 1e-12
    for x, w, c, d in zip(points, normal, gap, moves, strict=True):
        assert (w @ d).item() == pytest.approx(c.item(), rel=1e-6, abs=1e-15)
        # d = up - down, both from 0 to the room there is.
        eye, scale = torch.eye(pixels, dtype=torch.float64), w.abs().max().clamp_min(1e-300)
        bounds = [(0, room) for room in torch.cat([1 - x, x]).tolist()]
        equal = torch.cat([w, -w]).unsqueeze(0) / scale, (c / scale).unsqueeze(0)
        if norm == "l1":
            found = program(torch.ones(2 * pixels), None, None, *equal, bounds)
            assert d.abs().sum().item() == pytest.approx(found.fun, rel=1e-6, abs=1e-9)
        else:
            cost = torch.cat([torch.zeros(2 * pixels), torch.ones(1)])
            below = torch.cat([torch.cat([eye, eye], 1), -torch.ones(pixels, 1, dtype=torch.float64)], 1)
            equal = torch.cat([equal[0], torch.zeros(1, 1, dtype=torch.float64)], 1), equal[1]
            found = program(cost, below, torch.zeros(pixels), *equal, [*bounds, (0, None)])
            assert d.abs().max().item() == pytest.approx(found.fun, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("pixels", [1, 2, 30])
def test_projections_in_l2_meet_the_optimality_conditions(pixels):
    points, normal, gap = hyperplanes(pixels)
    moves = onto_hyperplane(points, normal, gap, "l2")
    moved = points + moves
    torch.testing.assert_close((normal * moves).sum(1), gap, rtol=1e-6, atol=1e-15)
    inside = (moved > 1e-9) & (moved < 1 - 1e-9) & (normal != 0)
    for w, c, d, free in zip(normal, gap, moves, inside, strict=True):
        # One multiplier for all free pixels; the others would go further if they could.
        multiplier = d[free] / w[free]
        if len(multiplier):
            torch.testing.assert_close(multiplier, multiplier[:1].expand_as(multiplier), rtol=1e-6, atol=1e-12)
            assert (d[~free].abs() <= (multiplier[0] * w[~free]).abs() * (1 + 1e-6) + 1e-9).all()
        assert (d * w * c.sign() >= 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_where_the_box_does_not_reach_it_goes_as_far_as_it_can(norm):
    points, normal, _ = hyperplanes(6)
    room = rooms(points, normal)[0]
    gap = 1.5 * (normal.abs() * room).sum(1)
    torch.testing.assert_close(onto_hyperplane(points, normal, gap, norm), room * normal.sign())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_normals_of_nothing_and_next_to_nothing(norm):
    points = torch.rand(3, 8, generator=seeded())
    normal = torch.randn(3, 8, generator=seeded(1))
    gap = 0.1 * normal.abs().sum(1)
    expected = onto_hyperplane(points, normal, gap, norm)
    tiny = onto_hyperplane(points, normal * 1e-30, gap * 1e-30, norm)
    torch.testing.assert_close(tiny, expected, rtol=1e-4, atol=1e-5)
    nothing = onto_hyperplane(points, torch.zeros_like(normal), gap, norm)
    assert not nothing.any()


def linear(classes=4, shape=(3, 4, 4), count=6):
    """Samples in the middle of the cube, near the boundaries of a linear model, and their distances to them."""
    pixels = 3 * 4 * 4
    weight = torch.randn(classes, pixels, generator=seeded(2))
    images = 0.5 + 0.05 * torch.randn(count, *shape, generator=seeded(3))

    def net(x, rows=None):
        return (x - 0.5).flatten(1) @ weight.T

    return images, net(images).argmax(1), net, weight


def distances(images, labels, net, weight, norm):
    logits = net(images)
    gap = logits.gather(1, labels[:, None]) - logits
    slope = torch.linalg.vector_norm(weight[labels][:, None] - weight[None], DUAL[norm], dim=2)
    return (gap / slope).scatter(1, labels[:, None], torch.inf)


def attack(**settings):
    return FABT(configs.FABT(**settings))


def noise(count, seed=0):
    return Noise(seed, "test", 0, torch.arange(count))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_distance_of_a_linear_model(norm):
    images, labels, net, weight = linear()
    expected = distances(images, labels, net, weight, norm)
    problem = Problem(images, labels, None, net, Threat(norm, 1e-4), watch=True)
    attack(steps=20).run(problem, problem.threat, noise(6))
    nearest = problem.tally.nearest / expected.amin(1)
    assert (nearest > 1 - 1e-4).all() and (nearest < 1.02).all()
    # The class of the highest logit is not the nearest one for all.
    top = net(images).scatter(1, labels[:, None], -torch.inf).argmax(1)
    assert (top != expected.argmin(1)).any()
    one = Problem(images, labels, None, net, Threat(norm, 1e-4), watch=True)
    attack(steps=1, classes=1).run(one, one.threat, noise(6))
    searched = Problem(images, labels, None, net, Threat(norm, 1e-4), watch=True)
    attack(steps=1, classes=1, final_search=3).run(searched, searched.threat, noise(6))
    assert (searched.tally.nearest < one.tally.nearest * 0.97).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_it_returns_the_nearest_mistake(norm):
    images, labels, net, weight = linear()
    expected = distances(images, labels, net, weight, norm).amin(1)
    wide = Threat(norm, 2 * expected.max().item())
    found = attack(steps=20).run(Problem(images, labels, None, net, wide), wide, noise(6))
    assert (net(found).argmax(1) != labels).all()
    assert (wide.size(found - images) < 1.02 * expected).all()


def test_passes():
    images, labels, net, _ = linear()
    threat = Threat("linf", 1e-4)
    problem = Problem(images, labels, None, net, threat)
    attack(steps=7, classes=2).run(problem, threat, noise(6))
    assert (problem.tally.backwards == 2 * 7).all() and (problem.tally.forwards == 1 + 2 * 2 * 7).all()
    fewer = Problem(images, labels, None, net, threat)
    attack(steps=7, classes=2, restarts=2, final_search=3).run(fewer, threat, noise(6))
    assert (fewer.tally.backwards == 2 * 2 * 7).all() and (fewer.tally.forwards == 1 + 2 * 2 * 2 * 7 + 2 + 3).all()


def test_closed_rows_and_wrong_ones_cost_nothing():
    images, labels, net, weight = linear()
    far = distances(images, labels, net, weight, "linf").amin(1)
    threat = Threat("linf", far.median().item() * 1.03)
    labels = labels.clone()
    wrong = far.argmax().item()
    labels[wrong] = (labels[wrong] + 1) % 4
    training = Problem(images, labels, None, net, threat)
    found = attack(steps=20).run(training, threat, noise(6))
    assert torch.equal(found[wrong], images[wrong]) and training.tally.backwards[wrong] == 0
    watched = Problem(images, labels, None, net, threat, watch=True)
    attack(steps=20)(watched, threat, noise(6))
    broken = (far <= threat.eps * 0.97) & (torch.arange(6) != wrong)
    assert broken.any() and (watched.tally.backwards[broken] < 20).all()
    robust = (far > threat.eps) & (torch.arange(6) != wrong)
    assert robust.any() and (watched.tally.backwards[robust] == 3 * 20).all()


def test_two_classes_are_one_target():
    images, labels, net, weight = linear(classes=2)
    threat = Threat("l2", 5.0)
    problem = Problem(images, labels, None, net, threat)
    found = attack(steps=10).run(problem, threat, noise(6))
    assert (problem.tally.backwards == 10).all() and (net(found).argmax(1) != labels).all()
    expected = distances(images, labels, net, weight, "l2").amin(1)
    assert (threat.size(found - images) < 1.02 * expected).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_restarts_start_half_a_radius_away(norm):
    images, labels, net, _ = linear()
    asked = []

    def logits(x, rows):
        asked.append(x.detach().clone())
        return net(x)

    threat = Threat(norm, 0.01)
    attack(steps=1, classes=1, restarts=2).run(Problem(images, labels, None, logits, threat), threat, noise(6))
    # The clean image; the first run's step and check; the second run's start.
    torch.testing.assert_close(asked[1], images)
    torch.testing.assert_close(threat.size(asked[3] - images), torch.full((6,), 0.005), rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_batch_mates_do_not_matter(norm):
    model = ToyModel(ToyConfig()).requires_grad_(False)
    split = ToyDataset(None).split("train")
    prepared = model.prepare(ToyDataset.classes)
    images, labels = split.images[:12], split.labels[:12]
    threat = Threat(norm, {"linf": 8 / 255, "l2": 1.0, "l1": 20.0}[norm])

    def run(rows):
        problem = Problem(images[rows], labels[rows], None, lambda x, r: model.predict(x, prepared), threat)
        return attack(steps=8, classes=2, restarts=2).run(problem, threat, noise(12).of(rows))

    rows = torch.tensor([7, 2, 5])
    torch.testing.assert_close(run(rows), run(torch.arange(12))[rows], atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_gradients_that_are_no_numbers_are_borne(norm):
    images, labels = torch.full((2, 3, 4, 4), 0.5), torch.tensor([0, 0])

    def logits(x, rows):
        # Nothing, with a gradient of 0 / 0, is added to one sample's; the other's are sound.
        nothing = ((x - x.detach()).flatten(1).square().sum(1) + (rows == 0)).sqrt() * (rows == 1)
        return torch.stack([0.1 - nothing, (x - 0.5).flatten(1).sum(1)], 1)

    threat = Threat(norm, 1.0)
    problem = Problem(images, labels, None, logits, threat)
    gradient, _ = problem.gradient(images, problem.rows)
    assert (gradient[1] == 0).all() and (gradient[0] != 0).all()
    found = attack(steps=3).run(problem, threat, noise(2))
    assert (logits(found, problem.rows).argmax(1) == torch.tensor([1, 0])).all() and found.isfinite().all()


def test_gradients_of_zero_are_borne():
    images, labels = torch.full((2, 3, 4, 4), 0.4), torch.tensor([0, 1])
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    threat = Threat("l2", 1.0)
    problem = Problem(images, labels, None, lambda x, rows: logits[rows] + 0 * x.sum(), threat)
    torch.testing.assert_close(attack(steps=3).run(problem, threat, noise(2)), images)
