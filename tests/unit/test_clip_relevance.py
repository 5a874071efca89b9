"""Guarantees pinned here, for tiny towers of every class that open_clip offers:

- maps of a row of tokens are gradient times attention, rolled out, against a rendering of its own; with prompts in
  front of some blocks too, and these are no part of the map;
- maps of a convolutional tower are Grad-CAM, against a rendering with features and gradients taken apart;
- whatever the tower: not negative, each image's own, on its own grid, without a graph; they change no prediction and
  leave no hook and no gradient behind;
- towers without attention or feature maps to be had say so.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from advdistill_clip import configs
from advdistill_clip.moapt import ClipMoapt
from advdistill_clip.models import Clip
from advdistill_clip.prompts import ClipPrompts
from clip_parts import Parts, images, settings, shake
from torch import Tensor, nn
from tower_parts import RESNET, TOWERS

from advdistill import ClassSet, UsageError

CLASSES = ClassSet(("cat", "ox", "dog"), ("a photo of a {}.",))
CHOSEN = torch.tensor([0, 2])
NONE = ("swin", "relative positions")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Parts]:
    return {kind: Parts(tmp_path_factory.mktemp("tower"), config) for kind, config in TOWERS.items()}


def maps(model: Clip, x: Tensor) -> Tensor:
    return model.relevance(x, model.classifier(model.prepare(CLASSES)).detach(), CHOSEN)


def rendered(model: Clip, x: Tensor, prompts: Tensor | None = None) -> Tensor:
    """Chefer et al.'s rule with every token computed in every block, by torch's own attention."""
    visual = model.visual
    pixels = ((x - model.mean) / model.std).requires_grad_()
    tokens = visual.conv1(pixels).flatten(2).transpose(1, 2)
    tokens = torch.cat([visual.class_embedding.expand(len(x), 1, -1), tokens], 1) + visual.positional_embedding
    length, seen = tokens.shape[1], []
    for number, block in enumerate(visual.transformer.resblocks):
        if prompts is not None and number < len(prompts):
            tokens = torch.cat([tokens[:, :length], prompts[number].expand(len(x), -1, -1)], 1)
        if number == 0:
            tokens = visual.ln_pre(tokens)
        attn, heads = block.attn, block.attn.num_heads
        q, k, v = F.linear(block.ln_1(tokens), attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        seen.append(weights)
        tokens = tokens + attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
        tokens = tokens + block.mlp(block.ln_2(tokens))
    features = visual.ln_post(tokens[:, 0]) @ visual.proj
    logits = model.logits(features, model.classifier(model.prepare(CLASSES)))
    slopes = torch.autograd.grad(logits[torch.arange(len(x)), CHOSEN].sum(), seen)
    total = torch.eye(seen[0].shape[-1]).repeat(len(x), 1, 1)
    for number, (weights, slope) in enumerate(zip(seen, slopes, strict=True)):
        if prompts is not None and number < len(prompts):
            total[:, length:] = 0  # fresh prompts, from no image
        total = total + (weights * slope).clamp(min=0).mean(1) @ total
    return total[:, 0, 1:length].unflatten(1, visual.grid_size).detach()


def test_attention_is_rolled_out(made):
    model = Clip.from_config(configs.Base(**made["class token"].source))
    assert torch.allclose(maps(model, images()), rendered(model, images()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_prompts_pass_relevance_on_and_are_left_out(made, depth):
    text, visual = {"tokens": 2, "depth": 1}, {"tokens": 3, "depth": depth}
    model = ClipPrompts.from_config(configs.Prompts(**made["class token"].source, text=text, visual=visual))
    shake(model.learned(), 0.5)
    found = maps(model, images())
    assert torch.allclose(found, rendered(model, images(), model.visual_tokens.detach()), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found, rendered(model, images()), rtol=1e-2)


@pytest.mark.parametrize("side", [64, 32])
def test_convolutional_towers_give_grad_cam(tmp_path, side):
    """Of the last stage; of the one before where that gives one cell, which is no map."""
    config = settings(vision={**RESNET, "image_size": side})
    model = Clip.from_config(configs.Base(**Parts(tmp_path, config).source))
    visual, x = model.visual, images(side=side)
    last = visual.layer3(visual.layer2(visual.layer1(visual.stem((x - model.mean) / model.std))))
    rest = [visual.attnpool] if side == 64 else [visual.layer4, visual.attnpool]
    last = (visual.layer4(last) if side == 64 else last).detach().requires_grad_()
    logits = model.logits(nn.Sequential(*rest)(last), model.classifier(model.prepare(CLASSES)))
    (slope,) = torch.autograd.grad(logits[torch.arange(2), CHOSEN].sum(), last)
    by_hand = torch.einsum("bc,bchw->bhw", slope.mean((2, 3)), last).clamp(min=0)
    assert (
        by_hand.shape[1:] == (2, 2)
        and by_hand.any()
        and torch.allclose(maps(model, x), by_hand.detach(), rtol=1e-4, atol=1e-7)
    )


@pytest.mark.parametrize("kind", [kind for kind in TOWERS if kind not in NONE])
def test_every_tower_gives_maps_and_stays_as_it_is(made, kind):
    model = Clip.from_config(configs.Base(**made[kind].source))
    prepared, x = model.prepare(CLASSES), images()
    before = model.predict(x, prepared)
    found = maps(model, x)
    assert found.ndim == 3 and len(found) == 2 and found.isfinite().all() and not found.requires_grad
    assert found.min() >= 0 and found.max() > 1e-6
    alone = model.relevance(x[1:], model.classifier(prepared).detach(), CHOSEN[1:])
    assert torch.allclose(found[1:], alone, rtol=0.02, atol=1e-5)  # convolutions round by the size of their batch
    assert torch.equal(before, model.predict(x, prepared)) and x.grad is None
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", NONE)
def test_towers_without_maps_say_so(made, kind):
    with pytest.raises(UsageError, match="no relevance maps"):
        maps(Clip.from_config(configs.Base(**made[kind].source)), images())


def test_attention_that_is_not_told_is_no_map(made):
    model = Clip.from_config(configs.Base(**made["siglip"].source))
    for block in model.visual.trunk.blocks:
        block.attn.fused_attn = False  # its products are taken one by one
    with pytest.raises(UsageError, match="neither its attention"):
        maps(model, images())


def test_a_routers_logits_are_explained_too(made):
    model = ClipMoapt.from_config(configs.Moapt(**made["class token"].source, tokens=2, depth=1, prompts=2))
    assert isinstance(model, nn.Module)
    found = model.relevance(images(), model.classifier(model.prepare(CLASSES)).detach(), CHOSEN)
    assert found.shape == (2, 4, 4) and found.max() > 0
