"""Per-sample losses between outputs. Every one returns (B,): the mean over the batch is the engine's business."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from advdistill.engine.step import Output

    Logits: TypeAlias = Tensor | Output


def _log_probs(of: Logits, temperature: float | Tensor = 1.0) -> Tensor:
    logits = of if isinstance(of, Tensor) else of.logits
    return F.log_softmax(logits / temperature, dim=-1)


def cross_entropy(output: Logits, labels: Tensor) -> Tensor:
    """(B,) -log p(label), from (B, C) logits or an Output, and (B,) long labels."""
    return -_log_probs(output).gather(1, labels.unsqueeze(1)).squeeze(1)


def kl(p: Logits, q: Logits, temperature: float | Tensor = 1.0) -> Tensor:
    """(B,) KL(p || q) = sum_c p_c (log p_c - log q_c), summed over classes ("batchmean" once averaged over samples).

    Args:
        p, q: (B, C) logits or Outputs. Note the order: torch's `kl_div` takes them the other way round.
        temperature: divides both logits.
    """
    log_p, log_q = _log_probs(p, temperature), _log_probs(q, temperature)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
