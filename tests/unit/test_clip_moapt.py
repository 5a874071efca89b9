"""Guarantees pinned here, for a model whose class features differ from image to image:

- its logits are those of the mixture written out, (B, C, D) and all; every prompt and the router learn,
  each from a draw of its own;
- an attack sees through the router;
- every prompt's class features are encoded once a look, whatever the number of images, and once in a whole step;
- it keeps the contract without being `Factored`: trained under attack, evaluated, stored and loaded with the
  same answers; strategies that need features of its own say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
import torch.nn.functional as F
from advdistill_clip import configs
from advdistill_clip.moapt import ClipMoapt
from advdistill_clip.models import Clip
from advdistill_clip.prompts import ClipPrompts
from clip_parts import Parts, images, settings, shake
from torch import Tensor

from advdistill import ClassSet, Factored, UsageError, load
from advdistill.engine.participant import Participant
from advdistill.testing import check_model
from advdistill.testing.toy import CLASSES as TOY_CLASSES
from advdistill.testing.toy import ToyDataset

CLASSES = ClassSet(("cat", "ox", "a long name", "dog"), ("a {}.",))
MIXED = {"prompts": 3, "tokens": 2, "depth": 2}


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path, settings())


def student(parts: Parts, **changes: Any) -> ClipMoapt:
    return ClipMoapt.from_config(configs.Moapt(**{**parts.source, **MIXED, **changes})).eval()


def written_out(model: ClipMoapt, parts: Parts, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the mixture, every image's class features made one by one; and the weights."""
    own = model.learned()
    each = []
    for k in range(3):
        text = {"tokens": 2, "depth": 2, "init": ""}
        prompted = ClipPrompts.from_config(
            configs.Prompts.model_validate({**parts.source, "text": text, "visual": {"tokens": 0}})
        )
        prompted.load_learned({"text.prompts": own[f"text.prompts.{k}"]})
        each.append(prompted.classifier(prompted.prepare(CLASSES)))
    z = F.normalize(parts.model.visual(parts.pixels(x)), dim=-1)
    hidden = (z @ own["router.0.weight"].T + own["router.0.bias"]).relu()
    weights = (hidden @ own["router.2.weight"].T + own["router.2.bias"]).softmax(-1)
    mixed = F.normalize(sum(weights[:, k, None, None] * each[k] for k in range(3)), dim=-1)
    return parts.model.logit_scale.exp() * (z[:, None] * mixed).sum(-1), weights


def test_logits_are_those_of_the_mixture(parts):
    model = student(parts)
    shake(model.learned(), 0.5)
    x = images(5)
    logits, weights = written_out(model, parts, x)
    torch.testing.assert_close(model.predict(x, model.prepare(CLASSES)), logits, atol=1e-5, rtol=1e-5)
    assert weights.std(0).max() > 0.01  # images do get mixtures of their own here


def test_every_prompt_and_the_router_learn(parts):
    model = student(parts)
    model.predict(images(4), model.prepare(CLASSES)).square().sum().backward()
    own = model.learned()
    assert own.keys() == {f"text.prompts.{k}" for k in range(3)} | {
        f"router.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")
    }
    assert all(tensor.grad.abs().sum() > 0 for tensor in own.values())
    assert {id(p) for p in model.parameters() if p.grad is not None} == {id(tensor) for tensor in own.values()}
    firsts = [own[f"text.prompts.{k}"] for k in range(3)]
    assert not torch.equal(firsts[0], firsts[1]) and not torch.equal(firsts[1], firsts[2])
    again = student(parts).learned()
    assert all(torch.equal(own[name], again[name]) for name in own)


def test_no_two_draws_are_the_same(parts):
    numbers = [
        tensor.flatten().tolist() for seed in (0, 1) for tensor in student(parts, init_seed=seed).learned().values()
    ]
    assert len({number for each in numbers for number in each}) == sum(map(len, numbers))


def test_an_attack_sees_through_the_router(parts):
    model = student(parts)
    shake(model.learned(), 0.5)
    classes, x = model.prepare(CLASSES), images(4).requires_grad_()
    (through,) = torch.autograd.grad(model.predict(x, classes)[:, 0].sum(), x)
    (whole,) = torch.autograd.grad(written_out(model, parts, x)[0][:, 0].sum(), x)
    torch.testing.assert_close(through, whole, atol=1e-5 * whole.abs().max().item(), rtol=1e-4)
    weights = model.weights(F.normalize(model.clip.features(x), dim=-1)).detach()
    model.weights = lambda features: weights
    (past,) = torch.autograd.grad(model.predict(x, classes)[:, 0].sum(), x)
    assert (through - past).norm() > 0.01 * through.norm()


@pytest.mark.parametrize("count", [1, 9])
def test_prompts_are_encoded_once_a_look(parts, monkeypatch, count):
    model, calls = student(parts), []
    original = ClipPrompts.classifier
    monkeypatch.setattr(ClipPrompts, "classifier", lambda self, *given: calls.append(self) or original(self, *given))
    model.predict(images(count), model.prepare(CLASSES))
    assert calls == list(model.prompted)


def test_prompts_are_encoded_once_a_step(parts, monkeypatch):
    taking_part, calls = Participant(student(parts), CLASSES, learns=True), []
    original = ClipPrompts.classifier
    monkeypatch.setattr(ClipPrompts, "classifier", lambda self, *given: calls.append(self) or original(self, *given))
    x = images(3)
    with taking_part.under_attack():
        for _ in range(2):
            pixels = x.clone().requires_grad_()
            torch.autograd.grad(taking_part.logits(pixels, constant=True)[:, 0].sum(), pixels)
    taking_part.logits(x).square().sum().backward()
    taking_part.settle()
    assert calls == list(taking_part.model.prompted)
    plain = student(parts)
    plain.predict(x, plain.prepare(CLASSES)).square().sum().backward()
    for name, tensor in plain.learned().items():
        torch.testing.assert_close(taking_part.trainable[name].grad, tensor.grad, atol=1e-6, rtol=1e-4)


def test_it_keeps_the_contract_without_being_factored(parts):
    model = student(parts)
    assert not isinstance(model, Factored)
    check_model(model, TOY_CLASSES)
    teacher = Clip.from_config(configs.Clip(**parts.source))
    assert model.undefended().model is teacher.model
    shake(model.learned())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.predict(images(4), model.prepare(CLASSES))
    exact = model.predict(images(4), model.prepare(CLASSES))
    assert rough.dtype == torch.float32 and (rough - exact).abs().max() < 0.05 * exact.abs().max()


def test_its_size_is_told_without_weights():
    model = ClipMoapt.from_config(configs.Moapt(model="ViT-B-32", weights="openai"), weights=False)
    router = 512 * 32 + 32 + 32 * 8 + 8
    assert sum(p.numel() for p in model.learned().values()) == 8 * 4 * 512 + router
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 8 * 4 * 512 + router
    assert model.predict(torch.rand(2, 3, 224, 224, device="meta"), model.prepare(CLASSES)).shape == (2, 4)


def run(parts: Parts, **changes: Any) -> dict[str, Any]:
    return {
        "student": {"use": "clip-moapt", **parts.source, **MIXED},
        "strategy": {"use": "moapt"},
        "attack": {"use": "pgd", "steps": 2},
        "optim": {"use": "sgd", "lr": 0.1},
        "evaluate": {
            "undefended": True,
            "protocols": [{"name": "clean", "limit": 20}, {"name": "pgd", "limit": 8, "attack": {"use": "pgd"}}],
        },
        **changes,
    }


def test_a_run_from_training_to_loading(parts, tmp_path):
    rows = run_parts.train(run_parts.recipe(tmp_path, **run(parts)))
    result = next(row for row in rows if row.subject == "student")
    stored = run_parts.tensors(tmp_path / "run")
    start = student(parts).learned()
    assert stored.keys() == start.keys()
    assert all(not torch.equal(stored[name], start[name]) for name in start)

    model, split = load(tmp_path / "run" / "last.safetensors"), ToyDataset(None).split("test")
    places = result.columns["clean"].outcome.indices.tolist()
    x = torch.stack([split.load(place) for place in places]).float().requires_grad_()
    logits = model(x)
    assert torch.equal(logits.argmax(1) == split.labels[places], result.columns["clean"].outcome.right)
    (slope,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert (slope.flatten(1).abs().amax(1) > 0).all()


def test_strategies_that_need_features_of_its_own_say_so(parts, tmp_path):
    made = run_parts.recipe(tmp_path, **run(parts, strategy={"use": "fap"}))
    with pytest.raises(UsageError, match="features"):
        run_parts.train(made)
