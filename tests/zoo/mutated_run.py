"""Runs tests with and without mutants, for test_mutants.py: each time in a process forked from one that has imported
everything but our own code.

Reads orders from stdin, one JSON object a line, and answers each with one line. `{"nodes": [NODE, …]}` runs tests;
`"mutant": {…}` puts that mutant in first. The answer says of every test what became of it: `outcome`, and the `error`
that it failed with; `code` is pytest's, `text` what it printed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy  # noqa: F401 - what takes long to import is imported once
import open_clip  # noqa: F401
import pytest
import torch
import torchattacks  # noqa: F401
from mutants import ROOT, Mutant


class Watch:
    """Notes what became of each test."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        outcome = yield
        report = outcome.get_result()  # type: ignore[attr-defined]
        if report.when == "call" or report.failed:
            error = call.excinfo.typename if call.excinfo else ""
            self.found[report.nodeid] = {"outcome": f"{report.outcome} in {report.when}", "error": error}


def work(order: dict[str, Any]) -> dict[str, Any]:
    """One order, in a process of its own."""
    assert not [name for name in sys.modules if name.split(".")[0].startswith("advdistill")]
    if "mutant" in order:
        Mutant(**order["mutant"]).install()
    watch, text = Watch(), io.StringIO()
    options = ["-q", "-m", "", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "--tb=line"]
    with contextlib.redirect_stdout(text):
        code = pytest.main([*options, *order["nodes"]], plugins=[watch])
    return {"code": int(code), "tests": watch.found, "text": text.getvalue()}


def main() -> None:
    torch.set_num_threads(1)
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        for line in sys.stdin:
            answer.unlink(missing_ok=True)
            child = os.fork()
            if child == 0:
                try:
                    answer.write_text(json.dumps(work(json.loads(line))))
                finally:
                    sys.stderr.flush()
                    os._exit(0)
            os.waitpid(child, 0)
            print(answer.read_text() if answer.exists() else json.dumps({"code": -1}), flush=True)


if __name__ == "__main__":
    main()
