"""What is pinned here:

- Class features are encoded once an optimizer step, however often they are asked for; with a graph where they learn;
  as constants to the attack; once a run where they do not learn.
- `settle` gives the gradients that plain autograd through the classifier gives (float64, 1e-12).
- The batch's own images and what an attack returned are answered once, other tensors each time anew. What an objective
  asks of a learner is no answer for the loss, even of an output made before the attack; a frozen teacher's is.
- Attacks leave no `.grad`, and give `requires_grad` and training flags back, also when an objective raises.
- Frozen teachers build no graph unless the pixels ask for one; learners always do, in the loss.
- `attack(rows=…)` changes those rows alone, with their own labels and noise; none is fine, too.
- `detach()` cuts, `[rows]` selects; class features and cosines are asked of the output itself. Missing parts are told.
- Class features are encoded in the mode of training, whoever asks first; a teacher that is not in training is in eval
  mode under attack.
- `once` computes in the first phase that asks; `forget` drops what models said, and keeps images and what `once` found.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdistill import Attack, Clock, Noise, Problem, Step, Threat, cross_entropy, kl, same_width
from advdistill.engine.data import Batch
from advdistill.engine.participant import Participant
from advdistill.errors import UsageError
from advdistill.testing import ToyAttack, ToyConfig, ToyDataset, ToyModel
from advdistill.testing.toy import CLASSES


class Counting(ToyModel):
    """A toy that counts what it is asked, and has a layer that tells training from evaluation."""

    def __init__(self, learns: str = "both") -> None:
        super().__init__(ToyConfig(learns=learns))
        self.asked: Counter[str] = Counter()
        self.drop = nn.Dropout(0.5)
        self.modes: list[bool] = []

    def classifier(self, classes: Tensor, rows: Tensor | None = None) -> Tensor:
        self.asked["classifier"] += 1
        return super().classifier(classes, rows)

    def features(self, images: Tensor) -> Tensor:
        self.asked["features"] += 1
        self.modes.append(self.training)
        return self.drop(super().features(images))


def batch(size: int = 6) -> Batch:
    split = ToyDataset(None).split("train")
    samples = torch.arange(3, 3 + size)
    return Batch(torch.stack([split.load(i) for i in samples.tolist()]), split.labels[samples], samples)


class Scene:
    """A step over counting toys."""

    def __init__(self, learns: str = "both", teaches: bool = False, attack: Attack | None = None) -> None:
        self.student, self.teacher = Counting(learns), Counting(learns)
        self.participant = Participant(self.student, CLASSES, learns=True)
        self.teaching = Participant(self.teacher, CLASSES, learns=teaches)
        self.student.train()
        self.batch = batch()
        self.noise = Noise(0, "test", 0, self.batch.samples)
        self.threat = Threat("linf", 8 / 255)
        self.attack = attack or ToyAttack(None)

    def step(self) -> Step:
        return Step(self.batch, Clock(0, 1, 0), student=self.participant, teachers={"clean": self.teaching},
                    attack=self.attack, threat=self.threat, noise=self.noise)  # fmt: skip

    def parameters(self) -> list[nn.Parameter]:
        return [*self.student.parameters(), *self.teacher.parameters()]


def toward_loss(s: Step) -> Any:
    return lambda images, rows: cross_entropy(s.student(images), s.labels[rows])


# --- class features ----------------------------------------------------------------------------------------------


def test_class_features_are_encoded_once_a_step() -> None:
    scene = Scene()
    for step in (1, 2):
        s = scene.step()
        adversarial = s.attack(toward_loss(s))
        loss = (kl(s.teacher("clean")(s.images), s.student(adversarial)) + s.student(s.images).cosine(s.labels)).sum()
        loss.backward()
        scene.participant.settle()
        assert scene.student.asked["classifier"] == step
        assert scene.teacher.asked["classifier"] == 1  # frozen: once a run
        assert scene.student.context.grad is not None and scene.student.context.grad.any()
        scene.student.zero_grad()


def test_image_students_encode_classes_once_a_run() -> None:
    scene = Scene(learns="image")
    for _ in range(2):
        s = scene.step()
        cross_entropy(s.student(s.attack(toward_loss(s))), s.labels).sum().backward()
        scene.participant.settle()
    assert scene.student.asked["classifier"] == 1
    assert not scene.participant.classifier().requires_grad


def test_other_learned_values_give_other_class_features() -> None:
    for learns in ("both", "image"):
        scene = Scene(learns=learns)
        before = scene.participant.classifier()
        scene.participant.load({name: tensor + 0.5 for name, tensor in scene.student.learned().items()})
        assert torch.equal(before, scene.participant.classifier()) == (learns == "image")
        assert scene.student.asked["classifier"] == 2


def test_the_attack_sees_class_features_as_constants() -> None:
    scene, leaves = Scene(), []

    def objective(s: Step) -> Any:
        def climb(images: Tensor, rows: Tensor) -> Tensor:
            loss = cross_entropy(s.student(images), s.labels[rows]) - s.student(images).cosine(s.labels[rows])
            leaves.extend(torch.autograd.grad(loss.sum(), scene.participant.classifier(), retain_graph=True,
                                              allow_unused=True))  # fmt: skip
            return loss

        return climb

    s = scene.step()
    s.attack(objective(s))
    assert leaves == [None] * len(leaves) and leaves


@pytest.mark.parametrize("first", ["in the attack", "in the loss"])
def test_settling_equals_plain_autograd(first: str) -> None:
    scene = Scene()
    model, labels = scene.student.double(), scene.batch.labels
    model.eval()
    scene.batch = Batch(scene.batch.images.double(), labels, scene.batch.samples)
    with torch.no_grad():
        model.context.add_(torch.linspace(-1, 1, len(model.context)))
    classes = scene.participant.prepared = scene.participant.prepared.double()
    images = scene.batch.images
    if first == "in the attack":
        with scene.participant.under_attack(), torch.no_grad():
            scene.participant.logits(images)
    for rows in (torch.arange(4), torch.arange(4, 6)):  # two portions, one settling
        said = model.logits(model.features(images[rows]), scene.participant.classifier())
        (F.cross_entropy(said, labels[rows], reduction="sum") + said.square().sum()).backward()
    scene.participant.settle()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    said = model.predict(images, classes)
    (F.cross_entropy(said, labels, reduction="sum") + said.square().sum()).backward()
    assert found.keys() == {"gain", "context"}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-12, atol=1e-12)


def test_discarding_leaves_no_gradient() -> None:
    scene = Scene()
    s = scene.step()
    cross_entropy(s.student(s.images), s.labels).sum().backward()
    scene.participant.discard()
    cross_entropy(scene.step().student(s.images.clone()), s.labels).sum().backward()
    once = scene.participant.classifier().grad
    scene.participant.discard()
    assert once is not None and all(p.grad is None for p in scene.parameters())


# --- what is remembered ------------------------------------------------------------------------------------------


def test_the_same_question_is_answered_once() -> None:
    scene = Scene()
    s = scene.step()
    adversarial = s.attack(toward_loss(s))
    for images in (s.images, adversarial):
        assert s.student(images) is s.student(images)
        assert s.student(images).logits is s.student(images).logits
        assert s.student(images) is not s.teacher("clean")(images)
    other = s.images.clone()
    assert s.student(other) is not s.student(other)
    before = scene.student.asked["features"]
    s.student(other).logits.sum(), s.student(other).features.sum()
    assert scene.student.asked["features"] == before + 2


def test_features_build_no_classifier_and_are_shared_with_logits() -> None:
    scene = Scene()
    s = scene.step()
    said = s.student(s.images)
    assert said.features.shape == (6, 192) and scene.student.asked["classifier"] == 0
    said.logits, said.probs, said.log_probs, said.confidence(s.labels), said.cosine(s.labels)
    assert scene.student.asked == {"features": 1, "classifier": 1}


@pytest.mark.parametrize("made", ["inside", "before"])
def test_what_an_objective_asks_of_a_learner_is_no_answer_for_the_loss(made: str) -> None:
    scene = Scene(teaches=True)
    s = scene.step()
    earlier = s.student(s.images), s.teacher("clean")(s.images)
    seen = []

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        student, teacher = earlier if made == "before" else (s.student(s.images), s.teacher("clean")(s.images))
        constants = student[rows].logits, teacher.logits, teacher.detach().logits
        seen.extend(constants)
        candidate = s.student(images)
        return kl(teacher[rows], candidate) + kl(student[rows], candidate)

    s.attack(objective)
    assert not any(constant.requires_grad for constant in seen)
    assert scene.student.asked["features"] == 1 + 2  # the constant once; the attack's two steps
    scene.student.modes.clear()
    said = [*earlier, s.student(s.images), s.teacher("clean")(s.images)]
    assert all(output.logits.requires_grad for output in said)
    assert scene.student.modes == [True]  # once more, in training mode
    assert not torch.equal(said[0].logits, seen[0])  # dropout
    torch.testing.assert_close(said[1].logits, seen[1])


def test_what_an_objective_asks_of_a_frozen_teacher_is_kept() -> None:
    scene = Scene()
    s = scene.step()
    s.attack(lambda images, rows: kl(s.teacher("clean")(s.images)[rows], s.student(images)))
    assert scene.teacher.asked["features"] == 1
    s.teacher("clean")(s.images).logits.sum()
    assert scene.teacher.asked["features"] == 1


# --- who gets gradients ------------------------------------------------------------------------------------------


def test_graphs_are_built_where_somebody_learns_or_pixels_ask() -> None:
    scene = Scene()
    s = scene.step()
    pixels = s.images.clone().requires_grad_()
    assert s.student(s.images).logits.requires_grad and s.student(s.images).features.requires_grad
    frozen = s.teacher("clean")(s.images)
    assert not (frozen.logits.requires_grad or frozen.cosine(s.labels).requires_grad)
    (gradient,) = torch.autograd.grad(s.teacher("clean")(pixels).logits.sum(), pixels)
    assert gradient.any()
    assert not s.learns("clean") and Scene(teaches=True).step().learns("clean")


@pytest.mark.parametrize("raising", [False, True])
@pytest.mark.parametrize("teaches", [False, True])
def test_an_attack_leaves_nothing_behind(raising: bool, teaches: bool) -> None:
    scene = Scene(teaches=teaches)
    wanted = [p.requires_grad for p in scene.parameters()]
    scene.student.drop.eval()  # modes are given back module by module
    modes = [module.training for module in scene.student.modules()]
    s = scene.step()

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        assert not any(p.requires_grad for p in scene.parameters())
        assert not any(module.training for module in scene.student.modules())
        if raising:
            raise ZeroDivisionError
        return cross_entropy(s.student(images), s.labels[rows]) + s.teacher("clean")(images).logits.sum(1)

    if raising:
        with pytest.raises(ZeroDivisionError):
            s.attack(objective)
    else:
        s.attack(objective)
    assert [p.requires_grad for p in scene.parameters()] == wanted
    assert [module.training for module in scene.student.modules()] == modes
    assert all(p.grad is None for p in scene.parameters())
    assert scene.participant.classifier().grad is None
    assert s.student(s.images).logits.requires_grad  # and no verb stays in attack mode


# --- rows --------------------------------------------------------------------------------------------------------


class Recording(Attack):
    """Paints its noise over the images, inside the ball, after looking at the objective once."""

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        self.problem, self.values = problem, problem.objective(problem.images, problem.rows)
        return problem.images + threat.eps * (2 * noise.uniform((3, 16, 16)) - 1)


def test_rows_are_attacked_alone() -> None:
    scene = Scene(attack=Recording(None))
    scene.student.eval()
    s = scene.step()
    everybody = s.attack(toward_loss(s))
    rows = torch.tensor([4, 1])
    some = s.attack(toward_loss(s), rows=rows)
    assert torch.equal(scene.attack.problem.labels, s.labels[rows])
    torch.testing.assert_close(scene.attack.values, cross_entropy(s.student(s.images), s.labels)[rows].detach())
    rest = torch.tensor([0, 2, 3, 5])
    assert torch.equal(some[rest], s.images[rest])
    assert torch.equal(some[rows], everybody[rows]) and not torch.equal(some[rows], s.images[rows])
    assert s.student(some) is s.student(some)


def test_no_rows_at_all() -> None:
    scene = Scene()
    s = scene.step()
    assert torch.equal(s.attack(toward_loss(s), rows=torch.zeros(0, dtype=torch.long)), s.images)


# --- outputs -----------------------------------------------------------------------------------------------------


def test_cutting_and_selecting() -> None:
    scene = Scene()
    s = scene.step()
    said, rows = s.student(s.images), torch.tensor([5, 0, 0])
    assert not said.detach().log_probs.requires_grad and not said.detach().features.requires_grad
    assert torch.equal(said.detach().logits, said.logits)
    assert torch.equal(said[rows].probs, said.probs[rows]) and said[rows].logits.requires_grad
    assert torch.equal(said.detach()[rows].features, said.features[rows])
    assert torch.equal(said[rows].confidence(s.labels[rows]), said.confidence(s.labels)[rows])
    for part in (said.detach(), said[rows]):
        with pytest.raises(UsageError, match="ask the output itself"):
            part.cosine(s.labels)


def test_cosines_and_confidences() -> None:
    scene = Scene()
    scene.student.eval()
    s = scene.step()
    said = s.student(s.images)
    torch.testing.assert_close(said.cosine(s.labels) * 12, said.logits.gather(1, s.labels[:, None])[:, 0])
    torch.testing.assert_close(said.confidence(s.labels), said.logits.softmax(1)[torch.arange(6), s.labels])


def test_an_attack_that_is_not_there_is_told() -> None:
    scene = Scene()
    s = Step(scene.batch, Clock(0, 1, 0), student=scene.participant, teachers={}, attack=None,
             threat=scene.threat, noise=scene.noise)  # fmt: skip
    with pytest.raises(UsageError, match="the recipe has no attack"):
        s.attack(toward_loss(s))


def test_class_features_are_constants_to_the_attack_and_learn_in_the_loss() -> None:
    scene = Scene()
    s = scene.step()
    seen: list[bool] = []

    def objective(images: Tensor, rows: Tensor) -> Tensor:
        said = s.student(images)
        seen.append(said.classifier.requires_grad)
        return said.features.sum(1)

    s.attack(objective)
    assert seen and not any(seen)
    assert s.student(s.images).classifier.requires_grad and not s.teacher("clean")(s.images).classifier.requires_grad
    with pytest.raises(UsageError, match="ask the output itself"):
        _ = s.student(s.images).detach().classifier


def test_phases_share_images_and_not_what_models_said() -> None:
    scene, calls = Scene(), []
    s = scene.step()

    def attack() -> Tensor:
        calls.append(1)
        return s.attack(toward_loss(s))

    first = s.once("adversarial", attack)
    before = s.student(first).logits
    assert s.student(first).logits is before
    s.forget()
    assert s.once("adversarial", attack) is first and len(calls) == 1
    after = s.student(first)
    assert after.logits is not before and s.student(first) is after
    learned = s.once("features", lambda: s.student(s.images).features)
    assert not learned.requires_grad


def test_features_can_only_be_compared_where_there_are_some_of_one_width() -> None:
    class Wide(ToyModel):
        width = 7

    class Whole(nn.Module):
        pass

    same_width({"student": ToyModel(ToyConfig()), "clean": ToyModel(ToyConfig())}, "clean")
    with pytest.raises(UsageError, match=r"have 192 dimensions, those of the clean teacher 7"):
        same_width({"student": ToyModel(ToyConfig()), "clean": Wide(ToyConfig())}, "clean")
    with pytest.raises(UsageError, match="clean: Whole has no features of images"):
        same_width({"student": ToyModel(ToyConfig()), "clean": Whole()}, "clean")  # type: ignore[dict-item]


@pytest.mark.parametrize("first", ["attack", "loss"])
def test_class_features_are_encoded_as_in_training(first: str) -> None:
    class Moody(Counting):
        def classifier(self, classes: Tensor, rows: Tensor | None = None) -> Tensor:
            self.modes.append(self.training)
            return super().classifier(classes, rows)

    scene = Scene()
    scene.student = Moody()
    scene.participant = Participant(scene.student, CLASSES, learns=True)
    scene.student.train()
    s = scene.step()
    if first == "loss":
        _ = s.student(s.images).classifier
    s.attack(lambda images, rows: s.student(images).classifier.sum() + images.flatten(1).sum(1))
    assert scene.student.modes == [True] and scene.student.training


def test_a_teacher_that_is_not_in_training_is_in_eval_mode_under_attack() -> None:
    class Batchwise(Counting):
        def attacked(self) -> Any:
            return self.switched(training=True)

    scene = Scene()
    scene.teacher = Batchwise()
    scene.teaching = Participant(scene.teacher, CLASSES)
    s = scene.step()
    s.attack(lambda images, rows: s.teacher("clean")(images).features.sum(1))
    assert scene.teacher.modes and not any(scene.teacher.modes)
