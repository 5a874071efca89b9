"""The recipes for real models, at the size of ViT-B/32, on real photographs, without a network. Slow.

Random weights on disk stand for downloaded ones, one file of each kind: safetensors for the student, a pickled state
dict for the clean teacher, a folder as the hub has it for the robust one (prompted twins share the safetensors file).

Guarantees:
- two steps of each recipe run, as it is but for the weights' places, the batch, and what is measured: at 224 pixels,
  at full width and depth, with the recipe's attack steps;
- what learns is counted exactly: the whole tower, 884,736 of LoRA, 23,040 of 2 + 2 prompts in 9 blocks, coupled and
  text prompts; a ResNet's tower, whose batch statistics stay;
- losses are finite, what learns has changed, and the frozen models have not, bit for bit;
- `advdistill attack` and `advdistill.load` rebuild the student from its file alone, and agree with the run on what it
  withstands; an undefended model is attacked by name and file.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from shrinking import imagenet_tree, models, reload, shorten
from torch import nn

import advdistill
from advdistill.cli.main import app
from advdistill.engine import build, examine, fit
from advdistill.engine.folder import RunFolder
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "cifar10_photos.tar.gz"
MODEL = "ViT-B-32-quickgelu"
TRAIN, TEST = 4, 2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ARCHIVE.is_file(), reason="the archive of photographs is not beside the repository"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Where other work runs beside, threads that wait for each other take several times as long as one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Scene:
    """Where things lie. sources: a model block's `model` and `weights`, one way of storing them each."""

    folder: Path
    photos: Path
    data: dict[str, Any]
    sources: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """Photographs and weights in a folder that goes afterwards: it holds gigabytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = extract(folder / "photos")
        classes = {path.name: sorted(path.iterdir()) for path in sorted(photos.iterdir())}
        root, names = imagenet_tree(folder / "imagenet", classes, test=TEST)
        data = {"root": str(root), "classnames": str(names), "val_per_class": 1}
        yield Scene(folder, photos, data, weights(folder))


def extract(to: Path) -> Path:
    """The first few photographs of each of ten classes, as to/CLASS/NAME."""
    count: dict[str, int] = defaultdict(int)
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            _, part, *rest = Path(member.name).parts
            if part == "train" and len(rest) == 2 and count[rest[0]] < TRAIN + TEST:
                count[rest[0]] += 1
                (to / rest[0]).mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                assert source
                (to / rest[0] / rest[1]).write_bytes(source.read())
    assert len(count) == 10
    return to


def weights(folder: Path) -> dict[str, dict[str, str]]:
    """A random ViT-B/32, stored three ways."""
    config = open_clip.get_model_config(MODEL)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config)
    save_file(model.state_dict(), folder / "weights.safetensors")
    torch.save(model.state_dict(), folder / "weights.pt")
    hub = folder / "hub"
    hub.mkdir()
    (hub / "open_clip_model.safetensors").hardlink_to(folder / "weights.safetensors")
    (hub / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return {
        "student": {"model": MODEL, "weights": str(folder / "weights.safetensors")},
        "clean": {"model": MODEL, "weights": str(folder / "weights.pt")},
        "robust": {"model": f"local-dir:{hub}", "weights": ""},
    }


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    """Of every tensor."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def command(*words: object) -> Any:
    """What `advdistill … --json` prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        app([*map(str, words), "--json"], prog_name="advdistill")
    assert not left.value.code, err.getvalue()
    return json.loads(out.getvalue())


LEARNED = {
    "mmt_ard_vitb32": 87_849_216,
    "mmt_ard_vitb32_lora": 884_736,
    "mmt_ard_rn50": 38_316_896,
    "apd_vitb16": 23_040,
    "fap_vitb32": 3_557_120,
    "apt_vitb32": 8_192,
}


@pytest.mark.parametrize(("name", "expected"), LEARNED.items())
def test_two_steps_at_full_size(name: str, expected: int, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "SHOWN", 2)
    tree = load_recipe(name).tree
    shorten(tree, scene.folder, batch=2, samples=2, attack_steps=2)
    tree["evaluate"] |= {"every": 0, "undefended": False, "teachers": False}
    tree["data"] |= {**scene.data, "shots": min(tree["data"]["shots"], 2)}
    twins = tree["strategy"]["use"] == "apd"
    for role, block in {"student": tree["student"], **tree["teachers"]}.items():
        block |= scene.sources["student" if twins else role]
    if name == "mmt_ard_rn50":
        tree["student"] |= {"model": "RN50-quickgelu", "weights": "random"}
    taught = {"apd": 1, "mmt-ard": 2}.get(tree["strategy"]["use"], 0)
    assert len(list(models(tree))) == 1 + taught
    recipe = reload(tree, scene.folder)
    events: list[Any] = []

    with RunFolder(recipe, resume=False, overwrite=False) as folder:
        run = fit.Run(recipe, default_registry(), folder, events.append)
        learners = run.parts.learners
        frozen = {id(p.model.base.model): p.model.base.model for p in (run.parts.student, *run.parts.teachers.values())}
        before = {key: copies(model) for key, model in frozen.items()}
        start = {role: {n: t.clone() for n, t in learner.trainable.items()} for role, learner in learners.items()}
        sizes = build.count(learners)
        (student, *_) = [row for row in run.go() if row.subject == "student"]

    assert {role: learns for role, (learns, _) in sizes.items()} == dict.fromkeys(learners, expected)
    assert set(learners) == ({"student", "clean"} if twins else {"student"})
    assert len(frozen) == (1 if twins else 1 + taught)
    losses = [event.losses for event in events if isinstance(event, advdistill.StepDone)]
    assert len(losses) == 2 and all(math.isfinite(value) for step in losses for value in step.values())
    assert all(torch.equal(t, before[key][n]) for key, model in frozen.items() for n, t in model.state_dict().items())
    for role, learner in learners.items():
        changed = [n for n, tensor in learner.trainable.items() if not torch.equal(tensor, start[role][n])]
        # Not quite all: two small steps may leave a few tensors of a whole tower as they were, and a ResNet drawn at
        # random begins with residual branches of weight zero, which no gradient enters.
        assert len(changed) > 0.8 * len(start[role]), f"{role}: {len(changed)} of {len(start[role])} changed"

    checkpoint = folder.path / "last.safetensors"
    own = {n: t for n, t in load_file(checkpoint).items() if not n.startswith("teacher.")}
    statistics = sum(tensor.numel() for n, tensor in own.items() if "running_" in n or "num_batches" in n)
    assert sum(tensor.numel() for tensor in own.values()) == expected + statistics
    assert bool(statistics) == (name == "mmt_ard_rn50")
    del run, learners, frozen, before
    again = command("attack", "--model", checkpoint)
    assert again["protocols"]["clean"] == student.to_json()["protocols"]["clean"]
    assert list(again["protocols"]) == list(student.counts)

    model = advdistill.load(checkpoint)
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = model(pixels)
    assert logits.shape == (2, 10) and logits.isfinite().all()
    (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), pixels)
    assert gradient.abs().amax() > 0


def test_an_undefended_model_is_attacked(scene: Scene) -> None:
    file = scene.sources["student"]["weights"]
    found = command(
        "attack", "--model", f"{MODEL}@{file}", "--data", scene.photos, "--attack", "pgd", "steps=2", "--eps", "1/255",
        "--limit", 2,
    )  # fmt: skip
    assert found["protocols"]["clean"]["total"] == 2 and len(found["protocols"]) == 2
