"""The torchattacks adapter keeps that library's habits to itself.

Pinned here:
- what it offers: the names, and that settings are the library's own with its own defaults;
- its numbers are the library's: FGSM and MIFGSM come out the same without the adapter;
- Face: no training mode, float32 logits that may be written into, a graph only if pixels ask, portions;
- global generators (torch, numpy) come back as they were, results depend on the noise alone, stdout stays empty;
- parameters keep `.grad` and `requires_grad`; it works under no_grad;
- a zero gradient does not freeze a sample for good in the momentum attacks;
- too few classes, an l0 ball without a pixel, and failures inside are user errors with a hint; `targets` is respected;
- queries count: what an attack looked at and threw away still breaks a sample in evaluation, for SPSA and OnePixel too.
"""

import inspect

import numpy as np
import pytest
import torch
import torchattacks
from advdistill_torchattacks import advdistill_attacks, configs
from advdistill_torchattacks.adapter import Face, Torchattack

from advdistill import Noise, Problem, RunError, Threat, UsageError
from advdistill.testing import ToyConfig, ToyDataset, ToyModel

LINF = Threat("linf", 8 / 255)
SPECS = list(advdistill_attacks())


def toy(count=6, watch=False, threat=LINF):
    model = ToyModel(ToyConfig())
    prepared = model.prepare(ToyDataset.classes)
    split = ToyDataset(None).split("train")
    of = Problem(
        split.images[:count], split.labels[:count], None, lambda x, rows: model.predict(x, prepared), threat, watch
    )
    return model, of


def noise(count=6, seed=0):
    return Noise(seed, "test", 0, torch.arange(count))


def few_classes(count):
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = lambda x, rows: x.flatten(1)[:, :count]  # noqa: E731
    return Problem(images, logits(images, None).argmax(1), None, logits, LINF)


def test_what_is_offered():
    assert len(SPECS) == 23
    assert {"ta-pgd", "ta-apgd", "ta-apgdt", "ta-tifgsm", "ta-square", "ta-spsa", "ta-onepixel"} <= {
        s.name for s in SPECS
    }
    assert not any(word in s.name for s in SPECS for word in ("autoattack", "cw", "fab", "jsma"))
    assert not any(s.objective for s in SPECS)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_settings_are_the_librarys(spec):
    config = getattr(configs, spec.config.partition(":")[2])
    theirs = inspect.signature(getattr(torchattacks, config.attack)).parameters
    mine = dict(config())
    mine.pop("targets", None)
    assert mine == {name: theirs[name].default for name in mine}
    unset = (
        set(theirs) - set(mine) - {"model", "eps", "norm", "seed", "verbose", "pixels", "n_classes", "eps_for_division"}
    )
    assert not unset
    assert "eps" in theirs or spec.norms == {"l0"}


@pytest.mark.parametrize("name", ["FGSM", "MIFGSM", "NIFGSM"])
def test_numbers_are_the_librarys(name):
    model, of = toy()
    prepared = model.prepare(ToyDataset.classes)

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return model.predict(x, prepared)

    expected = getattr(torchattacks, name)(Module(), eps=LINF.eps)(of.images, of.labels)
    found = Torchattack(getattr(configs, name)())(of, LINF, noise())
    assert (found - of.images).abs().max() > 0.03
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_face():
    model, of = toy()
    face = Face(of, of.rows)
    assert not face.training and face.train() is face and not face.training
    logits = face(of.images)
    assert logits.dtype == torch.float32 and not logits.requires_grad  # though the toy's parameters ask for gradients
    assert all(p.requires_grad for p in model.parameters())
    assert face(of.images.clone().requires_grad_()).requires_grad
    kept = torch.zeros(6, 4)
    Face(Problem(of.images, of.labels, None, lambda x, r: kept, LINF), of.rows)(of.images).fill_(-torch.inf)
    assert not kept.any()
    portions = []
    spied = Problem(of.images, of.labels, None, lambda x, r: portions.append(len(x)) or of.predict(x, r), LINF)
    assert len(Face(spied, of.rows)(of.images.repeat(30, 1, 1, 1))) == 180
    assert portions == [64, 64, 52]


@pytest.mark.parametrize("name", ["PGD", "APGD", "APGDT", "Square", "Pixle", "OnePixel", "DIFGSM"])
def test_generators_stdout_and_parameters(name, capsys):
    threat = Threat("l0", 9) if name in ("Pixle", "OnePixel") else LINF
    small = {"Square": {"n_queries": 5}, "Pixle": {"restarts": 1}, "OnePixel": {"steps": 1}}.get(name, {})
    attack = Torchattack(getattr(configs, name)(**small))
    model, of = toy(3, threat=threat)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        with torch.no_grad():
            found.append(attack(of, threat, noise(3)))
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()
    assert torch.equal(*found)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert capsys.readouterr().out == ""


def test_what_is_printed_inside_goes_to_stderr(capsys):
    def logits(x, rows):
        print("from inside")
        return x.flatten(1)[:, :4]

    of = Problem(torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.long), None, logits, LINF)
    Torchattack(configs.PGD(steps=1)).run(of, LINF, noise(2))
    said = capsys.readouterr()
    assert said.out == "" and "from inside" in said.err


def test_noise_moves_the_draws():
    attack = Torchattack(configs.PGD(steps=1))
    _, of = toy()
    assert not torch.equal(attack(of, LINF, noise(seed=0)), attack(of, LINF, noise(seed=1)))


@pytest.mark.parametrize("name", ["MIFGSM", "VMIFGSM", "DIFGSM", "TIFGSM", "UPGD"])
def test_a_zero_gradient_does_not_freeze_a_sample(name):
    images = torch.full((2, 3, 16, 16), 0.5)
    looks = 0

    def logits(x, rows):
        nonlocal looks
        looks += x.requires_grad
        push = x.flatten(1).mean(1) * (looks > 1)  # the first gradient is exactly zero
        return torch.stack([-push, push], 1)

    of = Problem(images, torch.zeros(2, dtype=torch.long), None, logits, LINF)
    found = Torchattack(getattr(configs, name)())(of, LINF, noise(2))
    assert ((found - images) > LINF.eps / 2).float().mean() > 0.9


def test_too_few_classes():
    for config, fewest in ((configs.APGDT(), 4), (configs.APGD(loss="dlr"), 3), (configs.UPGD(loss="dlr"), 3)):
        with pytest.raises(UsageError, match=f"at least {fewest} classes") as caught:
            Torchattack(config)(few_classes(2), LINF, noise(4))
        assert caught.value.hint
        Torchattack(config)(few_classes(fewest), LINF, noise(4))
    Torchattack(configs.APGD())(few_classes(2), LINF, noise(4))


def test_targets_are_respected():
    def looks(classes, targets):
        _, asked = few_classes(classes), []
        unbreakable = Problem(
            torch.full((1, 3, 8, 8), 0.5),
            torch.zeros(1, dtype=torch.long),
            None,
            lambda x, rows: asked.append(1) or torch.cat([x.flatten(1)[:, :1] + 9, x.flatten(1)[:, 1:classes]], 1),
            LINF,
        )
        Torchattack(configs.APGDT(targets=targets, steps=2))(unbreakable, LINF, noise(1))
        return len(asked)

    each = looks(12, 3) - looks(12, 2)
    assert each > 2 and looks(12, 4) == 2 + 4 * each  # two: how many classes, and who is right to begin with
    assert looks(5, 9) == 2 + 4 * each


def test_an_l0_ball_without_a_pixel():
    threat = Threat("l0", 2)
    with pytest.raises(UsageError, match="holds no pixel"):
        Torchattack(configs.OnePixel())(toy(2, threat=threat)[1], threat, noise(2))


def test_failures_inside_are_run_errors():
    def logits(x, rows):
        raise ZeroDivisionError("inside the model")

    of = Problem(torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.long), None, logits, LINF)
    generator = torch.get_rng_state()
    with pytest.raises(RunError, match=r"torchattacks\.PGD failed: ZeroDivisionError: inside the model") as caught:
        Torchattack(configs.PGD())(of, LINF, noise(2))
    assert caught.value.hint and torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize(
    ("config", "threat"),
    [(configs.SPSA(nb_sample=4, max_batch_size=2, lr=1e-9), LINF), (configs.OnePixel(steps=1), Threat("l0", 3))],
)
def test_every_query_counts(config, threat):
    images = torch.full((3, 3, 8, 8), 0.5)

    def logits(x, rows):  # fooled by any change of this size; SPSA looks at such images, but returns none
        fooled = (x - images[rows]).flatten(1).abs().amax(1) > 0.004
        return torch.stack([~fooled, fooled], 1).float()

    of = Problem(images, torch.zeros(3, dtype=torch.long), None, logits, threat, watch=True)
    Torchattack(config).run(of, threat, noise(3))
    assert not len(of.open())
    found = of.outcome(images)
    assert threat.holds(found, images).all() and (logits(found, of.rows).argmax(1) == 1).all()
