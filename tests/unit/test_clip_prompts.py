"""Guarantees pinned here:

- coupled prompts are the linear maps of their sources that MaPLe and FAP make them, block by block; sources and maps
  learn, and they alone are stored; a target without its source is refused when the recipe is read;
- class-specific contexts give each class what it would get as the only one, in packed and padded towers, by name and
  not by place; they are made by `bind`, and fit no other classes;
- what is drawn is drawn once: contexts share no number with visual prompts; prompts start on their tower's device;
- in every text tower that open_clip builds, no learned tokens give open_clip's own features to 1e-5, and learned ones,
  deep ones too, stand where hooks on open_clip's modules put them; a foreign tower is refused;
- pixel prompts act where they should, stay in [0, 1], and start by changing no bit, in every kind of tower;
- parameter counts of the papers' settings (MaPLe, FAP, APT, a frame of 30), derived by hand;
- every kind keeps the contract of models: every prompt gets a gradient, learned tensors come back.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import run_parts
import torch
import torch.nn.functional as F
from advdistill_clip import configs, loading
from advdistill_clip.models import Clip
from advdistill_clip.prompts import ClipPrompts
from advdistill_clip.text import encode_padded, text_prompts_fit
from clip_parts import COCA, RESNET, Parts, images, settings, shake
from pydantic import ValidationError
from torch import Tensor, nn

from advdistill import ClassSet, UsageError, load
from advdistill.testing import check_model
from advdistill.testing.toy import CLASSES as TOY_CLASSES
from advdistill.testing.toy import ToyDataset

NAMES = ("cat", "ox", "a long name", "cab", "Käse", "dog")
CLASSES = ClassSet(NAMES, ("a photo of a {}.",))
ATTENTIONAL = {"output_tokens": True, "attentional_pool": True, "attn_pooler_heads": 2}

TEXT_TOWERS = {
    "clip": settings(),
    "custom text": settings(custom_text=True),
    "short context": settings(text={"context_length": 32}, custom_text=True),
    "eos": settings(text={"pool_type": "eos", "eos_id": 258}),
    "not causal": settings(text={"no_causal_mask": True}, custom_text=True),
    "siglip": settings(text={"no_causal_mask": True, "pool_type": "last", "proj_bias": True}, custom_text=True),
    "clipa": settings(text={"no_causal_mask": True, "pool_type": "last"}),
    "causal last": settings(text={"pool_type": "last"}, custom_text=True),
    "other blocks": settings(text={"qk_norm": True}, custom_text=True),
    "coca": settings(
        vision=ATTENTIONAL, text={"embed_cls": True, "output_tokens": True}, multimodal_cfg=COCA, custom_text=True
    ),
}
KINDS: dict[str, dict[str, Any]] = {
    "text": {"text": {"depth": 2}, "visual": {"tokens": 0}},
    "visual": {"text": {"tokens": 0}, "visual": {"depth": 3}},
    "both": {"text": {"depth": 2}, "visual": {"depth": 3}},
    "maple": {"text": {"depth": 3}, "visual": {"depth": 2}, "coupling": "text-to-visual"},
    "fap": {"text": {"depth": 2}, "visual": {"depth": 3}, "coupling": "visual-to-text"},
    "shallow fap": {"text": {"depth": 1}, "visual": {"depth": 1}, "coupling": "visual-to-text"},
    "per class": {"text": {"depth": 2, "per_class": True}, "visual": {"tokens": 0}},
    "apt": {"text": {"tokens": 5, "depth": 1, "init": "", "per_class": True}, "visual": {"tokens": 0}},
    "frame": {"text": {"tokens": 0}, "visual": {"tokens": 0}, "pixels": {"form": "frame", "width": 3}},
    "additive": {"text": {"depth": 1}, "visual": {"depth": 1}, "pixels": {"form": "additive", "std": 0.01}},
}


def student(parts: Parts, classes: ClassSet | None = CLASSES, **settings_: Any) -> ClipPrompts:
    made = ClipPrompts.from_config(configs.Prompts.model_validate({**parts.source, **settings_}))
    if classes:
        made.bind(classes)
    return made.eval()


@pytest.fixture
def parts(tmp_path) -> Parts:
    return Parts(tmp_path, settings())


# Every kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_the_contract(parts, kind):
    check_model(student(parts, TOY_CLASSES, **KINDS[kind]), TOY_CLASSES)


@pytest.mark.parametrize("kind", KINDS)
def test_every_prompt_learns_and_comes_back(parts, kind):
    one, other = (student(parts, **KINDS[kind]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.learned().values(), other.learned().values(), strict=True))
    one.predict(images(4), one.prepare(CLASSES)).square().sum().backward()
    for name, tensor in one.learned().items():
        # Block by block (class-specific ones class by class too), so that none of them hides behind the others.
        split = tensor.grad.flatten(0, tensor.ndim - 3) if name.endswith("prompts") else tensor.grad[None]
        assert (split.flatten(1).norm(dim=1) > 0).all(), name
    assert {id(p) for p in one.parameters() if p.grad is not None} == {id(p) for p in one.learned().values()}

    shake(one.learned())
    classes = one.prepare(CLASSES)
    before = other.predict(images(), classes)
    other.load_learned({name: tensor.detach().clone() for name, tensor in one.learned().items()})
    assert torch.equal(one.predict(images(), classes), other.predict(images(), classes))
    assert not torch.equal(before, other.predict(images(), classes))


@pytest.mark.parametrize("kind", KINDS)
def test_class_order_moves_no_logit(parts, kind):
    model = student(parts, **KINDS[kind])
    shake(model.learned())
    order = [4, 2, 0, 5, 1, 3]
    permuted = ClassSet(tuple(NAMES[i] for i in order), CLASSES.templates)
    ours, theirs = (model.predict(images(), model.prepare(classes)) for classes in (CLASSES, permuted))
    torch.testing.assert_close(theirs, ours[:, order], atol=2e-5, rtol=0)
    features = model.classifier(model.prepare(CLASSES))
    rows = torch.tensor([5, 0, 2, 0])
    torch.testing.assert_close(model.classifier(model.prepare(CLASSES), rows), features[rows], atol=2e-6, rtol=0)
    some = model.classifier(model.prepare(permuted), rows)
    torch.testing.assert_close(some, features[order][rows], atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_other_precisions(parts, kind):
    model = student(parts, **KINDS[kind])
    shake(model.learned())
    exact = model.predict(images(), model.prepare(CLASSES))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.predict(images(), model.prepare(CLASSES))
    assert rough.dtype == torch.float32 and (rough - exact).abs().max() < 0.05 * exact.abs().max()
    double = deepcopy(model).double()
    finer = double.predict(images().double(), double.prepare(CLASSES))
    assert finer.dtype == torch.float64
    torch.testing.assert_close(finer.float(), exact, atol=1e-4, rtol=1e-4)


# Coupled prompts


def tokens_of(model: ClipPrompts, parts: Parts, text: list[Tensor], visual: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Image and class features of an uncoupled student with these prompts."""
    plain = student(parts, text={"depth": len(text)}, visual={"depth": len(visual)})
    with torch.no_grad():
        plain.load_learned({"text.prompts": torch.stack(text), "visual.prompts": torch.stack(visual)})
        return plain.features(images()), plain.classifier(plain.prepare(CLASSES))


def test_maple_maps_each_blocks_text_prompts_to_visual_ones(parts):
    model = student(parts, **KINDS["maple"])
    shake(model.learned())
    own = {name: tensor.detach() for name, tensor in model.learned().items()}
    assert own.keys() == {"text.prompts", *(f"coupling.{i}.{p}" for i in (0, 1) for p in ("weight", "bias"))}
    text = list(own["text.prompts"])
    visual = [text[i] @ own[f"coupling.{i}.weight"].T + own[f"coupling.{i}.bias"] for i in (0, 1)]
    features, classifier = tokens_of(model, parts, text, visual)
    torch.testing.assert_close(model.features(images()).detach(), features, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.classifier(model.prepare(CLASSES)).detach(), classifier, atol=1e-5, rtol=0)


def test_fap_maps_deep_visual_prompts_to_text_and_the_first_back(parts):
    model = student(parts, **KINDS["fap"])
    shake(model.learned())
    own = {name: tensor.detach() for name, tensor in model.learned().items()}
    assert {name: len(own[name]) for name in ("text.prompts", "visual.prompts")} == {
        "text.prompts": 1,
        "visual.prompts": 2,
    }
    first, deep = own["text.prompts"][0], own["visual.prompts"]
    visual = [first @ own["coupling.0.weight"].T + own["coupling.0.bias"], *deep]
    text = [first, deep[0] @ own["coupling.1.weight"].T + own["coupling.1.bias"]]
    features, classifier = tokens_of(model, parts, text, visual)
    torch.testing.assert_close(model.features(images()).detach(), features, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.classifier(model.prepare(CLASSES)).detach(), classifier, atol=1e-5, rtol=0)


def test_maps_start_as_in_the_public_code(parts):
    model = student(parts, text={"depth": 3}, visual={"depth": 3}, coupling="text-to-visual")
    to_visual, *deep = model.projections
    assert torch.equal(deep[0].weight, deep[1].weight) and not torch.equal(to_visual.weight, deep[0].weight)
    assert deep[0].weight.abs().max() <= 24**-0.5 and deep[0].weight.abs().max() > 0.9 * 24**-0.5
    plain = student(parts, text={"depth": 3}, visual={"tokens": 0})
    assert torch.equal(model.text, plain.text)  # the phrase, then the same draw


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text": {"tokens": 0}, "coupling": "text-to-visual"}, r"text.tokens is 0 and visual.tokens 2"),
        ({"visual": {"tokens": 0}, "coupling": "visual-to-text"}, r"text.tokens is 2 and visual.tokens 0"),
        ({"text": {"tokens": 4}, "coupling": "text-to-visual"}, r"text.tokens is 4 and visual.tokens 2"),
        ({"text": {"depth": 4}, "coupling": "text-to-visual"}, r"beyond text.depth 4: lower visual.depth, which is 9"),
        ({"visual": {"depth": 4}, "coupling": "visual-to-text"}, r"beyond visual.depth 4: lower text.depth"),
        ({"text": {"per_class": True}, "coupling": "text-to-visual"}, r"set text.per_class: false"),
        ({"coupling": "both"}, "coupling"),
        ({"text": {"tokens": 0}, "visual": {"tokens": 0}}, "nothing would learn"),
        ({"text": {"tokens": 0, "per_class": True}}, r"text.tokens is 0"),
        ({"pixels": {"form": "circle"}}, r"pixels.form"),
    ],
)
def test_settings_that_cannot_be_are_told_with_the_recipe(changes, told):
    with pytest.raises(ValidationError, match=told) as caught:
        configs.Prompts.model_validate({"model": "ViT-B-32", **changes})
    place = caught.value.errors()[0]["loc"]
    assert "coupling" not in changes or place[:1] == ("coupling",)


# Class-specific contexts


@pytest.mark.parametrize("init", ["a photo of a", ""])
@pytest.mark.parametrize("tower", ["clip", "custom text", "not causal", "coca"])
def test_each_class_gets_what_it_would_get_alone(tmp_path, tower, init):
    parts = Parts(tmp_path, TEXT_TOWERS[tower])
    text = {"tokens": 3, "depth": 1 if tower == "coca" else 2, "init": init}
    model = student(parts, text={**text, "per_class": True}, visual={"tokens": 0})
    assert (model.prepare(CLASSES)[0].pack is not None) == (tower in ("clip", "custom text"))
    shake(model.learned())
    features = model.classifier(model.prepare(CLASSES))
    shared = student(parts, text=text, visual={"tokens": 0})
    for i in range(len(NAMES)):
        shared.load_learned({"text.prompts": model.learned()["text.prompts"][:, i]})
        everybody = shared.classifier(shared.prepare(CLASSES))
        torch.testing.assert_close(features[i], everybody[i], atol=2e-6, rtol=0)


def test_many_classes_with_contexts_of_their_own_in_a_padded_tower(tmp_path):
    parts = Parts(tmp_path, TEXT_TOWERS["not causal"])
    many = ClassSet([f"no {i}" for i in range(131)], ("{}",))
    model = student(parts, many, text={"tokens": 1, "depth": 1, "init": "", "per_class": True}, visual={"tokens": 0})
    shake(model.learned())
    features, last = model.classifier(model.prepare(many)), torch.tensor([0, 127, 128, 130])
    torch.testing.assert_close(model.classifier(model.prepare(many), last), features[last], atol=2e-6, rtol=0)


def test_packed_and_padded_agree_forward_and_backward(parts):
    for kind in ("per class", "apt", "fap", "maple"):
        model = student(parts, **KINDS[kind])
        shake(model.learned())
        sentences = model.prepare(CLASSES)[0]
        context, tokenizer = model.base.context, model.base.tokenizer
        rows = model.place_prompts(
            tokenizer([CLASSES.templates[0].replace("{}", name) for name in NAMES]), "a photo {}"
        )
        ids = torch.tensor([[*row, *[0] * (context - len(row))] for row in rows])
        pull = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
        learned = [p for p in model.learned().values() if p is not model.vision]
        gradients = []
        for features in (
            sentences.encode(model.model, model.text_tokens, None),
            encode_padded(model.model, ids, model.text_tokens),
        ):
            gradients.append(torch.autograd.grad((features * pull).sum(), learned, allow_unused=True))
            gradients.append((features,))
        for ours, theirs in zip(gradients[0] + gradients[1], gradients[2] + gradients[3], strict=True):
            if ours is not None or theirs is not None:
                assert (ours - theirs).norm() <= 1e-5 * theirs.norm(), kind


def test_contexts_start_at_the_phrase_and_are_drawn_apart(parts):
    words = student(parts, text={"tokens": 4, "depth": 1, "per_class": True}, visual={"tokens": 0})
    teacher = Clip.from_config(configs.Clip(**parts.source))
    torch.testing.assert_close(
        words.classifier(words.prepare(CLASSES)).detach(),
        teacher.classifier(teacher.prepare(CLASSES)),
        atol=2e-6,
        rtol=0,
    )
    drawn = student(parts, text={"tokens": 4, "depth": 1, "init": "", "per_class": True}, visual={"tokens": 0})
    prompts = drawn.learned()["text.prompts"]
    assert prompts.shape == (1, 6, 4, 24) and prompts.std().item() == pytest.approx(0.02, rel=0.2)
    assert not torch.equal(prompts[:, 0], prompts[:, 1])
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    student(parts, text={"depth": 1, "per_class": True}, visual={"depth": 1})
    assert torch.equal(torch.rand(1), expected)


def test_contexts_and_visual_prompts_are_draws_apart(parts):
    text = {"tokens": 2, "depth": 2, "init": "", "per_class": True}
    model = student(parts, text=text, visual={"tokens": 2, "depth": 3})
    assert not set(model.text.flatten().tolist()) & set(model.vision.flatten().tolist())
    other = student(parts, text=text, visual={"tokens": 2, "depth": 3}, init_seed=1)
    assert not set(model.text.flatten().tolist()) & set(other.text.flatten().tolist())


@pytest.mark.parametrize("kind", ["both", "per class", "maple", "fap"])
@pytest.mark.parametrize("init", ["a photo of a", ""])
def test_prompts_stand_where_their_towers_do(tmp_path, kind, init):
    base = student(Parts(tmp_path, settings(custom_text=True)), text={"depth": 1}, visual={"depth": 1}).base
    for tower, other in (("text", "visual"), ("visual", "text")):
        parted = deepcopy(base)
        getattr(parted.model, tower).to("meta")
        source = {"model": "x", **KINDS[kind], "text": {**KINDS[kind]["text"], "init": init}}
        model = ClipPrompts(parted, configs.Prompts.model_validate(source))
        model.bind(CLASSES)
        learned = model.learned()
        assert all(learned[f"{there}.prompts"].is_meta == (there == tower) for there in (tower, other)
                   if f"{there}.prompts" in learned)  # fmt: skip


def test_contexts_are_bound_to_their_classes(parts):
    model = student(parts, None, text={"depth": 1, "per_class": True}, visual={"tokens": 0})
    with pytest.raises(UsageError, match="not made yet"):
        model.prepare(CLASSES)
    model.bind(CLASSES)
    kept = model.learned()["text.prompts"]
    model.bind(ClassSet(NAMES[::-1], ("{}",)))
    model.bind(ClassSet(NAMES[2:4], ("{}",)))
    assert model.learned()["text.prompts"] is kept
    with pytest.raises(UsageError, match=r"learned for other classes: it has none for emu, elk") as caught:
        model.bind(ClassSet(("cat", "emu", "elk"), ("{}",)))
    assert "text.per_class: false" in caught.value.hint
    with pytest.raises(UsageError, match="learned for other classes"):
        model.prepare(ClassSet(("emu", "cat"), ("a photo of a {}",)))
    unified = student(parts, text={"depth": 1}, visual={"tokens": 0})
    unified.bind(ClassSet(("emu", "elk"), ("{}",)))


def test_a_run_with_contexts_of_each_class(parts, tmp_path):
    block = {"use": "clip-prompts", **parts.source, **KINDS["apt"]}
    (*_, row) = run_parts.train(run_parts.recipe(tmp_path, student=block, attack={"use": "pgd", "steps": 2}))
    file, split = tmp_path / "run" / "last.safetensors", ToyDataset(None).split("test")
    stored = run_parts.tensors(tmp_path / "run")["text.prompts"]
    assert stored.shape == (1, 6, 5, 24) and row.subject == "student"
    x = torch.stack([split.load(i) for i in row.columns["clean"].outcome.indices.tolist()]).float()
    logits = load(file)(x)
    labels = split.labels[row.columns["clean"].outcome.indices]
    assert torch.equal(logits.argmax(1) == labels, row.columns["clean"].outcome.right)
    pair = ClassSet(("fox", "bee"), TOY_CLASSES.templates)
    torch.testing.assert_close(load(file, classes=pair)(x), logits[:, [5, 1]], atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="learned for other classes"):
        load(file, classes=ClassSet(("emu", "elk"), TOY_CLASSES.templates))


# Text towers


class NoStart:
    """Bytes as SigLIP's tokenizers do it: nothing in front, and nothing (or an end token) behind."""

    start, pad = 0, 0

    def __init__(self, end: int = 0) -> None:
        self.end = end

    def __call__(self, sentences: list[str]) -> list[list[int]]:
        return [[*(byte + 1 for byte in sentence.encode()), *[258] * self.end] for sentence in sentences]


def hooked(parts: Parts, ids: Tensor, prompts: Tensor, start: int) -> Tensor:
    """The independent rendering: open_clip's own forward, hooks overwriting tokens at the input and in blocks."""
    root = getattr(parts.model, "text", parts.model)
    place = slice(start, start + prompts.shape[1])

    def overwritten(x: Tensor, tokens: Tensor) -> Tensor:
        x = x.clone()
        x[:, place] = tokens
        return x

    handles = [root.token_embedding.register_forward_hook(lambda m, i, out: overwritten(out, prompts[0]))]
    for i, block in enumerate(root.transformer.resblocks):
        if 0 < i < len(prompts):
            handles.append(
                block.register_forward_pre_hook(
                    lambda m, inputs, i=i: (overwritten(inputs[0], prompts[i]), *inputs[1:])
                )
            )
    out = parts.model.encode_text(ids) if root is parts.model else root(ids)
    for handle in handles:
        handle.remove()
    return F.normalize(out[0] if isinstance(out, tuple) else out, dim=-1)


@pytest.mark.parametrize("tower", [*TEXT_TOWERS, "pad mask", "coca, mended mask"])
def test_text_prompts_in_every_tower(tmp_path, monkeypatch, tower):
    config = TEXT_TOWERS.get(tower) or TEXT_TOWERS["not causal" if tower == "pad mask" else "coca"]
    parts = Parts(tmp_path, config)
    start = 0 if tower == "siglip" else 1
    if tower == "siglip":
        monkeypatch.setattr(loading, "tokenizer_for", lambda *_: NoStart())
    model = student(parts, text={"tokens": 3, "depth": 3, "init": ""}, visual={"tokens": 0})
    for each in (model.model, parts.model):
        if tower == "pad mask":
            each.text.use_pad_mask = True
        if tower == "coca, mended mask":
            each.text.correct_cls_mask = True
    tokenizer, context = model.base.tokenizer, model.base.context

    def padded(sentences: list[str], fill: list[int]) -> Tensor:
        rows = [[*row[:start], *fill, *row[start:]] for row in tokenizer(sentences)]
        return torch.tensor([[*row, *[0] * (context - len(row))] for row in rows])

    with torch.no_grad():
        nothing = torch.zeros(1, 0, 24)
        ids = padded(["of " + name for name in NAMES], [])
        ours, theirs = encode_padded(model.model, ids, nothing, start), encode_padded(parts.model, ids)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)

    shake(model.learned())
    prompts = model.learned()["text.prompts"]
    features = model.classifier(model.prepare(ClassSet(NAMES, ("of {}",))))
    expected = hooked(parts, padded(["of " + name for name in NAMES], [7, 7, 7]), prompts, start)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    pull = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    (got,), (wanted,) = (torch.autograd.grad((x * pull).sum(), prompts) for x in (features, expected))
    assert (got - wanted).norm() <= 1e-5 * wanted.norm()
    assert (got.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("end", [0, 1])
def test_a_phrase_without_start_token(tmp_path, monkeypatch, end):
    parts = Parts(tmp_path, TEXT_TOWERS["siglip"])
    monkeypatch.setattr(loading, "tokenizer_for", lambda *_: NoStart(end))
    text = {"tokens": 4, "depth": 1, "init": "of a"}
    model = student(parts, text=text, visual={"tokens": 0})
    assert torch.equal(model.text[0], model.model.text.token_embedding(torch.tensor([b + 1 for b in b"of a"])))
    teacher = Clip.from_config(configs.Clip(**parts.source))
    ours, theirs = (m.classifier(m.prepare(ClassSet(NAMES, ("of a {}",)))).detach() for m in (model, teacher))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="has 4 tokens, fewer than the 5"):
        student(parts, text={**text, "tokens": 5}, visual={"tokens": 0})


def test_foreign_text_towers_refuse(tmp_path):
    parts = Parts(tmp_path, TEXT_TOWERS["custom text"])

    class HFTextEncoder(nn.Module):
        context_length = 40

        def forward(self, ids: Tensor) -> Tensor:
            return ids[:, :16].float()

    base = loading.load_base(configs.Clip(**parts.source))
    model = deepcopy(base.model)
    model.text = HFTextEncoder()
    foreign = replace(base, model=model)
    with pytest.raises(UsageError, match="kind HFTextEncoder is not open_clip's own") as caught:
        ClipPrompts(foreign, configs.Prompts(**parts.source, text={"depth": 1}, visual={"depth": 1}))
    assert "text.tokens: 0" in caught.value.hint
    plain = Clip(foreign, configs.Clip(**parts.source))
    assert plain.classifier(plain.prepare(CLASSES)).shape == (6, 16)
    visual_only = ClipPrompts(foreign, configs.Prompts(**parts.source, text={"tokens": 0}, visual={"depth": 1}))
    assert list(visual_only.learned()) == ["visual.prompts"]
    assert text_prompts_fit(base.model) == (24, 3)


def test_what_does_not_fit_the_context_is_told(tmp_path):
    parts = Parts(tmp_path, TEXT_TOWERS["coca"])
    model = student(parts, None, text={"tokens": 30, "depth": 1, "init": ""}, visual={"tokens": 0})
    model.prepare(ClassSet(("x" * 8, "y"), ("{}",)))
    with pytest.raises(UsageError, match=r"'xxxxxxxxx' takes 41 tokens; .* reads 40"):
        model.prepare(ClassSet(("x" * 9, "y"), ("{}",)))
    with pytest.raises(UsageError, match=r"text.depth is 4, but the tower has 3 blocks"):
        student(parts, text={"depth": 4}, visual={"tokens": 0})


# Pixels

PIXELS = {"text": {"tokens": 0}, "visual": {"tokens": 0}}
SEEN = {
    "vit": settings(),
    "resnet": settings(vision=RESNET),
    "coca": settings(vision=ATTENTIONAL, text={"output_tokens": True}, multimodal_cfg=COCA, custom_text=True),
    "convnext": settings(
        vision={"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 64}
    ),
}


@pytest.mark.parametrize("form", ["frame", "additive"])
@pytest.mark.parametrize("tower", SEEN)
def test_pixel_prompts_work_with_every_tower(tmp_path, tower, form):
    parts = Parts(tmp_path, SEEN[tower])
    model = student(parts, **PIXELS, pixels={"form": form, "width": 5})
    base = Clip.from_config(configs.Clip(**parts.source))
    x = images(3, model.image_size)
    x[0, :, :8] = 0
    x[1, :, :8] = 1
    assert torch.equal(model.features(x), base.features(x))
    small = images(2, 20)
    assert torch.equal(model.features(small), base.features(small))

    shake(model.learned(), 0.5)
    side = model.image_size
    prompt = torch.zeros(3, side, side)
    border = torch.ones(side, side, dtype=torch.bool)
    if form == "frame":
        border[5:-5, 5:-5] = False
    prompt[:, border] = model.learned()["pixels"].detach()
    torch.testing.assert_close(model.features(x), base.features((x + prompt).clamp(0, 1)), atol=1e-5, rtol=1e-5)
    assert model.learned().keys() == {"pixels"} and not model.classifier_learns
    assert model.learned()["pixels"].shape == (3, border.sum())


def test_pixels_that_are_black_learn_too(parts):
    model = student(parts, **PIXELS, pixels={"form": "additive"})
    model.features(torch.zeros(1, 3, 32, 32)).square().sum().backward()
    assert (model.learned()["pixels"].grad != 0).float().mean() > 0.99


def test_a_frame_must_leave_something(parts):
    student(parts, **PIXELS, pixels={"form": "frame", "width": 15})
    with pytest.raises(UsageError, match=r"pixels\.width 16 leaves nothing of 32 x 32") as caught:
        student(parts, **PIXELS, pixels={"form": "frame", "width": 16})
    assert "additive" in caught.value.hint


def test_pixels_are_drawn_where_asked(parts):
    drawn = student(parts, **PIXELS, pixels={"form": "additive", "std": 0.1}).learned()["pixels"]
    assert drawn.std().item() == pytest.approx(0.1, rel=0.1)


# Counts


@pytest.mark.parametrize(
    ("model", "settings_", "count"),
    [
        # Nine blocks, two tokens of 512, and nine maps 512 -> 768 with their biases.
        ("ViT-B-16", {"coupling": "text-to-visual"}, 9 * 2 * 512 + 9 * (512 * 768 + 768)),
        # Two tokens of 512 and a map 512 -> 768; eight blocks of two tokens of 768 and eight maps 768 -> 512.
        ("ViT-B-32", {"coupling": "visual-to-text"}, 2 * 512 + 512 * 768 + 768 + 8 * (2 * 768 + 768 * 512 + 512)),
        ("ViT-L-14", {"coupling": "text-to-visual"}, 9 * 2 * 768 + 9 * (768 * 1024 + 1024)),
        ("ViT-B-32", {"text": {"tokens": 16, "depth": 1, "init": ""}, "visual": {"tokens": 0}}, 8_192),
        ("RN50", {**PIXELS, "pixels": {"form": "frame"}}, 69_840),
        ("ViT-B-32", {**PIXELS, "pixels": {"form": "additive"}}, 150_528),
    ],
)
def test_full_size_counts(model, settings_, count):
    config = configs.Prompts.model_validate({"model": model, "weights": "openai", **settings_})
    made = ClipPrompts.from_config(config, weights=False)
    assert made.device.type == "meta"
    assert sum(p.numel() for p in made.learned().values()) == count
    assert sum(p.numel() for p in made.parameters() if p.requires_grad) == count


def test_maple_has_the_size_it_is_known_for():
    made = ClipPrompts.from_config(configs.Prompts(model="ViT-B-16", coupling="text-to-visual"), weights=False)
    assert sum(p.numel() for p in made.learned().values()) == 3_555_072  # 3.55 M in the paper


@pytest.mark.parametrize("tower", ["clip", "not causal", "coca"])
def test_plans_need_no_weights(tmp_path, tower):
    source = Parts(tmp_path, TEXT_TOWERS[tower]).source
    settings_ = {"text": {"depth": 2}, "visual": {"tokens": 0}, "pixels": {"form": "frame", "width": 2}}
    made = ClipPrompts.from_config(configs.Prompts.model_validate({**source, **settings_}), weights=False)
    assert made.predict(torch.rand(2, 3, 40, 40, device="meta"), made.prepare(CLASSES)).shape == (2, 6)


def test_class_specific_contexts_at_full_size():
    text = {"tokens": 16, "depth": 1, "init": "", "per_class": True}
    config = configs.Prompts.model_validate({"model": "ViT-B-32", "text": text, "visual": {"tokens": 0}})
    made = ClipPrompts.from_config(config, weights=False)
    made.bind(CLASSES)
    assert made.learned()["text.prompts"].shape == (1, 6, 16, 512) and made.learned()["text.prompts"].is_meta
    logits = made.predict(torch.rand(2, 3, 224, 224, device="meta"), made.prepare(CLASSES))
    assert logits.shape == (2, 6)
