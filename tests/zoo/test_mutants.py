"""What is pinned here:

- Every mutant of the zoo is killed: with that one line of our code changed, each test that is named beside it fails,
  and for a better reason than that the line cannot be run; without it, each passes.
- Every mutant's line is there, once, and stays a line of Python.
- The table in docs/evaluation.md is the zoo's.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mutants
import pytest
from mutants import MUTANTS, ROOT, Mutant

QUICK = ("survivors-as-denominator", "verdict-by-claim", "gradient-of-the-batch-mean")
CRASHES = {"NameError", "AttributeError", "TypeError", "ImportError", "SyntaxError", "UnboundLocalError"}


class Runs:
    """Tests in processes of their own, see mutated_run.py."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("mutated_run.py")
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(
            [sys.executable, str(script)], env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes
        )

    def __call__(self, nodes: list[str], **order: Any) -> dict[str, list[dict[str, str]]]:
        """What became of each node: one entry for each of its cases."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps({"nodes": nodes, **order}), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        assert answer["code"] in (0, 1), answer.get("text", "the process died")
        found = {node: [each for name, each in answer["tests"].items() if name == node or name.startswith(f"{node}[")]
                 for node in nodes}  # fmt: skip
        assert all(found.values()), answer["text"]
        return found


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    made = Runs()
    yield made
    assert made.process.stdin
    made.process.stdin.close()
    assert made.process.wait(30) == 0


def check(runs: Runs, mutant: Mutant) -> None:
    for node, cases in runs(list(mutant.killers), mutant=asdict(mutant)).items():
        failed = [case for case in cases if case["outcome"] == "failed in call"]
        assert failed, f"{node} does not see {mutant.name}"
        assert not {case["error"] for case in cases} & CRASHES, f"{mutant.name} cannot even be run: {failed}"


def marked(mutant: Mutant) -> Any:
    return pytest.param(mutant, id=mutant.name, marks=() if mutant.name in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("mutant", [marked(mutant) for mutant in MUTANTS])
def test_mutants_are_killed(runs: Runs, mutant: Mutant) -> None:
    check(runs, mutant)


@pytest.mark.slow
def test_what_makes_no_difference_or_cannot_be_run_is_no_kill(runs: Runs) -> None:
    portions = replace(next(m for m in MUTANTS if m.name == "portions-of-any-size"), killers=MUTANTS[-1].killers)
    with pytest.raises(AssertionError, match="does not see portions-of-any-size"):
        check(runs, portions)
    with pytest.raises(AssertionError, match="cannot even be run"):
        check(runs, replace(portions, new="missing = no_such_name"))


@pytest.mark.slow
def test_the_killers_pass_without_mutants(runs: Runs) -> None:
    found = runs(sorted({node for mutant in MUTANTS for node in mutant.killers}))
    assert {case["outcome"] for cases in found.values() for case in cases} == {"passed in call"}, found


def test_every_line_is_there_and_runs() -> None:
    assert len(MUTANTS) >= 22 and len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert {mutant.name for mutant in MUTANTS} >= set(QUICK)
    for mutant in MUTANTS:
        source = (ROOT / mutant.file).read_text(encoding="utf-8")
        ast.parse(mutant.applied(source), mutant.file)
        assert mutant.killers and all((ROOT / node.partition("::")[0]).exists() for node in mutant.killers)


def test_a_mutant_whose_line_is_gone_is_told() -> None:
    with pytest.raises(ValueError, match="stands 0 times"):
        MUTANTS[0].applied("")


def test_a_table_in_the_docs() -> None:
    text = mutants.PAGE.read_text(encoding="utf-8")
    assert text.count(mutants.FIRST) == text.count(mutants.LAST) == 1
    assert mutants.section() in text, "run: python tests/zoo/mutants.py"
