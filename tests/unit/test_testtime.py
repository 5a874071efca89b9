"""Defences at test time, as models to be attacked.

Pinned here:
- ttc: an image that noise moves little is counterattacked, any other gets the noise alone; the counterattack stays in
  its ball and in [0, 1]; steps and weights are those of a plain rendering of the paper;
- clipure-cos: every step raises the cosine with the blank sentence, norms stay; `released` takes one norm over the
  batch, so that batch mates matter, and says so; its gradients pass the steps by;
- r-tpt: its answer for one image equals a plain rendering with torch's AdamW on a clip-prompts student, whose prompts
  come out as they went in; a model without learned text prompts is refused;
- draws are fixed, or the image's own, or fresh: declared accordingly, and reproducible where they say so;
- what is defended is a checkpoint or a CLIP by name; r-tpt gives such a CLIP text prompts to tune, and no others;
- exposing a model leaves its answers and changes its gradients; what it does not expose is a UsageError;
- on digits the attack through what is exposed breaks more than the naive one: ttc unrolled beside plain, the released
  clipure-cos beside its own gradients, r-tpt attacked as a whole beside the public protocol, which attacks CLIP alone.
"""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from advdistill_attacks.configs import PGD as PGDConfig
from advdistill_attacks.pgd import PGD
from advdistill_demo.configs import Digits as DigitsConfig
from advdistill_demo.digits import Digits
from advdistill_testtime import configs
from advdistill_testtime.clipure import ClipureCos
from advdistill_testtime.defence import draws
from advdistill_testtime.rtpt import RTPT
from advdistill_testtime.ttc import TTC
from pydantic import ValidationError

from advdistill import Noise, Problem, Threat, UsageError, right

PLAIN = "advdistill_demo:small.safetensors"
PROMPTS = "advdistill_demo:clean_prompts.safetensors"
VIEWS = {"views": 8, "flip": False, "min_area": 0.5, "neighbours": 3}
DATA = Digits(DigitsConfig())


def digits(count):
    split = DATA.split("test")
    return torch.stack([split.load(index) for index in range(count)]), split.labels[:count]


def ttc(**settings):
    return TTC.from_config(configs.TTC(checkpoint=PLAIN, **settings))


def clipure(**settings):
    return ClipureCos.from_config(configs.ClipureCos(checkpoint=PLAIN, **settings))


def rtpt(**settings):
    return RTPT.from_config(configs.RTPT(checkpoint=PROMPTS, **{**VIEWS, **settings}))


def gradient(model, images, how=""):
    pixels = images.clone().requires_grad_()
    with model.exposed(how) if how else contextlib.nullcontext():
        logits = model.predict(pixels, model.prepare(DATA.classes))
        (found,) = torch.autograd.grad(logits[:, 3].sum(), pixels)
    return found, logits.detach()


def held(model, count, eps, how="", *, attacked=None, steps=10):
    """How many digits of `count` stand: PGD on `attacked` (default: the model itself), judged by the model."""
    images, labels = digits(count)
    judge = model.prepare(DATA.classes)
    target = attacked or model
    prepared, threat = target.prepare(DATA.classes), Threat("linf", eps)
    with target.exposed(how) if how else contextlib.nullcontext():
        problem = Problem(
            images, labels, None, lambda x, rows: target.predict(x, prepared), threat, watch=attacked is None
        )
        found = PGD(PGDConfig(steps=steps))(problem, threat, Noise(0, "test", 0, torch.arange(count)))
    with torch.no_grad():
        return int((right(model.predict(found, judge), labels) & right(model.predict(images, judge), labels)).sum())


# --- ttc ---------------------------------------------------------------------------------------------------------


def test_ttc_is_the_papers():
    images, _ = digits(6)
    model = ttc(tau=0.011, steps=3)
    inner, eps, step = model.inner, 4 / 255, 1 / 255
    noise = (2 * draws(model.config, images).uniform((3, 32, 32)) - 1) * eps
    moved = model.counterattacked(images)
    ratios = []
    for row in range(len(images)):
        x = images[row : row + 1]
        delta = noise[row : row + 1].clamp(-x, 1 - x)
        here = inner.features(x)
        ratios.append(((inner.features(x + delta) - here).norm() / here.norm()).item())
        if ratios[-1] >= 0.011:
            wanted = x + delta
        else:
            kept = [delta]
            for _ in range(3):
                leaf = delta.clone().requires_grad_()
                ((inner.features(x + leaf) - here) ** 2).sum().backward()
                delta = (delta + step * leaf.grad.sign()).clamp(-eps, eps).clamp(-x, 1 - x)
                kept.append(delta)
            weights = torch.tensor([0.0, 2.0, 4.0, 6.0]).exp()
            wanted = x + sum(w * d for w, d in zip(weights / weights.sum(), kept, strict=True))
        assert (moved[row] - wanted[0]).abs().max() < 1e-6
    assert min(ratios) < 0.011 < max(ratios), "both sides of the threshold are looked at"


def test_ttc_stays_in_its_ball():
    images = digits(8)[0].clone()
    images[0], images[1] = 0.0, 1.0
    moved = ttc(eps="16/255", step="9/255", tau=9.0).counterattacked(images)
    assert (moved - images).abs().max() <= 16 / 255 + 1e-6
    assert moved.amin() >= -1e-6 and moved.amax() <= 1 + 1e-6


# --- clipure-cos -------------------------------------------------------------------------------------------------


def test_clipure_climbs_the_cosine():
    images, _ = digits(8)
    last = None
    for steps in (1, 3, 6):
        model = clipure(steps=steps)
        features = model.features(images)
        cosine = F.normalize(features, dim=1) @ model.blank
        before = model.inner.features(images)
        assert torch.allclose(features.norm(dim=1), before.norm(dim=1), rtol=1e-5)
        last = F.normalize(before, dim=1) @ model.blank if last is None else last
        assert (cosine > last).all()
        last = cosine
    blank = model.inner.classifier(model.inner.prepare(type(DATA.classes)(("", "a"), ("a photo of a {}.",))))[0]
    assert torch.allclose(model.blank, blank)


def test_the_released_clipure_takes_one_norm_and_says_so():
    images, _ = digits(8)
    ours, released = clipure(), clipure(released=True)
    assert ours.batch_independent and not released.batch_independent
    assert released.config.step == 30
    for model, alike in ((ours, True), (released, False)):
        together, alone = model.features(images)[:1], model.features(images[:1])
        assert torch.allclose(together, alone, atol=1e-5) == alike


# --- r-tpt -------------------------------------------------------------------------------------------------------


def test_rtpt_is_the_papers():
    images, _ = digits(2)
    model = rtpt(steps=2, confident=0.4, temperature=0.1)
    inner, prepared = model.inner, model.prepare(DATA.classes)
    before = {name: tensor.clone() for name, tensor in inner.learned().items()}
    said = model.predict(images, prepared)
    assert all(torch.equal(before[name], tensor) for name, tensor in inner.learned().items())

    for row, frame in enumerate(model._frames(images)):
        grid = F.affine_grid(frame, [7, 3, 32, 32], align_corners=False)
        crops = F.grid_sample(images[row].expand(7, -1, -1, -1), grid, padding_mode="border", align_corners=False)
        views = torch.cat([images[row : row + 1], crops])
        features = inner.features(views).detach()
        (text,) = [p for name, p in inner.learned().items() if "text" in name]
        text.requires_grad_()
        optimizer = torch.optim.AdamW([text], 5e-3)
        chosen = None
        for _ in range(2):
            probs = inner.logits(features, inner.classifier(prepared)).softmax(1)
            entropy = -(probs * probs.log()).sum(1)
            chosen = entropy.topk(3, largest=False).indices if chosen is None else chosen
            optimizer.zero_grad()
            entropy[chosen].mean().backward()
            optimizer.step()
        with torch.no_grad():
            logits = inner.logits(features, inner.classifier(prepared))
            text.copy_(before[next(name for name in before if "text" in name)])
        unit = F.normalize(features, dim=1)
        score = torch.stack([(unit[v] @ unit[[u for u in range(8) if u != v]].T).topk(3)[0].mean() for v in range(8)])
        wanted = torch.softmax(score / 0.1, 0) @ logits
        assert torch.allclose(said[row], wanted, atol=2e-3)
        assert not torch.allclose(said[row], inner.predict(images, prepared)[row], atol=0.05)


def test_rtpt_views_lie_in_the_image():
    corners = torch.tensor([[-1.0, -1, 1], [1, 1, 1]])
    model = rtpt(views=200, min_area=0.08, flip=True)
    frames = model._frames(digits(1)[0])[0]
    assert (torch.einsum("vij,cj->vci", frames, corners).abs() <= 1 + 1e-6).all()
    sides = frames[:, 0, 0].abs() * frames[:, 1, 1]
    assert sides.min() >= 0.07 and 0.3 < (frames[:, 0, 0] < 0).float().mean() < 0.7


def test_rtpt_needs_text_prompts():
    model = rtpt()
    model.inner.learned = dict
    with pytest.raises(UsageError, match="has learned none"):
        model.predict(digits(1)[0], model.prepare(DATA.classes))


# --- all of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ttc, rtpt], ids=["ttc", "r-tpt"])
def test_draws(make):
    images, _ = digits(3)
    for way, deterministic in (("fixed", True), ("image", True), ("fresh", False)):
        model = make(draws=way)
        prepared = model.prepare(DATA.classes)
        assert model.deterministic == deterministic
        first, second = model.predict(images, prepared), model.predict(images, prepared)
        assert torch.equal(first, second) == deterministic
        keys = draws(model.config, images).uniform((4,))
        assert torch.equal(keys[0], keys[1]) == (way == "fixed")
    model = make(draws="image")
    nudged = images.clone()
    nudged[0, 0, 0, 0] += 1e-6
    a, b = (draws(model.config, x).uniform((4,)) for x in (images, nudged))
    assert not torch.equal(a[0], b[0]) and torch.equal(a[1:], b[1:])
    assert torch.equal(draws(model.config, images[1:]).uniform((4,)), a[1:])
    assert not torch.equal(draws(make(seed=1).config, images).uniform((4,)), draws(make().config, images).uniform((4,)))


@pytest.mark.parametrize(
    ("model", "how", "differs"),
    [
        (ttc(tau=9.0), "unrolled", True),
        (ttc(tau=9.0), "bpda", False),
        (clipure(released=True), "unrolled", True),
        (clipure(released=True), "bpda", True),
        (clipure(), "unrolled", False),
        (rtpt(lr=0.2), "unrolled", True),
        (rtpt(), "bpda", True),
    ],
)
def test_exposing_changes_gradients_alone(model, how, differs):
    images, _ = digits(4)
    plain, before = gradient(model, images)
    exposed, during = gradient(model, images, how)
    again, after = gradient(model, images)
    assert torch.allclose(before, during, atol=1e-3) and torch.equal(before, after)
    assert torch.equal(plain, again)
    assert torch.isfinite(exposed).all() and exposed.flatten(1).any(1).all()
    alike = F.cosine_similarity(plain.flatten(1), exposed.flatten(1))
    assert (alike.min() < 0.999) == differs


def test_a_clip_by_name():
    images, _ = digits(2)
    clip = {"model": "advdistill_demo:small.json", "weights": PLAIN}
    named = TTC.from_config(configs.TTC(**clip))
    prepared = named.prepare(DATA.classes)
    assert torch.allclose(named.predict(images, prepared), ttc().predict(images, prepared), atol=1e-4)
    tuned = RTPT.from_config(configs.RTPT(**clip, **VIEWS))
    assert [tuple(tensor.shape) for tensor in tuned.inner.learned().values()] == [(1, 4, 64)]
    untuned = tuned.inner.predict(images, tuned.prepare(DATA.classes))
    assert torch.allclose(untuned, named.inner.predict(images, prepared), atol=1e-3)  # the tokens start as the words
    assert TTC.from_config(configs.TTC(**clip), weights=False).device.type == "meta"
    for wrong in ({}, {**clip, "checkpoint": PLAIN}):
        with pytest.raises(ValidationError, match="a checkpoint, or a model and its weights"):
            configs.TTC(**wrong)


def test_only_what_is_exposed():
    model = ttc()
    with pytest.raises(UsageError, match="bpda, unrolled"), model.exposed("smoothed"):
        pass


def test_the_undefended_model_is_the_one_behind():
    model = ttc()
    assert model.undefended() is model.inner
    assert model.describe()["defence"]["tau"] == 0.2
    assert model.describe()["base"] == model.inner.describe()["base"]


# --- the adaptive attack breaks more -----------------------------------------------------------------------------


def test_ttc_unrolled_breaks_more():
    model = ttc()
    naive, adaptive = held(model, 64, 4 / 255), held(model, 64, 4 / 255, "unrolled")
    assert adaptive <= naive - 4


def test_the_released_clipure_hides_its_gradients():
    model = clipure(released=True, step=100.0, blank=["a photo of the digit {}."])
    naive, bpda, unrolled = (held(model, 64, 8 / 255, how) for how in ("", "bpda", "unrolled"))
    assert naive >= 16
    assert bpda <= naive / 2 and unrolled <= naive / 2


@pytest.mark.slow
def test_rtpt_falls_to_an_attack_on_all_of_it():
    model = rtpt()
    public = held(model, 64, 8 / 255, attacked=model.inner)
    whole = held(model, 64, 8 / 255)
    assert public >= 48
    assert whole <= public - 16
