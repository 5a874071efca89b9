"""Options and arguments that several commands share, and the completion of names in them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from advdistill.errors import UsageError, did_you_mean
from advdistill.hooks.registry import Registry, default_registry
from advdistill.hooks.specs import KINDS


def examples(*lines: str) -> str:
    """The end of a command's help: what can be pasted, line by line."""
    return "\n\n".join(["Examples:", *lines])


def complete_recipe(incomplete: str) -> list[str]:
    """Names of recipes, and YAML files below the folder typed so far."""
    return _complete_file(incomplete, "")


def complete_study(incomplete: str) -> list[str]:
    """Names of studies, and YAML files below the folder typed so far."""
    from advdistill.recipe.study import FOLDER

    return _complete_file(incomplete, FOLDER)


def _complete_file(incomplete: str, kind: str | tuple[str, ...]) -> list[str]:
    from advdistill.recipe.loader import recipe_files

    typed = Path(incomplete)
    folder = typed if incomplete.endswith("/") else typed.parent
    files = [str(folder / file.name) for file in folder.glob("*.yaml")]
    names = [file.stem for file, _ in recipe_files(default_registry(), kind)]
    return sorted({name for name in [*names, *files] if name.startswith(incomplete)})


def complete_plugin(incomplete: str) -> list[str]:
    """Names of components, alone and as `kind:name`."""
    entries = default_registry().entries()
    names = {entry.spec.name for entry in entries} | {f"{entry.spec.kind}:{entry.spec.name}" for entry in entries}
    return sorted(name for name in names if name.startswith(incomplete))


def complete_attack(incomplete: str) -> list[str]:
    """Names of attacks."""
    return [name for name in default_registry().names("attack") if name.startswith(incomplete)]


def complete_suite(incomplete: str) -> list[str]:
    """Names of suites of protocols."""
    from advdistill.recipe.loader import recipe_files
    from advdistill.recipe.suite import FOLDER

    names = {file.stem for file, _ in recipe_files(default_registry(), FOLDER)}
    return sorted(name for name in names if name.startswith(incomplete))


def complete_kind(incomplete: str) -> list[str]:
    """Kinds of plugins."""
    return [kind for kind in KINDS if kind.startswith(incomplete)]


CLASSES = ("all", "base", "new", "data")


def one_of_classes(value: str) -> str:
    """The value of `--classes`. Raises UsageError where it is none."""
    if value and value not in CLASSES:
        raise UsageError(f"--classes {value!r} is not one of {', '.join(CLASSES)}{did_you_mean(value, CLASSES)}")
    return value


def radius(text: str | None) -> float | None:
    """The value of `--eps`. Raises UsageError where it is none."""
    from advdistill.recipe.fields import parse_distance

    try:
        found = None if text is None else parse_distance(text)
    except ValueError as error:
        raise UsageError(f"--eps: {error}", "for example --eps 8/255") from error
    if found is not None and found <= 0:
        raise UsageError("--eps 0 attacks nothing", "for example --eps 8/255")
    return found


RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A file, or a name from `recipe list`.", autocompletion=complete_recipe)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, like optim.lr=1e-4.")
]
PluginFiles = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="FILE", help="A single-file plugin to load too; may be given several times."),
]
AttackSettings = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of the attack, like steps=20.")
]
ModelName = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="A checkpoint, or NAME@WEIGHTS for an undefended model.")
]
DataFolder = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help="A folder of class folders; default: the checkpoint's own data."),
]
Radius = Annotated[str | None, typer.Option("--eps", metavar="EPS", help="Radius on the [0, 1] scale, like 4/255.")]
NormName = Annotated[str | None, typer.Option("--norm", metavar="NORM", help="linf, l2, l1 or l0.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time; changes speed, not numbers.")]
Classes = Annotated[
    str,
    typer.Option(
        "--classes",
        metavar="WHICH",
        help="all; base or new, the first or second half; data: the data's own, other than those trained on.",
        autocompletion=lambda incomplete: [which for which in CLASSES if which.startswith(incomplete)],
        callback=lambda value: one_of_classes(value),
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option("--gpus", metavar="N", min=1, help="Start N processes here that share the work, each with one GPU."),
]
Processes = Annotated[
    int | None, typer.Option("--processes", metavar="N", min=1, help="The same on the CPU; they divide its cores.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def registry_with(files: Iterable[str] | None) -> Registry:
    """Everything installed, and the single-file plugins given."""
    return default_registry().with_files(files or ())
