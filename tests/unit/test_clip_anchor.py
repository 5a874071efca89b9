"""What is pinned here, of the anchored student (R-Adapt):

- The anchor starts as the first attention's response to a white image, so that a white image looks as it did.
- The first attention says (1 - mix) of its own and mix of the anchor, by a computation of its own; nothing else moves.
- Without a filter and with an anchor that says what the attention says, nothing changes; the filter is a Gaussian.
- The anchor alone learns, is a checkpoint's only tensor, and gets gradients; pixels do too. The base is not touched.
- timm's towers take one; towers without tokens refuse it and say what to do, and so does a filter wider
  than the image.
- It starts on the visual tower's own device.
"""

from __future__ import annotations

import copy
from pathlib import Path

import clip_parts
import pytest
import torch
import torch.nn.functional as F
from advdistill_clip.anchor import ClipAnchor
from advdistill_clip.configs import Anchor

from advdistill import ClassSet
from advdistill.errors import UsageError
from advdistill.testing import check_model

DEMO = {"model": "advdistill_demo:small.json", "weights": "advdistill_demo:small.safetensors"}
CLASSES = ClassSet(("one", "two", "three"), ("a photo of a {}.",))


def model(**settings: object) -> ClipAnchor:
    built = ClipAnchor.from_config(Anchor(**{**DEMO, **settings}))
    assert isinstance(built, ClipAnchor)
    return built


def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_white_image_looks_as_it_did() -> None:
    anchored, white = model(mix=0.7), torch.ones(1, 3, 32, 32)
    torch.testing.assert_close(anchored.features(white), anchored.undefended().features(white), rtol=1e-5, atol=1e-5)
    apart = (anchored.features(images()) - anchored.undefended().features(images())).norm(dim=1)
    assert (apart > 0.1).all()


def test_the_first_attention_is_mixed_with_the_anchor_and_nothing_else() -> None:
    anchored = model(mix=0.3, sigma=0)
    with torch.no_grad():
        anchored.anchor.normal_(generator=torch.Generator().manual_seed(1))
    visual = anchored.base.model.visual

    def mixed(module: torch.nn.Module, inputs: object, output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (0.7 * output[0] + 0.3 * anchored.anchor, *output[1:])

    handle = visual.transformer.resblocks[0].attn.register_forward_hook(mixed)
    try:
        wanted = visual((images() - anchored.mean) / anchored.std)
    finally:
        handle.remove()
    torch.testing.assert_close(anchored.features(images()), wanted, rtol=1e-5, atol=1e-5)


def test_the_filter_is_a_gaussian() -> None:
    spread = model(sigma=1.0)
    dot = torch.zeros(1, 3, 32, 32)
    dot[..., 16, 16] = 1.0
    at = torch.arange(-3, 4, dtype=torch.float32)
    row = torch.exp(-(at**2) / 2)
    row = row / row.sum()
    wanted = F.pad(torch.outer(row, row), (13, 12, 13, 12)).expand(1, 3, -1, -1)
    plain = model(sigma=0.0)
    torch.testing.assert_close(spread.features(dot), plain.features(wanted), rtol=1e-5, atol=1e-5)


def test_the_anchor_alone_learns() -> None:
    anchored = model()
    before = {name: tensor.clone() for name, tensor in anchored.base.model.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in anchored.learned().items()} == {"visual.anchor": (17, 64)}
    pixels = images().requires_grad_()
    anchored.predict(pixels, anchored.prepare(CLASSES)).logsumexp(1).sum().backward()
    assert pixels.grad is not None and pixels.grad.any()
    assert anchored.anchor.grad is not None and anchored.anchor.grad.any(dim=1).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in anchored.base.model.state_dict().items())
    assert not any(module._forward_hooks for module in anchored.modules())
    check_model(anchored)


def test_filters_wider_than_the_image_are_told() -> None:
    model(sigma=31 / 3).features(images())
    with pytest.raises(UsageError, match="reaches 32 pixels is wider than the image, 32 x 32"):
        model(sigma=10.5)
    with pytest.raises(ValueError, match="finite"):
        model(sigma=float("inf"))


@pytest.mark.parametrize("left", ["transformer", "visual.transformer.resblocks.0", "visual.transformer.resblocks.3"])
def test_the_anchor_stands_where_the_visual_tower_does(left: str) -> None:
    base = copy.deepcopy(model().base)
    # As after a student that tunes a copy of `left` and shares the rest went to its device.
    holder, _, name = left.rpartition(".")
    behind = copy.deepcopy(base.model.get_submodule(left))
    base.model.to("meta").get_submodule(holder).add_module(name, behind)
    assert len({parameter.device for parameter in base.model.parameters()}) == 2
    anchored = ClipAnchor(base, Anchor(**DEMO))
    assert anchored.anchor.is_meta
    assert anchored.to("meta").features(images().to("meta")).is_meta


TIMM = {"timm_model_pretrained": False, "timm_pool": "", "image_size": 224}
VIT = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear"}
EVA = {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": "linear"}


@pytest.mark.parametrize("vision", [VIT, EVA], ids=["vit", "eva"])
def test_other_towers_with_tokens(vision: dict[str, object], tmp_path: Path) -> None:
    other = {"layers": None, "width": None, "head_width": None, "patch_size": None}
    config = clip_parts.settings({**TIMM, **other, **vision}, custom_text=True)
    anchored = ClipAnchor.from_config(Anchor(**clip_parts.Parts(tmp_path, config).source))
    assert isinstance(anchored, ClipAnchor)
    anchored.features(torch.rand(2, 3, 32, 32)).sum().backward()
    assert anchored.anchor.grad is not None and anchored.anchor.grad.any()


def test_towers_without_tokens_refuse_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no plain row of tokens"):
        ClipAnchor.from_config(Anchor(model="RN50", weights=""), weights=False)
