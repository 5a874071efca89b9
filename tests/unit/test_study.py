"""Studies: what they come to, and how they go on.

Guarantees:
- a cell is a row under a seed: its words, with the seeds of run, draw and initialisation moved by it, test data sealed;
- a run's folder depends neither on where the study or its plugins lie, nor on the current folder, nor on the home; it
  does on every setting, on the content of files and of plugins;
- a study that is extended, by a level or a seed, keeps what is finished; one whose recipe has changed keeps it, too,
  names the cells and what changed in them, and runs them anew only when told to;
- tuning looks at validation data, the best configuration is what is run, and it is the same when trials are found
  finished; a row with a trial that failed is missing, named, and tried again by the next call;
- of a tuned row whose recipe has changed this is told before anything is tried anew; what was finished is still known
  when a later call has fewer seeds, or a trial of its row fails;
- a trial that diverges loses to all others, and is not tried again; a cell that diverges has failed;
- a unit that fails loses no other, and says why, there and in its folder, with its traceback in the log;
- a measurement that was killed as it began goes on;
- damaged notes are told and written anew; what they are about is found;
- all that is wrong with a study is told at its place in the file, before anything runs.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import study_parts
from study_parts import Heard, Here, cells, plan, write

from advdistill.errors import RecipeError, RunError, UsageError
from advdistill.recipe.loader import shipped_dir
from advdistill.recipe.resolve import load_recipe
from advdistill.recipe.study import FOLDER
from advdistill.study.cells import LOG
from advdistill.study.notes import notes
from advdistill.study.run import chosen, collect, run, task, trials
from advdistill.study.table import Table

TUNED: dict[str, Any] = {"axes": {"rate": {"small": {"tune": {"optim.lr": [1e-9, 0.05]}}}}}


def test_a_cell_is_a_row_under_a_seed(tmp_path: Path) -> None:
    recipe = {"seed": 3, "data": {"use": "digits", "shots": 2, "shots_seed": 5}}
    made = plan(write(tmp_path, recipe=recipe, set={"train.steps": 2}), tmp_path, "optim.weight_decay=0.25")
    assert [cell.unit.title for cell in made.cells({})] == [
        "small · seed 0", "small · seed 1", "large · seed 0", "large · seed 1"
    ]  # fmt: skip
    unit = made.cells({})[3].unit
    found = load_recipe(unit.source, unit.words)
    assert (found.seed, found.data.tree()["shots_seed"], found.data.tree()["sealed"]) == (4, 6, True)
    assert (found.optim.lr, found.optim.weight_decay, found.train.steps) == (0.1, 0.25, 2)
    assert found.evaluate.protocols == () and found.save.dir == unit.folder


def test_where_things_lie_changes_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "elsewhere" / "there"
    here.mkdir()
    write(here)
    shutil.copytree(here, there)
    for name in ("toy_plugin.py", "stumbling_plugin.py"):
        shutil.copy(Path(study_parts.__file__).with_name(name), there)
    text = (there / "toy.yaml").read_text().replace(str(Path(study_parts.__file__).parent) + "/", "")
    (there / "toy.yaml").write_text(text)  # its plugins lie beside it
    monkeypatch.chdir(here)
    (here / "linf").touch()  # no setting that says linf means this file
    first = cells(plan(Path("study.yaml"), Path("runs")))
    monkeypatch.chdir(tmp_path)
    assert cells(plan(there / "study.yaml", tmp_path / "other")) == first
    plugin = there / "stumbling_plugin.py"
    plugin.write_text(plugin.read_text() + "\n# changed\n")
    assert not set(cells(plan(there / "study.yaml", tmp_path / "other")).values()) & set(first.values())


def test_a_file_counts_by_its_content(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    student = {"student": {"use": "clip-tune", "model": "advdistill_demo:small.json", "weights": str(weights)}}
    study = write(tmp_path, recipe=student)
    found = []
    for content in (b"", b"one", b"two"):
        weights.write_bytes(content)
        found.append(set(cells(plan(study, tmp_path)).values()))
    assert not found[1] & found[2] and not found[0] & found[1]


def test_a_study_that_grows_keeps_what_is_finished(tmp_path: Path) -> None:
    first = Here()
    found = run(plan(write(tmp_path), tmp_path), first)
    assert len(found.cells) == len(first.did) == 4 and not found.failed and not found.missing
    grown = write(tmp_path, seeds=[0, 1, 5], axes={"rate": {"larger": {"set": {"optim.lr": 0.2}}}})
    second = Here()
    found = run(plan(grown, tmp_path), second)
    assert len(found.cells) == 9
    assert sorted(second.did) == [
        "large · seed 5", "larger · seed 0", "larger · seed 1", "larger · seed 5", "small · seed 5"
    ]  # fmt: skip


def test_a_changed_recipe_is_named_and_loses_nothing(tmp_path: Path) -> None:
    study = write(tmp_path)
    run(plan(study, tmp_path), Here(refuse="large · seed 1"))
    old = run(plan(study, tmp_path, "seeds=[0]"), Here()).cells[1].unit
    write(tmp_path, axes={"rate": {"large": {"set": {"optim.lr": 0.3}}}})
    with pytest.raises(UsageError) as error:
        run(plan(study, tmp_path), Here())
    assert "1 finished cells are not the runs" in error.value.message
    assert error.value.message.endswith("  large · seed 0: optim.lr 0.1 -> 0.3")
    assert old.finished
    with pytest.raises(UsageError):  # a refusal changes nothing
        run(plan(study, tmp_path), Here())
    who = Here()
    found = run(plan(study, tmp_path), who, accept_changes=True)
    assert who.did == ["large · seed 0", "large · seed 1"] and len(found.cells) == 4 and old.finished
    assert not Here().did and len(run(plan(study, tmp_path), Here()).cells) == 4


def test_the_best_configuration_is_run(tmp_path: Path) -> None:
    study = write(tmp_path, **TUNED)
    who, heard = Here(), Heard()
    found = run(plan(study, tmp_path), who, heard)
    assert who.did[:2] == ["small · optim.lr=1e-09", "small · optim.lr=0.05"]
    assert heard.stages == [("trials", 2, 0), ("cells", 4, 0)]
    scores = found.chosen["small"].scores
    assert found.chosen["small"].words == max(scores, key=lambda words: scores[words])
    lr = {cell.seed: load_recipe(cell.unit.source, cell.unit.words).optim.lr for cell in found.cells[:2]}
    assert set(lr.values()) == {float(found.chosen["small"].words[0].partition("=")[2])}
    for unit in trials(plan(study, tmp_path)):
        assert unit.facts()["split"] == "val"
    again = Here()
    assert run(plan(study, tmp_path), again).chosen == found.chosen and not again.did


def test_a_failed_trial_costs_its_row_and_is_tried_again(tmp_path: Path) -> None:
    study = write(tmp_path, **TUNED)
    found = run(plan(study, tmp_path), Here(refuse="lr=0.05"))
    assert found.failed == {"small · optim.lr=0.05": "it was refused"} and found.missing == ["small"]
    assert [cell.row.name for cell in found.cells] == ["large", "large"]
    with pytest.raises(RunError, match=r"small: 1 of its trials are not finished, such as small · optim\.lr=0\.05"):
        task(plan(study, tmp_path), "cells:0")
    assert task(plan(study, tmp_path), "cells:2").title == "large · seed 0"
    who = Here()
    found = run(plan(study, tmp_path), who)
    assert who.did == ["small · optim.lr=0.05", "small · seed 0", "small · seed 1"] and not found.missing


def test_a_changed_recipe_is_named_before_it_is_tuned(tmp_path: Path) -> None:
    study = write(tmp_path, **TUNED)
    won = run(plan(study, tmp_path), Here()).chosen["small"].words
    assert len(run(plan(study, tmp_path, "seeds=[0]"), Here()).cells) == 2
    write(tmp_path, **TUNED, set={"optim.weight_decay": 0.5})
    who = Here(refuse="small · optim")
    for _ in range(2):
        with pytest.raises(UsageError) as error:
            run(plan(study, tmp_path), who)
        assert not who.did and "4 finished cells are not the runs" in error.value.message
        assert "small · seed 1: optim.weight_decay" in error.value.message and "optim.lr" not in error.value.message
    run(plan(study, tmp_path), who, accept_changes=True)  # its trials fail
    assert len(who.did) == 4 and won
    with pytest.raises(UsageError, match="2 finished cells are not the runs"):
        run(plan(study, tmp_path), Here())


def test_a_trial_that_diverges_loses(tmp_path: Path) -> None:
    how = {"strategy.how": ["diverges", "nothing"]}
    stumbling = {"set": {"strategy": {"use": "stumbling"}}, "tune": how}
    study = write(tmp_path, axes={"rate": {"small": stumbling}}, seeds=[0])
    found = run(plan(study, tmp_path), Here())
    assert found.chosen["small"].words == ('strategy.how="nothing"',) and not found.failed and len(found.cells) == 2
    assert found.chosen["small"].scores['strategy.how="diverges"',] is None
    lost = trials(plan(study, tmp_path))[0]
    assert lost.facts()["diverged"] == "not finite at step 2: loss" and "accuracy" not in lost.facts()
    assert '1 diverged: `strategy.how="diverges"`' in "\n".join(notes(Table(found)))
    again = Here()
    assert run(plan(study, tmp_path), again).chosen == found.chosen and not again.did
    stumbling["set"]["strategy"]["step"] = 2
    stumbling["tune"] = {"strategy.how": ["diverges"], "optim.lr": [1e-9, 0.05]}
    found = run(plan(write(tmp_path, "all", axes={"rate": {"small": stumbling}}, seeds=[0]), tmp_path), Here())
    assert found.failed["small · seed 0"].startswith("not finite at step 3: loss")
    assert "all diverged; the first is taken" in "\n".join(notes(Table(found)))


@pytest.mark.parametrize(
    ("how", "why"), [("error", "an image is broken: mend it"), ("bug", "ZeroDivisionError"), ("exit", "SystemExit: 3")]
)
def test_a_cell_that_fails_says_why(tmp_path: Path, how: str, why: str) -> None:
    axes = {"axes": {"rate": {"large": {"set": {"strategy": {"use": "stumbling", "how": how}}}}}}
    study = write(tmp_path, seeds=[0], **axes)
    found = run(plan(study, tmp_path), Here())
    assert [cell.row.name for cell in found.cells] == ["small"]
    assert list(found.failed) == ["large · seed 0"] and why in found.failed["large · seed 0"]
    unit = plan(study, tmp_path).cells({})[1].unit
    assert unit.failure() == found.failed["large · seed 0"] == collect(plan(study, tmp_path)).failed[unit.title]
    if how != "error":
        assert "Traceback" in (Path(unit.folder) / LOG).read_text()
    said = json.loads((tmp_path / "study" / "study.json").read_text())["cells"]["large · seed 0"]
    assert why in said["failed"] and not said["finished"]


def test_damaged_notes_are_told_and_mended(tmp_path: Path) -> None:
    study, heard = write(tmp_path, seeds=[0]), Heard()
    unit = run(plan(study, tmp_path), Here()).cells[0].unit
    note = Path(unit.folder) / unit.measured / "unit.json"
    before = json.loads(note.read_text())
    for text in ("{", "[1]", ""):
        note.write_text(text)
        (tmp_path / "study" / "study.json").write_text(text)
        who = Here()
        found = run(plan(study, tmp_path), who, heard)
        assert who.did == [unit.title] and len(found.cells) == 2 and "is damaged" in heard.warnings[-1]
        assert json.loads(note.read_text())["accuracy"] == before["accuracy"]
    assert len(heard.warnings) == 3
    told = (Path(unit.folder) / "metrics.jsonl").read_text()
    assert told.count('"event": "run_started"') == 1  # measured again, not trained again


def test_who_was_killed_as_it_began_to_measure_goes_on(tmp_path: Path) -> None:
    study = write(tmp_path, seeds=[0])
    for cell in plan(study, tmp_path).cells({}):
        folder = Path(cell.unit.folder) / cell.unit.measured
        folder.mkdir(parents=True)
        (folder / ".lock").touch()  # all that there was by then
    found = run(plan(study, tmp_path), Here())
    assert len(found.cells) == 2 and not found.failed


def test_what_the_others_start_from_comes_first(tmp_path: Path) -> None:
    study = write(tmp_path, needs=["base.yaml"], seeds=[0])
    study_parts.run_parts.write(tmp_path, "base", train={"steps": 1})
    who = Here(refuse="base")
    with pytest.raises(RunError, match="base, which the others start from: it was refused"):
        run(plan(study, tmp_path), who)
    assert who.did == ["base"]
    who = Here()
    run(plan(study, tmp_path), who)
    assert who.did == ["base", "small · seed 0", "large · seed 0"]
    assert task(plan(study, tmp_path), "needs:0").finished
    heard = Heard()
    run(plan(study, tmp_path), Here(), heard)
    assert not heard.warnings
    study_parts.run_parts.write(tmp_path, "base", train={"steps": 2})
    run(plan(study, tmp_path), Here(), heard)
    assert "holds another run of base, and is taken as it is: train.steps 1 -> 2" in heard.warnings[0]


def test_a_home_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.touch()
    with pytest.raises(RunError, match="cannot use"):
        run(plan(write(tmp_path), home), Here())


@pytest.mark.parametrize(
    ("changes", "words", "told"),
    [
        ({"axes": {"rate": {"large": {"set": {"optim.lrr": 1}}}}}, (),
         ["study.yaml:16:9: optim.lrr: unknown key; did you mean 'lr'? (in large)", "optim.lrr: 1"]),
        ({"set": {"trian.steps": 2}}, (), ["trian: unknown key; did you mean 'train'? (in every row)", "study.yaml:"]),
        ({}, ("trian.steps=2",), ["override: trian: unknown key; did you mean 'train'? (in every row)"]),
        ({"axes": {"rate": {"small": {"tune": {"optim.lr": [1, -1]}}}}}, (), ["study.yaml:", "greater than 0"]),
        ({"axes": {"rate": {"small": {"tune": {"optim.lr": [1]}}}}}, (),
         ["axes.rate.small.tune: offers 1 configurations, and tuning.budget is 2"]),
        ({"axes": {"rate": {"large": {"set": {"optim.lr": 0.01}}}}}, (),
         ["large and small are the same run: nothing that is set tells them apart", "study.yaml:"]),
        ({"axes": {"other": {"one": {"recipe": "toy"}}, "rate": {"small": {"recipe": "toy"}}}}, (),
         ["two axes name a recipe: small · one"]),
        ({"axes": {"rate": {"small": {"recipe": "quikstart"}}}}, (),
         ["axes.rate.small.recipe: there is no recipe 'quikstart'; did you mean 'quickstart'?"]),
        ({"needs": ["quikstart"]}, (), ["needs.0: there is no recipe 'quikstart'; did you mean 'quickstart'?"]),
        ({"protocol": "standart"}, (), ["protocol: there is no file 'standart' of protocols; did you mean 'standard'"]),
        ({"protocol": "val.yaml"}, (), ["protocol: val.yaml looks at val data, and this one must look at test data"]),
        ({**TUNED, "tuning": {"protocol": "suite.yaml"}}, (),
         ["tuning.protocol: suite.yaml looks at test data, and this one must look at val data"]),
        ({"against": {"rat": "small"}}, (), ["against.rat: there is no axis 'rat'; did you mean 'rate'?"]),
        ({"against": {"rate": "smal"}}, (), ["against.rate: rate has no level 'smal'; did you mean 'small'?"]),
        ({"against": {"rate": "small"}}, (), ["seeds: 2 are too few for a comparison: it takes 3"]),
        ({"seeds": [1, 1]}, (), ["seeds: a seed stands twice"]),
        ({"seeds": []}, (), ["seeds: "]),
        ({"axes": {"rate": {"a · b": {"set": {"optim.lr": 0.2}}}}}, (), ["axes.rate.a · b: '·' joins the levels"]),
        ({}, ("seeds=[1000]",), ["tuning.seed: 1000 is one of the study's seeds"]),
        ({"axes": {"rate": None}}, (), ["axes: "]),
        ({"axes": {"rate": {"small": None, "large": None}}}, (), ["axes.rate: "]),
        ({"axis": {}}, (), ["axis: unknown key; did you mean 'axes'?"]),
        ({"axes": {"rate": {"small": {"sets": {}}}}}, (), ["unknown key; did you mean 'set'?"]),
        ({"extends": "study.yaml"}, (), ["a recipe cannot extend itself"]),
        ({"axes": None, "strategy": {}}, (), ["a study has none: this is a recipe"]),
        ({}, ('recipe=""',), ["axes.rate.small: has no recipe"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_at_its_place(
    tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...], told: list[str]
) -> None:
    study = write(tmp_path, **changes)
    with pytest.raises(RecipeError) as error:
        plan(study, tmp_path, *words)
    for text in told:
        assert text in error.value.message
    assert error.value.exit_code == 3


def test_a_study_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="this is a study") as error:
        load_recipe(write(tmp_path))
    assert "advdistill study" in error.value.hint


@pytest.mark.parametrize(
    ("name", "told"), [("cell:0", "did you mean 'cells'?"), ("cells:4", "cells:0 to cells:3"), ("needs:0", "no needs")]
)
def test_a_task_that_is_not_there(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        task(plan(write(tmp_path), tmp_path), name)
    assert told in error.value.message


SHIPPED = sorted(file for folder in FOLDER for file in (shipped_dir() / folder).glob("*.yaml"))


def test_a_study_ships_for_every_table() -> None:
    assert [path.parent.name for path in SHIPPED].count("studies") == 15
    assert [path.stem for path in SHIPPED if path.parent.name == "suites"] == [
        "apd_cross_dataset", "apd_domain_shift", "apd_few_shot", "mmt_ard_zero_shot"
    ]  # fmt: skip
    assert len(SHIPPED) == 19


@pytest.mark.parametrize("study", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_come_to_cells_that_differ(tmp_path: Path, study: Path) -> None:
    made = plan(study, tmp_path)
    assert len(set(cells(made).values())) == len(made.rows) * len(made.study.model.seeds)
    assert not chosen(made)
    for row in made.rows:
        assert row.recipe.data.tree()["sealed"] and not row.recipe.evaluate.protocols
        assert len(row.configurations) == (made.study.model.tuning.budget if row.tuned else 1)
