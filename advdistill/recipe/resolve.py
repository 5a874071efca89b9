"""From a recipe's name or file to a `Recipe`: read, merged, overridden, checked, every default filled in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from advdistill.errors import PluginError
from advdistill.hooks.registry import Registry, default_registry
from advdistill.recipe.check import Check, check_format
from advdistill.recipe.loader import find_recipe, override, read_recipe
from advdistill.recipe.model import RecipeModel
from advdistill.recipe.nodes import InvalidRecipe, KeyPath, Mark, Node, Problem, dotted, from_plain
from advdistill.recipe.providers import Record, record
from advdistill.recipe.resolved import (
    Block,
    Recipe,
    ResolvedEvaluate,
    ResolvedProbe,
    ResolvedProtocol,
    TeacherBlock,
)

__all__ = ["Block", "Recipe", "load_recipe", "resolve_blocks"]


def load_recipe(
    source: str | Path,
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
    plugins: Iterable[str | Path] = (),
) -> Recipe:
    """Read and check a recipe.

    Args:
        source: a file, or a name that `advdistill recipe list` shows.
        overrides: words like `optim.lr=1e-4`, applied in order.
        registry: who offers what; default: everything installed.
        plugins: further single-file plugins.

    Raises:
        RecipeError: the recipe is not valid; the message lists every problem.
        UsageError: an override is not of the form key=value.
        PluginError: a plugin it needs is missing or broken.
    """
    registry = (registry or default_registry()).with_files(plugins)
    path = find_recipe(source, registry)
    root = override(read_recipe(path, registry), overrides)
    check_format(root)
    if "axes" in root.value and "strategy" not in root.value:
        mark, hint = root.value["axes"].key or root.mark, f"`advdistill study {source}` runs it."
        raise InvalidRecipe([Problem(mark, "axes", "a recipe has none: this is a study", hint)])
    extra = [str(Path(plugin).expanduser().resolve()) for plugin in plugins]
    check = Check(_completed(root, path.stem, extra), registry)
    _load_plugins(check)
    model = check.shape()
    check.names()
    check.settings()
    check.together()
    check.raise_if_any()
    assert model is not None  # shape() returns None only together with a problem
    recipe = _assemble(check, model)
    check.plugins_own(recipe)
    check.raise_if_any()
    return recipe


def resolve_blocks(
    tree: Mapping[str, Any],
    registry: Registry | None = None,
    *,
    provided: Iterable[Record] = (),
    overrides: Sequence[str] = (),
    where: str = "given",
) -> dict[KeyPath, Block]:
    """Check some blocks of a recipe by themselves, for commands that need no whole recipe.

    Args:
        tree: a part of a recipe, such as its `data` and `attack`.
        registry, overrides: as for `load_recipe`.
        provided: `Recipe.providers` as stored, to say what to install where a plugin is missing.
        where: what messages call the tree.

    Returns:
        Path in the recipe, such as `("evaluate", "protocols", 0, "attack")`, -> Block.

    Raises:
        RecipeError, UsageError, PluginError: as for `load_recipe`.
    """
    root = override(from_plain(dict(tree), Mark(where)), overrides)
    check = Check(root, registry or default_registry(), provided)
    check.names()
    check.settings()
    check.raise_if_any()
    return check.blocks


def _completed(root: Node, name: str, extra_plugins: Sequence[str]) -> Node:
    """With a name, reporters, and plugin paths that do not depend on where the recipe lies."""
    keys = dict(root.value)
    if "name" not in keys and name:
        keys["name"] = Node(name, Mark("default"))
    if "report" not in keys:
        default = RecipeModel.model_fields["report"].get_default(call_default_factory=True)
        keys["report"] = from_plain(default, Mark("default"))
    listed = keys.get("plugins")
    items: list[Node] = listed.value if listed and isinstance(listed.value, list) else []
    if extra_plugins or items:
        placed = [_placed(item) for item in items]
        known = [item.value for item in placed]
        placed += [Node(path, Mark("override")) for path in extra_plugins if path not in known]
        keys["plugins"] = Node(placed, listed.mark if listed else Mark("override"), listed and listed.key)
    return Node(keys, root.mark)


def _placed(item: Node) -> Node:
    if not isinstance(item.value, str):
        return item
    # An override is relative to the current folder, like every path on a command line.
    beside = Path(item.mark.where).parent if item.mark.line else Path()
    return replace(item, value=str((beside / Path(item.value).expanduser()).resolve()))


def _load_plugins(check: Check) -> None:
    """Add the plugin files that the recipe lists to what the check knows."""
    listed = check.root.at(("plugins",))
    for index, item in enumerate(listed.value if listed and isinstance(listed.value, list) else []):
        if not isinstance(item.value, str):
            continue
        try:
            check.registry = check.registry.with_files([item.value])
        except PluginError as error:
            check.fail(("plugins", index), error.message, hint=error.hint, blame=error)
    for plugin in check.registry.plugins:
        if plugin.file and plugin.error:
            check.warnings.append(f"the plugin file {plugin.file} could not be loaded: {plugin.cause}")


def _assemble(check: Check, model: RecipeModel) -> Recipe:
    blocks = check.blocks
    save = model.save.model_copy(update={"dir": model.save.dir.replace("{name}", model.name)})
    tree = model.model_copy(update={"save": save}).model_dump(mode="json")
    for path, block in blocks.items():
        _put(tree, path, block.tree())
    return Recipe(
        name=model.name,
        seed=model.seed,
        threat=model.threat,
        data=blocks[("data",)],
        teachers={role: cast(TeacherBlock, blocks[("teachers", role)]) for role in model.teachers},
        student=blocks[("student",)],
        attack=blocks.get(("attack",)),
        strategy=blocks[("strategy",)],
        optim=model.optim,
        train=model.train,
        evaluate=_evaluate(model, blocks),
        save=save,
        report=tuple(blocks[("report", index)] for index in range(len(model.report))),
        tree=tree,
        origins={dotted(path): _origin(check.root, path) for path in _leaves(tree)},
        providers=tuple(
            record(path, block.use, check.entries[path])
            for place, top in blocks.items()
            for path, block in top.all(place)
        ),
        plugin_hashes={str(plugin.file): plugin.sha256 for plugin in check.registry.plugins if plugin.file},
        warnings=tuple(check.warnings),
    )


def _evaluate(model: RecipeModel, blocks: Mapping[KeyPath, Block]) -> ResolvedEvaluate:
    given = model.evaluate
    probe_attack = blocks.get(("evaluate", "probe", "attack"), blocks.get(("attack",)))
    return ResolvedEvaluate(
        every=given.every,
        batch_size=given.batch_size,
        probe=ResolvedProbe(given.probe.split, given.probe.limit, probe_attack),
        select=given.select,
        protocols=tuple(
            ResolvedProtocol(
                name=protocol.name,
                attack=blocks.get(("evaluate", "protocols", index, "attack")),
                threat=protocol.threat or model.threat,
                split=protocol.split,
                limit=protocol.limit,
            )
            for index, protocol in enumerate(given.protocols)
        ),
        undefended=given.undefended,
        teachers=given.teachers,
        controls=given.controls,
    )


def _put(tree: dict[str, Any], path: KeyPath, value: Any) -> None:
    *parents, last = path
    place: Any = tree
    for step in parents:
        place = place[step]
    place[last] = value


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Paths of what is not a map or list, and of empty ones."""
    if not isinstance(value, (dict, list)) or not value:
        yield path
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(item, (*path, key))


def _origin(root: Node, path: KeyPath) -> str:
    node = root.at(path)
    return str(node.mark) if node is not None else "default"
