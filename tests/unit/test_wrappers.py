"""eot, bpda and unrolled.

Pinned here:
- eot averages each gradient and each value over its draws, counts them all, and breaks what one draw at a time does
  not;
- bpda leaves the attacked model's answers as they are and takes the other model's slopes; a quantised model that plain
  pgd cannot move breaks; both passes are counted; what does not climb those answers is refused;
- `through: own` and `unrolled` have the model expose itself while the attack runs, and only then; a model that has
  nothing to expose is an error;
- they wrap any attack, wrappers included; an ensemble's stages are wrapped one by one; what is studied is handed on;
- recipes and the command line can say so.
"""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from advdistill_attacks import configs
from advdistill_attacks.wrappers import BPDA, EOT, Unrolled

from advdistill import Attack, Noise, Problem, Threat, UsageError
from advdistill.engine.build import component
from advdistill.engine.participant import Participant, Seen
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import resolve_blocks
from advdistill.testing import ToyConfig, ToyDataset, ToyModel

THREAT = Threat("linf", 8 / 255)


def block(overrides=(), **settings):
    tree = {"attack": settings}
    return resolve_blocks(tree, default_registry(), overrides=[f"attack.{word}" for word in overrides])["attack",]


def attack(**settings):
    return component(default_registry(), block(**settings))


def noise(count=8):
    return Noise(0, "test", 0, torch.arange(count))


@pytest.fixture
def toy():
    split = ToyDataset(None).split("train")
    return split.images[:8], split.labels[:8], Seen(Participant(ToyModel(ToyConfig()), ToyDataset.classes))


def problem(toy, logits=None, seen=None, watch=True):
    images, labels, model = toy
    logits = logits or (lambda x, rows: model.logits(x))
    return Problem(images, labels, None, logits, THREAT, watch, seen=seen or (lambda name: model), lenient=True)


# --- eot ---------------------------------------------------------------------------------------------------------


def test_eot_counts_every_draw(toy):
    stubborn = problem(toy, lambda x, rows: F.one_hot(toy[1][rows], 6) + 1e-3 * toy[2].logits(x))
    attack(use="eot", draws=7, attack={"use": "pgd", "steps": 4})(stubborn, THREAT, noise())
    assert set(stubborn.tally.backwards.tolist()) == {28}
    assert set(stubborn.tally.forwards.tolist()) == {28 + 1}  # and the verdict


def test_eot_sees_through_noise(toy):
    """Signs of slopes that drown in noise."""
    images, labels, _ = toy

    def climb(draws):
        generator = torch.Generator().manual_seed(0)

        def logits(x, rows):
            loud = 3 * torch.randn(x.shape, generator=generator)
            margin = ((x - images[rows]) * (1 + loud)).flatten(1).mean(1)
            return torch.stack([0 * margin, margin], 1)

        task = Problem(images, 0 * labels, None, logits, THREAT)
        found = attack(use="eot", draws=draws, attack={"use": "fgsm"})(task, THREAT, noise())
        return (found - images).flatten(1).mean(1)

    assert climb(1).mean() < 0.4 * THREAT.eps < 0.8 * THREAT.eps < climb(60).mean()


def test_eot_judges_by_the_mean(toy):
    """apgd compares its last iterate with the others by as many draws as these were given."""
    images, labels, _ = toy
    looks = []

    def logits(x, rows):
        if not x.requires_grad:
            looks.append(len(rows))
        return torch.stack([0 * x.flatten(1).mean(1), x.flatten(1).mean(1)], 1)

    task = Problem(images, 0 * labels, None, logits, THREAT)
    attack(use="eot", draws=6, attack={"use": "apgd", "steps": 3}).run(task, THREAT, noise())
    assert looks == [8] * 6
    # A method that looks at resized images draws no more than it says.
    task = Problem(images, 0 * labels, None, logits, THREAT)
    attack(use="eot", draws=6, attack={"use": "di-fgsm", "steps": 3}).run(task, THREAT, noise())
    assert set(task.tally.forwards.tolist()) == {6 * 3}


# --- bpda --------------------------------------------------------------------------------------------------------


def test_bpda_goes_through_another_model(toy):
    _, labels, model = toy

    def coarse(x, rows):
        return model.logits((x * 64).round() / 64)

    plain = problem(toy, coarse)
    attack(use="pgd", steps=10)(plain, THREAT, noise())
    assert plain.tally.blank.min() > 0
    through = problem(toy, coarse, seen={"base": model}.__getitem__)
    found = attack(use="bpda", through="base", attack={"use": "pgd", "steps": 10})(through, THREAT, noise())
    assert (coarse(found, None).argmax(1) != labels)[through.broken].all()
    assert through.broken.sum() > plain.broken.sum() and through.broken.float().mean() > 0.9


def test_bpda_keeps_the_answers_and_counts_both_passes(toy):
    images, labels, model = toy

    def flat(x, rows):
        return model.logits(x).detach() * 0 + F.one_hot(labels[rows], 6)

    task = problem(toy, flat)
    with BPDA(configs.BPDA(through="base"), [None]).adapted(task) as other:
        rows = torch.tensor([5, 0, 2])
        torch.testing.assert_close(other.predict(images[rows], rows), flat(images[rows], rows))
        gradient, _ = other.restated(lambda x, r: other.predict(x, r)[:, 0]).gradient(images[rows], rows)
    pixels = images[rows].clone().requires_grad_()
    expected = torch.autograd.grad(model.logits(pixels)[:, 0].sum(), pixels)[0]
    torch.testing.assert_close(gradient, expected)
    assert task.tally.forwards.tolist() == [4, 0, 4, 0, 0, 4, 0, 0]
    assert task.tally.backwards.tolist() == [1, 0, 1, 0, 0, 1, 0, 0]


# --- what the model exposes --------------------------------------------------------------------------------------


class Exposing:
    """A model that notes when it is open."""

    def __init__(self, model):
        self.model, self.now, self.seen = model, [], []

    def logits(self, images, classifier=None):
        self.seen.append(tuple(self.now))
        return self.model.logits(images)

    @contextlib.contextmanager
    def exposed(self, how):
        self.now.append(how)
        try:
            yield
        finally:
            self.now.remove(how)


@pytest.mark.parametrize(
    ("settings", "open_"),
    [
        ({"use": "bpda", "attack": {"use": "pgd", "steps": 3}}, ("bpda",)),
        ({"use": "unrolled", "attack": {"use": "pgd", "steps": 3}}, ("unrolled",)),
        ({"use": "unrolled", "attack": {"use": "bpda", "attack": {"use": "fgsm"}}}, ("unrolled", "bpda")),
    ],
)
def test_the_model_is_open_while_it_is_attacked(toy, settings, open_):
    model = Exposing(toy[2])
    task = problem(toy, lambda x, rows: model.logits(x), seen=lambda name: model)
    built = attack(**settings)
    built.run(task, THREAT, noise())
    assert set(model.seen) == {open_} and model.now == []
    model.seen.clear()
    (stage,) = built.stages()
    stage.run(task, THREAT, noise())
    assert {frozenset(each) for each in model.seen} <= {frozenset(open_)}


@pytest.mark.parametrize(
    "settings",
    [
        {"use": "bpda", "through": "base", "attack": {"use": "pgd", "loss": "feature"}},
        {"use": "feature", "attack": {"use": "bpda", "through": "base", "attack": {"use": "pgd"}}},
    ],
)
def test_a_stand_in_that_nobody_asks_is_refused(toy, settings):
    with pytest.raises(UsageError, match="gradients of 'base' are never used"):
        attack(**settings)(problem(toy), THREAT, noise())


@pytest.mark.parametrize("use", ["bpda", "unrolled"])
def test_nothing_to_expose(toy, use):
    with pytest.raises(UsageError, match="exposes nothing"):
        attack(use=use)(problem(toy), THREAT, noise())


# --- what they wrap ----------------------------------------------------------------------------------------------


def test_stages_are_wrapped_one_by_one(toy):
    inner = {
        "use": "autoattack",
        "version": "custom",
        "attacks": [{"use": "apgd", "loss": "ce", "steps": 3}, {"use": "fgsm"}],
    }
    built = attack(use="eot", draws=3, attack=inner)
    stages = built.stages()
    assert [stage.name for stage in stages] == ["eot-apgd-ce", "eot-fgsm"]
    stubborn = problem(toy, lambda x, rows: F.one_hot(toy[1][rows], 6) + 1e-3 * toy[2].logits(x))
    stages[0].run(stubborn, THREAT, noise())
    assert set(stubborn.tally.backwards.tolist()) == {9}
    twice = attack(use="unrolled", attack={"use": "eot", "attack": {"use": "pgd"}})
    assert [stage.name for stage in twice.stages()] == ["unrolled-eot-pgd"]


def test_what_is_studied_is_handed_on(toy):
    class Learns(Attack):
        studies = 5

        def study(self, problem, threat, noise):
            self.learned = problem._draws

        def run(self, problem, threat, noise):
            return problem.images

    inner = Learns(None)
    wrapper = EOT(configs.EOT(draws=3), [inner])
    assert wrapper.studies == 5
    wrapper.study(problem(toy), THREAT, noise())
    assert inner.learned == 3
    assert wrapper.stages()[0].inner == (inner,)


@pytest.mark.parametrize(
    ("wrapper", "config"),
    [(EOT, configs.EOT()), (BPDA, configs.BPDA(through="nobody")), (Unrolled, configs.Unrolled())],
)
def test_radius_zero_asks_nothing(toy, wrapper, config):
    class Never(Attack):
        def run(self, problem, threat, noise):
            raise AssertionError

    nothing = Threat("linf", 0.0)
    assert torch.equal(wrapper(config, [Never(None)])(problem(toy), nothing, noise()), toy[0])


# --- how it is written -------------------------------------------------------------------------------------------


def test_recipes_and_the_command_line():
    written = block(use="eot", draws=10, attack={"use": "pgd", "steps": 20})
    said = block(["draws=10", "attack.use=pgd", "attack.steps=20"], use="eot")
    assert written.tree() == said.tree()
    assert said.inner[0].config.steps == 20
    assert block(use="eot").inner[0].use == "apgd"


@pytest.mark.parametrize("use", ["eot", "bpda"])
def test_who_asks_for_no_gradients_is_not_wrapped_in_silence(toy, use):
    """A score attack inside would run as if nobody had wrapped it."""
    settings = {"through": "base"} if use == "bpda" else {"draws": 3}
    of = problem(toy, seen=lambda name: Seen(Participant(ToyModel(ToyConfig()), ToyDataset.classes)))
    of.threat = Threat("linf", 0.1 / 255)
    wrapped = attack(use=use, attack={"use": "square", "queries": 3}, **settings)
    with pytest.raises(UsageError, match="asks for no gradients"):
        wrapped.run(of, of.threat, noise())
