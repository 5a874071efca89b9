"""`advdistill diagnose`.

Guarantees: a table with every indicator, flags first, and at the end how many doubt; a flag is a finding, so the exit
code is 0; `--json` holds the same, and says on which samples; wrong calls say
what to do.
"""

from __future__ import annotations

import json

import pytest
from cli_parts import Cli

from advdistill.engine.probes import PROBES

MODEL = "advdistill_demo:clean_prompts.safetensors"
FEW = ("--limit", "4", "--eps", "32/255")


def test_a_table_and_how_many_doubt(cli: Cli) -> None:
    # One short step from the clean image: not converged.
    weak = ("--attack", "pgd", "steps=1", "step=0.1/255", "random_start=false")
    said = cli("diagnose", "--model", MODEL, *FEW, *weak)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{MODEL}: right about 4 of 4 after pgd steps=1") and "linf 32/255" in lines[0]
    assert lines[2].split() == ["verdict", "indicator", "seen", "threshold", "what", "to", "do"]
    verdicts = [line.split()[0] for line in lines[3:-2]]
    assert verdicts == sorted(verdicts, key=["flag", "unknown", "ok"].index)
    assert "flag" in verdicts
    assert any("scores beat white-box" in line and line.startswith("flag") for line in lines)
    flags, unknown = verdicts.count("flag"), verdicts.count("unknown")
    assert lines[-1] == f"{flags} of {len(verdicts)} indicators doubt these numbers ({unknown} could not tell)"


def test_json(cli: Cli) -> None:
    said = cli("diagnose", "--model", MODEL, *FEW, "steps=5", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert {each["name"] for each in found["indicators"]} >= PROBES.keys()
    assert found["flags"] == sum(each["verdict"] == "flag" for each in found["indicators"])
    assert {each["column"] for each in found["indicators"] if each["name"] == "stochastic"} == {"apgd, 4 of test"}
    assert found["statement"]["attack"]["steps"] == 5 and found["total"] == 4


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 2, "which model?"),
        (("--model", MODEL, "--attack", "pgdd"), 3, "pgd"),
        (("--model", MODEL, "steps=0"), 3, "steps"),
        (("--model", MODEL, "--eps", "0"), 2, "eps 0"),
        (("--model", MODEL, "--norm", "l0", "--eps", "5"), 2, "apgd"),
        (("--model", "nothing.safetensors"), 5, "nothing.safetensors"),
    ],
)
def test_wrong_calls(cli: Cli, words: tuple[str, ...], code: int, told: str) -> None:
    said = cli("diagnose", *words)
    assert said.code == code and told in said.err and not said.out
