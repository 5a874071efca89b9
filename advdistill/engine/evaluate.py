"""Evaluation: whole protocols on one model, sample by sample, traceable to images and settings.

A sample counts as robust if the finished model is right about it and about the image that the attack ended with: the
first image inside the ball that misled it, whoever asked, or the attack's last one. Samples that are wrong already are
not attacked, and broken ones not any further, where the model says of itself that this is sound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from advdistill.engine import memory
from advdistill.engine.attack import Attack, Problem, right
from advdistill.engine.count import Count
from advdistill.engine.data import Batch, Split, read, stratified
from advdistill.engine.distributed import ALONE, World
from advdistill.engine.judge import Judge, Look, quantise
from advdistill.engine.noise import Noise
from advdistill.engine.outcomes import Column, Outcome
from advdistill.engine.participant import Participant, Seen
from advdistill.engine.protocol import Protocol
from advdistill.engine.store import Memory, Pack, Store
from advdistill.engine.types import Threat
from advdistill.errors import DataError, RunError, UsageError, UserError

Progress = Callable[[str, int, int], None]
"""`progress(protocol, done, total)` in samples."""

Found = Callable[[str, Batch, Tensor, Tensor], None]
"""`found(protocol, batch, images, right)`: the images that decided samples, (n, 3, H, W); the outcome, (n,) bool."""


@dataclass(frozen=True)
class Results:
    """One row of a table: a model's counts, protocol by protocol.

    Attributes:
        subject: whose numbers they are.
        counts: protocol name -> Count. statements: protocol name -> its statement.
        columns: protocol name -> what was found, sample by sample; empty where the row was stored.
        stored: measured when the model was made, under the very same statements, and read from its file.
    """

    subject: str
    counts: dict[str, Count]
    statements: dict[str, dict[str, Any]]
    columns: dict[str, Column] = field(default_factory=dict)
    stored: bool = False

    @classmethod
    def of(cls, subject: str, columns: Iterable[Column]) -> Results:
        """The row of some columns, by their headings."""
        kept = {column.heading: column for column in columns}
        counts = {name: column.outcome.count for name, column in kept.items()}
        return cls(subject, counts, {name: dict(column.statement) for name, column in kept.items()}, kept)

    def to_json(self) -> dict[str, Any]:
        """The row as plain data: counts, shares, intervals, statements."""
        return {
            "subject": self.subject,
            "stored": self.stored,
            "protocols": {
                name: {
                    "hits": count.hits,
                    "total": count.total,
                    "accuracy": count.share,
                    **count.interval(),
                    "statement": self.statements[name],
                }
                for name, count in self.counts.items()
            },
        }

    @classmethod
    def from_json(cls, subject: str, row: Mapping[str, Any], stored: bool = False) -> Results:
        """The inverse of `to_json`, without what was found sample by sample."""
        protocols = row["protocols"]
        return cls(
            subject,
            {name: Count(p["hits"], p["total"], p.get("effective")) for name, p in protocols.items()},
            {name: p["statement"] for name, p in protocols.items()},
            stored=stored,
        )


@dataclass
class Bench:
    """Who is measured, on what, and who judges.

    Attributes:
        participant: the model with its classes.
        splits: name -> Split.
        seed: of subsets and of the attacks' noise.
        judge: asks the exported model; None: the participant itself, as it is deployed.
        seen: see `Problem.seen`; None: an attack can look at nobody else.
        fingerprints: the free text in an attack's settings, and its source -> name -> what identifies each other
            model named there.
        batch_size: images at a time under attack. workers: processes that decode.
        progress: see `Progress`.
        store: keeps what is found.
        world: who shares the work, whole batches of `batch_size` each, so that an image has the same mates however
            many they are. All get the same outcome; `found` is told of the others' samples by nobody.
    """

    participant: Participant
    splits: Callable[[str], Split]
    seed: int
    judge: Judge | None = None
    seen: Callable[[str], Seen] | None = None
    fingerprints: Callable[[Sequence[str], str], Mapping[str, str]] = lambda words, source: {}
    batch_size: int = 256
    workers: int = 0
    progress: Progress = lambda protocol, done, total: None
    store: Store = field(default_factory=Memory)
    world: World = ALONE

    def columns(self, protocols: Sequence[Protocol], found: Found | None = None, scope: str = "") -> Iterator[Column]:
        """What each protocol finds, in turn.

        Args:
            found: is given the images that decided each sample, once.

        Raises:
            UserError: from the data, the model or an attack; what was finished before lies in the store.
        """
        for protocol in protocols:
            split = self.splits(protocol.split)
            indices = stratified(split.labels, protocol.limit, self.seed)
            said = self.statement(protocol)
            with memory.named("lower evaluate.batch_size, or --batch-size"):
                outcome = self.measure(protocol, split, indices, said["key"], found)
            stages = tuple(stage.name for stage in protocol.attack.stages()) if protocol.attack else ()
            yield Column(protocol.name, said, outcome, stages, scope)

    def statement(self, protocol: Protocol) -> dict[str, Any]:
        """See `Protocol.statement`."""
        split = self.splits(protocol.split)
        samples = min(protocol.limit or len(split), len(split))
        height, width = split.load(0).shape[-2:]
        seen = dict(self.fingerprints(protocol.words, protocol.attacker.source)) if protocol.attack else {}
        if protocol.attack and protocol.attack.studies:
            seen["training images"] = f"{self.splits('train').digest}/{self.splits('train').content}"
        mixed = 0 if self.participant.model.batch_independent else self.batch_size
        return protocol.statement(split, samples, self.participant, self.seed, (height, width), seen, mixed)

    def measure(
        self, protocol: Protocol, split: Split, indices: Tensor, key: str, found: Found | None = None
    ) -> Outcome:
        """One protocol on the samples at `indices` (N,) of `split`; `key` names it in the store."""
        model, labels = self.participant.model, split.labels[indices]
        looked = self._clean(protocol, split, indices)
        sources = torch.empty(len(split), 0, dtype=torch.long) if split.sources is None else split.sources
        state = _State(indices, labels, looked, sources[indices])
        attack, threat = protocol.attack, protocol.threat
        if attack is None or threat is None:
            return state.outcome()
        classes = len(self.participant.classes)
        if classes < attack.fewest_classes:
            raise UsageError(
                f"{protocol.name}: attack {attack.name} needs {attack.fewest_classes} classes, and there are {classes}",
                "use autoattack with version: custom and attacks: [{use: apgd}, {use: square}], and say so",
            )
        # Packing survivors anew changes nothing only where a sample stands for itself; an image that misled the model
        # once may be kept only where it would again.
        free = model.batch_independent
        doomed = ~state.clean if free else torch.zeros_like(state.clean)
        if found and doomed.any():
            for batch in self._read(split, self._mine(indices[doomed])):
                found(protocol.name, batch, batch.images, torch.zeros(len(batch), dtype=torch.bool))
        if attack.studies:
            self._study(attack, protocol)
        stages = attack.stages()
        for number, stage in enumerate(stages):
            open_ = state.right if free else torch.ones_like(state.right)
            todo = open_.nonzero().squeeze(1)
            for pack in self._packs(protocol, stage, number, split, indices, todo, key):
                state.add(pack, number)
                if found:
                    lost = ~pack.right
                    final = torch.ones_like(lost) if number == len(stages) - 1 or not free else lost
                    self._hand_over(found, protocol, split, indices, pack, final)
        return state.outcome()

    def _packs(
        self,
        protocol: Protocol,
        stage: Attack,
        number: int,
        split: Split,
        indices: Tensor,
        todo: Tensor,
        key: str,
    ) -> Iterator[Pack]:
        """Packs of the positions `todo` through one stage: those in the store, then the others, as they finish; last,
        and without images, those of other processes."""
        have, done = set[int](), len(indices) - len(todo)
        self.progress(protocol.name, done, len(indices))
        for pack in self._stored(key, number):
            have.update(pack.positions.tolist())
            yield pack
            done += len(pack.positions)
            self.progress(protocol.name, done, len(indices))
        rest = torch.tensor([p for p in todo.tolist() if p not in have], dtype=torch.long)
        portions = self._mine(rest)
        finished = []
        batches = read(split, [indices[part].tolist() for part in portions], workers=self.workers)
        for positions, batch in zip(portions, batches, strict=True):
            try:
                pack = self._attack(protocol, stage, to_device(batch, self.participant.model.device), positions)
            except UserError:
                raise
            except Exception as error:
                raise RunError(
                    f"{protocol.name}: attack {stage.name or type(stage).__name__} failed on samples "
                    f"{int(batch.samples[0])} to {int(batch.samples[-1])}: {type(error).__name__}: {error}",
                    "-v shows where it happened",
                ) from error
            pack = self.store.add(key, number, self._judged(pack, self.store.keep(key, number, pack), batch))
            finished.append(replace(pack, images=None))
            yield pack
            # The others are about as far.
            done = min(done + len(pack.positions) * self.world.size, len(indices))
            self.progress(protocol.name, done, len(indices))
        for rank, theirs in enumerate(self.world.gather(finished)):
            if rank != self.world.rank:
                yield from theirs

    def _stored(self, key: str, stage: int) -> Iterable[Pack]:
        """What the store has of a stage; with several processes, as the main one found it, and without images."""
        if self.world.size == 1:
            return self.store.packs(key, stage)
        return self.world.told(lambda: [replace(pack, images=None) for pack in self.store.packs(key, stage)])

    def _mine(self, which: Tensor) -> list[Tensor]:
        """Batches of some samples, (N,) long: this process's share of them."""
        if not len(which):
            return []
        return list(which.split(self.batch_size))[self.world.rank :: self.world.size]

    def _attack(self, protocol: Protocol, stage: Attack, batch: Batch, positions: Tensor) -> Pack:
        """One pack through one stage of an attack, not judged yet."""
        assert protocol.threat is not None
        participant, threat = self.participant, protocol.threat
        watch = participant.model.deterministic and participant.model.batch_independent
        with participant.deployed(compiled=True):
            problem = self._problem(batch, threat, watch)
            noise = Noise(self.seed, "evaluate", 0, batch.samples)
            images = stage(problem, threat, noise, source=protocol.attacker.source)
            with torch.no_grad():
                claimed = ~problem.broken if watch else right(problem.predict(images, problem.rows), batch.labels)
        return Pack.of(positions, images, threat.size(images - batch.images), claimed, problem.tally)

    def _judged(self, pack: Pack, images: Tensor, clean: Batch) -> Pack:
        """The pack with the verdict on the stored `images`, and on what 8 bits leave of those that were broken."""
        look = self._look(images, clean.labels)
        rounded = look.right.clone()
        if (~look.right).any():
            lost = ~look.right
            coarse = quantise(images[lost], clean.images[lost]).float() / 255
            rounded[lost] = self._look(coarse, clean.labels[lost]).right
        return pack.judged(images, look.right, look.cross_entropy, rounded)

    def _look(self, images: Tensor, labels: Tensor) -> Look:
        device = self.participant.model.device
        if self.judge is not None:
            return self.judge.look(images.to(device), labels.to(device))
        with self.participant.deployed():
            return Judge(self.participant.logits).look(images.to(device), labels.to(device))

    def _clean(self, protocol: Protocol, split: Split, indices: Tensor) -> Mapping[str, Tensor]:
        """What the exported model says of the clean images; asked once for all protocols on the same samples."""

        def look() -> dict[str, Tensor]:
            looks = []
            for batch in self._read(split, self._mine(indices)):
                looks.append(self._look(batch.images, batch.labels))
                if protocol.attack is None:
                    done = sum(len(each.right) for each in looks) * self.world.size
                    self.progress(protocol.name, min(done, len(indices)), len(indices))
            # Batch k was looked at by process k % size.
            turns = zip_longest(*self.world.gather(looks))
            all_ = [each for turn in turns for each in turn if each is not None]
            return {name: torch.cat([getattr(each, name) for each in all_]) for name in vars(all_[0])}

        classes = self.participant.classes.digest
        mixed = 0 if self.participant.model.batch_independent else self.batch_size
        drawn = f"{split.digest}/{split.content}/{protocol.limit}/{self.seed}"
        return self.store.clean(f"{drawn}/{classes}/{mixed}", look)

    def _study(self, attack: Attack, protocol: Protocol) -> None:
        """Show the attack the training samples that it wants to learn from."""
        assert protocol.threat is not None
        split = self.splits("train")
        chosen = stratified(split.labels, attack.studies, self.seed).tolist()
        batch = to_device(next(iter(read(split, [chosen]))), self.participant.model.device)
        with self.participant.deployed():
            problem = self._problem(batch, protocol.threat).elsewhere(protocol.attacker.source)
            attack.study(problem, protocol.threat, Noise(self.seed, "study", 0, batch.samples))

    def _problem(self, batch: Batch, threat: Threat, watch: bool = False) -> Problem:
        """The deployed participant under attack on a batch, by cross-entropy."""
        return Problem(
            batch.images,
            batch.labels,
            None,
            lambda some, rows: self.participant.logits(some, constant=True),
            threat,
            watch=watch,
            seen=self.seen,
            lenient=True,
        )

    def _hand_over(
        self, found: Found, protocol: Protocol, split: Split, indices: Tensor, pack: Pack, which: Tensor
    ) -> None:
        if pack.images is None or not which.any():
            return
        batch = next(iter(read(split, [indices[pack.positions[which]].tolist()])))
        found(protocol.name, batch, pack.images[which], pack.right[which])

    def _read(self, split: Split, portions: list[Tensor]) -> Iterator[Batch]:
        side = split.load(0).shape[-2:]
        for batch in read(split, [part.tolist() for part in portions], workers=self.workers):
            if batch.images.shape[-2:] != side:
                sizes = " and ".join(f"{height}x{width}" for height, width in (side, batch.images.shape[-2:]))
                raise DataError(
                    f"images of {sizes} stand in one split", "let the dataset resize them: eps acts on pixels"
                )
            yield batch


class _State:
    """What is known of each sample so far."""

    def __init__(self, indices: Tensor, labels: Tensor, looked: Mapping[str, Tensor], sources: Tensor) -> None:
        count = len(indices)
        self.indices, self.labels, self.clean, self._sources = indices, labels, looked["right"], sources
        self.right, self.claimed, self.rounded = self.clean.clone(), self.clean.clone(), self.clean.clone()
        self._recovered = torch.zeros_like(self.clean)
        self._margin, self._certain = looked["margin"].float(), looked["certain"]
        self._loss = looked["cross_entropy"]
        self._size, self._rise = torch.zeros(count), torch.zeros(count)
        # What is wrong already is broken by a perturbation of size 0.
        self._nearest = torch.where(self.clean, torch.inf, 0.0)
        self._passes = {name: torch.zeros(count, dtype=torch.int32) for name in ("forwards", "backwards", "blank")}
        self._zeros = torch.zeros(count)
        self._stage = torch.full((count,), -1, dtype=torch.int16)

    def add(self, pack: Pack, stage: int) -> None:
        """Take over what one stage found; what an earlier one broke stays broken."""
        at, live = pack.positions, self.right[pack.positions]
        still = at[live]
        self._stage[at[live & ~pack.right]] = stage
        self.right[still], self.claimed[still] = pack.right[live], pack.claimed[live]
        self.rounded[still], self._size[still] = pack.rounded[live], pack.size[live]
        self._recovered[at[~self.clean[at] & pack.right]] = True
        self._rise[at] = torch.maximum(self._rise[at], (pack.cross_entropy - self._loss[at]).nan_to_num(0.0).float())
        self._nearest[at] = torch.minimum(self._nearest[at], pack.nearest)
        for name, total in self._passes.items():
            total[at] += getattr(pack, name)
        self._zeros[at] += pack.zeros

    def outcome(self) -> Outcome:
        """The record."""
        return Outcome(
            indices=self.indices,
            labels=self.labels,
            clean=self.clean,
            right=self.right,
            claimed=self.claimed,
            recovered=self._recovered,
            rounded=self.rounded,
            size=self._size,
            rise=self._rise,
            margin=self._margin,
            certain=self._certain,
            nearest=self._nearest,
            zeros=self._zeros / self._passes["backwards"],
            stage=self._stage,
            sources=self._sources,
            **self._passes,
        )


def evaluate(
    subject: str,
    participant: Participant,
    splits: Callable[[str], Split],
    protocols: Sequence[Protocol],
    *,
    seed: int,
    stored: Mapping[str, Any] | None = None,
    found: Found | None = None,
    **how: Any,
) -> Results:
    """Take `participant` through `protocols`.

    Args:
        subject: what to call it.
        stored: a row of `Results.to_json`; it is returned instead if it has every protocol under the same key.
        found: see `Bench.columns`.
        how: further fields of `Bench`.
    """
    bench = Bench(participant, splits, seed, **how)
    statements = {protocol.name: bench.statement(protocol) for protocol in protocols}
    if stored and (known := _same(stored, statements)):
        return Results.from_json(subject, {"protocols": known}, stored=True)
    return Results.of(subject, bench.columns(protocols, found))


def split_reader(dataset: Any) -> Callable[[str], Split]:
    """`dataset.split` with every split built once."""
    known: dict[str, Split] = {}

    def split(name: str) -> Split:
        if name not in known:
            known[name] = dataset.split(name)
        return known[name]

    return split


def _same(stored: Mapping[str, Any], statements: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    by_key = {p["statement"]["key"]: p for p in stored["protocols"].values()}
    if not all(said["key"] in by_key for said in statements.values()):
        return None
    return {name: {**by_key[said["key"]], "statement": said} for name, said in statements.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`."""
    return Batch(*(t.to(device, non_blocking=True) for t in (batch.images, batch.labels, batch.samples)))


def examples(bench: Bench, protocol: Protocol, count: int) -> tuple[Batch, Tensor]:
    """At most `count` samples, evenly over the classes and in order, and the images that decided them."""
    split = bench.splits(protocol.split)
    indices = stratified(split.labels, count, bench.seed)
    batch = next(iter(read(split, [indices.tolist()])))
    images, place = batch.images.clone(), {index: i for i, index in enumerate(indices.tolist())}

    def keep(name: str, some: Batch, decided: Tensor, right: Tensor) -> None:
        images[[place[index] for index in some.samples.tolist()]] = decided.cpu()

    bench.measure(protocol, split, indices, "examples", keep)
    return batch, images
