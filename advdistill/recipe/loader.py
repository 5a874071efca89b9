"""Recipes from files: finding them, `extends`, and overrides from the command line.

Maps merge, lists replace, and `null` deletes what the parent said. Where a block says `use:` something else than its
parent did, the parent's other keys of that block go: they are settings of another plugin. (How a teacher learns,
what of the data takes part and the keys of `optim` belong to the host, and stay.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from advdistill.errors import RecipeError, UsageError, did_you_mean
from advdistill.hooks.registry import Registry
from advdistill.recipe.model import Learning, Portion
from advdistill.recipe.nodes import MAX_BYTES, InvalidRecipe, Mark, Node, Problem, parse
from advdistill.recipe.paths import resource

_SUFFIXES = (".yaml", ".yml")


def shipped_dir() -> Path:
    """Where advdistill's own recipes lie: inside the wheel, or beside the package in an editable install."""
    package = Path(__file__).parents[1]
    inside = package / "_recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def recipe_files(registry: Registry, folder: str | Sequence[str] = "") -> list[tuple[Path, str]]:
    """Every recipe that can be named without a path, with the distribution that ships it, sorted by name.

    Args:
        folder: which folder below those of recipes, or which ones.
    """
    below = [folder] if isinstance(folder, str) else folder
    places = [(shipped_dir(), "advdistill")]
    places += [(place, plugin.dist or plugin.name) for place, plugin in registry.recipe_dirs()]
    files = ((file, dist) for place, dist in places for each in below for file in (place / each).glob("*.y*ml"))
    found = [(file, dist) for file, dist in files if file.suffix in _SUFFIXES]
    return sorted(found, key=lambda item: (item[0].stem, item[1]))


def find_recipe(
    source: str | Path, registry: Registry, beside: Path | None = None, folder: str | Sequence[str] = ""
) -> Path:
    """The file that `source` means.

    Args:
        source: a path, or a name without path and suffix: looked up in the current folder, then among the shipped
            recipes and those of plugins.
        registry: whose recipe folders count.
        beside: relative paths start at this folder instead of the current one.
        folder: as for `recipe_files`.

    Raises:
        RecipeError: there is no such recipe, or several plugins ship one of that name.
    """
    base = beside or Path()
    path = base / resource(str(source))
    is_name = os.sep not in str(source) and "/" not in str(source) and path.suffix not in _SUFFIXES
    if path.is_file():
        return path
    if is_name:
        for suffix in _SUFFIXES:
            if (base / f"{source}{suffix}").is_file():
                return base / f"{source}{suffix}"
        named = [file for file, _ in recipe_files(registry, folder) if file.stem == source]
        if len(named) == 1:
            return named[0]
        if named:
            raise RecipeError(
                f"there are several recipes named {source!r}: {', '.join(map(str, named))}",
                "Give the path of the one you mean.",
            )
        known = [file.stem for file, _ in recipe_files(registry, folder)]
    else:
        known = [str(file) for suffix in _SUFFIXES for file in path.parent.glob(f"*{suffix}")]
    if path.is_dir():
        raise RecipeError(f"{source} is a folder, not a recipe", "Give the path of a recipe file.")
    hint = (
        f"These need no path: {', '.join(known)}."
        if folder
        else "`advdistill recipe list` shows the recipes that need no path."
    )
    where = folder if isinstance(folder, str) else " or ".join(folder)
    what = f"recipe {str(source)!r}" if not folder else f"file {str(source)!r} of {where}"
    raise RecipeError(f"there is no {what}{did_you_mean(str(source if is_name else path), known)}", hint)


def read_recipe(path: Path, registry: Registry, folder: str | Sequence[str] = "") -> Node:
    """The recipe at `path`, merged over what it extends, which is looked up in `folder` as `find_recipe` does.

    Raises:
        InvalidRecipe: it cannot be read, is not a map, or extends itself.
    """
    chain: list[Path] = []
    layers: list[Node] = []
    while True:
        if path.resolve() in [each.resolve() for each in chain]:
            mark = layers[-1].value["extends"].mark
            names = " -> ".join(map(_shown, [*chain, path]))
            hint = "Let one of them stand alone: take its `extends` out."
            raise InvalidRecipe([Problem(mark, "extends", f"a recipe cannot extend itself: {names}", hint)])
        chain.append(path)
        layers.append(_read_file(path))
        extends = layers[-1].value.get("extends")
        if extends is None:
            break
        if not isinstance(extends.value, str):
            message = "must be one recipe: a name, or a path relative to this file"
            raise InvalidRecipe([Problem(extends.mark, "extends", message)])
        try:
            path = find_recipe(extends.value, registry, beside=path.parent, folder=folder)
        except RecipeError as error:
            raise InvalidRecipe([Problem(extends.mark, "extends", error.message, error.hint)]) from error
    merged = layers[-1]
    for layer in reversed(layers[:-1]):
        merged = merge(merged, layer)
    return Node({key: node for key, node in merged.value.items() if key != "extends"}, merged.mark)


def merge(parent: Node, child: Node, path: tuple[str, ...] = ()) -> Node:
    """`child` over `parent`, by the rules at the head of this module."""
    if not (isinstance(parent.value, dict) and isinstance(child.value, dict)):
        return child
    merged = dict(parent.value)
    uses = [side.value["use"].value for side in (parent, child) if "use" in side.value]
    if len(uses) == 2 and uses[0] != uses[1] and path[:1] != ("optim",):
        merged = {
            key: node
            for key, node in merged.items()
            if (path[:1] == ("teachers",) and key in Learning.model_fields)
            or (path == ("data",) and key in Portion.model_fields)
        }
    for key, node in child.value.items():
        if node.value is None and key in parent.value:
            merged.pop(key, None)
        elif key in merged:
            merged[key] = merge(merged[key], node, (*path, key))
        else:
            merged[key] = node
    return Node(merged, child.mark, child.key)


def override(recipe: Node, words: Iterable[str]) -> Node:
    """`recipe` with `key.path=value` words applied in order; numbers in a path count list items from 0.

    Raises:
        UsageError: a word is not of that form.
        InvalidRecipe: a value is not YAML, or a list has no such item.
    """
    for word in words:
        keys, equals, text = word.partition("=")
        path = keys.strip().split(".")
        if not equals or not all(path):
            raise UsageError(f"{word!r} is not an override", "Write key=value, like optim.lr=1e-4 or data.shots=4.")
        if path == ["extends"]:
            raise UsageError("extends cannot be overridden", "`advdistill recipe copy` makes a recipe to edit.")
        place = Mark("override", 0, len(keys) + 1, word)
        try:
            value = _located(parse(text, "override"), place)
        except InvalidRecipe as error:
            problems = [replace(problem, mark=_within(place, problem.mark)) for problem in error.problems]
            raise InvalidRecipe(problems) from error
        recipe = merge(recipe, _overlay(recipe, path, value, ()))
    return recipe


def _overlay(node: Node | None, keys: Sequence[str], value: Node, path: tuple[str, ...]) -> Node:
    """What to merge over `node` so that `value` stands at `keys` below it."""
    if not keys:
        return value
    head, *rest = keys
    path = (*path, head)
    if node is not None and isinstance(node.value, list):
        items = list(node.value)
        if not head.isdecimal() or int(head) >= len(items):
            message = f"the list has {len(items)} items, counted from 0"
            raise InvalidRecipe([Problem(value.mark, ".".join(path), message)])
        index = int(head)
        if not rest and value.value is None:
            del items[index]
        else:
            items[index] = merge(items[index], _overlay(items[index], rest, value, path))
        return Node(items, node.mark, node.key)
    if head.isdecimal() and node is None:
        message = f"the recipe does not write {'.'.join(path[:-1])}, so it has no item {head}; give the whole list"
        raise InvalidRecipe([Problem(value.mark, ".".join(path), message)])
    child = node.value.get(head) if node is not None and isinstance(node.value, dict) else None
    return Node({head: _overlay(child, rest, value, path)}, value.mark, value.mark)


def _located(node: Node, place: Mark) -> Node:
    """`node` with its marks pointing into the override as typed."""
    mark = _within(place, node.mark)
    if isinstance(node.value, dict):
        return Node({key: _located(item, place) for key, item in node.value.items()}, mark, mark)
    if isinstance(node.value, list):
        return Node([_located(item, place) for item in node.value], mark, mark)
    return Node(node.value, mark, mark)


def _within(place: Mark, mark: Mark) -> Mark:
    """A mark in an override's value as a mark in the whole word; `place` is where the value starts."""
    return replace(place, column=place.column + max(mark.column, 1))


def _read_file(path: Path) -> Node:
    shown = _shown(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            message = f"{size / MAX_BYTES:.1f} MiB is no recipe; the largest that is read has 1 MiB"
            hint = "Name data and weights in it; they are read from where they lie."
            raise InvalidRecipe([Problem(Mark(shown), "", message, hint)])
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(f"cannot read {shown}: {error.strerror}", "Give the path of a recipe file.") from error
    except UnicodeDecodeError as error:
        message = f"not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
        hint = "Save it as UTF-8; data and weights are no recipes."
        raise InvalidRecipe([Problem(Mark(shown), "", message, hint)]) from error
    node = parse(text, shown)
    if node.value is None:
        hint = "`advdistill recipe copy quickstart my.yaml` makes one to start from."
        raise InvalidRecipe([Problem(Mark(shown, 1, 1), "", "the recipe is empty", hint)])
    if not isinstance(node.value, dict):
        raise InvalidRecipe([Problem(node.mark, "", "a recipe is a map of keys, like `seed: 0`")])
    return node


def _shown(path: Path) -> str:
    """The path as a user standing in the current folder would write it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
