"""The towers of an open_clip model as lists of blocks: what adapters go with, and what can learn for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import nn

from advdistill import UsageError
from advdistill_clip import configs
from advdistill_clip.blocks import TARGETS, is_plain, linear_maps
from advdistill_clip.text import text_prompts_fit, tower_of
from advdistill_clip.visual import kind_of, prompts_fit

Block = tuple[str, ...]
"""The modules that make up a block, as paths from the model; most often one."""


def blocks_of(model: nn.Module, tower: str) -> list[Block]:
    """The blocks of a tower (visual or text), in order.

    Transformers consist of their blocks. ModifiedResNet: stem, layer1 to layer4, attnpool. Hierarchical towers of
    timm (ConvNeXt, FastViT, Swin): the stem if there is one, and the stages. What makes tokens before a transformer's
    first block, and norms, pools and projections after the last, belong to none.

    Raises:
        UsageError: the text tower is not of open_clip's own making, or timm's tower is none of those.
    """
    if tower == "text":
        if tower_of(model) is None:
            raise UsageError(
                f"the text tower ({type(model.text).__name__}) is not open_clip's own; its blocks are not known",
                "learn the whole tower (clip-tune with tower: text), or take a model with a text tower of open_clip's",
            )
        return _numbered(model, "text.transformer.resblocks" if hasattr(model, "text") else "transformer.resblocks")
    visual = model.visual
    if isinstance(visual, ModifiedResNet):
        stem = tuple(f"visual.{part}{i}" for i in (1, 2, 3) for part in ("conv", "bn"))
        return [stem, *((f"visual.{part}",) for part in ("layer1", "layer2", "layer3", "layer4", "attnpool"))]
    if isinstance(visual, VisionTransformer):
        return _numbered(model, "visual.transformer.resblocks")
    stem = ("visual.trunk.stem",)
    for part in ("blocks", "stages", "layers"):
        if isinstance(getattr(visual.trunk, part, None), (nn.Sequential, nn.ModuleList)):
            return [*([stem] if hasattr(visual.trunk, "stem") else []), *_numbered(model, f"visual.trunk.{part}")]
    raise UsageError(
        f"the blocks of a visual tower of the kind {kind_of(visual)} are not known",
        "learn the whole tower (clip-tune with blocks: all)",
    )


def _numbered(model: nn.Module, holder: str) -> list[Block]:
    return [(f"{holder}.{i}",) for i in range(len(model.get_submodule(holder)))]


def some_of(blocks: Sequence[Block], which: str) -> list[Block]:
    """`which`: all, first-K or last-K.

    Raises:
        UsageError: there are fewer than K.
    """
    if which == "all":
        return list(blocks)
    end, _, count = which.partition("-")
    if int(count) > len(blocks):
        raise UsageError(f"blocks is {which}, but the tower has {len(blocks)}", "lower it, or write all")
    return list(blocks[: int(count)] if end == "first" else blocks[-int(count) :])


def adaptable(model: nn.Module, tower: str, targets: Sequence[str], which: str = "all") -> list[tuple[str, str, str]]:
    """The linear maps in a tower's blocks that adapters can go with.

    Args:
        targets: of in_proj, out_proj, c_fc, c_proj.
        which: the blocks, as in `some_of`.

    Returns:
        For each the path of its block's module from the model, its own path in there, and its weight's name there.

    Raises:
        UsageError: no block has maps of one of the targets.
    """
    modules = [part for block in some_of(blocks_of(model, tower), which) for part in block]
    if tower == "text" and not all(is_plain(model.get_submodule(part)) for part in modules):
        raise UsageError("the blocks of the text tower are not of open_clip's common kind, and take no adapters")
    found = [(p, *place) for p in modules for place in linear_maps(model.get_submodule(p), targets).items()]
    there = {path.rpartition(".")[2] for _, path, _ in found}
    if missing := [target for target in targets if not there & TARGETS[target]]:
        others = [t for t in TARGETS if any(linear_maps(model.get_submodule(p), [t]) for p in modules)]
        kind = kind_of(model.visual) if tower == "visual" else type(getattr(model, "text", model)).__name__
        of_kind, only = (f" of the kind {', '.join(missing)}", f"; {', '.join(others)} only") if others else ("", "")
        raise UsageError(
            f"the {tower} tower ({kind}) has no linear maps{of_kind} that adapters can go with{only}",
            f"set targets: [{', '.join(others)}]" if others else "learn the tower itself (clip-tune) or prompts",
        )
    return found


def takes(model: nn.Module) -> dict[str, str]:
    """What can be learned in a model: kind -> why not; empty if it can. Needs no weights.

    Adapters are those of clip-lora's default targets; where these do not fit, the reason names the others that do.
    """
    text, visual = _why_not(text_prompts_fit, model), _why_not(prompts_fit, model.visual)
    targets = configs.Lora.model_fields["targets"].default
    return {
        "text prompts": text,
        "class-specific context": text,
        "mixed prompts": text,
        "visual prompts": visual,
        "coupled prompts": text or visual,
        "pixel prompts": "",
        **{f"adapters ({t})": _why_not(adaptable, model, t, targets) for t in ("visual", "text")},
        "anchor": visual,
        "tuning": "",
    }


def _why_not(fit: Callable[..., object], *given: object) -> str:
    try:
        fit(*given)
    except UsageError as error:
        return error.message
    return ""
