"""Guarantees pinned here:

- a compiled look gives features and pixel gradients of the uncompiled one, whatever the number of images; copies that
  fill a batch up are not seen, and where images depend on each other no batch is filled up;
- a few sizes serve all numbers of images; what would need more graphs than a model may have runs uncompiled;
- after the first step of a run nothing is compiled any more: neither in the attack, nor in the loss, nor for two
  models of one class, nor after weights have changed, nor because the run is probed in between;
- the weights after some steps are those of an uncompiled run, dropout included;
- what a model of ours computes for its images is one graph;
- in an evaluation the attack is compiled, verdicts never are;
- where compiling fails, forward or backward, the model goes on uncompiled with one warning, which is an event of the
  run; running out of memory, being interrupted and errors that the user can act on stay what they are;
- TF32 and compiling do not go together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
from advdistill_attacks.configs import PGD as PGDConfig
from advdistill_attacks.pgd import PGD
from advdistill_clip import configs
from advdistill_clip.lora import ClipLora
from advdistill_clip.models import Clip
from advdistill_clip.prompts import ClipPrompts
from advdistill_clip.tune import ClipTune
from clip_parts import RESNET, Parts, images, settings, shake
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from tower_parts import ROWS

from advdistill import ClassSet, StepDone, Threat, UsageError, Warned
from advdistill.engine import build, compiled, fit
from advdistill.engine.compiled import SHARES, Compiled
from advdistill.engine.evaluate import Bench
from advdistill.engine.folder import RunFolder
from advdistill.engine.judge import Judge, Look
from advdistill.engine.outcomes import Outcome
from advdistill.engine.participant import Manner, Participant
from advdistill.engine.protocol import Protocol
from advdistill.errors import RunWarning
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe
from advdistill.testing import ToyConfig, ToyDataset, ToyModel
from advdistill.testing.toy import CLASSES as TOY_CLASSES

CLASSES = ClassSet(("cat", "ox", "dog"), ("a photo of a {}.",))
COMPILED = Manner(compile=True)


@pytest.fixture
def graphs(monkeypatch) -> Iterator[list[Any]]:
    """Every graph that is captured; none is turned into code."""
    found: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        found.append(graph)
        return graph

    monkeypatch.setattr(Compiled, "backend", staticmethod(backend))
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


def look_of(model: Any, independent: bool = True) -> Compiled:
    return Compiled(model, lambda: independent, "student")


def pulled(look: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Features, and the gradient of their squares' sum."""
    x = x.clone().requires_grad_()
    found = look(x)
    return found.detach(), torch.autograd.grad(found.square().sum(), x)[0]


def same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    for mine, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Parts:
    return Parts(tmp_path_factory.mktemp("vit"), settings())


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Parts:
    return Parts(tmp_path_factory.mktemp("resnet"), settings(vision=RESNET))


def prompted(source: dict[str, str], **more: Any) -> ClipPrompts:
    config = {"text": {"tokens": 2, "depth": 2}, "visual": {"tokens": 2, "depth": 2}, **more}
    return ClipPrompts.from_config(configs.Prompts(**source, **config))


@pytest.mark.parametrize("counts", [(24, 23, 12, 11, 8, 7, 5, 3, 2, 1), (1, 5, 2, 24, 6, 23)])
def test_any_number_of_images_gives_what_the_uncompiled_model_gives(graphs, counts):
    model = ToyModel(ToyConfig()).eval().requires_grad_(False)
    look, x = look_of(model), images(24, 8)
    for count in counts:
        same(pulled(look, x[:count]), pulled(model.features, x[:count]))
    assert len(graphs) == len(SHARES)


def test_prompted_towers_fill_up_their_batches(vit, graphs):
    model = prompted(vit.source).eval().requires_grad_(False)
    look, x = look_of(model), images(6)
    for count in (6, 5):
        same(pulled(look, x[:count]), pulled(model.features, x[:count]))
    assert len(graphs) == 1


def test_views_of_one_batch_keep_their_size(graphs):
    model = ToyModel(ToyConfig()).eval().requires_grad_(False)
    seen: list[int] = []
    plain = model.features
    model.features = lambda x: (seen.append(len(x)), plain(x))[1]  # type: ignore[method-assign]
    look = look_of(model)
    for count in (4, 8, 12, 16, 4, 8, 12, 16):
        look(images(count, 8))
    assert set(seen) == {4, 8, 12, 16}


def test_images_that_depend_on_each_other_are_never_filled_up(resnet, graphs):
    model = ClipTune.from_config(configs.Tune(**resnet.source, bn="train")).train()
    participant = Participant(model, CLASSES, learns=True, manner=COMPILED)
    model.train()
    assert not participant.shares_forwards
    for count in (4, 3):
        x = images(count, 64)
        kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        theirs = model.features(x).detach()
        updated = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(kept)
        torch.testing.assert_close(participant.features(x).detach(), theirs, rtol=1e-4, atol=1e-5)
        assert all(torch.allclose(tensor, updated[name]) for name, tensor in model.state_dict().items())


def test_too_many_graphs_are_not_compiled(graphs, monkeypatch):
    monkeypatch.setattr(compiled, "AT_MOST", 2)
    model = ToyModel(ToyConfig()).eval().requires_grad_(False)
    look = look_of(model, independent=False)
    for count in (5, 4, 3, 2, 5, 4):
        torch.testing.assert_close(look(images(count, 8)), model.features(images(count, 8)))
    assert len(graphs) == 2


KINDS = {
    "prompts": lambda vit, resnet: prompted(vit.source, pixels={"form": "frame", "width": 2}),
    "lora": lambda vit, resnet: ClipLora.from_config(configs.Lora(**vit.source, rank=2, dropout=0.5)),
    "tune": lambda vit, resnet: ClipTune.from_config(configs.Tune(**vit.source, blocks="last-1")),
    "frozen resnet": lambda vit, resnet: Clip.from_config(configs.Base(**resnet.source)),
    "tuned resnet": lambda vit, resnet: ClipTune.from_config(configs.Tune(**resnet.source)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("training", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_look_is_one_graph(vit, resnet, graphs, kind, training, precision):
    model = KINDS[kind](vit, resnet).train(training)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        # Of another size than the tower's: resizing belongs to the graph.
        look_of(model)(images(2, 40).requires_grad_())
    assert len(graphs) == 1


def run(folder: Path, graphs: list[Any], name: str, *overrides: str) -> tuple[list[int], dict[str, Tensor]]:
    """Graphs after each step of a recipe; what it learned."""
    words = [f"save.dir={folder}", "train.device=cpu", "train.precision=fp32", "report=[{use: jsonl}]", *overrides]
    made = build.settled(load_recipe(name, words))
    counted: list[int] = []

    def tell(event: Any) -> None:
        assert not isinstance(event, Warned), event
        if isinstance(event, StepDone):
            counted.append(len(graphs))

    with warnings.catch_warnings(), RunFolder(made, resume=False, overwrite=True) as where:
        warnings.simplefilter("error", RunWarning)
        fit.Run(made, default_registry(), where, tell).go()
    return counted, run_parts.tensors(folder)


SHORT = (
    "train.steps=4",
    "train.batch_size=8",
    "evaluate.every=2",
    "evaluate.probe={limit: 9}",
    "evaluate.undefended=false",
    "evaluate.protocols=[{name: PGD, limit: 17, attack: {use: pgd, steps: 2}}]",
)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), [("apd_digits", "train.epochs=null"), ("quickstart", "seed=1")])
def test_nothing_is_compiled_after_the_first_step_and_the_weights_are_the_same(tmp_path, graphs, name, change):
    counted, learned = run(tmp_path / "compiled", graphs, name, "train.compile=on", change, *SHORT)
    assert counted[0] > 0
    assert counted == [counted[0]] * 4
    before = len(graphs)
    _, plain = run(tmp_path / "plain", graphs, name, "train.compile=off", change, *SHORT)
    assert len(graphs) == before
    assert learned.keys() == plain.keys()
    for key, tensor in learned.items():
        torch.testing.assert_close(tensor, plain[key], rtol=1e-3, atol=1e-4)


# --- evaluation ---------------------------------------------------------------------------------------------------


def measured(manner: Manner) -> Outcome:
    """PGD on the toy's test images, which breaks some of them after every step."""
    participant = Participant(ToyModel(ToyConfig()), TOY_CLASSES, manner=manner)
    split = ToyDataset(None).split("test")
    protocol = Protocol("pgd", attack=PGD(PGDConfig(steps=5, step=2 / 255)), threat=Threat("linf", 80 / 255))
    return Bench(participant, lambda name: split, 0).measure(protocol, split, torch.arange(len(split)), "key")


def test_attacks_are_compiled_for_a_few_numbers_of_survivors_and_verdicts_never_are(graphs, monkeypatch):
    judging, asked = [False], list[tuple[int, bool]]()
    look, ask = Judge.look, Compiled._look

    def looked(self: Judge, *given: Any) -> Look:
        judging[0] = True
        try:
            return look(self, *given)
        finally:
            judging[0] = False

    def noted(self: Compiled, given: Tensor, use: str) -> Tensor:
        asked.append((len(given), judging[0]))
        return ask(self, given, use)

    monkeypatch.setattr(Judge, "look", looked)
    monkeypatch.setattr(Compiled, "_look", noted)
    ours = measured(COMPILED)
    sizes = {size for size, _ in asked}
    assert len(sizes) > 2
    assert not any(judged for _, judged in asked)
    assert 0 < len(graphs) <= 2 * len(SHARES)  # with gradients and without
    theirs = measured(Manner())
    assert torch.equal(ours.clean, theirs.clean) and torch.equal(ours.right, theirs.right)
    assert 0 < theirs.right.sum() < theirs.clean.sum()


# --- what cannot be compiled --------------------------------------------------------------------------------------


def failing(error: BaseException) -> Any:
    def backend(graph: Any, inputs: Any) -> Any:
        raise error

    return staticmethod(backend)


def failing_backward(graph: Any, inputs: Any) -> Any:
    def fail(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no kernel goes backward")

    return aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=fail)(graph, inputs)


@pytest.mark.parametrize("backend", [failing(RuntimeError("no compiler\nand more")), staticmethod(failing_backward)])
def test_where_compiling_fails_the_model_looks_as_it_is_and_says_so_once(graphs, monkeypatch, backend):
    monkeypatch.setattr(Compiled, "backend", backend)
    model = ToyModel(ToyConfig()).requires_grad_(False)
    look, x = look_of(model), images(3, 8)
    with pytest.warns(RunWarning, match="student: its tower runs uncompiled.*no (compiler|kernel)") as told:
        ours = pulled(look, x)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pulled(look, x)
    for mine, once_more, theirs in zip(ours, again, pulled(model.features, x), strict=True):
        assert torch.equal(mine, theirs) and torch.equal(once_more, theirs)


def test_what_does_not_go_into_one_graph_is_not_compiled(graphs, tmp_path):
    eva = Parts(tmp_path, ROWS["eva02"])
    model = ClipLora.from_config(configs.Lora(**eva.source, rank=2, targets=["c_fc"])).eval()
    look, x = look_of(model), images(3)
    with pytest.warns(RunWarning, match="uncompiled"):
        found = look(x)
    assert torch.equal(found, model.features(x)) and not graphs
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), KeyboardInterrupt()])
def test_no_memory_and_interruptions_are_no_failures_to_compile(graphs, monkeypatch, error):
    monkeypatch.setattr(Compiled, "backend", failing(error))
    with pytest.raises(type(error)):
        look_of(ToyModel(ToyConfig()))(images(3, 8))


def test_errors_of_the_model_itself_are_told_as_they_are(graphs):
    model = ToyModel(ToyConfig())
    look = look_of(model)
    with pytest.raises(RuntimeError, match=r"shape|size|dimension"):
        look(images(2)[:, :1])

    def refuse(x: Tensor) -> Tensor:
        raise UsageError("no such image")

    model.features = refuse  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="no such image"):
        look_of(model)(images(2))


def test_a_run_tells_that_it_goes_on_uncompiled_once_a_model(tmp_path, graphs, monkeypatch):
    monkeypatch.setattr(Compiled, "backend", failing(RuntimeError("no compiler")))
    made = run_parts.recipe(tmp_path, train={"compile": "on"})
    run_parts.train(made)
    (told,) = run_parts.events(tmp_path / "run", "warned")
    assert "uncompiled" in told["message"] and "no compiler" in told["message"]
    plain = run_parts.recipe(tmp_path, "plain", train={"compile": "off"})
    run_parts.train(plain)
    assert not run_parts.events(tmp_path / "plain", "warned")
    assert run_parts.same(run_parts.tensors(tmp_path / "run"), run_parts.tensors(tmp_path / "plain"))


def test_tf32_runs_uncompiled(tmp_path):
    for precision, compiles in {"fp32": True, "tf32": False, "bf16": True}.items():
        made = run_parts.recipe(tmp_path, train={"compile": "on", "precision": precision})
        assert build.manner(made.train, torch.device("cuda")).compile is compiles


@pytest.mark.slow
def test_generated_code_draws_what_the_uncompiled_model_draws(vit):
    model = ClipLora.from_config(configs.Lora(**vit.source, rank=2, dropout=0.5)).train()
    shake(model.learned())
    model.requires_grad_(False)
    look, x = look_of(model), images(3)
    look(x[:3].requires_grad_())
    torch.manual_seed(1)
    ours = pulled(look, x)
    torch.manual_seed(1)
    theirs = pulled(model.features, x)
    torch.manual_seed(2)
    assert not torch.allclose(pulled(model.features, x)[0], theirs[0], rtol=1e-3)
    for mine, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-3, atol=1e-4)
