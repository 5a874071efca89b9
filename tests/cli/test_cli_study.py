"""`advdistill study` as a user calls it.

Guarantees:
- a study of two cells runs to its tables in one command: results on stdout, a line a run on stderr, test data seen only
  at the end; the same command again does nothing anew;
- Ctrl-C, SIGTERM and a killed parent lose nothing: workers save and end, the exit code is 130 where there is one, and
  the same command goes on from there;
- a cell that fails is named at the end with its reason and its log, tables are written, and the exit code is 1;
- two studies at once that share a run do it once;
- the tasks of SLURM's scripts, one after the other, leave what one command leaves;
- --dry-run says what there is and what is missing and begins nothing; --json is JSON; without a file the studies that
  ship are listed, and their names complete;
- what is wrong is told with its exit code, before anything runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_parts import Cli

from advdistill.cli.options import complete_study
from advdistill.recipe.study import FOLDER

UNIT = Path(__file__).parents[1] / "unit"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "dumb"}
LIMIT = 120.0
RECIPE: dict[str, Any] = {
    "advdistill": 1,
    "plugins": [str(UNIT / "toy_plugin.py"), str(UNIT / "stumbling_plugin.py")],
    "threat": {"eps": "8/255"},
    "data": {"use": "toy"},
    "student": {"use": "toy"},
    "attack": {"use": "toy"},
    "strategy": {"use": "stumbling"},
    "optim": {"lr": 0.01},
    "train": {"steps": 3, "batch_size": 20, "device": "cpu"},
    "save": {"every": 1},
}
STUDY: dict[str, Any] = {
    "advdistill": 1,
    "title": "Does a larger step help?",
    "recipe": "toy.yaml",
    "protocol": "suite.yaml",
    "tuning": {"protocol": "val.yaml", "budget": 2},
    "seeds": [0],
    "axes": {"rate": {"small": {}, "large": {"set": {"optim.lr": 0.1}}}},
}
TUNED = {"small": {"tune": {"optim.lr": [0.01, 0.02]}}, "large": {"set": {"optim.lr": 0.1}}}


def write(folder: Path, recipe: dict[str, Any] | None = None, **study: Any) -> None:
    """study.yaml, and what it names."""
    (folder / "toy.yaml").write_text(yaml.safe_dump({**RECIPE, **(recipe or {})}))
    for name, split in (("suite", "test"), ("val", "val")):
        protocols = {"clean": {}, "pgd-2": {"attack": {"use": "pgd", "steps": 2}}}
        tree = {"advdistill": 1, "split": split, "limit": 12, "protocols": protocols}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    (folder / "study.yaml").write_text(yaml.safe_dump({**STUDY, **study}, sort_keys=False))


def begin(folder: Path, *words: object, pause: float = 0.0) -> subprocess.Popen[str]:
    """The program in a process, and in a session, of its own; a step takes `pause` seconds."""
    return subprocess.Popen(
        [sys.executable, "-m", "advdistill", "study", *map(str, words)],
        cwd=folder,
        env={**ENV, "STUMBLING_PAUSE": str(pause)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Its children."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for file in folder.rglob("metrics.jsonl") for line in file.read_text().splitlines()]
    return [event for event in found if event["event"] == kind]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, str, str]]:
    """A folder with a finished study, and how its command ended."""
    folder = tmp_path_factory.mktemp("study")
    write(folder, axes={"rate": TUNED})
    return folder, ended(begin(folder, "study.yaml"))


def test_a_miniature(miniature: tuple[Path, tuple[int, str, str]], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, (code, out, err) = miniature
    assert code == 0, err
    assert out.startswith("Does a larger step help?\n") and "pgd-2 " in out and "small " in out and "large " in out
    assert (
        "trials 2/2  small" in err and "cells 2/2  " in err and "pgd-2" in err and "runs/studies/study/study.md" in err
    )
    home = folder / "runs" / "studies"
    assert {"study.md", "study.csv", "study.png", "study.json"} <= {path.name for path in (home / "study").iterdir()}
    before = {path: path.stat().st_mtime_ns for path in (home / "cells").rglob("*") if path.is_file()}
    monkeypatch.chdir(folder)
    again = cli("study", "study.yaml", "--json")
    said = json.loads(again.out)
    assert again.code == 0 and [row["name"] for row in said["rows"]] == ["small", "large"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    unit = json.loads(next((home / "cells").glob("*/suite-*/unit.json")).read_text())
    assert unit["split"] == "test" and unit["opened"] and unit["machine"]
    recipes = [path.read_text() for path in (home / "cells").glob("*/recipe.yaml")]
    assert len(recipes) == 4 and all("sealed: true" in text and "protocols: []" in text for text in recipes)


def test_tasks_leave_what_one_command_leaves(
    miniature: tuple[Path, tuple[int, str, str]], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = miniature
    monkeypatch.chdir(folder)
    where = ("study.yaml", "--dir", "tasks")
    listed = cli("study", *where, "--launcher", "slurm", "--sbatch", "--time=1:00")
    assert listed.code == 0 and "sh tasks/study/slurm/submit.sh" in listed.err
    assert [Path(line).name for line in listed.out.split()] == ["trials.sh", "cells.sh", "tables.sh", "submit.sh"]
    early = cli("study", *where, "--task", "cells:0")
    assert early.code == 1 and "2 of its trials are not finished" in early.err
    for script, count in (("trials", 2), ("cells", 2), ("tables", 1)):
        (command,) = (
            line for line in Path(f"tasks/study/slurm/{script}.sh").read_text().splitlines() if line.startswith("exec")
        )
        for number in range(count):
            words = command.replace("$SLURM_ARRAY_TASK_ID", str(number)).split()[4:]
            said = cli(*words)
            assert said.code == 0, said.err
    one, other = ((Path(home) / "study" / "study.csv").read_text().splitlines() for home in ("runs/studies", "tasks"))
    assert [line.split(",")[:6] for line in one] == [line.split(",")[:6] for line in other]
    assert cli("study", *where, "--task", "cells:0").out.startswith("small · seed 0 is finished already: clean")


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow, id="SIGINT"),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow, id="SIGTERM"),
        pytest.param(signal.SIGKILL, id="SIGKILL"),
    ],
)
def test_who_ends_it_loses_nothing(tmp_path: Path, how: signal.Signals) -> None:
    write(tmp_path, recipe={"train": {**RECIPE["train"], "steps": 60}})
    process = begin(tmp_path, "study.yaml", "--jobs", "2", pause=0.5)
    until(lambda: len(list(tmp_path.rglob("resume.safetensors"))) == 2)
    begun = workers(process)
    assert len(begun) >= 2
    os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
    code, _, err = ended(process)
    if how == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 130 and "the same command goes on" in err and "Traceback" not in err
        assert not any(map(alive, begun))  # it has waited for them
    until(lambda: not any(map(alive, begun)))
    assert len(events(tmp_path, "run_stopped")) == 2
    if how != signal.SIGKILL:
        return  # what goes on goes on from the same files
    code, _, err = ended(begin(tmp_path, "study.yaml", "--jobs", "2"))
    assert code == 0, err
    assert sorted(event["first"] > 0 for event in events(tmp_path, "run_started")) == [False, False, True, True]


def test_a_cell_that_fails_is_named_and_the_others_are_there(cli: Cli, tmp_path: Path) -> None:
    once = tmp_path / "once"
    failing = {"strategy.how": "bug", "strategy.once": str(once)}
    write(tmp_path, axes={"rate": {"small": {}, "large": {"set": {"optim.lr": 0.1, **failing}}}})
    said = cli("study", "study.yaml")
    assert said.code == 1
    assert "failed: large · seed 0: internal error: ZeroDivisionError" in said.err and "/log.txt" in said.err
    assert "small" in said.out and (tmp_path / "runs" / "studies" / "study" / "study.md").exists()
    assert "1 failed, 0 more missing" in said.err and "Traceback" not in said.err
    said = cli("study", "study.yaml")
    assert said.code == 0 and "cells: 1 of 2 are finished already" in said.err, said.err


@pytest.mark.slow
def test_two_studies_at_once_share_their_runs(tmp_path: Path) -> None:
    write(tmp_path)
    both = [begin(tmp_path, "study.yaml", "--jobs", "1", f"name={name}", pause=0.2) for name in ("one", "other")]
    for process in both:
        code, _, err = ended(process)
        assert code == 0, err
    assert len(events(tmp_path, "run_started")) == 2


def test_a_dry_run(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, axes={"rate": TUNED})
    said = cli("study", "study.yaml", "--dry-run")
    assert said.code == 0
    assert said.out == (
        "Does a larger step help?\n\n"
        "STAGE   RUNS  FINISHED\nneeds   0     0\ntrials  2     0\ncells   2     0\n\n"
        "ROW    RECIPE    TUNING\nsmall  toy.yaml  2 configurations, none chosen yet\nlarge  toy.yaml\n\n"
        "time left: not known before a run is finished\n"
        "tables go to runs/studies/study; runs lie in runs/studies/cells\n"
    )
    found = json.loads(cli("study", "study.yaml", "--dry-run", "--json").out)
    assert found["trials"] == {"all": 2, "finished": 0} and found["seconds_left"] is None
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_estimates_from_what_is_finished(
    miniature: tuple[Path, tuple[int, str, str]], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(miniature[0])
    said = cli("study", "study.yaml", "seeds=[0,1]", "--dry-run")
    assert "cells   4     2" in said.out and "chosen: optim.lr=" in said.out and "time left: about " in said.out
    found = json.loads(cli("study", "study.yaml", "seeds=[0,1]", "--dry-run", "--json").out)
    assert found["seconds_left"] > 0
    assert json.loads(cli("study", "study.yaml", "--dry-run", "--json").out)["seconds_left"] == 0


def test_the_studies_that_ship(cli: Cli) -> None:
    said = cli("study")
    assert said.code == 0 and said.out.startswith("NAME") and "apd_modalities" in said.out
    found = json.loads(cli("study", "--json").out)
    assert {Path(row["path"]).parent.name for row in found} == set(FOLDER) and all(row["title"] for row in found)
    assert {"apd_modalities", "apd_few_shot"} <= set(complete_study("apd_")) and not complete_study("quick")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("study.yaml", "axes.rate.large.set={optim.lrr: 1}"), 3, "optim.lrr: unknown key; did you mean 'lr'?"),
        (("study.yaml", "optim.lrr=1"), 3, "optim.lrr: unknown key; did you mean 'lr'? (in every row)"),
        (("study.yaml", "against.rate=small"), 3, "1 are too few for a comparison: it takes 3"),
        (("apd_modalites",), 3, "did you mean 'apd_modalities'?"),
        (("toy.yaml",), 3, "this is a recipe"),
        (("study.yaml", "--launcher", "slrum"), 2, "did you mean 'slurm'?"),
        (("study.yaml", "--sbatch", "--gpus=1"), 2, "--sbatch is for --launcher slurm"),
        (("study.yaml", "--task", "cells:9"), 2, "cells:0 to cells:1"),
        (("study.yaml", "--task", "cells:0", "--dry-run"), 2, "--task does one thing"),
        (("study.yaml", "--plugin", "gone.py"), 4, "gone.py"),
        (("study.yaml", "--dir", "toy.yaml"), 1, "cannot use"),
        (("study.yaml", "--dir", "toy.yaml", "--task", "cells:0"), 1, "cannot write to"),
        (("study.yaml", "--dir", "toy.yaml", "--launcher", "slurm"), 1, "cannot use"),
    ],
)
def test_what_is_wrong(cli: Cli, tmp_path: Path, words: tuple[str, ...], code: int, told: str) -> None:
    write(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    said = cli("study", *words)
    assert (said.code, said.out) == (code, ""), said.err
    assert told in said.err and "Traceback" not in said.err and "internal error" not in said.err
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_study_is_no_recipe(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path)
    for words in (("recipe", "validate"), ("recipe", "show"), ("train",)):
        said = cli(*words, "study.yaml")
        assert said.code == 3 and "this is a study" in said.err and "advdistill study study.yaml" in said.err
