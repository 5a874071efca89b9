"""One attention block of open_clip as functions, so that prompts, packing and adapters are arguments, not hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

Adapters = Mapping[str, Callable[[Tensor], Tensor]]
"""What is added to a linear map's output, by the map's name: in_proj, out_proj, c_fc, c_proj."""

NONE: Adapters = {}


def is_plain(block: nn.Module) -> bool:
    """Whether `block` is the common kind that these functions compute; others are called as they are."""
    return type(block) is ResidualAttentionBlock and block.attn.in_proj_weight is not None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, added: Callable[[Tensor], Tensor] | None) -> Tensor:
    """A linear map, plus what an adapter adds to it."""
    y = F.linear(x, weight, bias)
    return y if added is None else y + added(x)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., L, d) -> (..., heads, L, d / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def join_heads(x: Tensor) -> Tensor:
    """(..., heads, L, d / heads) -> (..., L, d)."""
    return x.transpose(-3, -2).flatten(-2)


def queries_keys_values(block: nn.Module, x: Tensor, adapters: Adapters = NONE) -> tuple[Tensor, Tensor, Tensor]:
    """What enters a block's attention: three of x's shape (..., d)."""
    attn = block.attn
    q, k, v = linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias, adapters.get("in_proj")).chunk(3, dim=-1)
    return q, k, v


def finish(block: nn.Module, x: Tensor, mixed: Tensor, adapters: Adapters = NONE) -> Tensor:
    """The block after its attention.

    Args:
        x: (..., d) what entered the block.
        mixed: (..., d) what the attention heads gave, side by side.
    """
    out, mlp = block.attn.out_proj, block.mlp
    x = x + block.ls_1(linear(mixed, out.weight, out.bias, adapters.get("out_proj")))
    hidden = linear(block.ln_2(x), mlp.c_fc.weight, mlp.c_fc.bias, adapters.get("c_fc"))
    return x + block.ls_2(linear(mlp.gelu(hidden), mlp.c_proj.weight, mlp.c_proj.bias, adapters.get("c_proj")))


def run(block: nn.Module, x: Tensor, keep: int | None = None, adapters: Adapters = NONE) -> Tensor:
    """A whole block with full attention: (B, L, d) -> (B, keep, d); only the first `keep` tokens are computed."""
    if not is_plain(block):
        return block(x)[:, :keep]
    q, k, v = (split_heads(part, block.attn.num_heads) for part in queries_keys_values(block, x, adapters))
    mixed = F.scaled_dot_product_attention(q[:, :, :keep], k, v)
    return finish(block, x[:, :keep], join_heads(mixed), adapters)
