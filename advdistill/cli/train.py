"""`advdistill train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advdistill.cli.options import (
    Gpus,
    Json,
    Overrides,
    PluginFiles,
    Processes,
    complete_recipe,
    registry_with,
)
from advdistill.cli.output import print_json
from advdistill.errors import DataError, UsageError

if TYPE_CHECKING:
    from advdistill.engine.plan import Plan
    from advdistill.recipe.resolve import Recipe


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="A file, or a name from `recipe list`.", autocompletion=complete_recipe),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with the run in this folder, where it was stopped.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew in a folder that holds a run.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained and what it needs; read no weights.")
    ] = False,
    gpus: Gpus = None,
    processes: Processes = None,
    json: Json = False,
    plugin: PluginFiles = None,
) -> None:
    """Harden a model by a recipe, measure it, and save what it learned.

    The run's folder (save.dir) gets last.safetensors, results.json, metrics.jsonl, recipe.yaml and pictures. The final
    table goes to stdout, progress to stderr. Ctrl-C finishes the step in hand, saves, and prints how to go on.
    torchrun (`-m advdistill train …`) and SLURM (`srun --kill-on-bad-exit=1 advdistill train …`) may start the
    processes as well; without that option, srun lets the others wait for one that has died.

    Examples:
    advdistill train quickstart
    advdistill train recipes/mmt_ard_vitb32.yaml data.root=/data/imagenet train.batch_size=256 --dry-run
    advdistill train --resume runs/quickstart
    advdistill train quickstart --gpus 2
    """
    from advdistill.engine import launch
    from advdistill.recipe.resolve import load_recipe

    if dry_run and (gpus or processes):
        raise UsageError("--dry-run plans one process, and starts none", "leave out --gpus and --processes")
    if resume is not None:
        if recipe or overrides or overwrite or dry_run:
            raise UsageError("--resume goes on with a run as it is; it takes no recipe, change or other mode")
        resolved = _begun(resume, plugin)
        if _finished(resume, json):
            return
    elif recipe is None:
        raise UsageError("which recipe?", "`advdistill recipe list` shows those that have names.")
    else:
        resolved = load_recipe(recipe, overrides or (), plugins=plugin or ())
    registry = registry_with(resolved.plugin_hashes)
    if dry_run:
        from advdistill.engine.plan import estimated

        found = estimated(resolved, registry)
        print_json(found.to_json()) if json else _tell_plan(resolved, found)
        return
    if count := launch.needed(gpus, processes, resolved.train.device):
        option = "--gpus" if gpus else "--processes"
        again = f"advdistill train --resume {resolved.save.dir} {option} {count}"
        raise typer.Exit(launch.start(count, option, again))
    from advdistill.cli.tables import print_results
    from advdistill.engine import fit

    rows = fit.train(resolved, registry, resume=resume is not None, overwrite=overwrite)
    if launch.place().rank:
        return
    print_json([row.to_json() for row in rows]) if json else print_results(rows)


def _begun(folder: Path, plugin: list[str] | None) -> Recipe:
    from advdistill.recipe.resolve import load_recipe

    path = folder / "recipe.yaml"
    if not path.is_file():
        raise DataError(f"{folder} holds no run: there is no recipe.yaml in it", "give the folder of a run")
    # The folder may have been moved since.
    return load_recipe(path, [f"save.dir={folder}"], plugins=plugin or ())


def _finished(folder: Path, json: bool) -> bool:
    """Whether that run has ended; then its results are printed again."""
    import json as reader

    path = folder / "results.json"
    if not path.is_file():
        return False
    from advdistill.cli.tables import print_results
    from advdistill.engine.evaluate import Results

    try:
        stored = reader.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}", "without it, --resume measures again") from error
    typer.echo(f"the run in {folder} is finished; these are its results", err=True)
    rows = [Results.from_json(row["subject"], row, row["stored"]) for row in stored]
    print_json(stored) if json else print_results(rows)
    return True


def _tell_plan(recipe: Recipe, plan: Plan) -> None:
    def size(count: int) -> str:
        return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"

    for warning in recipe.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for missing in plan.missing:
        typer.echo(f"not on this machine: {missing}", err=True)
    lines = [
        ("recipe", recipe.name),
        ("method", recipe.strategy.use),
        ("data", f"{plan.images:,} images of {plan.side}x{plan.side}, {plan.classes:,} classes"),
        ("budget", f"{plan.steps:,} optimizer steps of {min(recipe.train.batch_size, plan.images)} images"),
        *((role, _part(recipe, role, *sizes)) for role, sizes in plan.sizes.items()),
        ("weights", size(plan.weights)),
        ("training", f"{size(plan.training)} for gradients and optimizer state"),
    ]  # fmt: skip
    if plan.activations is None:
        lines.append(("activations", f"not known: {plan.unknown}"))
    else:
        total = plan.weights + plan.training + plan.activations
        held = f"{size(plan.activations)} at {plan.portion} images a portion, in {plan.precision}"
        held += ", or as few as fit" if recipe.train.accumulate == "auto" else ""
        lines += [("activations", held), ("memory", f"at least {size(total)}, and what torch itself takes")]
    lines.append(("time", _time(recipe, plan)))
    width = max(len(head) for head, _ in lines)
    for head, text in lines:
        typer.echo(f"{head.ljust(width)}  {text}")


def _time(recipe: Recipe, plan: Plan) -> str:
    """How long the steps would take here."""
    if plan.flops is None:
        return f"not known: {plan.unknown}"
    work = f"{sum(plan.flops.values()) / 1e9:,.1f} GFLOP a step on average"
    if plan.kept:
        work += f" ({' and '.join(plan.kept)} asked about clean images in the first epoch only)"
    if plan.seconds_per_step is None or plan.rate is None:
        return f"{work}; not known how long they take: {recipe.train.device} cannot be used here"
    hours = plan.steps * plan.seconds_per_step / 3600
    whole = f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"
    rate = f"at the rate of a matrix product on this machine in {plan.precision}, {plan.rate / 1e9:,.0f} GFLOP/s"
    time = f"{plan.seconds_per_step:.3g} s a step, {whole} for all, in matrix products alone"
    return f"{time}; {work} {rate}; `advdistill bench` measures"


def _part(recipe: Recipe, role: str, learns: int, total: int) -> str:
    """What a model does in a run."""
    if learns:
        return f"learns {learns:,} of {total:,} parameters"
    follows = role in recipe.teachers and recipe.teachers[role].ema
    return f"{'follows the student' if follows else 'frozen'}, {total:,} parameters"
