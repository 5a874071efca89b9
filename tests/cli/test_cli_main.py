"""The command itself.

Guarantees:
- every command has help that ends in examples, and every example is a command that exists with options that exist;
- `--help` and `--version` import neither torch nor pydantic;
- a wrong command, option or argument is usage, 2, with a suggestion; nothing goes to stdout;
- errors are a message and a hint on stderr with their exit code, without traceback, which `-v` adds; Ctrl-C is 130; a
  bug is an internal error, 1;
- messages are plain where stderr is no terminal, and keep their lines;
- plugins bring commands, which are listed without being imported; one that cannot be imported is a plugin error, 4; the
  host's own names cannot be taken.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from cli_parts import Cli

from advdistill import CommandSpec, DataError, PluginError, RecipeError, RunError, UsageError
from advdistill.cli import main
from advdistill.hooks.manager import Plugin
from advdistill.hooks.registry import Registry

GROUPS = {
    "recipe": ["list", "show", "validate", "diff", "copy", "schema"],
    "plugins": ["list", "show"],
    "data": ["list", "where", "fetch", "verify", "preview"],
}
LEAVES = [[name] for name in main.OWN if name not in GROUPS] + [
    [g, leaf] for g, leaves in GROUPS.items() for leaf in leaves
]


def examples(text: str) -> Iterator[list[str]]:
    _, _, tail = text.partition("Examples:")
    for line in tail.splitlines():
        if line.strip().startswith("advdistill "):
            yield shlex.split(re.split(r"\s[|>]\s", line.strip())[0])[1:]


@pytest.mark.parametrize("words", [[], *LEAVES], ids=lambda words: " ".join(words) or "root")
def test_help_ends_in_examples_that_exist(cli: Cli, words: list[str]) -> None:
    said = cli(*words, "--help")
    assert said.code == 0 and said.err == ""
    shown = list(examples(said.out))
    assert shown, "no examples"
    for example in shown:
        assert example[: len(words)] == words or not words
        command = example[:2] if example[0] in GROUPS else example[:1]
        assert command in LEAVES
        known = cli(*command, "--help").out
        for word in example:
            assert not word.startswith("--") or re.search(rf"{word}\b", known), f"{word} of {example}"


def test_help_lists_the_commands(cli: Cli) -> None:
    said = cli("--help")
    for spec in main.OWN.values():
        assert re.search(rf"{spec.name} +{re.escape(spec.summary)}", said.out)


def imported_by(words: list[str], *modules: str) -> str:
    """Which of `modules` a call imports, in a process of its own."""
    program = (
        "import sys, atexit\n"
        "from advdistill.cli.main import main\n"
        f"atexit.register(lambda: print(sorted(set({modules}) & sys.modules.keys()), file=sys.stderr))\n"
        f"sys.argv[1:] = {words!r}\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stderr.strip()


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    assert imported_by(words, "torch", "pydantic", "numpy") == "[]"


@pytest.mark.parametrize(
    "words",
    [["recipe", "list"], ["recipe", "show", "quickstart"], ["recipe", "validate", "quickstart"], ["plugins", "list"],
     ["plugins", "show", "pgd"], ["recipe", "schema"], ["recipe", "diff", "quickstart", "quickstart"]],
    ids=" ".join,
)  # fmt: skip
def test_looking_imports_no_torch(words: list[str]) -> None:
    assert imported_by(words, "torch", "open_clip", "numpy") == "[]"


def test_the_version(cli: Cli) -> None:
    said = cli("--version")
    assert (said.code, said.err) == (0, "")
    assert re.fullmatch(r"advdistill \d+\.\d+\.\d+\n", said.out)


def test_an_unknown_command(cli: Cli) -> None:
    said = cli("trian")
    assert (said.code, said.out) == (2, "")
    assert (
        said.err == "error: there is no command 'trian'; did you mean 'train'?\n`advdistill --help` lists them all.\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe", "show"], "Missing argument"),
        (["recipe", "shwo"], "No such command"),
        (["recipe", "list", "--jsn"], "No such option"),
        (["recipe", "show", "quickstart", "steps"], "'steps' is not an override"),
        (["inspect"], "what shall be inspected?"),
    ],
)
def test_wrong_usage_is_2(cli: Cli, words: list[str], message: str) -> None:
    said = cli(*words)
    assert (said.code, said.out) == (2, "")
    assert message in said.err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, BaseException]]:
    """A plugin's command `fail` that raises `failing["with"]`."""
    box: dict[str, BaseException] = {}

    def fail(deep: bool = typer.Option(False, help="How.")) -> None:
        """Fail.

        Examples:
        advdistill fail --deep
        """
        raise box["with"]

    offers = (
        CommandSpec(name="fail", target=fail, summary="Fails."),
        CommandSpec(name="lost", target="no_such_module_at_all:command", summary="Is lost."),
        CommandSpec(name="train", target=fail, summary="Would take a name."),
    )
    registry = Registry([Plugin("p", "d", "1", offers)])
    monkeypatch.setattr(main, "default_registry", lambda: registry)
    yield box


@pytest.mark.parametrize(
    ("error", "code"),
    [(RunError, 1), (UsageError, 2), (RecipeError, 3), (PluginError, 4), (DataError, 5)],
)
def test_errors_end_as_a_message_and_a_code(
    cli: Cli, failing: dict[str, BaseException], error: type[RunError], code: int
) -> None:
    long = "x" * 300
    failing["with"] = error(f"what [bold] went\n    {long}\n    ^", "do this")
    said = cli("fail")
    assert (said.code, said.out) == (code, "")
    assert said.err == f"error: what [bold] went\n    {long}\n    ^\ndo this\n"
    assert "Traceback (most recent call last)" in cli("-v", "fail").err


def test_a_bug_is_an_internal_error(cli: Cli, failing: dict[str, BaseException]) -> None:
    failing["with"] = ZeroDivisionError("oops")
    said = cli("fail")
    assert (said.code, said.out) == (1, "")
    assert said.err == "error: internal error: ZeroDivisionError: oops\nRun `advdistill -v …` again.\n"
    assert "in fail" in cli("--verbose", "fail").err


def test_ctrl_c_is_130(cli: Cli, failing: dict[str, BaseException]) -> None:
    failing["with"] = KeyboardInterrupt()
    said = cli("fail")
    assert (said.code, said.out, said.err) == (130, "", "")


def test_plugins_bring_commands(cli: Cli, failing: dict[str, BaseException]) -> None:
    listed = cli("--help").out
    assert "Fails." in listed and "Is lost." in listed and "Would take a name." not in listed
    helped = cli("fail", "--help")
    assert helped.code == 0
    assert list(examples(helped.out)) == [["fail", "--deep"]]
    lost = cli("lost")
    assert lost.code == 4
    assert lost.err.startswith("error: the command 'lost' cannot be used: ModuleNotFoundError: ")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("advdistill recipe show quicks", "quickstart"),
        ("advdistill train quicks", "quickstart"),
        ("advdistill plugins show attack:pg", "attack:pgd"),
        ("advdistill plugins show pg", "pgd"),
        ("advdistill new-plugin x --kind str", "strategy"),
        ("advdistill rec", "recipe"),
    ],
)
def test_the_shell_completes_names(line: str, found: str, tmp_path: Path) -> None:
    words = line.split()
    done = subprocess.run(
        [sys.executable, "-c", "from advdistill.cli.main import main; main()"],
        env={"_ADVDISTILL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert found in done.stdout.split()
