"""Which parts of an image a tower's verdict rests on: attention weighed by its gradient, or Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from advdistill import UsageError
from advdistill_clip.visual import is_convolutional, is_native, is_timm_row, kind_of

Look = Callable[[Tensor], Tensor]


def relevance(visual: nn.Module, images: Tensor, features: Look, logits: Look, chosen: Tensor) -> Tensor:
    """Non-negative maps on the grid of a tower's patches, or of its last feature map.

    Rows of tokens: Chefer, Gur & Wolf 2021 (arXiv 2103.15679, section 3.2, self-attention). With A a block's attention
    and dA its gradient, R <- R + mean over heads of relu(dA * A) times R, block by block, from R = 1; read off in the
    row of the class token, at the patches. Towers that pool otherwise (inferred): attention pooling of timm's adds
    its own weighed attention; of all others it is the mean over the patches' rows, less the 1 that each begins with.
    Prompts and registers pass relevance on, and are left out of the map.

    Convolutional towers: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2) on what the last stage
    gives; of small images, of which that is a single cell, on the last one that gives more (inferred).

    Args:
        visual: the tower. images: (B, 3, H, W) in [0, 1].
        features: (B, 3, H, W) -> (B, D), by a pass through the tower and no other.
        logits: (B, D) -> (B, C). chosen: (B,) long, the classes whose logits are explained.

    Returns:
        (B, h, w).

    Raises:
        UsageError: the tower is neither, or it does not tell its attention.
    """

    def score(found: Tensor) -> Tensor:
        return logits(found).gather(1, chosen[:, None]).sum()

    with torch.enable_grad():
        pixels = images.detach().clone().requires_grad_()
        if is_native(visual) or is_timm_row(visual):
            return _rollout(visual, pixels, features, score)
        if is_convolutional(visual):
            names = ("layer1", "layer2", "layer3", "layer4")
            resnet = isinstance(visual, ModifiedResNet)
            with _heard([getattr(visual, name) for name in names] if resnet else visual.trunk.stages) as heard:
                total = score(features(pixels))
            last = next((given for given in reversed(heard) if given[0, 0].numel() > 1), heard[-1])
            (slope,) = torch.autograd.grad(total, last)
            return (slope.mean((2, 3), keepdim=True) * last).sum(1).clamp_min(0).detach()
    raise _unknown(visual)


def _rollout(visual: nn.Module, pixels: Tensor, features: Look, score: Look) -> Tensor:
    if is_native(visual):
        prefix, grid, blocks = 1, visual.grid_size, len(visual.transformer.resblocks)
        class_token = visual.pool_type == "tok" and visual.attn_pool is None
    else:
        trunk = visual.trunk
        prefix, grid, blocks = trunk.num_prefix_tokens, trunk.patch_embed.grid_size, len(trunk.blocks)
        class_token = trunk.global_pool == "token"
    with _Attention() as attention:
        found = features(pixels)
    weights = attention.weights
    if len(weights) not in (blocks, blocks + 1):
        raise _unknown(visual)
    slopes = torch.autograd.grad(score(found), weights)
    patches = grid[0] * grid[1]
    length = prefix + patches
    with torch.no_grad():
        tokens = weights[0].shape[-1]
        passed = torch.eye(tokens, device=pixels.device)[None, :, prefix:length]
        for weight, slope in zip(weights[:blocks], slopes[:blocks], strict=True):
            mixed = _mixed(weight, slope)
            # Prompts that a block overwrites come from no image.
            passed = F.pad(passed, (0, 0, 0, mixed.shape[2] - passed.shape[1]))
            passed = passed[:, : mixed.shape[1]] + mixed @ passed
        if len(weights) > blocks:
            pooling = _mixed(weights[-1], slopes[-1])
            row = (pooling @ passed[:, :length][:, -pooling.shape[2] :]).mean(1)
        else:
            row = passed[:, 0] if class_token else (passed[:, prefix:length].mean(1) - 1 / patches).clamp_min(0)
    return row.expand(len(pixels), -1).unflatten(1, tuple(grid))


def _mixed(weight: Tensor, slope: Tensor) -> Tensor:
    """(B, heads, q, k) attention and its gradient -> (B, q, k)."""
    return (weight * slope).clamp_min(0).mean(1)


class _Attention(TorchFunctionMode):
    """While it is entered, attention is computed in two products, so that its weights can be had.

    Attributes:
        weights: (B, heads, queries, keys) of each in turn, with their graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self._attend(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        scale: float | None = None,
        **_: Any,  # is_causal, enable_gqa: no visual tower sets them
    ) -> Tensor:
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            hidden = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if hidden else scores + attn_mask
        self.weights.append(scores.softmax(-1))
        return F.dropout(self.weights[-1], dropout_p) @ value


@contextmanager
def _heard(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """What modules give, in the order of their calls, while this is entered."""
    given: list[Tensor] = []
    handles = [module.register_forward_hook(lambda _, inputs, output: given.append(output)) for module in modules]
    try:
        yield given
    finally:
        for handle in handles:
            handle.remove()


def _unknown(visual: nn.Module) -> UsageError:
    return UsageError(
        f"a visual tower of the kind {kind_of(visual)} has no relevance maps: "
        "neither its attention nor a last feature map can be had",
        "leave out the relevance part",
    )
