"""RayS.

Pinned here:
- on a linear model it comes close to each sample's distance to the boundary, though it is told no more than right or
  wrong: logits that are scrambled but for the answer give the same images;
- blocks of signs are flipped as published: all, halves, quarters, until single pixels, which then repeat;
- each sample is asked about once a query, `queries` times, and not once it is closed; no gradients;
- the image it ends with misleads at the distance it was found, also where queries end within a bisection, and is the
  clean one where nothing misled;
- a sample's result does not depend on its batch mates at all.
"""

import pytest
import torch
from advdistill_attacks import configs
from advdistill_attacks.rays import RayS, _Search

from advdistill import Noise, Problem, Threat


def linear(count=6, seed=3):
    weight = torch.randn(2, 48, generator=torch.Generator().manual_seed(2))
    images = 0.5 + 0.1 * torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))

    def net(x, rows=None):
        # Not a matrix product, which rounds differently for other batch sizes.
        return (weight * (x - 0.5).flatten(1).unsqueeze(1)).sum(2)

    logits = net(images)
    gap = (logits[:, 0] - logits[:, 1]).abs()
    return images, logits.argmax(1), net, gap / (weight[0] - weight[1]).abs().sum()


def noise(count):
    return Noise(0, "test", 0, torch.arange(count))


def attack(queries):
    return RayS(configs.RayS(queries=queries))


WIDE = Threat("linf", 1.0)


def test_the_distance_of_a_linear_model():
    images, labels, net, distance = linear()
    problem = Problem(images, labels, None, net, WIDE)
    found = attack(1500).run(problem, WIDE, noise(6))
    assert (net(found).argmax(1) != labels).all()
    size = WIDE.size(found - images)
    assert (size >= distance * 0.999).all() and (size < distance * 1.05 + 2 * 1e-3 / 48**0.5).all()
    # In evaluation the nearest mistake is written down, however small the ball.
    small = Problem(images, labels, None, net, Threat("linf", 1e-6), watch=True)
    attack(1500)(small, small.threat, noise(6))
    torch.testing.assert_close(small.tally.nearest, size, atol=1e-4, rtol=0)


def test_it_is_told_right_or_wrong_and_no_more():
    images, labels, net, _ = linear()

    def scrambled(x, rows):
        assert not torch.is_grad_enabled()
        answer = net(x).argmax(1)
        other = -7 - 100 * torch.rand(len(x), 2, generator=torch.Generator().manual_seed(len(x)))
        return other.scatter(1, answer.unsqueeze(1), other.amax(1, keepdim=True) + 3)

    plain, odd = (Problem(images, labels, None, logits, WIDE) for logits in (net, scrambled))
    found = attack(300).run(plain, WIDE, noise(6))
    assert torch.equal(found, attack(300).run(odd, WIDE, noise(6)))
    assert (plain.tally.forwards == 300).all() and not plain.tally.backwards.any()


def test_blocks_are_halved():
    search = _Search(torch.full((1, 6), 0.5))
    row, asked = torch.tensor([0]), []
    for _ in range(1 + 2 + 3 + 6 + 2):  # 6 pixels: blocks of 6, 3, 2 and 1, and 1 for ever
        at, direction = search.ask(row)
        asked.append((direction[0] < 0).nonzero().squeeze(1).tolist())
        search.answer(row, at, direction, torch.tensor([False]))
    halves = [[0, 1, 2], [3, 4, 5]]
    thirds = [[0, 1], [2, 3], [4, 5]]
    assert asked == [[0, 1, 2, 3, 4, 5], *halves, *thirds, *([i] for i in range(6)), [0], [1]]
    radius, _ = search.best()
    assert radius.item() == 0


def test_a_direction_is_kept_only_if_it_is_nearer():
    search = _Search(torch.full((1, 4), 0.5))
    row = torch.tensor([0])

    def go(until):
        """Answer as a mistake would that lies at `until` in whatever direction is asked; the direction."""
        at, direction = search.ask(row)
        search.answer(row, at, direction, at >= until)
        while search.bisecting:
            at, same = search.ask(row)
            assert torch.equal(same, direction)
            search.answer(row, at, same, at >= until)
        return direction

    first = go(0.25)
    assert search.radius.item() == pytest.approx(0.25, abs=1e-3) and torch.equal(search.sign, first)
    second = go(0.4)  # wrong further away: not worth a bisection
    assert torch.equal(search.sign, first) and (second != first).sum() == 2
    third = go(0.125)
    assert torch.equal(search.sign, third) and search.radius.item() == pytest.approx(0.125, abs=1e-3)


def test_a_mistake_in_the_corner_alone():
    images = torch.full((1, 3, 2, 2), 0.5)

    def logits(x, rows):
        black = (x == 0).flatten(1).all(1).float()
        return torch.stack([0.5 * torch.ones(len(x)), black], 1)

    found = attack(40).run(Problem(images, torch.tensor([0]), None, logits, WIDE), WIDE, noise(1))
    assert not found.any()


def test_queries_may_end_within_a_bisection():
    images, labels, net, _ = linear()
    for queries in range(1, 12):
        found = attack(queries).run(Problem(images, labels, None, net, WIDE), WIDE, noise(6))
        moved = WIDE.size(found - images) > 0
        assert (net(found[moved]).argmax(1) != labels[moved]).all()
    assert moved.all()


def test_closed_rows_cost_nothing():
    images, labels, net, distance = linear()
    threat = Threat("linf", 2.0 * distance.median().item())
    problem = Problem(images, labels, None, net, threat, watch=True)
    found = attack(600)(problem, threat, noise(6))
    broken = net(found).argmax(1) != labels
    assert broken.any() and (problem.tally.forwards[broken] < 600).all()
    assert threat.holds(found, images).all()
    unbroken = problem.open()
    assert (problem.tally.forwards[unbroken] >= 600).all()


def test_batch_mates_do_not_matter():
    images, labels, net, _ = linear()

    def run(rows):
        return attack(200).run(Problem(images[rows], labels[rows], None, net, WIDE), WIDE, noise(6).of(rows))

    rows = torch.tensor([4, 1])
    assert torch.equal(run(rows), run(torch.arange(6))[rows])
