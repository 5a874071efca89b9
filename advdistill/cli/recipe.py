"""`advdistill recipe`: list, show, validate, diff, copy, schema."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

from advdistill.cli.options import Json, Overrides, PluginFiles, RecipeName, examples, registry_with
from advdistill.cli.output import print_columns, print_json, written
from advdistill.errors import RecipeError, UsageError
from advdistill.hooks.registry import Registry, default_registry

app = typer.Typer(
    help="List, show, check, compare, copy recipes.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
)


@app.command("list", epilog=examples("advdistill recipe list", "advdistill recipe list --json | python -m json.tool"))
def list_recipes(json: Json = False) -> None:
    """List the recipes that can be named without a path."""
    from advdistill.recipe.loader import recipe_files

    found = [
        {"name": file.stem, "dist": dist, "path": str(file), "summary": _summary(file)}
        for file, dist in recipe_files(default_registry())
    ]
    if json:
        print_json(found)
    else:
        print_columns(("NAME", "FROM", "SUMMARY"), [(row["name"], row["dist"], row["summary"]) for row in found])


@app.command(
    epilog=examples("advdistill recipe show quickstart", "advdistill recipe show quickstart optim.lr=1e-4 --json")
)
def show(recipe: RecipeName, overrides: Overrides = None, json: Json = False, plugin: PluginFiles = None) -> None:
    """Show a recipe complete: every value, and behind it where it comes from."""
    from advdistill.recipe.dump import to_yaml
    from advdistill.recipe.resolve import load_recipe

    resolved = load_recipe(recipe, overrides or (), plugins=plugin or ())
    for warning in resolved.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if json:
        print_json(resolved.tree)
    else:
        typer.echo(to_yaml(resolved.tree, resolved.origins), nl=False)


@app.command(
    epilog=examples("advdistill recipe validate my.yaml", "advdistill recipe validate my.yaml attack.steps=10 --json")
)
def validate(recipe: RecipeName, overrides: Overrides = None, json: Json = False, plugin: PluginFiles = None) -> None:
    """Check a recipe without running it, and report every problem at once."""
    from advdistill.recipe.nodes import InvalidRecipe
    from advdistill.recipe.resolve import load_recipe

    try:
        resolved = load_recipe(recipe, overrides or (), plugins=plugin or ())
    except InvalidRecipe as error:
        if not json:
            raise
        problems = [{"at": str(p.mark), "path": p.path, "message": p.message, "hint": p.hint} for p in error.problems]
        print_json({"valid": False, "problems": problems, "warnings": []})
        raise typer.Exit(error.exit_code) from error
    if json:
        print_json({"valid": True, "problems": [], "warnings": list(resolved.warnings)})
        return
    typer.echo(f"{resolved.name} is valid")
    for warning in resolved.warnings:
        typer.echo(f"warning: {warning}")


@app.command(epilog=examples("advdistill recipe diff quickstart my.yaml"))
def diff(left: RecipeName, right: RecipeName, json: Json = False, plugin: PluginFiles = None) -> None:
    """Show what differs between two recipes once all defaults are filled in."""
    from dataclasses import asdict

    from advdistill.recipe.diff import diff as differences
    from advdistill.recipe.resolve import load_recipe

    one, other = (load_recipe(each, plugins=plugin or ()).tree for each in (left, right))
    changes = differences(one, other)
    if json:
        print_json([asdict(change) for change in changes])
    elif changes:
        print_columns(
            ("KEY", left, right),
            [
                (c.path, "" if c.sides == "right" else written(c.left), "" if c.sides == "left" else written(c.right))
                for c in changes
            ],
        )
    else:
        typer.echo("no difference")


@app.command(epilog=examples("advdistill recipe copy quickstart my.yaml"))
def copy(
    recipe: RecipeName,
    dest: Annotated[Path | None, typer.Argument(help="A file or folder; default: the current folder.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")] = False,
) -> None:
    """Copy a recipe to edit, comments and all."""
    from advdistill.recipe.loader import find_recipe

    registry = default_registry()
    source = find_recipe(recipe, registry)
    target = dest or Path()
    target = target / source.name if target.is_dir() else target
    if target.exists() and not overwrite:
        raise UsageError(
            f"{target} is there already",
            f"Choose another name, or: advdistill recipe copy {recipe} {target} --overwrite",
        )
    text = _moved(source, target.parent, registry)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot write {target}: {error.strerror}", "Choose a folder that you may write to."
        ) from error
    typer.echo(str(target))


@app.command(
    epilog=examples(
        "advdistill recipe schema > recipe.schema.json",
        "# then, at the top of a recipe: # yaml-language-server: $schema=recipe.schema.json",
    )
)
def schema(plugin: PluginFiles = None) -> None:
    """Print a JSON Schema of recipes, with the settings of every plugin, for editors."""
    from advdistill.recipe.schema import recipe_schema

    print_json(recipe_schema(registry_with(plugin)))


def _moved(source: Path, folder: Path, registry: Registry) -> str:
    """The text of `source` so that it still extends the same recipe when it lies in `folder`."""
    from advdistill.recipe.loader import find_recipe, read_recipe

    read_recipe(source, registry)
    text = source.read_text(encoding="utf-8-sig")
    line = re.search(r"^extends:[ \t]*(?P<parent>[^#\n]*?)[ \t]*(#.*)?$", text, flags=re.MULTILINE)
    if line is None:
        return text
    parent = find_recipe(line["parent"].strip("\"'"), registry, beside=source.parent).resolve()
    for name in (line["parent"].strip("\"'"), parent.stem):
        try:
            if find_recipe(name, registry, beside=folder).resolve() == parent:
                break
        except RecipeError:
            continue
    else:
        name = str(parent)
    return text[: line.start("parent")] + name + text[line.end("parent") :]


def _summary(file: Path) -> str:
    """The first sentence of the comment that a recipe opens with."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        comment = " ".join(line.strip("# \n") for line in takewhile(lambda line: line.startswith("#"), lines))
    sentence, dot, _ = comment.partition(". ")
    return sentence + dot.strip()
