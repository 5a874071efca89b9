"""What is pinned here:

- A row counts all samples that were drawn, wrong ones and broken ones included: never survivors, never clean accuracy.
- An evaluation comes back from its file as it was written, to the bit, infinities and NaN included; from its folder,
  too; the file is safetensors, readable without this package.
- Damaged files, other files, other formats and missing ones are told, with what to do.
- Columns are found by heading; the worst case over attacks is right about every image of every attack of that scope,
  and attacks on different samples have none.
- What an attack's stages find adds up: the first that breaks a sample is the one that is named, a later one takes
  nothing back; passes and shares of zero gradients are summed; the record tells apart what was wrong before.
- Survivors of one stage go to the next, others do not; what a stage found is worth its passes.
- A sample takes its noise with it, whoever stands beside it.
- Images are made on the model that is named: the one without anything learned, a teacher as it ended, another file,
  each by the measured model's classes and with a fingerprint of its own. What an attack learns beforehand it learns
  from training samples, drawn evenly.
- Sizes are those of the images judged, in the threat's norm, at most its radius; the rise is the loss's.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
from advdistill_attacks.configs import PGD as PGDConfig
from advdistill_attacks.pgd import PGD
from safetensors.torch import load_file
from torch import Tensor

from advdistill import Attack, ClassSet, Noise, Problem, Threat
from advdistill.engine import build, checkpoint
from advdistill.engine.count import Count
from advdistill.engine.data import ArraySplit, stratified
from advdistill.engine.evaluate import Bench, Results
from advdistill.engine.outcomes import FILE, Column, Evaluation, Outcome
from advdistill.engine.participant import Participant, Seen
from advdistill.engine.protocol import Protocol
from advdistill.engine.subject import Target
from advdistill.errors import DataError, RunError, UsageError
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import resolve_blocks
from advdistill.testing import ToyConfig, ToyDataset, ToyModel
from advdistill.testing.toy import CLASSES


def outcome(right: list[bool], clean: list[bool] | None = None, indices: list[int] | None = None) -> Outcome:
    """Made up, with values that are hard to write."""
    count = len(right)
    held, before = torch.tensor(right), torch.tensor(clean or [True] * count)
    odd = torch.tensor([math.inf, math.nan, -0.0, 1e-45, 1 / 3])[torch.arange(count) % 5]
    passes = torch.arange(count, dtype=torch.int32)
    return Outcome(
        indices=torch.tensor(indices or list(range(count))),
        labels=torch.arange(count) % 3,
        clean=before,
        right=held & before,
        claimed=held,
        rounded=~held,
        recovered=held & ~before,
        size=odd.abs(),
        rise=odd,
        margin=-odd,
        certain=~before,
        nearest=odd.flip(0),
        forwards=passes,
        backwards=passes + 1,
        blank=passes * 0,
        zeros=odd,
        stage=torch.where(held, -1, 2).to(torch.int16),
    )


def column(name: str, found: Outcome, attacked: bool = True, scope: str = "") -> Column:
    said = {"name": name, "attack": {"use": "pgd"} if attacked else None, "key": name}
    return Column(name, said, found, ("weak", "strong") if attacked else (), scope)


def evaluation(*columns: Column) -> Evaluation:
    return Evaluation("a model ×2", {"model": {"sha256": "abc"}, "versions": {"torch": "2"}}, columns)


def same(one: Any, other: Any) -> bool:
    """Bit for bit, signs of zero and NaN included."""

    def bits(tensor: Tensor) -> Tensor:
        return tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor

    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Outcome)]
    return all(a.dtype == b.dtype and torch.equal(bits(a), bits(b)) for a, b in pairs)


# --- counts ------------------------------------------------------------------------------------------------------


def test_all_samples_are_counted() -> None:
    found = outcome([True, True, False, False, True], clean=[True, True, True, False, False])
    assert found.count == Count(2, 5) and len(found) == 5
    row = Results.of("toy", [column("pgd", found), column("pgd", found, scope="new")])
    assert row.counts == {"pgd": Count(2, 5), "new: pgd": Count(2, 5)}
    assert row.to_json()["protocols"]["pgd"]["accuracy"] == 0.4


def test_parts_are_taken_row_by_row() -> None:
    found = outcome([True, False, True, True, False])
    part, masked = found[torch.tensor([4, 0])], found[found.labels == 2]
    assert part.indices.tolist() == [4, 0] and part.right.tolist() == [False, True] and len(part) == 2
    assert masked.indices.tolist() == [2] and masked.count == Count(1, 1)
    assert same(found[torch.arange(5)], found)
    assert found.attacked.tolist() == [False, True, True, True, True]


# --- files -------------------------------------------------------------------------------------------------------


def two() -> Evaluation:
    clean = outcome([True, True, False, True], clean=[True, True, False, True])
    return evaluation(column("clean", clean, attacked=False), column("pgd", outcome([False, True, False, True, True])),
                      column("pgd", outcome([True]), scope="größer"))  # fmt: skip


@pytest.mark.parametrize("place", ["file", "folder"])
def test_an_evaluation_comes_back(tmp_path: Path, place: str) -> None:
    made = two()
    made.save(tmp_path / FILE)
    back = Evaluation.read(tmp_path / FILE if place == "file" else tmp_path)
    assert (back.subject, back.facts) == (made.subject, made.facts) and len(back.columns) == 3
    for mine, theirs in zip(made.columns, back.columns, strict=True):
        assert (mine.name, mine.scope, mine.stages, mine.statement) == (
            theirs.name, theirs.scope, theirs.stages, theirs.statement
        )  # fmt: skip
        assert same(mine.outcome, theirs.outcome) and mine.attacked == theirs.attacked
    assert [c.heading for c in back.columns] == ["clean", "pgd", "größer: pgd"]
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_what_was_measured_comes_back(tmp_path: Path) -> None:
    bench = Bench(Participant(ToyModel(ToyConfig()), CLASSES), ToyDataset(None).split, 0)
    attack = PGD(PGDConfig(steps=2))
    attack.name = "pgd"
    protocol = Protocol("pgd", attack=attack, threat=Threat("linf", 6 / 255), settings={"steps": 2})
    made = evaluation(*bench.columns([Protocol("clean"), protocol]))
    made.save(tmp_path / FILE)
    back = Evaluation.read(tmp_path)
    assert all(same(a.outcome, b.outcome) for a, b in zip(made.columns, back.columns, strict=True))
    assert back.columns[1].statement == made.columns[1].statement and back.columns[1].stages == ("pgd",)
    assert back.columns[0].stages == () and not back.columns[0].attacked


def test_the_file_needs_no_package_to_read(tmp_path: Path) -> None:
    two().save(tmp_path / FILE)
    data = (tmp_path / FILE).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["advdistill"])
    assert facts["outcomes"] == 1 and [head["name"] for head in facts["columns"]] == ["clean", "pgd", "pgd"]
    tensors = load_file(tmp_path / FILE)
    assert tensors["1.right"].tolist() == [False, True, False, True, True]
    assert len(tensors) == 3 * (len(fields(Outcome)) - 1)  # no sources


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere.safetensors"):
        with pytest.raises(DataError, match="holds no evaluation") as told:
            Evaluation.read(missing)
        assert "advdistill evaluate" in told.value.hint and str(missing) in told.value.message
    file = tmp_path / FILE
    two().save(file)
    whole = file.read_bytes()
    for damaged in (whole[:-9], whole[:50], b"", whole + b"x"):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=FILE):
            Evaluation.read(tmp_path)
    checkpoint.write(file, {"0.right": torch.ones(2)}, {"format": 1, "recipe": {}})  # a model's
    with pytest.raises(DataError, match="no evaluation of a format"):
        Evaluation.read(file)
    facts, tensors = {"format": 1, "outcomes": 2, "subject": "", "facts": {}, "columns": []}, {"0.right": torch.ones(2)}
    checkpoint.write(file, tensors, facts)
    with pytest.raises(DataError, match="format that this version reads") as told:
        Evaluation.read(file)
    assert told.value.hint


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two().save(tmp_path / FILE)
    before = (tmp_path / FILE).read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        evaluation(column("pgd", outcome([True]))).save(tmp_path / FILE)
    assert (tmp_path / FILE).read_bytes() == before and len(list(tmp_path.iterdir())) == 1


# --- columns -----------------------------------------------------------------------------------------------------


def test_columns_are_found_by_heading() -> None:
    made = two()
    assert made.column("größer: pgd") is made.columns[2] and made.column("pgd") is made.columns[1]
    with pytest.raises(DataError, match="no column 'fgsm'") as told:
        made.column("fgsm")
    assert "clean, pgd, größer: pgd" in told.value.hint


def test_the_worst_case_is_over_all_attacks_of_a_scope() -> None:
    made = evaluation(
        column("clean", outcome([False, True, True, True]), attacked=False),
        column("weak", outcome([True, True, True, False])),
        column("strong", outcome([True, False, True, True])),
        column("weak", outcome([False, False, False, False]), scope="new"),
    )
    indices, held = made.worst()
    assert held.tolist() == [True, False, True, False] and indices.tolist() == [0, 1, 2, 3]
    assert not made.worst("new")[1].any()


@pytest.mark.parametrize("columns", [
    [],
    [column("clean", outcome([True]), attacked=False)],
    [column("one", outcome([True, True])), column("two", outcome([True, True], indices=[0, 2]))],
    [column("one", outcome([True, True])), column("two", outcome([True]))],
])  # fmt: skip
def test_no_worst_case_over_different_samples(columns: list[Column]) -> None:
    with pytest.raises(DataError, match="different samples"):
        evaluation(*columns).worst()


# --- stages ------------------------------------------------------------------------------------------------------


class Moves(Attack):
    """Replaces images by grey ones, or does nothing, sample by sample; spends one forward and `looks` backwards.

    Args:
        breaks: the samples' first pixels, in thousandths, that it breaks.
    """

    def __init__(self, name: str, breaks: set[int], looks: int = 1) -> None:
        super().__init__(None)
        self.name, self.breaks, self.looks, self.seen = name, breaks, looks, list[int]()

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        marks = mark(problem.images)
        self.seen += marks
        for _ in range(self.looks):
            problem.gradient(problem.images, problem.rows)
        mine = torch.tensor([each in self.breaks for each in marks]).view(-1, 1, 1, 1)
        return torch.where(mine, 1 - problem.images, problem.images)


def mark(images: Tensor) -> list[int]:
    return (images[:, 0, 0, 0] * 1000).round().long().tolist()


class Several(Attack):
    """Stages."""

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        raise NotImplementedError

    def stages(self) -> tuple[Attack, ...]:
        return self.inner


class Scene:
    """Twelve images, the first two with labels that are not theirs, and stages that break what they are told to."""

    def __init__(self, model: type[ToyModel] = ToyModel) -> None:
        split = ToyDataset(None).split("test")
        assert isinstance(split, ArraySplit)
        images, labels = split.images[:12], split.labels[:12].clone()
        labels[:2] = labels[:2].roll(1)
        self.split, self.marks = ArraySplit(images, labels, split.ids[:12]), mark(images)
        assert len(set(self.marks)) == 12
        self.participant = Participant(model(ToyConfig()), CLASSES)

    def breaking(self, name: str, *samples: int, looks: int = 1) -> Moves:
        return Moves(name, {self.marks[sample] for sample in samples}, looks)

    def samples(self, attack: Moves) -> list[int]:
        return [self.marks.index(each) for each in attack.seen]

    def run(self, *stages: Moves) -> Column:
        bench = Bench(self.participant, lambda name: self.split, 0, batch_size=5)
        (found,) = bench.columns([Protocol("several", attack=Several(None, stages), threat=Threat("linf", 1.0))])
        return found


def test_the_first_stage_that_breaks_a_sample_is_named() -> None:
    scene = Scene()
    stages = scene.breaking("first", 0, 3, 4), scene.breaking("second", 1, 3, 5, looks=2), scene.breaking("third", 4)
    found = scene.run(*stages)
    outcome = found.outcome
    assert found.stages == ("first", "second", "third")
    assert scene.samples(stages[0]) == list(range(2, 12))
    assert scene.samples(stages[1]) == [2, *range(5, 12)] and scene.samples(stages[2]) == [2, *range(6, 12)]
    assert outcome.stage.tolist() == [-1, -1, -1, 0, 0, 1, *[-1] * 6]
    assert (~outcome.right).nonzero().flatten().tolist() == [0, 1, 3, 4, 5]
    assert (~outcome.clean).nonzero().flatten().tolist() == [0, 1]
    assert torch.equal(outcome.claimed, outcome.right)
    # Each stage looks once more when it is done, at what is still open.
    assert outcome.backwards.tolist() == [0, 0, 4, 1, 1, 3, *[4] * 6]
    assert outcome.forwards.tolist() == [0, 0, 7, 2, 2, 5, *[7] * 6]
    assert outcome.nearest[:2].tolist() == [0.0, 0.0] and outcome.nearest[2] == math.inf
    assert torch.equal(outcome.nearest[3:6], outcome.size[3:6]) and (outcome.size[3:6] > 0.1).all()
    assert not outcome.size[[0, 1, 2, *range(6, 12)]].any() and not outcome.blank.any()
    assert outcome.zeros[:2].isnan().all() and (outcome.zeros[2:] < 0.1).all()


def test_a_later_stage_takes_nothing_back() -> None:
    class Mixing(ToyModel):
        """Its samples stay together: all go through all stages."""

        batch_independent = False

    scene = Scene(Mixing)
    stages = scene.breaking("first", 3, 4), scene.breaking("second", 4, 5)
    outcome = scene.run(*stages).outcome
    assert scene.samples(stages[1]) == list(range(12))
    assert outcome.stage.tolist() == [-1, -1, -1, 0, 0, 1, *[-1] * 6]
    assert outcome.count == Count(7, 12) and outcome.size[3] > 0.1


def test_the_nearest_of_all_stages_is_kept() -> None:
    class Looks(Attack):
        """Asks about images part of the way to their negatives, outside the ball, and gives up."""

        def __init__(self, way: float) -> None:
            super().__init__(None)
            self.way = way

        def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
            problem.predict(problem.images.lerp(1 - problem.images, self.way), problem.rows)
            return problem.images

    scene, tiny = Scene(), Threat("linf", 1e-4)
    bench = Bench(scene.participant, lambda name: scene.split, 0)
    for ways in ((1.0, 0.7), (0.7, 1.0), (0.7, 0.1)):
        stages = tuple(Looks(way) for way in ways)
        (column,) = bench.columns([Protocol("looks", attack=Several(None, stages), threat=tiny)])
        outcome = column.outcome
        wanted = tiny.size(0.7 * (1 - 2 * scene.split.images))
        torch.testing.assert_close(outcome.nearest[outcome.clean], wanted[outcome.clean])
        assert outcome.right.sum() == outcome.clean.sum() == 10 and not outcome.nearest[~outcome.clean].any()


def test_a_sample_takes_its_noise_with_it() -> None:
    class Paints(Attack):
        def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
            return problem.images + threat.eps * (2 * noise.uniform((3, 16, 16)) - 1)

    painted = list[Tensor]()
    for size in (64, 7):
        kept = torch.zeros(60, 3, 16, 16)

        def keep(name: str, batch: Any, images: Tensor, right: Tensor, kept: Tensor = kept) -> None:
            kept[batch.samples] = images

        bench = Bench(Participant(ToyModel(ToyConfig()), CLASSES), ToyDataset(None).split, 0, batch_size=size)
        list(bench.columns([Protocol("paints", attack=Paints(None), threat=Threat("linf", 0.02))], keep))
        painted.append(kept)
    assert torch.equal(*painted) and not torch.equal(painted[0][0], painted[0][1])


def test_sizes_are_those_of_the_threat() -> None:
    images = torch.stack([ToyDataset(None).split("test").load(i) for i in range(60)])
    for threat in (Threat("linf", 6 / 255), Threat("l2", 0.5)):
        protocol = Protocol("pgd", attack=PGD(PGDConfig(steps=5)), threat=threat)
        kept = images.clone()

        def keep(name: str, batch: Any, decided: Tensor, right: Tensor, kept: Tensor = kept) -> None:
            kept[batch.samples] = decided

        participant = Participant(ToyModel(ToyConfig()), CLASSES)
        (found,) = Bench(participant, ToyDataset(None).split, 0).columns([protocol], keep)
        outcome = found.outcome
        torch.testing.assert_close(outcome.size, threat.size(kept - images))
        assert outcome.size.max() == pytest.approx(threat.eps, rel=1e-4), "the whole ball is searched, and no more"
        assert (outcome.size <= threat.eps * (1 + 1e-5)).all() and 0 < outcome.right.sum() < 60

        def loss(of: Tensor, participant: Participant = participant, labels: Tensor = outcome.labels) -> Tensor:
            return torch.nn.functional.cross_entropy(participant.logits(of), labels, reduction="none")

        torch.testing.assert_close(outcome.rise, (loss(kept) - loss(images)).clamp_min(0), atol=1e-5, rtol=1e-5)
        assert (outcome.nearest <= outcome.size)[~outcome.right].all()


def test_passes_are_those_that_were_made() -> None:
    made = [0]

    class Counts(ToyModel):
        def features(self, images: Tensor) -> Tensor:
            made[0] += len(images)
            return super().features(images)

    participant = Participant(Counts(ToyConfig()), CLASSES)
    protocol = Protocol("pgd", attack=PGD(PGDConfig(steps=4)), threat=Threat("linf", 6 / 255))
    bench = Bench(participant, ToyDataset(None).split, 0)
    indices = torch.arange(60)
    bench.measure(Protocol("clean"), bench.splits("test"), indices, "clean")
    made[0] = 0
    outcome = bench.measure(protocol, bench.splits("test"), indices, "key")
    # One portion of 64 for the verdict, and another for what 8 bits leave of the broken ones.
    assert outcome.forwards.sum() + 2 * 64 == made[0] and 0 < outcome.right.sum() < 60
    assert (outcome.backwards <= 4).all() and (outcome.backwards[outcome.right] == 4).all()


# --- whose images ------------------------------------------------------------------------------------------------


def test_images_are_made_on_the_source_and_judged_on_the_model() -> None:
    """A source whose gradients point elsewhere leaves the model nearly unharmed, and no look at it breaks anything."""
    own, other = (Participant(ToyModel(ToyConfig()), CLASSES) for _ in range(2))
    with torch.no_grad():
        other.model.gain[::2].neg_()  # type: ignore[union-attr,operator,index]
    seen = {"self": own, "base": own, "other": other}
    base = Protocol("pgd", attack=PGD(PGDConfig(steps=5)), threat=Threat("linf", 8 / 255))
    bench = Bench(own, ToyDataset(None).split, 0, seen=lambda name: Seen(seen[name]))
    found = {}
    for source in seen:
        protocol = replace(base, attacker=replace(base.attacker, source=source))
        (column,) = bench.columns([protocol])
        found[source] = column
    hits = {source: column.outcome.count.hits for source, column in found.items()}
    assert hits["self"] < 20 and hits["other"] > 50 and hits["base"] <= hits["self"] + 5
    assert {source: c.statement["knowledge"] for source, c in found.items()} == {
        "self": "white-box", "base": "transfer", "other": "transfer"
    }  # fmt: skip
    assert (found["other"].outcome.backwards == 5).all(), "nothing closes: it knows nothing of the model's answers"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which student and teacher learned."""
    folder, toy = tmp_path_factory.mktemp("outcomes"), {"use": "toy"}
    how: Any = {"teachers": {"clean": {**toy, "train": True}}, "strategy": {"use": "apd"}, "optim": {"lr": 0.3}}
    run_parts.train(run_parts.recipe(folder, **how))
    run_parts.train(run_parts.recipe(folder, "other", seed=5, **how))
    return folder


def test_whose_model_a_name_means(trained: Path) -> None:
    registry = default_registry().with_files([run_parts.PLUGIN])
    file, other = (str(trained / run / "last.safetensors") for run in ("run", "other"))
    target = Target(file, registry, "cpu")
    order = ClassSet(CLASSES.names[::-1], CLASSES.templates)
    company = target.company(Participant(target.model, order))
    own, theirs = run_parts.tensors(trained / "run"), run_parts.tensors(trained / "other")

    def saying(values: dict[str, Tensor]) -> Tensor:
        model = ToyModel(ToyConfig())
        model.load_learned(values or model.learned())
        return Participant(model, order).logits(images)

    images = torch.stack([ToyDataset(None).split("test").load(i) for i in range(8)])
    values = {name: own[name] for name in ("gain", "context")}
    wanted = {
        "self": values,
        "base": {},
        "clean": {name: own[f"teacher.clean.{name}"] for name in values},
        other: {name: theirs[name] for name in values},
    }
    said = {name: company(name).logits(images) for name in wanted}
    for name, learned in wanted.items():
        torch.testing.assert_close(said[name], saying(learned), msg=name)
    assert all((said[a] - said[b]).abs().max() > 1e-3 for a in said for b in said if a < b), "they differ"
    prints = [company.fingerprints((), name).get(name, "") for name in wanted]
    assert prints[0] == "" and len(set(prints)) == 4
    named = company.fingerprints((other, "top", "clean"), "self")
    assert named == {other: prints[3], "clean": prints[2]}
    torch.testing.assert_close(company("self").logits(images), saying(values))
    with pytest.raises(UsageError, match="knows no model 'robust'") as told:
        company("robust")
    assert "self, base, clean" in told.value.message


def test_what_an_attack_learns_it_learns_from_training_samples() -> None:
    class Studies(Attack):
        studies = 12

        def study(self, problem: Problem, threat: Threat, noise: Noise) -> None:
            shown.append((problem.images, problem.labels))

        def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
            assert len(shown) == 1
            return problem.images

    shown: list[tuple[Tensor, Tensor]] = []
    bench = Bench(Participant(ToyModel(ToyConfig()), CLASSES), ToyDataset(None).split, 3, batch_size=20)
    list(bench.columns([Protocol("studies", attack=Studies(None), threat=Threat("linf", 0.1))]))
    ((images, labels),) = shown
    chosen = stratified(bench.splits("train").labels, 12, 3)
    assert torch.equal(images, torch.stack([bench.splits("train").load(int(i)) for i in chosen]))
    assert labels.tolist() == bench.splits("train").labels[chosen].tolist() and labels.bincount().tolist() == [2] * 6


def test_only_free_text_names_models() -> None:
    registry = default_registry()
    tree = {"use": "bpda", "through": "robust", "attack": {"use": "apgd", "loss": "kl", "of": "clean", "to": "base"}}
    block = resolve_blocks({"attack": tree}, registry)[("attack",)]
    assert set(build.protocol(registry, "x", block, Threat("linf", 0.1)).words) == {"robust", "base"}
