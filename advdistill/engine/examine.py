"""What is measured around and during a run: controls and teachers before it, probes in it, the student after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from advdistill.engine import build
from advdistill.engine.build import Parts
from advdistill.engine.data import workers_for
from advdistill.engine.distributed import ALONE, World
from advdistill.engine.evaluate import Bench, Results, evaluate, examples, to_device
from advdistill.engine.events import Event, Examples, Measured, Measuring, Probed
from advdistill.engine.participant import Participant
from advdistill.engine.protocol import Protocol
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

    def probe(self, clock: Clock) -> float:
        """Clean and robust accuracy on a few samples. Returns the number that `evaluate.select` asks for; -1: none."""
        counts = self._evaluate("probe", self._parts.student, self._probes).counts
        clean, robust = counts["clean"], counts.get("robust")
        self._tell(Probed(clock, clean, robust))
        strong = robust.share if robust else clean.share
        if self._recipe.evaluate.select == "harmonic":
            return 2 * clean.share * strong / max(clean.share + strong, 1e-12)
        return {"none": -1.0, "clean": clean.share, "robust": strong}[self._recipe.evaluate.select]

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

    def _evaluate(self, subject: str, participant: Participant, protocols: list[Protocol]) -> Results:
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
                seen=self._parts.seen(participant),
                world=self._world,
            )

    def _workers(self, protocols: list[Protocol]) -> int:
        splits = [self._parts.splits(protocol.split) for protocol in protocols]
        most = max(min(p.limit or len(split), len(split)) for p, split in zip(protocols, splits, strict=True))
        return workers_for(splits[0], self._recipe.train.workers, most)
