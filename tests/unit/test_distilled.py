"""Attacks against distillation and prompts.

Pinned here:
- teacher-guided climbs the divergence its settings name, in either order, from a teacher that sees either image;
- feature needs no labels; it refuses an inner attack that starts where its distance is flat;
- both refuse an inner attack that climbs a loss of its own, which would be another attack under their name;
- what they climb goes through the gradients that an inner bpda stands in for;
- cross-prompt classifies with the base's text tower, an ensemble's loss is the mean over its templates at one pass
  through the image tower, and what misleads the guess closes no row;
- clean-backbone is the inner attack on the undefended model, and asks the attacked one nothing;
- all four: a sample's image does not depend on its batch mates, and an ensemble inside is taken stage by stage;
- universal adds one perturbation to every image, inside the ball in linf and l2, learned on other images than those it
  is added to; it refuses to run before it has seen any, and on images of another size; nobody can train on it.
"""

import pytest
import run_parts
import torch
from advdistill_attacks.configs import CrossPrompt, Universal
from advdistill_attacks.universal import Universal as UniversalAttack
from pydantic import ValidationError

from advdistill import Noise, Problem, Seen, Threat, UsageError, cross_entropy, kl
from advdistill.engine.build import component
from advdistill.engine.participant import Participant
from advdistill.errors import UserError
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import resolve_blocks
from advdistill.testing import ToyConfig, ToyDataset, ToyModel

REGISTRY = default_registry()
LINF = Threat("linf", 8 / 255)
INNER = {"use": "pgd", "steps": 4}


def built(use, **settings):
    block = {"use": use, "attack": INNER, **settings}
    return component(REGISTRY, resolve_blocks({"attack": block}, REGISTRY)["attack",])


class Scene:
    """A student whose class features have learned something, its undefended base, a teacher; and who was asked."""

    def __init__(self, count=8):
        split = ToyDataset(None).split("train")
        self.images, self.labels, self.asked = split.images[:count], split.labels[:count], 0
        self.models = {}
        for place, name in enumerate(("self", "base", "clean")):
            model = ToyModel(ToyConfig())
            with torch.no_grad():
                if name != "base":
                    wave = torch.linspace(-1, 1, len(model.gain)).roll(19 * place)
                    model.gain.mul_(1 + 0.5 * wave)
                    model.context.add_(0.5 * wave.roll(5))
            self.models[name] = Participant(model, ToyDataset.classes)

    def seen(self, name):
        if name not in self.models:
            raise UsageError(f"no {name}")
        return Seen(self.models[name])

    def problem(self, watch=False, rows=None, threat=LINF):
        def logits(images, rows):
            self.asked += 1
            return self.models["self"].logits(images)

        chosen = slice(None) if rows is None else rows
        return Problem(self.images[chosen], self.labels[chosen], None, logits, threat, watch, seen=self.seen)

    def says(self, name, images):
        return self.models[name].logits(images)


@pytest.fixture
def scene():
    return Scene()


def noise(rows):
    return Noise(0, "test", 0, torch.as_tensor(rows))


@pytest.mark.parametrize("sees", ["clean", "adversarial"])
@pytest.mark.parametrize("order", ["teacher-student", "student-teacher"])
def test_teacher_guided_climbs_what_it_says(scene, sees, order):
    attack = built("teacher-guided", teacher_sees=sees, order=order)
    problem = scene.problem()
    moved = (scene.images + 0.03 * torch.sin(torch.arange(scene.images.numel())).view_as(scene.images)).clamp(0, 1)
    rows = torch.tensor([5, 1])
    with attack.adapted(problem) as other:
        climbed = other.objective(moved[rows], rows)
    teacher = scene.says("clean", (scene.images if sees == "clean" else moved)[rows])
    student = scene.says("self", moved[rows])
    wanted = kl(teacher, student) if order == "teacher-student" else kl(student, teacher)
    assert torch.allclose(climbed, wanted, atol=1e-6)
    found = attack.run(problem, LINF, noise(range(8)))
    with torch.no_grad():
        before, after = (kl(scene.says("clean", scene.images), scene.says("self", x)) for x in (scene.images, found))
    assert after.mean() > 2 * before.mean()


def test_teacher_guided_asks_for_a_role_that_is_there(scene):
    with pytest.raises(UsageError, match="no robust"):
        built("teacher-guided", teacher="robust").run(scene.problem(), LINF, noise(range(8)))


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_feature_needs_no_labels(scene, distance):
    attack = built("feature", distance=distance)
    found = attack.run(scene.problem(), LINF, noise(range(8)))
    scene.labels = scene.labels.roll(3)
    assert torch.equal(found, attack.run(scene.problem(), LINF, noise(range(8))))
    clean, moved = (scene.seen("self").features(x) for x in (scene.images, found))
    wandering = scene.images + LINF.eps * (2 * noise(range(8)).uniform((3, 16, 16)) - 1)
    stray = scene.seen("self").features(wandering.clamp(0, 1))
    assert ((moved - clean).norm(dim=1) > 2 * (stray - clean).norm(dim=1)).all()


def test_feature_refuses_to_start_where_it_is_flat(scene):
    attack = built("feature", attack={"use": "pgd", "random_start": False})
    with pytest.raises(UsageError, match="flat at the clean image"):
        attack.run(scene.problem(), LINF, noise(range(8)))


@pytest.mark.parametrize(
    "inner",
    [
        {"use": "eot", "attack": {"use": "pgd", "random_start": False}},
        {"use": "eot", "attack": {"use": "eot", "attack": {"use": "fgsm"}}},
        {"use": "autoattack", "version": "custom", "attacks": [{"use": "pgd"}, {"use": "fgsm"}]},
    ],
)
def test_feature_looks_for_such_a_start_at_any_depth(scene, inner):
    with pytest.raises(UsageError, match="flat at the clean image"):
        built("feature", attack=inner).run(scene.problem(), LINF, noise(range(8)))


def test_what_is_climbed_goes_through_a_stand_in_inside(scene):
    """A student whose own gradients are zero."""

    def coarse(images, rows):
        return scene.models["self"].logits((images * 64).round() / 64)

    def moved(**settings):
        problem = Problem(scene.images, scene.labels, None, coarse, LINF, seen=scene.seen, lenient=True)
        found = built("teacher-guided", **settings).run(problem, LINF, noise(range(8)))
        with torch.no_grad():
            return found, kl(scene.says("clean", scene.images), coarse(found, None)).mean()

    bpda = {"use": "bpda", "through": "base", "attack": INNER}
    (_, blind), (found, seeing) = moved(), moved(attack=bpda)
    assert seeing > 2 * blind
    outside = component(
        REGISTRY,
        resolve_blocks({"attack": {**bpda, "attack": {"use": "teacher-guided", "attack": INNER}}}, REGISTRY)["attack",],
    )
    problem = Problem(scene.images, scene.labels, None, coarse, LINF, seen=scene.seen, lenient=True)
    assert torch.equal(found, outside.run(problem, LINF, noise(range(8))))
    (stage,) = built("teacher-guided", attack=bpda).stages()
    assert stage.name == "teacher-guided-bpda-pgd"
    assert torch.equal(found, stage.run(problem, LINF, noise(range(8))))


@pytest.mark.parametrize("use", ["teacher-guided", "feature"])
@pytest.mark.parametrize("inner", [{"use": "pgd", "loss": "cw"}, {"use": "apgd-t", "steps": 2}])
def test_an_inner_loss_would_be_another_attack(scene, use, inner):
    with pytest.raises(UsageError, match=f"{use}: .*loss of its own"):
        built(use, attack=inner).run(scene.problem(), LINF, noise(range(8)))


def test_cross_prompt_reads_templates_with_the_base(scene):
    attack = built("cross-prompt")
    assert attack.config.templates == ["a photo of a {}."]
    problem = scene.problem()
    with attack.adapted(problem) as other:
        said = other.predict(scene.images, other.rows)
    guess = scene.seen("base").classifier(("a photo of a {}.",))
    assert torch.allclose(said, scene.seen("self").logits(scene.images, guess))
    assert not torch.allclose(said, scene.says("self", scene.images), atol=0.1)
    assert not scene.asked


def test_cross_prompt_of_a_teacher(scene):
    attack = built("cross-prompt", prompts="teacher")
    with attack.adapted(scene.problem()) as other:
        said = other.predict(scene.images, other.rows)
    assert torch.allclose(said, scene.seen("self").logits(scene.images, scene.seen("clean").classifier()))


def test_an_ensemble_of_prompts_is_one_pass(scene, monkeypatch):
    attack = built("cross-prompt", prompts="ensemble")
    assert len(attack.config.templates) == 7
    # The toy reads no template: let each give other class features.
    turned = {t: torch.roll(scene.seen("base").classifier(), i, 0) for i, t in enumerate(attack.config.templates)}
    monkeypatch.setattr(Seen, "classifier", lambda self, templates=(): turned[templates[0]])
    problem = scene.problem()
    with attack.adapted(problem) as other:
        loss, said = other.objective(scene.images, other.rows), other.predict(scene.images, other.rows)
    each = [scene.seen("self").logits(scene.images, guess) for guess in turned.values()]
    assert torch.allclose(loss, torch.stack([cross_entropy(x, scene.labels) for x in each]).mean(0), atol=1e-5)
    assert torch.allclose(said, torch.stack(each).mean(0), atol=1e-5)
    assert (problem.tally.forwards == 2).all()


def test_what_misleads_a_guess_is_not_found(scene):
    # A student that cannot be misled, though its tower with the guessed prompts can.
    def sure(images, rows):
        return 100.0 * torch.nn.functional.one_hot(scene.labels[rows], 6)

    problem = Problem(scene.images, scene.labels, None, sure, LINF, watch=True, seen=scene.seen)
    found = built("cross-prompt")(problem, LINF, noise(range(8)))
    guessed = scene.seen("self").logits(found, scene.seen("base").classifier())
    assert (guessed.argmax(1) != scene.labels).all()
    assert len(problem.open()) == 8


def test_clean_backbone_is_the_attack_on_the_base(scene):
    found = built("clean-backbone").run(scene.problem(watch=True), LINF, noise(range(8)))
    assert not scene.asked
    alone = Problem(
        scene.images, scene.labels, None, lambda images, rows: scene.says("base", images), LINF, seen=scene.seen
    )
    inner = component(REGISTRY, resolve_blocks({"attack": INNER}, REGISTRY)["attack",])
    assert torch.equal(found, inner.run(alone, LINF, noise(range(8))))


@pytest.mark.parametrize("use", ["teacher-guided", "feature", "cross-prompt", "clean-backbone"])
def test_batch_mates_do_not_matter(scene, use):
    attack, rows = built(use), torch.tensor([6, 2])
    together = attack.run(scene.problem(), LINF, noise(range(8)))
    alone = attack.run(scene.problem(rows=rows), LINF, noise(rows))
    assert ((together[rows] - alone).abs() > 1e-4).float().mean() < 0.01


@pytest.mark.parametrize("use", ["teacher-guided", "feature", "cross-prompt", "clean-backbone"])
def test_an_ensemble_inside_is_taken_stage_by_stage(use):
    blocks = [{"use": "pgd"}, {"use": "apgd", "loss": "cw"}]
    stages = built(use, attack={"use": "autoattack", "version": "custom", "attacks": blocks}).stages()
    assert [stage.name for stage in stages] == [f"{use}-pgd", f"{use}-apgd-cw"]
    assert all(type(stage) is type(stages[0]) for stage in stages)


def test_templates_that_cannot_be_meant():
    with pytest.raises(ValidationError, match="exactly one"):
        CrossPrompt(templates=["a photo"])
    with pytest.raises(ValidationError, match="brings its prompts"):
        CrossPrompt(prompts="teacher", templates=["a {}."])
    assert CrossPrompt(prompts="teacher").templates == []


@pytest.mark.parametrize("threat", [LINF, Threat("l2", 1.5)], ids=lambda threat: threat.norm)
def test_universal_is_one_perturbation(threat):
    scene, others = Scene(24), Scene(60)
    attack = UniversalAttack(Universal(images=24, epochs=4, batch_size=8))
    assert attack.studies == 24
    attack.study(scene.problem(threat=threat), threat, noise(range(24)))
    others.images, others.labels = others.images[24:], others.labels[24:]
    others.asked = 0
    found = attack.run(others.problem(threat=threat), threat, noise(range(36)))
    assert not others.asked
    assert threat.holds(found, others.images).all()
    delta = found - others.images
    assert torch.allclose(delta, delta[:1].expand_as(delta), atol=1e-6)  # the toy's pixels are far from 0 and 1
    assert threat.size(delta).max() > 0.9 * threat.eps
    before, after = (cross_entropy(others.says("self", x), others.labels).mean() for x in (others.images, found))
    assert after > before + 0.1
    assert torch.equal(attack.run(others.problem(rows=slice(3, 5), threat=threat), threat, noise([3, 4])), found[3:5])


def test_universal_must_have_seen_images(scene):
    attack = UniversalAttack(Universal())
    with pytest.raises(UsageError, match="must see training images"):
        attack.run(scene.problem(), LINF, noise(range(8)))
    attack.study(scene.problem(), LINF, noise(range(8)))
    scene.images = scene.images[..., :8]
    with pytest.raises(UsageError, match="cannot be added to images"):
        attack.run(scene.problem(), LINF, noise(range(8)))


@pytest.mark.parametrize("attack", [{"use": "universal"}, {"use": "eot", "attack": {"use": "universal"}}])
def test_universal_is_nothing_to_train_on(tmp_path, attack):
    measured = {"evaluate": {"protocols": [{"name": "strong", "attack": attack}]}}
    run_parts.recipe(tmp_path, **measured)
    with pytest.raises(UserError, match="nothing to train on"):
        run_parts.recipe(tmp_path, attack=attack)
