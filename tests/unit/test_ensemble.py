"""autoattack and apgd-ce-apgd-t.

Pinned here:
- `standard` is apgd on cross-entropy, apgd-t on dlr with nine targets, fab-t with nine, square with 5,000 queries;
  `rand` is apgd on cross-entropy and on dlr under 20 draws; nobody else's list can bear these names;
- a list is kept as it is written, and what a run stores can be read again;
- the stages are the inner attacks, told apart by their losses, also through wrappers and ensembles inside;
- in one batch each attack sees what the ones before it left over, and in training each row keeps its best image;
- one after the other the stages break what the whole does;
- too few classes: an error that names a list that works, and that list works; it comes before the first attack.
"""

import pytest
import torch
from advdistill_attacks import configs
from pydantic import ValidationError

from advdistill import Attack, ClassSet, Noise, Problem, Threat, UsageError, cross_entropy
from advdistill.engine.build import component
from advdistill.engine.evaluate import Bench
from advdistill.engine.participant import Participant
from advdistill.engine.protocol import Protocol
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import resolve_blocks
from advdistill.testing import ToyConfig, ToyDataset, ToyModel

THREAT = Threat("linf", 0.008)
SHAPE = (3, 6, 6)


def block(**settings):
    return resolve_blocks({"attack": settings}, default_registry())["attack",]


def attack(**settings):
    return component(default_registry(), block(**settings))


def net(classes=6):
    generator = torch.Generator().manual_seed(3)
    inner, outer = (torch.randn(*size, generator=generator) for size in ((108, 24), (24, classes)))
    return lambda x: torch.sin(3 * (x - 0.5).flatten(1) @ inner / 4) @ outer


def scene(model, watch=True, count=16, objective=None):
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))
    labels = model(images).argmax(1)
    return Problem(images, labels, objective, lambda x, rows: model(x), THREAT, watch)


def noise(count=16):
    return Noise(0, "test", 0, torch.arange(count))


def test_standard_is_what_it_says():
    apgd, targeted, fab, square = block(use="autoattack").inner
    assert (apgd.use, apgd.config.loss, apgd.config.steps) == ("apgd", "ce", 100)
    assert (targeted.use, targeted.config.loss, targeted.config.steps) == ("apgd-t", "dlr", 100)
    assert (targeted.config.targets, targeted.config.restarts) == ("top", 1)
    assert (fab.use, fab.config.classes, fab.config.steps, fab.config.restarts) == ("fab-t", 9, 100, 1)
    assert (square.use, square.config.queries, square.config.rescale) == ("square", 5000, False)
    # Restarts and targets: as many as the standard ensemble takes in the norm at hand; tests/unit/test_apgd.py.
    assert (apgd.config.restarts, targeted.config.classes) == (0, 0)


def test_rand_is_what_it_says():
    for loss, eot in zip(("ce", "dlr"), block(use="autoattack", version="rand").inner, strict=True):
        (inner,) = eot.inner
        assert (eot.use, eot.config.draws, inner.use, inner.config.loss) == ("eot", 20, "apgd", loss)
        assert (inner.config.steps, inner.config.restarts) == (100, 1)


def test_stages_bear_names():
    def names(**settings):
        return [stage.name for stage in attack(**settings).stages()]

    assert names(use="autoattack") == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert names(use="autoattack", version="rand") == ["eot-apgd-ce", "eot-apgd-dlr"]
    assert names(use="apgd-ce-apgd-t") == ["apgd-ce", "apgd-t"]
    inside = {"use": "autoattack", "version": "custom", "attacks": [{"use": "apgd", "loss": "cw"}, {"use": "pgd"}]}
    assert names(use="autoattack", version="custom", attacks=[{"use": "fgsm"}, inside]) == ["fgsm", "apgd-cw", "pgd"]
    ensemble = attack(use="autoattack")
    assert [s.name for s in ensemble.stages()] == [s.name for s in ensemble.stages()]


def test_too_few_classes_are_noticed_before_the_first_stage():
    """Also where it would leave nothing for the second one: here all is wrong before it begins."""

    class Two(ToyDataset):
        classes = ClassSet(ToyDataset.classes.names[:2], ToyDataset.classes.templates)

    split = Two(None).split("test")
    bench = Bench(Participant(ToyModel(ToyConfig()), Two.classes), lambda name: split, seed=0)
    with torch.no_grad():
        split.labels = bench.participant.logits(split.images).argmin(1)
    protocol = Protocol("both", attack=attack(use="apgd-ce-apgd-t"), threat=THREAT)
    with pytest.raises(UsageError, match="needs 4 classes, and there are 2"):
        bench.measure(protocol, split, torch.arange(4), "key")


@pytest.mark.parametrize("use", ["autoattack", "apgd-ce-apgd-t"])
def test_what_is_stored_can_be_read_again(use):
    first = block(use=use)
    assert block(**first.tree()).tree() == first.tree()


@pytest.mark.parametrize(
    "settings",
    [
        {"attacks": [{"use": "apgd"}]},
        {"version": "standard", "attacks": [{"use": "apgd", "loss": "ce", "steps": 10}, {"use": "apgd-t"}]},
        {"version": "rand", "attacks": [{"use": "apgd"}]},
        {"version": "custom"},
        {"version": "plus"},
    ],
)
def test_names_cannot_be_borrowed(settings):
    with pytest.raises(ValidationError):
        configs.AutoAttack(**settings)
    with pytest.raises(ValidationError, match="version: custom"):
        configs.APGDPair(attacks=[{"use": "apgd", "loss": "ce", "steps": 10}, {"use": "apgd-t"}])


def test_one_setting_is_enough_to_lose_the_name():
    stored = configs.AutoAttack().attacks
    assert configs.AutoAttack(attacks=stored).attacks == stored
    for place, change in ((0, {"restarts": 1}), (1, {"classes": 3}), (2, {"steps": 10}), (3, {"queries": 100})):
        changed = [dict(each) for each in stored]
        changed[place] |= change
        with pytest.raises(ValidationError, match="call it version: custom"):
            configs.AutoAttack(attacks=changed)
    assert configs.AutoAttack(version="custom", attacks=changed).attacks == changed


CUSTOM = [{"use": "apgd", "loss": "ce", "steps": 4}, {"use": "apgd-t", "steps": 6}, {"use": "square", "queries": 40}]


def test_each_works_on_what_is_left():
    model, asked = net(), []

    def logits(x, rows):
        asked.append(len(rows))
        return model(x)

    problem = scene(model).restated(logits=logits)
    ensemble = attack(use="autoattack", version="custom", attacks=CUSTOM)
    found = ensemble(problem, THREAT, noise())
    broken = model(found).argmax(1) != problem.labels
    assert torch.equal(broken, problem.broken) and 2 < broken.sum() < 14
    assert asked == sorted(asked, reverse=True) and asked[0] == 16 and asked[-1] == 16 - broken.sum()


def test_stages_break_what_the_whole_does():
    model = net()
    whole = scene(model)
    attack(use="autoattack", version="custom", attacks=CUSTOM)(whole, THREAT, noise())
    rows = torch.arange(16)
    for stage in attack(use="autoattack", version="custom", attacks=CUSTOM).stages():
        images, labels = whole.images[rows], whole.labels[rows]
        part = Problem(images, labels, None, lambda x, r: model(x), THREAT, watch=True)
        stage(part, THREAT, noise().of(rows))
        rows = rows[part.open()]
    assert torch.equal(rows, whole.open())


class Shift(Attack):
    """Adds a number."""

    def run(self, problem, threat, noise):
        return problem.images + self.config


def test_in_training_each_row_keeps_its_best():
    from advdistill_attacks.ensemble import Ensemble

    wanted = torch.tensor([1.0, -1.0, 1.0, 1.0])
    images = torch.full((4, *SHAPE), 0.5)
    problem = Problem(
        images,
        torch.zeros(4).long(),
        lambda x, rows: wanted[rows] * x.flatten(1).mean(1),
        lambda x, rows: x.flatten(1)[:, :6],
        THREAT,
    )
    ensemble = Ensemble(None, [Shift(0.004), Shift(-0.006), Shift(0.002)])
    found = ensemble(problem, THREAT, noise(4))
    torch.testing.assert_close(
        found - images, torch.tensor([0.004, -0.006, 0.004, 0.004]).view(-1, 1, 1, 1).expand_as(found)
    )


def test_an_ensemble_studies_for_all():
    from advdistill_attacks.ensemble import Ensemble

    class Learns(Shift):
        studies = 7

        def study(self, problem, threat, noise):
            self.config = 0.02

    learner = Learns(0.0)
    ensemble = Ensemble(None, [Shift(0.01), learner])
    assert ensemble.studies == 7 and Ensemble(None, [Shift(0.0)]).studies == 0
    ensemble.study(None, THREAT, None)
    assert learner.config == 0.02 and ensemble.stages()[1] is learner


def test_few_classes():
    for classes in (2, 3):
        with pytest.raises(UsageError, match=f"needs 4 classes, and there are {classes}") as error:
            attack(use="autoattack")(scene(net(classes)), Threat("linf", 1e-5), noise())
        assert "version: custom and attacks: [{use: apgd}, {use: square}]" in error.value.hint
    assert attack(use="autoattack").fewest_classes == attack(use="apgd-ce-apgd-t").fewest_classes == 4
    assert attack(use="autoattack", version="rand").fewest_classes == 3
    assert attack(use="cross-prompt", attack={"use": "eot", "attack": {"use": "apgd-t"}}).fewest_classes == 4
    model = net(2)
    problem = scene(model)
    offered = [{"use": "apgd", "steps": 10}, {"use": "square", "queries": 20}]
    listed = attack(use="autoattack", version="custom", attacks=offered)
    assert listed.fewest_classes == 2
    found = listed(problem, THREAT, noise())
    assert (cross_entropy(model(found), problem.labels) > cross_entropy(model(problem.images), problem.labels)).all()
