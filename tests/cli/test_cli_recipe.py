"""`advdistill recipe`.

Guarantees:
- `list` shows every recipe that needs no path, with a summary;
- `show` prints the whole recipe, each value with its origin, as YAML that reads back; `--json` prints the same tree;
- `validate` reports every problem at once with exit code 3, as text or JSON, and warnings;
- `diff` lists what differs; `copy` keeps comments, makes a recipe that means the same where it lies, and never
  overwrites unasked; `schema` prints JSON.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_parts import Cli

from advdistill.hooks.registry import default_registry
from advdistill.recipe.loader import recipe_files
from advdistill.recipe.nodes import parse

SMALL = """\
# A small one. With a second sentence.
advdistill: 1
threat: {norm: linf, eps: 8/255}
data: {use: digits}
student: {use: clip-tune, model: "advdistill_demo:small.json", weights: random}
strategy: {use: adversarial-ce}
attack: {use: pgd, steps: 3}
optim: {lr: 1e-3}
train: {steps: 5}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path / "small.yaml"


def test_list(cli: Cli) -> None:
    said = cli("recipe", "list")
    assert (said.code, said.err) == (0, "")
    header, *rows = said.out.splitlines()
    assert header.split() == ["NAME", "FROM", "SUMMARY"]
    assert [row.split()[0] for row in rows] == [file.stem for file, _ in recipe_files(default_registry())]
    assert all(len(row.split()) > 4 for row in rows), "a recipe without a summary"
    listed = json.loads(cli("recipe", "list", "--json").out)
    assert {row["name"] for row in listed} >= {"quickstart", "demo_clean"}
    assert all(Path(row["path"]).is_file() for row in listed)


def test_show(cli: Cli, small: Path) -> None:
    said = cli("recipe", "show", "small", "attack.steps=4", "optim.lr=1e-4")
    assert (said.code, said.err) == (0, "")
    lines = {line.split("#")[0].strip(): line.split("#")[1].strip() for line in said.out.splitlines() if "#" in line}
    assert lines["steps: 4"] == "override"
    assert lines["lr: 0.0001"] == "override"
    assert lines["eps: 8/255"] == "small.yaml:3:27"
    assert lines["batch_size: 64"] == "default"
    assert lines["name: small"] == "default"
    tree = parse(said.out, "shown").plain()
    assert tree == json.loads(cli("recipe", "show", "small", "attack.steps=4", "optim.lr=1e-4", "--json").out)
    Path("again.yaml").write_text(said.out)
    assert json.loads(cli("recipe", "show", "again", "--json").out) == tree


def test_a_valid_recipe(cli: Cli, small: Path) -> None:
    assert cli("recipe", "validate", small).out == "small is valid\n"
    weak = ["attack.step=1/255", "attack.random_start=false"]
    said = cli("recipe", "validate", small, *weak)
    assert said.code == 0
    assert said.out == "small is valid\nwarning: attack: 3 steps of 1/255 cannot reach eps 8/255\n"
    assert json.loads(cli("recipe", "validate", small, "--json").out) == {
        "valid": True,
        "problems": [],
        "warnings": [],
    }


def test_an_invalid_recipe(cli: Cli) -> None:
    Path("bad.yaml").write_text(SMALL.replace("eps: 8/255", "eps: 8").replace("lr: 1e-3", "lrr: 1e-3"))
    said = cli("recipe", "validate", "bad")
    assert (said.code, said.out) == (3, "")
    assert said.err == (
        "error: bad.yaml:3:27: threat.eps: 8 is wider than the whole pixel range, 0 to 1; write eps: 8/255\n"
        "    threat: {norm: linf, eps: 8}\n"
        "                              ^\n"
        "bad.yaml:8:1: optim.lr: missing: Peak learning rate.\n"
        "    optim: {lrr: 1e-3}\n"
        "    ^\n"
        "bad.yaml:8:9: optim.lrr: unknown key; did you mean 'lr'?\n"
        "    optim: {lrr: 1e-3}\n"
        "            ^\n"
    )
    told = cli("recipe", "validate", "bad", "--json")
    assert told.code == 3
    assert [problem["path"] for problem in json.loads(told.out)["problems"]] == ["threat.eps", "optim.lr", "optim.lrr"]


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("", 3, "bad.yaml:1:1: the recipe is empty"),
        ("a:\n\tb: 1", 3, "bad.yaml:2:1: "),
        ("a: 1\na: 2", 3, "key 'a' stands twice; first on line 1"),
        (
            "a: !!python/object/apply:os.system ['touch hacked']",
            3,
            "tag !!python/object/apply:os.system is not allowed",
        ),
        ("extends: bad.yaml", 3, "a recipe cannot extend itself: bad.yaml -> bad.yaml"),
        (SMALL.replace("use: pgd", "use: pgdd"), 3, "there is no attack named 'pgdd'; did you mean 'pgd'?"),
        (SMALL.replace("use: pgd", "use: other-dist:pgd"), 4, "'other-dist', which is not installed"),
        ("x: " + "y" * 10_000_000, 3, "9.5 MiB is no recipe"),
    ],
)
def test_bad_files(cli: Cli, text: str, code: int, message: str) -> None:
    Path("bad.yaml").write_text(text)
    said = cli("recipe", "validate", "bad.yaml")
    assert (said.code, said.out) == (code, "")
    assert message in said.err
    assert "Traceback" not in said.err
    assert not Path("hacked").exists()


def test_a_recipe_that_is_not_there(cli: Cli) -> None:
    said = cli("recipe", "validate", "quickstrat")
    assert said.code == 3
    assert said.err.startswith("error: there is no recipe 'quickstrat'; did you mean 'quickstart'?\n")


def test_diff(cli: Cli, small: Path) -> None:
    Path("other.yaml").write_text("extends: small.yaml\nattack: {steps: 9}\ntrain: {epochs: 1, steps: null}\n")
    said = cli("recipe", "diff", "small", "other")
    assert (said.code, said.err) == (0, "")
    assert said.out == (
        "KEY           small       other\n"
        "name          small       other\n"
        "attack.steps  3           9\n"
        "train.steps   5           0\n"
        "train.epochs  0           1\n"
        "save.dir      runs/small  runs/other\n"
    )
    changes = json.loads(cli("recipe", "diff", "small", "other", "--json").out)
    assert changes[1] == {"path": "attack.steps", "sides": "both", "left": 3, "right": 9}
    assert cli("recipe", "diff", "small", "small").out == "no difference\n"


def test_copy(cli: Cli, small: Path) -> None:
    said = cli("recipe", "copy", "small", "mine.yaml")
    assert (said.code, said.out, said.err) == (0, "mine.yaml\n", "")
    assert Path("mine.yaml").read_text() == SMALL
    Path("mine.yaml").write_text("kept")
    again = cli("recipe", "copy", "small", "mine.yaml")
    assert again.code == 2
    assert again.err == (
        "error: mine.yaml is there already\n"
        "Choose another name, or: advdistill recipe copy small mine.yaml --overwrite\n"
    )
    assert Path("mine.yaml").read_text() == "kept"
    assert cli("recipe", "copy", "small", "mine.yaml", "--overwrite").code == 0
    assert Path("mine.yaml").read_text() == SMALL
    Path("folder").mkdir()
    assert cli("recipe", "copy", "small", "folder").out == "folder/small.yaml\n"
    assert cli("recipe", "copy", "small", "nowhere/mine.yaml").code == 2


def test_a_copy_extends_the_same_recipe(cli: Cli, small: Path) -> None:
    Path("deep").mkdir()
    Path("deep/child.yaml").write_text("# C\nextends: ../small.yaml  # the parent\nseed: 3\n")
    assert cli("recipe", "copy", "deep/child.yaml").code == 0
    assert Path("child.yaml").read_text() == "# C\nextends: small  # the parent\nseed: 3\n"
    Path("elsewhere").mkdir()
    assert cli("recipe", "copy", "deep/child.yaml", "elsewhere").code == 0
    assert Path("elsewhere/child.yaml").read_text() == "# C\nextends: ../small.yaml  # the parent\nseed: 3\n"
    Path("far/away").mkdir(parents=True)
    assert cli("recipe", "copy", "deep/child.yaml", "far/away").code == 0
    assert Path("far/away/child.yaml").read_text() == f"# C\nextends: {small}  # the parent\nseed: 3\n"
    for copied in ("child.yaml", "elsewhere/child.yaml", "far/away/child.yaml"):
        assert json.loads(cli("recipe", "show", copied, "--json").out)["seed"] == 3


def test_every_shipped_recipe_is_valid_where_it_is_copied_to(cli: Cli) -> None:
    for file, _ in recipe_files(default_registry()):
        copied = cli("recipe", "copy", file.stem, f"{file.stem}-copy.yaml")
        assert (copied.code, copied.err) == (0, "")
        assert cli("recipe", "validate", f"{file.stem}-copy.yaml").code == 0


def test_schema(cli: Cli) -> None:
    said = cli("recipe", "schema")
    assert (said.code, said.err) == (0, "")
    assert "clip-lora" in json.loads(said.out)["$defs"]["student-block"]["properties"]["use"]["enum"]


def test_a_plugin_file_serves_every_command(cli: Cli, small: Path) -> None:
    Path("own.py").write_text(
        "from advdistill import AttackSpec, Config, hookimpl\n"
        "class Settings(Config):\n    speed: int = 3\n    'How fast.'\n"
        "@hookimpl\ndef advdistill_attacks():\n"
        "    yield AttackSpec(name='own', target='a:B', config=Settings, norms={'linf'}, objective=True)\n"
    )
    words = ["small", "attack={use: own}", "--plugin", "own.py"]
    assert cli("recipe", "validate", *words).code == 0
    shown = json.loads(cli("recipe", "show", *words, "--json").out)
    assert shown["attack"] == {"use": "own", "speed": 3}
    assert shown["plugins"] == [str(Path("own.py").resolve())]
    assert cli("recipe", "validate", *words[:2]).code == 3
    assert cli("recipe", "validate", *words[:3], "gone.py").code == 4
    assert "speed" in cli("plugins", "show", "own", "--plugin", "own.py").out
