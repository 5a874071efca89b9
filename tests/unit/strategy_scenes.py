"""A step over toy models whose adversary does as it is told: parts for the tests of strategies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advdistill import Attack, Clock, Losses, Noise, Problem, Step, Strategy, Threat
from advdistill.engine.data import Batch
from advdistill.engine.participant import Participant
from advdistill.testing import ToyConfig, ToyDataset, ToyModel
from advdistill.testing.toy import CLASSES


class Given(Attack):
    """The same images every time. The objective is asked once, at them, and again halfway for its gradient.

    Attributes:
        images: (n, 3, H, W) what it was given. climbed: (n,) the objective at what it returned. slope: the objective's
            gradient halfway there.
    """

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        # By the image itself: neither labels nor batch mates change what happens to it.
        places = (problem.images.flatten(1).sum(1) * 1000).long().tolist()
        pattern = torch.sin(torch.arange(problem.images[0].numel(), dtype=torch.float32) * 1.7)
        signs = torch.stack([pattern.roll(place) for place in places]).view_as(problem.images).sign()
        images = threat.project(problem.images + threat.eps * signs, problem.images)
        self.images = problem.images
        with torch.no_grad():
            self.climbed = problem.objective(images, problem.rows)
        self.slope, _ = problem.gradient((problem.images + images) / 2, problem.rows)
        return images


class Scene:
    """Six images, a toy student and toy teachers that disagree a little, all of them unsure, on scales of their own.

    Args:
        roles: who teaches. learns: the student's side that does, `image`, `text` or `both`. size: of the batch.
    """

    def __init__(self, *roles: str, learns: str = "both", size: int = 6) -> None:
        self.everybody: dict[str, Participant] = {}
        for place, role in enumerate(("student", *roles)):
            model = ToyModel(ToyConfig(scale=3.0 + place, learns=learns))
            with torch.no_grad():
                model.gain.mul_(1 + 0.3 * torch.linspace(-1, 1, len(model.gain)).roll(7 * place))
                model.context.add_(0.2 * torch.linspace(-1, 1, len(model.gain)).roll(11 * place))
            self.everybody[role] = Participant(model, CLASSES, learns=role == "student")
        self.samples = torch.arange(size)
        split = ToyDataset(None).split("train")
        self.images = torch.stack([split.load(i) for i in range(size)])
        self.labels = torch.tensor([0, 1, 2, 3, 5, 4])[:size]
        self.attack = Given(None)
        self.threat = Threat("linf", 8 / 255)

    def step(self, clock: Clock | None = None) -> Step:
        """A step over the batch; `clock` is at the start of ten steps where it is not given."""
        teachers = {role: p for role, p in self.everybody.items() if role != "student"}
        batch = Batch(self.images, self.labels, self.samples)
        return Step(batch, clock or Clock(0, 10, 0), student=self.everybody["student"], teachers=teachers,
                    attack=self.attack, threat=self.threat, noise=Noise(0, "test", 0, self.samples))  # fmt: skip

    def losses(self, strategy: Strategy, clock: Clock | None = None) -> Losses:
        """What a strategy says, prepared as a run does it."""
        strategy.prepare({role: participant.model for role, participant in self.everybody.items()})
        return strategy.step(self.step(clock))

    @property
    def adversarial(self) -> Tensor:
        """(B, 3, H, W) what the attack returns if it is let at every image."""
        problem = Problem(self.images, self.labels, None, lambda x, rows: self.logits("student", x), self.threat)
        return Given(None)(problem, self.threat, Noise(0, "test", 0, self.samples))

    def logits(self, role: str, images: Tensor) -> Tensor:
        """(B, C) by the model's contract alone, with graph."""
        participant = self.everybody[role]
        return participant.model.predict(images, participant.prepared)

    def features(self, role: str, images: Tensor) -> Tensor:
        """(B, D), with graph."""
        return self.everybody[role].model.features(images)

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """Of the mean over the batch, "ROLE.PARAMETER" -> what is not 0; the models are left without any."""
        for participant in self.everybody.values():
            participant.model.zero_grad(set_to_none=True)
        loss.mean().backward()
        found = {}
        for role, participant in self.everybody.items():
            participant.settle()
            for name, parameter in participant.model.named_parameters():
                if parameter.grad is not None and parameter.grad.any():
                    found[f"{role}.{name}"] = parameter.grad.clone()
                parameter.grad = None
        return found


def kl(p: Tensor, q: Tensor) -> Tensor:
    """(B,) KL(softmax p || softmax q) by torch's own."""
    return F.kl_div(q.log_softmax(1), p.softmax(1), reduction="none").sum(1)


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) by torch's own."""
    return F.cross_entropy(logits, labels, reduction="none")


def same_gradients(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Of the same parameters, to rounding."""
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], msg=lambda told, name=name: f"{name}: {told}")
