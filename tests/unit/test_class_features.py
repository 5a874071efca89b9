"""What is pinned here:

- class features in chunks are those of the whole, and so are the gradients of all that learns, in every kind of text
  tower: shared and class-specific prompts, adapters, a tuned tower, several templates, towers that take the plain way,
  mixtures of prompts, a learning teacher, bf16;
- that holds when an attack asks for them first, while parameters are frozen and the model is in eval mode;
- what models draw at random while they encode is drawn again alike in the backward pass;
- no more than one chunk's graph is ever held; frozen class features hold none, and are computed once a run;
- a chunk's sentences are packed once.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from advdistill_clip import configs, text
from advdistill_clip.lora import ClipLora
from advdistill_clip.moapt import ClipMoapt
from advdistill_clip.models import Clip
from advdistill_clip.prompts import ClipPrompts
from advdistill_clip.tune import ClipTune
from clip_parts import Parts, images, settings, shake
from torch import Tensor

from advdistill import ClassSet, VisionLanguageModel
from advdistill.engine.class_features import ClassFeatures
from advdistill.engine.participant import Manner, Participant
from advdistill.recipe.fields import Config

NAMES = ("cat", "ox", "a long name", "cab", "Käse", "dog", "eel")
ONE, TWO = ("a photo of a {}.",), ("a photo of a {}.", "one {} here")
LAST = settings(text={"pool_type": "last"}, custom_text=True)
DEEP = {"text": {"depth": 3, "init": ""}, "visual": {"tokens": 0}}
OWN = {"text": {"depth": 2, "init": "", "per_class": True}, "visual": {"tokens": 0}}

Kind = tuple[type[VisionLanguageModel], type[Config], dict[str, Any], dict[str, Any], tuple[str, ...]]
KINDS: dict[str, Kind] = {
    "prompts": (ClipPrompts, configs.Prompts, DEEP, settings(), ONE),
    "several templates": (ClipPrompts, configs.Prompts, DEEP, settings(), TWO),
    "contexts": (ClipPrompts, configs.Prompts, OWN, settings(), ONE),
    "lora": (ClipLora, configs.Lora, {"towers": ["text"], "dropout": 0}, settings(), TWO),
    "tune": (ClipTune, configs.Tune, {"tower": "text"}, settings(), ONE),
    "moapt": (ClipMoapt, configs.Moapt, {"tokens": 2, "prompts": 2}, settings(), ONE),
    "plain way": (ClipPrompts, configs.Prompts, DEEP, LAST, ONE),
    "plain way, contexts": (ClipPrompts, configs.Prompts, OWN, LAST, TWO),
}


def built(folder: Path, kind: str, changes: dict[str, Any] | None = None, **manner: Any) -> Participant:
    model, settings_, wanted, config, templates = KINDS[kind]
    made = model.from_config(settings_(**Parts(folder, config).source, **(wanted | (changes or {}))))
    who = Participant(made, ClassSet(NAMES, templates), learns=True, manner=Manner(**manner))
    shake(made.learned(), 0.02)
    return who


def learn(who: Participant, attacked_first: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Class features as a step sees them, and the gradients that a pull on logits leaves in the parameters."""
    x = images(3)
    if attacked_first:
        with who.under_attack(), torch.no_grad():
            who.logits(x, constant=True)
        assert all(parameter.requires_grad for parameter in who.trainable.values())
    for _ in range(2):  # two portions look at the same class features
        who.logits(x).square().sum().backward()
    found = who._class_features.look().detach().clone()
    who.settle()
    return found, {name: p.grad.clone() for name, p in who.trainable.items() if p.grad is not None}


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor], to: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name, gradient in theirs.items():
        assert gradient.norm() > 0, name
        assert (ours[name] - gradient).norm() <= to * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_give_what_the_whole_gives(tmp_path: Path, kind: str) -> None:
    whole = built(tmp_path, kind, class_chunk=0)
    whole.model.train()
    features, gradients = learn(whole)
    for chunk, attacked_first in [(1, False), (3, True), (6, False), (3, False), (6, True), (50, True)]:
        who = built(tmp_path, kind, class_chunk=chunk)
        who.model.train()
        ours, pulled = learn(who, attacked_first)
        torch.testing.assert_close(ours, features, atol=2e-6, rtol=0)
        close(pulled, gradients)


def test_a_teacher_learns_in_eval_mode(tmp_path: Path) -> None:
    features, gradients = learn(built(tmp_path, "lora", class_chunk=0))
    ours, pulled = learn(built(tmp_path, "lora", class_chunk=2), attacked_first=True)
    torch.testing.assert_close(ours, features, atol=2e-6, rtol=0)
    close(pulled, gradients)


def test_chunks_in_bf16(tmp_path: Path) -> None:
    features, gradients = learn(built(tmp_path, "prompts", class_chunk=0, precision="bf16"))
    ours, pulled = learn(built(tmp_path, "prompts", class_chunk=3, precision="bf16"))
    exact, _ = learn(built(tmp_path, "prompts", class_chunk=0))
    assert ours.dtype == torch.float32 and not torch.equal(ours, exact)
    torch.testing.assert_close(ours, features, atol=1e-2, rtol=0)
    close(pulled, gradients, 2e-2)


def test_dropout_is_drawn_again_alike(tmp_path: Path) -> None:
    def dropping(chunk: int) -> Participant:
        who = built(tmp_path, "lora", {"dropout": 0.5}, class_chunk=chunk)
        who.model.train()
        torch.manual_seed(5)
        return who

    found, gradients = learn(dropping(3))
    who = dropping(3)
    parts = [who.model.classifier(who.prepared, rows) for rows in torch.arange(len(NAMES)).tensor_split(3)]
    expected = torch.cat(parts)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    leaf = expected.detach().requires_grad_()
    for _ in range(2):
        features = who.model.features(images(3))
        who.model.logits(features, leaf).square().sum().backward()
    expected.backward(leaf.grad)
    close(gradients, {name: p.grad for name, p in who.trainable.items() if p.grad is not None})


def test_one_chunks_graph_is_held_at_a_time() -> None:
    weight, made, most = torch.ones(4, requires_grad=True), list[weakref.ref[Any]](), []

    def held() -> int:
        return sum(storage() is not None for storage in made)

    def encode(rows: Tensor | None) -> Tensor:
        assert rows is not None
        inner = (rows[:, None] / 12 + weight).exp()  # which its backward needs
        made.append(weakref.ref(inner.untyped_storage()))
        most.append(held())
        return inner.square()  # and again

    features = ClassFeatures(encode, 12, True, chunk=2)
    features.look().sum().backward()
    assert held() == 1
    features.settle()
    torch.testing.assert_close(weight.grad, 2 * (torch.arange(12)[:, None] / 6 + 2 * torch.ones(4)).exp().sum(0))
    assert len(most) == 11 and max(most) == 1  # five chunks twice, the last one once
    features.forget()
    assert held() == 0


def test_what_is_frozen_is_encoded_once_and_holds_nothing(tmp_path: Path) -> None:
    asked = []
    made = Clip.from_config(configs.Clip(**Parts(tmp_path, settings()).source))
    original = made.classifier
    made.classifier = lambda classes, rows=None: asked.append(len(rows)) or original(classes, rows)  # type: ignore
    who = Participant(made, ClassSet(NAMES, ONE), manner=Manner(class_chunk=3))
    for _ in range(2):
        assert who.classifier().grad_fn is None and not who.classifier().requires_grad
        who.renew()
    assert asked == [3, 2, 2]


def test_a_chunks_sentences_are_packed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = []
    original = text.Pack.of
    monkeypatch.setattr(text.Pack, "of", lambda *args: packed.append(len(args[0])) or original(*args))
    who = built(tmp_path, "prompts", class_chunk=3)
    for _ in range(3):
        learn(who)
    assert packed[-4:] == [7, 3, 2, 2] and packed.count(7) == 1  # before that the base is tried out
