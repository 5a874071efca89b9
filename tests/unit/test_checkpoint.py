"""What is pinned here:

- What a run learned comes back from the file alone, bit for bit; in fp16 what was measured is what the file holds.
- The metadata is canonical JSON that the standard library reads, and says everything that is needed to go on.
- Loading is strict both ways, and refuses newer formats, damaged and cut-off files, pickles, other base weights, and
  missing ones, each with the file, the reason, and what to do; nothing becomes random weights.
- A missing plugin is named with the command that installs it; a single file is asked for.
- A learning teacher is stored as `teacher.ROLE.*`. Whatever the order of classes that a checkpoint was trained with, as
  a teacher it speaks of the run's classes in the run's order, contexts of their own included.
- Writing is atomic: a failed write leaves what was there.
- `advdistill.load` gives a module from pixels in [0, 1] to logits that attack libraries can use, move and cast.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
import torchattacks
from clip_parts import Parts, settings
from safetensors.torch import load_file, save_file

import advdistill
from advdistill import ClassSet
from advdistill.engine import checkpoint
from advdistill.engine.checkpoint import open_checkpoint
from advdistill.engine.examine import Examiner
from advdistill.engine.participant import Participant
from advdistill.errors import DataError, PluginError, RunError, UsageError
from advdistill.testing import ToyConfig, ToyModel
from advdistill.testing.toy import CLASSES

TINY = settings({"layers": 2, "width": 16, "head_width": 8}, {"layers": 1, "width": 16})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and a finished run of an adapter on it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    student = {"use": "clip-lora", "rank": 2, **Parts(folder, TINY).source}
    changes = {"student": student, "teachers": {"clean": {"use": "toy", "train": True}}, "optim": {"lr": 0.05}}
    run_parts.train(run_parts.recipe(folder, strategy={"use": "drifting"}, **changes))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil. The base stays where it is."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def facts_of(path: Path) -> dict[str, Any]:
    """What the standard library says of a safetensors file."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"].keys() == {"advdistill"}
    text = header["__metadata__"]["advdistill"]
    assert text == json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False)
    return json.loads(text)


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    facts, tensors = facts_of(path), load_file(path)
    change(facts, tensors)
    save_file(tensors, path, {"advdistill": json.dumps(facts, sort_keys=True, ensure_ascii=False)})
    return path


# --- there and back ----------------------------------------------------------------------------------------------


def test_what_was_learned_comes_back(made: Path) -> None:
    path = made / "run" / "last.safetensors"
    opened, stored = open_checkpoint(path), run_parts.tensors(made / "run")
    assert run_parts.same(
        {name: tensor.detach() for name, tensor in opened.model.learned().items()}, checkpoint.of_student(stored)
    )
    assert not opened.model.training
    before = Parts(made, TINY, "again").model.visual.transformer.resblocks[0].attn.in_proj_weight
    assert torch.equal(opened.model.base.model.visual.transformer.resblocks[0].attn.in_proj_weight, before)
    up = [tensor for name, tensor in stored.items() if name.endswith("up")] or list(stored.values())
    assert any(tensor.any() for tensor in up)
    (row,) = json.loads((made / "run" / "results.json").read_text())[:1]
    assert row["subject"] == "student" and opened.own_results == row


def test_the_metadata_says_it_all(made: Path) -> None:
    facts = facts_of(made / "run" / "last.safetensors")
    assert facts["format"] == 1 and facts["classes"] == list(CLASSES.names)
    assert facts["templates"] == list(CLASSES.templates)
    assert facts["threat"] == {"norm": "linf", "eps": 8 / 255}
    assert facts["clock"] == {"step": 4, "steps": 4, "epoch": 1}
    assert facts["recipe"]["student"]["rank"] == 2 and facts["recipe"]["optim"]["weight_decay"] == 0.0
    assert len(facts["base"]["fingerprint"]) == 64 and facts["base"]["weights"].endswith("tiny.safetensors")
    assert facts["activation"] in ("gelu", "quickgelu") and len(facts["preprocessing"]["mean"]) == 3
    assert set(facts["data"]["splits"]) == {"train", "val", "test"}
    assert {"python", "torch", "advdistill", "safetensors", "open-clip-torch"} <= facts["versions"].keys()
    by_path = {record["path"]: record for record in facts["plugins"]}
    assert by_path["student"]["dist"] == "advdistill" and by_path["data"]["file"] == str(run_parts.PLUGIN)
    assert [row["subject"] for row in facts["results"]] == ["student", "clean teacher"]


def test_a_learning_teacher_is_stored_under_its_role(made: Path) -> None:
    names = run_parts.tensors(made / "run").keys()
    assert {name for name in names if name.startswith("teacher.")} == {"teacher.clean.gain", "teacher.clean.context"}
    assert all(name.startswith(("visual.lora.", "teacher.clean.")) for name in names)


@pytest.mark.parametrize("student", ["shared", "per class"])
def test_a_teacher_speaks_of_the_runs_classes(student: str, folder: Path, tmp_path: Path) -> None:
    file = folder / "last.safetensors"
    if student == "per class":
        text = {"tokens": 1, "depth": 1, "init": "", "per_class": True}
        block = {"use": "clip-prompts", "text": text, "visual": {"tokens": 0}, **Parts(tmp_path, TINY).source}
        run_parts.train(run_parts.recipe(tmp_path, "own", student=block, optim={"lr": 0.5}))
        file = tmp_path / "own" / "last.safetensors"
    before = Participant(open_checkpoint(file).model, CLASSES).logits(images())

    def turned(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        facts["classes"] = facts["classes"][::-1]
        if "text.prompts" in tensors:
            tensors["text.prompts"] = tensors["text.prompts"].flip(1).contiguous()

    opened = open_checkpoint(rewrite(file, turned))
    assert opened.classes.names == CLASSES.names[::-1]
    torch.testing.assert_close(Participant(opened.model, CLASSES).logits(images()), before, rtol=1e-5, atol=1e-5)


def test_half_precision_is_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, after = [], Examiner.after

    def watching(self: Examiner) -> Any:
        measured.append({name: tensor.clone() for name, tensor in self._parts.student.model.learned().items()})
        return after(self)

    monkeypatch.setattr(Examiner, "after", watching)
    run_parts.train(run_parts.recipe(tmp_path, save={"dtype": "fp16"}, train={"steps": 2}))
    stored = run_parts.tensors(tmp_path / "run")
    full = run_parts.tensors(tmp_path / "run", "resume.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in stored.values())
    assert run_parts.same(measured[0], {name: tensor.float() for name, tensor in stored.items()})
    assert not torch.equal(full["learned.gain"], measured[0]["gain"])  # a resumed run goes on in full precision
    parts = run_parts.build(run_parts.recipe(tmp_path))
    parts.student.load(stored)
    assert run_parts.same(measured[0], dict(parts.student.model.learned()))


# --- strictness --------------------------------------------------------------------------------------------------


def drop(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    del tensors[min(name for name in tensors if not name.startswith("teacher."))]


def add(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["visual.lora.surplus"] = torch.zeros(2)


def reshape(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    name = min(name for name in tensors if not name.startswith("teacher."))
    tensors[name] = tensors[name][..., :1].contiguous()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop, "1 missing: visual.lora"),
        (add, "1 unexpected: visual.lora.surplus"),
        (reshape, "1 of another shape: visual.lora"),
    ],
)
def test_tensors_must_fit_both_ways(folder: Path, change: Any, told: str) -> None:
    path = rewrite(folder / "last.safetensors", change)
    with pytest.raises(DataError, match=told) as error:
        open_checkpoint(path)
    assert str(path) in error.value.message


def test_a_newer_format_is_refused(folder: Path) -> None:
    path = rewrite(folder / "last.safetensors", lambda facts, _: facts.update(format=2))
    with pytest.raises(DataError, match="format 2") as error:
        open_checkpoint(path)
    assert "pip install --upgrade" in error.value.hint


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda data: data[:-20], "damaged"),
        (lambda data: data[:5], "not a safetensors file"),
        (lambda data: data[:40], "damaged"),
        (lambda data: data[:8] + b"x" + data[9:], "damaged"),
        (lambda data: b"PK\x03\x04" + data, "pickle"),
        (lambda data: b"", "not a safetensors file"),
        (lambda data: data.replace(b'"F32"', b'"F99"'), "last.safetensors"),
    ],
)
def test_damaged_files_are_refused(folder: Path, spoil: Callable[[bytes], bytes], told: str) -> None:
    path = folder / "last.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=told) as error:
        open_checkpoint(path)
    assert error.value.exit_code == 5 and error.value.hint


def test_files_that_are_not_checkpoints(folder: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, folder / "pickle.safetensors")
    save_file({"weight": torch.zeros(2)}, folder / "foreign.safetensors")
    for name, told in (("pickle", "pickle"), ("foreign", "no advdistill checkpoint"), ("missing", "cannot read")):
        with pytest.raises(DataError, match=told):
            open_checkpoint(folder / f"{name}.safetensors")


def test_other_base_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    other = Parts(tmp_path, TINY, "other")
    weights = load_file(other.weights)
    weights["visual.class_embedding"] += 1
    save_file(weights, other.weights)
    path = rewrite(folder / "last.safetensors",
                   lambda facts, _: facts["recipe"]["student"].update(weights=str(other.weights)))  # fmt: skip
    with pytest.raises(DataError, match="trained on other base weights") as error:
        open_checkpoint(path)
    assert error.value.hint
    open_checkpoint(path, weights=False)  # a plan looks at no weights


def test_missing_base_weights_are_told(folder: Path) -> None:
    path = rewrite(folder / "last.safetensors",
                   lambda facts, _: facts["recipe"]["student"].update(weights="/no/such.safetensors"))  # fmt: skip
    with pytest.raises(DataError, match="/no/such"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("record", "named", "hint"),
    [
        ({"dist": "robust-pets", "version": "1.4"}, "the package robust-pets 1.4", "pip install robust-pets==1.4"),
        ({"dist": "", "plugin": "my_student"}, "the single file my_student.py", "--plugin"),
    ],
)
def test_a_missing_plugin_is_named(folder: Path, record: dict[str, str], named: str, hint: str) -> None:
    def change(facts: dict[str, Any], _: Any) -> None:
        facts["recipe"]["student"]["use"] = "pet-prompts"
        student = next(each for each in facts["plugins"] if each["path"] == "student")
        student.update(record, use="pet-prompts")

    path = rewrite(folder / "last.safetensors", change)
    with pytest.raises(PluginError, match=named) as error:
        open_checkpoint(path)
    assert error.value.exit_code == 4 and hint in error.value.hint and "pet-prompts" in error.value.message


# --- writing -----------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.safetensors"
    checkpoint.write(path, {"a": torch.ones(3)}, {"format": 1})

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(RunError, match="as it was before is kept"):
        checkpoint.write(path, {"a": torch.zeros(3)}, {"format": 1})
    monkeypatch.undo()
    assert torch.equal(checkpoint.read(path)[1]["a"], torch.ones(3)) and list(tmp_path.iterdir()) == [path]
    with pytest.raises(RunError, match="cannot write") as error:
        checkpoint.write(tmp_path / "nowhere" / "file.safetensors", {}, {"format": 1})
    assert "is kept" not in error.value.message


def test_views_and_transposes_are_written_as_seen(tmp_path: Path) -> None:
    path, matrix = tmp_path / "file.safetensors", torch.arange(6.0).view(2, 3)
    checkpoint.write(path, {"turned": matrix.T, "row": matrix[1], "learns": torch.nn.Parameter(matrix)}, {"format": 1})
    _, found = checkpoint.read(path)
    assert torch.equal(found["turned"], matrix.T) and torch.equal(found["row"], matrix[1])


def test_load_learned_is_strict() -> None:
    toy = ToyModel(ToyConfig())
    with pytest.raises(DataError, match=r"1 missing: context; 1 unexpected: other"):
        toy.load_learned({"gain": toy.gain, "other": toy.gain})
    with pytest.raises(DataError, match=r"gain \(2,\) for \(192,\)"):
        toy.load_learned({"gain": torch.ones(2), "context": toy.context})
    assert torch.equal(toy.gain, torch.ones(192))


# --- as a module -------------------------------------------------------------------------------------------------


@pytest.fixture
def classifier(made: Path) -> checkpoint.Classifier:
    return advdistill.load(made / "run" / "last.safetensors")


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def test_pixels_in_logits_out(made: Path, classifier: checkpoint.Classifier) -> None:
    pixels = images().requires_grad_()
    logits = classifier(pixels)
    assert logits.shape == (3, 6) and logits.dtype == torch.float32
    assert classifier.names == CLASSES.names and classifier.threat.eps == 8 / 255 and classifier.image_size == 32
    (gradient,) = torch.autograd.grad(logits.sum(), pixels)
    assert gradient.abs().sum() > 0
    opened = open_checkpoint(made / "run" / "last.safetensors")
    torch.testing.assert_close(logits, opened.model.predict(images(), opened.model.prepare(opened.classes)))
    assert not any(p.requires_grad for p in classifier.parameters())


def test_attack_libraries_can_use_it(classifier: checkpoint.Classifier) -> None:
    labels = classifier(images()).argmax(1)
    attack = torchattacks.PGD(classifier, eps=8 / 255, alpha=2 / 255, steps=3)
    found = attack(images(), labels)
    assert (found - images()).abs().max() <= 8 / 255 + 1e-6
    loss = torch.nn.functional.cross_entropy
    assert loss(classifier(found), labels) > loss(classifier(images()), labels)


def test_it_stays_in_eval_mode(classifier: checkpoint.Classifier) -> None:
    before = classifier(images())
    classifier.train()
    assert not classifier.training and not any(module.training for module in classifier.modules())
    assert torch.equal(classifier(images()), before)


@pytest.mark.parametrize("moved", ["double", "to", "cpu", "half and back"])
def test_it_can_be_moved_and_cast(made: Path, classifier: checkpoint.Classifier, moved: str) -> None:
    before, bystander = classifier(images()), advdistill.load(made / "run" / "last.safetensors")
    if moved == "double":
        classifier.double()
        assert classifier(images().double()).dtype == torch.float64
    elif moved == "to":
        classifier.to(torch.device("cpu"), torch.float64)
    elif moved == "half and back":
        classifier.bfloat16().float()
    else:
        classifier.cpu()
    after = classifier(images())
    assert torch.equal(bystander(images()), before)
    assert not after.requires_grad
    torch.testing.assert_close(after.float(), before, atol=0.3 if moved == "half and back" else 1e-4, rtol=0)
    if moved == "half and back":
        assert not torch.equal(after, before)  # the class features followed


def test_other_classes(made: Path) -> None:
    path = made / "run" / "last.safetensors"
    other = advdistill.load(path, classes=ClassSet(("dog", "ant"), ("a photo of a {}.",)))
    assert torch.allclose(other(images()), advdistill.load(path)(images())[:, [3, 0]], atol=1e-4)
    renamed = advdistill.load(path, classes=ClassSet(("dog", "ant"), ("the {}",)))
    assert not torch.allclose(other(images()), renamed(images()), atol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (images() * 255, r"must lie in \[0, 1\]"),
        (images() - 0.5, r"must lie in \[0, 1\]"),
        (images()[0], r"\(B, 3, H, W\)"),
        (images()[:, :1], r"\(B, 3, H, W\)"),
        ((images() * 255).to(torch.uint8), "uint8"),
    ],
)
def test_pixels_out_of_range_are_told(classifier: checkpoint.Classifier, wrong: torch.Tensor, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        classifier(wrong)


def test_a_single_file_plugin_can_be_given(tmp_path: Path) -> None:
    run_parts.train(run_parts.recipe(tmp_path, train={"steps": 1}))
    path = tmp_path / "run" / "last.safetensors"
    with pytest.raises(PluginError, match=r"the single file toy_plugin\.py") as error:
        advdistill.load(path)
    assert "plugins=" in error.value.hint
    assert advdistill.load(path, plugins=[run_parts.PLUGIN])(images()).shape == (3, 6)
