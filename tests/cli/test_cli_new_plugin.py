"""`advdistill new-plugin`.

Guarantees:
- for every kind: the package builds, is found by its entry point, its own tests pass, and its recipe trains;
- names, kinds and folders that cannot be are usage errors, and nothing that is there is overwritten.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_parts import Cli

from advdistill.hooks.specs import KINDS

# Wheels are unpacked, not installed: this is what pip would put on the path, and the environment stays as it is.
PROGRAM = """
import os, sys, zipfile
from pathlib import Path
import hatchling.build, pytest, torch

root, site = Path.cwd(), Path.cwd() / "site"
torch.set_num_threads(1)
folders = sorted(root.glob("advdistill-*"))
for folder in folders:
    os.chdir(folder)
    with zipfile.ZipFile(root / hatchling.build.build_wheel(str(root))) as wheel:
        wheel.extractall(site)
os.chdir(root)
sys.path.insert(0, str(site))
tests = [str(folder / "tests") for folder in folders]
code = pytest.main(["-q", "-p", "no:cacheprovider", "--import-mode=importlib", *tests])
assert code == 0, code

from advdistill.cli.main import app
from advdistill.hooks.registry import default_registry
for folder in folders:
    name = folder.name.removeprefix("advdistill-")
    (entry,) = [entry for entry in default_registry().entries() if entry.spec.name == name]
    assert (entry.plugin.dist, entry.plugin.version) == (folder.name, "0.1.0"), entry
    limits = ["train.steps=2", "evaluate.protocols.0.limit=8", "evaluate.undefended=false", "evaluate.teachers=false"]
    try:
        app(["train", name, *limits], prog_name="advdistill")
    except SystemExit as left:
        assert not left.code, (name, left.code)
    assert (root / "runs" / name / "last.safetensors").is_file(), name
print("trained", len(folders))
"""


def test_what_it_makes_installs_passes_its_tests_and_trains(cli: Cli, tmp_path: Path) -> None:
    for kind in KINDS:
        said = cli("new-plugin", f"my-{kind}", "--kind", kind)
        assert said.code == 0
        assert all(Path(line).is_file() for line in said.out.splitlines())
        assert said.err.endswith(f"advdistill train my-{kind}\n")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"trained {len(KINDS)}" in done.stdout


def test_the_files(cli: Cli) -> None:
    said = cli("new-plugin", "soft-steps", "--kind", "attack", "--dir", "here")
    assert said.out == (
        "here/pyproject.toml\n"
        "here/README.md\n"
        "here/advdistill_soft_steps/__init__.py\n"
        "here/advdistill_soft_steps/configs.py\n"
        "here/advdistill_soft_steps/attack.py\n"
        "here/advdistill_soft_steps/recipes/soft-steps.yaml\n"
        "here/tests/test_soft_steps.py\n"
    )
    assert "class SoftStepsAttack(Attack):" in Path("here/advdistill_soft_steps/attack.py").read_text()
    assert not any("$" in file.read_text() for file in Path("here").rglob("*") if file.is_file())


def test_a_component_named_like_its_kind_does_not_hide_the_base_class(cli: Cli) -> None:
    cli("new-plugin", "attack", "--kind", "attack")
    assert "class OwnAttack(Attack):" in Path("advdistill-attack/advdistill_attack/attack.py").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["My_Attack", "--kind", "attack"], "'My_Attack' is not a name"),
        (["3d", "--kind", "attack"], "'3d' is not a name"),
        (["mine", "--kind", "attak"], "there is no kind 'attak'; did you mean 'attack'?"),
        (["mine"], "--kind"),
        (["pgd", "--kind", "attack"], "attack 'pgd' is there already"),
        (["mine", "--kind", "attack", "--dir", "full"], "full is there already"),
    ],
)
def test_what_cannot_be(cli: Cli, words: list[str], message: str) -> None:
    Path("full").mkdir()
    Path("full/kept").write_text("kept")
    said = cli("new-plugin", *words)
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert [path.name for path in Path().rglob("*")] == ["full", "kept"]
