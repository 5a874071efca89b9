"""What is pinned here:

- An evaluation that was cut off after any write goes on with the same counts and the same outcome, to the bit, and does
  no finished pack again; so does one in which a later attack of several was cut off.
- Another model, another statement, another stage never find a pack; the same ones do, also in another process's hands.
- Images are kept as they were, to the bit, and verdicts are given on what lies on the disk; without images outcomes are
  the same, and nothing but outcomes stays.
- Images without an outcome belong to a pack that was cut off: it is done again. A damaged file is told, with its name.
- Clean images are looked at once for all protocols on the same samples, and again for other samples or classes.
- What is in memory forgets everything but clean looks; memory and folder give the same outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from advdistill import Attack, Noise, Problem, RunError, Threat
from advdistill.engine import checkpoint
from advdistill.engine.attack import Tally
from advdistill.engine.data import ArraySplit, Split
from advdistill.engine.evaluate import Bench
from advdistill.engine.outcomes import Column, Outcome
from advdistill.engine.participant import Participant
from advdistill.engine.protocol import Protocol
from advdistill.engine.store import Folder, Memory, Pack, Store
from advdistill.errors import DataError
from advdistill.testing import ToyConfig, ToyDataset, ToyModel
from advdistill.testing.toy import CLASSES

THREAT = Threat("linf", 7 / 255)
SIZE = 12


class Climbs(Attack):
    """Signed steps from a random start; remembers the samples that it was run on, by their first pixel."""

    def __init__(self, steps: int, name: str = "climbs") -> None:
        super().__init__(None)
        self.steps, self.name = steps, name
        self.seen: list[float] = []

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        self.seen += problem.images[:, 0, 0, 0].tolist()
        images = problem.images + threat.eps * (2 * noise.uniform((3, 16, 16), self.steps) - 1)
        for _ in range(self.steps):
            rows = problem.open()
            if not len(rows):
                break
            images = threat.project(images, problem.images)
            gradient, _ = problem.gradient(images[rows], rows)
            images = images.index_add(0, rows, 0.4 * threat.eps * gradient.sign())
        return images


class Both(Attack):
    """One after the other."""

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        raise NotImplementedError

    def stages(self) -> tuple[Attack, ...]:
        return self.inner


class Scene:
    """Two stages on the toy's test split, some of whose labels are wrong."""

    def __init__(self, **facts: Any) -> None:
        split = ToyDataset(None).split("test")
        assert isinstance(split, ArraySplit)
        self.split = ArraySplit(split.images, torch.cat([split.labels[:4].roll(1), split.labels[4:]]), split.ids)
        self.climbs = Climbs(3, "weak"), Climbs(6, "strong")
        self.protocol = Protocol("both", attack=Both(None, self.climbs), threat=THREAT, settings=facts)
        self.participant = Participant(ToyModel(ToyConfig()), CLASSES)

    @property
    def seen(self) -> list[float]:
        return [pixel for attack in self.climbs for pixel in attack.seen]

    def column(self, store: Store, found: Any = None, protocol: Protocol | None = None) -> Column:
        bench = Bench(self.participant, lambda name: self.split, 0, batch_size=SIZE, store=store)
        (column,) = bench.columns([protocol or self.protocol], found)
        return column


def same(one: Outcome, other: Outcome) -> bool:
    """Bit for bit; NaN is NaN."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Outcome)]
    return all(a.dtype == b.dtype and torch.equal(a.nan_to_num(-7.0), b.nan_to_num(-7.0)) for a, b in pairs)


class Killed(Exception):
    """The process died."""


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`dying(n)`: the process dies when it writes its nth file; `dying(0)`: never."""
    left, write = [0], checkpoint.write

    def writes(path: Path, *rest: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        write(path, *rest)

    monkeypatch.setattr(checkpoint, "write", writes)

    def arm(number: int) -> None:
        left[0] = number

    yield arm


# --- cut off and gone on -----------------------------------------------------------------------------------------


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path: Path, dying: Any) -> None:
    whole = Scene()
    wanted = whole.column(Memory()).outcome
    packs = [-(-len(set(attack.seen)) // SIZE) for attack in whole.climbs]
    assert packs == [5, 4] and 0 < wanted.right.sum() < wanted.clean.sum() < 60
    assert {-1, 0, 1} == set(wanted.stage.tolist())
    writes = 1 + 2 * sum(packs)  # clean looks; images and an outcome for each pack
    for last in range(1, writes + 1):
        place, scene = tmp_path / str(last), Scene()
        dying(last)
        with pytest.raises(Killed):
            scene.column(Folder(place, "model"))
        dying(0)
        finished = sum(1 for _ in place.rglob("*.outcome.safetensors"))
        assert finished == max(last - 2, 0) // 2
        again = Scene()
        column = again.column(Folder(place, "model"))
        assert same(column.outcome, wanted) and column.outcome.count == wanted.count
        done = {pixel for pixel in scene.seen if scene.seen.count(pixel) + again.seen.count(pixel) > 2}
        assert len(done) <= SIZE, "more than the pack that was cut off has been done again"
        total = len(whole.seen)
        assert total <= len(scene.seen) + len(again.seen) <= total + SIZE
        assert sum(1 for _ in place.rglob("*.outcome.safetensors")) == sum(packs)
        finally_ = Scene()
        assert same(finally_.column(Folder(place, "model")).outcome, wanted) and finally_.seen == []


def test_a_write_that_fails_loses_no_finished_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, calls, write = tmp_path / "kept", [0], checkpoint.write_bytes

    def full(path: Path, data: bytes) -> None:
        calls[0] += 1
        if calls[0] == 9:
            raise RunError(f"cannot write {path}: No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_bytes", full)
    with pytest.raises(RunError, match="No space left"):
        Scene().column(Folder(place, "model"))
    assert sum(1 for _ in place.rglob("*.outcome.safetensors")) == 3 and not list(place.rglob("*.partial"))
    scene = Scene()
    assert same(scene.column(Folder(place, "model")).outcome, Scene().column(Memory()).outcome)
    assert len(scene.climbs[0].seen) == len(Scene().split) - 4 - 3 * SIZE


def test_an_attack_that_raises_loses_no_finished_pack(tmp_path: Path) -> None:
    class Raises(Climbs):
        def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
            if len(self.seen) >= 3 * SIZE:
                raise RunError("the attack gave up")
            return super().run(problem, threat, noise)

    broken = Scene()
    broken.protocol = replace(broken.protocol, attack=Both(None, (Raises(3, "weak"), broken.climbs[1])))
    with pytest.raises(RunError, match="gave up"):
        broken.column(Folder(tmp_path, "model"))
    scene = Scene()
    assert same(scene.column(Folder(tmp_path, "model")).outcome, Scene().column(Memory()).outcome)
    assert len(scene.climbs[0].seen) == 56 - 3 * SIZE


# --- whose packs -------------------------------------------------------------------------------------------------


def pack(count: int = 3, mark: float = 0.5, start: int = 0) -> Pack:
    images = torch.full((count, 3, 4, 4), mark)
    made = Pack.of(
        torch.arange(start, start + count),
        images,
        torch.rand(count),
        torch.ones(count, dtype=torch.bool),
        Tally.of(images),
    )
    return made.judged(images, made.claimed, torch.zeros(count, dtype=torch.float64), made.claimed)


def keep(store: Store, key: str, stage: int, made: Pack) -> None:
    store.add(key, stage, replace(made, images=store.keep(key, stage, made)))


def test_nobody_else_finds_a_pack(tmp_path: Path) -> None:
    mine = Folder(tmp_path, "model a")
    keep(mine, "key", 0, pack(mark=0.25))
    keep(mine, "key", 0, pack(2, mark=0.75, start=3))
    assert [len(p.positions) for p in Folder(tmp_path, "model a").packs("key", 0)] == [3, 2]
    assert not list(mine.packs("key", 1)) and not list(mine.packs("other", 0))
    other = Folder(tmp_path, "model b")
    assert not list(other.packs("key", 0))
    keep(other, "key", 0, pack(1))
    assert [len(p.positions) for p in mine.packs("key", 0)] == [3, 2] and len(list(other.packs("key", 0))) == 1
    assert not list(Folder(tmp_path, "model a/key").packs("", 0))
    assert not list(Folder(tmp_path, "model").packs(" a/key", 0))


def test_another_models_evaluation_takes_nothing_over(tmp_path: Path) -> None:
    Scene().column(Folder(tmp_path, "model a"))
    deaf = Scene()
    with torch.no_grad():
        deaf.participant.model.gain.mul_(0.2)  # type: ignore[union-attr,operator]
    deaf.participant.load(dict(deaf.participant.model.learned()))
    alone = deaf.column(Memory()).outcome
    seen = len(deaf.seen)
    assert not same(alone, Scene().column(Memory()).outcome)
    assert same(deaf.column(Folder(tmp_path, "model b")).outcome, alone) and len(deaf.seen) == 2 * seen


def test_another_statement_takes_nothing_over(tmp_path: Path) -> None:
    store = Folder(tmp_path, "model")
    Scene(note="one").column(store)
    for scene, protocol in (
        (Scene(note="two"), None),
        (Scene(note="one"), replace(Scene(note="one").protocol, threat=Threat("linf", 3 / 255))),
    ):
        protocol = protocol and replace(protocol, attack=Both(None, scene.climbs))
        scene.column(store, protocol=protocol)
        assert len(scene.seen) > 56
    renamed = Scene(note="one")
    renamed.column(store, protocol=replace(renamed.protocol, name="another name"))
    assert renamed.seen == [], "the name is a label"


# --- images ------------------------------------------------------------------------------------------------------


def test_images_are_kept_to_the_bit(tmp_path: Path) -> None:
    store, made = Folder(tmp_path, "model"), pack()
    odd = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    odd[0, 0, 0] = torch.tensor([0.0, 1.0, 2.0**-149, 1 - 2.0**-24])
    back = store.keep("key", 0, replace(made, images=odd))
    assert torch.equal(back, odd) and back.dtype == torch.float32 and back.data_ptr() != odd.data_ptr()
    store.add("key", 0, replace(made, images=back))
    (found,) = Folder(tmp_path, "model").packs("key", 0)
    assert found.images is not None and torch.equal(found.images, odd)
    for field in fields(Pack):
        if field.name != "images":
            mine, theirs = getattr(made, field.name), getattr(found, field.name)
            assert mine.dtype == theirs.dtype and torch.equal(mine, theirs), field.name


def test_what_decided_a_sample_is_what_lies_on_the_disk(tmp_path: Path) -> None:
    scene, decided = Scene(), dict[int, Tensor]()

    def found(name: str, batch: Any, images: Tensor, right: Tensor) -> None:
        decided.update(zip(batch.samples.tolist(), images, strict=True))

    outcome = scene.column(Folder(tmp_path, "model"), found).outcome
    kept = dict[int, Tensor]()
    for file in sorted(tmp_path.rglob("*.outcome.safetensors")):
        images = load_file(file.with_name(file.name.replace("outcome", "images")))["images"]
        kept.update(zip(load_file(file)["positions"].tolist(), images, strict=True))
    attacked = outcome.attacked.nonzero().squeeze(1).tolist()
    assert len(attacked) == 56 and kept.keys() == set(attacked)
    assert all(torch.equal(kept[position], decided[position]) for position in attacked)
    said = scene.participant.logits(torch.stack([kept[position] for position in attacked]))
    assert torch.equal(said.argmax(1) == outcome.labels[attacked], outcome.right[attacked])


def test_verdicts_are_given_on_what_the_store_gave_back() -> None:
    class Forgetful(Memory):
        """What it gives back is another image."""

        def keep(self, key: str, stage: int, pack: Pack) -> Tensor:
            assert pack.images is not None
            return torch.full_like(pack.images, 0.5)

    scene = Scene()
    grey = scene.participant.logits(torch.full((1, 3, 16, 16), 0.5))
    outcome = scene.column(Forgetful()).outcome
    assert not outcome.right.any() and grey.std() == 0 and outcome.claimed.any()


def test_images_can_be_dropped(tmp_path: Path, dying: Any) -> None:
    wanted = Scene().column(Memory()).outcome
    handed = []
    column = Scene().column(Folder(tmp_path / "a", "model", images=False), lambda *rest: handed.append(rest))
    assert same(column.outcome, wanted) and not list((tmp_path / "a").rglob("*.images.*")) and len(handed) >= 6
    assert all(each.images is None for each in Folder(tmp_path / "a", "model").packs(column.statement["key"], 0))
    dying(10)
    with pytest.raises(Killed):
        Scene().column(Folder(tmp_path / "b", "model", images=False))
    dying(0)
    again = Scene()
    assert same(again.column(Folder(tmp_path / "b", "model", images=False)).outcome, wanted)
    assert len(again.climbs[0].seen) == 56 - 4 * SIZE and not list((tmp_path / "b").rglob("*.images.*"))
    late = list[Any]()
    outcome = Scene().column(Folder(tmp_path / "b", "model"), lambda *rest: late.append(rest)).outcome
    assert same(outcome, wanted), "nobody can hand out images that were not kept, and the counts stay"
    assert sum(len(right) for *_, right in late) == 4, "only those that were wrong before any attack"


# --- what was cut off, what is damaged ---------------------------------------------------------------------------


def test_a_pack_without_outcome_is_done_again(tmp_path: Path) -> None:
    wanted = Scene().column(Folder(tmp_path, "model")).outcome
    last = max(tmp_path.rglob("00-*.outcome.safetensors"))
    redone = len(load_file(last)["positions"])
    last.unlink()
    images = last.with_name(last.name.replace("outcome", "images"))
    checkpoint.write(images, {"images": torch.zeros(redone, 3, 16, 16)}, {"format": 1})  # of somebody who was cut off
    scene = Scene()
    assert same(scene.column(Folder(tmp_path, "model")).outcome, wanted)
    assert len(scene.seen) == redone and load_file(images)["images"].any()


@pytest.mark.parametrize("what", ["outcome", "images"])
def test_a_damaged_file_is_told(tmp_path: Path, what: str) -> None:
    Scene().column(Folder(tmp_path, "model"))
    file = min(tmp_path.rglob(f"*.{what}.safetensors"))
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DataError, match=file.name):
        Scene().column(Folder(tmp_path, "model"))


# --- clean looks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_clean_images_are_looked_at_once(tmp_path: Path, kind: str) -> None:
    asked: list[int] = []

    class Counts(ToyModel):
        def features(self, images: Tensor) -> Tensor:
            asked.append(len(images))
            return super().features(images)

    split: Split = ToyDataset(None).split("test")
    store: Store = Memory() if kind == "memory" else Folder(tmp_path, "model")
    for classes, protocols, looks in (
        (CLASSES, [Protocol("clean"), Protocol("again"), Protocol("all", limit=0)], 1),
        (CLASSES, [Protocol("fewer", limit=12), Protocol("clean")], 1),
        (CLASSES, [Protocol("fewer", limit=12)], 0),
        (replace(CLASSES, templates=("{}",)), [Protocol("clean")], 1),
    ):
        asked.clear()
        bench = Bench(Participant(Counts(ToyConfig()), classes), lambda name: split, 0, store=store)
        totals = [len(column.outcome) for column in bench.columns(protocols)]
        assert len(asked) == looks and totals == [p.limit or 60 for p in protocols]


def test_memory_keeps_nothing_but_clean_looks() -> None:
    store, scene = Memory(), Scene()
    first = scene.column(store).outcome
    seen = len(scene.seen)
    assert same(scene.column(store).outcome, first) and len(scene.seen) == 2 * seen


def test_the_folder_says_what_memory_says(tmp_path: Path) -> None:
    one, two = Scene().column(Memory()), Scene().column(Folder(tmp_path / "deep" / "down", "model"))
    assert same(one.outcome, two.outcome) and one.statement == two.statement and two.stages == ("weak", "strong")
