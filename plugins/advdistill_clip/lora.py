"""Low-rank updates of linear maps (Hu et al. 2021), for open_clip's fused attention projections too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowRank(nn.Module):
    """x -> (alpha / rank) B A dropout(x); B starts at zero, so that it starts by changing nothing.

    Args:
        weight: (out, in) the map it goes with.
        generator: draws A uniformly from +-1/sqrt(in), as the reference does.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        out, width = weight.shape
        bound = 1 / math.sqrt(width)
        self.a = nn.Parameter(torch.empty(rank, width).uniform_(-bound, bound, generator=generator).to(weight.device))
        self.b = nn.Parameter(torch.zeros(out, rank, device=weight.device))
        self.dropout = dropout
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(F.dropout(x, self.dropout, self.training), self.a), self.b) * self.scale

    def merged(self) -> Tensor:
        """(out, in) what it adds to the weight."""
        return self.b @ self.a * self.scale


_WEIGHTS = {
    "in_proj": "attn.in_proj_weight",
    "out_proj": "attn.out_proj.weight",
    "c_fc": "mlp.c_fc.weight",
    "c_proj": "mlp.c_proj.weight",
}


def weight_name(target: str, block: int) -> str:
    """The state-dict name, within the visual tower, of the weight that a target stands for."""
    return f"transformer.resblocks.{block}.{_WEIGHTS[target]}"


def adapters_for(
    visual: nn.Module, targets: Sequence[str], last: int, rank: int, alpha: float, dropout: float, seed: int
) -> nn.ModuleList:
    """One `{target: LowRank}` for each block of `visual`; empty ones before the `last` blocks (0: all have them)."""
    generator = torch.Generator().manual_seed(seed)
    weights = dict(visual.named_parameters())
    count = len(visual.transformer.resblocks)
    return nn.ModuleList(
        nn.ModuleDict(
            {t: LowRank(weights[weight_name(t, i)], rank, alpha, dropout, generator) for t in targets}
            if i >= count - (last or count)
            else {}
        )
        for i in range(count)
    )
