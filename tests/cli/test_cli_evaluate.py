"""What is pinned here:

- `evaluate` prints a line a column, clean accuracy and white-box attacks first, and writes outcomes, cards and a curve;
  every attack looked at the same samples; `--json` is the card.
- Stopped in the middle, by an attack that raises or by a kill, it keeps what was finished; the same command goes on
  without doing any of it twice, and comes to the same counts and outcomes as one that was never stopped.
- A folder that holds another model's evaluation, another protocol's, or something else, is refused; `--overwrite`.
- What the images depend on decides which are found again: other pixels under the same names, another model behind a
  defence, other code of a plugin, another model that the attack looks at.
- base-to-new measures both halves of the classes and their harmonic mean, on a model trained on the first.
- The curve over shots is drawn where models differ in them.
- `transfer` gives a matrix whose diagonal is white-box, and whose other cells were made on the other model.
- Bad input: a message, what to do, the right exit code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_parts import Cli
from PIL import Image

from advdistill.engine.outcomes import Evaluation
from advdistill.engine.subject import Target
from advdistill.hooks.registry import default_registry

ROBUST, BASE = (
    "advdistill_demo:adversarial_ce.safetensors",
    "advdistill_demo:small.json@advdistill_demo:small.safetensors",
)
SUITE = """
advdistill: 1
limit: 40
protocols:
  from base: {attack: {use: pgd, steps: 3}, source: base}
  PGD: {attack: {use: pgd, steps: 3}, times: [1, 4]}
  clean: {}
"""
STUMBLING = """
import os
from pathlib import Path
from advdistill import Attack, AttackSpec, hookimpl


class Stumbling(Attack):
    '''One step; notes every sample it sees, and fails on the third pack while told to.'''

    def run(self, problem, threat, noise):
        seen = Path("seen.txt")
        lines = seen.read_text().splitlines() if seen.exists() else []
        if Path("stumble").exists() and len(lines) == 2:
            raise ValueError("tripped")
        seen.write_text("\\n".join([*lines, str(len(problem.images))]) + "\\n")
        gradient, _ = problem.gradient(problem.images, problem.rows)
        return problem.images + threat.eps * gradient.sign()


@hookimpl
def advdistill_attacks():
    yield AttackSpec(name="stumbling", target=Stumbling, norms={"linf"}, objective=True)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(SUITE)


def same(one: Evaluation, other: Evaluation) -> bool:
    return all(
        torch.equal(getattr(a.outcome, name), getattr(b.outcome, name))
        for a, b in zip(one.columns, other.columns, strict=True)
        for name in ("indices", "clean", "right", "size", "stage", "forwards")
    )


def test_a_suite_on_a_checkpoint(cli: Cli) -> None:
    said = cli("evaluate", "--model", ROBUST, "--protocol", "p.yaml")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert [line.split("  ")[0] for line in lines[2:6]] == ["clean", "PGD", "PGD ×4", "from base"]
    assert "linf 8/255" in lines[3] and "white-box" in lines[3] and "linf 32/255" in lines[4]
    assert "transfer" in lines[5] and lines[6].startswith("worst")
    out = Path("evaluations/adversarial_ce-p")
    assert {"outcomes.safetensors", "card.md", "card.json", "eps.png", "protocol.yaml"} <= {
        f.name for f in out.iterdir()
    }
    found = Evaluation.read(out)
    assert len({tuple(c.outcome.indices.tolist()) for c in found.columns}) == 1 and len(found.columns[0].outcome) == 40
    hits = {c.name: c.outcome.count.hits for c in found.columns}
    assert hits["PGD ×4"] < hits["PGD"] < hits["clean"] and hits["PGD"] <= hits["from base"]
    plain = cli("evaluate", "--model", ROBUST, "--protocol", "p.yaml", "--json")
    assert [c["hits"] for c in json.loads(plain.out)["columns"]] == list(hits.values())


def test_an_attack_that_raises_loses_no_finished_pack(cli: Cli) -> None:
    Path("stumbling.py").write_text(STUMBLING)
    Path("s.yaml").write_text("advdistill: 1\nlimit: 40\nprotocols: {stumbling: {attack: {use: stumbling}}}\n")
    words = ["evaluate", "--model", ROBUST, "--protocol", "s.yaml", "--plugin", "stumbling.py", "--batch-size", 8]
    Path("stumble").touch()
    stopped = cli(*words)
    assert stopped.code == 1 and "stumbling failed on samples" in stopped.err and "ValueError: tripped" in stopped.err
    assert "the same command goes on" in stopped.err and "Traceback" not in stopped.err
    Path("stumble").unlink()
    assert cli(*words).code == 0
    clean = Evaluation.read(Path("evaluations/adversarial_ce-s")).columns[0].outcome.clean.sum().item()
    assert sum(map(int, Path("seen.txt").read_text().split())) == clean  # each survivor once, both times together
    Path("seen.txt").unlink()
    assert cli(*words, "--out", "whole").code == 0
    assert same(Evaluation.read(Path("evaluations/adversarial_ce-s")), Evaluation.read(Path("whole")))


@pytest.mark.slow
def test_a_kill_loses_no_finished_pack(cli: Cli) -> None:
    Path("k.yaml").write_text("advdistill: 1\nlimit: 120\nprotocols: {PGD: {attack: {use: pgd, steps: 40}}}\n")
    words = ["evaluate", "--model", ROBUST, "--protocol", "k.yaml", "--batch-size", "10", "--out", "cut"]
    run = subprocess.Popen([sys.executable, "-c", "from advdistill.cli.main import main; main()", *words])
    until, packs = time.monotonic() + 120, Path("cut/packs")
    while len(list(packs.glob("*/*.outcome.safetensors"))) < 3 and time.monotonic() < until and run.poll() is None:
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    kept = {file: file.stat().st_mtime_ns for file in packs.glob("*/*.outcome.safetensors")}
    assert len(kept) >= 3 and not Path("cut/outcomes.safetensors").exists()
    assert cli(*words).code == 0
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert cli(*words[:-1], "whole").code == 0
    assert same(Evaluation.read(Path("cut")), Evaluation.read(Path("whole")))


def test_a_folder_belongs_to_one_evaluation(cli: Cli) -> None:
    words = ["evaluate", "--model", ROBUST, "--protocol", "p.yaml", "limit=10", "--out", "out"]
    assert cli(*words).code == 0
    before = Path("out/outcomes.safetensors").read_bytes()
    for changed, what in (
        (["evaluate", "--model", BASE, *words[3:]], "model"),
        ([*words[:5], "limit=12", *words[6:]], "protocol"),
        ([*words, "--eps", "2/255"], "protocol"),
    ):
        changed = [*changed, "--data", "absent"] if what == "absent" else changed
        said = cli(*changed) if what == "protocol" else cli(*changed, "--eps", "8/255")
        assert said.code == 2 and ("another " + what in said.err or "brings no data" in said.err), said.err
        assert Path("out/outcomes.safetensors").read_bytes() == before
    assert cli(*words[:5], "limit=12", *words[6:], "--overwrite").code == 0
    assert len(Evaluation.read(Path("out")).columns[0].outcome) == 12
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("mine")
    said = cli(*words[:-1], "mine")
    assert said.code == 2 and "something else" in said.err and Path("mine/thesis.txt").read_text() == "mine"


def pictures(folder: str, shade: int) -> None:
    """Ten classes of one PNG each, all of one shade but for a corner."""
    names = Target(ROBUST, default_registry()).opened.classes.names
    for i, name in enumerate(names):
        pixels = np.full((32, 32, 3), shade, dtype=np.uint8)
        pixels[: 3 * i + 2, :4] = 255 - shade
        (Path(folder) / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(Path(folder) / name / "0.png")


def hits(out: str) -> list[int]:
    return [column.outcome.count.hits for column in Evaluation.read(Path(out)).columns]


def keys(out: str) -> list[str]:
    return [column.statement["key"] for column in Evaluation.read(Path(out)).columns]


def test_the_same_names_may_stand_for_other_pixels(cli: Cli) -> None:
    pictures("photos", 20)
    data = "data={use: folder, root: photos, size: 32, val_share: 0, test_share: 1}"
    words = ["evaluate", "--model", ROBUST, "--protocol", "p.yaml", f"scopes={{own: {{{data.replace('=', ': ', 1)}}}}}"]
    assert cli(*words, "--out", "a").code == 0, cli(*words, "--out", "a").err
    before = keys("a")
    pictures("photos", 220)
    assert cli(*words, "--out", "a").code == 0
    assert not set(before) & set(keys("a"))
    assert cli(*words, "--out", "b").code == 0
    assert keys("a") == keys("b") and same(Evaluation.read(Path("a")), Evaluation.read(Path("b")))


def test_other_code_of_a_plugin_is_another_attack(cli: Cli) -> None:
    Path("stumbling.py").write_text(STUMBLING)
    Path("s.yaml").write_text("advdistill: 1\nlimit: 20\nprotocols: {s: {attack: {use: stumbling}}}\n")
    words = ["evaluate", "--model", BASE, "--data", "photos", "--eps", "64/255", "--protocol", "s.yaml", "--out", "out",
             "--plugin", "stumbling.py"]  # fmt: skip
    pictures("photos", 20)
    assert cli(*words).code == 0
    before = keys("out")
    Path("stumbling.py").write_text(STUMBLING.replace("threat.eps * gradient.sign()", "0 * gradient"))
    assert cli(*words).code == 0
    assert keys("out") != before


def test_a_defence_is_not_what_it_defends(cli: Cli) -> None:
    pictures("photos", 20)
    words = ["--data", "photos", "--eps", "8/255", "--protocol", "p.yaml", "--out", "out"]
    assert cli("evaluate", "--model", BASE, *words).code == 0
    said = cli("evaluate", "--model", f"ttc:{BASE}", *words)
    assert said.code == 2 and "another model" in said.err


def test_an_overwritten_evaluation_is_gone_at_once(cli: Cli) -> None:
    Path("stumbling.py").write_text(STUMBLING.replace("len(lines) == 2", "True"))
    Path("s.yaml").write_text("advdistill: 1\nlimit: 20\nprotocols: {s: {attack: {use: stumbling}}}\n")
    words = ["evaluate", "--model", ROBUST, "--out", "out"]
    assert cli(*words, "--protocol", "p.yaml", "limit=10").code == 0
    Path("stumble").touch()
    assert cli(*words, "--protocol", "s.yaml", "--plugin", "stumbling.py", "--overwrite").code == 1
    assert not Path("out/outcomes.safetensors").exists() and not Path("out/card.md").exists()


def test_a_folder_is_written_by_one_process(cli: Cli) -> None:
    words = ["evaluate", "--model", ROBUST, "--protocol", "p.yaml", "limit=10", "--out", "out"]
    assert cli(*words).code == 0
    hold = "import fcntl, sys; f = open('out/.lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True)"
    hold += "; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        said = cli(*words)
        holder.communicate()
    assert said.code == 1 and "another evaluation is writing" in said.err


def test_base_to_new(cli: Cli) -> None:
    trained = cli(
        "train", "apd_digits", "data.half=base", "train.steps=2", "train.epochs=0", "save.dir=half",
        "evaluate.protocols=[{name: clean}]",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    checkpoint = "half/last.safetensors"
    assert Target(checkpoint, default_registry()).opened.classes.names == ("zero", "one", "two", "three", "four")
    said = cli("evaluate", "--model", checkpoint, "--protocol", "base-to-new", "limit=20", "doubt=0", "--eps", "2/255")
    assert said.code == 0, said.err
    found = Evaluation.read(next(Path("evaluations").iterdir()))
    assert {c.scope for c in found.columns} == {"base", "new"}
    assert {c.statement["split"]["of"] for c in found.columns if c.scope == "base"} != {400}
    base, new, mean = found.base_to_new()["clean"]
    assert mean == pytest.approx(2 * base * new / (base + new))
    assert f"clean: base {100 * base:.1f}, new {100 * new:.1f}, harmonic mean {100 * mean:.1f}" in said.out
    refused = cli("evaluate", "--model", checkpoint, "--protocol", "quick", "--classes", "all", "--data", "absent")
    assert refused.code == 5


def test_transfer(cli: Cli) -> None:
    said = cli("transfer", ROBUST, BASE, "--limit", 40, "--attack", "pgd", "steps=5", "--eps", "16/255", "--json")
    assert said.code == 0, said.err
    matrix = json.loads(said.out)
    assert [row["model"] for row in matrix] == [ROBUST, BASE]

    def hits(row: int, source: str) -> int:
        return matrix[row]["sources"][source]["protocols"]["pgd steps=5"]["hits"]

    for row, own in enumerate((ROBUST, BASE)):
        other = BASE if own == ROBUST else ROBUST
        own_said, other_said = (
            matrix[row]["sources"][s]["protocols"]["pgd steps=5"]["statement"] for s in (own, other)
        )
        assert (own_said["knowledge"], other_said["knowledge"]) == ("white-box", "transfer")
        assert other_said["source"]["model"] == other and len(other_said["source"]["fingerprint"]) == 16
        assert hits(row, own) <= hits(row, other)
    assert hits(1, BASE) < hits(0, BASE)
    table = cli("transfer", ROBUST, BASE, "--limit", 10, "--attack", "fgsm")
    assert table.out.splitlines()[1].split() == ["clean", "on", "1", "on", "2", "model"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["evaluate"], 2, "which model?"),
        (["evaluate", "--model", "absent.safetensors"], 5, "there is no checkpoint absent.safetensors"),
        (["evaluate", "--model", ROBUST, "--protocol", "standrad"], 3, "did you mean 'standard'?"),
        (["evaluate", "--model", ROBUST, "--protocol", "p.yaml", "limt=3"], 3, "did you mean 'limit'?"),
        (["evaluate", "--model", ROBUST, "--protocol", "p.yaml", "--eps", "8"], 2, "write it like 8/255"),
        (["evaluate", "--model", ROBUST, "--protocol", "p.yaml", "--eps", "0"], 2, "--eps 0 attacks nothing"),
        (["evaluate", "--model", ROBUST, "--protocol", "p.yaml", "threat={norm: l1, eps: 3}"], 2, "not l1"),
        (["evaluate", "--model", ROBUST, "--protocol", "p.yaml", "protocols.PGD.attack.steps=0"], 3, "steps"),
        (["evaluate", "--model", ROBUST, "--protocol", "p.yaml", "protocols.PGD.source=tutor"], 2, "no model 'tutor'"),
        (["evaluate", "--model", ROBUST, "--classes", "bse"], 2, "did you mean 'base'?"),
        (["evaluate", "--model", ROBUST, "--model", BASE, "--out", "x"], 2, "--out is one folder"),
        (["evaluate", "--model", BASE, "--protocol", "p.yaml"], 2, "--data DIR"),
        (["attack", "--model", ROBUST, "--attack", "eot", "attack.use=pdg"], 3, "did you mean 'pgd'?"),
        (["attack", "--model", ROBUST, "--attack", "pgd", "steps=0"], 3, "steps"),
        (["attack", "--model", ROBUST, "--attack", "pgd", "--eps", "1.5"], 2, "write it like 8/255"),
        (["transfer", ROBUST], 2, "two models or more"),
        (["transfer", ROBUST, ROBUST], 2, "a model is given twice"),
        (["transfer", ROBUST, BASE, "--norm", "l2"], 2, "needs a radius of its own"),
    ],
    ids=lambda value: " ".join(map(str, value[:6])) if isinstance(value, list) else None,
)  # fmt: skip
def test_bad_input(cli: Cli, words: list[str], code: int, message: str) -> None:
    said = cli(*words)
    assert said.code == code and message in said.err, said.err
    assert said.out == "" and "Traceback" not in said.err and "internal error" not in said.err
