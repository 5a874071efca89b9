"""apgd and apgd-t.

Pinned here:
- for linf, l2 and l1 the attack does what one sample's plain loop does that is written here from the papers: steps,
  momentum, checkpoints, halvings, returns to the best iterate, l1's sparse steps and shrinking balls;
- the projection onto the l1 ball and the box is the nearest point of both;
- it costs what it says: N + 1 forward and N backward passes a start, one forward for targets, one of each for each
  candidate of malt; rows that are closed cost nothing;
- a sample's result does not depend on its batch mates, and more restarts never lead lower;
- it climbs at least as high as pgd with as many passes, on a model that was trained to withstand;
- targets are the largest other logits, or by malt the nearest boundaries, however few classes there are; towards the
  target is up; too few classes for dlr are an error that says what to do, and are known beforehand;
- radius 0, rows broken before the start and all rows closing on the way do no harm.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from advdistill_attacks import configs, targets
from advdistill_attacks.apgd import APGD, APGDTargeted, onto_l1_and_box
from advdistill_attacks.pgd import PGD

from advdistill import Noise, Problem, Threat, UsageError, cross_entropy, load
from advdistill.testing import ToyConfig, ToyDataset, ToyModel

SHAPE = (3, 5, 4)
SIZE = math.prod(SHAPE)
RADII = {"linf": 0.05, "l2": 0.4, "l1": 2.0}


def net(classes=6, seed=0, scale=1.0, dtype=torch.float64):
    """A small model with bends in it, for images of SHAPE."""
    generator = torch.Generator().manual_seed(seed)
    inner, outer = (torch.randn(*size, generator=generator, dtype=dtype) for size in ((SIZE, 24), (24, classes)))
    return lambda x: scale * (torch.sin(3 * (x - 0.5).flatten(1) @ inner / 4) @ outer)


def scene(model, threat, count=5, watch=False, dtype=torch.float64):
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=dtype)
    images[0] = images[0].round()  # corners of the box
    labels = model(images).argmax(1)
    return Problem(images, labels, None, lambda x, rows: model(x), threat, watch)


def noise(count=5, seed=0):
    return Noise(seed, "test", 0, torch.arange(count))


def ball(norm):
    return Threat(norm, RADII[norm])


# --- the plain loop ----------------------------------------------------------------------------------------------


def nearest(delta, clean, radius):
    """Projection onto the l1 ball and the box by bisection."""
    room = torch.where(delta > 0, 1 - clean, clean)

    def cut(by):
        return delta.sign() * torch.minimum((delta.abs() - by).clamp_min(0), room)

    low, high = 0.0, delta.abs().max().item()
    if cut(0.0).abs().sum() <= radius:
        return cut(0.0)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if cut(middle).abs().sum() > radius else (low, middle)
    return cut(high)


def slope(loss, x):
    x = x.clone().requires_grad_()
    value = loss(x)
    return torch.autograd.grad(value, x)[0], value.item()


def plain(loss, clean, start, norm, eps, steps, dense=True):
    """Algorithm 1 of arXiv 2003.01690, or for l1 of 2103.01208, on one image."""

    def onto(z):
        if norm == "linf":
            return torch.max(torch.min(z, clean + eps), clean - eps).clamp(0, 1)
        return (clean + (z - clean) * min(1.0, eps / max((z - clean).norm().item(), 1e-12))).clamp(0, 1)

    moved = SIZE if dense else int((start != clean).sum())
    share = 0.2 if dense else moved / SIZE / 1.5
    x = last = start
    g, value = slope(loss, x)
    best, best_g, best_value = x, g, value
    history, halved, marked = [value], True, value
    step = (1 if norm == "l1" else 2) * eps
    if norm == "l1":
        period = max(int(0.04 * steps), 1)
        checks = set(range(period, steps, period))
    else:
        checks, length, at = set(), max(int(0.22 * steps), 1), 0
        while at < steps:
            at += length
            checks.add(at)
            length = max(length - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    previous_check = 0
    for k in range(1, steps + 1):
        if norm == "l1":
            place = int(min(max((1 - share) * SIZE, 0), SIZE - 1))
            least = g.abs().flatten().sort().values[place]
            s = torch.where(g.abs() >= least, g.sign(), torch.zeros_like(g))
            new = clean + nearest(x + step * s / s.abs().sum() - clean, clean, eps)
        else:
            z = onto(x + step * (g.sign() if norm == "linf" else g / g.norm()))
            new = z if k == 1 else onto(x + 0.75 * (z - x) + 0.25 * (x - last))
        x, last = new, x
        g, value = slope(loss, x)
        history.append(value)
        if value > best_value:
            best, best_g, best_value = x, g, value
        if k not in checks or k == steps:
            continue
        if norm == "l1":
            now = int((best != clean).sum())
            step = eps if now / moved < 0.95 else step / 1.5
            step = min(max(step, eps / 10), eps)
            if now / moved < 0.95:
                x, g = best, best_g
            share, moved = now / SIZE / 1.5, now
            continue
        rises = sum(history[i + 1] > history[i] for i in range(previous_check, k))
        halve = rises <= 0.75 * (k - previous_check) or (not halved and marked == best_value)
        if halve:
            step /= 2
            x, g = best, best_g  # what rises is counted by stays the last value, as in the released code
        halved, marked, previous_check = halve, best_value, k
    return best, best_value


def plain_restart(loss, clean, i, draw, norm, eps, steps, wide=True):
    if norm == "linf":
        t = 2 * noise().uniform(SHAPE, draw)[i].double() - 1
        return plain(loss, clean, (clean + eps * t / t.abs().max()).clamp(0, 1), norm, eps, steps)
    t = noise().normal(SHAPE, draw)[i].double()
    if norm == "l2":
        return plain(loss, clean, (clean + eps * t / t.norm()).clamp(0, 1), norm, eps, steps)
    if not wide:
        return plain(loss, clean, clean + nearest(t, clean, eps), norm, eps, steps)
    third = math.ceil(0.3 * steps)
    x = clean + nearest(t, clean, 3 * eps)
    for radius, length in ((3 * eps, third), (2 * eps, third), (eps, steps - 2 * third)):
        x = clean + nearest(x - clean, clean, radius)
        x, value = plain(loss, clean, x, norm, radius, length, dense=False)
    return x, value


@pytest.mark.parametrize(("norm", "wide"), [("linf", True), ("l2", True), ("l1", False), ("l1", True)])
@pytest.mark.parametrize("steps", [3, 60])
def test_it_is_the_plain_loop(norm, wide, steps):
    model, threat = net(), ball(norm)
    problem = scene(model, threat)
    found = APGD(configs.APGD(steps=steps, restarts=2, wide=wide)).run(problem, threat, noise())
    for i in range(len(problem.images)):
        clean, label = problem.images[i], problem.labels[i]

        def loss(x, label=label):
            return F.cross_entropy(model(x.unsqueeze(0)), label.unsqueeze(0))

        ends = [plain_restart(loss, clean, i, draw, norm, threat.eps, steps, wide) for draw in (0, 1)]
        expected = max(ends, key=lambda end: end[1])[0]
        torch.testing.assert_close(found[i], expected, atol=1e-7, rtol=0)  # the noise is float32


@pytest.mark.parametrize("values", ["rising below the start's", "three in four", "wandering", "falling", "level"])
def test_whatever_the_objective_says(values):
    """Objectives by the clock with random slopes: the same images are asked about, one after the other."""
    steps, threat = 60, ball("linf")
    generator = torch.Generator().manual_seed(4)
    slopes = torch.randn(steps + 1, *SHAPE, generator=generator, dtype=torch.float64)
    told = {
        "rising below the start's": torch.arange(steps + 1).double() - 100.0 * (torch.arange(steps + 1) > 0),
        "three in four": torch.arange(steps + 1).double() - 3.0 * (torch.arange(steps + 1) % 4 == 0),
        "wandering": torch.randn(steps + 1, generator=generator).cumsum(0).double(),
        "falling": -torch.arange(steps + 1).double(),
        "level": torch.zeros(steps + 1).double(),
    }[values]

    def clock():
        asked = []

        def objective(x, rows=None):
            k = len(asked)
            asked.append(x.detach().view(SHAPE).clone())
            return told[k] + (slopes[k] * (x - x.detach())).sum().view(() if rows is None else (1,))

        return asked, objective

    problem = scene(net(), threat, count=1)
    ours, objective = clock()
    APGD(configs.APGD(steps=steps)).run(problem.restated(objective), threat, noise(1))
    theirs, objective = clock()
    plain_restart(objective, problem.images[0], 0, 0, "linf", threat.eps, steps)
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), atol=1e-7, rtol=0)


def test_the_plain_loop_halves_and_returns():
    """So that the comparison compares something."""
    model, threat = net(), ball("linf")
    problem = scene(model, threat)
    full = APGD(configs.APGD(steps=60)).run(problem, threat, noise())
    start = APGD(configs.APGD(steps=1)).run(problem, threat, noise())
    fixed = PGD(configs.PGD(steps=60, step=2 * threat.eps)).run(problem, threat, noise())
    values = [cross_entropy(model(x), problem.labels) for x in (start, fixed, full)]
    assert (values[2] > values[0]).all() and (values[2] >= values[1] - 1e-9).all() and (values[2] > values[1]).any()


def test_targets_one_by_one_are_the_plain_loop():
    model, threat = net(), ball("linf")
    problem = scene(model, threat)
    found = APGDTargeted(configs.APGDTargeted(steps=30, classes=3)).run(problem, threat, noise())
    for i in range(len(problem.images)):
        clean, label = problem.images[i], problem.labels[i]
        order = [c for c in model(clean.unsqueeze(0))[0].argsort(descending=True).tolist() if c != label]
        ends = []
        for draw, target in enumerate(order[:3]):

            def loss(x, label=label, target=target):
                z = model(x.unsqueeze(0))[0]
                top = z.sort(descending=True).values
                return -(z[label] - z[target]) / (top[0] - 0.5 * (top[2] + top[3]) + 1e-12)

            ends.append(plain_restart(loss, clean, i, draw, "linf", threat.eps, 30))
        torch.testing.assert_close(found[i], max(ends, key=lambda end: end[1])[0], atol=1e-9, rtol=0)


# --- balls -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.0, 0.1, 2.0, 30.0])
def test_projection_onto_l1_ball_and_box(radius):
    generator = torch.Generator().manual_seed(2)
    clean = torch.rand(20, *SHAPE, generator=generator, dtype=torch.float64)
    clean[:5] = clean[:5].round()
    delta = torch.randn(20, *SHAPE, generator=generator, dtype=torch.float64)
    delta[3] = 0
    found = onto_l1_and_box(delta, clean, radius)
    assert (found.flatten(1).abs().sum(1) <= radius + 1e-9).all()
    assert ((clean + found >= -1e-12) & (clean + found <= 1 + 1e-12)).all()
    expected = torch.stack([nearest(*pair, radius) for pair in zip(delta, clean, strict=True)])
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    # No other point of both sets lies nearer.
    others = [Threat("l1", radius).project(clean + s * delta + 0.1 * delta.roll(1, 0), clean) for s in (0.5, 1, 2)]
    for other in others:
        assert ((found - delta).flatten(1).norm(dim=1) <= (other - clean - delta).flatten(1).norm(dim=1) + 1e-9).all()
    torch.testing.assert_close(onto_l1_and_box(found, clean, radius), found, atol=1e-9, rtol=0)


@pytest.mark.parametrize("norm", RADII)
def test_stays_in_the_ball_and_uses_it(norm):
    model, threat = net(dtype=torch.float32), ball(norm)
    problem = scene(model, threat, dtype=torch.float32)
    for attack in (APGD(configs.APGD(steps=20)), APGDTargeted(configs.APGDTargeted(steps=20, classes=2))):
        found = attack.run(problem, threat, noise())
        assert threat.holds(found, problem.images).all()
        assert (threat.size(found - problem.images) > 0.8 * threat.eps).all()


def test_starts_lie_on_the_surface_and_differ():
    threat = Threat("linf", 0.1)
    grey = torch.full((4, *SHAPE), 0.5)
    seen = []

    def logits(x, rows):
        seen.append(x.detach().clone())
        return torch.stack([x.flatten(1).mean(1), 1 - x.flatten(1).mean(1), x[:, 0, 0, 0]], 1)

    APGD(configs.APGD(steps=1, restarts=2)).run(
        Problem(grey, torch.zeros(4).long(), None, logits, threat), threat, noise(4)
    )
    starts = torch.cat([seen[0], seen[2]]) - 0.5
    torch.testing.assert_close(threat.size(starts), torch.full((8,), 0.1))
    assert (torch.cdist(starts.flatten(1), starts.flatten(1)) + torch.eye(8) > 0.05).all()


# --- what it costs -----------------------------------------------------------------------------------------------


def spent(attack, threat, watch=False, classes=6):
    # A label that cannot be dethroned: rows stay open.
    problem = scene(net(classes, scale=1e-3), threat, watch=watch)
    stable = problem.restated(logits=lambda x, r: net(classes, scale=1e-3)(x) + F.one_hot(problem.labels[r], classes))
    attack.run(stable, threat, noise())
    return set(problem.tally.forwards.tolist()), set(problem.tally.backwards.tolist())


@pytest.mark.parametrize("watch", [False, True])
def test_passes(watch):
    linf, l1 = ball("linf"), ball("l1")
    assert spent(APGD(configs.APGD()), linf, watch) == ({101}, {100})
    assert spent(APGD(configs.APGD(steps=10, restarts=3)), linf, watch) == ({33}, {30})
    assert spent(APGD(configs.APGD(steps=10, wide=False)), l1, watch) == ({5 * 11}, {5 * 10})
    assert spent(APGD(configs.APGD(steps=10)), l1, watch) == ({5 * 13}, {5 * 10})
    config = configs.APGDTargeted
    assert spent(APGDTargeted(config(steps=10)), linf, watch) == ({1 + 5 * 11}, {5 * 10})  # five other classes
    assert spent(APGDTargeted(config(steps=10)), linf, watch, classes=12) == ({1 + 9 * 11}, {9 * 10})
    assert spent(APGDTargeted(config(steps=10)), l1, watch, classes=12) == ({1 + 5 * 13}, {5 * 10})
    assert spent(APGDTargeted(config(steps=4, targets="malt", classes=2)), linf, watch, classes=12) == (
        {1 + 11 + 2 * 5},
        {11 + 2 * 4},
    )


def test_closed_rows_cost_nothing():
    threat, model = Threat("linf", 0.02), net()
    asked = []

    def logits(x, rows):
        asked.append(set(rows.tolist()))
        return model(x)

    problem = scene(model, threat, count=12, watch=True).restated(logits=logits)
    problem.labels[3] = (problem.labels[3] + 1) % 6  # wrong before the start
    APGD(configs.APGD(steps=40)).run(problem, threat, noise(12))
    left = len(problem.open())
    assert 0 < left < 11 and len(asked) == 41
    assert 3 in asked[0] and 3 not in set.union(*asked[1:])
    assert all(later <= earlier for earlier, later in itertools.pairwise(asked))
    assert problem.tally.forwards.sum() == sum(map(len, asked))
    asked.clear()
    APGDTargeted(configs.APGDTargeted(steps=10)).run(problem, threat, noise(12))
    assert len(asked[0]) == left


def test_all_rows_may_close():
    threat, model = Threat("linf", 0.5), net()
    for attack in (APGD(configs.APGD(restarts=3)), APGDTargeted(configs.APGDTargeted())):
        problem = scene(model, threat, watch=True)
        found = attack(problem, threat, noise())
        assert not len(problem.open()) and (model(found).argmax(1) != problem.labels).all()
        assert problem.tally.forwards.max() < 40
        still = attack(problem, threat, noise())  # nothing is left to do
        assert torch.equal(found, still)


@pytest.mark.parametrize("norm", RADII)
def test_radius_zero(norm):
    nothing = Threat(norm, 0.0)
    problem = scene(net(), nothing)
    for attack in (APGD(configs.APGD(steps=5)), APGDTargeted(configs.APGDTargeted(steps=5))):
        assert torch.equal(attack(problem, nothing, noise()), problem.images)


# --- what it gains -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("targeted", [False, True])
def test_batch_mates_do_not_matter(norm, targeted):
    threat = ball(norm)
    attack = (
        APGDTargeted(configs.APGDTargeted(steps=30, classes=2, targets="malt"))
        if targeted
        else APGD(configs.APGD(steps=30, restarts=1))
    )
    everybody = scene(net(), threat, count=9)
    together = attack.run(everybody, threat, noise(9))
    rows = torch.tensor([7, 2])
    few = Problem(everybody.images[rows], everybody.labels[rows], None, lambda x, r: net()(x), threat)
    alone = attack.run(few, threat, noise(9).of(rows))
    torch.testing.assert_close(alone, together[rows], atol=1e-8, rtol=0)


def test_more_restarts_never_lead_lower():
    threat, model = ball("linf"), net()
    problem = scene(model, threat, count=9)
    values = [
        cross_entropy(model(APGD(configs.APGD(steps=8, restarts=n)).run(problem, threat, noise(9))), problem.labels)
        for n in (1, 2, 6)
    ]
    assert (values[1] >= values[0]).all() and (values[2] >= values[1]).all() and (values[2] > values[0]).any()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 16 / 255), ("l2", 1.5)])
def test_climbs_at_least_as_high_as_pgd(robust, norm, eps):
    images, labels, model = robust
    threat = Threat(norm, eps)
    problem = Problem(images, labels, None, lambda x, rows: model(x), threat)
    ours = APGD(configs.APGD(steps=15)).run(problem, threat, noise(len(images)))
    pgd = PGD(configs.PGD(steps=15)).run(problem, threat, noise(len(images)))
    with torch.no_grad():
        clean, low, high = (cross_entropy(model(x), labels).mean() for x in (images, pgd, ours))
    assert high >= low > clean + 0.1


@pytest.fixture(scope="module")
def robust():
    """24 digits that the demo's robust model is right about."""
    from advdistill_demo.configs import Digits as Config
    from advdistill_demo.digits import Digits

    model = load("advdistill_demo:robust.safetensors")
    split = Digits(Config()).split("test")
    images = torch.stack([torch.as_tensor(split.load(i)) for i in range(30)]).float()
    images = images / 255 if images.max() > 1 else images
    labels = split.labels[:30]
    with torch.no_grad():
        good = (model(images).argmax(1) == labels).nonzero().squeeze(1)[:24]
    return images[good], labels[good], model


# --- targets -----------------------------------------------------------------------------------------------------


def linear(weights, bias):
    w, b = (torch.tensor(values, dtype=torch.float64) for values in (weights, bias))
    return lambda x: x.flatten(1)[:, : w.shape[1]] @ w.T + b


def test_top_targets_are_the_largest_other_logits():
    model = linear([[0.0], [0.0], [0.0], [0.0]], [1.0, 3.0, 2.0, -4.0])
    problem = scene(model, ball("linf"), count=2)
    problem.labels[:] = torch.tensor([1, 0])
    assert targets.top(problem, problem.rows, 2).tolist() == [[2, 0], [1, 2]]
    assert targets.top(problem, problem.rows, 9).tolist() == [[2, 0, 3], [1, 2, 3]]


@pytest.mark.parametrize(
    ("norm", "expected"),
    # Behind the label by 1, 2.2, 3; slopes against it (3, -4), (10, 0), (8, 8). Distances in the threat's norm: in linf
    # over 7, 10, 16: 0.14, 0.22, 0.19; in l2 over 5, 10, 11.3: 0.20, 0.22, 0.27; in l1 over 4, 10, 8: 0.25, 0.22, 0.38.
    [("linf", [1, 3, 2]), ("l2", [1, 2, 3]), ("l1", [2, 1, 3])],
)
def test_malt_orders_by_distance(norm, expected):
    weights = [[0.0, 0.0], [3.0, -4.0], [10.0, 0.0], [8.0, 8.0]]
    at = torch.tensor([0.25, 0.5], dtype=torch.float64)
    bias = (-torch.tensor(weights, dtype=torch.float64) @ at - torch.tensor([0.0, 1.0, 2.2, 3.0])).tolist()
    threat = ball(norm)
    images = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    images.view(1, -1)[0, :2] = at
    model = linear(weights, bias)
    problem = Problem(images, torch.tensor([0]), None, lambda x, rows: model(x), threat)
    assert targets.malt(problem, threat, problem.rows, 3).tolist() == [expected]
    assert targets.malt(problem, threat, problem.rows, 1).tolist() == [expected[:1]]
    assert targets.top(problem, problem.rows, 3).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("loss", ["dlr", "cw", "ce"])
def test_the_target_gains(loss):
    model, threat = net(), ball("linf")
    problem = scene(model, threat)
    aim = targets.top(problem, problem.rows, 1).squeeze(1)
    found = APGDTargeted(configs.APGDTargeted(steps=20, classes=1, loss=loss)).run(problem, threat, noise())

    def lead(x):
        z = model(x)
        return (z.gather(1, aim[:, None]) - z.gather(1, problem.labels[:, None])).squeeze(1)

    assert (lead(found) > lead(problem.images) + 0.1).all()


def test_few_classes():
    threat = ball("linf")
    with pytest.raises(UsageError, match="needs 4 classes, and there are 3") as error:
        APGDTargeted(configs.APGDTargeted()).run(scene(net(3), threat), threat, noise())
    assert "loss: cw" in error.value.hint
    with pytest.raises(UsageError, match="dlr needs 3 classes"):
        APGD(configs.APGD(loss="dlr")).run(scene(net(2), threat), threat, noise())
    for loss in ("cw", "ce"):
        problem = scene(net(2), threat)
        before = cross_entropy(net(2)(problem.images), problem.labels)
        found = APGDTargeted(configs.APGDTargeted(loss=loss, steps=10)).run(problem, threat, noise())
        assert (cross_entropy(net(2)(found), problem.labels) > before).all()
    assert set(scene(net(2), threat).labels.tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("attack", "classes"),
    [
        (APGD(configs.APGD()), 2),
        (APGD(configs.APGD(loss="dlr")), 3),
        (PGD(configs.PGD(loss="dlr")), 3),
        (APGDTargeted(configs.APGDTargeted()), 4),
        (APGDTargeted(configs.APGDTargeted(loss="cw")), 2),
    ],
)
def test_what_a_loss_needs_is_known_beforehand(attack, classes):
    assert attack.fewest_classes == classes
    threat = ball("linf")
    attack.run(scene(net(classes), threat, count=1), threat, noise(1))
    if classes > 2:
        with pytest.raises(UsageError, match=f"needs {classes} classes"):
            attack.run(scene(net(classes - 1), threat, count=1), threat, noise(1))


def test_toy_model_breaks():
    model = ToyModel(ToyConfig()).requires_grad_(False)
    split = ToyDataset(None).split("train")
    prepared = model.prepare(ToyDataset.classes)
    threat = Threat("linf", 8 / 255)
    for loss in ("", "ce", "sice", "cw", "dlr", "margin"):
        problem = Problem(
            split.images[:8], split.labels[:8], None, lambda x, rows: model.predict(x, prepared), threat, watch=True
        )
        APGD(configs.APGD(steps=10, loss=loss))(problem, threat, noise(8))
        assert not len(problem.open()), loss
