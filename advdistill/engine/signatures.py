"""Signs that a training fails, read off its steps and probes; each is told once, with advice.

What is read: numbers that a step has anyway (losses, gradients, what the student said of the images that its attack
returned), and at a probe one more look at the probe's samples. Nothing is computed anew in a step, no random number is
drawn, and a run that takes no probes reads nothing. A sign is told when two probes in a row show it, once a run.
Differences between probes count where the same samples tell them apart (exact McNemar test, 5 %), shares where their
95 % interval does; samples are taken for independent, also where they share sources. Where no source is named, a
threshold is inferred.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advdistill.engine.build import Parts
from advdistill.engine.card import percent
from advdistill.engine.count import Count
from advdistill.engine.events import Symptom
from advdistill.engine.step import Step
from advdistill.engine.types import Clock

FORGETS = 0.02
"""A learning teacher has lost so much clean accuracy since the start."""
NOT_ROBUST = 0.02
"""Robust accuracy under this, while the loss has fallen by at least `FALLEN` of what it was until the first probe."""
FALLEN = 0.1
ONE_CLASS = 0.5
"""Share of one class among the predictions, beyond its share among the labels and out of what is beyond."""
RANK = 0.5
"""Effective rank of the features, against the start; and less than the classes need to stand apart evenly, one less
than there are, which is where training that goes well leads (neural collapse, Papyan et al. 2020, arXiv
2008.08186)."""
STARVED = 0.01
"""Gradient of one modality's prompts, against the other's."""
OVERFITTING = 0.2
"""Robust accuracy has fallen by so much (the released code of Wong et al. 2020, arXiv 2001.03994, which stops there),
while that under the training attack has risen: catastrophic overfitting (also Andriushchenko and Flammarion 2020, arXiv
2007.02617)."""
FOOLED = 0.5
"""A teacher is wrong about so many of the images that were made for the student; whether they fool it decides whether
robustness transfers (SAAD, arXiv 2512.10275)."""


@dataclass(frozen=True)
class Glance:
    """What a probe sees; tensors on the CPU, all of one length N.

    Attributes:
        labels: (N,) long. said: (N,) long, the student's predictions of the clean images.
        features: (N, D) the student's; None where it has none.
        clean: the student's. robust: (N,) bool, right also under attack; None: not attacked.
        teachers: role of a teacher that learns -> (N,) bool, right about the clean images.
        crafted: role of a teacher that training shows adversarial images -> right about the probe's.
    """

    labels: Tensor
    said: Tensor
    features: Tensor | None
    clean: Count
    robust: Tensor | None
    teachers: Mapping[str, Tensor] = field(default_factory=dict)
    crafted: Mapping[str, Count] = field(default_factory=dict)


@dataclass
class Past:
    """What is remembered from one probe to the next; JSON-able, part of a resume point.

    Attributes:
        steps, loss, right, asked: since the last probe; sums of loss, of adversarial images that the student was right
            about, and of those that it was asked about. squares: learner -> modality -> sum over steps of the mean
            squared gradient.
        first_loss: mean of it until the first probe. rank: effective rank at the start.
        teachers: role -> who was right at the start, "0110…". best: who was right under attack at the probe with the
            best robust accuracy since training began. attacked: accuracy under the training attack before that probe.
        shown: roles of teachers that were asked about adversarial images.
        present: signs that the last probe showed. told: those that have been told.
    """

    steps: int = 0
    loss: float = 0.0
    right: float = 0.0
    asked: float = 0.0
    squares: dict[str, dict[str, float]] = field(default_factory=dict)
    first_loss: float | None = None
    rank: float | None = None
    teachers: dict[str, str] = field(default_factory=dict)
    best: str = ""
    attacked: float = 0.0
    shown: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


class Signatures:
    """Watches a run.

    Args:
        parts: of the run.
        watching: whether there will be probes; nothing is read where there are none.
    """

    def __init__(self, parts: Parts, watching: bool) -> None:
        self.past, self._device, self._attacks = Past(), parts.device, parts.attack is not None
        self._watching = watching
        self._sides = {
            learner.name: {side: [learner.trainable[name] for name in names] for side, names in sides.items()}
            for learner in parts.learners.values()
            if watching and len(sides := learner.model.modalities()) > 1
        }
        self._squares: dict[tuple[str, str], Tensor | float] = {}

    @property
    def shown(self) -> list[str]:
        """Roles of the teachers that were asked about adversarial images so far."""
        return self.past.shown

    def seen(self, s: Step) -> Tensor:
        """Take note of a portion whose losses have been computed. Returns (2,) float64: the images that attacks
        returned that the student was right about, and those that it was asked about; to be summed over processes."""
        if not self._watching:
            return torch.zeros(2, dtype=torch.float64, device=self._device)
        self.past.shown += sorted(s.shown() - {*self.past.shown})
        return s.hits()

    def gradients(self) -> None:
        """Take note of what an optimizer step will use; the same in every process."""
        for who, sides in self._sides.items():
            for side, parameters in sides.items():
                squares = [p.grad.detach().float().square().sum() for p in parameters if p.grad is not None]
                if squares:
                    mean = torch.stack(squares).sum() / sum(p.numel() for p in parameters)
                    self._squares[who, side] = self._squares.get((who, side), 0.0) + mean

    def attacked(self, right: float, asked: float) -> None:
        """Take note of the sums over portions and processes of what `seen` returned."""
        self.past.right, self.past.asked = self.past.right + right, self.past.asked + asked

    def stepped(self, loss: float) -> None:
        """Take note of a step's loss."""
        self.past.steps, self.past.loss = self.past.steps + 1, self.past.loss + loss

    def state(self) -> dict[str, Any]:
        """All that it remembers, JSON-able."""
        self._take_in()
        return asdict(self.past)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.past = Past(**state)

    def _take_in(self) -> None:
        for who, sides in self._sides.items():
            known = self.past.squares.setdefault(who, dict.fromkeys(sides, 0.0))
            for side in sides:
                known[side] += float(self._squares.pop((who, side), 0.0))

    def probed(self, clock: Clock, glance: Glance) -> tuple[dict[str, float], list[Symptom]]:
        """What a probe says: numbers to show, by name, and what has to be told. All processes must ask."""
        self._take_in()
        past = self.past
        watched: dict[str, float] = {}
        signs = list(self._signs(clock, glance, watched))
        here = [f"{sign.name} {sign.who}" for sign in signs]
        due = [sign for sign, key in zip(signs, here, strict=True) if key in past.present and key not in past.told]
        past.present = here
        past.told += [f"{sign.name} {sign.who}" for sign in due]
        past.steps, past.loss, past.right, past.asked, past.squares = 0, 0.0, 0.0, 0.0, {}
        return watched, due

    def _signs(self, clock: Clock, glance: Glance, watched: dict[str, float]) -> Iterator[Symptom]:
        """Those that this probe shows; the numbers that they are read from go into `watched`."""
        yield from self._forgetting(clock, glance, watched)
        yield from self._not_robust(clock, glance)
        yield from self._one_class(clock, glance, watched)
        yield from self._flat(clock, glance, watched)
        yield from self._starved(clock, watched)
        yield from self._overfitting(clock, glance, watched)
        yield from self._fooled(clock, glance, watched)

    def _forgetting(self, clock: Clock, glance: Glance, watched: dict[str, float]) -> Iterator[Symptom]:
        for role, right in glance.teachers.items():
            now = watched[f"{role} teacher clean"] = _share(right)
            if clock.step == 0:
                self.past.teachers[role] = _written(right)
            before = self.past.teachers.get(role)
            if before and _share(_read(before)) - now >= FORGETS and _worse(_read(before), right):
                yield Symptom(
                    clock,
                    "teacher-forgets",
                    f"{role} teacher",
                    now,
                    _share(_read(before)) - FORGETS,
                    f"the {role} teacher was right about {percent(_share(_read(before)))} of clean images at the "
                    f"start, and is about {percent(now)}",
                    f"lower the weight of what it learns from the student (strategy.beta), or optim.groups.{role}.lr",
                )

    def _not_robust(self, clock: Clock, glance: Glance) -> Iterator[Symptom]:
        past, loss = self.past, self.past.loss / max(self.past.steps, 1)
        if past.steps and past.first_loss is None:
            past.first_loss = loss
        if glance.robust is None or past.first_loss is None or not self._attacks:
            return
        robust = Count.of(glance.robust)
        # As little may be all that can be had of many classes, early on: clean images must be told apart by far better.
        apart = robust.wilson()[1] < glance.clean.wilson()[0]
        if robust.share < NOT_ROBUST and apart and past.first_loss - loss >= FALLEN * abs(past.first_loss):
            yield Symptom(
                clock,
                "not-robust",
                "student",
                robust.share,
                NOT_ROBUST,
                f"the loss has fallen from {past.first_loss:.3g} to {loss:.3g}, but the student withstands the probe's "
                f"attack on {percent(robust.share)} of the images",
                "train at a smaller threat.eps or let it grow (train.eps_warmup), take more attack.steps, or let more "
                "of the student learn",
            )

    def _one_class(self, clock: Clock, glance: Glance, watched: dict[str, float]) -> Iterator[Symptom]:
        most = int(glance.said.bincount().argmax())
        said = Count.of(glance.said == most)
        watched["largest class"] = said.share
        due = _share(glance.labels == most)
        threshold = due + ONE_CLASS * (1 - due)
        if clock.step and said.wilson()[0] > threshold:
            yield Symptom(
                clock,
                "one-class",
                "student",
                said.share,
                threshold,
                f"{percent(said.share)} of the student's predictions of clean images are one class, which "
                f"{percent(due)} of them belong to",
                "lower optim.lr, set optim.clip_norm, or let the radius grow (train.eps_warmup)",
            )

    def _flat(self, clock: Clock, glance: Glance, watched: dict[str, float]) -> Iterator[Symptom]:
        if glance.features is None or len(glance.features) < 2 or not glance.features.isfinite().all():
            return
        rank = watched["effective rank"] = effective_rank(glance.features)
        if clock.step == 0:
            self.past.rank = rank
        before, classes = self.past.rank, len(glance.labels.unique())
        needed = min(classes - 1, glance.features.shape[1])
        if before and rank <= RANK * before and rank < needed:
            yield Symptom(
                clock,
                "features-collapse",
                "student",
                rank,
                min(RANK * before, needed),
                f"the student's image features span {rank:.1f} dimensions (effective rank), {before:.1f} at the start, "
                f"for {classes} classes",
                "lower optim.lr, set optim.clip_norm, or let the radius grow (train.eps_warmup)",
            )

    def _starved(self, clock: Clock, watched: dict[str, float]) -> Iterator[Symptom]:
        for who, sides in self.past.squares.items() if self.past.steps else ():
            norms = {side: (square / self.past.steps) ** 0.5 for side, square in sides.items()}
            watched |= {f"{who} {side} gradient": norm for side, norm in norms.items()}
            least, most = min(norms, key=norms.__getitem__), max(norms, key=norms.__getitem__)
            if norms[least] < STARVED * norms[most]:
                yield Symptom(
                    clock,
                    "starved-modality",
                    who,
                    norms[least] / norms[most],
                    STARVED,
                    f"the gradient of the {who}'s {least} prompts is {norms[least] / norms[most]:.2%} of that of its "
                    f"{most} prompts (root mean square)",
                    f"raise tokens or depth of the {least} prompts, tie both by coupling, or leave the {least} prompts "
                    "out and save their cost",
                )

    def _overfitting(self, clock: Clock, glance: Glance, watched: dict[str, float]) -> Iterator[Symptom]:
        past = self.past
        if not past.asked:
            return
        attacked = watched["training attack"] = past.right / past.asked
        if glance.robust is None:
            return
        now, best = _share(glance.robust), _share(_read(past.best)) if past.best else -1.0
        if now > best:
            past.best, past.attacked = _written(glance.robust), attacked
        elif attacked > past.attacked and best - now >= OVERFITTING and _worse(_read(past.best), glance.robust):
            yield Symptom(
                clock,
                "catastrophic-overfitting",
                "student",
                now,
                best - OVERFITTING,
                f"the student withstands the training attack on {percent(attacked)} of the images, "
                f"{percent(past.attacked)} before, but the probe's attack on {percent(now)}, {percent(best)} before",
                "take more attack.steps and a smaller attack.step, or keep the best probe (evaluate.select: robust)",
            )

    def _fooled(self, clock: Clock, glance: Glance, watched: dict[str, float]) -> Iterator[Symptom]:
        for role, right in glance.crafted.items():
            if not right.total:
                continue
            watched[f"{role} teacher on the student's examples"] = right.share
            wrong = Count(right.total - right.hits, right.total)
            if wrong.wilson()[0] > FOOLED:
                yield Symptom(
                    clock,
                    "teacher-fooled",
                    f"{role} teacher",
                    wrong.share,
                    FOOLED,
                    f"the {role} teacher, which training asks about adversarial images, is wrong about "
                    f"{percent(wrong.share)} of those made for the student",
                    f"take a teacher for {role} that is robust at threat.eps, lower threat.eps, or show it clean "
                    "images (strategy.views)",
                )


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007), of centred unit-norm features
    (N, D); in [1, min(N - 1, D)], 0 where all are the same."""
    unit = F.normalize(features.double(), dim=-1)
    values = torch.linalg.svdvals(unit - unit.mean(0))
    if values[0] <= 1e-9:
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def _worse(before: Tensor, now: Tensor) -> bool:
    """Whether the same samples, (N,) bool, say that fewer are right."""
    from advdistill.engine.compare import mcnemar  # scipy takes its time

    lost, won = int((before & ~now).sum()), int((~before & now).sum())
    return lost > won and mcnemar(lost, won) < 0.05


def _share(right: Tensor) -> float:
    return right.double().mean().item()


def _written(right: Tensor) -> str:
    return "".join("01"[each] for each in right.tolist())


def _read(written: str) -> Tensor:
    return torch.tensor([each == "1" for each in written])
