"""What a user may get wrong, at the command line, on a tiny recipe.

Guarantees:
- every mistake ends in one message that names what is wrong, a hint where one helps, and the right exit code, with no
  traceback and no internal error: 1 run, 2 usage, 3 recipe, 4 plugin, 5 data or weights;
- nothing read from a recipe or from weights runs;
- a run that could not begin leaves its folder free; what was saved before survives all else.

What recipes, data and single components answer is pinned beside their own tests; here is what a user meets.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_parts import Cli
from PIL import Image
from safetensors.torch import load_file, save_file

from advdistill import resource
from advdistill.recipe.header import KEY, read_header

SMALL = {"use": "clip-tune", "model": "advdistill_demo:small.json"}
TREE: dict[str, Any] = {
    "advdistill": 1,
    "name": "tiny",
    "threat": {"eps": "8/255"},
    "data": {"use": "digits", "shots": 2},
    "student": {**SMALL, "weights": "random"},
    "attack": {"use": "pgd", "steps": 1},
    "strategy": {"use": "adversarial-ce"},
    "optim": {"lr": 0.001},
    "train": {"steps": 2, "batch_size": 4, "device": "cpu"},
    "evaluate": {"undefended": False, "protocols": [{"name": "clean", "limit": 4}], "probe": {"limit": 4}},
    "report": [{"use": "jsonl"}],
}
RUN = Path("runs/tiny")
LAST = RUN / "last.safetensors"


def write(**changes: Any) -> str:
    """The tiny recipe with other blocks, as a file in the current folder."""
    Path("r.yaml").write_text(yaml.safe_dump({**TREE, **changes}, sort_keys=False))
    return "r.yaml"


@pytest.fixture
def refused(cli: Cli) -> Callable[..., str]:
    """`refused(code, *words)` calls, expects that exit code and a polite error, and returns it."""

    def call(code: int, *words: object) -> str:
        said = cli(*words)
        assert said.code == code, said.err
        assert said.out == ""
        assert "Traceback" not in said.err and "internal error" not in said.err
        return said.err

    return call


@pytest.fixture
def trained(cli: Cli) -> Path:
    """The checkpoint of a finished tiny run."""
    assert cli("train", write()).code == 0
    return LAST


class Evil:
    """Touches a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def restate(source: Path, target: str, **facts: Any) -> Path:
    """A copy of a checkpoint that says other things of itself; None takes a fact out."""
    told = {**read_header(source)[0], **facts}
    save_file(load_file(source), target, {KEY: json.dumps({k: v for k, v in told.items() if v is not None})})
    return Path(target)


# Recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("advdistill: 1\nsede: 1", "r.yaml:2:1: sede: unknown key; did you mean 'seed'?"),
        ("seed: 1\nseed: 2", "r.yaml:2:1: key 'seed' stands twice; first on line 1"),
        ("seed:\t1\n\tname: x", "Indent with spaces"),
        ("seed: !!python/object/apply:os.system ['touch ran']", "tag !!python/object/apply:os.system is not allowed"),
        ("", "the recipe is empty"),
        ("#" + "x" * 10_000_000, "9.5 MiB is no recipe"),
        ("extends: r.yaml", "a recipe cannot extend itself: r.yaml -> r.yaml"),
        ("seed: [", "r.yaml:1:"),
    ],
    ids=["key", "twice", "tab", "tag", "empty", "large", "extends", "open"],
)
def test_recipes(refused: Callable[..., str], text: str, message: str) -> None:
    Path("r.yaml").write_text(text)
    assert message in refused(3, "train", "r.yaml")
    assert not Path("ran").exists() and not Path("runs").exists()


def test_a_folder_or_binary_is_no_recipe(refused: Callable[..., str]) -> None:
    Path("folder.yaml").mkdir()
    assert "folder.yaml is a folder, not a recipe" in refused(3, "train", "folder.yaml")
    Path("r.yaml").write_bytes(b"\x93NUMPY\xff")
    assert "Save it as UTF-8" in refused(3, "train", "r.yaml")


def test_missing_blocks_wrong_types_and_unknown_plugins_are_told_together(refused: Callable[..., str]) -> None:
    tree = {k: v for k, v in TREE.items() if k != "optim"}
    tree |= {"train": {"steps": "many"}, "attack": {"use": "pdg"}}
    Path("r.yaml").write_text(yaml.safe_dump(tree))
    said = refused(3, "train", "r.yaml")
    for message in ("optim: missing", "train.steps: must be a whole number", "did you mean 'pgd'?"):
        assert message in said


# Data


def photos(count: int, *classes: str, mode: str = "RGB", suffix: str = "jpg") -> dict[str, Any]:
    """Class folders of random images; returns the `data` block that reads them."""
    for name in classes:
        folder = Path("photos", name)
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image = Image.frombytes("RGB", (40, 36), bytes((index * 7 + i) % 256 for i in range(40 * 36 * 3)))
            image.convert(mode).save(folder / f"{index}.{suffix}")
    return {"use": "folder", "root": "photos", "size": 32, "test_share": 0.34, "val_share": 0.33}


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("1", "png"), ("P", "png")]
)
def test_pixels_of_every_kind_are_taken(cli: Cli, mode: str, suffix: str) -> None:
    assert cli("train", write(data=photos(6, "cat", "dog", mode=mode, suffix=suffix))).code == 0


def test_data(refused: Callable[..., str]) -> None:
    data = photos(0)
    assert "there is no folder photos" in refused(5, "train", write(data=data))
    photos(6, "cat")
    assert "photos holds one class only: cat" in refused(5, "train", write(data=data))
    photos(6, "dog")
    few = refused(5, "train", write(data={**data, "shots": 9}))
    assert "class 'cat' has 2 training images, but 9 shots are wanted" in few
    # None of these runs began, so the folder is free for this one, whose images turn out bad on the way.
    for path in Path("photos").rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:-200])
    assert "truncated" in refused(5, "train", write(data=data))
    for path in Path("photos").rglob("*.jpg"):
        path.write_text("not an image")
    assert "is not an image of a known format" in refused(5, "train", write(data=data), "--overwrite")
    from_worker = refused(5, "train", "r.yaml", "train.workers=1", "--overwrite")
    assert "is not an image of a known format\nreplace or remove the file\n" in from_worker


# Weights


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nope.safetensors", "no weights file nope.safetensors"),
        ("noise.safetensors", "noise.safetensors is damaged or no safetensors file"),
        ("cut.safetensors", "cut.safetensors is damaged or no safetensors file"),
        ("evil.pt", "evil.pt holds more than tensors, or is damaged; as unpickling can run code, it was not read"),
        ("evil.safetensors", "evil.safetensors is damaged or no safetensors file"),
        ("cut.pt", "cut.pt"),
        ("part.safetensors", "2 missing (visual.ln_post.bias, visual.ln_post.weight)"),
        ("shape.safetensors", "1 of another shape (visual.proj"),
        ("nan.safetensors", "numbers that are not finite"),
    ],
)
def test_weights(refused: Callable[..., str], weights: str, message: str) -> None:
    good = resource("advdistill_demo:small.safetensors")
    tensors = load_file(good)
    Path("noise.safetensors").write_bytes(bytes(range(256)) * 2)
    Path("cut.safetensors").write_bytes(good.read_bytes()[:-1000])
    Path("evil.pt").write_bytes(pickle.dumps(Evil()))
    Path("evil.safetensors").write_bytes(pickle.dumps(Evil()))
    torch.save(tensors, "cut.pt")
    Path("cut.pt").write_bytes(Path("cut.pt").read_bytes()[:-1000])
    save_file({name: t for name, t in tensors.items() if "ln_post" not in name}, "part.safetensors")
    save_file({**tensors, "visual.proj": tensors["visual.proj"][:, 1:].contiguous()}, "shape.safetensors")
    save_file({**tensors, "visual.proj": tensors["visual.proj"] * torch.nan}, "nan.safetensors")
    said = refused(5, "train", write(student={**SMALL, "weights": weights}))
    assert message in said
    assert not Path("ran").exists()
    assert list(RUN.glob("[a-z]*")) == [], "the next try must find the folder free"


def test_wrong_architectures(refused: Callable[..., str]) -> None:
    large = {"use": "clip-tune", "model": "advdistill_demo:large.json", "weights": "advdistill_demo:small.safetensors"}
    assert "of another shape" in refused(5, "train", write(student=large))
    unknown = {"use": "clip-tune", "model": "ViT-B-33", "weights": "openai"}
    assert "did you mean ViT-B-32" in refused(5, "train", write(student=unknown))
    gelu = {"use": "clip-tune", "model": "ViT-B-32", "weights": "openai"}
    assert "write model: ViT-B-32-quickgelu" in refused(5, "train", write(student=gelu))


def test_checkpoints(refused: Callable[..., str], trained: Path) -> None:
    facts = read_header(trained)[0]
    data = trained.read_bytes()
    Path("cut.safetensors").write_bytes(data[:-1000])
    save_file(load_file(trained), "foreign.safetensors")
    Path("pickle.pt").write_bytes(pickle.dumps(Evil()))
    restate(trained, "newer.safetensors", format=99)
    restate(trained, "odd.safetensors", recipe=3)
    restate(trained, "less.safetensors", recipe=None)
    for name, message in {
        "nope.safetensors": "there is no checkpoint nope.safetensors",
        "cut.safetensors": "cut.safetensors is damaged: it has",
        "foreign.safetensors": "Foreign weights go into a recipe",
        "pickle.pt": "pickle.pt is a pickle",
        "newer.safetensors": "this version reads up to format 1\nUpgrade",
        "odd.safetensors": "its recipe cannot be what it says",
        "less.safetensors": "holds no model that is ready for use: it lacks recipe",
        str(RUN / "resume.safetensors"): "a run's model is its last.safetensors",
    }.items():
        assert message in refused(5, "attack", "--model", name, "--limit", 2)
    assert not Path("ran").exists()

    student = {**facts["recipe"], "student": {"use": "clip-magic"}}
    records = [{**record, "use": "clip-magic", "dist": "advdistill-magic", "version": "1.4"} if record["path"] ==
               "student" else record for record in facts["plugins"]]  # fmt: skip
    restate(trained, "magic.safetensors", recipe=student, plugins=records)
    said = refused(4, "attack", "--model", "magic.safetensors")
    assert "magic.safetensors: student 'clip-magic' comes from the package advdistill-magic 1.4" in said
    assert "pip install advdistill-magic==1.4" in said


# Run


def test_runs_keep_what_they_have(refused: Callable[..., str], cli: Cli) -> None:
    said = refused(1, "train", write(optim={"lr": 1e30}), "train.steps=6")
    assert "not finite at step 2: loss, student" in said and "lower optim.lr" in said
    assert all(tensor.isfinite().all() for tensor in load_file(LAST).values())
    taken = refused(1, "train", write())
    assert "holds a run that is not finished" in taken and f"advdistill train --resume {RUN}" in taken
    assert cli("train", write(), "--overwrite").code == 0
    kept = LAST.read_bytes()
    assert "holds a finished run" in refused(1, "train", write())
    Path("file").touch()
    assert "cannot write to file/run" in refused(1, "train", write(), "save.dir=file/run")
    assert LAST.read_bytes() == kept


def test_resuming_what_cannot_be(refused: Callable[..., str], trained: Path) -> None:
    assert "holds no run" in refused(5, "train", "--resume", "elsewhere")
    (RUN / "results.json").write_text("{")
    assert "results.json is damaged" in refused(5, "train", "--resume", RUN)
    (RUN / "results.json").unlink()
    recipe = RUN / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 0", "seed: 5", 1))
    assert "undo what was changed in recipe.yaml" in refused(5, "train", "--resume", RUN)
    point = RUN / "resume.safetensors"
    point.write_bytes(point.read_bytes()[:-100])
    assert "resume.safetensors is damaged" in refused(5, "train", "--resume", RUN)


# Command line


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["trian", "r.yaml"], 2, "did you mean 'train'?"),
        (["train"], 2, "which recipe?"),
        (["train", "r.yaml", "optim.lr"], 2, "'optim.lr' is not an override"),
        (["train", "r.yaml", "optim.lrr=3"], 3, "did you mean 'lr'?"),
        (["train", "r.yaml", "threat.eps=8"], 3, "write eps: 8/255"),
        (["train", "r.yaml", "train.device=gpu"], 2, "use cpu, cuda or auto"),
        (["train", "r.yaml", "--plugin", "nope.py"], 4, "cannot read the plugin file nope.py"),
        (["attack"], 2, "which model?"),
        (["attack", "--model", "ViT-B-32-quickgelu"], 5, "ViT-B-32-quickgelu@openai"),
        (["attack", "--model", "ViT-B-32@openai", "--attack", "pgd"], 2, "--data DIR"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else None,
)
def test_words(refused: Callable[..., str], words: list[str], code: int, message: str) -> None:
    write()
    assert message in refused(code, *words)
    assert list(RUN.glob("[a-z]*")) == []


def test_words_of_attack(refused: Callable[..., str], trained: Path) -> None:
    for code, words, message in [
        (2, ["--attack", "pgd", "--eps", "8"], "write it like 8/255"),
        (2, ["--attack", "pgd", "--eps", "0"], "--eps 0 attacks nothing"),
        (2, ["--attack", "pgd", "steps"], "'steps' is not a setting\nWrite key=value, like steps=20."),
        (3, ["--attack", "pgd", "stesp=3"], "did you mean 'step'?"),
        (3, ["--attack", "pdg"], "did you mean 'pgd'?"),
        (2, ["steps=3"], "is a setting of an attack, but none is named"),
        (2, ["--attack", "pgd", "--norm", "l1"], "--norm l1 needs a radius of its own"),
        (2, ["--attack", "pgd", "--norm", "l1", "--eps", "9"], "attack 'pgd' knows l2, linf, not l1"),
        (5, ["--data", "nowhere"], "there is no folder nowhere"),
    ]:
        assert message in refused(code, "attack", "--model", trained, *words)


def test_a_packaged_model_can_be_attacked_undefended(cli: Cli) -> None:
    data = photos(4, "cat", "dog")
    model = "advdistill_demo:small.json@advdistill_demo:small.safetensors"
    words = ["--data", data["root"], "--attack", "fgsm", "--eps", "1/255", "--limit", 2]
    assert cli("attack", "--model", model, *words).code == 0


def test_a_broken_plugin_file_is_told_and_harms_nobody(cli: Cli, refused: Callable[..., str]) -> None:
    Path("bad.py").write_text("import nothing_there\n")
    said = cli("recipe", "validate", write(), "--plugin", "bad.py")
    assert said.code == 0
    assert "bad.py could not be loaded: ModuleNotFoundError: No module named 'nothing_there'" in said.out
    needed = refused(4, "train", "r.yaml", "attack.use=mine", "--plugin", "bad.py")
    assert "there is no attack named 'mine', unless it is one of a plugin's that could not be loaded" in needed
