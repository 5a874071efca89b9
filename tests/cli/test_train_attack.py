"""`advdistill train` and `advdistill attack`, most of it in processes of their own.

Guarantees:
- results go to stdout and talk to stderr; with --json stdout is one JSON document and nothing else;
- a run's folder holds its checkpoint, recipe, metrics and results, and the checkpoint attacked again gives the very
  numbers of the table;
- SIGTERM ends in exit code 130, with the command that goes on, and that command goes on;
- resuming a finished run prints its results and changes nothing;
- --save-images writes one PNG a sample, inside the ball around the clean pixels; --limit, --eps and settings are heard;
- --dry-run trains nothing and leaves no folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from advdistill_demo.configs import Digits as DigitsConfig
from advdistill_demo.digits import Digits
from cli_parts import Cli
from PIL import Image

MAIN = [sys.executable, "-c", "from advdistill.cli.main import main; main()"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "dumb"}
MODEL = "advdistill_demo:small.json@advdistill_demo:small.safetensors"
TREE: dict[str, Any] = {
    "advdistill": 1,
    "name": "tiny",
    "threat": {"eps": "8/255"},
    "data": {"use": "digits", "shots": 2},
    "student": {"use": "clip-tune", "model": "advdistill_demo:small.json",
                "weights": "advdistill_demo:small.safetensors"},
    "attack": {"use": "pgd", "steps": 1},
    "strategy": {"use": "adversarial-ce"},
    "optim": {"lr": 0.0003},
    "train": {"steps": 2, "batch_size": 4, "device": "cpu"},
    "evaluate": {
        "every": 1,
        "probe": {"limit": 10},
        "protocols": [
            {"name": "clean", "limit": 40},
            {"name": "PGD-3", "limit": 20, "attack": {"use": "pgd", "steps": 3}},
        ],
    },
}  # fmt: skip


def run(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MAIN, *map(str, words)], cwd=folder, env=ENV, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with a finished run, and what the process said."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "r.yaml").write_text(yaml.safe_dump(TREE))
    return folder, run(folder, "train", "r.yaml", "--json")


@pytest.fixture
def checkpoint(trained: tuple[Path, Any]) -> Path:
    return trained[0] / "runs" / "tiny" / "last.safetensors"


def test_training(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, said = trained
    assert said.returncode == 0, said.stderr
    rows = json.loads(said.stdout)
    assert [row["subject"] for row in rows] == ["undefended", "student"]
    assert rows == json.loads((folder / "runs/tiny/results.json").read_text())
    assert rows[0]["protocols"]["clean"]["hits"] >= 36  # real weights, real digits
    assert {path.name for path in (folder / "runs/tiny").iterdir()} - {".lock"} == {
        "last.safetensors", "resume.safetensors", "recipe.yaml", "metrics.jsonl", "results.json", "cost.json",
        "manifest.json",
    }  # fmt: skip
    assert said.stderr.strip() and "Traceback" not in said.stderr


def test_resuming_a_finished_run_prints_its_results(trained: tuple[Path, Any], cli: Cli) -> None:
    run_folder = trained[0] / "runs" / "tiny"
    before = {path.name: path.read_bytes() for path in run_folder.iterdir()}
    said = cli("train", "--resume", run_folder)
    assert said.code == 0 and "is finished" in said.err
    assert "student" in said.out and "PGD-3" in said.out and "is finished" not in said.out
    assert json.loads(cli("train", "--resume", run_folder, "--json").out) == json.loads(before["results.json"])
    assert {path.name: path.read_bytes() for path in run_folder.iterdir()} == before


def test_training_again_into_the_same_folder(trained: tuple[Path, Any], cli: Cli, monkeypatch: Any) -> None:
    monkeypatch.chdir(trained[0])
    said = cli("train", "r.yaml")
    assert said.code == 1 and "holds a finished run" in said.err and "--overwrite" in said.err and said.out == ""


def test_a_dry_run_leaves_nothing(trained: tuple[Path, Any], cli: Cli, tmp_path: Path) -> None:
    said = cli("train", trained[0] / "r.yaml", "--dry-run", "--json", "name=other")
    plan = json.loads(said.out)
    assert said.code == 0 and plan["steps"] == 2 and plan["sizes"]["student"]["learns"] > 0
    assert list(tmp_path.iterdir()) == []


def steps_of(folder: Path) -> list[int]:
    path = folder / "runs/tiny/metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if '"step_done"' in line and line.endswith("\n")]


def stop_after(folder: Path, step: int, *words: str) -> tuple[int, str, str]:
    """Start a run, ask it to stop once it has done more than `step` steps; its exit code, stdout and stderr."""
    process = subprocess.Popen(
        [*MAIN, "train", *words], cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and max(steps_of(folder), default=0) <= step:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_polite_stop_and_going_on(tmp_path: Path) -> None:
    endless = {**TREE, "train": {**TREE["train"], "steps": 100_000}, "evaluate": {"undefended": False}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(endless))
    last = 0
    for words in (["r.yaml"], ["--resume", "runs/tiny"]):
        code, out, err = stop_after(tmp_path, last, *words)
        assert code == 130, err
        assert out == "" and "advdistill train --resume runs/tiny" in err and "Traceback" not in err
        steps = steps_of(tmp_path)
        assert steps == list(range(1, len(steps) + 1)) and len(steps) > last
        last = len(steps)


def test_attacking_a_checkpoint_gives_the_tables_numbers(checkpoint: Path, tmp_path: Path) -> None:
    said = run(tmp_path, "attack", "--model", checkpoint, "--json")
    assert said.returncode == 0, said.stderr
    stored = json.loads(checkpoint.with_name("results.json").read_text())[1]
    assert json.loads(said.stdout)["protocols"] == stored["protocols"]
    assert list(tmp_path.iterdir()) == []


def test_a_table_on_stdout(checkpoint: Path, cli: Cli) -> None:
    said = cli("attack", "--model", checkpoint, "--attack", "fgsm", "--limit", 10)
    assert said.code == 0 and said.err == ""
    assert "fgsm" in said.out and "clean" in said.out and str(checkpoint) in said.out.replace("\n", "")


def test_settings_are_heard(checkpoint: Path, cli: Cli) -> None:
    words = ["--attack", "pgd", "steps=2", "step=1/255", "--eps", "2/255", "--limit", 10, "--json"]
    row = json.loads(cli("attack", "--model", checkpoint, *words).out)
    statement = row["protocols"]["pgd steps=2 step=1/255"]["statement"]
    assert statement["threat"] == {"norm": "linf", "eps": 2 / 255} and statement["split"]["samples"] == 10
    assert statement["attack"]["steps"] == 2 and statement["attack"]["use"].endswith("pgd")
    assert row["protocols"]["clean"]["total"] == 10


def test_saved_images_lie_in_the_ball(checkpoint: Path, cli: Cli, tmp_path: Path) -> None:
    words = ["--attack", "pgd", "steps=3", "--eps", "6/255", "--limit", 20, "--save-images", tmp_path / "out", "--json"]
    said = cli("attack", "--model", checkpoint, *words)
    assert said.code == 0, said.err
    row = json.loads(said.out)["protocols"]["pgd steps=3"]
    (record,) = (tmp_path / "out").glob("*.jsonl")
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    split = Digits(DigitsConfig(shots=2)).split("test")
    clean = {name: split.load(i).numpy() * 255 for i, name in enumerate(split.ids)}
    assert len(lines) == 20 and sum(line["withstood"] for line in lines) == row["hits"] < 20
    for line in lines:
        with Image.open(tmp_path / "out" / line["file"]) as image:
            assert image.mode == "RGB" and image.size == (32, 32)
            moved = np.abs(np.asarray(image).transpose(2, 0, 1) - clean[line["id"]]).max()
        # These clean pixels are no whole levels: an image that was wrong already is saved to the nearest below.
        assert moved <= 6 + 1e-3
        assert (line["said"] == line["label"]) == line["withstood"]
    again = cli("attack", "--model", checkpoint, *words)
    assert again.code == 1 and "is not empty" in again.err and again.out == ""


def test_an_undefended_model_on_a_folder(cli: Cli, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("one", "two"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(5):
            pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    said = cli("attack", "--model", MODEL, "--data", "photos", "--attack", "ta-pgd", "--eps", "8/255", "--json")
    assert said.code == 0, said.err
    row = json.loads(said.out)
    assert row["subject"] == MODEL and row["protocols"]["ta-pgd"]["hits"] <= row["protocols"]["clean"]["hits"]
    missing = cli(
        "attack", "--model", MODEL.replace("small.safe", "absent.safe"), "--data", "photos", "--attack", "pgd",
        "--eps", "8/255",
    )  # fmt: skip
    assert missing.code == 5 and "absent.safetensors" in missing.err
