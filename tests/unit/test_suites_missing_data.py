"""Studies and evaluations some of whose data are not there.

Guarantees, of a study one of whose rows lacks its data:
- the others run; the row is named with what is missing; the exit code is 1, or 5 where nothing at all can be run;
- `--dry-run` says so, in words and in JSON, and begins nothing; `--task` of such a cell is an error; SLURM's scripts
  leave it out; a run that others start from and that lacks its data is told first;
- when the data arrive the same command runs the rest, and nothing twice; when they go away again what is finished stays
  in the tables and in study.json, and nobody is told that it cannot be run.

Of a suite with scopes:
- one whose data are not there is left out, with a note, by `evaluate` and by a study, whose `unit.json` says so;
- when they arrive the same command measures it, and takes the others over without measuring them again;
- when they go away again, what was measured on them stays; what arrives while it is measured waits for the next time;
- where all are missing this is an error before anything is trained or measured, with exit code 5;
- two suites of one name are looked at apart;
- a scope may name the columns that it takes; one that is not there is told with its place and what was perhaps meant.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import run_parts
import yaml
from PIL import Image
from study_parts import STUMBLING, Here, plan, write

from advdistill.cli.main import app
from advdistill.engine.evaluate import Bench
from advdistill.engine.outcomes import FILE, Evaluation
from advdistill.engine.subject import Target, subjects
from advdistill.errors import MissingData, RecipeError, RunError
from advdistill.hooks.registry import default_registry
from advdistill.recipe.suite import load_suite
from advdistill.study import launchers, work
from advdistill.study.notes import notes
from advdistill.study.run import collect, run, task
from advdistill.study.table import Table

KEPT = Path(__file__).with_name("kept_plugin.py")
PLUGINS = [str(run_parts.PLUGIN), str(STUMBLING), str(KEPT)]
AXES = {"rate": None, "data": {"toy": {}, "kept": {"set": {"data": {"use": "kept"}}}}}
REGISTRY = default_registry().with_files(PLUGINS)


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


def cli(*words: object) -> Said:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        app([str(word) for word in words], prog_name="advdistill")
    return Said(int(left.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder whose `data` holds published data sets, and studies that need no other process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADVDISTILL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(launchers, "Local", lambda jobs: Here())


def study(folder: Path, **changes: Any) -> Path:
    """Two rows under one seed, of which one wants the data set `kept`."""
    changes = {"axes": AXES, "seeds": [0], "tuning": None, **changes}
    return write(folder, recipe={"plugins": PLUGINS}, **changes)


def arrive(folder: Path) -> Path:
    """`kept` comes to this machine."""
    (folder / "data" / "kept").mkdir(parents=True)
    (folder / "data" / "kept" / "images.txt").touch()
    return folder / "data" / "kept"


def times(folder: Path) -> dict[Path, int]:
    """When the files that hold results were written."""
    kinds = ("last.safetensors", "unit.json", "metrics.jsonl", "cost.json")
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name in kinds}


def index(home: Path) -> dict[str, bool]:
    """Title -> finished, as study.json says."""
    said = json.loads((home / "study" / "study.json").read_text())
    return {title: cell["finished"] for title, cell in said["cells"].items()}


# --- a row lacks its data ----------------------------------------------------------------------------------------


def test_the_others_run_and_the_rest_when_the_data_arrive(tmp_path: Path) -> None:
    path, home = study(tmp_path), tmp_path / "home"
    launcher = Here()
    found = run(plan(path, home), launcher)
    why = f"kept is not in {tmp_path / 'data' / 'kept'}"
    assert launcher.did == ["toy · seed 0"] and not found.failed and not found.missing
    assert found.lacks == {why: ["kept"]}
    assert index(home) == {"toy · seed 0": True, "kept · seed 0": False}
    said = list(notes(Table(found)))
    assert f"Cannot be run here: kept: {why}." in said and not any(note.startswith("Missing") for note in said)
    before = times(home)

    data = arrive(tmp_path)
    launcher = Here()
    found = run(plan(path, home), launcher)
    assert launcher.did == ["kept · seed 0"] and len(found.cells) == 2 and not found.lacks
    assert before.items() <= times(home).items()
    before = times(home)

    shutil.rmtree(data)
    launcher = Here()
    for found in (run(plan(path, home), launcher), collect(plan(path, home))):
        assert not launcher.did and len(found.cells) == 2 and not found.lacks and not found.missing
        assert [line.row.name for line in Table(found).lines] == ["toy", "kept"]
        assert not any("cannot be run" in note.lower() for note in notes(Table(found)))
        assert index(home) == {"toy · seed 0": True, "kept · seed 0": True}
    assert times(home) == before


def test_the_commands_say_it(tmp_path: Path) -> None:
    study(tmp_path)
    why = f"kept is not in {tmp_path / 'data' / 'kept'}"
    lines = [f"cannot be run: kept: {why}", "`advdistill data list` says how to come by data that are missing"]
    foretold = cli("study", "study.yaml", "--dry-run")
    assert foretold.code == 0 and f"\n\n{lines[0]}\n{lines[1]}\n\ntime left" in foretold.out
    assert "\n\n\n" not in foretold.out
    said = json.loads(cli("study", "study.yaml", "--dry-run", "--json").out)
    assert said["lacks"] == {why: ["kept"]} and said["left_out"] == {} and said["cells"]["all"] == 2
    assert not (tmp_path / "runs").exists()

    ran = cli("study", "study.yaml")
    assert ran.code == 1 and lines[0] in ran.err and "0 failed, 0 more missing, 1 rows lack data" in ran.err
    assert "toy" in ran.out and (tmp_path / "runs" / "studies" / "study" / "study.md").is_file()
    assert json.loads(cli("study", "study.yaml", "--dry-run", "--json").out)["seconds_left"] == 0, "none can be run"
    tables = cli("study", "study.yaml", "--task", "tables", "--json")
    assert tables.code == 1 and [row["name"] for row in json.loads(tables.out)["rows"]] == ["toy"]

    data = arrive(tmp_path)
    assert cli("study", "study.yaml").code == 0
    shutil.rmtree(data)
    again = cli("study", "study.yaml")
    assert again.code == 0 and "kept" in again.out and "cannot be run" not in again.err
    assert "cannot be run" not in cli("study", "study.yaml", "--dry-run").out


def test_tasks_and_scripts_leave_it_out(tmp_path: Path) -> None:
    tuned = {"toy": {"tune": {"optim.lr": [0.01, 0.02]}}, "kept": AXES["data"]["kept"] | {"tune": {"optim.lr": [1, 2]}}}
    study(tmp_path, axes={"rate": None, "data": tuned}, tuning={"protocol": "val.yaml", "budget": 2}, seeds=[0, 1])
    for name in ("cells:2", "trials:3"):
        said = cli("study", "study.yaml", "--task", name)
        assert said.code == 1 and "kept is not in" in said.err and "data list" in said.err
    assert cli("study", "study.yaml", "--launcher", "slurm").code == 0
    scripts = tmp_path / "runs" / "studies" / "study" / "slurm"
    assert "--array=0-1\n" in (scripts / "cells.sh").read_text()
    assert "--array=0-1\n" in (scripts / "trials.sh").read_text()
    arrive(tmp_path)
    assert cli("study", "study.yaml", "--launcher", "slurm").code == 0
    assert "--array=0-3\n" in (scripts / "cells.sh").read_text()
    assert "--array=0-3\n" in (scripts / "trials.sh").read_text()


def test_a_tuned_row_that_lacks_its_data(tmp_path: Path) -> None:
    tuned = {"toy": {}, "kept": AXES["data"]["kept"] | {"tune": {"optim.lr": [0.01, 0.02]}}}
    path = study(tmp_path, axes={"rate": None, "data": tuned}, tuning={"protocol": "val.yaml", "budget": 2})
    found = run(plan(path, tmp_path / "home"), Here())
    assert list(found.lacks.values()) == [["kept"]] and not found.missing and not found.chosen
    arrive(tmp_path)
    found = run(plan(path, tmp_path / "home"), Here())
    assert len(found.cells) == 2 and found.chosen.keys() == {"kept"}


def test_where_nothing_is_there(tmp_path: Path) -> None:
    study(tmp_path, axes={"rate": None, "data": {"kept": AXES["data"]["kept"]}})
    said = cli("study", "study.yaml")
    assert said.code == 5 and "none of the data are there" in said.err and "cannot be run: kept: " in said.err
    assert index(tmp_path / "runs" / "studies") == {"kept · seed 0": False}


def test_what_others_start_from_lacks_its_data(tmp_path: Path) -> None:
    run_parts.write(tmp_path, "first", plugins=PLUGINS, data={"use": "kept"})
    path = study(tmp_path, axes={"rate": {"small": {}}, "data": None}, needs=["first.yaml"])
    launcher = Here()
    with pytest.raises(RunError, match="first, which the others start from: kept is not in") as told:
        run(plan(path, tmp_path / "home"), launcher)
    assert not launcher.did and "data list" in told.value.hint
    with pytest.raises(RunError, match="kept is not in"):
        task(plan(path, tmp_path / "home"), "needs:0")


# --- a scope of a suite lacks its data ---------------------------------------------------------------------------


def pictures(root: Path, classes: Sequence[str] = ("ant", "bee", "cat"), count: int = 5) -> Path:
    """A tree of class folders; one in five is a test image."""
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (16, 16), (60 * place, 40 * number, 99)).save(root / name / f"{number}.png")
    return root


def suite(folder: Path, *places: str, own: bool = True, **changes: Any) -> Path:
    """Clean and attacked accuracy on the model's own data and on image folders, of which none need be there."""
    scopes: dict[str, Any] = {"own": {}} if own else {}
    for place in places:
        data = {"use": "folder", "root": str(folder / place), "size": 16}
        scopes[Path(place).name] = {"classes": "data", "data": data}
    protocols = {"clean": {}, "attacked": {"attack": {"use": "pgd", "steps": 2}}}
    tree = {"advdistill": 1, "limit": 6, "protocols": protocols, "scopes": scopes}
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(run_parts.merged(tree, changes), sort_keys=False))
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    run_parts.train(run_parts.recipe(tmp_path, evaluate={"protocols": []}))
    return tmp_path / "run" / "last.safetensors"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[int, int]]]:
    """What forwards saw since one asked the last time: (classes, images) of each."""
    seen: list[tuple[int, int]] = []
    original = Bench.measure

    def noted(self: Bench, protocol: Any, split: Any, indices: Any, key: str, *rest: Any) -> Any:
        look = self.participant.logits

        def logits(images: Any, *words: Any, **more: Any) -> Any:
            seen.append((len(self.participant.classes), len(images)))
            return look(images, *words, **more)

        self.participant.logits = logits  # type: ignore[method-assign]
        try:
            return original(self, protocol, split, indices, key, *rest)
        finally:
            del self.participant.logits

    monkeypatch.setattr(Bench, "measure", noted)

    def since() -> list[tuple[int, int]]:
        found = list(seen)
        seen.clear()
        return found

    return since


def headings(folder: Path) -> list[str]:
    return [column.heading for column in Evaluation.read(folder).columns]


BOTH = ["own: clean", "own: attacked", "far: clean", "far: attacked"]


def test_evaluate_leaves_a_scope_out_until_it_is_there(
    tmp_path: Path, checkpoint: Path, measured: Callable[[], list[tuple[int, int]]]
) -> None:
    words = ("evaluate", "--model", checkpoint, "--protocol", suite(tmp_path, "far"), "--out", "out")
    words = (*words, "--plugin", run_parts.PLUGIN)
    out = tmp_path / "out"
    said = cli(*words)
    assert said.code == 0, said.err
    assert f"note: far is left out: folder: there is no {tmp_path / 'far'}" in said.err
    assert headings(out) == BOTH[:2] and {classes for classes, _ in measured()} == {6}
    assert [path.name for path in out.glob("manifest*")] == ["manifest-own.json"]
    before = {path: path.stat().st_mtime_ns for path in out.glob("packs/*/*")}
    first = Evaluation.read(out)

    pictures(tmp_path / "far")
    said = cli(*words)
    assert said.code == 0 and "left out" not in said.err, said.err
    assert headings(out) == BOTH and {classes for classes, _ in measured()} == {3}
    assert {path.name for path in out.glob("manifest*")} == {"manifest-own.json", "manifest-far.json"}
    assert before and before.items() <= {path: path.stat().st_mtime_ns for path in out.glob("packs/*/*")}.items()
    for one, other in zip(first.columns, Evaluation.read(out).columns[:2], strict=True):
        assert one.outcome.right.equal(other.outcome.right) and one.statement == other.statement

    assert cli(*words).code == 0 and measured() == []
    with_data = cli(*words, "--data", tmp_path / "far", "--classes", "data", "--overwrite")
    assert with_data.code == 0 and "left out" not in with_data.err


def test_a_study_leaves_a_scope_out_until_it_is_there(
    tmp_path: Path, measured: Callable[[], list[tuple[int, int]]]
) -> None:
    path, home = study(tmp_path, axes={"data": None}), tmp_path / "runs" / "studies"
    suite(tmp_path, "far")
    foretold = cli("study", path, "--dry-run")
    line = f"not measured: far: folder: there is no {tmp_path / 'far'}"
    assert f"\n\n{line}\n" in foretold.out and "\n\n\n" not in foretold.out
    assert json.loads(cli("study", path, "--dry-run", "--json").out)["left_out"].keys() == {"far"}
    ran = cli("study", path)
    assert ran.code == 0 and line in ran.err, "what can be measured is"
    units = {file: json.loads(file.read_text()) for file in home.glob("cells/*/*/unit.json")}
    assert len(units) == 2 and all(unit["left out"].keys() == {"far"} for unit in units.values())
    assert all(headings(file.parent) == BOTH[:2] for file in units)
    assert {classes for classes, _ in measured()} == {6}
    text = (home / "study" / "study.md").read_text()
    assert "far was not measured where it is missing: folder: there is no" in text
    trained = {path: stamp for path, stamp in times(home).items() if path.name != "unit.json"}
    packs = {path: path.stat().st_mtime_ns for path in home.glob("cells/*/*/packs/*/*")}

    pictures(tmp_path / "far")
    said = json.loads(cli("study", path, "--dry-run", "--json").out)
    assert said["left_out"] == {} and said["cells"] == {"all": 2, "finished": 0}
    scripts = cli("study", path, "--launcher", "slurm")
    assert scripts.code == 0 and "--array=0-1\n" in (home / "study" / "slurm" / "cells.sh").read_text()
    ran = cli("study", path)
    assert ran.code == 0 and "not measured" not in ran.err, ran.err
    assert all("left out" not in json.loads(file.read_text()) for file in units)
    assert all(headings(file.parent) == BOTH for file in units)
    assert {classes for classes, _ in measured()} == {3}
    assert trained.items() <= times(home).items()
    assert packs and packs.items() <= {path: path.stat().st_mtime_ns for path in packs}.items()
    assert "far: clean" in (home / "study" / "study.csv").read_text()
    before = times(home)

    shutil.rmtree(tmp_path / "far")
    again = cli("study", path)
    assert again.code == 0 and "not measured" not in again.err and times(home) == before and measured() == []
    assert "far: clean" in (home / "study" / "study.csv").read_text()
    assert "not measured" not in cli("study", path, "--dry-run").out


def test_cells_with_and_without_a_scope_share_a_table(tmp_path: Path) -> None:
    path, home = study(tmp_path), tmp_path / "home"
    suite(tmp_path, "far")
    run(plan(path, home), Here())
    arrive(tmp_path)
    pictures(tmp_path / "far")
    (tmp_path / "data" / "kept" / "images.txt").unlink()  # now the other one is not there
    found = run(plan(path, home), Here())
    assert [cell.unit.title for cell in found.cells] == ["toy · seed 0"] and found.plan.left_out(found.cells) == {}
    (tmp_path / "data" / "kept" / "images.txt").touch()
    shutil.rmtree(tmp_path / "far")
    found = run(plan(path, home), Here())
    table = Table(found)
    assert [set(line.shares) for line in table.lines] == [set(BOTH), set(BOTH[:2])]
    assert found.plan.left_out(found.cells).keys() == {"far"}
    pictures(tmp_path / "far")
    shutil.rmtree(tmp_path / "data" / "kept")  # what is measured stays, though more of it could be measured elsewhere
    found = run(plan(path, home), Here())
    assert len(found.cells) == 2 and not found.lacks
    arrive(tmp_path)
    launcher = Here()
    run(plan(path, home), launcher)
    assert launcher.did == ["kept · seed 0"] and not plan(path, home).left_out(found.cells)


def test_what_arrives_while_it_is_measured_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, home = study(tmp_path, axes={"data": None, "rate": {"small": {}, "large": None}}), tmp_path / "home"
    suite(tmp_path, "far")
    original = work._accuracy

    def late(*words: Any) -> Any:
        found = original(*words)
        if not (tmp_path / "far").exists():
            pictures(tmp_path / "far")
        return found

    monkeypatch.setattr(work, "_accuracy", late)
    found = run(plan(path, home), Here())
    (unit,) = home.glob("cells/*/*/unit.json")
    assert "left out" in json.loads(unit.read_text()) and headings(unit.parent) == BOTH[:2]
    assert found.cells, "as things stood when it was planned"
    launcher = Here()
    run(plan(path, home), launcher)
    assert launcher.did == ["small · seed 0"] and headings(unit.parent) == BOTH


def test_all_scopes_are_missing(
    tmp_path: Path, checkpoint: Path, measured: Callable[[], list[tuple[int, int]]]
) -> None:
    path = suite(tmp_path, "far", "further", own=False)
    said = cli("evaluate", "--model", checkpoint, "--protocol", path, "--plugin", run_parts.PLUGIN)
    assert said.code == 5 and "none of the data of suite are there: folder: there is no" in said.err
    assert "data list" in said.err and measured() == []
    with pytest.raises(MissingData):
        list(subjects(Target(str(checkpoint), REGISTRY), load_suite(path, REGISTRY), REGISTRY))

    made = study(tmp_path, axes={"data": None})
    suite(tmp_path, "far", "further", own=False)
    said = cli("study", made)
    assert said.code == 5 and "cannot be run: small, large: none of the data of suite are there" in said.err
    assert not list((tmp_path / "runs" / "studies").glob("cells/*")), "nothing is trained for nothing"
    assert cli("study", made, "--task", "cells:0").code == 1
    pictures(tmp_path / "further")
    assert cli("study", made).code == 0
    assert {column for file in tmp_path.glob(f"runs/studies/cells/*/*/{FILE}") for column in headings(file.parent)} == {
        "further: clean", "further: attacked"
    }  # fmt: skip


def test_suites_of_one_name_are_looked_at_apart(tmp_path: Path) -> None:
    path = study(
        tmp_path,
        axes={"data": None, "rate": {"small": {"tune": {"optim.lr": [0.01, 0.02]}}, "large": None}},
        tuning={"protocol": "val.yaml", "budget": 2},
    )
    pictures(tmp_path / "far")
    suite(tmp_path, "near", own=False, split="val").rename(tmp_path / "val.yaml")
    with (tmp_path / "val.yaml").open("a") as file:
        file.write("name: suite\n")
    suite(tmp_path, "far", own=False)
    made = plan(path, tmp_path / "home")
    ((_, units),) = made.trials()
    assert units[0].absent == ("near",) and made.cells({})[0].unit.absent == ()


# --- columns of a scope ------------------------------------------------------------------------------------------


def test_a_scope_may_name_its_columns(tmp_path: Path, checkpoint: Path) -> None:
    pictures(tmp_path / "far")
    path = suite(tmp_path, "far", scopes={"far": {"columns": ["clean"]}})
    found = list(subjects(Target(str(checkpoint), REGISTRY), load_suite(path, REGISTRY), REGISTRY))
    assert [(each.scope, [p.name for p in each.protocols]) for each in found] == [
        ("own", ["clean", "attacked"]), ("far", ["clean"])
    ]  # fmt: skip
    said = cli("evaluate", "--model", checkpoint, "--protocol", path, "--out", "out", "--plugin", run_parts.PLUGIN)
    assert said.code == 0 and headings(tmp_path / "out") == BOTH[:3]


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = suite(tmp_path, "far", scopes={"far": {"columns": ["clean", "atacked"]}})
    with pytest.raises(RecipeError) as told:
        load_suite(path, REGISTRY)
    assert "scopes.far.columns.1" in told.value.message and "suite.yaml:" in told.value.message
    assert "there is no protocol 'atacked'; did you mean 'attacked'?" in told.value.message
