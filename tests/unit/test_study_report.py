"""What a study ends in.

Guarantees:
- the table: means over seeds are those of the samples; rows of a numeric axis stand in the order of its numbers; a
  difference is the row minus the one it is compared with, along every axis that is compared, at equal levels of the
  others, with Holm's correction over all of them; rows may word their classes in ways of their own, and attacks on them
  may look at other teachers, but images made on another model are not compared; the main column is the worst case of
  its ball;
- image passes are held against those of the row whose they are meant to be;
- cells that failed, are missing or damaged are named with the reason, and what is there still stands; fewer seeds in
  common than a comparison takes are told; with no cell at all there is a note and no picture;
- tuned rows show winner and grid; trials that ended after test data was opened are told;
- study.csv has a line for each cell and column, with the counts that were measured;
- one axis of names gives rows below each other, a numeric one curves, two a map;
- a run is as soon as itself; one that learns twice as fast is twice as soon in steps, whatever the noise of a seed; one
  that never gets there has an upper bound; probes of different attacks are not compared;
- the matrix of transfer waits for all cells, is measured once, and again where a model has changed;
- other models are measured as the cells are, on their data whatever they were trained on, once.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import study_parts
import torch
import yaml
from outcome_parts import bits, clean_column, column, evaluation, outcome
from run_parts import PLUGIN, write

from advdistill.engine import fit
from advdistill.engine import transfer as engine
from advdistill.engine.data import stratified
from advdistill.engine.outcomes import FILE
from advdistill.engine.types import ClassSet
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe
from advdistill.recipe.study import load_study
from advdistill.study import efficiency, figure, report, transfer
from advdistill.study.cells import Cell, Plan
from advdistill.study.notes import _edges
from advdistill.study.run import Chosen, Found, run
from advdistill.study.table import Table, number

SUITE = {"advdistill": 1, "limit": 12, "protocols": {"clean": {}, "fgsm": {"attack": {"use": "fgsm"}}}}


def levels(axis: str, *names: str, **more: dict[str, Any]) -> dict[str, Any]:
    """Levels that differ in a setting of their axis's own."""
    path = {"lr": "optim.lr", "decay": "optim.weight_decay", "clip": "optim.clip_norm", "steps": "optim.lr"}[axis]
    return {name: {"set": {path: 0.01 * (place + 1)}, **more.get(name, {})} for place, name in enumerate(names)}


def plan(folder: Path, axes: dict[str, Any], plugins: tuple[str, ...] = (), **more: Any) -> Plan:
    """Of a study on the toy recipe."""
    suites = {"suite": SUITE, "tuning": {**SUITE, "split": "val"}}
    for name, tree in suites.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    tree = {"advdistill": 1, "recipe": str(write(folder)), "axes": axes, "protocol": str(folder / "suite.yaml")}
    tree |= {"title": "Which is best?", "seeds": [0, 1, 2], **more}
    path = folder / "question.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return Plan(load_study(path, default_registry()), default_registry(), folder / "studies", plugins)


def finish(cell: Cell, robust: float, steps: int = 10, passes: int = 1000, weaker: float | None = None) -> None:
    """Leave the files of a finished cell: all images right, so many under attack; another attack leaves `weaker`."""
    folder = Path(cell.unit.folder) / cell.unit.measured
    folder.mkdir(parents=True)
    every = torch.ones(100, dtype=torch.bool)
    columns = [clean_column(every), column("apgd", outcome(every, bits(robust, cell.seed)))]
    if weaker is not None:
        columns.append(column("pgd", outcome(every, bits(weaker, cell.seed + 7))))
    name = f"{cell.row.name} {cell.seed}"
    facts = {"recipe": {"name": "toy", "seed": cell.seed}, "versions": {"advdistill": "0.1.0"}}
    evaluation(name, *columns, **facts).save(folder / FILE)
    cost = {"steps": steps, "seconds": 2.0, "passes": {"student": {"forward": passes // 2, "backward": passes // 2}}}
    (folder.parent / "cost.json").write_text(json.dumps(cost))
    note(folder, "2026-01-02T12:00:00+00:00")


def note(folder: Path, opened: str) -> None:
    said = {"split": "test", "opened": opened, "machine": "a machine", "measured here for": 1.0}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "unit.json").write_text(json.dumps(said))


def probes(cell: Cell, robust: list[int]) -> None:
    """Leave probes of 100 samples, two steps apart."""
    lines = [
        {
            "event": "probed",
            "step": 2 * place,
            "robust": {"hits": hits, "total": 100},
            "seconds": 0.5 * place,
            "passes": {"student": {"forward": 100 * place, "backward": 60 * place}} if place else {},
        }
        for place, hits in enumerate(robust)
    ]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"event": "saved"}])
    (Path(cell.unit.folder) / "metrics.jsonl").write_text(text + '{"event": "pro')


def study(folder: Path, axes: dict[str, Any], shares: dict[str, float], **more: Any) -> Found:
    """With a finished cell for every row that has a share; each seed is a sample apart."""
    made = plan(folder, axes, **more)
    cells = [cell for cell in made.cells({}) if cell.row.name in shares]
    for cell in cells:
        finish(cell, shares[cell.row.name] + 0.01 * cell.seed)
    return Found(made, cells)


def lines(found: Found) -> list[list[str]]:
    """The cells of the first table of study.md, header first."""
    text = (found.plan.folder / "study.md").read_text()
    rows = [line for line in text.split("\n\n")[2].splitlines() if line.startswith("|")]
    return [[cell.strip(" *") for cell in row.strip("|").split("|")] for row in (rows[0], *rows[2:])]


def test_the_table_says_what_was_measured(tmp_path: Path) -> None:
    found = study(
        tmp_path, {"lr": levels("lr", "10", "2", "0.5")}, {"10": 0.5, "2": 0.2, "0.5": 0.4}, against={"lr": "2"}
    )
    written = report.write(found)
    assert [path.name for path in written] == ["study.md", "study.csv", "study.png"] and all(map(Path.exists, written))
    header, *rows = lines(found)
    assert header[:4] == ["lr", "clean", "apgd, linf 8/255", "difference to 2, points [95 %]; p"]
    assert [row[0] for row in rows] == ["0.5", "2", "10"]
    assert [row[2].split(" ± ")[0] for row in rows] == ["41.0", "21.0", "51.0"]
    assert [row[3].split(" [")[0] for row in rows] == ["+20.0", "", "+30.0"]
    assert rows[2][4].startswith("better")
    said = report.summary(found)
    assert "10 is better than 2 by 30.0 points" in said["rows"][2]["differences"]["lr"]["words"]
    assert said["main"] == "apgd" and said["clean"] == "clean"
    own = said["rows"][0]["columns"]["apgd"]
    assert own["accuracy"] == pytest.approx(0.41) and own["interval95"][0] < 0.35 < 0.47 < own["interval95"][1]
    assert own["seeds"] == pytest.approx([0.40, 0.41, 0.42])
    assert json.dumps(said)


def test_the_main_column_is_the_worst_case(tmp_path: Path) -> None:
    found = study(tmp_path, {"lr": levels("lr", "a", "b")}, {})
    found.cells = found.plan.cells({})
    for cell in found.cells:
        finish(cell, 0.5, weaker=0.6)
    table = Table(found)
    assert table.main == "worst of 2, linf 8/255"
    assert table.headings == ["clean", "worst of 2, linf 8/255", "apgd", "pgd"]
    own = table.lines[0].cells[0].right
    assert (own[table.main] == (own["apgd"] & own["pgd"])).all() and own[table.main].mean() < 0.5


def test_rows_are_compared_along_every_axis(tmp_path: Path) -> None:
    axes = {"lr": levels("lr", "a", "b"), "decay": levels("decay", "c", "d")}
    shares = {"a · c": 0.2, "a · d": 0.3, "b · c": 0.5, "b · d": 0.9}
    found = study(tmp_path, axes, shares, against={"decay": "c", "lr": "a"})
    table = Table(found)
    assert table.axes == ["decay", "lr"]
    known = {key: round(each.pair.difference, 2) for key, each in table.compared.items() if each.pair}
    assert known == {
        ("decay", "a · d"): 0.1, ("decay", "b · d"): 0.4, ("lr", "b · c"): 0.3, ("lr", "b · d"): 0.6
    }  # fmt: skip
    from advdistill.engine.compare import holm

    pairs = [each.pair for each in table.compared.values() if each.pair]
    assert [pair.adjusted for pair in pairs] == holm([pair.p for pair in pairs])
    assert max(pair.adjusted for pair in pairs) > max(pair.p for pair in pairs) or len({p.p for p in pairs}) == 1


def test_rows_may_word_their_classes_and_have_teachers_of_their_own(tmp_path: Path) -> None:
    found = study(tmp_path, {"lr": levels("lr", "a", "b", "c")}, {"a": 0.5, "c": 0.5}, against={"lr": "a"})
    for name, source in (("b", {"fingerprint": "", "also": {"clean": "f1"}}), ("c", {"fingerprint": "f2"})):
        for cell in [cell for cell in found.plan.cells({}) if cell.row.name == name]:
            every = torch.ones(100, dtype=torch.bool)
            worded = ClassSet(("cat", "dog"), (f"{name}: {{}}.",))
            wording = {"classes": worded.digest, "templates": list(worded.templates)}
            said = {"source": {"model": "self", **source}, **wording}
            attacked = column("apgd", outcome(every, bits(0.2, cell.seed)), **said)
            folder = Path(cell.unit.folder) / cell.unit.measured
            if name == "b":
                finish(cell, 0.2)
                found.cells.append(cell)
            facts = {"recipe": {"name": "toy", "seed": cell.seed}}
            columns = clean_column(every, **wording), attacked
            evaluation(f"{name} {cell.seed}", *columns, **facts).save(folder / FILE)
    compared = Table(found).compared
    pair = compared["lr", "b"].pair
    assert pair is not None and pair.difference == pytest.approx(-0.31)
    assert compared["lr", "c"].pair is None and "no column 'apgd'" in compared["lr", "c"].why


def test_passes_are_held_against_those_they_are_meant_to_be(tmp_path: Path) -> None:
    meant = {name: {"passes": "a"} for name in "bc"}
    found = study(tmp_path, {"lr": levels("lr", "a", "b", "c", **meant)}, {})
    found.cells = found.plan.cells({})
    for cell in found.cells:
        finish(cell, 0.5, passes={"a": 1000, "b": 1040, "c": 1400}[cell.row.name])
    report.write(found)
    column = lines(found)[0].index("image passes")
    assert [row[column] for row in lines(found)[1:]] == ["1,000", "1,040 (as a: 1.04×)", "1,400 (**not** as a: 1.40×)"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    axes = {"lr": levels("lr", "a", "b", "c")}
    found = study(tmp_path, axes, {"a": 0.5, "b": 0.4}, against={"lr": "a"})
    found.failed = {"c · seed 0": "the loss is not finite\nlower the rate"}
    damaged, short = found.cells[4], found.cells[5]
    (Path(damaged.unit.folder) / damaged.unit.measured / FILE).write_bytes(b"nothing")
    found.cells.remove(short)
    report.write(found)
    text = (found.plan.folder / "study.md").read_text()
    assert "Failed: c · seed 0: the loss is not finite lower the rate" in text
    assert f"Cannot be read: {damaged.unit.title}: " in text
    assert "Missing: b · seed 2, c · seed 1, c · seed 2." in text
    assert "**4 of 9 are there**" in text
    rows = {row[0]: row for row in lines(found)}
    assert rows["a"][2].startswith("51.0") and rows["b"][2].startswith("40.0") and rows["c"][2] == "–"
    assert rows["b"][1].endswith(" (1 of 3 seeds)") and "seeds" not in rows["a"][1]
    assert rows["b"][4] == "too few seeds in common: 1" and rows["c"][4] == "not there"


def test_nothing_at_all_is_told(tmp_path: Path) -> None:
    made = plan(tmp_path, {"lr": levels("lr", "a", "b")}, efficiency=True, transfer={"attack": "fgsm"})
    written = report.write(Found(made))
    text = (made.folder / "study.md").read_text()
    assert [path.name for path in written] == ["study.md", "study.csv"]
    assert "No run is finished" in text and "no figure: no finished run has anything to show" in text
    assert "Not measured" in text and "no run has 3 probes" in text
    assert report.summary(Found(made))["rows"] == []


def test_a_main_column_that_nobody_has_is_told(tmp_path: Path) -> None:
    found = study(tmp_path, {"lr": levels("lr", "a", "b")}, {"a": 0.5, "b": 0.4}, main="apdg", against={"lr": "a"})
    (Path(found.cells[0].unit.folder) / found.cells[0].unit.measured / "unit.json").write_text('{"opened": 3}')
    report.write(found)
    text = (found.plan.folder / "study.md").read_text()
    assert "no figure: no finished run has apdg" in text and "Cannot be read: a · seed 0" in text
    assert not (found.plan.folder / "study.png").exists()


def test_tuning_is_part_of_what_is_said(tmp_path: Path) -> None:
    tuned = {"set": {"optim.weight_decay": 0.5}, "tune": {"optim.lr": [0.1, 0.2, 0.3]}}
    axes = {"method": {"plain": {"set": {"optim.lr": 0.3}}, "tuned": tuned}}
    tuning = {"budget": 3, "protocol": str(tmp_path / "tuning.yaml")}
    made = plan(tmp_path, axes, tuning=tuning)
    words = ("optim.lr=0.2",)
    found = Found(made, made.cells({"tuned": words}))
    found.chosen["tuned"] = Chosen(words, {("optim.lr=0.1",): (0.2, 0.9), words: (0.4, 0.8)})
    for cell in found.cells:
        finish(cell, 0.5)
    trials = [unit for _, units in made.trials() for unit in units]
    for unit in trials:
        note(Path(unit.folder) / unit.measured, "2026-01-02T11:00:00+00:00")
    report.write(found)
    text = (made.folder / "study.md").read_text()
    assert "tuned: `optim.lr=0.2` of optim.lr 0.1, 0.2, 0.3 (40.0 % robust, 80.0 % clean)" in text
    assert "all 3 trials were finished by 2026-01-02 11:00" in text
    note(Path(trials[0].folder) / trials[0].measured, "2026-01-02T13:00:00+00:00")
    report.write(found)
    assert "**1 of 3 trials were finished later" in (made.folder / "study.md").read_text()


def test_winners_at_the_edge_of_a_grid_are_told() -> None:
    grid = {"optim.lr": [0.1, 0.2, 0.3], "attack.step": ["1/255", "2.5/255", "2/255"], "strategy.batch": ["a", "b"]}
    assert _edges(grid, ["optim.lr=0.2", 'attack.step="2.5/255"', 'strategy.batch="a"']) == ["attack.step"]
    assert _edges(grid, ["optim.lr=0.1", 'attack.step="2/255"', 'strategy.batch="b"']) == ["optim.lr"]


def test_the_csv_has_the_counts(tmp_path: Path) -> None:
    found = study(tmp_path, {"lr": levels("lr", "a", "b")}, {"a": 0.5, "b": 0.4})
    report.write(found)
    with (found.plan.folder / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 2
    (one,) = [row for row in rows if (row["lr"], row["seed"], row["column"]) == ("b", "2", "apgd")]
    assert (one["hits"], one["total"], one["share"], one["image_passes"]) == ("42", "100", "0.42", "1000")
    assert one["run"] == next(c.unit.folder for c in found.cells if c.row.name == "b" and c.seed == 2)


def test_an_axis_may_be_called_steps(tmp_path: Path) -> None:
    found = study(tmp_path, {"steps": levels("steps", "1", "2")}, {"1": 0.5, "2": 0.4})
    report.write(found)
    with (found.plan.folder / "study.csv").open() as file:
        header, *rows = csv.reader(file)
    assert len(set(header)) == len(header) and {row[0] for row in rows} == {"1", "2"}
    assert len(set(lines(found)[0])) == len(lines(found)[0])


def test_rows_on_other_samples_are_told(tmp_path: Path) -> None:
    found = study(tmp_path, {"lr": levels("lr", "a", "b")}, {"a": 0.5})
    report.write(found)
    assert "Measured on 100 test samples.\n" in (found.plan.folder / "study.md").read_text()
    fewer = torch.ones(60, dtype=torch.bool)
    for cell in [cell for cell in found.plan.cells({}) if cell.row.name == "b"]:
        finish(cell, 0.4)
        found.cells.append(cell)
        columns = clean_column(fewer), column("apgd", outcome(fewer, fewer))
        said = evaluation(f"b {cell.seed}", *columns, recipe={"name": "toy", "seed": cell.seed})
        said.save(Path(cell.unit.folder) / cell.unit.measured / FILE)
    report.write(found)
    assert "Measured on 100 test samples (a); 60 test samples (b)." in (found.plan.folder / "study.md").read_text()


@pytest.mark.parametrize(
    ("axes", "kind"),
    [
        ({"lr": ("a", "b")}, "rows"),
        ({"lr": ("a", "b"), "decay": ("c", "d")}, "rows"),
        ({"lr": ("0", "0.1", "10"), "decay": ("c", "d")}, "curves"),
        ({"lr": ("1/255", "4/255")}, "curves"),
        ({"lr": ("1", "20"), "decay": ("2", "4")}, "map"),
        ({"lr": ("1", "2"), "decay": ("2", "4"), "clip": ("1", "2")}, "rows"),
        ({"lr": ("1", "2"), "decay": ("2",)}, "curves"),
    ],
)
def test_the_figure_fits_the_axes(tmp_path: Path, axes: dict[str, tuple[str, ...]], kind: str) -> None:
    found = study(tmp_path, {axis: levels(axis, *names) for axis, names in axes.items()}, {})
    found.cells = found.plan.cells({})
    for cell in found.cells:
        finish(cell, 0.5)
    table = Table(found)
    (drawn,) = figure.draw(table).axes
    names = [label.get_text() for label in drawn.get_yticklabels()]
    if kind == "map":
        assert len(drawn.images) == 1 and len(drawn.texts) == len(table.lines)
    elif kind == "rows":
        assert not drawn.images and names == [line.row.name for line in table.lines]
    else:
        assert not drawn.images and len(drawn.collections) == len(table.lines) // len(axes["lr"])
        assert [label.get_text() for label in drawn.get_xticklabels()] == list(axes["lr"])


def test_numbers_are_told_from_names() -> None:
    assert [number(text) for text in ("4", "1e-3", "8/255", "-1")] == [4, 0.001, 8 / 255, -1]
    assert [number(text) for text in ("all", "1/0", "nan", "4 steps", "")] == [None] * 5


def curves(
    folder: Path, quick: list[list[int]], slow: list[list[int]], **more: Any
) -> tuple[Found, efficiency.Efficiency]:
    """Of the rows `fast` and `slow`, probes in % for each seed."""
    axes = {"lr": levels("lr", "slow", "fast", **more)}
    found = study(folder, axes, {"slow": 0.5, "fast": 0.5}, against={"lr": "slow"})
    for cell in found.cells:
        probes(cell, (slow if cell.row.name == "slow" else quick)[cell.seed])
    return found, efficiency.Efficiency(Table(found))


def test_twice_as_fast_is_twice_as_soon(tmp_path: Path) -> None:
    slow = [[0, 10, 20, 30, 40, 50], [10, 20, 30, 40, 50, 60], [5, 15, 25, 35, 45, 55]]
    fast = [[0, 20, 40, 60, 80, 90], [10, 30, 50, 70, 90, 95], [5, 25, 45, 65, 85, 90]]
    found, made = curves(tmp_path, fast, slow)
    assert [each.unit for each in made.sooner] == ["steps", "passes", "seconds"]
    assert all(each.ratio == pytest.approx(2) and each.reached == each.seeds == 3 for each in made.sooner)
    assert made.sooner[0].words == "2.00× [2.00, 2.00]"
    drawn = efficiency.draw(Table(found), made)
    assert [axes.get_xlabel() for axes in drawn.axes] == list(efficiency.UNITS.values())


def test_a_method_is_as_soon_as_itself_whatever_the_noise(tmp_path: Path) -> None:
    noisy = [[0, 30, 10, 50, 45, 48], [60, 20, 30, 40, 50, 41], [5, 5, 80, 5, 45, 55]]
    _, made = curves(tmp_path, noisy, noisy)
    assert [each.ratio for each in made.sooner] == [1.0] * 3


def test_who_never_gets_there_has_a_bound(tmp_path: Path) -> None:
    slow = [[0, 10, 20, 40]] * 3
    found, made = curves(tmp_path, [[0, 10, 20, 30], [0, 20, 40, 40], [0, 10, 20, 20]], slow)
    first = made.sooner[0]
    # 6 steps over 6 that were not enough, over 4, and again over 6.
    assert first.ratio == pytest.approx(1.5 ** (1 / 3)) and (first.reached, first.seeds) == (1, 3)
    report_text = "\n".join(report._efficiency(Table(found), lambda name, picture: name))
    assert "| at most 1.14× |" in report_text and "| 1 of 3 |" in report_text


def test_probes_of_different_attacks_are_not_compared(tmp_path: Path) -> None:
    rising = [[0, 10, 20, 40]] * 3
    other = {"set": {"optim.lr": 0.5, "threat.eps": "2/255"}}
    found, made = curves(tmp_path, rising, rising, fast=other)
    assert made.sooner == [] and made.apart == ["fast"]
    assert "No ratio for fast" in "\n".join(report._efficiency(Table(found), lambda name, picture: name))


def test_transfer_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"attack": "fgsm", "limit": 6}
    axes = {"lr": levels("lr", "a", "b")}
    axes["lr"]["b"]["set"]["seed"] = 7  # a model's own seed is not what draws the samples
    made = plan(tmp_path, axes, (str(PLUGIN),), seeds=[3], transfer=asked)
    registry = default_registry().with_files(made.plugins)
    found = Found(made, made.cells({}))
    for cell in found.cells:
        fit.train(load_recipe(cell.unit.source, [*cell.unit.words, "train.steps=1"], registry), registry)
        finish(cell, 0.5)
    told: list[str] = []
    subsets: list[int] = []

    def drawn(labels: torch.Tensor, limit: int, seed: int) -> torch.Tensor:
        subsets.append(seed)
        return stratified(labels, limit, seed)

    monkeypatch.setattr("advdistill.engine.evaluate.stratified", drawn)
    half = replace(found, cells=found.cells[:1])
    report.write(half, lambda what, done, total: told.append(what))
    assert told == [] and "these are not: b · seed 3" in (made.folder / "study.md").read_text()
    written = report.write(found, lambda what, done, total: told.append(what))
    assert {path.name for path in written} >= {"transfer.csv", "transfer.png"}
    assert set(subsets) == {3}
    assert set(told) == {"a → a", "a → b", "b → a", "b → b"}
    with (made.folder / "transfer.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 3
    monkeypatch.setattr(engine, "matrix", lambda *_, **__: pytest.fail("measured again"))
    (matrix,) = transfer.measure(Table(found), lambda *_: None)
    assert matrix.names == ["a", "b"] and 0 <= matrix.attacked("a", "b")[0] <= 1
    with (Path(found.cells[0].unit.folder) / "last.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(BaseException, match=r"measured again|checkpoint|safetensors"):
        transfer.measure(Table(found), lambda *_: None)


def test_other_models_stand_beside_the_cells(tmp_path: Path) -> None:
    def page(others: dict[str, str]) -> str:
        made = study_parts.plan(study_parts.write(tmp_path, seeds=[0], others=others), tmp_path / "home")
        return report.write(run(made, study_parts.Here()), lambda what, *_: told.append(what))[0].read_text()

    told: list[str] = []
    page({})
    made = study_parts.plan(tmp_path / "study.yaml", tmp_path / "home")
    model = f"{made.cells({})[0].unit.folder}/last.safetensors"
    text = page({"itself": model})
    lines = text.splitlines()
    own, beside = (next(line for line in lines if line.startswith(f"| {name} |")) for name in ("small", "itself"))
    assert own.split("|")[2:4] == beside.split("|")[2:4] and set(told) == {"itself"}
    packs = {file: file.stat().st_mtime_ns for file in tmp_path.glob("home/others/*/packs/*/*")}
    assert packs and page({"itself": model}) == text, "it was measured before"
    assert packs == {file: file.stat().st_mtime_ns for file in tmp_path.glob("home/others/*/packs/*/*")}
    assert "*Not measured: there is no checkpoint" in page({"nobody": "no.safetensors"})
