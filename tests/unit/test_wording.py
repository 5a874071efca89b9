"""In which sentences a suite's classes are asked for, and what an evaluation says of them.

Guarantees:
- templates that a scope's data state, as `templates` or as `prompts`, reach a checkpoint whose tower was tuned: they
  stand in its statements, the attacked model and the judge use them, and so does the `base` that images are made on;
- a scope that states none has the checkpoint's own, or of an undefended model its data's, whichever scope came before;
- all scopes are built before the first is measured, and each says the same as alone; the model keeps its own templates;
- they do not reach a model with text prompts of its own, of which a note tells: prompts, a mixture of them, and what
  stands behind a defence; they do reach one whose prompts are visual;
- a checkpoint's own data are asked for as it was trained, though its recipe states every setting;
- the suite that an evaluation keeps says as much as the one that it was made from, read again;
- statements and cards say how many classes an image is told from, which changes no key;
- an evaluation's folder holds `manifest.json`, or `manifest-SCOPE.json` for each scope.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import run_parts
import torch
import yaml
from advdistill_testtime import configs
from advdistill_testtime.ttc import TTC
from clip_parts import Parts, settings
from PIL import Image
from torch import Tensor

from advdistill import ClassSet
from advdistill.engine import build
from advdistill.engine.campaign import Campaign
from advdistill.engine.card import card, markdown
from advdistill.engine.checkpoint import open_checkpoint
from advdistill.engine.outcomes import Column, Evaluation
from advdistill.engine.protocol import key
from advdistill.engine.subject import Subject, Target, subjects
from advdistill.hooks.registry import default_registry
from advdistill.recipe.suite import Suite, load_suite

REGISTRY = default_registry()
TINY = settings({"layers": 1, "width": 16, "head_width": 8, "image_size": 16}, {"layers": 1, "width": 16})
TRAINED, TOLD, USUAL = ("one {}.",), ("a drawing of a {} on a wall",), ("a photo of a {}.",)
NAMES = ("ant", "bee", "wild cat")


@dataclass(frozen=True)
class Scene:
    """A tree of pictures, a tiny CLIP on disk, and who was trained from it."""

    folder: Path
    photos: Path
    tiny: Parts

    def trained(self, name: str, student: dict[str, Any]) -> Target:
        """A student after two steps, asked in `TRAINED`."""
        path = self.folder / name / "last.safetensors"
        if not path.exists():
            data = {"use": "folder", "root": str(self.photos), "size": 16, "templates": list(TRAINED)}
            made = run_parts.recipe(
                self.folder, name, plugins=[], data=data, student={**student, **self.tiny.source},
                attack={"use": "pgd"}, train={"steps": 2, "batch_size": 6}, evaluate={"protocols": []},
            )  # fmt: skip
            run_parts.train(made)
        return Target(str(path), REGISTRY, "cpu")

    @property
    def tuned(self) -> Target:
        return self.trained("tuned", {"use": "clip-tune", "tower": "visual"})

    def suite(self, name: str, scopes: dict[str, dict[str, Any] | None], **changes: Any) -> Suite:
        """Scope -> what its data state beside the tree; None: it has none of its own."""
        stated = {
            scope: {"data": {"use": "folder", "root": str(self.photos), "size": 16, **data}} if data is not None else {}
            for scope, data in scopes.items()
        }
        protocols = {
            "clean": {},
            "attacked": {"attack": {"use": "pgd", "steps": 2}},
            "from base": {"attack": {"use": "pgd", "steps": 2}, "source": "base"},
        }
        tree = {"advdistill": 1, "threat": {"eps": "8/255"}, "protocols": protocols, "scopes": stated, **changes}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return load_suite(path, REGISTRY)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("wording")
    generator = torch.Generator().manual_seed(0)
    for name in ("ant", "bee", "wild_cat"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = torch.randint(256, (16, 16, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / "photos" / name / f"{number}.png")
    return Scene(folder, folder / "photos", Parts(folder, TINY))


MIXED: dict[str, dict[str, Any] | None] = {"told": {"templates": list(TOLD)}, "untold": {}, "own": None}


def pixels() -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def said(model: Any, templates: tuple[str, ...]) -> Tensor:
    """What a model says of `pixels` when it is asked in these sentences."""
    model.bind(ClassSet(NAMES, templates))
    with torch.no_grad(), model.evaluated():
        found: Tensor = model.predict(pixels(), model.prepare(ClassSet(NAMES, templates)))
    return found


def deployed(subject: Subject) -> Tensor:
    with torch.no_grad(), subject.participant.deployed():
        return subject.participant.logits(pixels())


def columns(subject: Subject) -> list[Column]:
    return list(subject.bench().columns(subject.protocols, scope=subject.scope))


def built(target: Target, suite: Suite) -> dict[str, Subject]:
    """All scopes, before any is measured."""
    return {each.scope: each for each in subjects(target, suite, REGISTRY, eps=8 / 255)}


def asked(scopes: dict[str, Subject]) -> dict[str, tuple[str, ...]]:
    return {name: each.participant.classes.templates for name, each in scopes.items()}


# --- who is asked how --------------------------------------------------------------------------------------------


def test_a_tuned_tower_is_asked_in_a_scopes_sentences(scene: Scene) -> None:
    target = scene.tuned
    scopes = built(target, scene.suite("mixed", MIXED))
    assert asked(scopes) == {"told": TOLD, "untold": TRAINED, "own": TRAINED}
    assert target.model.templates == TRAINED and not any(each.notes for each in scopes.values())
    fresh = open_checkpoint(target.name, REGISTRY).model
    base = scene.tuned.undefended()
    assert not torch.equal(said(fresh, TOLD), said(fresh, TRAINED))
    for name, templates in asked(scopes).items():
        subject = scopes[name]
        bench = subject.bench()
        torch.testing.assert_close(deployed(subject), said(fresh, templates))
        assert bench.judge is not None
        labels = torch.tensor([0, 1, 2, 0])
        expected = -said(fresh, templates).double().log_softmax(1)[range(4), labels]
        torch.testing.assert_close(bench.judge.look(pixels(), labels).cross_entropy, expected, rtol=1e-5, atol=1e-5)
        assert bench.seen is not None
        with torch.no_grad():
            torch.testing.assert_close(bench.seen("base").logits(pixels()), said(base, templates))
        for protocol in subject.protocols:
            assert bench.statement(protocol)["templates"] == list(templates)
    assert target.model.templates == TRAINED and target.undefended().templates == TRAINED


def test_no_scope_leaks_into_the_next(scene: Scene) -> None:
    together = {name: columns(each) for name, each in built(scene.tuned, scene.suite("mixed", MIXED)).items()}
    for name, data in MIXED.items():
        alone = columns(built(scene.tuned, scene.suite("alone", {name: data}))[name])
        for one, other in zip(together[name], alone, strict=True):
            assert one.statement == other.statement and one.outcome.right.equal(other.outcome.right)
            assert one.outcome.margin.equal(other.outcome.margin)
    keys = {name: [column.statement["key"] for column in found] for name, found in together.items()}
    assert keys["untold"] == keys["own"] and not set(keys["told"]) & set(keys["own"])


@pytest.mark.parametrize("own", [(), ("its own {}",)])
def test_an_undefended_model_is_asked_as_each_scope_says(scene: Scene, own: tuple[str, ...]) -> None:
    target = Target(f"{scene.tiny.path}@{scene.tiny.weights}", REGISTRY, "cpu")
    target.model.templates = own
    scopes = built(target, scene.suite("bare", {"told": MIXED["told"], "untold": {}, "again": MIXED["told"]}))
    assert asked(scopes) == {"told": TOLD, "untold": own or USUAL, "again": TOLD}
    for name in ("again", "told", "untold"):
        assert [c.statement["templates"] for c in columns(scopes[name])] == 2 * [list(asked(scopes)[name])]
    assert target.model.templates == own
    beside = subjects(target, scene.suite("mixed", MIXED), REGISTRY, data_of=scene.tuned)
    assert asked({each.scope: each for each in beside}) == {
        "told": TOLD, "untold": own or USUAL, "own": own or TRAINED
    }  # fmt: skip


def test_text_prompts_stand_in_the_place_of_sentences(scene: Scene) -> None:
    text = {"tokens": 2, "depth": 1, "init": ""}
    prompts = scene.trained("prompts", {"use": "clip-prompts", "text": text, "visual": {"tokens": 0}})
    mixture = scene.trained("mixture", {"use": "clip-moapt", "prompts": 2, "tokens": 2})
    for target in (prompts, mixture):
        scopes = built(target, scene.suite("mixed", MIXED))
        assert set(asked(scopes).values()) == {TRAINED}
        (note,) = scopes["told"].notes
        assert note == f"{target.name} has prompts of its own, which stand in the place of told's templates"
        assert not scopes["untold"].notes and not scopes["own"].notes
    defence = TTC.from_config(configs.TTC(checkpoint=prompts.name))
    assert defence.own_words and not TTC.from_config(configs.TTC(checkpoint=scene.tuned.name)).own_words


def test_visual_prompts_are_asked_in_a_scopes_sentences(scene: Scene) -> None:
    visual = {"tokens": 2, "depth": 1}
    target = scene.trained("visual", {"use": "clip-prompts", "text": {"tokens": 0}, "visual": visual})
    scopes = built(target, scene.suite("mixed", MIXED))
    assert asked(scopes) == {"told": TOLD, "untold": TRAINED, "own": TRAINED} and not scopes["told"].notes


def test_templates_of_a_models_own_are_what_it_was_trained_with(scene: Scene) -> None:
    student = {"use": "clip-tune", "tower": "visual", "templates": ["its own {}"]}
    scopes = built(scene.trained("outspoken", student), scene.suite("mixed", MIXED))
    assert asked(scopes) == {"told": TOLD, "untold": ("its own {}",), "own": ("its own {}",)}


def test_an_ensemble_counts_as_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from layouts import build as tree

    tree("dtd", scene.folder / "sets")
    monkeypatch.setenv("ADVDISTILL_DATA", str(scene.folder / "sets"))
    suite = scene.suite("sets", {})
    path = suite.path
    text = yaml.safe_load(path.read_text())
    for name, stated in {"ensemble": {"prompts": "ensemble"}, "one": {"prompts": "one"}, "unsaid": {}}.items():
        text["scopes"][name] = {"classes": "data", "data": {"use": "dtd", "size": 16, **stated}}
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    found = asked(built(scene.tuned, load_suite(path, REGISTRY)))
    assert len(found["ensemble"]) > 1 and found["one"] == ("{} texture.",) and found["unsaid"] == TRAINED


def test_a_kept_suite_says_as_much(scene: Scene, tmp_path: Path) -> None:
    suite = scene.suite("mixed", MIXED)
    with Campaign(tmp_path, scene.tuned, suite, {}, overwrite=False):
        pass
    again = load_suite(tmp_path / "protocol.yaml", REGISTRY)
    assert again.tree == suite.tree and asked(built(scene.tuned, again)) == asked(built(scene.tuned, suite))
    stated = scene.suite("mixed", {**MIXED, "untold": {"templates": list(USUAL)}})
    assert stated.tree != suite.tree, "what was measured under the one must not stand for the other"


# --- what an evaluation says -------------------------------------------------------------------------------------


def evaluated(scene: Scene, folder: Path, suite: Suite) -> Evaluation:
    target = scene.tuned
    with Campaign(folder, target, suite, {}, overwrite=False) as campaign:
        found, _ = campaign.run(list(built(target, suite).values()), REGISTRY)
    return found


def test_statements_and_cards_say_among_how_many(scene: Scene, tmp_path: Path) -> None:
    found = evaluated(scene, tmp_path, scene.suite("mixed", MIXED))
    assert {column.statement["class count"] for column in found.columns} == {3}
    for column in found.columns:
        bare = {name: value for name, value in column.statement.items() if name != "class count"}
        assert key(bare) == key(column.statement) == column.statement["key"]
    text = (tmp_path / "card.md").read_text()
    assert f"classified among 3 classes with “{TOLD[0]}”" in text and f"among 3 classes with “{TRAINED[0]}”" in text
    said = card(found, [])
    for column in said["columns"]:
        del column["statement"]["class count"]  # as older evaluations have it
    older = markdown(said)
    assert f"; classified with “{TOLD[0]}”" in older and "classified among" not in older


def test_a_folder_holds_its_manifests(scene: Scene, tmp_path: Path) -> None:
    evaluated(scene, tmp_path / "scopes", scene.suite("mixed", MIXED))
    names = {f"manifest-{scope}.json" for scope in MIXED}
    assert {path.name for path in (tmp_path / "scopes").glob("manifest*")} == names
    target, suite = scene.tuned, scene.suite("plain", {})
    evaluated(scene, tmp_path / "plain", suite)
    assert [path.name for path in (tmp_path / "plain").glob("manifest*")] == ["manifest.json"]
    said = json.loads((tmp_path / "plain" / "manifest.json").read_text())
    split = build.dataset(REGISTRY, built(target, suite)[""].block).split("test")
    assert said["splits"].keys() == {"test"} and said["splits"]["test"]["digest"] == split.digest
    with Campaign(tmp_path / "scopes", target, suite, {}, overwrite=True):
        assert not list((tmp_path / "scopes").glob("manifest*")), "they were another's"
