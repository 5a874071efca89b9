"""What is pinned here:

- A checkpoint brings its model, data, protocols, threat and seed; what is measured again is what was measured.
- A single-file plugin that has changed since the checkpoint was written is told.
- Options replace one thing each: an attack with its settings, the radius, the norm, the number of samples, the data.
- NAME@WEIGHTS stands for an undefended model: a JSON config with a weights file, a local-dir, a named plugin's.
- What does not fit together is told, with what to write instead.
- Adversarial images become PNGs inside the ball, each with a line that says what became of it; a folder that holds
  something is left alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_parts
import torch
from clip_parts import Parts, settings
from PIL import Image

from advdistill import Threat
from advdistill.engine.evaluate import Results
from advdistill.engine.images import ImageFolder
from advdistill.engine.judge import quantise
from advdistill.engine.subject import Subject, subject
from advdistill.errors import DataError, RecipeError, RunError, UsageError
from advdistill.hooks.registry import default_registry

TINY = settings({"layers": 1, "width": 16, "head_width": 8, "image_size": 16}, {"layers": 1, "width": 16})
REGISTRY = default_registry().with_files([run_parts.PLUGIN])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subject")
    pgd = {"use": "pgd", "steps": 2}
    protocols = [
        {"name": "clean", "limit": 30},
        {"name": "wide", "threat": {"eps": "6/255"}, "attack": pgd, "limit": 18},
        {"name": "pgd", "attack": pgd, "split": "val"},
    ]
    run_parts.train(run_parts.recipe(folder, seed=3, threat={"eps": "5/255"}, evaluate={"protocols": protocols}))
    return folder / "run" / "last.safetensors"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of five PNGs each, of other sizes than the model's."""
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for name in ("ant", "bee", "wild_cat"):
        (folder / name).mkdir()
        for i in range(5):
            pixels = torch.randint(256, (20, 24, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{i}.png")
    return folder


def measured(it: Subject, **how: Any) -> Results:
    found = how.pop("found", None)
    return Results.of(it.name, it.bench(**how).columns(it.protocols, found))


# --- checkpoints -------------------------------------------------------------------------------------------------


def test_a_checkpoint_brings_everything(checkpoint: Path) -> None:
    found = subject(str(checkpoint), REGISTRY)
    stored = json.loads(checkpoint.with_name("results.json").read_text())[0]
    row = measured(found).to_json()
    assert row["protocols"] == stored["protocols"] and found.notes == () and found.seed == 3
    assert [(p.name, p.split, p.limit) for p in found.protocols] == [
        ("clean", "test", 30), ("wide", "test", 18), ("pgd", "val", 0)
    ]  # fmt: skip
    assert [p.threat and p.threat.eps for p in found.protocols] == [None, 6 / 255, 5 / 255]
    assert 0 < row["protocols"]["wide"]["hits"] < row["protocols"]["clean"]["hits"]


def test_an_attack_of_ones_own(checkpoint: Path) -> None:
    found = subject(str(checkpoint), REGISTRY, attack="pgd", settings=["steps=3", "step=2/255"])
    clean, attacked = found.protocols
    assert clean.attack is None and attacked.name == "pgd steps=3 step=2/255"
    assert attacked.attack and attacked.attack.config.steps == 3 and attacked.attack.config.step == 2 / 255
    assert attacked.threat == Threat("linf", 5 / 255) and attacked.settings["steps"] == 3
    other = subject(str(checkpoint), REGISTRY, attack="pgd", eps=1.5, norm="l2", limit=6).protocols
    assert other[1].threat == Threat("l2", 1.5) and [p.limit for p in other] == [6, 6]
    everywhere = subject(str(checkpoint), REGISTRY, eps=2 / 255, limit=5).protocols
    assert [p.threat and p.threat.eps for p in everywhere] == [None, 2 / 255, 2 / 255]
    assert [p.limit for p in everywhere] == [5, 5, 5]


def test_a_changed_plugin_file_is_told(checkpoint: Path, tmp_path: Path) -> None:
    changed = tmp_path / run_parts.PLUGIN.name
    changed.write_text(run_parts.PLUGIN.read_text() + "# another version\n")
    found = subject(str(checkpoint), default_registry().with_files([changed]))
    assert found.notes == (f"toy_plugin.py has changed since {checkpoint} was written",)


def test_other_data_is_zero_shot(checkpoint: Path, photos: Path) -> None:
    with pytest.raises(UsageError, match="other classes than the") as told:
        subject(str(checkpoint), REGISTRY, data=str(photos), attack="pgd")
    assert "--classes data" in told.value.hint
    found = subject(str(checkpoint), REGISTRY, data=str(photos), attack="pgd", classes="data")
    (note,) = found.notes
    assert "zero-shot" in note and found.participant.classes.names == ("ant", "bee", "wild cat")
    assert measured(found).counts["clean"].total == 3


# --- undefended models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "local-dir", "plugin"])
def test_an_undefended_model(tmp_path: Path, photos: Path, kind: str) -> None:
    tiny = Parts(tmp_path, TINY)
    model = f"{tiny.path}@{tiny.weights}"
    if kind == "local-dir":
        local = tmp_path / "local"
        local.mkdir()
        (local / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
        shutil.copy(tiny.weights, local / "open_clip_model.safetensors")
        model = f"local-dir:{local}@"
    elif kind == "plugin":
        model = f"clip:{model}"
    found = subject(model, REGISTRY, data=str(photos), attack="fgsm", eps=8 / 255)
    row = measured(found)
    assert found.name == model and row.counts["clean"].total == row.counts["fgsm"].total == 3
    assert row.counts["fgsm"].hits <= row.counts["clean"].hits
    wanted = tiny.model.encode_image(tiny.pixels(torch.full((1, 3, 16, 16), 0.3)))
    torch.testing.assert_close(found.participant.features(torch.full((1, 3, 16, 16), 0.3)), wanted)


# --- what does not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"attack": "pdg"}, RecipeError, "pgd"),
        ({"attack": "pgd", "settings": ["stepz=3"]}, RecipeError, "stepz"),
        ({"attack": "pgd", "settings": ["steps=many"]}, RecipeError, "steps"),
        ({"attack": "pgd", "settings": ["steps"]}, UsageError, "key=value"),
        ({"settings": ["steps=3"]}, UsageError, "--attack"),
        ({"attack": "pgd", "eps": 8.0}, UsageError, "8/255"),
        ({"attack": "toy", "norm": "l2", "eps": 1.0}, UsageError, "--norm linf"),
        ({"attack": "pgd", "norm": "l2"}, UsageError, "--eps too"),
        ({"attack": "pgd", "norm": "l7"}, UsageError, "l7"),
        ({"data": "/no/such/folder"}, DataError, "/no/such/folder"),
        ({"device": "warp"}, UsageError, "auto"),
    ],
)
def test_options_that_cannot_be(checkpoint: Path, options: Any, error: type[UsageError], told: str) -> None:
    with pytest.raises(error) as found:
        subject(str(checkpoint), REGISTRY, **options)
    assert told in f"{found.value.message} {found.value.hint}" and found.value.hint + found.value.message


@pytest.mark.parametrize(
    ("model", "options", "error", "told"),
    [
        ("/no/such/checkpoint.safetensors", {}, DataError, "/no/such/checkpoint.safetensors"),
        ("ViT-B-32@openai", {"attack": "pgd"}, UsageError, "--data DIR"),
        ("ViT-B-32@openai", {"data": "here"}, UsageError, "--attack"),
        ("{tiny}@/no/such.pt", {"data": "{photos}", "attack": "pgd", "eps": 0.1}, DataError, "/no/such.pt"),
        ("{tiny}@{weights}", {"data": "{photos}", "attack": "pgd"}, UsageError, "--eps"),
        ("{tiny}@nope", {"data": "{photos}", "attack": "pgd", "eps": 0.1}, DataError, "nope"),
    ],
)  # fmt: skip
def test_models_that_cannot_be(
    tmp_path: Path, photos: Path, model: str, options: dict[str, Any], error: type[UsageError], told: str
) -> None:
    tiny = Parts(tmp_path, TINY)
    places = {"tiny": tiny.path, "weights": tiny.weights, "photos": photos}
    filled = {key: value.format(**places) if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(error) as found:
        subject(model.format(**places), REGISTRY, **filled)
    assert told in f"{found.value.message} {found.value.hint}"


# --- images on disk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rounding_stays_in_the_ball(norm: str) -> None:
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(256, (8, 3, 16, 16), generator=generator) / 255
    threat = Threat(norm, {"linf": 3.5 / 255, "l2": 0.3}[norm])
    attacked = threat.project(clean + 0.1 * torch.randn(clean.shape, generator=generator), clean)
    stored = quantise(attacked, clean)
    assert stored.dtype == torch.uint8 and threat.holds(stored.float() / 255, clean).all()
    assert (stored.float() / 255 - attacked).abs().max() < 1 / 255
    assert torch.equal(quantise(clean, clean).float() / 255, clean)  # what was not changed comes back
    far = threat.project(clean + 1, clean) if norm == "linf" else clean
    assert threat.size(quantise(far, clean).float() / 255 - clean).max() <= threat.eps


def test_images_are_saved_inside_the_ball(tmp_path: Path, photos: Path) -> None:
    tiny = Parts(tmp_path, TINY)
    found = subject(f"{tiny.path}@{tiny.weights}", REGISTRY, data=str(photos), attack="pgd", eps=8 / 255)
    row = measured(found, found=ImageFolder(tmp_path / "out", found).keep, batch_size=2)
    name = found.protocols[1].name
    lines = [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
    lines.sort(key=lambda line: line["file"])  # they are written as each sample's fate is sealed
    split = found.splits("test")
    assert [line["id"] for line in lines] == list(split.ids)
    assert [line["withstood"] for line in lines] == row.columns[name].outcome.right.tolist()
    assert all((line["said"] == line["label"]) == line["withstood"] for line in lines)
    assert [line["label"] for line in lines] == [found.participant.classes.names[i] for i in split.labels.tolist()]
    moved = 0
    for i, line in enumerate(lines):
        stored = torch.from_numpy(np.array(Image.open(tmp_path / "out" / line["file"]))).permute(2, 0, 1).int()
        clean = split.load(i).int()
        assert stored.shape == clean.shape and (stored - clean).abs().max() <= 8
        moved += int((stored - clean).abs().max() > 0)
    already = (~row.columns["clean"].outcome.right).sum().item()
    assert moved == len(lines) - already
    assert not (tmp_path / "out" / "clean").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, checkpoint: Path) -> None:
    found = subject(str(checkpoint), REGISTRY, attack="pgd")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        ImageFolder(tmp_path, found)
    with pytest.raises(RunError, match="cannot write"):
        ImageFolder(tmp_path / "mine.txt" / "out", found)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
