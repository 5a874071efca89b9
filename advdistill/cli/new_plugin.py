"""`advdistill new-plugin`: a package with a working component, its contract test, and a recipe that uses it."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from advdistill.cli.options import complete_kind
from advdistill.errors import RunError, UsageError, did_you_mean
from advdistill.hooks.hookspecs import YIELDS
from advdistill.hooks.registry import default_registry
from advdistill.hooks.specs import KINDS

_TEMPLATES = Path(__file__).parents[1] / "templates"

# kind: (what its spec declares beyond the common fields, line by line; what the template does)
_DECLARED = {
    "attack": (['norms={"linf"},', "objective=True,"], "Sign steps that shrink, from a random start"),
    "strategy": (
        ['teachers={"clean": "accurate on clean images"},', 'attack="objective",'],
        "Labels for clean images, a teacher's word for adversarial ones",
    ),
    "student": ([], "A small convolutional tower, learned from scratch"),
    "teacher": ([], "A small convolutional tower, learned from scratch"),
    "dataset": ([], "Stripes and squares, drawn when they are asked for"),
    "reporter": ([], "Losses as losses.csv in the run's folder"),
}


def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the component in recipes, like my-attack.")],
    kind: Annotated[
        str, typer.Option(help=f"One of {', '.join(KINDS)}.", autocompletion=complete_kind, show_default=False)
    ],
    dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to; default: a folder named after it, here.")
    ] = None,
) -> None:
    """Start a plugin of your own: a package with a working component, a test of its contract, and a recipe.

    Examples:
    advdistill new-plugin my-attack --kind attack
    advdistill new-plugin my-method --kind strategy --dir ~/code/my-method
    """
    words = _words(name, kind)
    folder = dir.expanduser() if dir else Path(words["dist"])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already", "Give another folder with --dir.")
    files = _files(words)
    try:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}", "Give another folder with --dir.") from error
    for path in files:
        typer.echo(folder / path)
    typer.echo(f"\nNow: cd {folder} && pip install -e '.[test]' && pytest && advdistill train {name}", err=True)


def _words(name: str, kind: str) -> dict[str, str]:
    """What the placeholders of the templates stand for."""
    if kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r}{did_you_mean(kind, KINDS)}", f"Kinds: {', '.join(KINDS)}.")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(f"{name!r} is not a name", "Lower case, words joined by hyphens, like my-attack.")
    taken = next((entry for entry in default_registry().entries(kind) if entry.spec.name == name), None)
    if taken:
        raise UsageError(f"{kind} {name!r} is there already, in {taken.plugin.label}", "Choose another name.")
    cls = "".join(word.capitalize() for word in name.split("-"))
    if not cls.endswith(kind.capitalize()):
        cls += kind.capitalize()
    declared, summary = _DECLARED[kind]
    dist = name if name.startswith("advdistill-") else f"advdistill-{name}"
    return {
        "name": name,
        "kind": kind,
        "dist": dist,
        "package": dist.replace("-", "_"),
        # A name like `attack` must not hide the base class.
        "cls": cls if cls != kind.capitalize() else f"Own{cls}",
        "module": "model" if kind in ("student", "teacher") else kind,
        "spec": KINDS[kind].__name__,
        "hook": next(hook for hook, offered in YIELDS.items() if offered is KINDS[kind]),
        "declared": "".join(f"        {line}\n" for line in declared),
        "summary": summary,
    }


def _files(words: dict[str, str]) -> dict[str, str]:
    """Path in the new folder -> text."""
    package, module = words["package"], words["module"]
    recipe = f"model/{words['kind']}.yaml" if module == "model" else f"{module}/recipe.yaml"
    sources = {
        "pyproject.toml": "common/pyproject.toml",
        "README.md": "common/README.md",
        f"{package}/__init__.py": "common/__init__.py",
        f"{package}/configs.py": f"{module}/configs.py",
        f"{package}/{module}.py": f"{module}/{module}.py",
        f"{package}/recipes/{words['name']}.yaml": recipe,
        f"tests/test_{words['name'].replace('-', '_')}.py": f"{module}/test.py",
    }
    return {
        path: Template((_TEMPLATES / f"{source}.tmpl").read_text(encoding="utf-8")).substitute(words)
        for path, source in sources.items()
    }
