"""Balls, draws and problems: what every attack stands on.

Pinned here:
- projection into linf, l2, l1 and l0 balls: inside afterwards, inside [0, 1], idempotent; what was inside stays;
- the l1 projection of a point within [0, 1] is the nearest point; l0 keeps the largest changes;
- `holds` tells inside from outside, [0, 1] included;
- Noise: a draw depends on seed, purpose, epoch, sample and number alone, whatever the batch; it is uniform (normal);
  it touches no global generator;
- Problem in evaluation: any wrong look inside the ball breaks its row for good, images outside do not, the first found
  is returned; in training all rows stay open and nothing is kept;
- an attack's result is projected, and refused where it is no image;
- gradients are per sample: batch size does not scale them; they are exact down to the smallest float32; of several
  draws they are the mean; a problem restated keeps what is not given, draws included.
"""

import pytest
import torch

from advdistill import Attack, Noise, Problem, RunError, Threat, UsageError

RADII = {"linf": (0.0, 0.03, 0.3), "l2": (0.0, 0.5, 3.0), "l1": (0.0, 2.0, 20.0), "l0": (0.0, 1.0, 10.0, 1000.0)}
CASES = [(norm, eps) for norm, radii in RADII.items() for eps in radii]


def some(count, spread, seed):
    """Clean images, a third of their pixels at 0 or 1, and wild ones around them."""
    generator = torch.Generator().manual_seed(seed)
    clean = (torch.rand(count, 3, 5, 5, generator=generator) * 1.5 - 0.25).clamp(0, 1)
    return clean, clean + spread * torch.randn(clean.shape, generator=generator)


@pytest.mark.parametrize(("norm", "eps"), CASES)
@pytest.mark.parametrize("spread", [0.01, 0.2, 5.0])
def test_projection(norm, eps, spread):
    threat = Threat(norm, eps)
    clean, wild = some(50, spread, seed=len(norm))
    projected = threat.project(wild, clean)
    assert threat.holds(projected, clean).all()
    assert projected.amin() >= 0 and projected.amax() <= 1
    torch.testing.assert_close(threat.project(projected, clean), projected, atol=1e-6, rtol=0)
    inside = threat.holds(wild, clean, tolerance=0)
    torch.testing.assert_close(projected[inside], wild[inside], atol=1e-6, rtol=0)
    assert torch.equal(threat.project(clean, clean), clean)


def test_l1_projection_is_the_nearest_point():
    clean = torch.full((20, 3, 4, 4), 0.5)
    generator = torch.Generator().manual_seed(1)
    images = clean + 0.4 * (2 * torch.rand(clean.shape, generator=generator) - 1)
    threat = Threat("l1", 3.0)
    nearest = threat.project(images, clean)
    torch.testing.assert_close(threat.size(nearest - clean), torch.full((20,), 3.0))
    gap = (nearest - images).flatten(1).norm(dim=1)
    for _ in range(50):
        other = threat.project(nearest + 0.05 * torch.randn(clean.shape, generator=generator), clean)
        assert ((other - images).flatten(1).norm(dim=1) >= gap - 1e-5).all()


def test_l0_keeps_the_largest_changes():
    clean = torch.full((1, 3, 2, 2), 0.5)
    images = clean.clone()
    images.view(-1)[[0, 3, 7]] = torch.tensor([0.6, 0.1, 0.9])
    kept = Threat("l0", 2).project(images, clean)
    assert (kept != clean).flatten().nonzero().flatten().tolist() == [3, 7]


@pytest.mark.parametrize("norm", RADII)
def test_holds_tells_outside(norm):
    clean = torch.full((3, 3, 4, 4), 0.5)
    images = clean.clone()
    images[1].view(-1)[:6] += 0.4  # linf 0.4, l2 0.98, l1 2.4, l0 6
    images[2].view(-1)[0] = 1.001
    threat = Threat(norm, {"linf": 0.3, "l2": 0.9, "l1": 2.0, "l0": 5}[norm])
    assert threat.holds(images, clean).tolist() == [True, False, False]
    everything = Threat(norm, {"linf": 1.0}.get(norm, 1e3))
    assert everything.holds(images, clean).tolist() == [True, True, False]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8), ("linf", -0.1), ("l2", float("nan")), ("l3", 1.0)])
def test_impossible_threats(norm, eps):
    with pytest.raises(UsageError):
        Threat(norm, eps)


def draw(samples, seed=0, purpose="train", epoch=0, number=0):
    return Noise(seed, purpose, epoch, torch.tensor(samples)).uniform((3, 4), number)


def test_draws_belong_to_samples():
    whole = draw([5, 9, 2, 7])
    assert torch.equal(whole[[2, 0]], draw([2, 5]))
    noise = Noise(0, "train", 0, torch.tensor([5, 9, 2, 7]))
    rows = torch.tensor([3, 1])
    assert torch.equal(noise.uniform((3, 4), rows=rows), whole[rows])
    assert torch.equal(noise.of(rows).uniform((3, 4)), whole[rows])
    assert torch.equal(noise.normal((2,), 3, rows), noise.normal((2,), 3)[rows])
    assert torch.equal(whole, draw([5, 9, 2, 7]))


@pytest.mark.parametrize("change", [{"seed": 1}, {"purpose": "evaluate"}, {"epoch": 1}, {"number": 1}])
def test_draws_differ_by_key(change):
    assert not (draw([3], **change) == draw([3])).any()


def test_neighbouring_samples_and_draws_are_independent():
    bits = torch.cat([draw(list(range(500)), number=n).flatten(1) for n in range(4)], 1)  # (500, 48)
    assert torch.corrcoef(bits.T).fill_diagonal_(0).abs().max() < 0.2
    assert torch.corrcoef(bits[:60]).fill_diagonal_(0).abs().max() < 0.7
    assert len(bits.unique()) > 0.99 * bits.numel()


def test_draws_are_uniform_and_normal():
    noise = Noise(3, "test", 0, torch.arange(400))
    values = noise.uniform((300,))
    assert values.amin() >= 0 and values.amax() < 1 and values.dtype == torch.float32
    counts = torch.histc(values, 100, 0, 1)
    expected = values.numel() / 100
    assert ((counts - expected) ** 2 / expected).sum() < 160  # chi-square, 99 degrees of freedom: p = 1e-4 at 161
    normal = noise.normal((300,))
    assert abs(normal.mean()) < 0.02 and abs(normal.std() - 1) < 0.02
    assert abs((normal.abs() < 1).float().mean() - 0.6827) < 0.01 and torch.isfinite(normal).all()


def test_draws_leave_the_global_generator():
    before = torch.get_rng_state()
    draw([1, 2])
    Noise(0, "x", 0, torch.arange(3)).normal((2,))
    assert torch.equal(before, torch.get_rng_state())


def brightness(watch, eps=0.1, count=3):
    """A model that says 1 where the mean pixel exceeds 0.55; all labels are 0."""
    images = torch.full((count, 3, 2, 2), 0.5)

    def logits(x, rows):
        mean = x.flatten(1).mean(1)
        return torch.stack([0.55 - mean, mean - 0.55], 1)

    threat = Threat("linf", eps)
    return Problem(images, torch.zeros(count, dtype=torch.long), None, logits, threat, watch)


def test_any_wrong_look_in_the_ball_breaks_a_row_for_good():
    of = brightness(watch=True)
    of.predict(of.images[:1] + 0.08, torch.tensor([1]))
    assert of.open().tolist() == [0, 2]
    of.predict(of.images[:1] + 0.09, torch.tensor([1]))
    result = of.outcome(of.images.clone())
    assert torch.equal(result[1], of.images[1] + 0.08)  # the first that was found
    assert torch.equal(result[[0, 2]], of.images[[0, 2]])


def test_looks_outside_the_ball_do_not_count():
    of = brightness(watch=True)
    of.predict(of.images + 0.2, of.rows)
    of.predict(torch.full_like(of.images, 1.01), of.rows)
    assert of.open().tolist() == [0, 1, 2]


def test_the_objective_and_the_last_image_are_looks_too():
    of = brightness(watch=True)
    of.gradient(of.images[:1] + 0.08, torch.tensor([0]))
    assert of.open().tolist() == [1, 2]
    last = of.images + torch.tensor([0.0, 0.5, 0.01]).view(3, 1, 1, 1)
    result = of.outcome(last)
    assert of.open().tolist() == [2]
    torch.testing.assert_close(result[1], of.images[1] + 0.1)


def test_in_training_all_rows_stay_open():
    of = brightness(watch=False)
    of.predict(of.images + 0.08, of.rows)
    assert of.open().tolist() == [0, 1, 2]
    torch.testing.assert_close(of.outcome(of.images - 0.05), of.images - 0.05)


def test_gradients_are_per_sample():
    many, one = brightness(watch=False, count=5), brightness(watch=False, count=1)
    gradient, values = many.gradient(many.images, many.rows)
    alone, value = one.gradient(one.images, one.rows)
    torch.testing.assert_close(gradient[:1], alone)
    torch.testing.assert_close(values[:1], value)
    assert values.shape == (5,) and not values.requires_grad and not gradient.requires_grad


@pytest.mark.parametrize("size", [1.0, 1e-7, 1e-30])
def test_gradients_are_exact_however_small(size):
    of = brightness(watch=False)
    slope = torch.linspace(-1, 1, 12).view(3, 2, 2) + 1 / 3
    tiny = of.restated(lambda images, rows: size * (images * slope).flatten(1).sum(1))
    gradient, _ = tiny.gradient(of.images, of.rows)
    torch.testing.assert_close(gradient, size * slope.expand(3, -1, -1, -1), rtol=1e-6, atol=0)
    assert not of.tally.blank.any()


def test_several_draws_are_averaged():
    of, drawn = brightness(watch=False), iter([1.0, 2.0, 6.0, 0.0])
    random = of.restated(lambda images, rows: next(drawn) * images.flatten(1).sum(1), draws=4)
    gradient, values = random.gradient(of.images, of.rows)
    torch.testing.assert_close(gradient, torch.full_like(of.images, 9 / 4))
    torch.testing.assert_close(values, torch.full((3,), 9 / 4 * 6))
    assert of.tally.backwards.tolist() == [4, 4, 4]


def test_what_is_not_restated_stays():
    of = brightness(watch=True)
    turned = of.restated(logits=lambda images, rows: of.predict(images, rows).flip(1))
    own = turned.restated(lambda images, rows: 7 * turned.predict(images, rows)[:, 0], draws=3)
    again = own.restated(lambda images, rows: own.objective(images, rows) + 1)
    gradient, values = again.gradient(of.images, of.rows)
    torch.testing.assert_close(values, torch.full((3,), 7 * -0.05 + 1))
    torch.testing.assert_close(gradient, torch.full_like(of.images, 7 / 12))
    assert of.tally.backwards.tolist() == [3, 3, 3], "an attack's own loss does not make it forget to draw"
    assert not len(of.open()), "what breaks for one breaks for all"
    kept = own.restated(logits=lambda images, rows: images.flatten(1)[:, :2])
    assert torch.equal(kept.objective(of.images, of.rows), own.objective(of.images, of.rows))
    assert torch.equal(kept.predict(of.images, of.rows), torch.full((3, 2), 0.5))


class Says(Attack):
    def run(self, problem, threat, noise):
        return self.config(problem.images)


def test_what_an_attack_returns_is_not_trusted():
    of = brightness(watch=False)
    noise = Noise(0, "x", 0, torch.arange(3))
    assert of.threat.holds(Says(lambda x: x + 7)(of, of.threat, noise), of.images).all()
    for nonsense in (lambda x: x[:1], lambda x: x * torch.nan, lambda x: x / 0):
        with pytest.raises(RunError):
            Says(nonsense)(of, of.threat, noise)


def test_the_module_view_has_no_mode_and_watches():
    of = brightness(watch=True)
    view = of.module()
    assert not view.training and view.train() is view and not view.training
    assert next(view.parameters()).device == of.images.device
    view(of.images + torch.tensor([0.0, 0.08, 0.0]).view(3, 1, 1, 1))
    assert of.open().tolist() == [0, 2]
    assert view(of.images[:2]).shape == (2, 2)
