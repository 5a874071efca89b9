"""One block of a tower as functions, so that prompts, packing and adapters are arguments.

open_clip's common attention block is computed here; blocks of other makes are called as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import ResidualAttentionBlock
from timm.models.eva import EvaAttention
from torch import Tensor, nn

Adapters = Mapping[str, Callable[[Tensor], Tensor]]
"""What is added to a linear map's output, by the map's path in its block: attn.in_proj, mlp.c_fc, attn.qkv, ..."""

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
    q, k, v = linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias, adapters.get("attn.in_proj")).chunk(
        3, dim=-1
    )
    return q, k, v


def finish(block: nn.Module, x: Tensor, mixed: Tensor, adapters: Adapters = NONE) -> Tensor:
    """The block after its attention.

    Args:
        x: (..., d) what entered the block.
        mixed: (..., d) what the attention heads gave, side by side.
    """
    out, mlp = block.attn.out_proj, block.mlp
    x = x + block.ls_1(linear(mixed, out.weight, out.bias, adapters.get("attn.out_proj")))
    hidden = linear(block.ln_2(x), mlp.c_fc.weight, mlp.c_fc.bias, adapters.get("mlp.c_fc"))
    return x + block.ls_2(linear(mlp.gelu(hidden), mlp.c_proj.weight, mlp.c_proj.bias, adapters.get("mlp.c_proj")))


def run(
    block: nn.Module,
    x: Tensor,
    keep: int | None = None,
    adapters: Adapters = NONE,
    attn_mask: Tensor | None = None,
    **extra: Any,
) -> Tensor:
    """A whole block: (B, L, d) -> (B, keep, d); of the common kind only the first `keep` tokens are computed.

    Args:
        attn_mask: (L, L) or (B * heads, L, L), added to the attention's scores; None: every token sees all.
        extra: further arguments of a block of another make.
    """
    if not is_plain(block):
        if attn_mask is not None:
            extra["attn_mask"] = attn_mask
        with added(block, adapters):
            return block(x, **extra)[:, :keep]
    heads = block.attn.num_heads
    q, k, v = (split_heads(part, heads) for part in queries_keys_values(block, x, adapters))
    if attn_mask is not None:
        attn_mask = attn_mask.to(q.dtype)
        attn_mask = (attn_mask.unflatten(0, (-1, heads)) if attn_mask.ndim == 3 else attn_mask)[..., :keep, :]
    mixed = F.scaled_dot_product_attention(q[:, :, :keep], k, v, attn_mask=attn_mask)
    return finish(block, x[:, :keep], join_heads(mixed), adapters)


# Linear maps that adapters go with

TARGETS = {
    "in_proj": {"in_proj", "qkv", "q_proj", "k_proj", "v_proj"},
    "out_proj": {"out_proj", "proj"},
    "c_fc": {"c_fc", "fc1", "fc1_g", "fc1_x", "w0", "w1"},
    "c_proj": {"c_proj", "fc2", "w2"},
}
"""open_clip's names of a block's linear maps -> what they are called in towers of any make: queries, keys and values,
fused or not; the attention's output; what enters the MLP, gates too; what leaves it."""


def linear_maps(block: nn.Module, targets: Sequence[str]) -> dict[str, str]:
    """The linear maps of a block that adapters can go with: path in the block -> name of its weight in the block.

    Left out are maps whose weights the block reads itself, without calling the module: no hook would see them.
    """
    wanted = {name for target in targets for name in TARGETS[target]}
    if is_plain(block):
        weights = {"attn.in_proj": "attn.in_proj_weight"}
        weights |= {path: f"{path}.weight" for path in ("attn.out_proj", "mlp.c_fc", "mlp.c_proj")}
        return {path: weight for path, weight in weights.items() if path.rpartition(".")[2] in wanted}
    found = {}
    for path, module in block.named_modules():
        parent, _, name = path.rpartition(".")
        # What lies deeper in an attention makes position biases, not tokens.
        of_positions = "attn" in parent.split(".")[:-1]
        fits = name in wanted and isinstance(module, nn.Linear) and not of_positions
        if fits and _calls(block.get_submodule(parent), name):
            found[path] = f"{path}.weight"
    return found


def _calls(module: nn.Module, name: str) -> bool:
    """Whether a module calls its linear map `name`, rather than read its weight."""
    if isinstance(module, EvaAttention) and name == "qkv":
        return module.q_bias is None
    return not isinstance(module, AttentionPool2d)


@contextlib.contextmanager
def added(block: nn.Module, adapters: Adapters) -> Iterator[None]:
    """For a while, the block's linear maps give what they give plus what their adapters add."""

    def plus(adapter: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda module, inputs, output: output + adapter(inputs[0])

    handles = [block.get_submodule(path).register_forward_hook(plus(adapter)) for path, adapter in adapters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
