"""Guarantees pinned here, for tiny towers of every class that open_clip offers:

- image features are open_clip's, and prompts of length zero change nothing;
- prompts stand after all other tokens, turn with no rotary position, deep ones overwrite them in front of their block,
  and pooling does not see them, against a rendering with hooks and longer prefixes, forward and backward;
- pixels and patch embedding keep full precision under autocast;
- adapters start as the identity, all of them learn, and merging them into the weights gives the same;
- students of one base do not see each other's prompts, adapters or blocks; the base stays bit for bit as it was, with
  no hook left, also when a look fails;
- first-K and last-K blocks mean the same to adapters and to tuning; only what learns is copied and stored;
- what learned comes back from `learned()`, and the order of classes changes no logit;
- batch norms of timm's follow the same rules as open_clip's;
- what a tower cannot take is told by `takes()`, without weights, and by an error that says what to do.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from advdistill_clip import configs
from advdistill_clip.lora import ClipLora
from advdistill_clip.models import Clip
from advdistill_clip.prompts import ClipPrompts
from advdistill_clip.towers import blocks_of
from advdistill_clip.tune import ClipTune
from advdistill_clip.visual import encode_pixels, prompts_fit
from clip_parts import Parts, images, settings, shake
from torch import Tensor, nn
from tower_parts import ROWS, TEXTS, TOWERS

from advdistill import ClassSet, UsageError

CLASSES = ClassSet(("cat", "ox", "a long name", "dog"), ("a photo of a {}.",))
ALL_MAPS = ("in_proj", "out_proj", "c_fc", "c_proj")
MAPS = {
    **dict.fromkeys(ROWS, ALL_MAPS),
    **dict.fromkeys(("other blocks", "eva01", "eva02-e"), ALL_MAPS[1:]),
    "convnext": ("c_fc", "c_proj"),
    "fastvit": ("in_proj", "out_proj"),
    "swin": ALL_MAPS,
    "relative positions": ALL_MAPS,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Parts]:
    return {kind: Parts(tmp_path_factory.mktemp("tower"), config) for kind, config in TOWERS.items()}


def looked(clip: Clip, x: Tensor, prompts: Tensor | None = None) -> Tensor:
    """Features with prompts, through the model's own preprocessing."""
    pixels = (x - clip.mean) / clip.std
    return encode_pixels(clip.model.visual, pixels, prompts)


def theirs(visual: nn.Module, pixels: Tensor) -> Tensor:
    out = visual(pixels)
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("kind", TOWERS)
def test_features_are_open_clips(made, kind):
    clip = Clip.from_config(configs.Clip(**made[kind].source))
    x = images(3, clip.image_size)
    expected = theirs(made[kind].model.visual, made[kind].pixels(x)).detach()
    torch.testing.assert_close(clip.features(x), expected, atol=1e-5, rtol=1e-5)
    assert expected.shape == (3, clip.width)
    if kind in ROWS:
        width, blocks = prompts_fit(clip.model.visual)
        for depth in (1, blocks):
            none = looked(clip, x, torch.zeros(depth, 0, width))
            torch.testing.assert_close(none, expected, atol=1e-5, rtol=1e-5)


def prefixed(visual: nn.Module, pixels: Tensor, prompts: Tensor) -> Tensor:
    """The independent rendering: on a tower of its own, hooks put prompts in and take them out again.

    In timm's towers they stand between the prefix (class token, registers) and the patches, and the prefix is longer
    by so many, which is how rotary positions skip them; in open_clip's they stand last.
    """
    visual, n = copy.deepcopy(visual), prompts.shape[1]
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        first, blocks, last = visual.ln_pre, visual.transformer.resblocks, visual.transformer
        at = visual.positional_embedding.shape[0]
    else:
        first, blocks, last, at = trunk.norm_pre, trunk.blocks, trunk.norm, trunk.num_prefix_tokens
        for block in blocks:
            if hasattr(block.attn, "num_prefix_tokens"):
                block.attn.num_prefix_tokens += n

    def around(x: Tensor, i: int, old: int) -> Tensor:
        return torch.cat([x[:, :at], prompts[i] + torch.zeros(len(x), 1, 1), x[:, at + old :]], dim=1)

    first.register_forward_pre_hook(lambda module, inputs: (around(inputs[0], 0, 0),))
    for i in range(1, len(prompts)):
        blocks[i].register_forward_pre_hook(lambda module, inputs, i=i: (around(inputs[0], i, n), *inputs[1:]))
    if trunk is None:
        last.register_forward_hook(lambda module, inputs, x: x[:, :at])
    else:
        last.register_forward_pre_hook(
            lambda module, inputs: (torch.cat([inputs[0][:, :at], inputs[0][:, at + n :]], 1),)
        )
    return theirs(visual, pixels)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kind", ROWS)
def test_prompts_stand_where_they_should(made, kind, depth):
    parts = made[kind]
    clip = Clip.from_config(configs.Clip(**parts.source))
    width, blocks = prompts_fit(clip.model.visual)
    assert blocks == 3
    draw = torch.Generator().manual_seed(3)
    prompts, x = torch.randn(depth, 2, width, generator=draw).requires_grad_(), images().requires_grad_()
    ours, other = looked(clip, x, prompts), prefixed(parts.model.visual, parts.pixels(x), prompts)
    torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)
    pull = torch.randn(ours.shape, generator=draw)
    for got, wanted in zip(
        torch.autograd.grad((ours * pull).sum(), (prompts, x)),
        torch.autograd.grad((other * pull).sum(), (prompts, x)),
        strict=True,
    ):
        assert (got - wanted).norm() <= 1e-4 * wanted.norm()
        assert (wanted.flatten(1).norm(dim=1) > 0).all()


FIRST = {
    **dict.fromkeys(("class token", "coca", "resnet"), "conv1"),
    **dict.fromkeys(("siglip", "registers", "vitamin", "pe", "eva02", "mixed rotary"), "trunk.patch_embed.proj"),
    "convnext": "trunk.stem.0",
    "fastvit": "trunk.stem.0.conv_kxk.0.conv",
    "swin": "trunk.patch_embed.proj",
}
"""What sees the pixels first."""


@pytest.mark.parametrize("kind", FIRST)
def test_pixels_keep_their_precision_under_autocast(made, kind):
    clip = Clip.from_config(configs.Clip(**made[kind].source))
    x = images(2, clip.image_size)
    prompts = torch.ones(3, 2, prompts_fit(clip.model.visual)[0]) if kind in ROWS else None
    seen: list[torch.dtype] = []
    handle = clip.model.visual.get_submodule(FIRST[kind]).register_forward_hook(
        lambda module, inputs, out: seen.extend((inputs[0].dtype, out.dtype))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = looked(clip, x, prompts)
    handle.remove()
    assert seen == [torch.float32, torch.float32]
    exact = looked(clip, x, prompts)
    assert (features - exact).norm() < 0.05 * exact.norm()


# Adapters


def lora(parts: Parts, kind: str, **more: Any) -> ClipLora:
    chosen = {"rank": 2, "alpha": 3.0, "dropout": 0.0, "targets": list(MAPS.get(kind, ())), **more}
    return ClipLora.from_config(configs.Lora(**parts.source, **chosen))


@pytest.mark.parametrize("kind", MAPS)
def test_adapters_start_as_nothing_learn_and_merge(made, kind):
    parts = made[kind]
    teacher, student = Clip.from_config(configs.Clip(**parts.source)), lora(parts, kind)
    x = images(2, student.image_size)
    assert torch.equal(student.features(x), teacher.features(x))
    shake(student.learned(), 0.5)
    student.features(x).square().sum().backward()
    learned = student.learned()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in learned.values())
    assert not any(tensor.requires_grad for tensor in student.model.parameters())
    merged = copy.deepcopy(parts.model)
    merged.load_state_dict(student.merged(), strict=True)
    expected = theirs(merged.visual, parts.pixels(x)).detach()
    added = (student.features(x) - teacher.features(x)).norm()
    assert (student.features(x) - expected).norm() < 1e-3 * added and added > 1e-3 * expected.norm()
    assert {name.split(".lora.")[0] for name in learned} == {"visual"} and not student.classifier_learns


@pytest.mark.parametrize("kind", TEXTS)
def test_text_adapters(tmp_path, kind):
    parts = Parts(tmp_path, TEXTS[kind])
    teacher = Clip.from_config(configs.Clip(**parts.source))
    classes, before = teacher.prepare(CLASSES), teacher.classifier(teacher.prepare(CLASSES))
    for towers in (["text"], ["visual", "text"]):
        student = lora(parts, kind, towers=towers, targets=list(ALL_MAPS))
        assert student.classifier_learns
        torch.testing.assert_close(student.classifier(classes), before, atol=1e-6, rtol=1e-6)
        shake(student.learned(), 0.5)
        ours = student.classifier(student.prepare(CLASSES))
        student.predict(images(), student.prepare(CLASSES)).square().sum().backward()
        assert all(tensor.grad is not None and tensor.grad.any() for tensor in student.learned().values())
        assert {name.split(".lora.")[0] for name in student.learned()} == set(towers)
        rows = torch.tensor([2, 0])
        torch.testing.assert_close(student.classifier(classes, rows), ours[rows], atol=1e-5, rtol=1e-5)
        plain = Clip.from_config(configs.Clip(**parts.source))
        plain.model = copy.deepcopy(parts.model)
        plain.model.load_state_dict(student.merged(), strict=True)
        expected, added = plain.classifier(plain.prepare(CLASSES)), (ours - before).norm()
        assert (ours - expected).norm() < 1e-3 * added and added > 1e-2


def test_rank_cannot_exceed_a_maps_width(made):
    with pytest.raises(UsageError, match=r"rank is 33, but visual.\S*.0.attn.in_proj_weight .* 96 x 32") as caught:
        lora(made["class token"], "class token", rank=33)
    assert caught.value.hint == "lower it"


@pytest.mark.parametrize(
    ("kind", "targets", "match", "hint"),
    [
        ("resnet", ["in_proj", "out_proj"], r"\(ModifiedResNet\) has no linear maps that", "clip-tune"),
        ("convnext", ["in_proj", "c_fc"], r"\(ConvNeXt\) has no linear maps .* in_proj that", r"\[c_fc, c_proj\]"),
        ("eva01", ["in_proj"], r"\(Eva\) has no linear maps .* in_proj", r"\[out_proj, c_fc, c_proj\]"),
        ("other blocks", ["in_proj"], r"\(VisionTransformer\)", r"\[out_proj, c_fc, c_proj\]"),
    ],
)
def test_maps_that_a_tower_lacks_are_told(made, kind, targets, match, hint):
    with pytest.raises(UsageError, match=match) as caught:
        lora(made[kind], kind, targets=targets)
    assert hint.replace("\\", "") in caught.value.hint


# Blocks


@pytest.mark.parametrize(
    ("kind", "count", "first"),
    [("class token", 3, "visual.transformer.resblocks.0"), ("siglip", 3, "visual.trunk.blocks.0"),
     ("resnet", 6, "visual.conv1"), ("convnext", 5, "visual.trunk.stem"), ("swin", 2, "visual.trunk.layers.0")],
)  # fmt: skip
def test_some_blocks_learn(made, kind, count, first):
    parts = made[kind]
    base = Clip.from_config(configs.Clip(**parts.source))
    blocks = blocks_of(base.model, "visual")
    assert len(blocks) == count and blocks[0][0] == first

    def of(some: list[tuple[str, ...]]) -> set[str]:
        state = base.model.state_dict()
        return {name for name in state for block in some for part in block if name.startswith(f"{part}.")}

    x = images(2, base.image_size)
    for which, some in {"first-1": blocks[:1], "last-1": blocks[-1:], f"first-{count}": blocks}.items():
        student = ClipTune.from_config(configs.Tune(**parts.source, blocks=which))
        assert set(student.learned()) == of(some)
        student.train().features(x).square().sum().backward()
        reached = {name for name, p in student.model.named_parameters() if p.grad is not None and p.grad.any()}
        trainable = {name for name, tensor in student.learned().items() if tensor.requires_grad}
        assert reached == trainable == {name for name, p in student.model.named_parameters() if p.requires_grad}
        shared = {id(p) for p in base.model.parameters()} & {id(p) for p in student.model.parameters()}
        assert len(shared) == len([*base.model.parameters()]) - len(trainable)
    with pytest.raises(UsageError, match=rf"blocks is last-9, but the tower has {count}"):
        ClipTune.from_config(configs.Tune(**parts.source, blocks="last-9"))


def test_blocks_mean_the_same_to_adapters(made):
    for which, there in {"first-1": {"0"}, "last-2": {"1", "2"}, "all": {"0", "1", "2"}}.items():
        names = lora(made["siglip"], "siglip", blocks=which).learned()
        assert {name.removeprefix("visual.lora.trunk.blocks.").split(".")[0] for name in names} == there
    with pytest.raises(ValueError, match="'2' is none of: all, first-K, last-K"):
        configs.Lora(model="x", blocks="2")
    with pytest.raises(ValueError, match="first-1 goes with tower: visual or tower: text"):
        configs.Tune(model="x", tower="all", blocks="first-1")


def students(parts: Parts, kind: str) -> Iterator[Clip]:
    if kind in ROWS:
        visual = {"tokens": 2, "depth": 3}
        yield ClipPrompts.from_config(configs.Prompts(**parts.source, text={"tokens": 0}, visual=visual))
    if kind in MAPS:
        yield lora(parts, kind)
    for tower in ("visual", "text", "all"):
        yield ClipTune.from_config(configs.Tune(**parts.source, tower=tower))
    yield ClipTune.from_config(configs.Tune(**parts.source, blocks="last-2"))
    yield ClipTune.from_config(configs.Tune(**parts.source, tower="text", blocks="first-2"))


@pytest.mark.parametrize("kind", TOWERS)
def test_what_learned_comes_back_and_the_base_stays(made, kind):
    parts = made[kind]
    teacher = Clip.from_config(configs.Clip(**parts.source))
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    x, classes = images(2, teacher.image_size), teacher.prepare(CLASSES)
    plain = teacher.predict(x, classes)
    for one, other in zip(students(parts, kind), students(parts, kind), strict=True):
        shake(one.learned(), 0.1 if isinstance(one, ClipTune) else 1.0)
        one.train().predict(x, one.prepare(CLASSES)).square().sum().backward()
        other.load_learned({name: tensor.detach().clone() for name, tensor in one.learned().items()})
        for model in (one, other):
            model.eval()
        changed = one.predict(x, one.prepare(CLASSES))
        assert torch.equal(changed, other.predict(x, other.prepare(CLASSES)))
        assert (changed - plain).abs().max() > 2e-5
        assert torch.equal(teacher.predict(x, classes), plain)
        assert one.base.model is teacher.model and one.undefended().model is teacher.model
        back = ClassSet(CLASSES.names[::-1], CLASSES.templates)
        torch.testing.assert_close(one.predict(x, one.prepare(back)).flip(1), changed, atol=1e-4, rtol=1e-4)
    for name, tensor in teacher.model.state_dict().items():
        # open_clip leaves one weight of CoCa's decoder as the memory was: it may be no number.
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    assert not any(p.requires_grad or p.grad is not None for p in teacher.model.parameters())
    assert not any(hooks(module) for module in teacher.model.modules())


def hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


@pytest.mark.parametrize("kind", ["siglip", "eva02", "convnext", "swin"])
def test_a_look_that_fails_leaves_no_hook(made, kind):
    student, other = lora(made[kind], kind), Clip.from_config(configs.Clip(**made[kind].source))
    x = images(2, student.image_size)
    plain = other.features(x)
    shake(student.learned())
    *_, last = student.adapters.values()
    last.b.data = last.b.data[:-1]
    with pytest.raises(RuntimeError):
        student.features(x)
    assert not any(hooks(module) for module in student.model.modules())
    assert torch.equal(other.features(x), plain)


def test_students_of_one_base_do_not_see_each_other(made):
    for kind in ("class token", "siglip", "pe", "convnext"):
        parts = made[kind]
        one, other = lora(parts, kind), lora(parts, kind, init_seed=1)
        tuned = ClipTune.from_config(configs.Tune(**parts.source, blocks="first-1"))
        x = images(2, one.image_size)
        assert one.base.model is other.base.model is tuned.base.model
        shake(one.learned(), 0.3)
        alone = [model.features(x) for model in (other, tuned)]
        kept = one.features(x)
        shake(tuned.learned(), 0.3)
        assert torch.equal(one.features(x), kept)
        assert torch.equal(other.features(x), alone[0]) and not torch.equal(tuned.features(x), alone[1])


# Tuning


def test_the_text_tower_alone_learns(made):
    for kind in ("class token", "siglip", "coca"):
        parts = made[kind]
        student = ClipTune.from_config(configs.Tune(**parts.source, tower="text"))
        assert student.classifier_learns
        names, root = set(student.learned()), getattr(parts.model, "text", None)
        if root is not None:
            assert names == {f"text.{name}" for name in root.state_dict()}
        else:
            rest = {name for name in parts.model.state_dict() if not name.startswith("visual.")}
            assert names == rest - {"logit_scale"}
        x = images(2, student.image_size)
        student.predict(x, student.prepare(CLASSES)).square().sum().backward()
        assert not any(name.startswith("visual.") for name, p in student.model.named_parameters() if p.grad is not None)
        assert all(p.grad is not None for p in student.learned().values() if p.requires_grad)


def test_parts_of_no_use_neither_learn_nor_are_stored(made, tmp_path):
    student = ClipTune.from_config(configs.Tune(**made["coca"].source, tower="all"))
    assert not any(name.startswith("text_decoder") for name in student.learned())
    biased = Parts(tmp_path, settings(init_logit_bias=-10.0))
    names = ClipTune.from_config(configs.Tune(**biased.source, tower="all")).learned()
    assert set(names) == set(biased.model.state_dict()) - {"logit_bias"}


@pytest.mark.parametrize("bn", ["frozen", "train"])
def test_batch_norms_of_timm(made, bn):
    student = ClipTune.from_config(configs.Tune(**made["fastvit"].source, bn=bn)).train()
    counts = {name: t for name, t in student.learned().items() if name.endswith("num_batches_tracked")}
    statistics = {name: t.clone() for name, t in student.learned().items() if "running" in name}
    assert counts and len(statistics) == 2 * len(counts)
    x, shifted = images(4), torch.cat([images(1), images(3, seed=9)])
    with student.attacked():
        depends = not torch.allclose(student.features(x)[0], student.features(shifted)[0], atol=1e-6)
    assert depends == (bn == "train") and all(count == 0 for count in counts.values())
    assert all(torch.equal(student.learned()[name], before) for name, before in statistics.items())
    student.features(x)
    assert all(count == (bn == "train") for count in counts.values())
    assert any(not torch.equal(student.learned()[name], t) for name, t in statistics.items()) == (bn == "train")


def test_only_batch_norms_that_learn_leave_their_statistics(made):
    student = ClipTune.from_config(configs.Tune(**made["resnet"].source, bn="train", blocks="first-1")).train()
    before = {name: t.clone() for name, t in student.model.state_dict().items() if "running" in name}
    student.features(images(2, student.image_size))
    moved = {
        name for name, t in student.model.state_dict().items() if name in before and not torch.equal(t, before[name])
    }
    assert moved == {f"visual.bn{i}.running_{what}" for i in (1, 2, 3) for what in ("mean", "var")}


# What a tower takes


@pytest.mark.parametrize("name", ["resnet18", "regnetx_002", "vgg11"])
def test_towers_without_known_blocks_say_so(tmp_path, name):
    vision = {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "timm_model_pretrained": False}
    other = dict.fromkeys(("layers", "width", "head_width", "patch_size"))
    path = tmp_path / "model.json"
    path.write_text(json.dumps(settings(vision={**other, **vision}, custom_text=True)))
    source = {"model": str(path), "weights": "random"}
    clip = Clip.from_config(configs.Clip(**source), weights=False)
    assert "are not known" in clip.takes()["adapters (visual)"] and clip.takes()["tuning"] == ""
    for student in (ClipLora, ClipTune):
        config = configs.Lora if student is ClipLora else configs.Tune
        with pytest.raises(UsageError, match="are not known") as caught:
            student.from_config(config(**source, blocks="last-1"), weights=False)
        assert "blocks: all" in caught.value.hint
    assert ClipTune.from_config(configs.Tune(**source), weights=False).learned()


BUILTIN = {
    "ViT-B-32": "",
    "ViT-B-16-quickgelu": "",
    "ViT-L-14-CLIPA": "",
    "ViT-M-16-alt": "",
    "coca_ViT-B-32": "",
    "coca_base": "",
    "ViT-B-16-SigLIP": "",
    "ViT-B-32-SigLIP2-256": "",
    "PE-Core-T-16-384": "",
    "PE-Core-S-16-384": "",
    "EVA01-g-14": "adapters",
    "EVA02-B-16": "",
    "EVA02-E-14": "adapters",
    "MobileCLIP-B": "",
    "ViTamin-S": "",
    "vit_medium_patch16_gap_256": "",
    "RN50": "prompts adapters",
    "RN101-quickgelu": "prompts adapters",
    "convnext_base": "prompts adapters",
    "MobileCLIP-S1": "prompts",
    "swin_base_patch4_window7_224": "prompts",
    "vit_relpos_medium_patch16_cls_224": "prompts",
}
"""A name for each class of tower, and what its visual tower does not take (adapters: on the default maps)."""


@pytest.mark.parametrize("name", BUILTIN)
def test_what_open_clips_architectures_take(name):
    clip = Clip.from_config(configs.Clip(model=name, weights="none"), weights=False)
    no_prompts, no_adapters = ("prompts" in BUILTIN[name], "adapters" in BUILTIN[name])
    takes = clip.takes()
    assert {kind for kind, why_not in takes.items() if why_not} == {
        *(["visual prompts", "coupled prompts", "anchor"] if no_prompts else []),
        *(["adapters (visual)"] if no_adapters else []),
    }
    for tower in ("visual", "text"):
        # What it says is what the student says, as it is by default.
        try:
            ClipLora.from_config(configs.Lora(model=name, weights="none", towers=[tower], rank=1), weights=False)
        except UsageError as error:
            assert takes[f"adapters ({tower})"] == error.message
        else:
            assert takes[f"adapters ({tower})"] == ""
    assert len(takes) == 10 and not any("\n" in why_not for why_not in takes.values())
    pixels = torch.zeros(2, 3, *clip.size, device="meta")
    if no_prompts:
        with pytest.raises(UsageError) as caught:
            prompts_fit(clip.model.visual)
        assert caught.value.message == takes["visual prompts"] and "pixel" in caught.value.hint
        with pytest.raises(UsageError):
            encode_pixels(clip.model.visual, pixels, torch.zeros(1, 2, 8, device="meta"))
    else:
        width, blocks = prompts_fit(clip.model.visual)
        prompts = torch.zeros(blocks, 2, width, device="meta")
        assert encode_pixels(clip.model.visual, pixels, prompts).shape == (2, clip.width)


@pytest.mark.parametrize(
    ("model", "towers", "count"),
    [
        # 12 blocks, rank 16, fused projection (768 + 2304) and output (768 + 768)
        ("ViT-B-32-quickgelu", ["visual"], 12 * 16 * (768 + 2304 + 768 + 768)),
        ("ViT-B-32-quickgelu", ["text"], 12 * 16 * (512 + 1536 + 512 + 512)),
        ("ViT-B-16-SigLIP", ["visual", "text"], 2 * 12 * 16 * (768 + 2304 + 768 + 768)),
        # three projections, each on its own
        ("EVA02-B-16", ["visual"], 12 * 16 * 4 * (768 + 768)),
    ],
)
def test_adapters_count(model, towers, count):
    student = ClipLora.from_config(configs.Lora(model=model, towers=towers, rank=16), weights=False)
    assert sum(tensor.numel() for tensor in student.learned().values()) == count
    assert student.device.type == "meta"


def test_first_block_alone_counts():
    student = ClipTune.from_config(configs.Tune(model="ViT-B-16-quickgelu", blocks="first-1"), weights=False)
    width = 768
    maps = 3 * width * width + 3 * width + width * width + width + 8 * width * width + 5 * width
    assert sum(tensor.numel() for tensor in student.learned().values()) == maps + 4 * width


class Foreign(nn.Module):
    """A text tower of another make, as Hugging Face's are."""

    context_length = 40

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(259, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embedding(ids).mean(1)


def test_a_foreign_text_tower_can_be_tuned_and_no_more(tmp_path):
    parts = Parts(tmp_path, settings(custom_text=True))
    clip = Clip.from_config(configs.Clip(**parts.source))
    clip.base.model.text = Foreign().requires_grad_(False)
    takes = clip.takes()
    told = {kind for kind, why_not in takes.items() if "Foreign" in why_not}
    assert told == {"text prompts", "class-specific context", "mixed prompts", "coupled prompts", "adapters (text)"}
    assert not any(why_not for kind, why_not in takes.items() if kind not in told)
    with pytest.raises(UsageError, match="Foreign"):
        ClipLora(clip.base, configs.Lora(**parts.source, towers=["text"]))
    with pytest.raises(UsageError, match="blocks are not known") as caught:
        ClipTune(clip.base, configs.Tune(**parts.source, tower="text", blocks="last-1"))
    assert "tower: text" in caught.value.hint
    student = ClipTune(clip.base, configs.Tune(**parts.source, tower="text"))
    student.predict(images(), student.prepare(CLASSES)).square().sum().backward()
    (embedding,) = student.learned().values()
    assert embedding.grad.any()
