"""The papers' tables on tiny parts.

Guarantees:
- every study in recipes/suites comes to the rows that it should, for the seeds that it says, without a warning; the six
  methods beside each other get the same data, and the three of APD share the runs on ImageNet;
- the eleven data sets of APD's table are taken as its header says: 16 shots, one sentence, the same augmentation;
- every row takes two steps: with tiny models where it names large ones, and a made-up ImageNet or DTD where it wants a
  real one, all else as it stands; losses are finite and something was learned;
- the protocols measure a tiny model on made-up trees, two scopes of each: those whose data are there, all others being
  left out, in the columns that the scope names and in the sentences that it states.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import build as tree_of
from layouts import class_folders
from safetensors.torch import load_file
from shrinking import imagenet_tree, noise_images, reload, run, shorten, terms
from test_recipes import shrink

from advdistill.engine import build
from advdistill.engine.campaign import Campaign
from advdistill.engine.subject import Target, subjects
from advdistill.hooks.registry import default_registry
from advdistill.recipe.resolve import load_recipe
from advdistill.recipe.study import load_study
from advdistill.recipe.suite import load_suite
from advdistill.study.cells import Plan

ROOT = Path(__file__).parents[2]
REGISTRY = default_registry()
SUITES = {path.stem: path for path in sorted(ROOT.glob("recipes/suites/*.yaml"))}
APD = ("APD", "AdvVLP", "AdvMaPLe", "AdvVP", "AdvTP", "FAP")
MMT = (
    "MMT-ARD",
    "MMT-ARD, as its code weighs",
    "MMT-ARD, LoRA",
    "robust teacher alone",
    "TeCoA",
    "FARE",
    "PMG-AFT",
)
OTHERS = {
    "Caltech101": "caltech101", "OxfordPets": "oxford-pets", "StanfordCars": "stanford-cars",
    "Flowers102": "oxford-flowers", "Food101": "food101", "FGVCAircraft": "fgvc-aircraft", "SUN397": "sun397",
    "DTD": "dtd", "EuroSAT": "eurosat", "UCF101": "ucf101",
}  # fmt: skip
"""Level of APD's table -> data set."""
ROWS = {
    "apd_cross_dataset": APD,
    "apd_domain_shift": APD,
    "apd_few_shot": tuple(f"{data} · {method}" for data in ("ImageNet", *OTHERS) for method in APD),
    "mmt_ard_zero_shot": MMT,
}
TRAINED = [
    *(pytest.param("apd_few_shot", f"DTD · {method}", id=method) for method in APD),
    *(pytest.param("mmt_ard_zero_shot", row, id=row) for row in MMT),
    *(pytest.param("apd_cross_dataset", method, id=f"ImageNet {method}") for method in APD),
]
"""Each run once: the other rows are the same runs, or differ in the data set alone."""


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    """What each study comes to."""
    home = tmp_path_factory.mktemp("plans")
    return {name: Plan(load_study(path, REGISTRY), REGISTRY, home) for name, path in SUITES.items()}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a made-up ImageNet of three classes, eight images each."""
    classes = {name: noise_images(8, seed) for seed, name in enumerate(["tench", "great white shark", "cock"])}
    root, names = imagenet_tree(tmp_path_factory.mktemp("imagenet"), classes, test=2)
    return {"root": str(root), "classnames": str(names), "size": 32, "val_per_class": 2}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of made-up data sets: DTD, Caltech101, ImageNet-V2 and ImageNet-A."""
    home = tmp_path_factory.mktemp("sets")
    tree_of("dtd", home)
    tree_of("caltech101", home)
    for folder, classes in {
        "imagenetv2/imagenetv2-matched-frequency-format-val": ["0", "2", "7"],
        "imagenet-adversarial/imagenet-a": ["n01440764", "n01484850", "n01514668"],
    }.items():
        (home / folder).parent.mkdir()
        class_folders(home / folder, classes, 2)
    (home / "three.txt").write_text("n01440764 tench\nn01484850 great white shark\nn01514668 cock\n")
    return home


# --- what they come to -------------------------------------------------------------------------------------------


def test_they_come_to_these_rows(plans: dict[str, Plan]) -> None:
    assert {name: tuple(row.name for row in plan.rows) for name, plan in plans.items()} == ROWS
    assert {name: plan.study.model.seeds for name, plan in plans.items()} == {
        name: [0, 1, 2] if name.startswith("apd") else [0] for name in ROWS
    }
    assert not any(row.recipe.warnings or row.tuned for plan in plans.values() for row in plan.rows)
    for plan in plans.values():
        assert plan.study.path.read_text().startswith("# "), "a study says first what it is"
        assert plan.study.model.main in ("", "ImageNet: AutoAttack") and not plan.needs()
        data = {json.dumps(row.recipe.data.tree()) for row in plan.rows}
        assert len(data) == len(plan.study.model.axes.get("data", {"one": None}))


def test_runs_on_imagenet_are_shared(plans: dict[str, Plan]) -> None:
    def runs(name: str, before: str = "") -> set[tuple[str, int, str]]:
        cells = plans[name].cells({})
        return {
            (cell.row.name.removeprefix(before), cell.seed, cell.unit.folder)
            for cell in cells
            if cell.row.name.startswith(before)
        }

    shared = runs("apd_cross_dataset")
    assert len(shared) == 18 and shared == runs("apd_domain_shift") == runs("apd_few_shot", "ImageNet · ")
    assert len({folder for _, _, folder in runs("apd_few_shot")}) == 11 * 6 * 3


def test_the_data_are_what_the_header_says(plans: dict[str, Plan]) -> None:
    rows = {row.levels["data"]: row for row in plans["apd_few_shot"].rows}
    assert {level: row.recipe.data.use for level, row in rows.items()} == {"ImageNet": "imagenet", **OTHERS}
    first = rows["ImageNet"].recipe.data.tree()
    assert (first["shots"], first["shots_seed"]) == (16, 1)
    for row in rows.values():
        data = row.recipe.data.tree()
        same = ("shots", "shots_seed", "augment", "templates", "prompts", "size", "resize", "half", "sealed", "root")
        assert {key: data[key] for key in same} == {key: first[key] for key in same}
    assert first["templates"] == ["a photo of a {}."] and first["augment"] == "crop-flip"


def test_scopes_are_what_the_headers_say() -> None:
    apd, across, shift, zero = (
        load_suite(name, REGISTRY) for name in ("apd", "apd-cross-dataset", "apd-domain-shift", "mmt-ard-zero-shot")
    )
    assert {name: block.use for name, block in across.data.items()} == OTHERS
    assert list(across.model.scopes) == ["ImageNet", *OTHERS] and not apd.model.scopes
    assert [block.use for block in shift.data.values()] == [
        "imagenet-v2", "imagenet-sketch", "imagenet-a", "imagenet-r"
    ]  # fmt: skip
    for suite in (across, shift):
        assert suite.tree["protocols"] == apd.tree["protocols"] and suite.model.threat == apd.model.threat
        assert not any(block.config.model_fields_set & {"templates", "prompts"} for block in suite.data.values())
    assert len(zero.data) == 13 and zero.model.limit == 1000
    assert {block.config.prompts for block in zero.data.values()} == {"ensemble"}  # type: ignore[attr-defined]
    sizes = {name: block.config.size for name, block in zero.data.items()}  # type: ignore[attr-defined]
    assert {name for name, size in sizes.items() if not size} == {"cifar10", "stl10", "cifar100", "pcam"}
    assert {size for size in sizes.values() if size} == {224}
    assert [name for name, scope in zero.model.scopes.items() if scope.columns == ["clean", "apgd-ce"]] == ["pcam"]


# --- two steps of each -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suite", "row"), TRAINED)
def test_it_takes_two_steps_on_tiny_parts(
    suite: str, row: str, plans: dict[str, Plan], imagenet: dict[str, Any], sets: Path, tmp_path: Path
) -> None:
    found = next(each for each in plans[suite].rows if each.name == row)
    tree = json.loads(json.dumps(dict(found.recipe.tree)))
    shorten(tree, tmp_path, batch=6, samples=4, attack_steps=2)
    shrink(tree, imagenet, {})
    if tree["student"].get("coupling") == "text-to-visual":  # as many sources as there are images of them
        tree["student"]["visual"]["depth"] = tree["student"]["text"]["depth"]
    if tree["data"]["use"] != "imagenet":
        tree["data"] |= {"root": str(sets), "size": 32, "shots": 2}
    recipe = reload(tree, tmp_path)
    run(recipe)

    folder = tmp_path / recipe.name
    steps = terms(folder)
    assert len(steps) == 2 and all(step and all(map(math.isfinite, step.values())) for step in steps)
    learned = load_file(folder / "last.safetensors")
    before = build.model(REGISTRY, recipe.student).learned()
    # As a file of half precision would hold them: else rounding alone would pass for learning.
    assert any(not torch.equal(tensor.half(), learned[name].half()) for name, tensor in before.items())
    assert all(tensor.isfinite().all() for tensor in learned.values())
    assert (folder / "results.json").is_file()


# --- measured ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def target(imagenet: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Target:
    """The demo's small model, its tower tuned for two steps on the made-up ImageNet."""
    folder = tmp_path_factory.mktemp("target")
    tree = json.loads(json.dumps(dict(load_recipe("tecoa_digits").tree)))
    shorten(tree, folder, batch=6, samples=4, attack_steps=2)
    own = {"use": "imagenet", "templates": ["this is a photo of a {}"], **imagenet}
    shown = {"protocols": [], "undefended": False, "teachers": False, "select": "none"}
    tree |= {"data": own, "report": [{"use": "jsonl"}], "evaluate": {**tree["evaluate"], **shown}}
    recipe = reload(tree, folder)
    run(recipe)
    return Target(str(folder / recipe.name / "last.safetensors"), REGISTRY, "cpu")


WEAK = [
    "protocols.PGD-100.attack.steps=2",
    "protocols.AutoAttack.attack.version=custom",
    "protocols.AutoAttack.attack.attacks=[{use: apgd, steps: 2}, {use: square, queries: 2}]",
    "protocols.TI-FGSM from base.attack.steps=2",
]
PAIR = "{use: autoattack, version: custom, attacks: [{use: apgd, steps: 2}, {use: square, queries: 2}]}"
COLUMNS = ["clean", "PGD-100", "AutoAttack", "TI-FGSM from base"]
MEASURED: dict[str, tuple[list[str], dict[str, tuple[list[str], int]]]] = {
    "apd": (WEAK, {"": (COLUMNS, 3)}),
    "apd-cross-dataset": (
        [*WEAK, *(f"scopes.{name}.data.size=32" for name in ("DTD", "Caltech101"))],
        {"ImageNet": (COLUMNS, 3), "Caltech101": (COLUMNS, 6), "DTD": (COLUMNS, 3)},
    ),
    "apd-domain-shift": (
        [
            *WEAK,
            *(f"scopes.{name}.data.size=32" for name in ("ImageNet-V2", "ImageNet-A")),
            *(f"scopes.{name}.data.classnames={{sets}}/three.txt" for name in ("ImageNet-V2", "ImageNet-A")),
        ],
        {"ImageNet": (COLUMNS, 3), "ImageNet-V2": (COLUMNS, 3), "ImageNet-A": (COLUMNS, 3)},
    ),
    "mmt-ard-zero-shot": (
        [
            "protocols.apgd-ce.attack.steps=2",
            f"protocols.apgd-ce+apgd-t.attack={PAIR}",
            *(f"scopes.{name}.data.size=32" for name in ("dtd", "caltech101")),
        ],
        {"caltech101": (["clean", "apgd-ce+apgd-t"], 6), "dtd": (["clean", "apgd-ce+apgd-t"], 3)},
    ),
}
"""Protocol -> what is weaker in it, and what is measured: scope -> columns, classes."""


@pytest.mark.parametrize("name", MEASURED)
def test_its_protocol_measures(
    name: str, target: Target, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVDISTILL_DATA", str(sets))
    words, expected = MEASURED[name]
    suite = load_suite(name, REGISTRY, ["limit=4", *(word.replace("{sets}", str(sets)) for word in words)])
    with Campaign(tmp_path / "out", target, suite, {}, overwrite=False) as campaign:
        found, _ = campaign.run(list(subjects(target, suite, REGISTRY)), REGISTRY, batch_size=4)
    said: dict[str, tuple[list[str], int]] = {}
    for column in found.columns:
        said.setdefault(column.scope, ([], column.statement["class count"]))[0].append(column.name)
        assert len(column.outcome) == 4 and column.statement["split"]["name"] == "test"
        sentences = column.statement["templates"]
        stated = name == "mmt-ard-zero-shot"
        assert len(sentences) > 1 if stated else sentences == ["this is a photo of a {}"]
    assert said == expected
    assert (tmp_path / "out" / "card.md").is_file()
    scopes = [f"manifest-{scope}.json" if scope else "manifest.json" for scope in expected]
    assert sorted(path.name for path in (tmp_path / "out").glob("manifest*")) == sorted(scopes)
