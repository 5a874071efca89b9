"""How much each teacher has to say: one class a weighting. `WEIGHTINGS` gives them the names that recipes use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advdistill import Clock, Output


class Weighting(nn.Module, ABC):
    """Shares of the teachers. State that adapts lies in buffers, is made in `prepare` and moves in `updated`.

    Args:
        config: the strategy's settings.

    Attributes:
        mixes: a sample's shares depend on the others of its batch.
    """

    mixes: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def prepare(self, roles: Sequence[str], device: torch.device) -> None:
        """Learn who teaches, before the run."""

    @abstractmethod
    def forward(self, looks: Mapping[str, Output], labels: Tensor) -> dict[str, Tensor]:
        """Each role's share, (B,) or one number.

        Args:
            looks: role -> what that teacher says of the images that it sees.
            labels: (B,) long.
        """

    def temperature(self, role: str) -> float | Tensor:
        """What that teacher's logits are divided by, beside the strategy's temperature for both sides."""
        return 1.0

    def report(self, looks: Mapping[str, Output]) -> dict[str, Tensor]:
        """Numbers to show as curves beside the shares; their means come back in `updated`."""
        return {}

    def updated(self, means: Mapping[str, float], clock: Clock) -> None:
        """Called after each step with the batch's means: a role's loss under its name, and what `report` gave."""


class Fixed(Weighting):
    """1 for everybody."""

    def forward(self, looks: Mapping[str, Output], labels: Tensor) -> dict[str, Tensor]:
        return {role: torch.ones_like(labels, dtype=torch.float32) for role in looks}


class Cosine(Weighting):
    """The cosine of the teacher's image and the label's text: the released code of MMT-ARD. It can be negative."""

    def forward(self, looks: Mapping[str, Output], labels: Tensor) -> dict[str, Tensor]:
        shares = {role: look.cosine(labels) for role, look in looks.items()}
        least = self.config.clamp_min
        return shares if least is None else {role: share.clamp_min(least) for role, share in shares.items()}


class Probability(Weighting):
    """The teacher's probability of the label."""

    def forward(self, looks: Mapping[str, Output], labels: Tensor) -> dict[str, Tensor]:
        return self.split({role: look.confidence(labels) for role, look in looks.items()})

    def split(self, confidences: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(B,) shares from (B,) confidences in [0, 1]: of teachers, or of the losses of one teacher."""
        return dict(confidences)


class Sigmoid(Probability):
    """The sigmoid of the confidence gap: of two, share_a = sigmoid(slope (c_a - c_b) / tau), share_b = 1 - share_a; of
    more, its generalisation, the softmax. With a midpoint m each by itself: sigmoid(slope (c - m) / tau). The sign of
    the slope is turned to favour the hard. (inferred)"""

    def split(self, confidences: Mapping[str, Tensor]) -> dict[str, Tensor]:
        steepness = self.config.slope / self.config.tau * (1 if self.config.favour == "easy" else -1)
        sure = torch.stack(list(confidences.values()))
        if self.config.midpoint is None:
            shares = torch.softmax(steepness * sure, dim=0)
        else:
            shares = torch.sigmoid(steepness * (sure - self.config.midpoint))
        return dict(zip(confidences, shares, strict=True))


class SAAD(Weighting):
    """Sample-wise adaptive adversarial distillation (arXiv 2512.10275): what a teacher is unsure of under attack is
    what the attack on the student reaches in the teacher too, and is taught the more.

        w_i = scale (H_i - min H)                  who sees adversarial images, H the entropy over the portion's samples
        1 - w_i / max w (its mean over those)      who sees clean ones
    """

    mixes = True

    def forward(self, looks: Mapping[str, Output], labels: Tensor) -> dict[str, Tensor]:
        shares = {}
        for role, look in looks.items():
            if self.config.view(role) == "adversarial":
                unsure = entropy(look.logits / self.config.entropy_temperature)
                shares[role] = self.config.entropy_scale * (unsure - unsure.amin())
        reached = torch.stack([share / (share.amax() + 1e-8) for share in shares.values()]).mean(0)
        return {role: shares.get(role, 1 - reached) for role in looks}


class RelativeLoss(Weighting):
    """MTARD (ECCV 2022): whose loss has fallen less since the first batch gets more.

        w_k <- w_k + rate (r_k / sum r - w_k),   r_k = (L_k / L_k of the first batch)^power

    The weights add up to 1 and start equal. They move after a step; in MTARD's code, just before its backward.
    """

    weights: Tensor
    first: Tensor

    def prepare(self, roles: Sequence[str], device: torch.device) -> None:
        self.roles = tuple(roles)
        self.register_buffer("weights", torch.full((len(roles),), 1 / len(roles), device=device))
        # 0 until a loss other than 0 was seen.
        self.register_buffer("first", torch.zeros(len(roles), device=device))

    def forward(self, looks: Mapping[str, Output], labels: Tensor) -> dict[str, Tensor]:
        return {role: self.weights[self.roles.index(role)] for role in looks}

    def updated(self, means: Mapping[str, float], clock: Clock) -> None:
        losses = self.weights.new_tensor([means[role] for role in self.roles]).clamp_min(0)
        self.first.copy_(torch.where(self.first > 0, self.first, losses))
        ratios = torch.where(self.first > 0, losses / self.first, 1.0) ** self.config.loss_power
        if ratios.sum() > 0:
            self.weights.lerp_(ratios / ratios.sum(), self.config.weight_rate * self._pace(clock))

    def _pace(self, clock: Clock) -> float:
        done = (clock.step - 1) / clock.steps  # before the step that `clock` counts already
        return 0.1 ** sum(done >= drop for drop in self.config.drops)


class EntropyTemperature(RelativeLoss):
    """B-MTARD: MTARD's weights, and temperatures that bring the teachers' entropies together.

        tau_k <- clamp(tau_k - rate sign(H_k - mean H of the others), 1, max)

    H is the mean entropy of the softened teacher. With two teachers this is the published rule.
    """

    temperatures: Tensor

    def prepare(self, roles: Sequence[str], device: torch.device) -> None:
        super().prepare(roles, device)
        self.register_buffer("temperatures", torch.ones(len(roles), device=device))

    def temperature(self, role: str) -> Tensor:
        return self.temperatures[self.roles.index(role)]

    def report(self, looks: Mapping[str, Output]) -> dict[str, Tensor]:
        found = {}
        for role, look in looks.items():
            found[f"temperature/{role}"] = self.temperature(role)
            found[f"entropy/{role}"] = entropy(look.logits / self.temperature(role))
        return found

    def updated(self, means: Mapping[str, float], clock: Clock) -> None:
        super().updated(means, clock)
        if len(self.roles) == 1:
            return
        entropies = self.temperatures.new_tensor([means[f"entropy/{role}"] for role in self.roles])
        others = (entropies.sum() - entropies) / (len(self.roles) - 1)
        self.temperatures.sub_(self.config.temperature_rate * self._pace(clock) * torch.sign(entropies - others))
        self.temperatures.clamp_(1, self.config.temperature_max)


def entropy(logits: Tensor) -> Tensor:
    """(B,) in nats, from (B, C) logits."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


WEIGHTINGS: dict[str, type[Weighting]] = {
    "fixed": Fixed,
    "cosine": Cosine,
    "probability": Probability,
    "sigmoid": Sigmoid,
    "relative-loss": RelativeLoss,
    "entropy-temperature": EntropyTemperature,
    "saad": SAAD,
}
