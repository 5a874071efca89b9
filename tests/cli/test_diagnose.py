"""`advdistill diagnose`.

Guarantees:
- doubts: a table with every indicator, flags first, and at the end how many doubt; a flag is a finding, so the exit
  code is 0; `--json` holds the same, and says on which samples;
- teachers: each teacher of the checkpoint's recipe and each that is named, on x and x', with the bound and in words;
- relevance: how alike maps are, as numbers; radar: models side by side, or one with its relatives, on given data too;
- `--out` gets the pictures, whole, and diagnosis.json, which says what `--json` says;
- what does not apply is left out with a note, or is an error where it was asked for; wrong calls say what to do, before
  anything is measured.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_parts import Cli

from advdistill.engine import build, checkpoint
from advdistill.engine.probes import PROBES
from advdistill.engine.types import Clock
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import Recipe, load_recipe

MODEL = "advdistill_demo:clean_prompts.safetensors"
PAIRS = "advdistill_demo:pairs_clean.safetensors"
ROBUST = "advdistill_demo:robust.safetensors"
FEW = ("--limit", "4", "--eps", "32/255")
TOYS = Path(__file__).parents[1] / "unit" / "toy_plugin.py"
TOY = """
advdistill: 1
threat: {eps: 8/255}
data: {use: toy}
student: {use: toy}
attack: {use: toy}
strategy: {use: adversarial-ce}
optim: {lr: 0.01}
train: {steps: 1, batch_size: 20, device: cpu}
"""
QUICK = ("--attack", "pgd", "steps=2", "--limit", "8")


def written(path: Path, made: Recipe) -> Path:
    """A checkpoint of a recipe's student and teachers before the first step."""
    parts = build.parts(made, default_registry().with_files(made.plugin_hashes))
    facts = checkpoint.facts(made, parts.student, {}, Clock(step=0, steps=1, epoch=0))
    checkpoint.write(path, checkpoint.learned(parts.student, parts.teachers), facts)
    return path


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """The quickstart's student, which has two teachers."""
    made = load_recipe("quickstart", ["train.device=cpu"])
    return written(tmp_path_factory.mktemp("taught") / "taught.safetensors", made)


def test_a_table_and_how_many_doubt(cli: Cli) -> None:
    # One short step from the clean image: not converged.
    weak = ("--attack", "pgd", "steps=1", "step=0.1/255", "random_start=false")
    said = cli("diagnose", "--model", MODEL, "--part", "doubts", *FEW, *weak)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{MODEL}: right about 4 of 4 after pgd steps=1") and "linf 32/255" in lines[0]
    assert lines[2].split() == ["verdict", "indicator", "seen", "threshold", "what", "to", "do"]
    verdicts = [line.split()[0] for line in lines[3:-2]]
    assert verdicts == sorted(verdicts, key=["flag", "unknown", "ok"].index)
    assert "flag" in verdicts
    assert any("scores beat white-box" in line and line.startswith("flag") for line in lines)
    flags, unknown = verdicts.count("flag"), verdicts.count("unknown")
    assert lines[-1] == f"{flags} of {len(verdicts)} indicators doubt these numbers ({unknown} could not tell)"


def test_json_and_all_that_applies(cli: Cli) -> None:
    said = cli("diagnose", "--model", MODEL, *FEW, "steps=5", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert {each["name"] for each in found["indicators"]} >= PROBES.keys()
    assert found["flags"] == sum(each["verdict"] == "flag" for each in found["indicators"])
    assert {each["column"] for each in found["indicators"] if each["name"] == "stochastic"} == {"apgd, 4 of test"}
    assert found["statement"]["attack"]["steps"] == 5 and found["total"] == 4
    assert f"{MODEL} had no teachers" in said.err and "teachers" not in found
    assert list(found["relevance"]) == ["student"]
    assert [each["model"] for each in found["radar"]["models"]] == ["student", "undefended"]


def test_teachers_maps_and_relatives(cli: Cli, taught: Path) -> None:
    parts = ("--part", "teachers", "--part", "relevance", "--part", "radar")
    said = cli("diagnose", "--model", taught, *parts, *QUICK, "--out", "why/not", "--json")
    assert said.code == 0, said.err
    found, out = json.loads(said.out), Path("why/not")
    assert {path.name for path in out.iterdir()} == {"relevance.png", "radar.png", "diagnosis.json"}
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in ("relevance.png", "radar.png"))
    assert found == json.loads((out / "diagnosis.json").read_text(encoding="utf-8"))
    teachers, radar = found["teachers"], found["radar"]
    assert list(teachers) == ["clean", "robust"]
    for each in teachers.values():
        bound = {key: each["bound"][key]["hits"] for key in ("student wrong", "teacher wrong", "disagree")}
        assert bound["student wrong"] <= bound["teacher wrong"] + bound["disagree"]
        assert bound["student wrong"] == found["total"] - found["hits"]
    assert {"x and x'", "student's on x", "student's on x'"} == found["relevance"]["robust teacher"].keys()
    assert [each["model"] for each in radar["models"]] == ["student", "undefended", "clean teacher", "robust teacher"]
    assert radar["models"][0]["robust"]["hits"] == found["hits"]
    assert radar["models"][0]["flops"] < radar["models"][2]["flops"]
    assert set(radar["left out"]) == {"zero-shot", "shift"}


def test_teachers_that_are_named(cli: Cli, taught: Path) -> None:
    said = cli("diagnose", "--model", taught, "--teacher", ROBUST, "--part", "teachers", *QUICK)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    # It is the recipe's own robust teacher once more, and says the same.
    own, named = ([line.split()[1:] for line in lines if line.startswith(f"{n} ")] for n in ("robust", ROBUST))
    assert len(own) == 3 and own == named
    assert any(line.startswith(f"{ROBUST}: the ") or "right about all" in line for line in lines)


def test_models_side_by_side(cli: Cli) -> None:
    data = ("--zero-shot", "number-pairs", "--shift", "use: digits, split_seed: 1", "--shift", "digits")
    said = cli("diagnose", "--model", ROBUST, "--model", MODEL, "--part", "radar", *data, *QUICK)
    assert said.code == 0, said.err
    table = [line for line in said.out.splitlines() if "MFLOP" in line]
    head = next(line for line in said.out.splitlines() if line.startswith("model "))
    assert head.split() == ["model", "clean", "robust", "zero-shot", "shift", "cost", "parameters"]
    assert [line.split()[0] for line in table] == ["robust", "clean_prompts"]
    assert all(line.count("%") == 4 for line in table) and "axis" not in said.out


def test_a_model_without_maps_or_teachers(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(TOY)
    path = written(tmp_path / "toy.safetensors", load_recipe(tmp_path / "toy.yaml", plugins=[TOYS]))
    said = cli("diagnose", "--model", path, "--plugin", TOYS, "--part", "relevance", *QUICK)
    assert said.code == 2 and "ToyModel has no relevance maps" in said.err and "leave out --part" in said.err
    said = cli("diagnose", "--model", path, "--plugin", TOYS, *QUICK)
    assert said.code == 0, said.err
    assert "student: ToyModel has no relevance maps" in said.err and "how alike" not in said.out
    assert "had no teachers" in said.err and "models side by side" in said.out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 2, "which model?"),
        (("--model", MODEL, "--attack", "pgdd"), 3, "pgd"),
        (("--model", MODEL, "steps=0"), 3, "steps"),
        (("--model", MODEL, "--eps", "0"), 2, "eps 0"),
        (("--model", MODEL, "--norm", "l0", "--eps", "5"), 2, "apgd"),
        (("--model", "nothing.safetensors"), 5, "nothing.safetensors"),
        (("--model", MODEL, "--model", MODEL), 2, "given twice"),
        (("--model", MODEL, "--part", "teacher"), 2, "did you mean 'teachers'"),
        (("--model", MODEL, "--part", "teachers"), 2, "--teacher CHECKPOINT"),
        (("--model", MODEL, "--teacher", "nobody.safetensors"), 5, "nobody.safetensors"),
        (("--model", MODEL, "--teacher", PAIRS), 2, f"the 80 that {PAIRS} was trained on"),
        (("--model", MODEL, "--part", "doubts", "--shift", "digits"), 2, "--part radar"),
        (("--model", MODEL, "--part", "radar", "--shift", "shots: 2"), 2, "names no data set"),
        (("--model", MODEL, "--part", "radar", "--zero-shot", "digitz"), 3, "did you mean 'digits'"),
        (("--model", MODEL, "--part", "radar", "--shift", "digits", "--zero-shot", "x"), 3, "--zero-shot: data.use"),
        (("--model", MODEL, "--model", ROBUST, "--norm", "l2"), 2, "needs a radius of its own"),
        (("--model", MODEL, "--part", "radar", "--shift", "use: folder, root: nowhere"), 5, "nowhere"),
        (("--model", MODEL, "--out", "/proc/nothing"), 1, "another --out"),
    ],
)
def test_wrong_calls(cli: Cli, words: tuple[str, ...], code: int, told: str) -> None:
    said = cli("diagnose", *words)
    assert said.code == code and told in said.err and not said.out
