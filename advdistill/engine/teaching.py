"""What teachers know of the examples that fool their student: could more distillation help, or only other teachers?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advdistill.engine.checkpoint import open_teacher
from advdistill.engine.count import Count, Z
from advdistill.engine.evaluate import Bench
from advdistill.engine.losses import kl
from advdistill.engine.model import VisionLanguageModel
from advdistill.engine.outcomes import Column
from advdistill.engine.participant import Participant
from advdistill.engine.protocol import Protocol
from advdistill.engine.sources import variance

if TYPE_CHECKING:
    from advdistill.engine.subject import Target
    from advdistill.hooks.registry import Registry


DRAWS = 1000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Mean:
    """A mean over samples.

    Attributes:
        low, high: the bootstrap's 95 % percentile interval (Efron 1979); where samples share sources, the normal one
            with the variance that they give (`sources.variance`). Sampling error only, in the range of the values.
        count: samples.
    """

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Tensor, sources: Tensor | None = None) -> Mean:
        """Of samples' values; the same draws every time.

        Args:
            values: (n,) finite, n > 0. sources: (n, k) long, as `Outcome.sources`; None, or k = 0: they share none.
        """
        values, count = values.double(), len(values)
        if sources is not None and sources.numel():
            mean, half = values.mean().item(), Z * variance(values.numpy(), sources.numpy()) ** 0.5
            return cls(mean, max(mean - half, values.min().item()), min(mean + half, values.max().item()), count)
        generator = torch.Generator().manual_seed(0)
        drawn = [values[torch.randint(count, (count,), generator=generator)].mean() for _ in range(DRAWS)]
        low, high = torch.stack(drawn).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return cls(values.mean().item(), low, high, count)

    def to_json(self) -> dict[str, float | int]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Crafted:
    """Examples made on a student.

    Attributes:
        clean, adversarial: (N, 3, H, W), on the CPU; what the student is wrong about without attack is not attacked.
        labels: (N,) long. column: what the attack found.
    """

    clean: Tensor
    adversarial: Tensor
    labels: Tensor
    column: Column

    @property
    def sources(self) -> Tensor:
        """(N, k) long, as `Outcome.sources`."""
        return self.column.outcome.sources


def craft(bench: Bench, protocol: Protocol) -> Crafted:
    """The images that decided the samples of a protocol.

    Raises:
        UserError: from the data, the model or the attack.
    """
    clean: dict[int, Tensor] = {}
    adversarial: dict[int, Tensor] = {}

    def keep(_: str, batch: Any, images: Tensor, right: Tensor) -> None:
        for sample, before, after in zip(batch.samples.tolist(), batch.images.cpu(), images.cpu(), strict=True):
            clean[sample], adversarial[sample] = before, after

    (column,) = bench.columns([protocol], keep)
    indices = column.outcome.indices.tolist()
    return Crafted(
        torch.stack([clean[i] for i in indices]),
        torch.stack([adversarial[i] for i in indices]),
        column.outcome.labels.cpu(),
        column,
    )


def teachers_of(
    target: Target, participant: Participant, registry: Registry, more: Mapping[str, Target]
) -> dict[str, Participant]:
    """Name -> teacher, with the student's classes and on its device: those of the checkpoint's recipe, as they were
    when its run ended, then `more`, under their full names where a role is called alike.

    Raises:
        UsageError: a teacher knows other classes only.
        DataError, PluginError, RecipeError: from its parts.
    """
    models: dict[str, VisionLanguageModel] = {}
    if target.opened:
        models = {role: open_teacher(target.opened, role, registry) for role in target.roles()}
    for name, other in more.items():
        models[other.name if name in models else name] = other.model
    device = participant.model.device
    return {name: Participant(model.to(device), participant.classes) for name, model in models.items()}


def log_probs(participant: Participant, images: Tensor, batch_size: int) -> Tensor:
    """(N, C) float64 on the CPU: what a model says of images, as it is deployed."""
    with participant.deployed(), torch.no_grad():
        parts = [participant.logits(some.to(participant.model.device)) for some in images.split(batch_size)]
        return torch.cat([part.double().log_softmax(1).cpu() for part in parts])


@dataclass(frozen=True)
class Said:
    """What a model says of N images and of the examples made of them, as log-probabilities (N, C)."""

    clean: Tensor
    adversarial: Tensor

    @classmethod
    def by(cls, participant: Participant, crafted: Crafted, batch_size: int) -> Said:
        """Ask a model."""
        return cls(*(log_probs(participant, x, batch_size) for x in (crafted.clean, crafted.adversarial)))


@dataclass(frozen=True)
class View:
    """A teacher's view of one kind of images: clean or adversarial.

    Attributes:
        right: the teacher's accuracy. agree: it says the class that the student says.
        divergence: KL(teacher || student) in nats.
    """

    right: Count
    agree: Count
    divergence: Mean

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"accuracy": plain(self.right), "agreement": plain(self.agree), "kl": self.divergence.to_json()}


@dataclass(frozen=True)
class Teaching:
    """A teacher on its student's examples, S and T being what the two say, y the label, x' the example.

    Attributes:
        clean, adversarial: its views.
        wrong_too, apart: of the student's errors on x', those where the teacher is wrong, and where it is right.
        fooled: of the examples whose clean image both are right about, and which fool the student, those that fool the
            teacher too. The share that decides in SAAD (arXiv 2512.10275) whether robustness passes on; that both must
            be right before is inferred.
        student_wrong, teacher_wrong, disagree: the terms of 1[S(x') != y] <= 1[T(x') != y] + 1[S(x') != T(x')].
        slack: samples whose right side exceeds their left. excess: by how much, in the mean over all samples.
    """

    clean: View
    adversarial: View
    wrong_too: Count
    apart: Count
    fooled: Count
    student_wrong: Count
    teacher_wrong: Count
    disagree: Count
    slack: Count
    excess: Mean

    @property
    def advice(self) -> str:
        """What that says about more distillation, in words."""
        errors = self.student_wrong.hits
        if not errors:
            return "the student is right about all examples: a stronger attack would say more"
        low, high = self.apart.wilson()
        few = " (too few errors to be sure)" if low < 0.5 < high else ""
        if self.apart.share > 0.5:
            return (
                f"the teacher is right about {self.apart.hits} of the student's {errors} errors: "
                f"following it more closely can help{few}"
            )
        return (
            f"the teacher is wrong too about {self.wrong_too.hits} of the student's {errors} errors: "
            f"following it more closely cannot mend these, a teacher that withstands such examples can{few}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "clean": self.clean.to_json(),
            "adversarial": self.adversarial.to_json(),
            "student's errors": {"teacher wrong too": plain(self.wrong_too), "teacher right": plain(self.apart)},
            "fooled too": plain(self.fooled),
            "bound": {
                "student wrong": plain(self.student_wrong),
                "teacher wrong": plain(self.teacher_wrong),
                "disagree": plain(self.disagree),
                "slack": plain(self.slack),
                "excess": self.excess.to_json(),
            },
            "advice": self.advice,
        }


def compare(student: Said, teacher: Said, labels: Tensor, sources: Tensor | None = None) -> Teaching:
    """What a teacher says beside what its student says.

    Args:
        labels: (N,) long. sources: (N, k) long, as `Outcome.sources`; None: samples share none.
    """

    def share(found: Tensor, among: slice | Tensor = slice(None)) -> Count:
        return Count.of(found[among], None if sources is None else sources[among])

    def view(s: Tensor, t: Tensor) -> View:
        divergence = Mean.of(kl(t, s), sources)
        return View(share(t.argmax(1) == labels), share(s.argmax(1) == t.argmax(1)), divergence)

    s, t = student.adversarial.argmax(1), teacher.adversarial.argmax(1)
    wrong, doomed, disagree = s != labels, t != labels, s != t
    both = (student.clean.argmax(1) == labels) & (teacher.clean.argmax(1) == labels)
    excess = doomed.long() + disagree.long() - wrong.long()
    return Teaching(
        clean=view(student.clean, teacher.clean),
        adversarial=view(student.adversarial, teacher.adversarial),
        wrong_too=share(doomed, among=wrong),
        apart=share(~doomed, among=wrong),
        fooled=share(doomed, among=both & wrong),
        student_wrong=share(wrong),
        teacher_wrong=share(doomed),
        disagree=share(disagree),
        slack=share(excess > 0),
        excess=Mean.of(excess, sources),
    )


def plain(count: Count) -> dict[str, Any]:
    """A count with its share and 95 % interval; None for both where there is nothing to count."""
    known = {"share": count.share, **count.interval()} if count.total else {"share": None, "wilson95": None}
    return {"hits": count.hits, "total": count.total, **known}
