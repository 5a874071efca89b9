"""The verbs of a strategy: `s.images`, `s.student(x)`, `s.teacher("clean")(x)`, `s.attack(objective)`.

What a verb promises. Nothing is computed before somebody looks at it. Class features are encoded once per optimizer
step, with a graph where they learn, and are constants to the attack. Gradients flow only where somebody learns, or
where the pixels ask for them. The same question about the batch, or about what an attack returned, is answered once;
several of them that wait for the same model share one forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from advdistill.engine.attack import Attack, Objective, Problem
from advdistill.engine.data import Batch
from advdistill.engine.model import Encoded
from advdistill.engine.noise import Noise
from advdistill.engine.participant import Participant, Seen
from advdistill.engine.timing import phase
from advdistill.engine.types import Clock, Threat
from advdistill.errors import UsageError


class Output:
    """What a model says of some images, computed when it is looked at.

    Args:
        mates: outputs of the same model that were asked for and may be computed along with this one.
        recall: gives what the model says first, features or else logits, where that is known already, and otherwise
            asks the function that it is given.
    """

    def __init__(
        self,
        participant: Participant,
        images: Tensor,
        mates: Callable[[], Iterable[Output]] = lambda: (),
        recall: Callable[[Callable[[Tensor], Tensor]], Tensor] | None = None,
    ) -> None:
        self._participant, self._images, self._mates, self._recall = participant, images, mates, recall
        self._known: dict[tuple[str, bool], Tensor] = {}

    @property
    def features(self) -> Tensor:
        """(B, D) image features, not normalised; builds no classifier."""
        return self._look("features", lambda: self._together("features", self._participant.features))

    @property
    def logits(self) -> Tensor:
        """(B, C) at the model's own scale."""
        if isinstance(self._participant.model, Encoded):
            said = partial(self._participant.logits, self._images, lambda: self.features)
            return self._look("logits", lambda: said(constant=self._participant.attacked))
        return self._look("logits", lambda: self._together("logits", self._participant.logits))

    @property
    def classifier(self) -> Tensor:
        """(C, D) unit-norm class features."""
        classifier = self._participant.classifier()
        return classifier.detach() if self._participant.attacked else classifier

    def _found(self, what: str) -> Tensor | None:
        """Features or logits as they were found outside attacks; None: they were not."""
        return self._known.get((what, False))

    def _look(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        # An output may be made before an attack, looked at in its objective, and used in the loss afterwards.
        attacked = self._participant.attacked
        if (what, attacked) not in self._known:
            grad = self._images.requires_grad or (self._participant.learns and not attacked)
            with torch.set_grad_enabled(grad):
                found = compute()
            self._known.setdefault((what, attacked), found)
        return self._known[what, attacked]

    def _together(self, what: str, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """`compute(images)`, in one pass with the images of those mates that wait for the same."""
        if self._recall and what == self._participant.first:
            return self._recall(compute)
        key = (what, self._participant.attacked)
        waiting = [mate for mate in self._mates() if not (mate is self or mate._recall or key in mate._known)]
        if not waiting:
            return compute(self._images)
        mine, *theirs = compute(torch.cat([self._images, *(mate._images for mate in waiting)])).split(len(self._images))
        for mate, found in zip(waiting, theirs, strict=True):
            mate._known[key] = found
        return mine

    @property
    def log_probs(self) -> Tensor:
        """(B, C)."""
        return F.log_softmax(self.logits, dim=-1)

    @property
    def probs(self) -> Tensor:
        """(B, C)."""
        return F.softmax(self.logits, dim=-1)

    def confidence(self, labels: Tensor) -> Tensor:
        """(B,) probability of the label, in [0, 1]."""
        return self.probs.gather(1, labels.unsqueeze(1)).squeeze(1)

    def cosine(self, labels: Tensor) -> Tensor:
        """(B,) cosine of image and label's class feature, in [-1, 1]."""
        return (F.normalize(self.features, dim=-1) * self.classifier[labels]).sum(-1)

    def detach(self) -> Output:
        """The same without gradients."""
        return _Mapped(self, torch.Tensor.detach)

    def __getitem__(self, rows: Tensor) -> Output:
        """Those of some samples, `rows` (n,) long."""
        return _Mapped(self, lambda tensor: tensor[rows])


class _Mapped(Output):
    def __init__(self, source: Output, change: Callable[[Tensor], Tensor]) -> None:
        self._source, self._change = source, change

    @property
    def features(self) -> Tensor:
        return self._change(self._source.features)

    @property
    def logits(self) -> Tensor:
        return self._change(self._source.logits)

    @property
    def classifier(self) -> Tensor:
        raise UsageError("ask the output itself for class features and cosines, then detach or select")


class Step:
    """One batch on its way through a strategy, all its phases.

    Attributes:
        images: (B, 3, H, W) in [0, 1]. labels: (B,) long. clock: where the run stands. roles: who teaches.

    Args:
        student, teachers: who takes part, by role.
        attack: the recipe's; None where the strategy does not attack.
        threat: the recipe's ball.
        noise: draws for this batch's samples.
    """

    poses: type[Problem] = Problem
    """What an attack is given."""

    def __init__(
        self,
        batch: Batch,
        clock: Clock,
        *,
        student: Participant,
        teachers: Mapping[str, Participant],
        attack: Attack | None,
        threat: Threat,
        noise: Noise,
    ) -> None:
        self.images, self.labels, self.clock = batch.images, batch.labels, clock
        self.roles = tuple(teachers)
        self._student, self._teachers = student, teachers
        self._attack, self._threat, self._noise = attack, threat, noise
        self._known: list[Tensor] = [self.images]
        self._uncounted: list[tuple[Tensor, slice | Tensor]] = []
        self._said: dict[tuple[int, int], Output] = {}
        self._attacking = False
        self._samples = batch.samples
        self._kept: dict[str, Tensor] = {}

    def student(self, images: Tensor) -> Output:
        """What the student says of (n, 3, H, W) images."""
        return self._ask(self._student, images)

    def teacher(self, role: str) -> Callable[[Tensor], Output]:
        """`s.teacher(role)(images)`: what that teacher says."""
        return partial(self._ask, self._teachers[role])

    def hits(self) -> Tensor:
        """(2,) float64: of the images that were attacked, those that the student was right about, and those that it
        was asked about; only what is known already, and was not told before."""
        found = torch.zeros(2, dtype=torch.float64, device=self.labels.device)
        waiting, self._uncounted = self._uncounted, []
        for images, rows in waiting:
            said = self._said.get((id(self._student), id(images)))
            logits = None if said is None else said._found("logits")
            if logits is None:
                self._uncounted.append((images, rows))
            else:
                hit = (logits.argmax(1) == self.labels)[rows]
                found[0] += hit.sum()
                found[1] += len(hit)
        return found

    def shown(self) -> set[str]:
        """Roles of the teachers who looked at images that attacks returned, as far as that is not forgotten."""
        looked = {
            who
            for (who, images), said in self._said.items()
            if images != id(self.images) and (said._found("features") is not None or said._found("logits") is not None)
        }
        return {role for role, teacher in self._teachers.items() if id(teacher) in looked}

    def learns(self, role: str) -> bool:
        """Whether the teacher in that role learns in this run."""
        return self._teachers[role].learns

    def attack(self, objective: Objective | None = None, rows: Tensor | None = None) -> Tensor:
        """Images in the ball around the batch's that raise `objective`; (B, 3, H, W), no graph.

        Args:
            objective: `(images, rows) -> (len(rows),)`, where `rows` says which samples of the batch the images
                stand for; None: the student's cross-entropy. Everybody is in attack mode; only pixels get gradients.
            rows: (n,) long; attack these samples only and leave the others as they are.
        """
        if self._attack is None:
            raise UsageError("this strategy attacks, but the recipe has no attack")
        problem = self.poses(
            # A tensor of its own: what is asked about it in the attack is no question about the batch.
            self.images.detach() if rows is None else self.images[rows],
            self.labels if rows is None else self.labels[rows],
            objective and (lambda images, some: objective(images, some if rows is None else rows[some])),
            lambda images, some: self.student(images).logits,
            self._threat,
            seen=self._seen,
        )
        noise = self._noise if rows is None else self._noise.of(rows)
        with contextlib.ExitStack() as stack:
            stack.enter_context(phase("attack"))
            for participant in (self._student, *self._teachers.values()):
                stack.enter_context(participant.under_attack())
            self._attacking = True
            stack.callback(setattr, self, "_attacking", False)
            found = self._attack(problem, self._threat, noise)
        images = found if rows is None else self.images.index_copy(0, rows, found)
        self._known.append(images)
        self._uncounted.append((images, slice(None) if rows is None else rows))
        return images

    def _seen(self, name: str) -> Seen:
        if name != "self" and name not in self._teachers:
            raise UsageError(
                f"an attack in training asks for the model {name!r}; there are: {', '.join(['self', *self.roles])}"
            )
        return Seen(self._student if name == "self" else self._teachers[name])

    def once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """`compute()`, without graph, when first asked; the same tensor in later phases of this batch."""
        if name not in self._kept:
            found = compute()
            self._kept[name] = found.detach() if found.requires_grad else found
        return self._kept[name]

    def forget(self) -> None:
        """Drop what models said: an optimizer step has changed them. Images stay."""
        self._said.clear()

    def _ask(self, participant: Participant, images: Tensor) -> Output:
        if not any(images is known for known in self._known):
            return Output(participant, images)
        known = participant.recall if images is self.images else None
        return self._said.setdefault(
            (id(participant), id(images)),
            Output(
                participant,
                images,
                lambda: self._mates(participant),
                known and (lambda look: known(self._samples, self.images, look)),
            ),
        )

    def _mates(self, participant: Participant) -> Iterable[Output]:
        """The batch's outputs of one model, where computing them together changes none of them. While an attack is
        under way nobody knows whether the others will be wanted."""
        if self._attacking or not participant.shares_forwards:
            return ()
        return [said for said in self._said.values() if said._participant is participant]
