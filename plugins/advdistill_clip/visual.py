"""The visual tower as a function of its pixels, prompts and adapters."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from advdistill_clip.blocks import NONE, Adapters, run


def is_native(visual: nn.Module) -> bool:
    """Whether the tower is open_clip's own transformer with class-token or average pooling: it can take prompts."""
    return isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type in ("tok", "avg")


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A stretch that autocast leaves alone."""
    return torch.autocast(device.type, enabled=False) if device.type != "meta" else nullcontext()


def encode_pixels(
    visual: nn.Module, pixels: Tensor, prompts: Tensor | None = None, adapters: Sequence[Adapters] = ()
) -> Tensor:
    """Image features.

    Args:
        visual: a tower; prompts and adapters need one that `is_native`.
        pixels: (B, 3, H, W), normalised, of the tower's own size. They and the patch embedding keep their precision
            under autocast: in bfloat16 small pixel steps would vanish. Towers that are not native keep it throughout.
        prompts: (depth, n, width). The first n stand after the patches, without position, before `ln_pre`; those of
            deeper blocks overwrite them there. Pooling does not see them.
        adapters: one for each block, or none.

    Returns:
        (B, D), not normalised.
    """
    if not is_native(visual):
        with full_precision(pixels.device):
            out = visual(pixels)
        return out[0] if isinstance(out, tuple) else out
    with full_precision(pixels.device):
        x = visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
        x = visual.patch_dropout(x)
    length, depth = x.shape[1], 0 if prompts is None else len(prompts)

    def prompted(x: Tensor, i: int) -> Tensor:
        return x if i >= depth else torch.cat([x[:, :length], prompts[i].expand(len(x), -1, -1).to(x.dtype)], dim=1)

    x = visual.ln_pre(prompted(x, 0))
    pooled = 1 if visual.pool_type == "tok" else length
    blocks = visual.transformer.resblocks
    for i, block in enumerate(blocks):
        x = prompted(x, i) if i else x
        # Tokens that the next block overwrites, or that pooling drops, are not computed.
        keep = pooled if i + 1 == len(blocks) else length if i + 1 < depth else None
        x = run(block, x, keep, adapters[i] if adapters else NONE)
    x = visual.ln_post(_pool(visual, x)) if visual.final_ln_after_pool else _pool(visual, visual.ln_post(x))
    return x if visual.proj is None else x @ visual.proj


def _pool(visual: nn.Module, x: Tensor) -> Tensor:
    return x[:, 0] if visual.pool_type == "tok" else x[:, 1:].mean(1)
