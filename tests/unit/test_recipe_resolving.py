"""Resolving recipes.

Guarantees:
- the resolved tree has every default, is JSON-able, and resolving its YAML gives the same tree;
- every value in it has an origin: file:line:column, override or default;
- blocks carry the validated config, the spec and the qualified name; probe and protocols fall back as documented;
- plugin files are found relative to the recipe that lists them, and hashed;
- where blocks of a checkpoint lack a plugin, its package or file is named, with what to do;
- every installed component's config survives the way through JSON;
- every shipped recipe resolves without torch being imported;
- `package:file` is found in installed packages, and any other text stays a path.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_parts import RECIPE, Climb, Tower, again, load, registry

from advdistill.errors import PluginError, RecipeError
from advdistill.hooks.registry import Registry, default_registry
from advdistill.recipe.fields import format_distance, parse_distance
from advdistill.recipe.paths import resource
from advdistill.recipe.resolve import load_recipe, resolve_blocks

PLUGIN = """\
from advdistill import AttackSpec, hookimpl

@hookimpl
def advdistill_attacks():
    yield AttackSpec(name="own", target="a:B", norms={"linf"}, objective=True)
"""


def leaves(value: object, path: str = "") -> set[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = set().union(*(leaves(item, f"{path}.{key}" if path else str(key)) for key, item in items))
    return found or {path}


def test_resolving_again_gives_the_same(tmp_path: Path) -> None:
    recipe = load(RECIPE, tmp_path, "evaluate.protocols.1.threat={norm: l2, eps: 0.3}", "optim.groups.student.lr=1e-7")
    same = again(json.loads(json.dumps(recipe.tree)), tmp_path)
    assert same.tree == recipe.tree
    for field in ("name", "threat", "data", "teachers", "student", "attack", "optim", "train", "evaluate", "report"):
        assert getattr(same, field) == getattr(recipe, field)
    assert recipe.tree["threat"]["eps"] == "8/255"


def test_every_value_has_an_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load(RECIPE, tmp_path, "attack.steps=7")
    assert recipe.origins.keys() == leaves(recipe.tree)
    assert recipe.origins["threat.eps"] == "r.yaml:2:27"
    assert recipe.origins["attack.steps"] == "override"
    assert recipe.origins["attack.random_start"] == recipe.origins["name"] == "default"
    assert recipe.origins["evaluate.protocols.1.attack.steps"] == "r.yaml:14:50"


def test_blocks_carry_what_the_engine_needs(tmp_path: Path) -> None:
    recipe = load(RECIPE, tmp_path, "teachers.clean.train=true")
    assert recipe.name == "r" and recipe.save.dir == "runs/r" and recipe.tree["save"]["dir"] == "runs/r"
    assert recipe.student.config == Tower(model="small", rank=4)
    assert (recipe.student.use, recipe.student.qualified, recipe.student.spec.kind) == (
        "tower",
        "made-up:tower",
        "student",
    )
    assert recipe.teachers["clean"].train and recipe.tree["teachers"]["clean"]["train"] is True
    assert recipe.attack and recipe.attack.config == Climb(steps=5, step="2/255")  # type: ignore[arg-type]
    assert recipe.evaluate.probe.attack == recipe.attack
    clean, strong = recipe.evaluate.protocols
    assert clean.attack is None and clean.threat == recipe.threat
    assert strong.attack and strong.attack.config.steps == 20  # type: ignore[attr-defined]
    assert [block.use for block in recipe.report] == ["console", "jsonl"]
    assert {(record["dist"], record["version"]) for record in recipe.providers} == {("made-up", "1.2")}
    paths = "data student attack strategy teachers.clean report.0 report.1 evaluate.protocols.1.attack"
    assert {record["path"] for record in recipe.providers} == set(paths.split())


def test_plugin_files_travel_with_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    own = tmp_path / "deep" / "own.py"
    own.write_text(PLUGIN)
    (tmp_path / "deep" / "base.yaml").write_text("plugins: [own.py]\n" + RECIPE)
    (tmp_path / "r.yaml").write_text("extends: deep/base.yaml\nattack: {use: own}\n")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("r.yaml", [], registry())
    assert recipe.tree["plugins"] == [str(own)]
    assert recipe.attack and recipe.attack.qualified == "own:own"
    (record,) = [record for record in recipe.providers if record["path"] == "attack"]
    assert record["file"] == str(own) and record["sha256"] == recipe.plugin_hashes[str(own)]

    blocks = {"attack": recipe.tree["attack"]}
    with pytest.raises(PluginError, match=r"attack 'own' comes from the single file own\.py") as caught:
        resolve_blocks(blocks, registry(), provided=recipe.providers)
    assert "--plugin" in caught.value.hint and record["sha256"][:12] in caught.value.hint
    moved = own.rename(tmp_path / "own.py")
    found = resolve_blocks(blocks, registry().with_files([moved]), provided=recipe.providers)
    assert found[("attack",)] == recipe.attack


def test_a_file_given_by_option_is_part_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(PLUGIN)
    (tmp_path / "r.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "r.yaml", ["attack={use: own}"], registry(), plugins=[tmp_path / "own.py"])
    assert recipe.tree["plugins"] == [str(tmp_path / "own.py")]
    assert again(recipe.tree, tmp_path).tree == recipe.tree


def test_a_missing_package_is_named_with_what_to_install(tmp_path: Path) -> None:
    recipe = load(RECIPE, tmp_path)
    blocks = {"student": recipe.tree["student"]}
    with pytest.raises(PluginError, match=r"student 'tower' comes from the package made-up 1\.2") as caught:
        resolve_blocks(blocks, Registry([]), provided=recipe.providers)
    assert "pip install made-up==1.2" in caught.value.hint


@pytest.mark.parametrize(
    "entry", default_registry().entries(), ids=lambda entry: f"{entry.spec.kind}-{entry.spec.name}"
)
def test_configs_survive_json(entry: object) -> None:
    config = default_registry().load(entry.spec, "config")  # type: ignore[attr-defined]
    if config is None:
        return
    fields = config.model_fields.items()
    required = {name: "x" for name, field in fields if field.is_required() or name == "model"}
    if entry.spec.name == "webdataset":  # type: ignore[attr-defined]
        required = {"shards": "x"}  # one of several that it may be given
    made = config(**required)
    assert config(**json.loads(json.dumps(made.model_dump(mode="json")))) == made


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.5/255", 0.5 / 255), (1, 1.0), ("1e-2", 0.01), (0, 0.0), ("2.5/255", 2.5 / 255)],
)
def test_distances_read_and_write(text: object, value: float) -> None:
    assert parse_distance(text) == value
    assert parse_distance(format_distance(value)) == value


@pytest.mark.parametrize("text", ["8/0", "far", True, None, [1], "1/2/3", float("inf"), "-1"])
def test_what_is_no_distance(text: object) -> None:
    with pytest.raises(ValueError, match="is not a distance"):
        parse_distance(text)


SHIPPED = """
import pathlib, sys
from advdistill.hooks.registry import default_registry
from advdistill.recipe.dump import to_yaml
from advdistill.recipe.loader import recipe_files
from advdistill.recipe.resolve import load_recipe
again = pathlib.Path(sys.argv[1], "again.yaml")
registry = default_registry()
assert not registry.broken, [p.cause for p in registry.broken]
for file, _ in recipe_files(registry):
    recipe = load_recipe(file)
    again.write_text(to_yaml(recipe.tree, recipe.origins))
    assert load_recipe(again).tree == recipe.tree, file
    print(file.stem, len(recipe.warnings))
print(sorted({"torch", "open_clip", "torchattacks", "numpy"} & sys.modules.keys()))
"""


def test_every_shipped_recipe_resolves_without_torch(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SHIPPED, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *recipes, imported = done.stdout.splitlines()
    assert imported == "[]"
    assert len(recipes) >= 5
    assert all(line.endswith(" 0") for line in recipes), "a shipped recipe has warnings"


def test_paths_may_lie_in_packages() -> None:
    assert resource("advdistill_demo:large.json").is_file()
    for path in ("no_such_package:file", "__main__:file", "sys:file", "plain/file"):
        assert resource(path) == Path(path)


def test_settings_of_a_wrapped_attack_need_not_name_it() -> None:
    """What a wrapper wraps by default stays where only its settings are given; its block stands in the tree whole."""
    block = resolve_blocks({"attack": {"use": "clean-backbone", "attack": {"steps": 7}}})[("attack",)]
    assert block.inner[0].use == "apgd" and block.tree()["attack"]["steps"] == 7
    named = resolve_blocks({"attack": {"use": "clean-backbone", "attack": {"use": "pgd"}}})[("attack",)]
    assert named.inner[0].use == "pgd"
    with pytest.raises(RecipeError, match=r"attack\.attack\.stps: unknown key"):
        resolve_blocks({"attack": {"use": "clean-backbone", "attack": {"stps": 7}}})


def test_a_wrapped_attack_must_climb_what_a_strategy_brings() -> None:
    assert load_recipe("apd_digits", ["attack={use: eot, draws: 2, attack: {use: pgd}}"]).attack.inner[0].use == "pgd"
    with pytest.raises(RecipeError, match=r"attack\.attack\.use: strategy .* brings its own objective; 'apgd-t'"):
        load_recipe("mmt_ard_fixed_digits", ["attack={use: eot, attack: {use: apgd-t}}"])
    with pytest.raises(RecipeError, match=r"attack\.attack\.use: 'pgd' does not know the norm l1"):
        load_recipe("mmt_ard_fixed_digits", ["attack={use: eot, attack: {use: pgd}}", "threat={norm: l1, eps: 9}"])
