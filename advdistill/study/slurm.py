"""Scripts that do a study under SLURM: an array for each stage, each task one unit, and what puts them in the queue.

A task calls `advdistill study … --task STAGE:NUMBER`, which does that unit in its own process and leaves the same files
as any other launcher. Which configurations have won is found by the task itself, once the trials are there.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from advdistill.errors import RunError
from advdistill.study.cells import Plan
from advdistill.study.run import chosen, trials

FOLDER = "slurm"
"""Below the study's folder."""


def write(plan: Plan, words: Sequence[str], options: str, jobs: int) -> list[Path]:
    """Scripts for what is not finished; what was there before is replaced.

    Args:
        words: the command line after `advdistill`, without launcher and task.
        options: for every job, as one gives them to sbatch, such as `--gpus=1 --time=1:00:00`.
        jobs: tasks of an array at a time; 0: as many as the machine gives.

    Returns:
        The scripts; the last one, `submit.sh`, puts the others in the queue, each after those that it needs.

    Raises:
        RunError: they cannot be written.
    """
    folder = plan.folder / FOLDER
    call = shlex.join([sys.executable, "-m", "advdistill", *words])
    needs = [str(number) for number, unit in enumerate(plan.needs()) if unit.waits]
    tries = [number for number, unit in enumerate(trials(plan)) if unit.waits]
    winners = {name: won.words for name, won in chosen(plan).items()}
    # What a cell is depends on who wins: one whose trials are not over cannot be finished.
    cells = [
        number
        for number, cell in enumerate(plan.cells(winners))
        if cell.unit.waits or (cell.row.tuned and cell.row.name not in winners and not cell.unit.lacks)
    ]
    bodies: dict[str, tuple[str, str]] = {}
    if needs:
        loop = f"for number in {' '.join(needs)}; do\n  {call} --task needs:$number || exit 1\ndone"
        bodies["needs"] = "", loop  # one after the other: they may start from each other
    for stage, numbers in (("trials", tries), ("cells", cells)):
        if numbers:
            bodies[stage] = _ranges(numbers, jobs), f"exec {call} --task {stage}:$SLURM_ARRAY_TASK_ID"
    bodies["tables"] = "", f"exec {call} --task tables"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.sh"):
            old.unlink()
        written = []
        for stage, (array, body) in bodies.items():
            written.append(folder / f"{stage}.sh")
            written[-1].write_text(_script(plan, stage, array, " ".join(options.split()), body), encoding="utf-8")
        written.append(folder / "submit.sh")
        written[-1].write_text(_submit(plan.study.name, list(bodies)), encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}", "choose another --dir") from error
    return written


def _ranges(numbers: Sequence[int], jobs: int) -> str:
    """0, 1, 2, 5 as `0-2,5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    told = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"{told}%{jobs}" if jobs else told


def _script(plan: Plan, stage: str, array: str, options: str, body: str) -> str:
    logs = (plan.folder / FOLDER).absolute() / ("%x-%A_%a.log" if array else "%x-%j.log")
    lines = [
        "#!/bin/sh",
        f"#SBATCH --job-name={plan.study.name}-{stage}",
        f'#SBATCH --output="{logs}"',
        *([f"#SBATCH --array={array}"] if array else []),
        *([f"#SBATCH {options}"] if options else []),
        f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
        body,
    ]
    return "\n".join(lines) + "\n"


def _submit(name: str, stages: Sequence[str]) -> str:
    """Each stage after the one before: what others start from must have gone well, and of the rest all must be over."""
    lines = ["#!/bin/sh", f"# Puts the study {name} in SLURM's queue.", "set -e", 'cd "$(dirname "$0")"']
    before = ""
    for stage in stages:
        after = f"--dependency={'afterok' if before == 'needs' else 'afterany'}:${before} " if before else ""
        lines.append(f"{stage}=$(sbatch --parsable --kill-on-invalid-dep=yes {after}{stage}.sh)")
        lines.append(f'{stage}=${{{stage}%%;*}}; echo "{stage}: job ${stage}"')
        before = stage
    return "\n".join(lines) + "\n"
