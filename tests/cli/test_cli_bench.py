"""`advdistill bench`.

Guarantees:
- a table of phases, floor and estimate, what memory, learning and answering take; with --json the same as one document
  with units in its names, and nothing else on stdout; nothing is written but the chart that was asked for;
- --all prints a row a method, the failed ones with their reason, and then exits with 1;
- --data says which is the limit and what to set;
- a dry run says how long the steps take, and counts what is kept of teachers once;
- what cannot be meant is told, with the exit codes of all commands.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_parts import Cli

from advdistill.engine import bench as engine
from advdistill.recipe.resolve import load_recipe

SOURCE = {"model": "advdistill_demo:small.json", "weights": "advdistill_demo:small.safetensors"}
TREE: dict[str, Any] = {
    "advdistill": 1,
    "threat": {"eps": "8/255"},
    "data": {"use": "digits", "shots": 2},
    "student": {"use": "clip-prompts", **SOURCE, "text": {"depth": 1}, "visual": {"depth": 1}},
    "attack": {"use": "pgd", "steps": 1},
    "strategy": {"use": "adversarial-ce"},
    "optim": {"lr": 0.0003},
    "train": {"steps": 2, "batch_size": 4, "device": "cpu"},
    "evaluate": {"batch_size": 4},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "median_of", lambda seconds, least, budget: seconds())


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe, alone in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TREE))
    return path


def test_a_recipe_s_steps(tiny: Path, cli: Cli) -> None:
    said = cli("bench", tiny, "--steps", 1, "--chart", "cost.png")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].startswith("tiny: adversarial-ce, 4 images a step; cpu, fp32, ")
    assert lines[1].split() == ["phase", "s/step", "share", "floor", "s", "estimated", "s"]
    first = [line.split("  ")[0] for line in lines[2:]]
    assert first[:7] == ["data", "class features", "attack", "student", "optimizer", "other", "step"]
    heads = ["training", "memory", "learns", "hardened", "undefended", "arithmetic"]
    assert first[7:13] == heads and "x its floor" in lines[9]
    assert (tiny.parent / "cost.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tiny.parent.iterdir()) == ["cost.png", "tiny.yaml"]


def test_json_has_units_in_its_names(tiny: Path, cli: Cli) -> None:
    said = cli("bench", tiny, "train.batch_size=3", "--steps", 1, "--json", "--random-weights")
    found = json.loads(said.out)
    assert said.code == 0 and found["batch_size"] == 3 and found["recipe"] == "tiny"
    assert found["seconds_per_step"] > 0 and found["peak_memory_bytes"] > 0 and found["ratio_to_floor"] > 0
    assert found["inference"]["hardened"]["latency_seconds"] > 0 and found["flops_by_phase"]["attack"] > 0
    assert found["parameters"]["student"]["learns"] > 0 and found["notes"] == []


@pytest.mark.slow
def test_all_methods_are_rows(tiny: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ["teachers.robust={use: checkpoint, path: /no/such.safetensors}", "strategy={use: ard}"]
    gone = ["data={use: folder, root: /no/such, shots: 1, size: 32}"]
    good, bad = load_recipe(tiny, gone), load_recipe(tiny, missing)
    asked = []
    monkeypatch.setattr(engine, "methods", lambda *given: asked.append(given) or [bad, good])
    said = cli("bench", "--all", "train.batch_size=2", "--steps", 1, "--backbone", "ViT-B-32", "--chart", "all.svg")
    assert said.code == 1 and asked[0][1:] == (["train.batch_size=2"], "ViT-B-32")
    rows = [line.split() for line in said.out.splitlines()]
    assert rows[0][:3] == ["method", "s/step", "x"]
    assert rows[1][:2] == ["ard", "failed"] and "/no/such.safetensors" in said.out
    assert rows[2][0] == "adversarial-ce" and rows[2][2] == "1.0"
    assert "note: adversarial-ce: not on this machine: data: there is no folder /no/such" in said.err
    assert (tiny.parent / "all.svg").exists()
    found = json.loads(cli("bench", "--all", "--steps", 1, "--json").out)
    assert "/no/such" in found[0]["error"] and found[1]["ratio_to_cheapest"] == 1


@pytest.mark.slow
def test_loading_or_computing(tiny: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = engine.loading_rates
    monkeypatch.setattr(engine, "loading_rates", lambda *given: rates(*given, seconds=0.1))
    said = cli("bench", tiny, "--steps", 1, "--data")
    heads = [line.split()[0] for line in said.out.splitlines()]
    assert said.code == 0 and heads == ["computing", "loading", "augmenting", "workers", "limit"]
    assert json.loads(cli("bench", tiny, "--steps", 1, "--data", "--json").out)["limit"] in ("loading", "computing")


def test_a_dry_run_says_how_long(tiny: Path, cli: Cli) -> None:
    said = cli("train", tiny, "--dry-run")
    assert "at the rate of a matrix product on this machine in fp32" in said.out
    assert "at least" not in next(line for line in said.out.splitlines() if line.startswith("time"))
    few = ("quickstart", "--dry-run", "data={use: digits, shots: 2, shift: 0}", "attack.steps=1", "train.steps=null")
    paid = {}
    for epochs in (1, 9):
        said = cli("train", *few, f"train.epochs={epochs}", "train.batch_size=5", "--json")
        plan = json.loads(said.out)
        paid[epochs] = plan["flops_per_step"]["clean teacher"] / plan["flops_of_first_step"]["clean teacher"]
    assert paid == {1: 1, 9: pytest.approx(1 / 9)}
    told = cli("train", *few, "train.epochs=9", "train.batch_size=5").out
    assert "clean teacher asked about clean images in the first epoch only" in told
    elsewhere = cli("train", tiny, "--dry-run", "train.device=cuda:7")
    assert elsewhere.code == 0 and "cuda:7 cannot be used here" in elsewhere.out
    assert json.loads(cli("train", tiny, "--dry-run", "--json").out)["flops_per_step"]["attack"] > 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "which recipe?"),
        (("--all", "quickstart"), 2, "it takes no recipe"),
        (("quickstart", "--backbone", "ViT-B-32"), 2, "--backbone goes with --all"),
        (("--all", "--backbone", "ViT-Z-99"), 5, "ViT-Z-99"),
        (("--all", "nonsense=1"), 3, "nonsense"),
        (("--all", "--data"), 2, "--data looks at one recipe"),
        (("quickstart", "--chart", "cost.docx"), 2, ".png"),
        (("no-such-recipe",), 3, "no-such-recipe"),
        (("{tiny}", "--data", "data={use: folder, root: /no/such}"), 5, "/no/such"),
        (("{tiny}", "student.weights=/no/such.safetensors"), 5, "/no/such.safetensors"),
        (("{tiny}", "train.device=cuda:7"), 2, "cuda:7"),
    ],
)
def test_what_cannot_be_meant(tiny: Path, cli: Cli, words: tuple[str, ...], code: int, message: str) -> None:
    said = cli("bench", *(str(tiny) if word == "{tiny}" else word for word in words))
    assert (said.code, said.out) == (code, "") and message in said.err and "Traceback" not in said.err
