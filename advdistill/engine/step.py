"""The verbs of a strategy: `s.images`, `s.student(x)`, `s.teacher("clean")(x)`, `s.attack(objective)`.

What a verb promises. Nothing is computed before somebody looks at it. Class features are encoded once per optimizer
step, with a graph where they learn, and are constants to the attack. Gradients flow only where somebody learns, or
where the pixels ask for them. The same question about the batch, or about what an attack returned, is answered once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdistill.engine.attack import Attack, Noise, Objective, Problem
from advdistill.engine.data import Batch
from advdistill.engine.model import Factored, VisionLanguageModel
from advdistill.engine.types import ClassSet, Clock, Threat
from advdistill.errors import UsageError


class Participant:
    """A model that takes part in a run: its classes tokenised, its class features kept while they are valid.

    Attributes:
        attacked: it learns, but an attack is under way, to which it is a constant.

    Args:
        model: on its device.
        classes: the run's; templates of the model's own replace the data set's.
        learns: its `learned()` parameters are trained; nothing else ever gets a gradient.
        ema: it follows the student with this decay instead, see `follow`; 0: it does not.
        bf16: train the towers under bfloat16 autocast; pixels, logits and all that is measured stay float32.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        classes: ClassSet,
        *,
        learns: bool = False,
        ema: float = 0.0,
        bf16: bool = False,
    ) -> None:
        self.model, self.learns, self.ema, self._bf16 = model, learns, ema, bf16
        self.classes = ClassSet(classes.names, model.templates or classes.templates)
        model.bind(self.classes)
        self.prepared = model.prepare(self.classes)
        learned = model.learned()
        self.trainable = {n: t for n, t in learned.items() if isinstance(t, nn.Parameter)} if learns else {}
        model.requires_grad_(False)
        for parameter in self.trainable.values():
            parameter.requires_grad_()
        model.eval()
        self.attacked = False
        self._trains_meanwhile = False
        self._encoded: Tensor | None = None
        self._handed: Tensor | None = None

    @property
    def changes(self) -> bool:
        """Whether a run leaves it other than it was."""
        return self.learns or self.ema > 0

    @property
    def _classifier_learns(self) -> bool:
        return self.learns and isinstance(self.model, Factored) and self.model.classifier_learns

    def classifier(self) -> Tensor:
        """(C, D) class features. Where they learn, this is a leaf that collects gradients until `settle`."""
        if not isinstance(self.model, Factored):
            raise UsageError(f"{type(self.model).__name__} has no class features apart from its images")
        if self._handed is None:
            # Class features serve the loss as well, so they are encoded in its mode, also where an attack asks first.
            mode = self.model.switched(training=True) if self._trains_meanwhile else contextlib.nullcontext()
            with mode, self._thawed(), torch.set_grad_enabled(self._classifier_learns), self._autocast():
                self._encoded = self.model.classifier(self.prepared)
            self._handed = self._encoded.detach().requires_grad_(self._classifier_learns)
        return self._handed

    def settle(self) -> None:
        """Carry what the class features' leaf collected into the parameters: one text backward an optimizer step."""
        if self._encoded is not None and self._handed is not None and self._handed.grad is not None:
            self._encoded.backward(self._handed.grad)
        self.renew()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the model other learned values."""
        self.model.load_learned(tensors)
        self._encoded = self._handed = None

    def discard(self) -> None:
        """Drop gradients that must not be used."""
        for parameter in self.trainable.values():
            parameter.grad = None
        self.renew()

    def renew(self) -> None:
        """Forget class features that an optimizer step has made old."""
        if self._classifier_learns or self.ema:
            self._encoded = self._handed = None

    @torch.no_grad()
    def follow(self, student: Participant) -> None:
        """Go a step towards the student: t <- ema * t + (1 - ema) * s; what is no floating point is taken over."""
        theirs = student.model.learned()
        for name, mine in self.model.learned().items():
            if mine.is_floating_point():
                mine.lerp_(theirs[name], 1 - self.ema)
            else:
                mine.copy_(theirs[name])
        self.renew()

    def features(self, images: Tensor) -> Tensor:
        """(B, D) image features, not normalised."""
        if not isinstance(self.model, Factored):
            raise UsageError(f"{type(self.model).__name__} has no image features apart from its classes")
        with self._autocast():
            return _full(self.model.features(images))

    def logits(self, images: Tensor, features: Callable[[], Tensor] | None = None, constant: bool = False) -> Tensor:
        """(B, C) float32 logits.

        Args:
            images: (B, 3, H, W).
            features: gives this model's features of `images` where somebody has them already.
            constant: class features get no gradient.
        """
        if not isinstance(self.model, Factored):
            with self._autocast():
                return _full(self.model.predict(images, self.prepared))
        classifier = self.classifier()
        return self.model.logits(
            features() if features else self.features(images), classifier.detach() if constant else classifier
        )

    @contextlib.contextmanager
    def under_attack(self) -> Iterator[None]:
        """Attack mode (eval for who is not in training), and no parameter asks for gradients: the graph holds what
        pixels need and nothing else."""
        self.attacked, self._trains_meanwhile = self.learns, self.model.training
        mode = self.model.attacked() if self.model.training else self.model.evaluated()
        try:
            with mode, self._constant():
                yield
        finally:
            self.attacked = self._trains_meanwhile = False

    @contextlib.contextmanager
    def deployed(self) -> Iterator[None]:
        """Eval mode and full precision, as the model is used; no parameter asks for gradients."""
        training = self._bf16, self._encoded, self._handed
        if self._bf16:
            self._bf16, self._encoded, self._handed = False, None, None
        try:
            with exact(), self.model.evaluated(), self._constant():
                yield
        finally:
            if training[0]:
                self._bf16, self._encoded, self._handed = training

    @contextlib.contextmanager
    def _constant(self) -> Iterator[None]:
        self._ask(False)
        try:
            yield
        finally:
            self._ask(True)

    @contextlib.contextmanager
    def _thawed(self) -> Iterator[None]:
        # Class features are often first asked for inside an attack; their graph must reach the parameters all the same.
        before = next((p.requires_grad for p in self.trainable.values()), True)
        self._ask(True)
        try:
            yield
        finally:
            self._ask(before)

    def _ask(self, wanted: bool) -> None:
        for parameter in self.trainable.values():
            parameter.requires_grad_(wanted)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if not self._bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16)


class Seen:
    """A model as an attacker sees it: a constant, through which gradients reach the pixels alone.

    Args:
        participant: the model, while it is `deployed` or `under_attack`.
    """

    def __init__(self, participant: Participant) -> None:
        self._participant = participant

    def logits(self, images: Tensor, classifier: Tensor | None = None) -> Tensor:
        """(n, C) float32.

        Args:
            images: (n, 3, H, W) in [0, 1].
            classifier: (C, D) class features of somebody else's, to stand in the place of its own.
        """
        model = self._participant.model
        if classifier is None:
            return self._participant.logits(images, constant=True)
        features = self._participant.features(images)
        if not isinstance(model, Factored) or classifier.shape[1] != model.width:
            raise UsageError(
                f"class features of width {classifier.shape[1]} do not go with image features of {features.shape[1]}",
                "take prompts from a model of the same width",
            )
        return model.logits(features, classifier)

    def features(self, images: Tensor) -> Tensor:
        """(n, D) image features, not normalised. Raises UsageError where the model has none."""
        return self._participant.features(images)

    def classifier(self, templates: tuple[str, ...] = ()) -> Tensor:
        """(C, D) unit-norm class features: the model's own, or those it gives the classes in other `templates`."""
        if not templates:
            return self._participant.classifier().detach()
        model = self._participant.model
        if not isinstance(model, Factored):
            raise UsageError(f"{type(model).__name__} has no class features apart from its images")
        with torch.no_grad():
            return model.classifier(model.prepare(ClassSet(self._participant.classes.names, templates)))

    def exposed(self, how: str) -> contextlib.AbstractContextManager[None]:
        """See `VisionLanguageModel.exposed`."""
        return self._participant.model.exposed(how)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """No TF32 for a while: on a GPU, convolutions would otherwise have 10 bits where float32 has 23."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _full(tensor: Tensor) -> Tensor:
    """Never less than float32, which autocast gives; a model in float64 keeps it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Output:
    """What a model says of some images, computed when it is looked at."""

    def __init__(self, participant: Participant, images: Tensor) -> None:
        self._participant, self._images = participant, images
        self._known: dict[tuple[str, bool], Tensor] = {}

    @property
    def features(self) -> Tensor:
        """(B, D) image features, not normalised; builds no classifier."""
        return self._look("features", lambda: self._participant.features(self._images))

    @property
    def logits(self) -> Tensor:
        """(B, C) at the model's own scale."""
        said = partial(self._participant.logits, self._images, lambda: self.features)
        return self._look("logits", lambda: said(constant=self._participant.attacked))

    @property
    def classifier(self) -> Tensor:
        """(C, D) unit-norm class features."""
        classifier = self._participant.classifier()
        return classifier.detach() if self._participant.attacked else classifier

    def _look(self, what: str, compute: Callable[[], Tensor]) -> Tensor:
        # An output may be made before an attack, looked at in its objective, and used in the loss afterwards.
        attacked = self._participant.attacked
        if (what, attacked) not in self._known:
            grad = self._images.requires_grad or (self._participant.learns and not attacked)
            with torch.set_grad_enabled(grad):
                self._known[what, attacked] = compute()
        return self._known[what, attacked]

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
        self._said: dict[tuple[int, int], Output] = {}
        self._kept: dict[str, Tensor] = {}

    def student(self, images: Tensor) -> Output:
        """What the student says of (n, 3, H, W) images."""
        return self._ask(self._student, images)

    def teacher(self, role: str) -> Callable[[Tensor], Output]:
        """`s.teacher(role)(images)`: what that teacher says."""
        return partial(self._ask, self._teachers[role])

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
        chosen = torch.arange(len(self.images), device=self.images.device) if rows is None else rows
        problem = Problem(
            self.images[chosen],
            self.labels[chosen],
            objective and (lambda images, some: objective(images, chosen[some])),
            lambda images, some: self.student(images).logits,
            self._threat,
            seen=self._seen,
        )
        noise = self._noise if rows is None else self._noise.of(rows)
        with contextlib.ExitStack() as stack:
            for participant in (self._student, *self._teachers.values()):
                stack.enter_context(participant.under_attack())
            found = self._attack(problem, self._threat, noise)
        images = self.images.index_copy(0, chosen, found)
        self._known.append(images)
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
        return self._said.setdefault((id(participant), id(images)), Output(participant, images))
