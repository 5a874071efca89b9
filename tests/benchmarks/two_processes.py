"""What a second process brings on a machine of two cores, and whether processes part in peace.

    python tests/benchmarks/two_processes.py [--method apd|mmt-ard] [--model ViT-B-32] [--classes 100] [--batch 8]
        [--attack-steps 2] [--runs 7]
    python tests/benchmarks/two_processes.py --exits 50

alone    one process with one thread
threads  one process with two threads
two      two processes with one thread each, the same batch between them

All of them stay; they take a step in turn, and ratios are taken turn by turn; medians are printed. A turn of `two` has
ended when the slower process has. Ideal is half the time of `alone`; cores share memory and clock, so that `threads`
says what the machine gives to two cores at best. Passes where `two` reaches 0.9 of ideal.

--exits runs a short training in two processes so many times in a row, and says what each ended with: a process group
that is not taken down before the interpreter aborts it every few times, though all work was done. Passes where all
ended with 0.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from step_parts import a_run, parser, ratio, table

from advdistill.engine import build, launch
from advdistill.engine.distributed import joined

LEAST = 0.9
WAYS = {"alone": (1, 1), "threads": (1, 2), "two": (2, 1)}  # processes, threads of each


def main() -> None:
    """Compare, or count exits."""
    options = parser(__doc__)
    options.add_argument("--exits", type=int, default=0, metavar="N")
    options.add_argument("--serve", action="store_true", help="be one of the processes")
    given = options.parse_args()
    if given.serve:
        serve(given)
    elif given.exits:
        exits(given.exits)
    else:
        compare(given.runs)


def serve(given: argparse.Namespace) -> None:
    """Take a step for every line of stdin, and answer with its seconds."""
    with joined(build.device_of(given.device)) as world, a_run(given, world) as run:
        batch = next(run.batches())
        print("ready", flush=True)
        for _ in sys.stdin:
            world.wait()
            start = time.perf_counter()
            run.take(batch)
            print(json.dumps(time.perf_counter() - start), flush=True)


def compare(runs: int) -> None:
    """The three ways, in turn."""
    ways = {name: begin(*sizes) for name, sizes in WAYS.items()}
    for processes in ways.values():
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(-1, runs):
        for name, processes in ways.items():
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("step\n")
                process.stdin.flush()
            seconds = max(json.loads(process.stdout.readline()) for process in processes)  # type: ignore[union-attr]
            if run >= 0:
                times[name].append(seconds)
    for processes in ways.values():
        for process in processes:
            process.communicate()
            assert process.returncode == 0
    print(table(times))
    reached = ratio(times, "alone", "two") / 2
    print(f"two processes: {reached:.3f} of ideal; {ratio(times, 'threads', 'two'):.3f} x the")
    print(f"speed of two threads, which are {ratio(times, 'alone', 'threads') / 2:.3f} of ideal")
    print("passes" if reached >= LEAST else "FAILS")
    sys.exit(reached < LEAST)


def begin(count: int, threads: int) -> list[subprocess.Popen[str]]:
    """The processes of one way."""
    common = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(launch.free_port()),
    }
    command = [sys.executable, *sys.argv, "--serve", "--threads", str(threads)]
    return [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def exits(runs: int) -> None:
    """How so many runs in two processes end."""
    measured = [f"evaluate.{name}" for name in ("undefended=false", "teachers=false", "controls=null", "every=0")]
    measured.append("evaluate.protocols=[{name: clean, limit: 20}]")
    words = ["train", "quickstart", "train.steps=3", "train.batch_size=8", "report=[]", *measured]
    seconds, ended = [], collections.Counter[int]()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "advdistill", *words, f"save.dir={folder}/run", "--overwrite"]
        for _ in range(runs):
            start = time.monotonic()
            done = subprocess.run([*command, "--processes", "2"], capture_output=True, text=True, check=False)
            seconds.append(time.monotonic() - start)
            ended[done.returncode] += 1
            if done.returncode:
                print(done.stderr)
    print(f"{runs} runs in two processes ended with {dict(ended)}, {statistics.median(seconds):.1f} s each")
    sys.exit(set(ended) != {0})


if __name__ == "__main__":
    main()
