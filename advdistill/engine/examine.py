"""What is measured around and during a run: controls and teachers before it, probes in it, the student after it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advdistill.engine import build
from advdistill.engine.build import Parts
from advdistill.engine.count import Count
from advdistill.engine.data import Batch, read, stratified, workers_for
from advdistill.engine.distributed import ALONE, World
from advdistill.engine.evaluate import Bench, Found, Results, evaluate, examples, to_device
from advdistill.engine.events import Event, Examples, Measured, Measuring, Probed
from advdistill.engine.model import Encoded
from advdistill.engine.participant import Participant
from advdistill.engine.protocol import Protocol
from advdistill.engine.signatures import Glance, Signatures
from advdistill.engine.timing import Spent
from advdistill.engine.types import Clock
from advdistill.recipe.header import read_header
from advdistill.recipe.paths import resource

if TYPE_CHECKING:
    from advdistill.hooks.registry import Registry
    from advdistill.recipe.resolve import Recipe

SHOWN = 8


class Examiner:
    """Takes the models of a run through the recipe's protocols and tells the reporters; `world` shares the work."""

    def __init__(
        self, recipe: Recipe, registry: Registry, parts: Parts, tell: Callable[[Event], None], world: World = ALONE
    ) -> None:
        self._recipe, self._registry, self._parts, self._tell, self._world = recipe, registry, parts, tell, world
        for path in recipe.evaluate.controls.values():
            read_header(resource(path))  # a path that leads nowhere is told before the run begins
        self.protocols = build.protocols(registry, recipe)
        probe = recipe.evaluate.probe
        where: dict[str, Any] = {"split": probe.split, "limit": probe.limit}
        self._probes = [Protocol("clean", **where)]
        if probe.attack:
            self._probes.append(build.protocol(registry, "robust", probe.attack, parts.threat, **where))

    def before(self) -> list[Results]:
        """The undefended model, the controls, and the teachers that stay as they are, each as the recipe wants."""
        wanted, parts = self._recipe.evaluate, self._parts
        rows = [self._measure("before", "undefended", parts.undefended())] if wanted.undefended else []
        for name, path in wanted.controls.items():
            rows.append(self._measure("before", name, parts.control(path, self._registry)))
        for role, teacher in parts.teachers.items():
            if wanted.teachers and not teacher.changes:
                rows.append(self._measure("before", f"{role} teacher", teacher))
        return rows

    def after(self) -> list[Results]:
        """The student and the teachers that changed."""
        changed = {f"{r} teacher": p for r, p in self._parts.teachers.items() if p.changes}
        return [self._measure("after", name, p) for name, p in {"student": self._parts.student, **changed}.items()]

    def student(self, name: str) -> Results:
        """The student as it is now, under that name."""
        return self._measure("after", name, self._parts.student)

    def probe(self, clock: Clock, signs: Signatures, spent: Spent) -> float:
        """Clean and robust accuracy on a few samples. Returns the number that `evaluate.select` asks for; -1: none."""
        crafted: list[Batch] = []

        def keep(protocol: str, batch: Batch, images: Tensor, right: Tensor) -> None:
            made = (images.cpu() != batch.images).flatten(1).any(1)  # what was wrong already is left as it was
            crafted.append(Batch(images.cpu()[made], batch.labels[made], batch.samples[made]))

        results = self._evaluate("probe", self._parts.student, self._probes, keep if signs.shown else None)
        clean, robust = results.counts["clean"], results.counts.get("robust")
        watched, symptoms = signs.probed(clock, self._looked(results, signs.shown, crafted))
        self._tell(Probed(clock, clean, robust, watched, spent.seconds, copy.deepcopy(spent.passes)))
        for symptom in symptoms:
            self._tell(symptom)
        strong = robust.share if robust else clean.share
        if self._recipe.evaluate.select == "harmonic":
            return 2 * clean.share * strong / max(clean.share + strong, 1e-12)
        return {"none": -1.0, "clean": clean.share, "robust": strong}[self._recipe.evaluate.select]

    def _looked(self, results: Results, shown: Collection[str], crafted: list[Batch]) -> Glance:
        """What everybody says of the probe's images. Each process looks at its share of them.

        Args:
            results: the probe's. shown: teachers who are asked about the images `crafted` for the student.
        """
        where, size, world = self._probes[0], self._recipe.evaluate.batch_size, self._world
        split, student = self._parts.splits(where.split), self._parts.student
        indices = stratified(split.labels, where.limit, self._recipe.seed)
        portions = [part.tolist() for part in indices[world.share(len(indices))].split(size)]
        clean = list(read(split, portions))
        learners = {role: teacher for role, teacher in self._parts.teachers.items() if teacher.learns}
        mine = [
            _saw(student, batch)
            | {f"{role} right": _saw(teacher, batch)["said"] == batch.labels for role, teacher in learners.items()}
            for batch in clean
        ]
        right = dict.fromkeys(shown, 0)
        for role in shown:
            for batch in crafted:
                for part in range(0, len(batch), size):
                    some = batch[part : part + size]
                    right[role] += int((_saw(self._parts.teachers[role], some)["said"] == some.labels).sum())
        everybody = world.gather((mine, right, sum(map(len, crafted))))
        looks = [each for theirs, _, _ in everybody for each in theirs]

        def all_(name: str) -> Tensor:
            return torch.cat([each[name] for each in looks])

        made = sum(count for _, _, count in everybody)
        return Glance(
            labels=split.labels[indices],
            said=all_("said"),
            features=all_("features") if "features" in looks[0] else None,
            clean=results.counts["clean"],
            robust=results.columns["robust"].outcome.right if "robust" in results.columns else None,
            teachers={role: all_(f"{role} right") for role in learners},
            crafted={role: Count(sum(theirs[role] for _, theirs, _ in everybody), made) for role in shown},
        )

    def show(self) -> None:
        """A few samples with what the undefended model and the student say of them, each attacked itself; they are
        the main process's alone to show."""
        robust = next((p for p in self.protocols if p.attack), None)
        if robust is None or robust.threat is None or not self._world.main:
            return
        parts = self._parts
        names = parts.classes.names
        said, found = {}, {}
        for subject, participant in {"undefended": parts.undefended(), "student": parts.student}.items():
            bench = Bench(participant, parts.splits, self._recipe.seed, seen=parts.seen(participant))
            with parts.deployed_teachers():
                batch, adversarial = examples(bench, robust, SHOWN)
            batch, adversarial = to_device(batch, participant.model.device), adversarial.to(participant.model.device)
            found[subject] = adversarial.cpu()
            with participant.deployed(), torch.no_grad():
                clean, attacked = (
                    participant.logits(images).softmax(1).max(1) for images in (batch.images, adversarial)
                )
            said[subject] = [
                ((names[int(clean.indices[i])], clean.values[i].item()),
                 (names[int(attacked.indices[i])], attacked.values[i].item()))
                for i in range(len(batch))
            ]  # fmt: skip
        labels = tuple(names[label] for label in batch.labels.tolist())
        self._tell(Examples(batch.images.cpu(), found, labels, said, robust.threat.eps, robust.threat.norm))

    def _measure(self, moment: str, subject: str, participant: Participant) -> Results:
        results = self._evaluate(subject, participant, self.protocols)
        self._tell(Measured(moment, results))
        return results

    def _evaluate(
        self, subject: str, participant: Participant, protocols: list[Protocol], found: Found | None = None
    ) -> Results:
        with self._parts.deployed_teachers():
            return evaluate(
                subject,
                participant,
                self._parts.splits,
                protocols,
                seed=self._recipe.seed,
                batch_size=self._recipe.evaluate.batch_size,
                workers=self._workers(protocols),
                progress=lambda name, done, total: self._tell(Measuring(subject, name, done, total)),
                stored=participant.model.stored_results,
                found=found,
                seen=self._parts.seen(participant),
                world=self._world,
            )

    def _workers(self, protocols: list[Protocol]) -> int:
        splits = [self._parts.splits(protocol.split) for protocol in protocols]
        most = max(
            (min(p.limit or len(split), len(split)) for p, split in zip(protocols, splits, strict=True)), default=0
        )
        return workers_for(splits[0], self._recipe.train.workers, most) if splits else 0


def _saw(participant: Participant, batch: Batch) -> dict[str, Tensor]:
    """What a model that is deployed says of a batch, on the CPU: `said` (B,) long, and `features` (B, D) if it has
    any."""
    images = batch.images.to(participant.model.device)
    with participant.deployed(), torch.no_grad():
        if not isinstance(participant.model, Encoded):
            return {"said": participant.logits(images).argmax(1).cpu()}
        features = participant.features(images)
        return {"said": participant.logits(images, lambda: features).argmax(1).cpu(), "features": features.cpu()}
