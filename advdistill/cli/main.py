"""The command `advdistill`. Each subcommand is a module of its own, imported when it is called, or a plugin's."""

from __future__ import annotations

import importlib
import inspect
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from advdistill.cli.options import examples
from advdistill.errors import PluginError, UsageError, UserError, did_you_mean, run_warnings
from advdistill.hooks.manager import cause, host_version
from advdistill.hooks.registry import default_registry
from advdistill.hooks.specs import CommandSpec

_HERE = "advdistill.cli."
OWN = {
    spec.name: spec
    for spec in (
        CommandSpec(name="train", target=_HERE + "train:train", summary="Harden a model by a recipe."),
        CommandSpec(name="attack", target=_HERE + "attack:attack", summary="Attack a trained or an undefended model."),
        CommandSpec(
            name="evaluate", target=_HERE + "evaluate:evaluate", summary="Take models through whole protocols."
        ),
        CommandSpec(
            name="transfer", target=_HERE + "transfer:transfer", summary="Who is misled by images made on whom."
        ),
        CommandSpec(name="diagnose", target=_HERE + "diagnose:diagnose", summary="Doubt what an attack reports."),
        CommandSpec(name="compare", target=_HERE + "compare:compare", summary="Compare stored evaluations."),
        CommandSpec(name="study", target=_HERE + "study:study", summary="Run recipes times seeds, and compare them."),
        CommandSpec(name="bench", target=_HERE + "bench:bench", summary="Measure what a recipe's steps cost here."),
        CommandSpec(name="data", target=_HERE + "data:app", summary="See, fetch, check and preview data sets."),
        CommandSpec(name="recipe", target=_HERE + "recipe:app", summary="List, show, check, compare, copy recipes."),
        CommandSpec(name="plugins", target=_HERE + "plugins:app", summary="See what recipes can name, and settings."),
        CommandSpec(
            name="inspect",
            target=_HERE + "inspect:inspect",
            summary="See what a checkpoint says of itself, or what a model takes.",
        ),
        CommandSpec(name="new-plugin", target=_HERE + "new_plugin:new_plugin", summary="Start a plugin of your own."),
    )
}


def _split_examples(text: str) -> tuple[str, str]:
    """A docstring's help and, from a line `Examples:` on, what to show at the end, line by line."""
    text, _, lines = inspect.cleandoc(text).partition("\nExamples:\n")
    return text, examples(*(line.strip() for line in lines.splitlines())) if lines else ""


class LazyCommand(TyperCommand):
    """A command that imports its function when it is called, not when it is listed."""

    def __init__(self, spec: CommandSpec) -> None:
        super().__init__(name=spec.name, help=spec.summary)
        self.spec = spec

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        return self.load().make_context(info_name, args, parent=parent, **extra)

    def load(self) -> Any:
        """The real command. Raises PluginError where its module or function cannot be imported."""
        target = self.spec.target
        if isinstance(target, str):
            module, _, name = target.partition(":")
            try:
                target = getattr(importlib.import_module(module), name)
            except (Exception, SystemExit) as error:
                raise PluginError(
                    f"the command {self.spec.name!r} cannot be used: {cause(error)}", "Repair or reinstall its plugin."
                ) from error
        if isinstance(target, typer.Typer):
            return typer.main.get_command(target)
        app = typer.Typer(rich_markup_mode="rich", add_completion=False)
        text, epilog = _split_examples(target.__doc__ or self.spec.summary)
        app.command(self.spec.name, help=text, epilog=epilog or None)(target)
        return typer.main.get_command(app)


class Commands(TyperGroup):
    """The host's commands and those of plugins. Every error of theirs ends here, as a message and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*OWN, *sorted(default_registry().commands().keys() - OWN.keys())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in OWN:
            return LazyCommand(OWN[cmd_name])
        found = default_registry().commands().get(cmd_name)
        return LazyCommand(found[0]) if found else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            suggestion = did_you_mean(args[0], self.list_commands(ctx))
            raise UsageError(f"there is no command {args[0]!r}{suggestion}", "`advdistill --help` lists them all.")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with run_warnings(lambda message: _tell(message, "", what="warning", style="bold yellow")):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except UserError as error:
            if ctx.params.get("verbose"):
                traceback.print_exc()
            _tell(error.message, error.hint)
            raise typer.Exit(error.exit_code) from error
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if hasattr(error, "exit_code"):
                raise  # typer's own: a wrong option or argument
            if ctx.params.get("verbose"):
                traceback.print_exc()
            hint = "" if ctx.params.get("verbose") else "Run `advdistill -v …` again."
            _tell(f"internal error: {type(error).__name__}: {error}", hint)
            raise typer.Exit(1) from error


def _tell(message: str, hint: str, what: str = "error", style: str = "bold red") -> None:
    from rich.console import Console

    # soft_wrap: a message keeps its lines, so that carets stay below what they point at.
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    console.print(f"{what}: ", style=style, end="")
    console.print(message)
    if hint:
        console.print(hint, style="cyan")


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "advdistill train quickstart",
        "advdistill train quickstart optim.lr=1e-4 train.steps=50",
        "advdistill attack --model runs/quickstart/last.safetensors",
        "advdistill recipe list",
    ),
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"advdistill {host_version()}")
        raise typer.Exit


@app.callback()
def root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Turn a vision-language model into one that withstands adversarial images."""


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="advdistill")
