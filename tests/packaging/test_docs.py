"""README and docs say what is so.

Guarantees:
- docs/plugins.md holds every hook, what it yields, every field of the specs and every example, as the sources have them
  (`python tests/packaging/test_docs.py` writes that part), and names every contract, event and verb there is;
- every `advdistill` command in README and docs is one: command, options, recipe, overrides and attack settings;
- README's recipe is valid and says what the shipped one says; its plugin has at most 20 lines, keeps the contract, and
  attacks a shipped model by README's own command; its Python runs;
- links lead somewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import advdistill
from advdistill import testing
from advdistill.cli import main
from advdistill.hooks import hookspecs, specs
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe, resolve_blocks

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "plugins.md"
README = (ROOT / "README.md").read_text(encoding="utf-8")
MARK = "<!-- From here on written by `python tests/packaging/test_docs.py`, from advdistill/hooks. -->\n"
SHIPPED = "advdistill_demo:clean.safetensors"


# The generated part


def attributes(spec: type) -> dict[str, str]:
    """What a spec's docstring says of each of its attributes."""
    listed = inspect.getdoc(spec).partition("\n\nAttributes:\n")[2]
    found: dict[str, str] = {}
    for line in textwrap.dedent(listed).splitlines():
        if name := re.match(r"(\w+): ", line):
            found[name[1]] = line[name.end() :]
        elif line.strip():
            found[list(found)[-1]] += f" {line.strip()}"
    return found


def fields(spec: type) -> str:
    """The fields that a spec adds to the common ones, a line each."""
    common = {field.name for field in dataclasses.fields(specs.Spec)} if issubclass(spec, specs.Spec) else set()
    own = [f.name for f in dataclasses.fields(spec) if spec is specs.Spec or f.name not in common]
    return "\n".join(f"- `{name}`: {attributes(spec)[name].rstrip('.')}." for name in own)


def generated() -> str:
    """Hooks and specs as Markdown."""
    parts = ["## Specs", "What a hook yields. Those of components all have", fields(specs.Spec), "## The eight hooks"]
    for name, spec in hookspecs.YIELDS.items():
        text, _, example = inspect.getdoc(getattr(hookspecs, name)).partition("\n\nExample:\n")
        parts += [f"### `{name}` yields `{spec.__name__}`", " ".join(text.split())]
        if dataclasses.is_dataclass(spec):
            parts += [own] if (own := fields(spec)) else []
        # Two blank lines, as the formatter wants them of code in Markdown.
        parts.append(textwrap.dedent(example).strip().replace("\n\n@hookimpl", "\n\n\n@hookimpl"))
    return "\n\n".join(parts) + "\n"


def test_the_guide_is_up_to_date() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert text.count(MARK) == 1
    assert text.partition(MARK)[2].strip() == generated().strip(), "run: python tests/packaging/test_docs.py"


def test_the_generated_part_is_whole() -> None:
    text = generated()
    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, "advdistill_spec")]
    assert sorted(hooks) == sorted(hookspecs.YIELDS) and len(hooks) == 8
    for name, spec in hookspecs.YIELDS.items():
        assert f"### `{name}` yields `{spec.__name__}`" in text
        assert f"def {name}(" in text, "every hook has its example"
        for field in dataclasses.fields(spec) if dataclasses.is_dataclass(spec) else ():
            assert f"- `{field.name}`" in text


def test_the_guide_names_what_there_is() -> None:
    text = GUIDE.read_text(encoding="utf-8").partition(MARK)[0]
    contracts = [name for name in testing.__all__ if name.startswith("check_")]
    events = [n for n in advdistill.__all__ if inspect.isclass(c := getattr(advdistill, n)) and
              issubclass(c, advdistill.Event) and c is not advdistill.Event]  # fmt: skip
    verbs = [name for name in vars(advdistill.Output) if not name.startswith("_")]
    assert len(contracts) == 5 and len(events) == 11 and len(verbs) == 8
    assert [name for name in [*contracts, *events, *verbs, *specs.KINDS] if name not in text] == []


# Blocks and commands


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """Every `advdistill …` in shell blocks and in inline code, as words; `a | b` stands for both."""
    lines = [part for block in blocks(text, "sh") for line in block.splitlines() for part in line.split("&&")]
    lines += re.findall(r"`(advdistill [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("\n", " "))
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] != ["advdistill"]:
            continue
        if "|" in words:
            yield from ([words[1], word] for word in words[2:] if word != "|")
        else:
            yield words[1:]


DOCUMENTED = list(commands(README)) + list(commands(GUIDE.read_text(encoding="utf-8")))


def parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command's full name and its arguments, without calling it."""
    command: Any = typer.main.get_command(main.app)
    name = []
    while hasattr(command, "get_command"):
        context = command.make_context(words[0], list(words), resilient_parsing=True)
        name.append(words[0])
        command = command.get_command(context, words[0])
        assert command is not None, f"there is no command {words[0]!r}"
        command = command.load() if hasattr(command, "load") else command
        words = words[1:]
    if not words:  # a mention
        return " ".join(name), {}
    words = ["quickstart" if word == "RECIPE" else word for word in words]
    return " ".join(name), command.make_context(name[-1], words).params


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with README's plugin and the shipped recipes, where README's commands are called."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_attack.py").write_text(plugin())
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    return tmp_path


def test_there_are_commands() -> None:
    called = {words[0] for words in DOCUMENTED}
    assert called == set(main.OWN)
    assert len(DOCUMENTED) >= 20


@pytest.mark.parametrize("words", DOCUMENTED, ids=" ".join)
def test_documented_commands_are_commands(words: list[str], here: Path) -> None:
    name, given = parse(words)
    registry = default_registry().with_files(given.get("plugin") or ())
    if name == "train" and given.get("recipe"):
        load_recipe(given["recipe"], given["overrides"] or (), registry, given["plugin"] or ())
    if name == "attack" and given.get("attack"):
        settings = [f"attack.{word}" for word in given["settings"] or ()]
        resolve_blocks({"attack": {"use": given["attack"]}}, registry, overrides=settings)
    if name == "plugins show" and given:
        assert any(entry.spec.name == given["name"] for entry in registry.entries())


# README's recipe, plugin and Python


def differences(told: Any, real: Any, path: str = "") -> Iterator[str]:
    """Where what README says is not what is; it may leave things out."""
    if isinstance(told, dict):
        for key, value in told.items():
            yield from differences(value, real.get(key), f"{path}.{key}")
    elif isinstance(told, list):
        for index, value in enumerate(told):
            yield from differences(value, real[index], f"{path}[{index}]")
    elif told != real:
        yield f"{path}: {told!r}, but the recipe has {real!r}"


def test_the_recipe_explained(tmp_path: Path) -> None:
    (text,) = blocks(README, "yaml")
    (tmp_path / "r.yaml").write_text(text)
    assert load_recipe(tmp_path / "r.yaml").warnings == ()
    shipped = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    assert list(differences(yaml.safe_load(text), shipped)) == []


def plugin() -> str:
    (text,) = (block for block in blocks(README, "python") if "hookimpl" in block)
    return text


def test_the_plugin_keeps_its_contract(here: Path) -> None:
    assert len([line for line in plugin().splitlines() if line.strip()]) <= 20
    registry = default_registry().with_files(["my_attack.py"])
    spec = registry.get("attack", "corner").spec
    testing.check_attack(registry.load(spec)(None), norms=spec.norms, objective=spec.objective)


def test_the_plugin_attacks(here: Path) -> None:
    (words,) = (words for words in DOCUMENTED if "--plugin" in words and words[0] == "attack")
    words = [SHIPPED if word.endswith("last.safetensors") else word for word in words]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as left:
        main.app([*words, "--limit", "60", "--json"], prog_name="advdistill")
    assert not left.value.code
    measured = json.loads(out.getvalue())["protocols"]
    assert measured["corner"]["accuracy"] < measured["clean"]["accuracy"]


def test_the_python(capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = (block for block in blocks(README, "python") if "advdistill.load" in block)
    code = text.replace("runs/quickstart/last.safetensors", SHIPPED)
    assert SHIPPED in code
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["model"].names) == 10


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    lost = [t for t in targets if not t.startswith("http") and not ((ROOT / page).parent / t).exists()]
    assert lost == []
    assert [name for name in re.findall(r"recipes/\w+\.yaml", text) if not (ROOT / name).is_file()] == []


if __name__ == "__main__":
    GUIDE.write_text(GUIDE.read_text(encoding="utf-8").partition(MARK)[0] + MARK + "\n" + generated(), encoding="utf-8")
