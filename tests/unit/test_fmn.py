"""The fast minimum-norm attack.

Pinned here:
- on a linear model of two classes it finds each sample's distance to the boundary in linf, l2 and l1, and returns it;
- the first ball is the linearised distance and a little more; then it shrinks where the image misleads, or grows;
- step and gamma fall along a cosine;
- it goes on after a sample is broken, also in evaluation, with one gradient a step and nothing else;
- cutting to radii of the samples' own is the threat's projection, sample by sample;
- a sample's result does not depend on its batch mates; gradients of zero, or that are no numbers, are borne.
"""

import itertools
import math

import pytest
import torch
from advdistill_attacks import configs
from advdistill_attacks.fmn import FMN, shrink

from advdistill import Noise, Problem, Threat
from advdistill.testing import ToyConfig, ToyDataset, ToyModel

NORMS = ("linf", "l2", "l1")
DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}


def linear(count=6, classes=2):
    """Samples in the middle of the cube, their labels, a linear model, and the distances to its boundaries."""
    weight = torch.randn(classes, 48, generator=torch.Generator().manual_seed(2))
    images = 0.5 + 0.05 * torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(3))

    def net(x, rows=None):
        return (x - 0.5).flatten(1) @ weight.T

    logits = net(images)
    labels = logits.argmax(1)
    gap = logits.gather(1, labels[:, None]) - logits

    def distance(norm):
        slope = torch.linalg.vector_norm(weight[labels][:, None] - weight[None], DUAL[norm], dim=2)
        return (gap / slope).scatter(1, labels[:, None], torch.inf).amin(1)

    return images, labels, net, distance


def noise(count):
    return Noise(0, "test", 0, torch.arange(count))


def attack(**settings):
    return FMN(configs.FMN(**settings))


@pytest.mark.parametrize("norm", NORMS)
def test_the_distance_of_a_linear_model(norm):
    images, labels, net, distance = linear()
    expected = distance(norm)
    small = Problem(images, labels, None, net, Threat(norm, 1e-5), watch=True)
    attack().run(small, small.threat, noise(6))
    assert (small.tally.nearest > expected * (1 - 1e-4)).all() and (small.tally.nearest < expected * 1.03).all()
    wide = Threat(norm, 2 * expected.max().item())
    found = attack().run(Problem(images, labels, None, net, wide), wide, noise(6))
    assert (net(found).argmax(1) != labels).all()
    assert (wide.size(found - images) < expected * 1.03).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_ball_follows_the_answer(norm):
    images, labels, net, distance = linear()
    asked = []

    def logits(x, rows):
        asked.append(x.detach().clone())
        return net(x)

    threat = Threat(norm, 1.0)
    attack(steps=12, gamma=0.2, step=100.0).run(Problem(images, labels, None, logits, threat), threat, noise(6))
    sizes = [threat.size(x - images) for x in asked]
    wrong = [net(x).argmax(1) != labels for x in asked]
    assert not sizes[0].any()
    torch.testing.assert_close(sizes[1], distance(norm) * 1.2, rtol=1e-3, atol=0)
    shrunk = grown = 0
    for step in range(1, 11):
        gamma = 0.001 + 0.199 * (1 + math.cos(math.pi * step / 12)) / 2
        # A step of 100 ends on the sphere wherever the cube lets it: the size is the radius.
        smaller = wrong[step] & (sizes[step] > 0)
        assert (sizes[step + 1][smaller] <= sizes[step][smaller] * (1 - gamma) * (1 + 1e-4)).all()
        larger = ~wrong[step] & torch.stack(wrong[:step]).any(0)
        assert (sizes[step + 1][larger] > sizes[step][larger]).all()
        shrunk, grown = shrunk + smaller.sum().item(), grown + larger.sum().item()
    assert shrunk and grown


def test_the_step_falls_along_a_cosine():
    # No class is ever left, so that the radius is the linearised distance, out of reach of these steps.
    images, labels = torch.full((1, 3, 4, 4), 0.5), torch.tensor([0])
    asked = []

    def logits(x, rows):
        asked.append(x.detach().clone())
        ramp = (x - 0.5).flatten(1)[:, :1]
        return torch.cat([torch.full_like(ramp, 1e3), ramp], 1)

    threat = Threat("l2", 1.0)
    attack(steps=8, step=0.01).run(Problem(images, labels, None, logits, threat), threat, noise(1))
    taken = torch.stack([(b - a).norm() for a, b in itertools.pairwise(asked)])
    expected = [0.01 * (0.01 + 0.99 * (1 + math.cos(math.pi * i / 8)) / 2) for i in range(7)]
    torch.testing.assert_close(taken, torch.tensor(expected), rtol=1e-3, atol=1e-7)


def test_it_goes_on_after_a_sample_is_broken():
    images, labels, net, distance = linear()
    wide = Threat("linf", 1.0)
    problem = Problem(images, labels, None, net, wide, watch=True)
    attack(steps=30).run(problem, wide, noise(6))
    assert not len(problem.open())
    assert (problem.tally.backwards == 30).all() and (problem.tally.forwards == 30).all()
    assert (problem.tally.nearest < distance("linf") * 1.1).all()


@pytest.mark.parametrize("norm", NORMS)
def test_cutting_is_the_threats_projection(norm):
    delta = 0.3 * torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    radius = torch.linspace(0.01, 20.0, 8)
    cut = shrink(delta, radius, norm)
    middle = torch.full_like(delta[:1], 0.5)
    for each, whole, r in zip(cut, delta, radius.tolist(), strict=True):
        threat = Threat(norm, min(r, 1.0) if norm == "linf" else r)
        torch.testing.assert_close(middle + each, threat.project((middle + whole), middle), atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_batch_mates_do_not_matter(norm):
    model = ToyModel(ToyConfig()).requires_grad_(False)
    split = ToyDataset(None).split("train")
    prepared = model.prepare(ToyDataset.classes)
    threat = Threat(norm, {"linf": 8 / 255, "l2": 1.0, "l1": 20.0}[norm])

    def run(rows):
        images, labels = split.images[rows], split.labels[rows]
        problem = Problem(images, labels, None, lambda x, r: model.predict(x, prepared), threat)
        return attack(steps=20).run(problem, threat, noise(12).of(rows))

    rows = torch.tensor([7, 2, 5])
    torch.testing.assert_close(run(rows), run(torch.arange(12))[rows], atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_that_are_no_numbers_are_borne(norm):
    images, labels = torch.full((2, 3, 4, 4), 0.5), torch.tensor([0, 0])

    def logits(x, rows):
        # Nothing, with a gradient of 0 / 0, is added to one sample's; the other's are sound.
        nothing = ((x - x.detach()).flatten(1).square().sum(1) + (rows == 0)).sqrt() * (rows == 1)
        return torch.stack([0.1 - nothing, (x - 0.5).flatten(1).sum(1)], 1)

    threat = Threat(norm, 1.0)
    problem = Problem(images, labels, None, logits, threat)
    found = attack(steps=5).run(problem, threat, noise(2))
    assert (logits(found, problem.rows).argmax(1) == torch.tensor([1, 0])).all() and found.isfinite().all()


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_of_zero_are_borne(norm):
    images, labels = torch.full((2, 3, 4, 4), 0.4), torch.tensor([0, 1])
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    threat = Threat(norm, 0.5)
    problem = Problem(images, labels, None, lambda x, rows: logits[rows] + 0 * x.sum(), threat)
    assert torch.equal(attack(steps=3).run(problem, threat, noise(2)), images)
