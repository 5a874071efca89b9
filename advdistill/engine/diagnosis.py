"""A model under diagnosis with its teachers: examples are made on it once, and all parts look at those."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advdistill.engine import radar
from advdistill.engine.count import Count
from advdistill.engine.data import Dataset, read
from advdistill.engine.evaluate import Bench, Progress, split_reader
from advdistill.engine.outcomes import Column
from advdistill.engine.participant import Participant
from advdistill.engine.portraits import Looker, relevance_figure
from advdistill.engine.relevance import Maps, Similarity, maps, shown
from advdistill.engine.subject import Subject
from advdistill.engine.teaching import Crafted, Said, Teaching, compare, craft
from advdistill.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from advdistill.engine.model import VisionLanguageModel
    from advdistill.engine.protocol import Protocol
    from advdistill.engine.types import ClassSet, Threat

SHOWN = 6
"""Samples in the picture of relevance."""


@dataclass
class Patient:
    """A model under diagnosis.

    Attributes:
        label: what to call it. teachers: name -> teacher, with the model's own classes.
        blind: name -> why it has no relevance maps, of model and teachers; filled by `sees`.
    """

    label: str
    found: Subject
    teachers: Mapping[str, Participant]
    batch_size: int = 256
    progress: Progress = lambda what, done, total: None
    blind: dict[str, str] = field(default_factory=dict)

    @property
    def protocol(self) -> Protocol:
        """The attack in question."""
        return self.found.protocols[-1]

    @property
    def threat(self) -> Threat:
        """Its ball."""
        assert self.protocol.threat is not None  # `subject` gives every attack one
        return self.protocol.threat

    @property
    def everyone(self) -> dict[str, Participant]:
        """The model, as "student", and its teachers."""
        return {"student": self.found.participant, **{f"{name} teacher": t for name, t in self.teachers.items()}}

    @property
    def seeing(self) -> list[str]:
        """Who has maps, of everyone."""
        return [name for name in self.everyone if name not in self.blind]

    def sees(self) -> None:
        """Try a map of one image on everyone: cheaper told now than after the attack."""
        split = self.found.splits(self.protocol.split)
        one = next(iter(read(split, [[0]])))
        for name, participant in self.everyone.items():
            try:
                maps(participant, one.images, one.labels)
            except UsageError as error:
                self.blind[name] = error.message

    @cached_property
    def crafted(self) -> Crafted:
        """The examples, made on the model by its last protocol."""
        bench = self.found.bench(batch_size=self.batch_size, progress=self.progress)
        return craft(bench, self.protocol)

    @cached_property
    def _said(self) -> dict[str, Said]:
        return {name: Said.by(p, self.crafted, self.batch_size) for name, p in self.everyone.items()}

    @cached_property
    def teaching(self) -> dict[str, Teaching]:
        """Each teacher beside the model."""
        student, *teachers = self._said.values()
        found = [compare(student, teacher, self.crafted.labels, self.crafted.sources) for teacher in teachers]
        return dict(zip(self.teachers, found, strict=True))

    @cached_property
    def maps(self) -> dict[str, Maps]:
        """The maps of those that have some."""
        found = {}
        for number, name in enumerate(self.seeing):
            self.progress("relevance maps", number, len(self.seeing))
            found[name] = Maps.of(self.everyone[name], self.crafted)
        self.progress("relevance maps", len(found), len(found))
        return found

    @cached_property
    def alike(self) -> dict[str, dict[str, Similarity | None]]:
        """Name -> what is compared -> how alike: its maps on x and on x'; a teacher's and the student's, on each."""
        found: dict[str, dict[str, Similarity | None]] = {}
        student, sources = self.maps.get("student"), self.crafted.sources
        for name, own in self.maps.items():
            found[name] = {"x and x'": Similarity.of(own.clean, own.adversarial, sources)}
            if student and name != "student":
                found[name]["student's on x"] = Similarity.of(own.clean, student.clean, sources)
                found[name]["student's on x'"] = Similarity.of(own.adversarial, student.adversarial, sources)
        return found

    def figure(self) -> Figure:
        """See `relevance_figure`."""
        crafted = self.crafted
        rows = shown(crafted.column.outcome, SHOWN)
        lookers = []
        for name, own in self.maps.items():
            said = self._said[name]
            some = Maps(own.clean[rows], own.adversarial[rows])
            lookers.append(Looker(name, some, Said(said.clean[rows], said.adversarial[rows])))
        title = f"where {self.label} looks, attacked by {self.protocol.name}"
        names = self.found.participant.classes.names
        images = crafted.clean[rows], crafted.adversarial[rows], crafted.labels[rows]
        return relevance_figure(title, *images, names, self.threat, lookers)


@dataclass(frozen=True)
class Row:
    """A model in the radar: `measure` gives its column under attack."""

    name: str
    model: VisionLanguageModel
    classes: ClassSet
    measure: Callable[[], Column]


def relatives(patient: Patient) -> list[Row]:
    """The model itself, what it was before anything was learned, and its teachers, each attacked itself."""
    target, classes = patient.found.target, patient.found.participant.classes
    others = {}
    if target.opened and (base := target.undefended()) is not target.model:
        others["undefended"] = Participant(base.to(target.model.device), classes)
    others |= {name: participant for name, participant in patient.everyone.items() if name != "student"}
    return [row_of(patient), *(Row(name, p.model, classes, _attacked(patient, p)) for name, p in others.items())]


def row_of(patient: Patient, name: str = "student") -> Row:
    """The model under diagnosis; its examples are made already."""
    participant = patient.found.participant
    return Row(name, participant.model, participant.classes, lambda: patient.crafted.column)


def _attacked(patient: Patient, participant: Participant) -> Callable[[], Column]:
    """Measures a relative on the patient's samples, by its protocol."""
    found = patient.found

    def measure() -> Column:
        seen = found.target.company(participant)
        how: dict[str, Any] = {"batch_size": patient.batch_size, "progress": patient.progress}
        bench = Bench(participant, found.splits, found.seed, seen=seen, fingerprints=seen.fingerprints, **how)
        (column,) = bench.columns([patient.protocol])
        return column

    return measure


def side_by_side(
    rows: Sequence[Row],
    zero_shot: Dataset | None,
    shifts: Sequence[Dataset],
    limit: int,
    batch_size: int,
    progress: Progress,
) -> Callable[[], radar.Radar]:
    """Bind the models to the data at once, and give back what measures them.

    Raises:
        UsageError: a model cannot tell the data's classes apart. DataError: there are no test images.
    """

    def everyone_on(data: Dataset) -> list[radar.Elsewhere]:
        splits = split_reader(data)
        splits("test")
        return [radar.Elsewhere(row.model, data.classes, splits) for row in rows]

    new = everyone_on(zero_shot) if zero_shot else [None] * len(rows)
    moved = list(zip(*map(everyone_on, shifts), strict=True)) or [()] * len(rows)

    def measure() -> radar.Radar:
        entries = []
        for row, on_new, on_moved in zip(rows, new, moved, strict=True):
            outcome = row.measure().outcome
            clean = Count.of(outcome.clean, outcome.sources)
            away = [
                each.accuracy(f"{row.name}, shift {n}", limit, batch_size, progress) for n, each in enumerate(on_moved)
            ]
            first = on_new.accuracy(f"{row.name}, zero-shot", limit, batch_size, progress) if on_new else None
            flops, size = radar.flops(row.model, row.classes), radar.parameters(row.model)
            entries.append(radar.Entry(row.name, clean, outcome.count, first, tuple(away), flops, size))
        return radar.Radar(tuple(entries), radar.left_out(entries))

    return measure


def labels_of(names: Sequence[str]) -> list[str]:
    """What to call models in tables: their file, or the run's folder; in full where two would be called alike."""
    short = [_short(name) for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _short(name: str) -> str:
    if "@" in name:
        model, _, weights = name.rpartition("@")
        return f"{Path(model).name.removesuffix('.json')}@{Path(weights).name.removesuffix('.safetensors')}"
    file = Path(name.rpartition(":")[2])
    return file.parent.name or file.stem if file.stem in ("last", "best") else file.stem
