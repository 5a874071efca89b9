"""Kills runs, for test_resume.py: each in a process of its own, forked from one that has computed nothing yet.

Called with a recipe and a folder; reads orders from stdin, one JSON object a line, and answers each with one line.
`{"run": NAME}` runs the recipe in folder/NAME and says at how many moments it could have been killed, and which of them
lie within the writing of a file. With `"kill": N` it dies by SIGKILL at the Nth; `"resume": true` goes on.
A moment is a call made or received by the engine.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import advdistill.engine
from advdistill.engine import checkpoint, fit
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe

ENGINE = str(Path(next(iter(advdistill.engine.__path__))))


class Moments:
    """Counts them, and ends the process at one."""

    def __init__(self, last: int) -> None:
        self.last, self.count, self.writing, self.files = last, 0, 0, list[list[int]]()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "c_call") or not frame.f_code.co_filename.startswith(ENGINE):
            return
        self.count += 1
        if frame.f_code is checkpoint.write_bytes.__code__:
            if event == "call":
                self.files.append([])
            self.files[-1].append(self.count)
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def work(recipe: Path, folder: Path, order: dict[str, Any]) -> dict[str, Any]:
    """One run, or what is left of it."""
    going_on = order.get("resume", False)
    made = load_recipe(folder / "recipe.yaml" if going_on else recipe, [f"save.dir={folder}"])
    registry = default_registry().with_files(made.plugin_hashes)
    moments = Moments(order.get("kill", 0))
    sys.setprofile(moments)
    fit.train(made, registry, resume=going_on)
    sys.setprofile(None)
    return {"moments": moments.count, "files": moments.files}


def main() -> None:
    recipe, folder = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    made = load_recipe(recipe)
    # Imports take longer than the runs: they are done once, here.
    registry = default_registry().with_files(made.plugin_hashes)
    for block in (made.data, made.student, made.strategy, made.attack, *made.teachers.values(), *made.report):
        registry.load(block.spec)
    for line in sys.stdin:
        order = json.loads(line)
        answer = folder / "answer.json"
        answer.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                answer.write_text(json.dumps(work(recipe, folder / order["run"], order)))
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        said = json.loads(answer.read_text()) if answer.exists() else {}
        print(json.dumps({"signal": os.WTERMSIG(status), "exit": status >> 8, **said}), flush=True)


main()
