"""What is pinned here:

- Every forward that a verdict rests on holds exactly 64 images, in order; what fills the last one is never counted.
- A verdict does not depend on who else is judged, bit for bit, even of a model whose sums round by batch size.
- Ties, NaN, infinities and answers beyond the classes are no correct answers; the strictly largest label is, by however
  little.
- Cross-entropy is exact where float32 gives up, infinite where logits are no numbers; margins and certainty are those
  of the logits.
- The verdict on a checkpoint is what a fresh forward of `advdistill.load` says, float32, class features anew; nothing
  that the attacked model has become changes it.
- It is attacked and judged in eval mode with what it has learned, whatever mode it was in: a model that samples nothing
  never disagrees with its own verdict. The order of the classes changes nothing.
- What the attacked model says of itself is kept beside the verdict, and is not it; an image that misleads the attacked
  model alone is not broken, one that misleads the exported model alone is.
- The verdict rests on the stored floats, not on their 8 bits; what 8 bits leave is told beside it. Rounding goes
  towards the clean image.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import run_parts
import torch
from advdistill_attacks.configs import PGD as PGDConfig
from advdistill_attacks.pgd import PGD
from torch import Tensor

import advdistill
from advdistill import Attack, ClassSet, Noise, Problem, Threat
from advdistill.engine.attack import right
from advdistill.engine.checkpoint import open_checkpoint
from advdistill.engine.data import ArraySplit
from advdistill.engine.evaluate import Bench
from advdistill.engine.judge import PORTION, Judge, quantise
from advdistill.engine.outcomes import Outcome
from advdistill.engine.participant import Participant
from advdistill.engine.protocol import Protocol
from advdistill.engine.subject import subject
from advdistill.hooks.registry import default_registry
from advdistill.testing import ToyConfig, ToyDataset, ToyModel
from advdistill.testing.toy import CLASSES

NAN, INF = float("nan"), float("inf")


def some(count: int) -> tuple[Tensor, Tensor]:
    """Toy images over and over, half of them with a label that is not theirs."""
    split = ToyDataset(None).split("test")
    chosen = torch.arange(count) % len(split)
    images = torch.stack([split.load(int(i)) for i in chosen])
    return images, (split.labels[chosen] + torch.arange(count) % 2) % 6


def saying(logits: Tensor) -> Judge:
    """A judge of a model that gives the first image the first row of `logits`, the second the second."""
    return Judge(lambda images: logits[(images[:, 0, 0, 0] * 100).round().long()])


def numbered(count: int) -> Tensor:
    return (torch.arange(count) / 100).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


# --- portions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_every_forward_holds_64(count: int) -> None:
    asked: list[Tensor] = []
    model = Participant(ToyModel(ToyConfig()), CLASSES)
    images, labels = some(count)

    def forward(of: Tensor) -> Tensor:
        asked.append(of)
        return model.logits(of)

    look = Judge(forward).look(images, labels)
    assert PORTION == 64 and [len(each) for each in asked] == [64] * -(-count // 64)
    assert torch.equal(torch.cat(asked)[:count], images)
    for values in vars(look).values():
        assert values.shape == (count,)
    assert look.right.sum() == -(-count // 2)  # every second label is not its image's


def test_a_verdict_does_not_depend_on_company() -> None:
    def moody(images: Tensor) -> Tensor:
        """Sums differ with the size of a batch, as matrix products' do."""
        bright = images[:, 0, 0, 0] * (1 + 1e-3 * len(images))
        return torch.stack([bright, torch.full_like(bright, 0.5 * 1.064)], 1)

    images = torch.rand(130, 1, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, 3, 2, 2)
    labels = torch.zeros(130, dtype=torch.long)
    judge = Judge(moody)
    together = judge.look(images, labels)
    assert 20 < together.right.sum() < 110
    for rows in ([5], [129, 3], list(range(100, 130)), list(range(65))):
        alone = judge.look(images[rows], labels[rows])
        for name, values in vars(alone).items():
            assert torch.equal(values, getattr(together, name)[rows]), name


# --- the rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "correct"),
    [
        ([1.0, 0.0, 0.0], True),
        ([1.0000001, 1.0, 1.0], True),
        ([1.0, 1.0, 0.0], False),  # a class that stands twice
        ([0.0, 0.0, 0.0], False),  # the same answer for all
        ([0.0, 1.0, 0.0], False),
        ([NAN, 0.0, 0.0], False),
        ([1.0, NAN, 0.0], False),
        ([1.0, 0.0, NAN], False),
        ([NAN, NAN, NAN], False),
        ([INF, INF, 0.0], False),
        ([-INF, -INF, -INF], False),
        ([1.0, 0.0, 0.0, 2.0], False),  # "none of these", a column beyond the classes
        ([1.0, 0.0, 0.0, 1.0], False),
        ([2.0, 0.0, 0.0, 1.0], True),
    ],
)
def test_what_a_correct_answer_is(logits: list[float], correct: bool) -> None:
    row = torch.tensor([logits])
    label = torch.zeros(1, dtype=torch.long)
    assert right(row, label).tolist() == [correct]
    assert saying(row).look(numbered(1), label).right.tolist() == [correct]


def test_losses_margins_and_certainty() -> None:
    rows = torch.tensor([[0.0, 0.0, 0.0], [30.0, 0.0, -1.0], [0.0, 200.0, 0.0], [NAN, 0.0, 0.0], [9.0, 8.5, 0.0]])
    look = saying(rows).look(numbered(5), torch.zeros(5, dtype=torch.long))
    loss = look.cross_entropy
    assert loss.dtype == torch.float64
    assert loss[0] == pytest.approx(1.0986122886681098)
    assert loss[1] == pytest.approx(1.2800e-13, rel=1e-3) and loss[2] == pytest.approx(200.0)
    assert loss[3] == INF and loss[4] == pytest.approx(0.4741, abs=1e-4)
    assert look.certain.tolist() == [False, True, False, False, False]
    assert look.margin[[0, 1, 2, 4]].tolist() == [0.0, 30.0, -200.0, 0.5]
    assert look.right.tolist() == [False, True, False, False, True]


def test_half_precision_logits_are_judged_in_full() -> None:
    rows = torch.tensor([[8.0, 7.9921875], [8.0, 8.0]], dtype=torch.float16)
    look = saying(rows).look(numbered(2), torch.zeros(2, dtype=torch.long))
    assert look.margin.dtype == torch.float32 and look.margin.tolist() == [0.0078125, 0.0]
    assert look.right.tolist() == [True, False]


# --- the exported model ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    run_parts.train(run_parts.recipe(folder))
    return folder / "run" / "last.safetensors"


def test_a_verdict_is_a_fresh_forward_of_the_export(trained: Path) -> None:
    registry = default_registry().with_files([run_parts.PLUGIN])
    found = subject(str(trained), registry, attack="pgd", settings=["steps=3"], eps=6 / 255)
    decided: dict[int, tuple[Tensor, bool]] = {}

    def keep(name: str, batch: object, images: Tensor, right: Tensor) -> None:
        if name != "clean":
            for sample, image, held in zip(batch.samples.tolist(), images, right.tolist(), strict=True):  # type: ignore[attr-defined]
                decided[sample] = image, held

    clean, column = list(found.bench(batch_size=7).columns(found.protocols, keep))
    fresh = advdistill.load(trained, plugins=[run_parts.PLUGIN])
    outcome, labels = column.outcome, column.outcome.labels
    images = torch.stack([decided[int(i)][0] for i in outcome.indices])
    logits = Judge(fresh).look(images, labels)
    assert torch.equal(logits.right, outcome.right) and 0 < outcome.right.sum() < outcome.clean.sum()
    assert [held for _, held in decided.values()].count(True) == outcome.right.sum()
    single = torch.cat([fresh(image.unsqueeze(0)) for image in images])
    clear = logits.margin.abs() > 1e-4
    assert torch.equal(right(single, labels)[clear], outcome.right[clear])
    assert torch.equal(clean.outcome.right, outcome.clean)


def test_what_became_of_the_attacked_model_changes_no_verdict(trained: Path) -> None:
    registry = default_registry().with_files([run_parts.PLUGIN])
    found = subject(str(trained), registry, attack="pgd", settings=["steps=2"], eps=2 / 255)
    bench = found.bench()
    before = next(bench.columns(found.protocols[:1])).outcome
    model = found.participant.model
    assert isinstance(model, ToyModel)
    with torch.no_grad():
        model.gain.neg_()  # somebody has changed the attacked one
    found.participant.load(dict(model.learned()))
    bench = found.bench()
    clean, attacked = (column.outcome for column in bench.columns(found.protocols))
    assert torch.equal(clean.right, before.right) and clean.right.sum() > 50
    assert not attacked.claimed[attacked.clean].any() and attacked.right[attacked.clean].all()
    assert open_checkpoint(trained, registry).model.learned()["gain"].gt(0).all()


# --- as it is deployed -------------------------------------------------------------------------------------------


class Dropping(ToyModel):
    """In training it drops features."""

    def features(self, images: Tensor) -> Tensor:
        return torch.nn.functional.dropout(super().features(images), 0.6, self.training)


def learned(model: ToyModel) -> ToyModel:
    """With prompts that have moved class features far from those of the names alone."""
    with torch.no_grad():
        model.context.copy_(3 * torch.randn(len(model.context), generator=torch.Generator().manual_seed(1)))
    return model


def attacked(participant: Participant, classes: ClassSet = CLASSES) -> Outcome:
    """By a few steps of pgd, on a split whose labels follow the order of `classes`."""
    split = ToyDataset(None).split("test")
    assert isinstance(split, ArraySplit)
    place = torch.tensor([classes.names.index(name) for name in CLASSES.names])
    split = ArraySplit(split.images, place[split.labels], split.ids)
    attack = PGD(PGDConfig(steps=3))
    return Bench(participant, lambda name: split, 0, batch_size=13).measure(
        Protocol("pgd", attack=attack, threat=Threat("linf", 5 / 255)), split, torch.arange(60), "key"
    )


def test_what_is_in_training_is_attacked_and_judged_in_eval_mode() -> None:
    wanted = attacked(Participant(ToyModel(ToyConfig()), CLASSES))
    dropping = Participant(Dropping(ToyConfig()), CLASSES, learns=True)
    dropping.model.train()
    found = attacked(dropping)
    assert torch.equal(found.right, wanted.right) and 0 < found.right.sum() < found.clean.sum()
    assert torch.equal(found.size, wanted.size) and torch.equal(found.margin, wanted.margin)
    assert dropping.model.training


def test_the_model_that_is_attacked_is_the_one_that_classifies() -> None:
    """With the prompts that were learned, not those of the hand."""
    prompted, said = Participant(learned(ToyModel(ToyConfig())), CLASSES), list[Tensor]()

    class Listens(Attack):
        def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
            said.append(problem.predict(problem.images, problem.rows))
            return problem.images

    bench = Bench(prompted, ToyDataset(None).split, 0)
    (column,) = bench.columns([Protocol("listens", attack=Listens(None), threat=Threat("linf", 0.1))])
    outcome, (logits,) = column.outcome, said
    others = logits.scatter(1, outcome.labels.unsqueeze(1), -INF).amax(1)
    margin = logits.gather(1, outcome.labels.unsqueeze(1)).squeeze(1) - others
    assert outcome.clean.all() and len(logits) == 60
    torch.testing.assert_close(margin, outcome.margin)
    found = attacked(prompted)
    assert torch.equal(found.claimed, found.right) and 0 < found.right.sum() < found.clean.sum()


def test_the_order_of_the_classes_changes_no_verdict() -> None:
    wanted = attacked(Participant(ToyModel(ToyConfig()), CLASSES))
    order = ClassSet(("dog", "bee", "fox", "ant", "eel", "cat"), CLASSES.templates)
    found = attacked(Participant(ToyModel(ToyConfig()), order), order)
    assert torch.equal(found.right, wanted.right) and found.clean.all()


# --- claims and verdicts -----------------------------------------------------------------------------------------


class Brightens(Attack):
    """Adds half a radius, and asks about it."""

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        ahead = problem.images + threat.eps / 2
        problem.predict(ahead, problem.rows)
        return ahead


class Threshold(ToyModel):
    """Sees class 0 up to some brightness of the first pixel, then class 1.

    Attributes:
        above: that brightness.
    """

    above = 0.0

    def features(self, images: Tensor) -> Tensor:
        return (images[:, 0, 0, 0] - self.above).unsqueeze(1).expand(-1, self.width)

    def logits(self, features: Tensor, classifier: Tensor) -> Tensor:
        bright = features[:, :1]
        return torch.cat([-bright, bright, torch.full((len(bright), 4), -9.0)], 1)


def threshold(above: float) -> Participant:
    model = Threshold(ToyConfig())
    model.above = above
    return Participant(model, CLASSES)


def judged(attacked: float, exported: float, eps: float, levels: list[float]) -> Outcome:
    """Images of the given brightnesses, all of class 0, brightened by `eps`."""
    images = torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()
    split = ArraySplit(images, torch.zeros(len(levels), dtype=torch.long), [str(level) for level in levels])
    judge = Judge(threshold(exported).logits)
    bench = Bench(threshold(attacked), lambda name: split, 0, judge=judge)
    protocol = Protocol("brightens", attack=Brightens(None), threat=Threat("linf", 2 * eps))
    return bench.measure(protocol, split, torch.arange(len(levels)), "key")


def test_a_claim_is_no_verdict() -> None:
    only_attacked = judged(attacked=0.5, exported=0.7, eps=0.1, levels=[0.1, 0.45])
    assert only_attacked.claimed.tolist() == [True, False] and only_attacked.right.tolist() == [True, True]
    only_exported = judged(attacked=0.7, exported=0.5, eps=0.1, levels=[0.1, 0.45])
    assert only_exported.claimed.tolist() == [True, True] and only_exported.right.tolist() == [True, False]
    assert only_exported.stage.tolist() == [-1, 0] and only_attacked.stage.tolist() == [-1, -1]


def test_verdicts_rest_on_floats_and_8_bits_are_told_beside() -> None:
    # The image ends a third of a level above the threshold; its 8 bits lie below it, or two thirds above.
    level = 100 / 255
    found = judged(attacked=level, exported=level, eps=1 / 3 / 255, levels=[level, 99 / 255])
    assert found.clean.tolist() == [False, True] and found.right.tolist() == [False, True]
    just = judged(attacked=level + 1e-4, exported=level + 1e-4, eps=1 / 3 / 255, levels=[level, 99 / 255])
    assert just.clean.all() and just.right.tolist() == [False, True]
    assert just.rounded.tolist() == [True, True], "rounded towards the clean image it is harmless again"
    far = judged(attacked=level + 1e-4, exported=level + 1e-4, eps=4 / 3 / 255, levels=[level, 98 / 255])
    assert far.right.tolist() == [False, True] and far.rounded.tolist() == [False, True]


def test_rounding_goes_towards_the_clean_image() -> None:
    clean = torch.tensor([100, 100, 100, 100, 0, 255]).view(1, 1, 1, 6) / 255
    moved = clean + torch.tensor([0.9, -0.9, 1.5, -1.00001, 0.6, -0.6]).view(1, 1, 1, 6) / 255
    assert quantise(moved, clean).flatten().tolist() == [100, 100, 101, 99, 0, 255]
