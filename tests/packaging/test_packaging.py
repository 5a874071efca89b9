"""What is shipped, and that it works from where pip puts it.

Guarantees:
- folders in plugins/ = packages of the wheel = entry points, and plugins/ itself is no package;
- the wheel's top-level names are `advdistill*` only; every file of the sources and every recipe is in it, among them
  templates, the demo's models, configs and recipes, and py.typed;
- dependencies are those fifteen that are needed, and no more;
- a plugin's folder, copied out into the package that `new-plugin` makes and installed beside a wheel without it, shows
  up under its own distribution, and recipes that use it are valid again;
- no file names a machine's own paths or a package index.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.name for path in (ROOT / "plugins").iterdir() if path.is_dir())
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PULLED_OUT = "advdistill_apd"


def build_wheel(project: Path, into: Path) -> Path:
    """Without a network and without isolation."""
    program = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, into], cwd=project, capture_output=True, text=True, check=True
    )
    return into / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheel, built once."""
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def shipped(wheel: Path) -> set[str]:
    """The files in it."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def sources() -> list[Path]:
    """What the repository holds, relative to its root; where this is no repository, all that lies in its folders."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    folders = ("advdistill", "plugins", "recipes", "tests", "docs", ".ci")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    return [path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts]


def test_folders_are_packages_are_entry_points() -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(packages) == ["advdistill", *(f"plugins/{name}" for name in PLUGINS)]
    assert PROJECT["project"]["entry-points"] == {"advdistill": {name: name for name in PLUGINS}}
    assert all((ROOT / "plugins" / name / "__init__.py").is_file() for name in PLUGINS)
    assert [path.name for path in (ROOT / "plugins").iterdir() if path.is_file()] == []


def test_the_wheel_adds_nothing_but_its_own_names(shipped: set[str]) -> None:
    tops = {name.partition("/")[0] for name in shipped}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"advdistill", *PLUGINS}
    assert all(name.startswith("advdistill") for name in tops)


def test_the_wheel_is_complete(shipped: set[str]) -> None:
    expected = set()
    for path in sources():
        top, _, rest = path.as_posix().partition("/")
        if top == "advdistill":
            expected.add(path.as_posix())
        elif top in ("plugins", "recipes"):
            expected.add(rest if top == "plugins" else f"advdistill/_recipes/{rest}")
    assert expected - shipped == set()
    named = {
        "advdistill/py.typed",
        "advdistill/_recipes/quickstart.yaml",
        "advdistill/templates/common/pyproject.toml.tmpl",
        "advdistill_demo/small.json",
        "advdistill_demo/clean.safetensors",
        "advdistill_demo/robust.safetensors",
        "advdistill_demo/recipes/demo_clean.yaml",
    }
    assert named - shipped == set()


def test_the_teachers_are_small() -> None:
    demo = ROOT / "plugins" / "advdistill_demo"
    sizes = [(demo / f"{name}.safetensors").stat().st_size for name in ("clean", "robust")]
    assert sum(sizes) <= 4 * 2**20


def test_dependencies() -> None:
    names = [re.split(r"[^\w-]", line)[0] for line in PROJECT["project"]["dependencies"]]
    assert sorted(names) == [
        "huggingface_hub", "matplotlib", "open_clip_torch", "pluggy", "pydantic", "pyyaml", "rich", "safetensors",
        "scikit-learn", "scipy", "timm", "torch", "torchattacks", "torchvision", "typer",
    ]  # fmt: skip


def unpack(wheel: Path, site: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def advdistill(folder: Path, sites: list[Path], *words: str) -> subprocess.CompletedProcess[str]:
    """The command, from what was unpacked into `sites`, in `folder`."""
    return subprocess.run(
        [sys.executable, "-c", "from advdistill.cli.main import main; main()", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sites))},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_folder_of_plugins_is_a_package_of_its_own(wheel: Path, tmp_path: Path) -> None:
    host = unpack(wheel, tmp_path / "host")
    shutil.rmtree(host / PULLED_OUT)
    (entry_points,) = host.glob("*.dist-info/entry_points.txt")
    lines = entry_points.read_text().splitlines(keepends=True)
    entry_points.write_text("".join(line for line in lines if not line.startswith(PULLED_OUT)))

    def offered(*sites: Path) -> dict[str, Any]:
        said = advdistill(tmp_path, list(sites), "plugins", "list", "--json")
        assert said.returncode == 0, said.stderr
        listed = json.loads(said.stdout)
        assert {entry["name"] for entry in listed["components"]} > {"clip-tune", "pgd", "digits"}
        return {entry["name"]: entry for entry in listed["components"]}

    assert "apd" not in offered(host)
    without = advdistill(tmp_path, [host], "recipe", "validate", "apd_digits")
    assert without.returncode == 3 and "apd" in without.stderr

    dist = PULLED_OUT.replace("_", "-")
    made = advdistill(tmp_path, [host], "new-plugin", "apd", "--kind", "strategy")
    assert made.returncode == 0, made.stderr
    package = tmp_path / dist / PULLED_OUT
    shutil.rmtree(package)
    shutil.copytree(ROOT / "plugins" / PULLED_OUT, package, ignore=shutil.ignore_patterns("__pycache__"))
    plugin = unpack(build_wheel(tmp_path / dist, tmp_path), tmp_path / "plugin")

    found = offered(host, plugin)["apd"]
    assert (found["dist"], found["version"], found["plugin"]) == (dist, "0.1.0", PULLED_OUT)
    beside = advdistill(tmp_path, [host, plugin], "recipe", "validate", "apd_digits")
    assert beside.returncode == 0, beside.stderr


def test_no_file_names_a_machine_or_an_index() -> None:
    # Patterns that do not match themselves.
    places = [r"/(?:work|opt|root|home|Users|tmp)/", r"[A-Z]:[\\]Users"]
    indices = [r"index[-]url", r"pypi[.]\w", r"pythonhosted[.]", r"[a]rtifactory"]
    forbidden = re.compile("|".join([*places, *indices]).encode())
    assert forbidden.search("/".join(["from ", "work", "main"]).encode())
    found = {str(path): match[0] for path in sources() if (match := forbidden.search((ROOT / path).read_bytes()))}
    assert found == {}
