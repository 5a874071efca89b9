"""Who does the work of a study.

Guarantees:
- processes of this machine, Ray and one process after the other leave the same weights and the same outcomes, bit for
  bit, also where a worker is killed half-way: its unit goes on from what was saved;
- a unit that kills every process loses no other, and ends;
- a process that cannot even begin ends the study with the reason, and is not begun for ever;
- closing a launcher tells its workers to save and stop, and waits for them; nobody is left;
- several GPUs are handed to processes in turn, cores are divided among them;
- SLURM's scripts are valid, say what depends on what, and their tasks are the units that are not finished.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from study_parts import STUMBLING, Here, plan, same, write
from stumbling_plugin import PAUSE

from advdistill.errors import RunError
from advdistill.study import launchers, slurm
from advdistill.study.cells import FAILURE, Unit
from advdistill.study.launchers import Launcher, Local, Ray
from advdistill.study.run import run


def units(folder: Path, home: Path, **changes: Any) -> list[Unit]:
    return [cell.unit for cell in plan(write(folder, **changes), home).cells({})]


def stumbling(once: Path | None, **how: Any) -> dict[str, Any]:
    """Changes to a study after which a row stumbles."""
    settings = {"use": "stumbling", "once": str(once or ""), **how}
    return {"axes": {"rate": {"large": {"set": {"strategy": settings, "optim.lr": 0.1}}}}, "seeds": [0]}


def done(launcher: Launcher, some: Sequence[Unit]) -> dict[str, str]:
    """Title -> why it failed."""
    with contextlib.closing(launcher):
        return {unit.title: why for unit, why in launcher.run(some) if why is not None}


def test_a_killed_process_costs_nothing(tmp_path: Path) -> None:
    once = tmp_path / "once"
    changes = stumbling(once, how="killed", step=2)
    some = units(tmp_path, tmp_path / "local", **changes)
    assert done(Local(2), some) == {"small · seed 0": "", "large · seed 0": ""}
    assert once.exists()  # it was killed
    started = (Path(some[1].folder) / "metrics.jsonl").read_text().splitlines()
    assert sum('"event": "run_started"' in line for line in started) == 2
    alone = units(tmp_path, tmp_path / "alone", **changes)
    assert done(Here(), alone) == done(Here(), some) == {"small · seed 0": "", "large · seed 0": ""}
    assert all(map(same, some, alone))


@pytest.mark.slow
def test_a_unit_that_kills_its_processes_ends(tmp_path: Path) -> None:
    found = done(Local(1), units(tmp_path, tmp_path, **stumbling(None, how="killed")))
    assert found["small · seed 0"] == ""
    assert found["large · seed 0"] == "its process ended by SIGKILL; memory may have run out"


def test_processes_that_cannot_begin_are_not_begun_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RunError, match="could not begin: its process ended with exit code 7"):
        done(Local(2), units(tmp_path, tmp_path))


@pytest.mark.slow
def test_who_closes_waits_for_all_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PAUSE, "0.1")
    some = units(tmp_path, tmp_path, recipe={"train": {"steps": 1000}, "strategy": {"use": "stumbling"}})
    launcher = Local(2)
    news = launcher.run(some)
    assert [next(news)[1], next(news)[1]] == [None, None]
    begun = some[:2]
    while not all((Path(unit.folder) / "resume.safetensors").exists() for unit in begun):
        pass
    workers = [worker._process for worker in launcher._workers.values()]
    news.close()
    assert [worker.poll() for worker in workers] == [0, 0]
    for unit in begun:
        assert '"event": "run_stopped"' in (Path(unit.folder) / "metrics.jsonl").read_text()
        assert not (Path(unit.folder) / FAILURE).exists()


@pytest.fixture
def ray() -> Iterator[Ray]:
    pytest.importorskip("ray")
    made = Ray(2)
    yield made
    made.close()


@pytest.mark.slow
def test_ray_leaves_the_same_files(tmp_path: Path, ray: Ray, capfd: pytest.CaptureFixture[str]) -> None:
    changes = stumbling(tmp_path / "once", how="killed", step=2)
    found = run(plan(write(tmp_path, **changes), tmp_path / "ray"), ray)
    ray.close()
    assert len(found.cells) == 2 and not found.failed and (tmp_path / "once").exists()
    alone = run(plan(write(tmp_path, **changes), tmp_path / "alone"), Here())
    assert all(same(one.unit, other.unit) for one, other in zip(found.cells, alone.cells, strict=True))
    assert not ray._ray.is_initialized()
    assert len(capfd.readouterr().err.splitlines()) < 10


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    """A stand-in for sbatch that notes how it is called, and numbers jobs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "sbatch"
    script.write_text('#!/bin/sh\necho "$@" >> "$CALLS"\necho "$(wc -l < "$CALLS");cluster"\n')
    script.chmod(0o755)
    return folder


def test_slurm_scripts(tmp_path: Path, queue: Path) -> None:
    tuned = {"axes": {"rate": {"small": {"tune": {"optim.lr": [0.01, 0.05]}}}}}
    study = write(tmp_path, needs=["base.yaml"], **tuned)
    write_base(tmp_path)
    run_some(plan(study, tmp_path / "my home").trials()[0][1][:1])
    made = plan(study, tmp_path / "my home")
    written = slurm.write(made, ["study", "a b.yaml", "--plugin", str(STUMBLING)], " --gpus=1   --time=1:00 ", 8)
    assert [path.name for path in written] == ["needs.sh", "trials.sh", "cells.sh", "tables.sh", "submit.sh"]
    for path in written:
        subprocess.run(["bash", "-n", path], check=True)
    texts = {path.stem: path.read_text() for path in written}
    assert "#SBATCH --array=1%8\n" in texts["trials"] and "#SBATCH --array=0-3%8\n" in texts["cells"]
    assert all("#SBATCH --gpus=1 --time=1:00\n" in texts[stage] for stage in ("needs", "trials", "cells", "tables"))
    assert "study 'a b.yaml'" in texts["cells"] and "--task cells:$SLURM_ARRAY_TASK_ID" in texts["cells"]
    calls = tmp_path / "calls"
    environment = {**os.environ, "PATH": f"{queue}:{os.environ['PATH']}", "CALLS": str(calls)}
    subprocess.run(["sh", written[-1]], env=environment, check=True, capture_output=True)
    usual = "--parsable --kill-on-invalid-dep=yes"
    assert calls.read_text().splitlines() == [
        f"{usual} needs.sh",
        f"{usual} --dependency=afterok:1 trials.sh",
        f"{usual} --dependency=afterany:2 cells.sh",
        f"{usual} --dependency=afterany:3 tables.sh",
    ]


def write_base(folder: Path) -> None:
    import run_parts

    run_parts.write(folder, "base", train={"steps": 1})


def run_some(some: Sequence[Unit]) -> None:
    assert not any(done(Here(), some).values())


def test_several_gpus_are_handed_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("advdistill.engine.launch.cores", lambda: 8)
    local = Local(3)
    local._share = 3
    found = [local._environment(["3", "5"], taken) for taken in ([], ["3"], ["3", "5"], ["3", "3", "5"])]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["3", "5", "3", "5"]
    assert {each["OMP_NUM_THREADS"] for each in found} == {"2"}
    assert local._environment(["3"], []).get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")


def test_a_lone_worker_is_found_where_this_process_finds_its_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, "/a place with 'quotes'"])
    worker = launchers._Worker(dict(os.environ))
    assert worker.connection.recv() == ""
    worker.hang_up()
    worker.wait()
    assert worker._process.returncode == 0
