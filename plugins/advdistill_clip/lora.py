"""CLIP with low-rank updates of linear maps (Hu et al. 2021), open_clip's fused attention projections too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdistill import UsageError
from advdistill_clip import configs
from advdistill_clip.blocks import NONE, Adapters, is_plain
from advdistill_clip.loading import Base
from advdistill_clip.models import Clip
from advdistill_clip.visual import encode_pixels, is_native


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


class ClipLora(Clip):
    """CLIP with low-rank adapters in the blocks of its visual tower.

    Raises:
        UsageError: the tower is not open_clip's own vision transformer of the common kind.
    """

    config: configs.Lora

    def __init__(self, base: Base, config: configs.Lora) -> None:
        super().__init__(base, config)
        visual = self.model.visual
        if not is_native(visual) or not all(is_plain(block) for block in visual.transformer.resblocks):
            raise UsageError(
                f"the visual tower of {base.architecture.name} cannot take adapters",
                "use clip-tune, or a ViT of open_clip's own",
            )
        if config.blocks > len(visual.transformer.resblocks):
            raise UsageError(f"blocks is {config.blocks}, but the tower has {len(visual.transformer.resblocks)}")
        self.adapters = adapters_for(
            visual, config.targets, config.blocks, config.rank, config.alpha, config.dropout, config.init_seed
        )

    def _adapters(self) -> list[Adapters]:
        return [dict(block.items()) if len(block) else NONE for block in self.adapters]

    def look(self, pixels: Tensor) -> Tensor:
        return encode_pixels(self.visual, pixels, adapters=self._adapters())

    def learned(self) -> dict[str, Tensor]:
        return {f"visual.lora.{name}": parameter for name, parameter in self.adapters.named_parameters()}

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """The base's state dict with the updates added in: weights that any open_clip model of its kind can load."""
        state = dict(self.model.state_dict())
        for i, block in enumerate(self._adapters()):
            for target, adapter in block.items():
                name = f"visual.{weight_name(target, i)}"
                state[name] = state[name] + adapter.merged()
        return state
