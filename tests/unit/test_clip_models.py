"""Guarantees pinned here:

- image features are those of open_clip's towers, on pixels in [0, 1] of any size, normalised and resized inside;
- visual prompts stand after the patches, deep ones overwrite them, pooling does not see them, against an independent
  rendering, forward and backward;
- pixels and patch embedding keep full precision under autocast; float64 models stay float64;
- logits use the model's own scale;
- adapters start as the identity, cover the fused projections (884,736 parameters for ViT-B/32 at rank 16), and merge;
- prompts count 23,040 (ViT-B/16) and 32,256 (ViT-L/14) at 2 + 2 tokens, depth 9;
- gradients reach exactly `learned()`, whose file names are open_clip's where a tower is tuned;
- frozen bases are shared, never change, and `undefended` is that base; copies are independent;
- batch norms keep their statistics when frozen; when training, an attack sees batch statistics and leaves no trace;
- settings that cannot be are told;
- building draws nothing from the global random stream.
"""

from __future__ import annotations

import copy
import gc
import json

import open_clip
import pytest
import torch
from advdistill_clip import configs
from advdistill_clip.lora import ClipLora
from advdistill_clip.models import Clip
from advdistill_clip.prompts import ClipPrompts
from advdistill_clip.tune import ClipTune
from clip_parts import COCA, RESNET, Parts, images, settings, shake
from safetensors.torch import save_file
from torch import Tensor, nn

from advdistill import ClassSet, UsageError
from advdistill.engine.participant import Participant

CLASSES = ClassSet(("cat", "ox", "a long name", "dog"), ("a photo of a {}.",))

TOWERS = {
    "class token": settings(),
    "quickgelu": settings(quick_gelu=True),
    "average": settings(vision={"pool_type": "avg"}),
    "norm after pooling": settings(vision={"pool_type": "avg", "final_ln_after_pool": True}),
    "no first norm": settings(vision={"no_ln_pre": True, "pos_embed_type": "sin_cos_2d"}),
    "layer scale": settings(vision={"ls_init_value": 0.1}),
    "other blocks": settings(vision={"qk_norm": True}),
    "resnet": settings(vision=RESNET),
    "attention pooling": settings(
        vision={"output_tokens": True, "attentional_pool": True, "attn_pooler_heads": 2},
        text={"embed_cls": True, "output_tokens": True},
        multimodal_cfg=COCA,
        custom_text=True,
    ),
}


@pytest.fixture
def parts(tmp_path) -> Parts:
    return Parts(tmp_path, settings())


def students(parts: Parts) -> dict[str, Clip]:
    return {
        "prompts": ClipPrompts.from_config(configs.Prompts(**parts.source, text={"depth": 2}, visual={"depth": 3})),
        "lora": ClipLora.from_config(configs.Lora(**parts.source, rank=2)),
        "tune": ClipTune.from_config(configs.Tune(**parts.source)),
        "tune all": ClipTune.from_config(configs.Tune(**parts.source, tower="all")),
    }


@pytest.mark.parametrize("kind", TOWERS)
def test_features_are_open_clips(tmp_path, kind):
    parts = Parts(tmp_path, TOWERS[kind])
    clip = Clip.from_config(configs.Clip(**parts.source))
    x = images(3, clip.image_size)
    expected = parts.model.visual(parts.pixels(x))
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(clip.features(x), expected.detach(), atol=1e-5, rtol=1e-5)


def appended(parts: Parts, pixels: Tensor, prompts: Tensor) -> Tensor:
    """The independent rendering of visual prompts: the whole row through every whole block."""
    tower, n = parts.model.visual, prompts.shape[1]
    x = tower.conv1(pixels).flatten(2).mT
    x = torch.cat([tower.class_embedding + torch.zeros(len(x), 1, 1), x], 1) + tower.positional_embedding
    x = tower.ln_pre(torch.cat([x, prompts[0] + torch.zeros(len(x), 1, 1)], 1))
    for i, block in enumerate(tower.transformer.resblocks):
        if 0 < i < len(prompts):
            x = torch.cat([x[:, :-n], prompts[i] + torch.zeros(len(x), 1, 1)], 1)
        x = block(x)
    x = x[:, :-n]
    if tower.final_ln_after_pool:
        return tower.ln_post(x[:, 1:].mean(1)) @ tower.proj
    x = tower.ln_post(x)
    return (x[:, 0] if tower.pool_type == "tok" else x[:, 1:].mean(1)) @ tower.proj


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kind", ["class token", "average", "norm after pooling", "layer scale", "other blocks"])
def test_visual_prompts_stand_where_the_protocol_puts_them(tmp_path, kind, depth):
    parts = Parts(tmp_path, TOWERS[kind])
    student = ClipPrompts.from_config(
        configs.Prompts(**parts.source, text={"tokens": 0}, visual={"tokens": 2, "depth": depth})
    )
    shake(student.learned())
    prompts, x = student.learned()["visual.prompts"], images().requires_grad_()
    ours, theirs = student.features(x), appended(parts, parts.pixels(x), prompts)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    pull = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for got, wanted in zip(
        torch.autograd.grad((ours * pull).sum(), (prompts, x)),
        torch.autograd.grad((theirs * pull).sum(), (prompts, x)),
        strict=True,
    ):
        assert (got - wanted).norm() <= 1e-5 * wanted.norm()
    assert not student.classifier_learns and len(student.learned()) == 1


def test_any_size_is_resized_differentiably(parts):
    clip = Clip.from_config(configs.Clip(**parts.source))
    exact = images()
    torch.testing.assert_close(
        clip.features(exact), parts.model.visual(parts.pixels(exact)).detach(), atol=1e-5, rtol=0
    )
    for shape in ((20, 20), (48, 64), (16, 50)):
        x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (slope,) = torch.autograd.grad(clip.features(x).square().sum(), x)
        assert (slope.abs().flatten(1).amax(1) > 0).all()
    grey = torch.full((1, 3, 50, 70), 0.25)
    same = torch.full((1, 3, 32, 32), 0.25)
    torch.testing.assert_close(clip.features(grey), clip.features(same), atol=1e-5, rtol=0)
    # A bicubic resize overshoots at hard edges; the tower is shown valid pixels all the same.
    seen = []
    clip.visual.conv1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    clip.features(torch.arange(17) % 2 * torch.ones(1, 3, 17, 1))
    low, high = parts.pixels(torch.zeros(1, 3, 1, 1)), parts.pixels(torch.ones(1, 3, 1, 1))
    assert (seen[0] >= low - 1e-6).all() and (seen[0] <= high + 1e-6).all()


def test_pixels_keep_their_precision_under_autocast(tmp_path):
    for kind in ("class token", "resnet"):
        clip = Clip.from_config(configs.Clip(**Parts(tmp_path, TOWERS[kind]).source))
        seen = []
        clip.visual.conv1.register_forward_hook(lambda module, inputs, out: seen.append((inputs[0].dtype, out.dtype)))  # noqa: B023
        classes = clip.prepare(CLASSES)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = clip.features(images(2, clip.image_size))
            logits = clip.logits(features, clip.classifier(classes))
        assert seen == [(torch.float32, torch.float32)]
        assert features.dtype == logits.dtype == torch.float32
        # The cosines are not rounded to eight bits of mantissa.
        exact = clip.logits(features, clip.classifier(classes))
        assert (logits - exact).abs().max() < 0.02 * exact.abs().max()


def test_double_models_stay_double(parts):
    clip = copy.deepcopy(Clip.from_config(configs.Clip(**parts.source))).double()
    logits = clip.predict(images().double(), clip.prepare(CLASSES))
    assert logits.dtype == torch.float64
    single = Clip.from_config(configs.Clip(**parts.source))
    torch.testing.assert_close(logits.float(), single.predict(images(), single.prepare(CLASSES)), atol=1e-4, rtol=1e-4)


def test_logits_use_the_models_own_scale(tmp_path):
    parts = Parts(tmp_path, settings(init_logit_scale=1.5, init_logit_bias=-10.0))
    clip = Clip.from_config(configs.Clip(**parts.source))
    features, classifier = clip.features(images()), clip.classifier(clip.prepare(CLASSES))
    cosines = nn.functional.cosine_similarity(features[:, None], classifier[None], dim=-1)
    scale = parts.model.logit_scale.exp().item()
    torch.testing.assert_close(clip.logits(features, classifier), scale * cosines, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(classifier.norm(dim=-1), torch.ones(4))
    assert scale == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize(
    ("build", "settings_", "model", "count"),
    [
        (ClipLora, configs.Lora, "ViT-B-32-quickgelu", 884_736),
        (ClipPrompts, configs.Prompts, "ViT-B-16-quickgelu", 23_040),
        (ClipPrompts, configs.Prompts, "ViT-L-14-quickgelu", 32_256),
        (ClipTune, configs.Tune, "ViT-B-32-quickgelu", 87_849_216),
    ],
)
def test_full_size_counts_without_weights(build, settings_, model, count):
    student = build.from_config(settings_(model=model, weights="openai"), weights=False)
    assert student.device.type == "meta"
    assert sum(p.numel() for p in student.learned().values()) == count
    assert sum(p.numel() for p in student.parameters() if p.requires_grad) == count


@pytest.mark.parametrize("kind", ["class token", "resnet", "attention pooling"])
def test_any_kind_builds_without_weights(tmp_path, kind):
    parts = Parts(tmp_path, TOWERS[kind])
    clip = Clip.from_config(configs.Clip(**parts.source), weights=False)
    assert all(p.is_meta for p in clip.parameters())
    assert sum(p.numel() for p in clip.parameters()) == sum(p.numel() for p in parts.model.parameters())
    logits = clip.predict(torch.rand(2, 3, 40, 40, device="meta"), clip.prepare(CLASSES))
    assert logits.shape == (2, 4) and logits.is_meta


@pytest.mark.parametrize("name", ["prompts", "lora", "tune", "tune all"])
def test_gradients_reach_exactly_what_is_learned(parts, name):
    student = students(parts)[name].train()
    shake(student.learned())
    student.predict(images(4), student.prepare(CLASSES)).square().sum().backward()
    learned = {id(p) for p in student.learned().values()}
    reached = {id(p) for p in student.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == learned == {id(p) for p in student.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["prompts", "lora", "tune", "tune all"])
def test_learned_tensors_come_back(parts, name):
    one, other = students(parts)[name].eval(), students(parts)[name].eval()
    shake(one.learned())
    classes = one.prepare(CLASSES)
    before = other.predict(images(), classes)
    other.load_learned({key: value.clone() for key, value in one.learned().items()})
    assert torch.equal(one.predict(images(), classes), other.predict(images(), classes))
    assert not torch.equal(before, other.predict(images(), classes))


@pytest.mark.parametrize("name", ["prompts", "lora", "tune", "tune all"])
def test_copies_are_independent(parts, name):
    student = students(parts)[name].eval()
    twin, classes = copy.deepcopy(student), student.prepare(CLASSES)
    before = student.predict(images(), classes)
    assert torch.equal(twin.predict(images(), classes), before)
    shake(twin.learned())
    assert not torch.equal(twin.predict(images(), classes), before)
    assert torch.equal(student.predict(images(), classes), before)


@pytest.mark.parametrize("name", ["prompts", "lora", "tune", "tune all"])
def test_undefended_is_the_base_unchanged(parts, name):
    teacher = Clip.from_config(configs.Clip(**parts.source))
    student = students(parts)[name]
    classes = teacher.prepare(CLASSES)
    before, fingerprint = teacher.predict(images(), classes), teacher.describe()["base"]["fingerprint"]
    shake(student.learned())
    plain = student.undefended()
    assert type(plain) is Clip and plain.model is teacher.base.model is student.base.model
    assert torch.equal(plain.predict(images(), classes), before)
    assert not torch.equal(student.eval().predict(images(), student.prepare(CLASSES)), before)
    assert student.describe()["base"]["fingerprint"] == fingerprint
    assert teacher.undefended() is teacher


def test_equal_bases_are_loaded_once_and_let_go(parts):
    one, other = (Clip.from_config(configs.Clip(**parts.source)) for _ in range(2))
    assert one.model is other.model
    changed = {name: tensor + 1 if name == "logit_scale" else tensor for name, tensor in one.model.state_dict().items()}
    save_file(changed, parts.weights)
    third = Clip.from_config(configs.Clip(**parts.source))
    assert third.model is not one.model
    assert third.describe()["base"]["fingerprint"] != one.describe()["base"]["fingerprint"]
    from advdistill_clip.loading import _BASES

    gc.collect()  # what earlier tests have left
    count = len(_BASES)
    del one, other
    gc.collect()
    assert len(_BASES) == count - 1


def test_the_base_is_never_in_training(parts):
    for student in students(parts).values():
        student.train()
        assert not any(module.training for module in student.base.model.modules())
        assert student.training


def test_adapters_start_as_the_identity(parts):
    teacher = Clip.from_config(configs.Clip(**parts.source))
    config = configs.Lora(**parts.source, rank=2, targets=["in_proj", "out_proj", "c_fc", "c_proj"])
    student = ClipLora.from_config(config)
    assert torch.equal(student.train().features(images()), teacher.features(images()))
    assert len(student.learned()) == 3 * 4 * 2


@pytest.mark.parametrize("targets", [["in_proj"], ["out_proj", "c_fc"], ["in_proj", "out_proj", "c_fc", "c_proj"]])
def test_merged_adapters_are_plain_weights(parts, targets):
    config = configs.Lora(**parts.source, rank=2, alpha=3, targets=targets, blocks="last-2")
    student = ClipLora.from_config(config).eval()
    shake(student.learned())
    parts.model.load_state_dict(student.merged(), strict=True)
    expected = parts.model.visual(parts.pixels(images())).detach()
    torch.testing.assert_close(student.features(images()), expected, atol=1e-5, rtol=1e-5)
    blocks = {name.removeprefix("visual.lora.transformer.resblocks.")[0] for name in student.learned()}
    assert blocks == {"1", "2"}
    untouched = {"visual.transformer.resblocks.0.attn.in_proj_weight", "text_projection", "visual.proj"}
    assert all(torch.equal(student.merged()[name], student.base.model.state_dict()[name]) for name in untouched)


def test_adapter_dropout_is_for_training_only(parts):
    student = ClipLora.from_config(configs.Lora(**parts.source, rank=4, dropout=0.5))
    shake(student.learned())
    student.train()
    assert not torch.equal(student.features(images()), student.features(images()))
    with student.attacked():
        assert torch.equal(student.features(images()), student.features(images()))
    assert student.training and all(adapter.training for adapter in student.adapters.values())


def test_tuned_towers_bear_open_clips_names(parts):
    visual = students(parts)["tune"].learned()
    assert set(visual) == {f"visual.{name}" for name in parts.model.visual.state_dict()}
    everything = students(parts)["tune all"]
    shake(everything.learned())
    assert set(everything.learned()) == set(parts.model.state_dict())
    written = parts.weights.with_name("tuned.safetensors")
    note = json.dumps(everything.describe())
    save_file({k: v.detach().clone() for k, v in everything.learned().items()}, written, {"advdistill": note})
    teacher = Clip.from_config(configs.Clip(model=str(parts.path), weights=str(written)))
    classes = teacher.prepare(CLASSES)
    assert torch.equal(
        teacher.predict(images(), classes), everything.eval().predict(images(), everything.prepare(CLASSES))
    )
    assert everything.classifier_learns and not students(parts)["tune"].classifier_learns


def test_constants_of_a_tower_do_not_learn(tmp_path):
    parts = Parts(tmp_path, TOWERS["no first norm"])
    for tower in ("visual", "all"):
        student = ClipTune.from_config(configs.Tune(**parts.source, tower=tower))
        before = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
        taking_part = Participant(student, CLASSES, learns=True)
        taking_part.logits(images()).square().sum().backward()
        taking_part.settle()
        torch.optim.SGD(taking_part.trainable.values(), lr=1e-4).step()
        still = {name for name, tensor in student.model.state_dict().items() if torch.equal(tensor, before[name])}
        assert {name for name in still if name.startswith("visual.")} == {"visual.positional_embedding"}
        # What it stores serves as weights all the same.
        save_file({name: tensor.detach() for name, tensor in student.learned().items()}, tmp_path / "tuned.safetensors")
        source = {"model": str(parts.path), "weights": str(tmp_path / "tuned.safetensors")}
        rest = {"text_weights": str(parts.weights)} if tower == "visual" else {}
        again = Clip.from_config(configs.Clip(**source, **rest))
        torch.testing.assert_close(again.features(images()), student.eval().features(images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tower", ["visual", "all"])
@pytest.mark.parametrize("bn", ["frozen", "train"])
def test_batch_norms(tmp_path, bn, tower):
    parts = Parts(tmp_path, TOWERS["resnet"])
    student = ClipTune.from_config(configs.Tune(**parts.source, bn=bn, tower=tower))
    statistics = {name: t.clone() for name, t in student.learned().items() if "running" in name or "tracked" in name}
    assert len(statistics) == 57

    def moved() -> bool:
        return any(not torch.equal(student.learned()[name], before) for name, before in statistics.items())

    x, shifted = images(4, 64), torch.cat([images(1, 64), images(3, 64, seed=9)])
    student.train()
    with student.attacked():
        depends = not torch.allclose(student.features(x)[0], student.features(shifted)[0], atol=1e-6)
        assert depends == (bn == "train")
    assert not moved()
    assert all(m.training == (bn == "train") for m in student.model.visual.modules() if isinstance(m, nn.BatchNorm2d))
    student.features(x).sum().backward()
    assert moved() == (bn == "train")
    assert all(m.track_running_stats for m in student.model.visual.modules() if isinstance(m, nn.BatchNorm2d))
    student.eval()
    torch.testing.assert_close(student.features(x)[0], student.features(shifted)[0], atol=1e-5, rtol=1e-5)


def test_settings_that_cannot_be_are_told(parts):
    with pytest.raises(UsageError, match=r"text.depth is 4, but the tower has 3 blocks"):
        ClipPrompts.from_config(configs.Prompts(**parts.source, text={"depth": 4}, visual={"depth": 1}))
    with pytest.raises(UsageError, match=r"visual.depth is 9"):
        ClipPrompts.from_config(configs.Prompts(**parts.source, text={"depth": 1}))
    with pytest.raises(ValueError, match="nothing would learn"):
        ClipPrompts.from_config(configs.Prompts(**parts.source, text={"tokens": 0}, visual={"tokens": 0}))
    with pytest.raises(UsageError, match="blocks is last-4, but the tower has 3"):
        ClipLora.from_config(configs.Lora(**parts.source, blocks="last-4"))
    for cannot_be in ({"init_seed": -1}, {"init_seed": 2**63}, {"weights_seed": -1}, {"std": float("inf")}):
        with pytest.raises(ValueError, match=next(iter(cannot_be))):
            configs.Prompts(model="x", **cannot_be)
    with pytest.raises(ValueError, match="exactly one"):
        configs.Clip(model="x", templates=["a {} {}"])


def test_building_leaves_the_global_stream_alone(parts):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    once = students(parts)
    Clip.from_config(configs.Clip(model=str(parts.path), weights="random", weights_seed=5))
    assert torch.equal(torch.rand(4), expected)
    again = students(parts)
    for name, student in once.items():
        assert all(
            torch.equal(a, b) for a, b in zip(student.learned().values(), again[name].learned().values(), strict=True)
        )
    other = ClipPrompts.from_config(
        configs.Prompts(**parts.source, text={"depth": 2}, visual={"depth": 3}, init_seed=1)
    )
    assert not torch.equal(other.vision, once["prompts"].vision)


def test_random_weights_are_a_seeded_draw(parts):
    draws = [
        Clip.from_config(configs.Clip(model=str(parts.path), weights="random", weights_seed=seed)) for seed in (0, 0, 1)
    ]
    prints = [draw.describe()["base"]["fingerprint"] for draw in draws]
    assert prints[0] == prints[1] != prints[2]


def test_facts_for_the_checkpoint(tmp_path):
    clip = Clip.from_config(configs.Clip(**Parts(tmp_path, TOWERS["quickgelu"]).source))
    facts = clip.describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["activation"] == "quickgelu"
    assert facts["base"]["config"] == TOWERS["quickgelu"]
    assert facts["preprocessing"]["mean"] == list(open_clip.OPENAI_DATASET_MEAN)
    assert facts["preprocessing"]["size"] in (32, [32, 32])
