"""Plugins: found, guarded, named, loaded late.

Guarantees:
- every hook is documented by an example that is a working plugin, and yields the kind of spec that the host expects;
- a plugin that fails to import, exits, misspells a hook, yields the wrong thing or raises half-way is recorded with its
  cause, and the others work; what plugins print goes to stderr;
- installed plugins are found by their entry points, with distribution and version, in a folder with a hand-written
  dist-info;
- names: a miss suggests and is a RecipeError; a broken owner is a PluginError with the cause; two owners are an error
  that names both, only when asked for, and `dist:name` or `plugin:name` picks one; every student can teach;
- targets, configs and checks are imported on first use and checked; a failure names the plugin and the cause;
- single files: one version gives one set of classes, and its content's hash is kept;
- listing what is installed imports neither torch nor pydantic.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from advdistill import AttackSpec, CommandSpec, Config, PluginError, RecipeError, StudentSpec, TeacherSpec
from advdistill.hooks import hookspecs, manager
from advdistill.hooks.manager import Plugin, installed, load_file
from advdistill.hooks.registry import Registry, default_registry

PGD = AttackSpec(name="pgd", target="a:B", norms={"linf"})


def plugin(*offers: object, name: str = "p", dist: str = "d", error: Exception | None = None) -> Plugin:
    return Plugin(name, dist, "1.0", offers, error)


@pytest.mark.parametrize("hook", sorted(hookspecs.YIELDS))
def test_every_hook_is_documented_by_a_working_plugin(hook: str, tmp_path: Path) -> None:
    doc = inspect.getdoc(getattr(hookspecs, hook)) or ""
    (example,) = re.findall(r"```python\n(.*?)```", doc, flags=re.DOTALL)
    (tmp_path / "example.py").write_text(textwrap.dedent(example))
    loaded = load_file(tmp_path / "example.py")
    assert loaded.error is None
    assert [type(offer) for offer in loaded.offers] and isinstance(loaded.offers[0], hookspecs.YIELDS[hook])


def test_there_are_eight_hooks() -> None:
    declared = {name for name in vars(hookspecs) if name.startswith("advdistill_")}
    assert declared == set(hookspecs.YIELDS)
    assert len(declared) == 8


HEAD = "from advdistill import AttackSpec, hookimpl\n"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("def (", "SyntaxError: "),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (HEAD + "@hookimpl\ndef advdistill_atacks():\n    return []", "unknown hook 'advdistill_atacks'"),
        (HEAD + "@hookimpl\ndef advdistill_attacks():\n    yield 3", "TypeError: advdistill_attacks yielded 3, not a"),
        (HEAD + "@hookimpl\ndef advdistill_attacks(x):\n    return []", "PluginValidationError: "),
        (HEAD + "@hookimpl\ndef advdistill_attacks():\n    return 3", "TypeError: 'int' object is not iterable"),
        (
            HEAD + "@hookimpl\ndef advdistill_attacks():\n    yield AttackSpec(name='My Attack', target='a:B')",
            "ValueError: AttackSpec name 'My Attack' is not kebab-case",
        ),
        (
            HEAD + "@hookimpl\ndef advdistill_attacks():\n    yield AttackSpec(name='a', target='a:B', norms={'l7'})",
            "ValueError: a: norms ['l7'] must be some of",
        ),
    ],
)
def test_a_broken_plugin_is_recorded_with_its_cause(tmp_path: Path, text: str, cause: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    broken = load_file(tmp_path / "bad.py")
    assert cause in broken.cause
    registry = Registry([plugin(PGD), broken])
    assert registry.broken == [broken]
    assert registry.get("attack", "pgd").spec is PGD


def test_a_plugin_that_breaks_half_way_offers_nothing_but_is_known_by_name(tmp_path: Path) -> None:
    text = (
        "@hookimpl\ndef advdistill_attacks():\n    yield AttackSpec(name='own', target='a:B', norms={'l2'})\n    1 / 0"
    )
    (tmp_path / "half.py").write_text(HEAD + text)
    registry = Registry([]).with_files([tmp_path / "half.py"])
    assert registry.entries() == []
    with pytest.raises(PluginError, match=r"attack 'own' comes from .*half\.py, which is broken: ZeroDivisionError"):
        registry.get("attack", "own")


def test_what_a_plugin_prints_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loud.py").write_text("print('hello')")
    load_file(tmp_path / "loud.py")
    assert capsys.readouterr() == ("", "hello\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path with two installed distributions: one good, one that cannot be imported."""
    for dist, module, body in (
        ("good-dist", "good_plugin", HEAD + "@hookimpl\ndef advdistill_attacks():\n    yield "
         "AttackSpec(name='good', target='good_plugin:Attack', norms={'linf'})\n"),
        ("bad-dist", "bad_plugin", "raise RuntimeError('not today')\n"),
    ):  # fmt: skip
        info = tmp_path / f"{dist.replace('-', '_')}-2.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 2.5\n")
        (info / "entry_points.txt").write_text(f"[advdistill]\n{module} = {module}\n")
        (tmp_path / f"{module}.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return tmp_path


def test_installed_plugins_are_found_and_one_bad_one_hurts_nobody(site: Path) -> None:
    registry = Registry(installed())
    found = registry.get("attack", "good")
    assert found.qualified == "good-dist:good"
    assert (found.plugin.name, found.plugin.version) == ("good_plugin", "2.5")
    (broken,) = registry.broken
    assert broken.label == "bad_plugin (bad-dist 2.5)"
    assert broken.cause == "RuntimeError: not today"
    assert registry.get("teacher", "checkpoint").plugin.name == "advdistill"


def test_a_miss_suggests() -> None:
    registry = Registry([plugin(PGD)])
    with pytest.raises(RecipeError) as caught:
        registry.get("attack", "pdg")
    assert (caught.value.message, caught.value.hint) == (
        "there is no attack named 'pdg'; did you mean 'pgd'?",
        "Known: pgd.",
    )


def test_a_miss_beside_a_broken_plugin() -> None:
    registry = Registry([plugin(PGD), plugin(name="q", dist="e", error=ImportError("no torchhh"))])
    with pytest.raises(PluginError, match=r"could not be loaded \(q \(e 1\.0\): ImportError: no torchhh\)"):
        registry.get("attack", "novel")
    with pytest.raises(PluginError, match="ImportError: no torchhh"):
        registry.get("attack", "e:novel")
    with pytest.raises(RecipeError, match="did you mean 'pgd'"):
        registry.get("attack", "pgdd")
    with pytest.raises(PluginError, match="belongs to the plugin 'absent', which is not installed"):
        registry.get("attack", "absent:pgd")


def test_two_owners_of_a_name() -> None:
    other = AttackSpec(name="pgd", target="c:D", norms={"l2"})
    registry = Registry([plugin(PGD, name="one", dist="first"), plugin(other, name="two", dist="second")])
    with pytest.raises(PluginError) as caught:
        registry.get("attack", "pgd")
    assert caught.value.message == "attack 'pgd' is offered by one (first 1.0) and by two (second 1.0)"
    assert caught.value.hint == "Say which: use: first:pgd or use: second:pgd."
    assert registry.get("attack", "second:pgd").spec is other
    assert registry.get("attack", "one:pgd").spec is PGD
    assert registry.conflicts() == ["attack 'pgd' is offered by one (first 1.0) and by two (second 1.0)"]


def test_two_owners_in_one_distribution() -> None:
    registry = Registry([plugin(PGD, name="one"), plugin(PGD, name="two")])
    with pytest.raises(PluginError) as caught:
        registry.get("attack", "d:pgd")
    assert caught.value.hint == "Say which: use: one:pgd or use: two:pgd."


def test_every_student_can_teach() -> None:
    student = StudentSpec(name="tower", target="a:B")
    teacher = TeacherSpec(name="tower", target="c:D")
    assert Registry([plugin(student)]).get("teacher", "tower").spec is student
    assert Registry([plugin(student, teacher)]).get("teacher", "tower").spec is teacher
    assert Registry([plugin(student)]).names("teacher") == ["tower"]
    with pytest.raises(RecipeError):
        Registry([plugin(teacher)]).get("student", "tower")


class NotAConfig:
    pass


class Greedy(Config):
    use: int = 0


@pytest.mark.parametrize(
    ("what", "reference", "cause"),
    [
        ("target", "no_such_module_at_all:X", "ModuleNotFoundError"),
        ("target", "textwrap:Nothing", "AttributeError"),
        ("target", "textwrap:TextWrapper", "TypeError: it is not a subclass of advdistill.Attack"),
        ("config", "textwrap:TextWrapper", "TypeError: it is not a subclass of advdistill.Config"),
        ("config", NotAConfig, "TypeError: it is not a subclass of advdistill.Config"),
        ("config", Greedy, "TypeError: the field name 'use' is taken by the recipe itself"),
        ("check", "textwrap:__all__", "TypeError: it is not a function"),
    ],
)
def test_loading_checks_what_it_loads(what: str, reference: object, cause: str) -> None:
    spec = AttackSpec(**{"name": "x", "target": "a:B", "norms": {"l2"}, what: reference})  # type: ignore[arg-type]
    with pytest.raises(PluginError) as caught:
        Registry([plugin(spec)]).load(spec, what)
    assert cause in caught.value.message
    assert "attack 'x' of plugin p (d 1.0)" in caught.value.message
    assert caught.value.exit_code == 4


def test_loading_what_is_there() -> None:
    registry = default_registry()
    pgd = registry.get("attack", "pgd").spec
    assert registry.load(pgd, "target").__name__ == "PGD"
    assert issubclass(registry.load(pgd, "config"), Config)
    assert registry.load(PGD, "config") is None
    assert registry.load(PGD, "check") is None


@pytest.mark.parametrize(
    "entry", default_registry().entries(), ids=lambda entry: f"{entry.spec.kind}-{entry.spec.name}"
)
def test_every_installed_component_can_be_loaded(entry: object) -> None:
    for what in ("config", "check", "target"):
        default_registry().load(entry.spec, what)  # type: ignore[attr-defined]


def test_single_files(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(HEAD + "class A: pass\n@hookimpl\ndef advdistill_attacks():\n    "
                    "yield AttackSpec(name='own', target=A, norms={'linf'})\n")  # fmt: skip
    first, again = load_file(file), load_file(str(file))
    assert first.offers[0].target is again.offers[0].target
    assert first.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (first.name, first.dist, first.file) == ("own", "", file)
    registry = Registry([]).with_files([file])
    assert registry.with_files([file]) is registry
    assert registry.get("attack", "own").qualified == "own:own"
    file.write_text(file.read_text() + "# changed\n")
    assert load_file(file).offers[0].target is not first.offers[0].target
    with pytest.raises(PluginError, match="cannot read the plugin file"):
        load_file(tmp_path / "missing.py")
    (tmp_path / "notes.txt").write_text("x")
    assert "is not a Python file" in load_file(tmp_path / "notes.txt").cause


def test_of_two_commands_with_one_name_neither_is_run() -> None:
    command = CommandSpec(name="board", target="a:b")
    alone = CommandSpec(name="other", target="a:b")
    registry = Registry([plugin(command, alone), plugin(command, name="q")])
    assert set(registry.commands()) == {"other"}
    assert registry.conflicts() == ["command 'board' is offered by p (d 1.0) and by q (d 1.0)"]


def test_recipe_dirs_of_broken_plugins_do_not_count(tmp_path: Path) -> None:
    good, bad = plugin(tmp_path), plugin(tmp_path / "x", error=ValueError("x"))
    assert Registry([good, bad]).recipe_dirs() == [(tmp_path, good)]


def test_the_default_registry_is_made_once_and_whole() -> None:
    assert default_registry() is default_registry()
    assert [each.cause for each in default_registry().broken] == []
    assert default_registry().conflicts() == []
    assert manager.host_version() != "0"


def test_listing_imports_neither_torch_nor_pydantic() -> None:
    program = (
        "import sys; from advdistill.hooks.registry import default_registry\n"
        "assert len(default_registry().entries()) > 10\n"
        "print(sorted({'torch', 'pydantic', 'numpy', 'open_clip'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
