"""Guarantees pinned here, for precisions of training:

- whatever the precision, pixels, normalisation, resizing, patch embedding and positions, the sum that runs through a
  transformer's blocks and what its norms read, logits and losses are float32; attention and linear maps are rounded;
- TF32, where a run asks for it, is off in the patch embedding (or stem) and in the logits, and on in between;
- pixel gradients are float32, reach every pixel, and steps of a fraction of 1/255 are seen;
- class features are float32 and of unit norm;
- an attack at eps = 1/255 that is crafted in bf16 is as strong as one in float32, within half a point;
- a run's first line states its precision;
- every attention is fused, and none is given a mask that it does not need;
- convolutional towers work channels last: the numbers, names, shapes and fingerprints are the same, and students store
  what they stored;
- where no image asks for gradients, nothing before the first learning part keeps a graph; under attack no parameter
  gets a gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import run_parts
import torch
import torch.nn.functional as F
from advdistill_clip import configs
from advdistill_clip.lora import ClipLora
from advdistill_clip.models import Clip
from advdistill_clip.prompts import ClipPrompts
from advdistill_clip.towers import blocks_of
from advdistill_clip.tune import ClipTune
from advdistill_clip.visual import encode_pixels
from clip_parts import Parts, images, reference
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tower_parts import ROWS, TOWERS

from advdistill import ClassSet, Noise, Step, Threat, cross_entropy
from advdistill.engine import build
from advdistill.engine.attack import Problem
from advdistill.engine.participant import Manner, Participant, tf32

CLASSES = ClassSet(("cat", "ox", "a long name"), ("a photo of a {}.",))
EMBEDDING = {
    **dict.fromkeys(("class token", "average", "coca", "resnet"), "conv1"),
    **dict.fromkeys(
        ("siglip", "registers", "class token of timm", "vitamin", "pe", "eva02", "eva01", "mixed rotary"),
        "trunk.patch_embed.proj",
    ),
    "convnext": "trunk.stem.0",
}
"""What sees the pixels first."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Parts]:
    return {kind: Parts(tmp_path_factory.mktemp("tower"), config) for kind, config in TOWERS.items()}


def clip(parts: Parts) -> Clip:
    return Clip.from_config(configs.Base(**parts.source))


@contextlib.contextmanager
def heard(module: nn.Module, told: list[Any], what: Any) -> Iterator[None]:
    """`what(inputs, output)` of every call of a module, in `told`."""
    handle = module.register_forward_hook(lambda module, inputs, output: told.append(what(inputs, output)))
    try:
        yield
    finally:
        handle.remove()


def bf16() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("kind", EMBEDDING)
def test_what_sees_pixels_first_is_float32_and_without_tf32(made, kind):
    model = clip(made[kind])
    first = model.visual.get_submodule(EMBEDDING[kind])
    told: list[Any] = []

    def flags(inputs: Any, output: Tensor) -> Any:
        allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        return inputs[0].dtype, output.dtype, torch.is_autocast_enabled("cpu"), allowed

    with heard(first, told, flags), tf32(True), bf16():
        model.features(images(2, 40))
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
        assert torch.is_autocast_enabled("cpu")
    assert told == [(torch.float32, torch.float32, False, (False, False))]


@pytest.mark.parametrize("kind", sorted(set(ROWS) & set(EMBEDDING)))
def test_tokens_between_blocks_are_float32_and_attention_is_not(made, kind):
    model = clip(made[kind])
    visual = model.visual
    blocks = list(visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks)
    read: list[torch.dtype] = []
    attended: list[torch.dtype] = []
    plain = F.scaled_dot_product_attention

    def attention(q: Tensor, *given: Any, **more: Any) -> Tensor:
        attended.append(q.dtype)
        return plain(q, *given, **more)

    with contextlib.ExitStack() as stack:
        for block in blocks:
            for name in ("ln_1", "ln_2", "norm1", "norm2"):
                if hasattr(block, name):
                    norm = getattr(block, name)
                    stack.enter_context(heard(norm, read, lambda inputs, output: inputs[0].dtype))
        monkey = stack.enter_context(pytest.MonkeyPatch.context())
        monkey.setattr(F, "scaled_dot_product_attention", attention)
        stack.enter_context(bf16())
        found = model.features(images(2))
    assert len(read) == 2 * len(blocks) and set(read) == {torch.float32}
    assert found.dtype == torch.float32
    assert torch.bfloat16 in attended


@pytest.mark.parametrize("kind", EMBEDDING)
def test_gradients_reach_every_pixel_and_small_steps_are_seen(made, kind):
    model = clip(made[kind])
    x = images(1, model.image_size).requires_grad_()
    with bf16():
        found = model.features(x)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert gradient.dtype == torch.float32
    # A few strided convolutions leave pixels out by themselves.
    (exact,) = torch.autograd.grad(model.features(x).square().sum(), x)
    assert ((gradient != 0) | (exact == 0)).float().mean() > 0.999
    first = model.visual.get_submodule(EMBEDDING[kind])
    told: list[Tensor] = []
    with heard(first, told, lambda inputs, output: output.detach()), bf16():
        model.features(x.detach())
        model.features(x.detach() + 0.25 / 255)
    assert (told[0] != told[1]).float().mean() > 0.99


def test_logits_losses_and_class_features_are_float32(made):
    participant = Participant(clip(made["class token"]), CLASSES, manner=Manner("bf16"))
    x, labels = images(3), torch.tensor([0, 1, 2])
    logits = participant.logits(x)
    assert logits.dtype == participant.features(x).dtype == torch.float32
    assert cross_entropy(logits, labels).dtype == torch.float32
    classifier = participant.classifier()
    assert classifier.dtype == torch.float32
    torch.testing.assert_close(classifier.norm(dim=-1), torch.ones(3), rtol=0, atol=1e-6)
    exact = Participant(clip(made["class token"]), CLASSES)
    assert not torch.equal(exact.classifier(), classifier)
    # Logits of given features and classes know no precision.
    of_images, of_classes, expected = exact.features(x), exact.classifier(), exact.logits(x)
    with bf16(), tf32(True):
        assert torch.equal(exact.model.logits(of_images, of_classes), expected)


def test_strategies_compute_in_float32(tmp_path, monkeypatch):
    seen: list[Any] = []
    plain = Step._ask

    def ask(self: Step, *given: Any) -> Any:
        said = plain(self, *given)
        seen.append((said.logits.dtype, torch.is_autocast_enabled("cpu")))
        return said

    monkeypatch.setattr(Step, "_ask", ask)
    run_parts.train(run_parts.recipe(tmp_path, train={"precision": "bf16"}))
    assert set(seen) == {(torch.float32, False)}
    (started,) = run_parts.events(tmp_path / "run", "run_started")
    assert "bf16" in started["plan"]["budget"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bf16_is_the_default_on_gpus_alone(tmp_path, monkeypatch, device):
    monkeypatch.setattr(build, "device_of", lambda name: torch.device(device))
    made = build.settled(run_parts.recipe(tmp_path))
    assert made.train.precision == {"cpu": "fp32", "cuda": "bf16"}[device]
    asked = build.settled(run_parts.recipe(tmp_path, train={"precision": "tf32"}))
    assert asked.train.precision == "tf32"


def test_an_attack_in_bf16_is_as_strong_as_one_in_float32():
    source = {"model": "advdistill_demo:small.json", "weights": "advdistill_demo:small.safetensors"}
    data = build.component(build.default_registry(), build.resolve_blocks(
        {"data": {"use": "digits"}}, build.default_registry())["data",])  # fmt: skip
    split, model = data.split("test"), build.model_of({"use": "clip", **source})
    x = torch.stack([split.load(i) for i in range(200)])
    x, labels = x.float() / 255 if x.dtype == torch.uint8 else x, split.labels[:200]
    attack = build.component(build.default_registry(), build.resolve_blocks(
        {"attack": {"use": "pgd", "steps": 4}}, build.default_registry())["attack",])  # fmt: skip
    right, found = [], []
    for eps in (1 / 255, 4 / 255):
        for precision in ("fp32", "bf16"):
            who, threat = Participant(model, data.classes, manner=Manner(precision)), Threat("linf", eps)
            with who.under_attack():
                problem = Problem(x, labels, None, lambda some, rows: who.logits(some, constant=True), threat)  # noqa: B023
                found.append(attack(problem, threat, Noise(0, "train", 0, torch.arange(len(x)))))
            with who.deployed(), torch.no_grad():
                right.append((who.logits(found[-1]).argmax(1) == labels).float().mean().item())
    assert abs(right[0] - right[1]) <= 0.005
    assert right[2] < right[0]
    assert not torch.equal(found[0], found[1])
    assert (found[0] != found[1]).float().mean() < 0.05


# Attention


class Operators(TorchDispatchMode):
    """The names of all operators that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", TOWERS)
def test_every_attention_is_fused(made, kind, monkeypatch):
    model = clip(made[kind]).requires_grad_(False)
    masks: list[bool] = []
    plain = F.scaled_dot_product_attention

    def attention(*given: Any, **more: Any) -> Tensor:
        masks.append((given[3] if len(given) > 3 else more.get("attn_mask")) is not None)
        return plain(*given, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    with Operators() as computed:
        model.features(images(2, model.image_size).requires_grad_())
    if kind in ("swin", "relative positions"):
        assert all(masks)  # positions that depend on distances
    else:
        assert not any(masks) and not any("softmax" in name for name in computed.names)


# Channels last


@pytest.mark.parametrize("kind", ["resnet", "convnext", "fastvit"])
def test_convolutions_work_channels_last_and_nothing_else_changes(made, kind):
    model, theirs = clip(made[kind]), reference(TOWERS[kind])
    plain = theirs.visual
    kernels = [w for w in model.visual.parameters() if w.ndim == 4 and w.shape[1] > 1 and w.shape[2] > 1]
    assert kernels and all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)
    assert not any(w.is_contiguous() for w in kernels)
    state = theirs.state_dict()
    assert {n: t.shape for n, t in model.model.state_dict().items()} == {n: t.shape for n, t in state.items()}
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.model.state_dict().items())
    x = images(2, model.image_size).requires_grad_()
    pixels = (x - model.mean) / model.std
    ours, expected = encode_pixels(model.visual, pixels), plain.eval()(pixels)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    (mine,) = torch.autograd.grad(ours.square().sum(), x, retain_graph=True)
    (other,) = torch.autograd.grad(expected.square().sum(), x)
    assert (mine - other).norm() < 1e-3 * other.norm()
    base = model.base
    before = base.fingerprint
    del base.__dict__["fingerprint"]
    base.model.to(memory_format=torch.contiguous_format)
    assert base.fingerprint == before


def test_a_tuned_convolutional_tower_keeps_its_layout_and_goes_through_its_file(made, tmp_path):
    from advdistill.engine import checkpoint

    student = ClipTune.from_config(configs.Tune(**made["resnet"].source))
    learned = student.learned()
    kernel = learned["visual.layer1.0.conv2.weight"]
    assert kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()
    checkpoint.write(tmp_path / "student.safetensors", learned, {})
    assert run_parts.same(run_parts.tensors(tmp_path, "student.safetensors"), learned)
    student.load_learned(run_parts.tensors(tmp_path, "student.safetensors"))
    assert student.learned()["visual.layer1.0.conv2.weight"].is_contiguous(memory_format=torch.channels_last)


# No gradient that nobody uses


def first_with_graph(model: Clip, x: Tensor) -> list[bool]:
    """Block by block, whether what it gives has a graph."""
    told: list[bool] = []
    with contextlib.ExitStack() as stack:
        for (name,) in blocks_of(model.model, "visual"):
            block = model.model.get_submodule(name)
            norm = block.ln_2  # what the block itself computes is no call of the block
            stack.enter_context(heard(norm, told, lambda inputs, output: output.requires_grad))
        model.features(x)
    return told


def test_nothing_before_what_learns_keeps_a_graph(made):
    source = made["class token"].source
    tuned = Participant(ClipTune.from_config(configs.Tune(**source, blocks="last-1")), CLASSES, learns=True)
    assert first_with_graph(tuned.model, images(2)) == [False, False, True]
    adapted = Participant(ClipLora.from_config(configs.Lora(**source, rank=2, blocks="last-2")), CLASSES, learns=True)
    assert first_with_graph(adapted.model, images(2)) == [False, True, True]
    text = {"tokens": 2, "depth": 1}
    prompted = ClipPrompts.from_config(configs.Prompts(**source, text=text, visual={"tokens": 0}))
    assert first_with_graph(Participant(prompted, CLASSES, learns=True).model, images(2)) == [False] * 3
    frozen = Participant(clip(made["class token"]), CLASSES)
    assert first_with_graph(frozen.model, images(2)) == [False] * 3


def test_under_attack_only_pixels_get_gradients(made):
    tokens = {"tokens": 2, "depth": 2}
    model = ClipPrompts.from_config(configs.Prompts(**made["class token"].source, text=tokens, visual=tokens))
    student = Participant(model, CLASSES, learns=True)
    x = images(2).requires_grad_()
    with student.under_attack():
        loss = student.logits(x, constant=True).sum()
        leaves: set[int] = set()
        todo, done = [loss.grad_fn], set()
        while todo:
            node = todo.pop()
            if node is None or node in done:
                continue
            done.add(node)
            if hasattr(node, "variable"):
                leaves.add(id(node.variable))
            todo.extend(parent for parent, _ in node.next_functions)
        assert leaves == {id(x)}
        torch.autograd.grad(loss, x)
    assert all(parameter.grad is None for parameter in model.parameters())
