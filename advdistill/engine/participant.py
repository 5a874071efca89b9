"""A model that takes part in a run: who learns, in what mode and precision it looks, who may see it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advdistill.engine.class_features import AT_MOST, ClassFeatures
from advdistill.engine.compiled import Compiled
from advdistill.engine.distributed import ALONE, World
from advdistill.engine.model import Encoded, Factored, VisionLanguageModel
from advdistill.engine.timing import CLASS_FEATURES, passed, phase
from advdistill.engine.types import ClassSet
from advdistill.errors import UsageError


@dataclass(frozen=True)
class Manner:
    """How models compute in training. Nothing here but precision changes a number beyond its rounding.

    Attributes:
        precision: of the towers: bf16, or as torch is set.
        compile: towers are compiled.
        class_chunk: classes that are encoded at a time; 0: all.
        world: the processes that share the encoding.
    """

    precision: str = "fp32"
    compile: bool = False
    class_chunk: int = AT_MOST
    world: World = ALONE


class Participant:
    """A model that takes part in a run: its classes tokenised, its class features kept while they are valid.

    Attributes:
        attacked: it learns, but an attack is under way, to which it is a constant.
        recall: what it said of images as they are in the training split is kept there, see `advdistill.engine.recall`;
            None: it is not.

    Args:
        model: on its device.
        classes: the run's; templates of the model's own replace the data set's.
        learns: its `learned()` parameters are trained; nothing else ever gets a gradient.
        ema: it follows the student with this decay instead, see `follow`; 0: it does not.
        manner: how it computes in training; all that is measured is float32.
        name: whose time it is when a step is timed.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        classes: ClassSet,
        *,
        learns: bool = False,
        ema: float = 0.0,
        manner: Manner = Manner(),
        name: str = "student",
    ) -> None:
        self.model, self.learns, self.ema, self.name = model, learns, ema, name
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
        self.recall: Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor] | None = None
        self._manner, self._trains_meanwhile = manner, False
        self._compiled = (
            Compiled(model, lambda: self.shares_forwards, name)
            if manner.compile and isinstance(model, Encoded)
            else None
        )
        self._look: Callable[[Tensor], Tensor] | None = self._compiled
        self._class_features = self._of_classes(self._classifier_learns, manner)
        self._when_deployed = self._of_classes(False, Manner(class_chunk=manner.class_chunk))

    @property
    def compiled(self) -> bool:
        """Whether its tower is compiled, and has been so far wherever it was tried."""
        return self._compiled is not None and not self._compiled.failed

    @property
    def changes(self) -> bool:
        """Whether a run leaves it other than it was."""
        return self.learns or self.ema > 0

    @property
    def first(self) -> str:
        """What it says of images before all else: "features", or "logits" where it does not look at them apart."""
        return "features" if isinstance(self.model, Encoded) else "logits"

    @property
    def shares_forwards(self) -> bool:
        """Whether what it says of an image does not depend on the others that it looks at meanwhile."""
        trained = (module for module in self.model.modules() if isinstance(module, _BatchNorm))
        return self.model.batch_independent and not any(module.training for module in trained)

    @property
    def _classifier_learns(self) -> bool:
        return self.learns and isinstance(self.model, Encoded) and self.model.classifier_learns

    def _of_classes(self, learns: bool, manner: Manner) -> ClassFeatures:
        world = manner.world if len(self.classes) >= manner.world.size else ALONE
        return ClassFeatures(self._encode, len(self.classes), learns, manner.class_chunk, world, self.model.device)

    def _encode(self, rows: Tensor | None) -> Tensor:
        assert isinstance(self.model, Encoded)
        # Class features serve the loss as well, so they are encoded in its mode, also where an attack asks first.
        mode = self.model.switched(training=True) if self._trains_meanwhile else contextlib.nullcontext()
        # They are often first asked for inside an attack; their graph must reach the parameters all the same.
        asking = self._asking(torch.is_grad_enabled())
        with phase(CLASS_FEATURES, own=True), mode, asking, self._autocast():
            return self.model.classifier(self.prepared, rows)

    def classifier(self) -> Tensor:
        """(C, D) class features. Where they learn, this is a leaf that collects gradients until `settle`."""
        if not isinstance(self.model, Factored):
            raise UsageError(f"{type(self.model).__name__} has no class features apart from its images")
        return self.encoded()

    def encoded(self) -> Tensor:
        """(C, ...) what an `Encoded` model knows of the classes; a leaf as `classifier` gives it."""
        return self._class_features.look()

    def settle(self) -> None:
        """Carry what the class features' leaf collected into the parameters: one text backward an optimizer step."""
        with phase(CLASS_FEATURES):
            if self._classifier_learns:
                self._class_features.settle()
        self.renew()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the model other learned values."""
        self.model.load_learned(tensors)
        self._forget()

    def discard(self) -> None:
        """Drop gradients that must not be used."""
        for parameter in self.trainable.values():
            parameter.grad = None
        self.renew()

    def renew(self) -> None:
        """Forget class features that an optimizer step has made old."""
        if self._classifier_learns or self.ema:
            self._forget()

    def _forget(self) -> None:
        self._class_features.forget()
        self._when_deployed.forget()

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

    def _constant_of(self, images: Tensor) -> bool:
        """Whether what it says of them would be the same if no attack were under way."""
        return not (self.attacked or images.requires_grad)

    def features(self, images: Tensor) -> Tensor:
        """(B, D) image features, not normalised."""
        if not isinstance(self.model, Encoded):
            raise UsageError(f"{type(self.model).__name__} has no image features apart from its classes")
        with self._autocast():
            return _full(passed(self.name, self._look or self.model.features, images, self._constant_of(images)))

    def logits(self, images: Tensor, features: Callable[[], Tensor] | None = None, constant: bool = False) -> Tensor:
        """(B, C) float32 logits.

        Args:
            images: (B, 3, H, W).
            features: gives this model's features of `images` where somebody has them already.
            constant: class features get no gradient.
        """
        if not isinstance(self.model, Encoded):
            with self._autocast():
                own = self._constant_of(images)
                return _full(passed(self.name, lambda some: self.model.predict(some, self.prepared), images, own))
        classifier = self.encoded()
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
            with mode, self._asking(False):
                yield
        finally:
            self.attacked = self._trains_meanwhile = False

    @contextlib.contextmanager
    def deployed(self, compiled: bool = False) -> Iterator[None]:
        """Eval mode and full precision, as the model is used; no parameter asks for gradients.

        Args:
            compiled: it may look through graphs, where its manner compiles: for attacks. No verdict rests on one.
        """
        training = self._manner, self._look, self._class_features
        look = self._compiled.deployed if compiled and self._compiled else None
        self._manner, self._look, self._class_features = Manner(), look, self._when_deployed
        try:
            with exact(), self.model.evaluated(), self._asking(False):
                yield
        finally:
            self._manner, self._look, self._class_features = training

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """What this process tries by itself: it waits for no other's class features, its own are dropped, and nothing
        is compiled for sizes that may not fit."""
        shared = self._look, self._class_features
        self._look = None
        self._class_features = self._of_classes(self._classifier_learns, replace(self._manner, world=ALONE))
        try:
            yield
        finally:
            self._look, self._class_features = shared

    @contextlib.contextmanager
    def _asking(self, wanted: bool) -> Iterator[None]:
        """Whether parameters that learn ask for gradients, for a while."""
        before = [parameter.requires_grad for parameter in self.trainable.values()]
        for parameter in self.trainable.values():
            parameter.requires_grad_(wanted)
        try:
            yield
        finally:
            for parameter, asked in zip(self.trainable.values(), before, strict=True):
                parameter.requires_grad_(asked)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._manner.precision != "bf16":
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


def exact() -> contextlib.AbstractContextManager[None]:
    """No TF32 for a while: on a GPU, convolutions would otherwise have 10 bits where float32 has 23."""
    return tf32(False)


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether a GPU may multiply float32 numbers with 10 bits of them, for a while."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _full(tensor: Tensor) -> Tensor:
    """Never less than float32, which autocast gives; a model in float64 keeps it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
