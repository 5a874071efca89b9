"""Who may know whom.

Guarantees:
- inside the host: hooks know hooks and errors; recipe knows hooks, too; engine knows recipe, too; nobody knows the
  command line or the plugins; only the command line knows everything;
- a plugin imports of the host its public names only, and of plugins itself alone;
- hooks and recipe import nothing heavy, the command line only inside functions, and so it does with the engine;
- no folder of a plugin has files of another, and there is no __init__.py in plugins/.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import advdistill

HOST = Path(advdistill.__file__).parent
PLUGINS = HOST.parent / "plugins"

ALLOWED = {
    "errors": set(),
    "hooks": {"hooks", "errors"},
    "recipe": {"recipe", "hooks", "errors"},
    "data": {"data", "recipe", "hooks", "errors"},
    "engine": {"engine", "data", "recipe", "hooks", "errors"},
    "testing": {"testing", "engine", "recipe", "hooks", "errors"},
    "study": {"study", "engine", "data", "recipe", "hooks", "errors"},
    "cli": {"cli", "study", "testing", "engine", "data", "recipe", "hooks", "errors"},
}
HEAVY = ("torch", "torchvision", "open_clip", "torchattacks", "numpy", "sklearn", "matplotlib", "safetensors.torch")


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Every imported module, `advdistill.NAME` for names of the package itself, and whether it runs at import."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    lazy = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(scope, ast.If) and "TYPE_CHECKING" in ast.dump(scope.test))
        for node in ast.walk(scope)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in lazy
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            if node.module == "advdistill":
                for alias in node.names:
                    yield f"advdistill.{alias.name}", id(node) not in lazy
            else:
                yield str(node.module), id(node) not in lazy


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


HOST_FILES = [file for file in sorted(HOST.rglob("*.py")) if file.parent != HOST and "templates" not in file.parts]


@pytest.mark.parametrize("file", HOST_FILES, ids=lambda file: str(file.relative_to(HOST)))
def test_the_arrows_inside_the_host(file: Path) -> None:
    own = file.relative_to(HOST).parts[0]
    plugins = {folder.name for folder in PLUGINS.iterdir()}
    for module, _ in imports(file):
        assert module.split(".")[0] not in plugins, f"{module}: the host knows no plugin"
        if module.split(".")[0] == "advdistill":
            assert room(module) in ALLOWED[own], f"{own} may not know {module}"


@pytest.mark.parametrize("file", HOST_FILES, ids=lambda file: str(file.relative_to(HOST)))
def test_the_light_rooms_import_nothing_heavy(file: Path) -> None:
    if file.relative_to(HOST).parts[0] in ("engine", "testing"):
        return
    light = file.relative_to(HOST).parts[0] not in ("cli", "study")
    for module, at_import in imports(file):
        heavy = module.split(".")[0] in HEAVY or module in HEAVY
        assert not (heavy and (light or at_import)), f"{module} is heavy"
        assert not (at_import and room(module) == "engine"), f"{module} is imported before it is needed"


@pytest.mark.parametrize("file", sorted(PLUGINS.rglob("*.py")), ids=lambda file: str(file.relative_to(PLUGINS)))
def test_plugins_use_public_names_only(file: Path) -> None:
    own = file.relative_to(PLUGINS).parts[0]
    for module, at_import in imports(file):
        top = module.split(".")[0]
        if top == "advdistill":
            name = module.removeprefix("advdistill.")
            assert name in (*advdistill.__all__, "testing") or name.startswith("testing."), f"{module} is not public"
        assert not (top.startswith("advdistill_") and top != own), f"{module} is another plugin"
        if file.name == "configs.py" or (file.name == "__init__.py" and file.parent.parent == PLUGINS):
            assert not (at_import and top in HEAVY), f"{module} is heavy: declare light, load late"


def test_plugins_is_a_folder_of_packages() -> None:
    assert not (PLUGINS / "__init__.py").exists()
    assert all((folder / "__init__.py").exists() for folder in PLUGINS.iterdir() if folder.name != "__pycache__")


def test_every_public_name_exists() -> None:
    for name in advdistill.__all__:
        assert getattr(advdistill, name) is not None
