"""`advdistill plugins` and `advdistill inspect`.

Guarantees:
- `list` has a line for every component and one for every broken plugin with its cause, and still exits with 0; `--json`
  says the same;
- `show` prints what a component is and every setting with type, default and meaning, for every kind there is;
- `inspect` tells a checkpoint from its head, as text and JSON, without torch; a file that is none is 5.
- `inspect --model` tells what can be learned in a model and why not the rest, without weights; an unknown one is 5.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_parts import Cli

from advdistill.hooks.registry import default_registry
from advdistill.recipe.header import FORMAT


def test_list(cli: Cli) -> None:
    said = cli("plugins", "list")
    assert (said.code, said.err) == (0, "")
    header, *rows = said.out.splitlines()
    assert header.split() == ["KIND", "NAME", "PLUGIN", "SUMMARY"]
    entries = default_registry().entries()
    assert [row.split()[:3] for row in rows] == [[e.spec.kind, e.spec.name, e.plugin.name] for e in entries]
    assert all(len(row.split()) > 3 for row in rows), "a component without a summary"
    listed = json.loads(cli("plugins", "list", "--json").out)
    assert [(c["kind"], c["name"]) for c in listed["components"]] == [(e.spec.kind, e.spec.name) for e in entries]
    assert all(plugin["error"] == "" for plugin in listed["plugins"])
    assert listed["conflicts"] == []


def test_broken_and_conflicting_plugins_are_lines_in_the_list(cli: Cli) -> None:
    Path("bad.py").write_text("import no_such_module_at_all")
    Path("twin.py").write_text(
        "from advdistill import AttackSpec, hookimpl\nprint('noise')\n"
        "@hookimpl\ndef advdistill_attacks():\n    yield AttackSpec(name='pgd', target='a:B', norms={'l2'})\n"
    )
    said = cli("plugins", "list", "--plugin", "bad.py", "--plugin", "twin.py")
    assert said.code == 0
    assert said.err == "noise\n"
    *_, broken, conflict = said.out.splitlines()
    assert broken == f"broken: {Path('bad.py').resolve()}: ModuleNotFoundError: No module named 'no_such_module_at_all'"
    assert conflict.startswith("conflict: attack 'pgd' is offered by advdistill_attacks (advdistill ")
    listed = json.loads(cli("plugins", "list", "--plugin", "bad.py", "--json").out)
    assert [plugin["name"] for plugin in listed["plugins"] if plugin["error"]] == ["bad"]


@pytest.mark.parametrize(
    "entry", default_registry().entries(), ids=lambda entry: f"{entry.spec.kind}-{entry.spec.name}"
)
def test_every_component_can_be_shown(cli: Cli, entry: object) -> None:
    spec = entry.spec  # type: ignore[attr-defined]
    config = default_registry().load(spec, "config")
    said = cli("plugins", "show", f"{spec.kind}:{spec.name}")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"{spec.kind} {spec.name}: {spec.summary}\n")
    (told,) = json.loads(cli("plugins", "show", f"{spec.kind}:{spec.name}", "--json").out)
    assert len(told["settings"]) >= (len(config.model_fields) if config else 0)
    for setting in told["settings"]:
        assert setting["doc"], f"{spec.name}.{setting['name']} has no doc"
        assert setting["type"] and setting["name"] in said.out


def test_show(cli: Cli) -> None:
    Path("own.py").write_text(
        "from typing import Literal\n"
        "from pydantic import Field\n"
        "from advdistill import Config, PixelDistance, StrategySpec, hookimpl\n"
        "class Inner(Config):\n    deep: bool = True\n    'Or not.'\n"
        "class Settings(Config):\n"
        "    size: int = Field(ge=1)\n    'How large.'\n"
        "    step: PixelDistance = 2 / 255\n    'How far.'\n"
        "    way: Literal['up', 'down'] = 'up'\n    'Whither.'\n"
        "    words: list[str] = []\n    'Said.'\n"
        "    maybe: float | None = None\n    'Perhaps.'\n"
        "    inner: Inner = Inner()\n    'Below.'\n"
        "@hookimpl\ndef advdistill_strategies():\n"
        "    yield StrategySpec(name='own', target='a:B', config=Settings, teachers={'clean': 'knows'},\n"
        "                       summary='Ours', reference='https://example.org')\n"
    )
    said = cli("plugins", "show", "own", "--plugin", "own.py")
    assert said.out == (
        "strategy own: Ours\n"
        "  reference: https://example.org\n"
        "  teacher clean: knows\n"
        "  attack: objective\n"
        f"  from: {Path('own.py').resolve()}\n"
        "\n"
        "SETTING     TYPE           DEFAULT     MEANING\n"
        "size        int >= 1       (required)  How large.\n"
        "step        distance       2/255       How far.\n"
        "way         up | down      up          Whither.\n"
        "words       list of text   []          Said.\n"
        "maybe       float or null  null        Perhaps.\n"
        "inner.deep  bool           true        Or not.\n"
    )


def test_a_name_of_several_kinds_and_of_none(cli: Cli) -> None:
    Path("own.py").write_text(
        "from advdistill import AttackSpec, DatasetSpec, hookimpl\n"
        "@hookimpl\ndef advdistill_attacks():\n    yield AttackSpec(name='both', target='a:B', norms={'l2'})\n"
        "@hookimpl\ndef advdistill_datasets():\n    yield DatasetSpec(name='both', target='a:B')\n"
    )
    said = cli("plugins", "show", "both", "--plugin", "own.py")
    assert "attack both" in said.out and "dataset both" in said.out and "It takes no settings." in said.out
    missing = cli("plugins", "show", "pgdd")
    assert (missing.code, missing.out) == (3, "")
    assert missing.err.startswith("error: there is no component named 'pgdd'; did you mean 'pgd'?\n")
    wrong = cli("plugins", "show", "attack:digits")
    assert wrong.code == 3
    assert wrong.err.startswith("error: there is no attack named 'digits'")


FACTS = {
    "format": FORMAT,
    "recipe": {
        "name": "r",
        "student": {"use": "clip-lora"},
        "strategy": {"use": "mmt-ard"},
        "teachers": {"clean": {"use": "clip"}},
        "threat": {"norm": "linf", "eps": "8/255"},
        "evaluate": {"protocols": [{"name": "clean"}, {"name": "PGD-20"}]},
    },
    "base": {"model": "ViT-B-32-quickgelu", "weights": "openai", "fingerprint": "abc123"},
    "activation": "quick_gelu",
    "classes": [f"class {n}" for n in range(8)],
    "templates": ["a photo of a {}."],
    "threat": {"norm": "linf", "eps": 8 / 255},
    "clock": {"step": 150, "steps": 150, "epoch": 3},
    "versions": {"advdistill": "0.1.0", "torch": "2.5"},
    "plugins": [{"dist": "advdistill", "version": "0.1.0"}, {"dist": "", "file": "own.py"}],
    "results": [
        {"subject": "undefended", "protocols": {"zoo": {"accuracy": 0.5}, "clean": {"accuracy": 0.98}}},
        {"subject": "student", "protocols": {"PGD-20": {"accuracy": 0.75}, "clean": {"accuracy": 0.97}}},
    ],
}


def checkpoint(path: Path, facts: object = FACTS) -> Path:
    header = {
        "__metadata__": {"advdistill": json.dumps(facts)},
        "w": {"dtype": "F32", "shape": [128, 1024], "data_offsets": [0, 524288]},
        "b": {"dtype": "F32", "shape": [], "data_offsets": [524288, 524292]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(524292))
    return path


def test_inspect(cli: Cli) -> None:
    checkpoint(Path("c.safetensors"))
    said = cli("inspect", "c.safetensors")
    assert (said.code, said.err) == (0, "")
    assert said.out == (
        "recipe       r\n"
        "student      clip-lora\n"
        "strategy     mmt-ard\n"
        "teachers     clean: clip\n"
        "base         ViT-B-32-quickgelu openai\n"
        "fingerprint  abc123\n"
        "activation   quick_gelu\n"
        "classes      8: class 0, class 1, class 2, class 3, class 4, class 5, …\n"
        "templates    a photo of a {}.\n"
        "threat       linf 8/255\n"
        "clock        step 150, steps 150, epoch 3\n"
        "versions     advdistill 0.1.0, torch 2.5\n"
        "plugins      advdistill 0.1.0, own.py\n"
        f"format       {FORMAT}\n"
        "tensors      2 with 131,073 values, 0.50 MiB\n"
        "\n"
        "RESULTS     clean   PGD-20  zoo\n"
        "undefended  98.0 %  -       50.0 %\n"
        "student     97.0 %  75.0 %  -\n"
    )
    told = json.loads(cli("inspect", "c.safetensors", "--json").out)
    assert told["facts"] == FACTS
    assert told["tensors"]["parameters"] == 131073
    assert told["tensors"]["names"]["w"] == {"dtype": "F32", "shape": [128, 1024]}


def test_inspect_takes_a_file_that_says_little(cli: Cli) -> None:
    checkpoint(Path("c.safetensors"), {"format": FORMAT})
    assert cli("inspect", "c.safetensors").out == (
        f"format       {FORMAT}\ntensors      2 with 131,073 values, 0.50 MiB\n"
    )


def test_inspect_of_a_shipped_checkpoint_imports_no_torch() -> None:
    program = (
        "import sys, atexit\n"
        "from advdistill import resource\n"
        "from advdistill.cli.main import main\n"
        "atexit.register(lambda: print('torch' in sys.modules, 'pydantic' in sys.modules, file=sys.stderr))\n"
        "sys.argv[1:] = ['inspect', str(resource('advdistill_demo:clean.safetensors'))]\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "False" in done.stderr.split()[0]
    assert "demo-clean" in done.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), (b"\x80\x04x", "is a pickle"), (b"text", "is not a safetensors file")],
)
def test_inspect_of_something_else(cli: Cli, content: bytes | None, message: str) -> None:
    if content is not None:
        Path("c.safetensors").write_bytes(content)
    said = cli("inspect", "c.safetensors")
    assert (said.code, said.out) == (5, "")
    assert message in said.err


def test_inspect_a_model(cli: Cli) -> None:
    said = cli("inspect", "--model", "RN50-quickgelu")
    assert said.code == 0
    head, _, *rows = said.out.splitlines()
    assert head == "RN50-quickgelu: 102,007,137 parameters, 224 px, embeds into 1024"
    told = {row[:22].strip(): row[24:].split(maxsplit=1) for row in rows[1:]}
    assert told["text prompts"] == told["pixel prompts"] == told["tuning"] == ["yes"]
    assert (
        told["visual prompts"][0] == "no" and "ModifiedResNet has no plain row of tokens" in told["visual prompts"][1]
    )
    small = json.loads(cli("inspect", "--model", "advdistill_demo:small.json@", "--json").out)
    assert (small["image_size"], small["width"]) == (32, 64)
    assert {each["possible"] for each in small["takes"].values()} == {True}
    assert cli("inspect", "--model", "ViT-Q-32").code == 5
    both = cli("inspect", "c.safetensors", "--model", "RN50")
    assert (both.code, both.out) == (2, "") and "what shall be inspected?" in both.err
