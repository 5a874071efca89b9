"""The contract of everything that looks at images: teachers, students, defended models.

`predict` is all that attacks, evaluation and exported modules rely on. `Encoded` adds what makes training fast: what is
known of the classes depends on parameters only, so that one encoding serves a whole optimizer step. `Factored` adds
what methods look at: features of images and classes in one space.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advdistill.engine.types import ClassSet
from advdistill.errors import DataError, UsageError

Classes = Any
"""What a model's `prepare` made of a ClassSet (token ids and the like); opaque to the engine."""


class VisionLanguageModel(nn.Module, ABC):
    """Images in, one logit per class out.

    Attributes:
        batch_independent: in eval mode an image's logits do not depend on its batch mates.
        deterministic: the same images give the same logits in eval mode.
        differentiable: gradients reach the pixels.
        exposes: what `exposed` can do for an attacker.
        image_size: the side in pixels that the tower works at; inputs of other sizes are resized inside.
        templates: its own templates, which replace the data set's; empty: it takes those.
        own_words: prompts of its own stand in the place of a template's words: it cannot be asked in other sentences.
        stored_results: its row of measured numbers, where its file brought one (`Results.to_json`).
    """

    batch_independent: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    exposes: ClassVar[frozenset[str]] = frozenset()
    image_size: int
    templates: tuple[str, ...] = ()
    own_words: bool = False
    stored_results: Mapping[str, Any] | None = None

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any, *, weights: bool = True) -> VisionLanguageModel:
        """Build the model that `config` describes.

        Args:
            config: this component's validated settings.
            weights: False builds the same modules and shapes on the meta device and reads no weights (for plans).

        Raises:
            DataError: weights are missing, unreadable or do not fit. They never become random ones.
        """

    def bind(self, classes: ClassSet) -> None:
        """Make the parameters that depend on which classes there are, such as class-specific contexts.

        Called on the model's device before `prepare`, `learned` and `load_learned`, and again with each set of classes
        that the model is used for. Most models depend on none.

        Raises:
            UsageError: it is bound to other classes already.
        """

    def takes(self) -> dict[str, str]:
        """What can be learned in such an architecture: kind (like "visual prompts") -> why not; "" if it can.

        For people who ask `advdistill inspect --model`; the model may stand on the meta device.
        """
        return {}

    @abstractmethod
    def prepare(self, classes: ClassSet) -> Classes:
        """Tokenise `classes`, on this model's device. Raises UsageError where a sentence is too long."""

    @abstractmethod
    def predict(self, images: Tensor, classes: Classes) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> (B, C) float32 logits."""

    @abstractmethod
    def learned(self) -> dict[str, Tensor]:
        """What a checkpoint stores: the learning parameters and the buffers that change with them, by stable name.

        The tensors are the live ones, not copies; the same names and shapes come back whatever the mode.
        """

    def modalities(self) -> dict[str, list[str]]:
        """Which of `learned` act alike but in another modality, as prompts of the "text" and of the "visual" tower do:
        modality -> names. A run watches that the gradient leaves none of them out. Most models have none."""
        return {}

    @abstractmethod
    def undefended(self) -> VisionLanguageModel:
        """The model this one came from, before anything was learned, sharing frozen weights where it can."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-able facts for the checkpoint: `base` {model, weights, fingerprint}, `preprocessing`, `activation`."""

    def evaluated(self) -> AbstractContextManager[None]:
        """Eval mode for a while; the mode before comes back afterwards, module by module."""
        return self.switched(training=False)

    @contextlib.contextmanager
    def switched(self, *, training: bool) -> Iterator[None]:
        """Training or eval mode for a while; the mode before comes back afterwards, module by module."""
        before = [(module, module.training) for module in self.modules()]
        self.train(training)
        try:
            yield
        finally:
            for module, training in before:
                module.training = training

    def attacked(self) -> AbstractContextManager[None]:
        """The mode under attack in training: eval, unless the model has a reason (batch statistics) to differ."""
        return self.evaluated()

    @contextlib.contextmanager
    def exposed(self, how: str) -> Iterator[None]:
        """For a while, what hides gradients does so no longer; what the model answers stays the same.

        A model that declares `exposes` overrides this.

        Args:
            how: "bpda": gradients pass through stand-ins of the steps that have none (Athalye et al. 2018,
                arXiv 1802.00420); "unrolled": through the optimisation that the model runs on its input.

        Raises:
            UsageError: the model has nothing of the kind.
        """
        if how not in self.exposes:
            offered = ", ".join(sorted(self.exposes)) or "nothing"
            raise UsageError(
                f"{type(self).__name__} exposes {offered}, not {how!r}", "attack it as it is, or through another model"
            )
        yield

    def load_learned(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy stored values into `learned()`, strictly: the same names, the same shapes.

        Raises:
            DataError: names are missing or unexpected, or shapes differ.
        """
        mine = self.learned()
        missing, extra = sorted(mine.keys() - tensors.keys()), sorted(tensors.keys() - mine.keys())
        wrong = [f"{k} {tuple(tensors[k].shape)} for {tuple(mine[k].shape)}" for k in mine.keys() & tensors.keys()
                 if tensors[k].shape != mine[k].shape]  # fmt: skip
        if missing or extra or wrong:
            parts = [("missing", missing), ("unexpected", extra), ("of another shape", sorted(wrong))]
            told = "; ".join(f"{len(names)} {what}: {', '.join(names[:3])}" for what, names in parts if names)
            raise DataError(
                f"the stored tensors do not fit the model: {told}",
                "was it made with another version of the student's plugin? `advdistill inspect` tells which",
            )
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(tensors[name])

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device


class Encoded(VisionLanguageModel):
    """A model that looks at images and at classes apart, and compares them last.

    Attributes:
        classifier_learns: `classifier` depends on something that `learned` holds; else it is computed once a run.
    """

    classifier_learns: bool = False

    @abstractmethod
    def classifier(self, classes: Classes, rows: Tensor | None = None) -> Tensor:
        """(C, ...) float32, what it knows of the classes, or of those in `rows` (long, on the CPU) alone; each class's
        part depends on that class only."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], any size, resized differentiably -> (B, D) float32 features, not normalised."""

    @abstractmethod
    def logits(self, features: Tensor, classifier: Tensor) -> Tensor:
        """(B, D), (C, ...) -> (B, C) float32."""

    def relevance(self, images: Tensor, classifier: Tensor, chosen: Tensor) -> Tensor:
        """Where in the images the logits of some classes come from: (B, h, w), not negative, on a grid of its own.

        For `advdistill diagnose`, in eval mode. It changes nothing that the model says.

        Args:
            images: (B, 3, H, W) in [0, 1]. classifier: as `classifier` gives it, without a graph.
            chosen: (B,) long, the class of each image whose logit is explained.

        Raises:
            UsageError: the model has no such maps.
        """
        raise UsageError(f"{type(self).__name__} has no relevance maps", "leave out the relevance part")

    def predict(self, images: Tensor, classes: Classes) -> Tensor:
        return self.logits(self.features(images), self.classifier(classes))


class Factored(Encoded):
    """A model whose logits factor into image features and class features, as in CLIP: `classifier` gives (C, D)
    unit-norm class features, `logits` cosine similarities times this model's own stored scale.

    Attributes:
        width: D, of image and class features.
    """

    width: int
