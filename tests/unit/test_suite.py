"""What is pinned here:

- Every suite that ships is valid, is found by its name, and says whole what it runs.
- A suite extends another: maps merge, `null` deletes; overrides go before both.
- What is wrong is told all at once, with file, line, column, path, and what was perhaps meant; it takes no torch.
- Headings keep their order; nested attacks and their settings are in the tree, defaults included.
- Attacks run in the order of what the attacker has to go on, white-box first after clean accuracy; several radii and
  several teachers become columns of their own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import run_parts

from advdistill.engine.protocol import RANKS
from advdistill.engine.subject import Target, subjects
from advdistill.errors import RecipeError, UsageError
from advdistill.hooks.registry import default_registry
from advdistill.recipe.loader import recipe_files
from advdistill.recipe.suite import FOLDER, Suite, load_suite

REGISTRY = default_registry().with_files([run_parts.PLUGIN])
SUITE = """\
advdistill: 1
limit: 12
threat: {eps: 4/255}
protocols:
  clean: {}
  weak: {attack: {use: fgsm}}
  strong: {attack: {use: pgd, steps: 3}, threat: {norm: l2, eps: 0.5}}
"""


def load(folder: Path, text: str = SUITE, *overrides: str) -> Suite:
    path = folder / "mine.yaml"
    path.write_text(text)
    return load_suite(path, REGISTRY, overrides)


def told(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises((RecipeError, UsageError)) as found:
        load(folder, text, *overrides)
    return f"{found.value.message} {found.value.hint}"


# --- what ships --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [path for path, dist in recipe_files(REGISTRY, FOLDER) if dist == "advdistill"],
                         ids=lambda path: path.stem)  # fmt: skip
def test_what_ships_is_valid(file: Path) -> None:
    suite = load_suite(file.stem, REGISTRY)
    assert suite.name == file.stem and suite.attacks
    assert suite.tree == load_suite(file, REGISTRY).tree
    for name, protocol in suite.tree["protocols"].items():
        assert (protocol["attack"] is None) == (name not in suite.attacks)


def test_there_are_these() -> None:
    found = {path.stem for path, _ in recipe_files(REGISTRY, FOLDER)}
    assert {"quick", "standard", "paranoid", "base-to-new"} <= found
    quick, standard, paranoid = (load_suite(name, REGISTRY) for name in ("quick", "standard", "paranoid"))
    assert quick.model.limit < standard.model.limit and paranoid.model.limit == 0
    assert standard.tree["protocols"].items() <= paranoid.tree["protocols"].items()
    assert {b.spec.name for b in standard.attacks.values()} >= {"autoattack", "apgd"}
    halves = load_suite("base-to-new", REGISTRY)
    assert {name: scope.classes for name, scope in halves.model.scopes.items()} == {"base": "base", "new": "new"}
    assert halves.tree["protocols"] == quick.tree["protocols"]


# --- files -------------------------------------------------------------------------------------------------------


def test_a_suite_says_it_whole(tmp_path: Path) -> None:
    suite = load(tmp_path)
    assert suite.name == "mine" and list(suite.tree["protocols"]) == ["clean", "weak", "strong"]
    assert suite.model.limit == 12 and suite.model.split == "test" and suite.model.seed == 0
    strong = suite.tree["protocols"]["strong"]
    assert strong["attack"]["steps"] == 3 and strong["attack"]["restarts"] == 1 and strong["times"] == [1.0]
    assert strong["threat"]["norm"] == "l2"
    assert suite.attacks.keys() == {"weak", "strong"} and suite.attacks["strong"].spec.name == "pgd"


def test_the_name_may_be_given(tmp_path: Path) -> None:
    assert load(tmp_path, "name: other\n" + SUITE).name == "other"


def test_suites_extend_suites(tmp_path: Path) -> None:
    load(tmp_path)
    (tmp_path / "child.yaml").write_text(
        "advdistill: 1\nextends: mine.yaml\nlimit: 6\n"
        "protocols:\n  weak: null\n  strong: {attack: {steps: 5}}\n  more: {attack: {use: fgsm, random_start: true}}\n"
    )
    child = load_suite(tmp_path / "child.yaml", REGISTRY)
    assert (
        child.name == "child"
        and child.model.limit == 6
        and list(child.tree["protocols"]) == ["clean", "strong", "more"]
    )
    assert child.attacks["strong"].config.steps == 5 and child.model.protocols["strong"].threat.norm == "l2"  # type: ignore[attr-defined,union-attr]
    (tmp_path / "grand.yaml").write_text("advdistill: 1\nextends: quick\nprotocols:\n  transfer from base: null\n")
    grand = load_suite(tmp_path / "grand.yaml", REGISTRY)
    assert grand.tree["protocols"].keys() == load_suite("quick", REGISTRY).tree["protocols"].keys() - {
        "transfer from base"
    }


def test_overrides_go_first(tmp_path: Path) -> None:
    suite = load(tmp_path, SUITE, "limit=3", "protocols.strong.attack.steps=7", "protocols.weak.times=[1, 2]", "seed=4")
    assert (suite.model.limit, suite.model.seed) == (3, 4)
    assert suite.attacks["strong"].config.steps == 7  # type: ignore[attr-defined]
    assert suite.model.protocols["weak"].times == [1.0, 2.0]
    another = load(tmp_path, SUITE, "protocols.weak.attack.use=pgd")
    assert another.attacks["weak"].spec.name == "pgd"
    assert load_suite("quick", REGISTRY, ["limit=5"]).model.limit == 5


def test_nested_attacks_are_checked_and_shown(tmp_path: Path) -> None:
    nested = SUITE + "  drawn: {attack: {use: eot, draws: 2, attack: {use: pgd, steps: 4}}}\n"
    suite = load(tmp_path, nested)
    block = suite.attacks["drawn"]
    assert block.spec.name == "eot" and [each.spec.name for each in block.inner] == ["pgd"]
    assert suite.tree["protocols"]["drawn"]["attack"]["attack"]["steps"] == 4
    assert "stepz" in told(tmp_path, nested.replace("steps: 4", "stepz: 4"))


# --- what is wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "place", "what"),
    [
        ("use: pgd", "use: pdg", "mine.yaml:7:26: protocols.strong.attack.use", "'pgd'"),
        ("steps: 3", "stepz: 3", "mine.yaml:7:31: protocols.strong.attack.stepz", "did you mean"),
        ("steps: 3", "steps: 0", "mine.yaml:7:38: protocols.strong.attack.steps", "1"),
        ("limit: 12", "limit: -1", "mine.yaml:2:8: limit", "0"),
        ("limit: 12", "limt: 12", "mine.yaml:2:1: limt", "'limit'"),
        ("norm: l2", "norm: l7", "mine.yaml:7:57: protocols.strong.threat.norm", "l2"),
        ("eps: 4/255", "eps: four", "mine.yaml:3:15: threat.eps", "8/255"),
        ("clean: {}", "clean: {limit: 3}", "mine.yaml:5:11: protocols.clean.limit", ""),
        ("clean: {}", "clean: {times: []}", "mine.yaml:5:18: protocols.clean.times", ""),
        ("clean: {}", "clean: {times: [0]}", "mine.yaml:5:19: protocols.clean.times", ""),
        ("clean: {}", "clean: {}\n  clean: {}", "mine.yaml:6:3: key 'clean' stands twice", "Keep one"),
        ("advdistill: 1", "advdistill: 9", "mine.yaml:1:13: advdistill", ""),
        ("limit: 12", "scopes: {here: {classes: half}}", "mine.yaml:2:26: scopes.here.classes", "base"),
        ("limit: 12", "scopes: {here: {data: {use: nowhere}}}", "mine.yaml:2:29: scopes.here.data.use", ""),
        ("limit: 12", "split: train", "mine.yaml:2:8: split", "test"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_place(tmp_path: Path, old: str, new: str, place: str, what: str) -> None:
    message = told(tmp_path, SUITE.replace(old, new, 1))
    assert place in message and what in message


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    message = told(
        tmp_path, SUITE.replace("limit: 12", "limit: many").replace("fgsm", "fsgm").replace("steps", "stepz")
    )
    assert all(path in message for path in (" limit:", "protocols.weak.attack.use", "protocols.strong.attack.stepz"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("advdistill: 1\n", "protocols"),
        ("advdistill: 1\nprotocols: {}\n", "protocols"),
        ("limit: 3\nprotocols: {clean: {}}\n", "advdistill"),
        ("- a list\n", "map"),
        ("", "empty"),
        ("advdistill: 1\nprotocols: {clean: {}\n", "mine.yaml:"),
        ("advdistill: 1\nextends: nothing-like-it\nprotocols: {clean: {}}\n", "quick"),
    ],
)
def test_files_that_are_no_suites(tmp_path: Path, text: str, what: str) -> None:
    assert what in told(tmp_path, text)


def test_names_and_overrides_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as found:
        load_suite("standart", REGISTRY)
    assert "standard" in found.value.message + found.value.hint
    with pytest.raises(RecipeError, match="no"):
        load_suite(tmp_path / "none.yaml", REGISTRY)
    assert "override" in told(tmp_path, SUITE, "limit")
    assert "limit" in told(tmp_path, SUITE, "limit=many") and "nonsense" in told(tmp_path, SUITE, "nonsense=1")


def test_a_suite_is_checked_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from advdistill.hooks.registry import default_registry; "
        "from advdistill.recipe.suite import load_suite; "
        "load_suite('paranoid', default_registry()); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- as columns --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder = tmp_path_factory.mktemp("suite")
    toy: dict[str, Any] = {"use": "toy"}
    run_parts.train(run_parts.recipe(folder, teachers={"clean": toy, "robust": toy}, strategy={"use": "mtard"}))
    return Target(str(folder / "run" / "last.safetensors"), REGISTRY, "cpu")


def test_columns_stand_in_the_order_of_what_an_attacker_knows(tmp_path: Path, target: Target) -> None:
    suite = load(tmp_path, SUITE + (
        "  blind: {attack: {use: noise}}\n  moved: {attack: {use: pgd, steps: 2}, source: teachers}\n"
        "  scores: {attack: {use: square, queries: 5}}\n  other prompts: {attack: {use: cross-prompt}}\n"
        "  curve: {attack: {use: fgsm}, times: [0.5, 2]}\n"
    ))  # fmt: skip
    (found,) = subjects(target, suite, REGISTRY)
    names = [p.name for p in found.protocols]
    knowledge = [p.attacker.knowledge if p.attack else "none" for p in found.protocols]
    assert names == ["clean", "weak", "strong", "curve ×0.5", "curve ×2", "other prompts", "scores",
                     "moved (clean)", "moved (robust)", "blind"]  # fmt: skip
    assert knowledge == sorted(knowledge, key=RANKS.index) and set(knowledge) == set(RANKS) - {"labels"}
    radii = {p.name: p.threat.eps for p in found.protocols if p.threat}
    assert radii["curve ×0.5"] == 2 / 255 and radii["curve ×2"] == 8 / 255 and radii["strong"] == 0.5
    assert [p.attacker.source for p in found.protocols if p.name.startswith("moved")] == ["clean", "robust"]
    assert {p.limit for p in found.protocols} == {12} and found.seed == 0


def test_the_suite_runs(tmp_path: Path, target: Target) -> None:
    (found,) = subjects(target, load(tmp_path), REGISTRY)
    clean, weak, strong = found.bench().columns(found.protocols)
    assert len(clean.outcome) == 12 and weak.outcome.indices.equal(strong.outcome.indices)
    assert strong.outcome.right.sum() <= clean.outcome.right.sum() and weak.outcome.forwards.any()


def test_halves_of_the_classes_are_scopes(tmp_path: Path, target: Target) -> None:
    suite = load(tmp_path, SUITE + "scopes:\n  base: {classes: base}\n  new: {classes: new}\n")
    halves = {found.scope: found for found in subjects(target, suite, REGISTRY)}
    assert {name: each.participant.classes.names for name, each in halves.items()} == {
        "base": ("ant", "bee", "cat"), "new": ("dog", "eel", "fox")
    }  # fmt: skip
    for name, each in halves.items():
        (column, *_) = each.bench().columns(each.protocols, scope=name)
        assert column.heading == f"{name}: clean" and column.outcome.labels.unique().tolist() == [0, 1, 2]
        assert column.outcome.count.share > 0.8


def test_what_the_caller_says_goes_before_the_suite(tmp_path: Path, target: Target) -> None:
    (found,) = subjects(target, load(tmp_path), REGISTRY, eps=1 / 255, limit=6)
    assert [p.threat and p.threat.eps for p in found.protocols] == [None, 1 / 255, 1 / 255]
    assert {p.limit for p in found.protocols} == {6}
    bare = load(tmp_path, SUITE.replace("threat: {eps: 4/255}\n", ""))
    (trained,) = subjects(target, bare, REGISTRY)
    assert trained.protocols[1].threat and trained.protocols[1].threat.eps == 8 / 255, "what it was trained for"
