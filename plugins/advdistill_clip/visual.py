"""The visual tower as a function of its pixels, prompts and adapters.

Nothing is written to a tower, since students and teachers share it. Whatever its make, prompts stand after all other
tokens, have no position, are overwritten by fresh ones in the deeper blocks, and are dropped before pooling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.fastvit import FastVit
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import Tensor, nn

from advdistill import UsageError
from advdistill_clip.blocks import NONE, Adapters, added, run


def is_native(visual: nn.Module) -> bool:
    """Whether the tower is open_clip's own transformer, pooled in one of the usual ways."""
    return (
        isinstance(visual, VisionTransformer)
        and visual.pool_type in ("tok", "avg")
        and (visual.attn_pool is None or visual.attn_pool_contrastive is None)
    )


def is_timm_row(visual: nn.Module) -> bool:
    """Whether the tower is timm's and passes one row of tokens through its blocks (ViT, SigLIP, PE, EVA, ViTamin)."""
    return isinstance(visual, TimmModel) and type(visual.trunk) in (TimmTransformer, Eva)


def kind_of(visual: nn.Module) -> str:
    """The tower's make, for messages."""
    return type(visual.trunk if isinstance(visual, TimmModel) else visual).__name__


def prompts_fit(visual: nn.Module) -> tuple[int, int]:
    """Width of a visual prompt, and how many blocks it can be put in front of.

    Raises:
        UsageError: the tower has no row of tokens that a prompt could join.
    """
    if is_native(visual):
        return visual.conv1.out_channels, len(visual.transformer.resblocks)
    if is_timm_row(visual):
        return visual.trunk.embed_dim, len(visual.trunk.blocks)
    raise UsageError(
        f"a visual tower of the kind {kind_of(visual)} has no plain row of tokens that prompts could join",
        "learn pixel prompts, text prompts (visual.tokens: 0), or the tower itself (clip-tune)",
    )


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A stretch that neither autocast nor TF32 rounds. TF32 may still round what goes backward through it, and is left
    as it is in a compiled graph, which its switches do not reach."""
    if device.type == "meta":
        return nullcontext()
    plain = torch.autocast(device.type, enabled=False)
    if torch.compiler.is_compiling() or not (_CONVOLUTIONS.allow_tf32 or _PRODUCTS.allow_tf32):
        return plain
    return _without_tf32(plain)


_CONVOLUTIONS, _PRODUCTS = torch.backends.cudnn, torch.backends.cuda.matmul


@contextmanager
def _without_tf32(inner: AbstractContextManager[object]) -> Iterator[None]:
    before = _CONVOLUTIONS.allow_tf32, _PRODUCTS.allow_tf32
    _CONVOLUTIONS.allow_tf32 = _PRODUCTS.allow_tf32 = False
    try:
        with inner:
            yield
    finally:
        _CONVOLUTIONS.allow_tf32, _PRODUCTS.allow_tf32 = before


def arranged(visual: nn.Module) -> nn.Module:
    """The tower, with the weights of a convolutional one stored channels last, as convolutions are fastest. Values,
    names and shapes stay as they are."""
    return visual.to(memory_format=torch.channels_last) if is_convolutional(visual) else visual


def is_convolutional(visual: nn.Module) -> bool:
    """Whether the tower is ModifiedResNet, or timm's ConvNeXt or FastViT."""
    return isinstance(visual, ModifiedResNet) or (
        isinstance(visual, TimmModel) and isinstance(visual.trunk, (ConvNeXt, FastVit))
    )


def encode_pixels(
    visual: nn.Module,
    pixels: Tensor,
    prompts: Tensor | None = None,
    adapters: Mapping[str, Adapters] | None = None,
) -> Tensor:
    """Image features.

    Args:
        visual: a tower; prompts need one that `prompts_fit`.
        pixels: (B, 3, H, W), normalised, of the tower's own size. They and the patch embedding (or stem) keep their
            precision under autocast: in bfloat16 small pixel steps would vanish. Towers whose embedding cannot be told
            from the rest keep it throughout.
        prompts: (depth, n, width). The first n stand after the patches, without position, before the first norm;
            those of deeper blocks overwrite them there. Pooling does not see them; that attentional pooling does not
            either is inferred.
        adapters: what is added to linear maps, by the path of the block (or of what holds them) in the tower.

    Returns:
        (B, D), not normalised.
    """
    adapters = adapters or {}
    if is_native(visual):
        return _native(visual, pixels, prompts, adapters)
    if is_timm_row(visual):
        return _timm_row(visual, pixels, prompts, adapters)
    if prompts is not None:
        prompts_fit(visual)
    with ExitStack() as stack:
        for name, of_block in adapters.items():
            stack.enter_context(added(visual.get_submodule(name), of_block))
        return _other(visual, pixels)


def _native(visual: nn.Module, pixels: Tensor, prompts: Tensor | None, adapters: Mapping[str, Adapters]) -> Tensor:
    with full_precision(pixels.device):
        x = visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
        x = visual.patch_dropout(x)
    blocks = [
        _block(block, adapters.get(f"transformer.resblocks.{i}", NONE))
        for i, block in enumerate(visual.transformer.resblocks)
    ]
    class_token_only = visual.pool_type == "tok" and visual.attn_pool is None
    x = _through(blocks, x, visual.ln_pre, prompts, 1 if class_token_only else x.shape[1])
    if visual.attn_pool is not None:
        x = visual.ln_post(visual.attn_pool(x))
    elif not visual.final_ln_after_pool:
        x = visual.ln_post(x)
    x = x[:, 0] if visual.pool_type == "tok" else x[:, 1:].mean(1)
    if visual.attn_pool is None and visual.final_ln_after_pool:
        x = visual.ln_post(x)
    return x if visual.proj is None else x @ visual.proj


def _timm_row(visual: nn.Module, pixels: Tensor, prompts: Tensor | None, adapters: Mapping[str, Adapters]) -> Tensor:
    trunk, rotary = visual.trunk, isinstance(visual.trunk, Eva)
    with full_precision(pixels.device):
        x = trunk._pos_embed(trunk.patch_embed(pixels))
        x, rope = x if rotary else (trunk.patch_drop(x), None)
    if rope is not None and prompts is not None:
        rope = _not_rotated(rope, prompts.shape[1])
    each_its_own = getattr(trunk, "rope_mixed", False) and rope is not None
    blocks = []
    for i, block in enumerate(trunk.blocks):
        extra = {"rope": rope[i] if each_its_own else rope} if rotary else {}
        blocks.append(_block(block, adapters.get(f"trunk.blocks.{i}", NONE), **extra))
    x = _through(blocks, x, trunk.norm_pre, prompts, x.shape[1])
    return visual.head(trunk.forward_head(trunk.norm(x)))


def _not_rotated(rope: Tensor, count: int) -> Tensor:
    """Rotary embeddings (..., N, 2 d), sines then cosines, with `count` positions more, of angle zero."""
    sines = rope.new_zeros(*rope.shape[:-2], count, rope.shape[-1] // 2)
    return torch.cat([rope, torch.cat([sines, sines + 1], dim=-1)], dim=-2)


def _block(block: nn.Module, adapters: Adapters, **extra: Tensor | None) -> Callable[[Tensor, int | None], Tensor]:
    return lambda x, keep: run(block, x, keep, adapters, **extra)


def _through(
    blocks: Sequence[Callable[[Tensor, int | None], Tensor]],
    x: Tensor,
    first_norm: nn.Module,
    prompts: Tensor | None,
    pooled: int,
) -> Tensor:
    """Tokens (B, L, d) through all blocks, with prompts after them: (B, pooled, d), the first that pooling needs."""
    length, depth = x.shape[1], 0 if prompts is None else len(prompts)

    def prompted(x: Tensor, i: int) -> Tensor:
        return x if i >= depth else torch.cat([x[:, :length], prompts[i].expand(len(x), -1, -1).to(x.dtype)], dim=1)

    x = first_norm(prompted(x, 0))
    for i, block in enumerate(blocks):
        x = prompted(x, i) if i else x
        # Tokens that the next block overwrites, or that pooling drops, are not computed.
        keep = pooled if i + 1 == len(blocks) else length if i + 1 < depth else None
        x = block(x, keep)
    return x


def _other(visual: nn.Module, pixels: Tensor) -> Tensor:
    if is_convolutional(visual):
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    if isinstance(visual, ModifiedResNet):
        with full_precision(pixels.device):
            x = visual.stem(pixels)
        return visual.attnpool(visual.layer4(visual.layer3(visual.layer2(visual.layer1(x)))))
    if isinstance(visual, TimmModel) and type(visual.trunk) is ConvNeXt:
        trunk = visual.trunk
        with full_precision(pixels.device):
            x = trunk.stem(pixels)
        return visual.head(trunk.forward_head(trunk.norm_pre(trunk.stages(x))))
    with full_precision(pixels.device):
        x = visual(pixels)
    return x[0] if isinstance(x, tuple) else x
