"""CLIP with low-rank updates of linear maps (Hu et al. 2021), open_clip's fused attention projections too."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdistill import UsageError
from advdistill_clip import configs
from advdistill_clip.blocks import NONE, Adapters
from advdistill_clip.loading import Base
from advdistill_clip.models import Clip
from advdistill_clip.towers import adaptable, blocks_of
from advdistill_clip.visual import encode_pixels


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


class ClipLora(Clip):
    """CLIP with low-rank adapters in the blocks of its visual tower, its text tower, or both.

    Raises:
        UsageError: a tower has no linear map of a wanted kind, or fewer blocks; or the rank is more than a map's width.
    """

    config: configs.Lora

    def __init__(self, base: Base, config: configs.Lora) -> None:
        super().__init__(base, config)
        generator = torch.Generator().manual_seed(config.init_seed)
        weights = dict(self.model.named_parameters())
        self.adapters = nn.ModuleDict()
        self._places: dict[str, tuple[str, str, str]] = {}
        for tower in sorted(set(config.towers)):
            for block, path, weight in adaptable(self.model, tower, config.targets, config.blocks):
                name = f"{block}.{weight}"
                if config.rank > min(weights[name].shape):
                    wide = " x ".join(map(str, weights[name].shape))
                    raise UsageError(
                        f"rank is {config.rank}, but {name} of {base.architecture.name} is {wide}", "lower it"
                    )
                # A module's name cannot have dots.
                key = f"{tower}/lora/{block.removeprefix(f'{tower}.')}/{path}".replace(".", "/")
                self._places[key] = (block, path, name)
                self.adapters[key] = LowRank(weights[name], config.rank, config.alpha, config.dropout, generator)

    @property
    def classifier_learns(self) -> bool:  # type: ignore[override]
        return "text" in self.config.towers

    def _of(self, tower: str) -> dict[str, Adapters]:
        """By the path of the block's module in the model."""
        by_block: defaultdict[str, dict[str, Callable[[Tensor], Tensor]]] = defaultdict(dict)
        for key, adapter in self.adapters.items():
            block, path, _ = self._places[key]
            if key.startswith(f"{tower}/"):
                by_block[block][path] = adapter
        return by_block

    def look(self, pixels: Tensor) -> Tensor:
        adapters = {block.removeprefix("visual."): added for block, added in self._of("visual").items()}
        return encode_pixels(self.visual, pixels, adapters=adapters)

    @property
    def text_adapters(self) -> list[Adapters]:
        if not self.classifier_learns:
            return []
        of_block = self._of("text")
        return [of_block.get(part, NONE) for block in blocks_of(self.model, "text") for part in block]

    def learned(self) -> dict[str, Tensor]:
        return {name.replace("/", "."): parameter for name, parameter in self.adapters.named_parameters()}

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """The base's state dict with the updates added in: weights that any open_clip model of its kind can load."""
        state = dict(self.model.state_dict())
        for key, adapter in self.adapters.items():
            name = self._places[key][2]
            state[name] = state[name] + adapter.merged()
        return state
