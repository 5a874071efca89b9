"""Where a teacher and the student are compared. A level has one loss or two; `LEVELS` names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from advdistill import Output, kl


class Scale(NamedTuple):
    """How logits are softened and KLs reduced.

    Attributes:
        teacher: divides the teacher's logits. temperature: divides both sides' logits.
        element_mean: KLs are divided by the number of outcomes of their distributions.
    """

    teacher: float | Tensor
    temperature: float
    element_mean: bool

    def kl(self, teacher: Tensor, student: Tensor) -> Tensor:
        """(n,) KL of the student's rows from the teacher's; (n, outcomes) logits."""
        value = kl(teacher / self.teacher, student, self.temperature)
        return value / teacher.shape[1] if self.element_mean else value


class Loss(NamedTuple):
    """One comparison.

    Attributes:
        distance: `(teacher, student, labels, scale) -> (B,)`.
        confidence: `(teacher, labels) -> (B,)` in [0, 1]: how sure the teacher is of what it teaches here.
    """

    distance: Callable[[Output, Output, Tensor, Scale], Tensor]
    confidence: Callable[[Output, Tensor], Tensor]


def classes_of_images(teacher: Output, student: Output, labels: Tensor, scale: Scale) -> Tensor:
    """(B,) KL over the classes, given each image."""
    return scale.kl(teacher.logits, student.logits)


def images_of_texts(teacher: Output, student: Output, labels: Tensor, scale: Scale) -> Tensor:
    """(B,) KL over the portion's images, given the text of each sample's label: logits read column by column."""
    return scale.kl(teacher.logits.T[labels], student.logits.T[labels])


def embeddings(teacher: Output, student: Output, labels: Tensor, scale: Scale) -> Tensor:
    """(B,) 1 - cosine of the image features: half the squared distance of the unit features."""
    return 1 - F.cosine_similarity(teacher.features, student.features)


def sure_of_class(teacher: Output, labels: Tensor) -> Tensor:
    """(B,) probability of the label."""
    return teacher.confidence(labels)


def sure_of_images(teacher: Output, labels: Tensor) -> Tensor:
    """(B,) probability that the label's text gives to the portion's images of that label, together."""
    own = labels.unsqueeze(1) == labels
    return (teacher.logits.T[labels].softmax(1) * own).sum(1)


def sure_of_embedding(teacher: Output, labels: Tensor) -> Tensor:
    """(B,) cosine of image and label, mapped from [-1, 1] to [0, 1]."""
    return (1 + teacher.cosine(labels)) / 2


LEVELS: dict[str, dict[str, Loss]] = {
    "logits": {"logits": Loss(classes_of_images, sure_of_class)},
    "embedding": {"embedding": Loss(embeddings, sure_of_embedding)},
    "logits-embedding": {
        "logits": Loss(classes_of_images, sure_of_class),
        "embedding": Loss(embeddings, sure_of_embedding),
    },
    "contrastive": {
        "image-text": Loss(classes_of_images, sure_of_class),
        "text-image": Loss(images_of_texts, sure_of_images),
    },
}
