"""Guarantees pinned here:

- packed class features are those of open_clip's `encode_text` over whole rows, in every kind of causal tower;
- learned text tokens stand where the public protocol puts them (in place of the sentence's first tokens, or in front of
  it; deep ones overwrite them), forward and backward, against an independent rendering over whole rows;
- what all sentences begin with is encoded once, and nothing is padded;
- no gradient is computed where nothing upstream learns;
- `rows` selects classes, and of what was packed for them no more is kept than two passes over all need; several
  templates are averaged as unit features; a model's own replace the data set's, and who loads it may give others;
- towers that are not causal, or not open_clip's own, take the plain way with the same features;
- a sentence that does not fit, or a template whose name would be overwritten, is an error that says so.
"""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from advdistill_clip import configs, text
from advdistill_clip.moapt import ClipMoapt
from advdistill_clip.models import Clip
from advdistill_clip.prompts import ClipPrompts
from advdistill_clip.tokens import ByteTokenizer
from clip_parts import COCA, TEXT, Parts, settings, shake
from torch import Tensor

from advdistill import ClassSet, DataError, UsageError, VisionLanguageModel
from advdistill.engine.participant import Participant

NAMES = ("cat", "ox", "a long name", "cab", "Käse", "dog")
TEMPLATE = "a photo of a {}."

CAUSAL = {
    "gelu": settings(),
    "quickgelu": settings(quick_gelu=True),
    "custom text": settings(custom_text=True),
    "eos pooling": settings(text={"pool_type": "eos", "eos_id": 258}, custom_text=True),
    "layer scale": settings(text={"ls_init_value": 0.1}),
    "no projection": settings(text={"proj_type": "none", "width": 16}, custom_text=True),
    "linear projection": settings(text={"proj_bias": True}, custom_text=True),
    "byte pairs": settings(text={"vocab_size": 49408, "hf_tokenizer_name": None, "context_length": 77}),
}
PLAIN = {
    "not causal": settings(text={"no_causal_mask": True}, custom_text=True),
    "last token": settings(text={"pool_type": "last"}, custom_text=True),
    "first token": settings(text={"pool_type": "first", "no_causal_mask": True}, custom_text=True),
    "other blocks": settings(text={"qk_norm": True}),
    "coca": settings(
        vision={"output_tokens": True, "attentional_pool": True, "attn_pooler_heads": 2},
        text={"embed_cls": True, "output_tokens": True},
        multimodal_cfg=COCA,
        custom_text=True,
    ),
}


def padded(clip: Clip, sentences: list[str]) -> Tensor:
    tokenizer, length = clip.base.tokenizer, clip.base.context
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in tokenizer(sentences)])


def open_clip_features(parts: Parts, ids: Tensor) -> Tensor:
    tower = getattr(parts.model, "text", None)
    out = parts.model.encode_text(ids) if tower is None else tower(ids)
    return F.normalize(out[0] if isinstance(out, tuple) else out, dim=-1).detach()


@pytest.mark.parametrize("kind", CAUSAL)
def test_packed_features_are_open_clips(tmp_path, kind):
    parts = Parts(tmp_path, CAUSAL[kind])
    clip = Clip.from_config(configs.Clip(**parts.source))
    classes = clip.prepare(ClassSet(NAMES, (TEMPLATE,)))
    assert classes[0].pack is not None
    expected = open_clip_features(parts, padded(clip, [TEMPLATE.format(name) for name in NAMES]))
    torch.testing.assert_close(clip.classifier(classes), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", PLAIN)
def test_other_towers_take_the_plain_way(tmp_path, kind):
    parts = Parts(tmp_path, PLAIN[kind])
    clip = Clip.from_config(configs.Clip(**parts.source))
    classes = clip.prepare(ClassSet(NAMES, (TEMPLATE,)))
    assert classes[0].pack is None
    expected = open_clip_features(parts, padded(clip, [TEMPLATE.format(name) for name in NAMES]))
    torch.testing.assert_close(clip.classifier(classes), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(clip.classifier(classes, torch.tensor([4, 1])), expected[[4, 1]], atol=2e-6, rtol=0)


def whole_rows(parts: Parts, rows: list[list[int]], prompts: Tensor, start: int = 1) -> Tensor:
    """The independent rendering: rows of ids with zeros for learned tokens, every row at full length in every block."""
    root = getattr(parts.model, "text", parts.model)
    pool = getattr(root, "pool_type", None) or root.text_pool_type
    length, n = root.context_length, prompts.shape[1]
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    x = root.token_embedding(ids).detach()
    x[:, start : start + n] = 0
    hole = torch.zeros(length, 1)
    hole[start : start + n] = 1
    spread = F.pad(prompts, (0, 0, start, length - start - n))
    x = x + spread[0] + root.positional_embedding.detach()
    for i, block in enumerate(root.transformer.resblocks):
        if 0 < i < len(prompts):
            x = x * (1 - hole) + spread[i]
        x = block(x, attn_mask=root.attn_mask)
    x = root.ln_final(x)
    x = x[:, -1] if pool == "last" else x[torch.arange(len(rows)), [len(row) - 1 for row in rows]]
    return F.normalize(x @ root.text_projection, dim=-1)


@pytest.mark.parametrize("init", ["a photo of a", ""])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kind", ["gelu", "custom text", "not causal", "last token"])
def test_learned_tokens_stand_where_the_protocol_puts_them(tmp_path, kind, depth, init):
    parts = Parts(tmp_path, (CAUSAL | PLAIN)[kind])
    n = 3
    student = ClipPrompts.from_config(
        configs.Prompts(**parts.source, text={"tokens": n, "depth": depth, "init": init}, visual={"tokens": 0})
    )
    shake(student.learned())
    prompts = student.learned()["text.prompts"]
    classes = student.prepare(ClassSet(NAMES, (TEMPLATE,)))
    features = student.classifier(classes)

    rows = [[257, *(byte + 1 for byte in TEMPLATE.format(name).encode()), 258] for name in NAMES]
    taken = n if init else 0
    rows = [row[:1] + [0] * n + row[1 + taken :] for row in rows]
    expected = whole_rows(parts, rows, prompts)
    torch.testing.assert_close(features, expected, atol=2e-6, rtol=0)

    pull = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    (ours,) = torch.autograd.grad((features * pull).sum(), prompts)
    (theirs,) = torch.autograd.grad((expected * pull).sum(), prompts)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    assert (ours.flatten(1).norm(dim=1) > 0).all()


def test_a_phrase_is_the_starting_point(tmp_path):
    parts = Parts(tmp_path, CAUSAL["byte pairs"])
    config = configs.Prompts(**parts.source, text={"tokens": 2, "depth": 3}, visual={"tokens": 0})
    student, teacher = ClipPrompts.from_config(config), Clip.from_config(configs.Clip(**parts.source))
    classes = ClassSet(NAMES, (TEMPLATE,))
    with torch.no_grad():
        words = [student.base.tokenizer([word])[0][1] for word in ("a", "photo")]
        torch.testing.assert_close(student.text[0], parts.model.token_embedding.weight[words])
        assert student.text[1:].std().item() == pytest.approx(0.02, rel=0.5)
        # With the shallow tokens alone the sentence is still the one it was.
        student.text = torch.nn.Parameter(student.text[:1])
        ours, theirs = student.classifier(student.prepare(classes)), teacher.classifier(teacher.prepare(classes))
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_shared_beginnings_are_encoded_once_and_nothing_is_padded(tmp_path):
    parts = Parts(tmp_path, settings())
    clip = Clip.from_config(configs.Clip(**parts.source))
    names = ("cat", "cab", "cable", "catnip")
    pack = clip.prepare(ClassSet(names, ("the {}!",)))[0].pack
    beginning = ByteTokenizer()(["the ca"])[0][:-1]
    assert pack.prefix.tolist() == beginning
    assert len(pack.own) == sum(len(f"the {name}!") + 2 - len(beginning) for name in names)
    assert [count for count, _ in pack.groups] == [2, 1, 1]


def test_nothing_upstream_of_the_prompts_is_differentiated(tmp_path, monkeypatch):
    parts = Parts(tmp_path, settings())
    student = ClipPrompts.from_config(
        configs.Prompts(**parts.source, text={"tokens": 2, "depth": 2}, visual={"tokens": 0})
    )
    seen = []
    original = text.queries_keys_values
    monkeypatch.setattr(
        text, "queries_keys_values", lambda block, x, _: seen.append(x.requires_grad) or original(block, x)
    )
    student.classifier(student.prepare(ClassSet(NAMES, (TEMPLATE,))))
    assert seen == [True, False, True, True, True, True]  # prefix, own; block after block


def test_rows_select_classes(tmp_path):
    parts = Parts(tmp_path, settings())
    student = ClipPrompts.from_config(configs.Prompts(**parts.source, text={"depth": 2}, visual={"tokens": 0}))
    classes = student.prepare(ClassSet(NAMES, (TEMPLATE, "a photo of {}")))
    everything = student.classifier(classes)
    rows = torch.tensor([5, 0, 2, 0])
    torch.testing.assert_close(student.classifier(classes, rows), everything[rows], atol=2e-6, rtol=0)
    pull = torch.randn(everything.shape, generator=torch.Generator().manual_seed(1))
    (whole,) = torch.autograd.grad((everything * pull).sum(), student.text)
    halves = [torch.tensor([0, 2, 4]), torch.tensor([5, 3, 1])]
    parted = sum((student.classifier(classes, half) * pull[half]).sum() for half in halves)
    (sum_of_parts,) = torch.autograd.grad(parted, student.text)
    assert (whole - sum_of_parts).norm() <= 1e-5 * whole.norm()


def test_packs_of_a_pass_are_kept_and_others_go(tmp_path):
    clip = Clip.from_config(configs.Clip(**Parts(tmp_path, settings()).source))
    classes = clip.prepare(ClassSet(NAMES, (TEMPLATE,)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        clip.classifier(classes, torch.randperm(len(NAMES), generator=generator)[:3])
    chunks = torch.arange(len(NAMES)).split(1)
    for chunk in chunks:
        clip.classifier(classes, chunk)
    held = list(classes[0]._packs.values())
    assert sum(len(pack.ends) for pack in held) <= 2 * len(NAMES)
    for chunk in chunks:
        clip.classifier(classes, chunk)
    assert all(map(operator.is_, held, classes[0]._packs.values()))


def test_templates_are_averaged_as_unit_features(tmp_path):
    parts = Parts(tmp_path, settings())
    clip = Clip.from_config(configs.Clip(**parts.source))
    templates = (TEMPLATE, "{}", "one {} here")
    singles = [
        open_clip_features(parts, padded(clip, [template.format(name) for name in NAMES])) for template in templates
    ]
    ours = clip.classifier(clip.prepare(ClassSet(NAMES, templates)))
    torch.testing.assert_close(ours, F.normalize(sum(singles), dim=-1), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("build", "settings_"), [(Clip, configs.Clip), (ClipMoapt, configs.Moapt)])
def test_templates_of_its_own_are_the_hosts_to_replace(tmp_path, build, settings_):
    source, classes = Parts(tmp_path, settings()).source, ClassSet(NAMES, (TEMPLATE,))
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def logits(model: VisionLanguageModel) -> Tensor:
        return Participant(model, classes).logits(x).detach()

    plain, own = build.from_config(settings_(**source)), build.from_config(settings_(**source, templates=["{}"]))
    bare = plain.predict(x, plain.prepare(ClassSet(NAMES, ("{}",)))).detach()
    assert torch.equal(logits(own), bare) and not torch.equal(logits(plain), bare)
    own.templates = (TEMPLATE,)  # as one who loads it may
    assert torch.equal(logits(own), logits(plain))


def test_a_sentence_that_does_not_fit_is_named(tmp_path):
    parts = Parts(tmp_path, settings())
    clip = Clip.from_config(configs.Clip(**parts.source))
    room = TEXT["context_length"] - 2
    clip.prepare(ClassSet(("x" * room, "y"), ("{}",)))
    with pytest.raises(UsageError, match=f"'{'x' * (room + 1)}' takes {room + 3} tokens"):
        clip.prepare(ClassSet(("x" * (room + 1), "y"), ("{}",)))
    student = ClipPrompts.from_config(
        configs.Prompts(**parts.source, text={"depth": 1, "init": ""}, visual={"tokens": 0})
    )
    with pytest.raises(UsageError, match="takes"):
        student.prepare(ClassSet(("x" * room, "y"), ("{}",)))


def test_learned_tokens_never_take_the_name(tmp_path):
    parts = Parts(tmp_path, settings())
    student = ClipPrompts.from_config(configs.Prompts(**parts.source, text={"depth": 1}, visual={"tokens": 0}))
    with pytest.raises(UsageError, match="has 0 tokens before the name"):
        student.prepare(ClassSet(NAMES, ("{} seen",)))
    long = configs.Prompts(**parts.source, text={"tokens": 5, "depth": 1, "init": "four"}, visual={"tokens": 0})
    with pytest.raises(UsageError, match="'four' has 4 tokens"):
        ClipPrompts.from_config(long)


def test_a_base_that_computes_otherwise_is_refused(tmp_path, monkeypatch):
    parts = Parts(tmp_path, settings())
    monkeypatch.setattr(text, "finish", lambda block, x, mixed, adapters: x + mixed)
    with pytest.raises(DataError, match="text features differ"):
        Clip.from_config(configs.Clip(**parts.source))
