"""`advdistill data`: list, where, fetch, verify, preview."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advdistill.cli.options import Json, PluginFiles, complete_recipe, examples, registry_with
from advdistill.cli.output import print_columns, print_json
from advdistill.errors import DataError, PluginError, RecipeError, UsageError, UserError, did_you_mean
from advdistill.hooks.registry import default_registry

if TYPE_CHECKING:
    from advdistill.engine.verification import Verification
    from advdistill.hooks.origin import Origin
    from advdistill.hooks.registry import Entry, Registry
    from advdistill.hooks.specs import Spec
    from advdistill.recipe.resolve import Block

SPLITS = ("train", "val", "test")

app = typer.Typer(
    help="See, fetch, check and preview data sets.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
)


def _complete_set(incomplete: str) -> list[str]:
    return [name for name in default_registry().names("dataset") if name.startswith(incomplete)]


def _complete_subject(incomplete: str) -> list[str]:
    return [*_complete_set(incomplete), *complete_recipe(incomplete)]


SetName = Annotated[
    str, typer.Argument(metavar="NAME", help="A data set that `data list` shows.", autocompletion=_complete_set)
]
Subject = Annotated[
    str,
    typer.Argument(
        metavar="NAME|RECIPE", help="A data set, or a recipe, whose data are meant.", autocompletion=_complete_subject
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings of the data set, like root=DIR; changes to the recipe."),
]


@app.command("list", epilog=examples("advdistill data list", "advdistill data list --json"))
def list_sets(json: Json = False, plugin: PluginFiles = None) -> None:
    """List every data set that recipes can name: what is there, what is missing, how large, under which licence."""
    registry = registry_with(plugin)
    rows = [_facts(registry, entry) for entry in registry.entries("dataset")]
    if json:
        print_json(rows)
        return
    header = ("NAME", "STATE", "IMAGES", "SIZE", "LICENCE", "FOLDER, OR WHAT IT IS")
    print_columns(header, [_line(row) for row in rows])
    for row in rows:
        if row["state"] == "incomplete" and row["missing"]:
            typer.echo(f"{row['name']} lacks {', '.join(row['missing'])}")
        if row["resume"]:
            typer.echo(f"{row['name']}: a fetch was not finished; go on with: {row['resume']}")
        if row["state"] != "missing":
            for path, what in row["without"].items():
                typer.echo(f"{row['name']} has no {path}: {what}")
        if row["error"]:
            typer.echo(f"{row['name']} is broken: {row['error']}")
    if any(row["state"] == "missing" for row in rows):
        typer.echo("advdistill data fetch NAME brings what is missing, or says how it can be had by hand", err=True)


@app.command(epilog=examples("advdistill data where", "advdistill data where imagenet"))
def where(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A data set that `data list` shows; none: all of them.",
            autocompletion=_complete_set,
        ),
    ] = None,
    json: Json = False,
    plugin: PluginFiles = None,
) -> None:
    """Say where data sets lie, or where one lies and whether it is there."""
    from advdistill.recipe.paths import data_home

    if name is None:
        home, given = data_home().absolute(), bool(os.environ.get("ADVDISTILL_DATA"))
        if json:
            source = "ADVDISTILL_DATA" if given else "default"
            print_json({"folder": str(home), "from": source, "exists": home.is_dir()})
            return
        typer.echo(str(home))
        said = "as ADVDISTILL_DATA says" if given else "the usual place; ADVDISTILL_DATA would name another"
        typer.echo(said if home.is_dir() else f"{said}; it does not exist yet", err=True)
        return
    registry = registry_with(plugin)
    entry = registry.get("dataset", name)
    _origin(registry, entry.spec)
    facts = _facts(registry, entry)
    if json:
        print_json(facts)
        return
    typer.echo(facts["folder"])
    lacks = f"; it lacks {', '.join(facts['missing'])}" if facts["state"] == "incomplete" and facts["missing"] else ""
    typer.echo(f"{name} is {facts['state']}{lacks}", err=True)


@app.command(
    epilog=examples("advdistill data fetch oxford-pets", "advdistill data fetch oxford-pets --root /data/pets")
)
def fetch(
    name: SetName,
    root: Annotated[
        str, typer.Option(metavar="DIR", help="Its own folder, or one that holds it; default: as `data where` says.")
    ] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Keep archives once they are unpacked.")] = False,
    plugin: PluginFiles = None,
) -> None:
    """Bring a data set here, or say how it can be had by hand.

    What is there is not fetched again. A fetch that was cut off goes on where it ended with the same command.
    """
    from advdistill.data.fetch import fetch as bring

    registry = registry_with(plugin)
    origin = _origin(registry, registry.get("dataset", name).spec)
    try:
        with _bytes() as show:
            done = bring(name, origin, root, keep=keep, show=show, tell=lambda line: typer.echo(line, err=True))
    except KeyboardInterrupt:
        typer.echo("stopped; what has come is kept, and the same command goes on", err=True)
        raise
    if not done.brought:
        typer.echo(f"{name} is there already", err=True)
    for path, what in done.place.without.items():
        typer.echo(f"it has no {path}: {what}", err=True)
    typer.echo(str(done.place.folder.absolute()))


@app.command(
    epilog=examples(
        "advdistill data verify digits",
        "advdistill data verify folder root=/data/mine",
        "advdistill data verify quickstart data.shots=16 --json",
    )
)
def verify(subject: Subject, settings: Settings = None, json: Json = False, plugin: PluginFiles = None) -> None:
    """Look at every image: which cannot be read, which are there twice, in one split or in two, and whether all are
    there. Exit code 5 if anything is wrong."""
    registry, block, name = _subject(subject, settings, plugin)
    from advdistill.cli.progress import progress
    from advdistill.engine import verification

    with progress() as show:
        found = verification.verify(registry, block, show)
    if json:
        print_json(_told(name, found))
    else:
        _print(found)
    if count := len(found.findings):
        raise DataError(f"{name}: {count} {'thing is' if count == 1 else 'things are'} wrong")
    if not json:
        typer.echo("nothing is wrong")


@app.command(
    epilog=examples(
        "advdistill data preview digits",
        "advdistill data preview folder root=/data/mine --split train --count 60",
        "advdistill data preview quickstart --out sheet.png",
    )
)
def preview(
    subject: Subject,
    settings: Settings = None,
    split: Annotated[
        str,
        typer.Option(
            metavar="SPLIT",
            help=f"One of {', '.join(SPLITS)}.",
            autocompletion=lambda incomplete: [each for each in SPLITS if each.startswith(incomplete)],
        ),
    ] = "test",
    count: Annotated[int, typer.Option(min=1, max=500, help="Images to show.")] = 32,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Where to write it; default: NAME-SPLIT.png here.")
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Draw a sheet of images with their names and classes."""
    if split not in SPLITS:
        raise UsageError(f"there is no split {split!r}{did_you_mean(split, SPLITS)}", f"say {', '.join(SPLITS)}")
    registry, block, name = _subject(subject, settings, plugin)
    from advdistill.engine import build, contact_sheet
    from advdistill.engine.pictures import writable
    from advdistill.recipe.paths import file_name

    path = out or Path(f"{file_name(name)}-{split}.png")
    writable(path)
    figure = contact_sheet.contact_sheet(name, split, build.dataset(registry, block), count)
    contact_sheet.save_sheet(figure, path)
    typer.echo(str(path))


def _origin(registry: Registry, spec: Spec) -> Origin:
    """Raises UsageError where a data set is none that was published."""
    origin: Origin | None = registry.load(spec, "origin")
    if origin is None:
        ready = _ready(registry, spec)
        raise UsageError(
            f"{spec.name} is {'built in' if ready else 'data of your own'}: it has no usual place and is not fetched",
            "it can be used as it is" if ready else f"`advdistill plugins show dataset:{spec.name}` says what it takes",
        )
    return origin


def _ready(registry: Registry, spec: Spec) -> bool:
    """Whether a data set can be had without being told anything."""
    config = registry.load(spec, "config")
    try:
        return config is None or bool(config())
    except ValueError:  # pydantic's
        return False


def _facts(registry: Registry, entry: Entry) -> dict[str, Any]:
    """What `list` shows of a data set."""
    from advdistill.data.place import place

    spec = entry.spec
    facts: dict[str, Any] = {
        "name": spec.name,
        "plugin": entry.plugin.name,
        "summary": spec.summary,
        "state": "",
        "folder": "",
        "images": 0,
        "bytes": 0,
        "licence": "",
        "page": spec.reference,
        "fetch": "",
        "missing": [],
        "without": {},
        "resume": "",
        "error": "",
    }
    try:
        origin: Origin | None = registry.load(spec, "origin")
        if origin is None:
            return facts | {"state": "built in" if _ready(registry, spec) else "your own"}
        found = place(origin)
    except UserError as error:
        return facts | {"state": "broken", "error": error.message}
    return facts | {
        "state": found.state,
        "folder": str(found.folder.absolute()),
        "images": origin.images,
        "bytes": origin.bytes,
        "licence": origin.licence,
        "page": origin.page or spec.reference,
        "fetch": "by hand" if origin.gone or not origin.remotes else "fetch",
        "missing": list(found.missing),
        "without": dict(found.without),
        "resume": found.resume,
    }


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    by_hand = " (by hand)" if row["state"] == "missing" and row["fetch"] == "by hand" else ""
    return (
        row["name"],
        row["state"] + by_hand,
        f"{row['images']:,}" if row["images"] else "",
        _size(row["bytes"]) if row["bytes"] else "",
        row["licence"],
        row["folder"] or row["summary"],
    )


def _size(count: int) -> str:
    """Bytes in words."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1000:.3g} kB"


def _subject(subject: str, settings: Sequence[str] | None, plugin: Sequence[str] | None) -> tuple[Registry, Block, str]:
    """Who offers it, the block of data that is meant, and what to call it."""
    from advdistill.recipe.loader import find_recipe
    from advdistill.recipe.resolve import load_recipe, resolve_blocks

    registry, words = registry_with(plugin), settings or ()
    try:
        entry = registry.get("dataset", subject)
    except (RecipeError, PluginError) as unknown:
        try:
            find_recipe(subject, registry)
        except RecipeError as missing:
            raise (missing if subject.endswith((".yaml", ".yml")) else unknown) from None
        recipe = load_recipe(subject, words, plugins=plugin or ())
        return registry.with_files(recipe.plugin_hashes), recipe.data, recipe.name
    if odd := [word for word in words if "=" not in word]:
        raise UsageError(f"{odd[0]!r} is not a setting", "Write key=value, like root=DIR.")
    if any(word.startswith("use=") for word in words):
        raise UsageError("use= names another data set", "name it in the place of this one")
    blocks = resolve_blocks({"data": {"use": subject}}, registry, overrides=[f"data.{word}" for word in words])
    return registry, blocks[("data",)], entry.spec.name


def _told(name: str, found: Verification) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "name": name,
        "splits": {split: asdict(counts) for split, counts in found.splits.items()},
        "absent": dict(found.absent),
        "unreadable": [asdict(each) for each in found.unreadable],
        "twins": [
            [dict(zip(("split", "name", "class"), side, strict=True)) for side in (twins.one, twins.other)]
            for twins in found.twins
        ],
        "findings": found.findings,
        "notes": list(found.notes),
        "record": dict(found.record),
    }


def _print(found: Verification) -> None:
    rows = [
        (name, f"{each.images:,}", f"{each.classes:,}", _of(each.smallest), _of(each.largest))
        for name, each in found.splits.items()
    ]
    print_columns(("SPLIT", "IMAGES", "CLASSES", "SMALLEST CLASS", "LARGEST CLASS"), rows)
    for name, why in found.absent.items():
        typer.echo(f"no {name}: {why}")
    again = [str(each) for each in found.twins if not each.matters]
    shown = [*again[:5], f"… and {len(again) - 5} more within a class of a split"] if len(again) > 6 else again
    for line in (*found.notes, *shown, *found.findings):
        typer.echo(line)


def _of(pair: tuple[str, int]) -> str:
    return f"{pair[1]:,} {pair[0]}"


@contextmanager
def _bytes() -> Iterator[Callable[[str, int, int], None]]:
    """Gives `show(what, done, total)` for bytes: a bar on a terminal; elsewhere a line at each quarter."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _quarters()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield show


def _quarters() -> Callable[[str, int, int], None]:
    told = set[tuple[str, int]]()

    def show(what: str, done: int, total: int) -> None:
        quarter = 4 * done // total if total else 0
        if (what, quarter) not in told:
            told.add((what, quarter))
            typer.echo(f"{what}: {_size(done)}" + (f" of {_size(total)}" if total else ""), err=True)

    return show
