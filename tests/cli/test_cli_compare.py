"""`advdistill compare`.

Guarantees:
- a table for each pair, the front, and in words what was seen; notes on stderr; JSON with the same numbers;
- `--column`, `--all-pairs`, `--per-class` choose rows; `--plot` and `--shots` draw, and are refused before anything is
  computed where they cannot be written; a picture that fails costs no table; names and seeds are read from the words;
- evaluations of different protocols are a data error, 5, that says what differs; wrong words are usage, 2.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_parts import Cli

from advdistill.engine.outcomes import FILE, Column, Evaluation, Outcome
from advdistill.engine.protocol import key


def column(name: str, right: torch.Tensor, attacked: bool, steps: int) -> Column:
    said: dict[str, Any] = {
        "name": name,
        "attack": {"use": "pgd", "steps": steps} if attacked else None,
        "threat": {"norm": "linf", "eps": 8 / 255} if attacked else None,
        "knowledge": "white-box" if attacked else "none",
    }
    count = len(right)
    no, zero, none = torch.zeros(count, dtype=torch.bool), torch.zeros(count), torch.zeros(count, dtype=torch.int32)
    found = Outcome(
        indices=torch.arange(count), labels=torch.arange(count) % 4, clean=no | True, right=right, claimed=right,
        recovered=no, rounded=right, size=zero, rise=zero.double(), margin=zero, certain=no, nearest=zero,
        forwards=none, backwards=none.clone(), blank=none.clone(), zeros=zero.clone(), stage=none.to(torch.int16),
    )  # fmt: skip
    return Column(name, {**said, "key": key(said)}, found)


def store(name: str, hits: int, steps: int = 20, seed: int = 0, **recipe: int) -> None:
    order = torch.arange(200)
    columns = (column("clean", order < 190, False, 0), column("pgd", order < hits, True, steps))
    facts = {"model": {"fingerprint": name}, "recipe": {"name": name[:-1], "seed": seed, **recipe}}
    Path(name).mkdir()
    Evaluation(f"{name}.safetensors", facts, columns).save(Path(name) / FILE)


@pytest.fixture
def stored(cli: Cli) -> None:
    for name, hits in (("apd", 120), ("tecoa", 80), ("trades", 78)):
        for seed in (1, 2):
            store(f"{name}{seed}", hits + seed, seed=seed)


def test_a_table_for_each_pair(cli: Cli, stored: None) -> None:
    said = cli("compare", "apd1", "tecoa1", "trades1")
    assert said.code == 0
    lines = said.out.splitlines()
    titles = [line for line in lines if "accuracy in %" in line]
    assert [title.partition(":")[0] for title in titles] == ["apd1 − tecoa1", "apd1 − trades1"]
    assert lines[1].split()[:4] == ["column", "n", "apd1", "tecoa1"]
    row = lines[3]
    assert row.startswith("pgd     200  60.5") and row.endswith("apd1 is better than tecoa1 by 20.0 points")
    assert "no difference seen; one of less than 3.9 points could not have been" in lines[2]
    assert any(line.startswith("trades1") and line.endswith("tecoa1 (within the interval)") for line in lines)
    assert said.err == "note: one run each: how much another seed would change is not in the intervals\n"


def test_seeds_are_joined_by_commas(cli: Cli, stored: None) -> None:
    said = cli("compare", "apd1,apd2", "TeCoA=tecoa1,tecoa2")
    assert said.code == 0 and said.out.startswith("apd − TeCoA: ")
    assert "McNemar by seed 1, seed 2 (Holm)" in said.out
    first, second = said.err.splitlines()
    assert first == "note: intervals are over samples and 2 seeds (seeds 1, 2)"
    assert second.startswith("note: two seeds (apd, TeCoA) are too few for an interval")


def test_json_has_the_same_numbers(cli: Cli, stored: None) -> None:
    said = cli("compare", "apd1", "tecoa1", "--json", "--column", "pgd")
    found = json.loads(said.out)
    (row,) = found["rows"]
    assert row["accuracy"] == [0.605, 0.405] and row["difference"] == pytest.approx(0.2)
    assert row["interval95"][0] < 0.2 < row["interval95"][1]
    assert row["mcnemar"][0]["only"] == [40, 0]
    assert found["axes"] == ["clean", "pgd"]


def test_rows_can_be_chosen(cli: Cli, stored: None) -> None:
    def rows(*words: str) -> list[tuple[str, str, str]]:
        found = json.loads(cli("compare", "apd1", "tecoa1", "trades1", "--json", *words).out)["rows"]
        return [(row["first"], row["second"], row["column"]) for row in found]

    assert len(rows()) == 4
    assert rows("--column", "pgd", "--all-pairs") == [
        ("apd1", "tecoa1", "pgd"), ("apd1", "trades1", "pgd"), ("tecoa1", "trades1", "pgd"),
    ]  # fmt: skip
    assert [row[2] for row in rows("--column", "pgd", "--per-class")][:5] == [
        "pgd", *(f"pgd, class {label}" for label in range(4)),
    ]  # fmt: skip


def test_the_front_is_drawn(cli: Cli, stored: None) -> None:
    assert cli("compare", "apd1", "tecoa1", "--plot", "front.png").code == 0
    assert Path("front.png").read_bytes().startswith(b"\x89PNG")
    for wrong in ("front.jpeg", "nowhere/front.png"):
        said = cli("compare", "apd1", "tecoa1", "--plot", wrong)
        assert (said.code, said.out) == (2, "")


def test_shots_are_drawn(cli: Cli) -> None:
    for name, shots, hits in (("few", 1, 80), ("many", 16, 120)):
        store(f"{name}1", hits, shots=shots)
    assert cli("compare", "few1", "many1", "--shots", "shots.png").code == 0
    assert Path("shots.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_outlives_its_picture(cli: Cli, stored: None) -> None:
    said = cli("compare", "apd1", "tecoa1", "--shots", "shots.png")
    assert said.code == 5 and "different shots" in said.err
    assert "apd1 is better than tecoa1" in said.out and not Path("shots.png").exists()


def test_different_protocols_are_refused(cli: Cli, stored: None) -> None:
    store("weak1", 100, steps=10)
    said = cli("compare", "apd1", "weak1")
    assert (said.code, said.out) == (5, "")
    assert "pgd: attack.steps: 20 (apd1.safetensors) · 10 (weak1.safetensors)" in said.err
    assert "--despite attack" in said.err
    despite = cli("compare", "apd1", "weak1", "--despite", "attack")
    assert despite.code == 0 and "in spite of different attack.steps" in despite.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "what shall be compared?"),
        (("apd1",), 2, "one evaluation alone"),
        (("apd1", "nowhere"), 5, "nowhere holds no evaluation"),
        (("apd1", "tecoa1,"), 2, "names no evaluations"),
        (("apd1", "tecoa1", "--column", "pdg"), 2, "did you mean 'pgd'?"),
        (("apd1", "tecoa1", "--despite", "foo"), 2, "protocols have no field 'foo'"),
        (("apd1", "tecoa1", "--despite", "atack"), 2, "did you mean 'attack'?"),
        (("apd1,apd1", "tecoa1,tecoa2"), 2, "stands for two seeds"),
    ],
)
def test_wrong_words(cli: Cli, stored: None, words: tuple[str, ...], code: int, message: str) -> None:
    said = cli("compare", *words)
    assert (said.code, said.out) == (code, "")
    assert message in said.err
