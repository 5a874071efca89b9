"""What is pinned here:

- What an attacker has to go on has one name, and each name its own column: white-box needs gradients of the measured
  model with nothing guessed; scores, labels, nothing and another model's images are never called so.
- An attack that wraps others asks for as much as the greediest, and guesses what any of them guesses; it is targeted
  where all are.
- Every attack that ships is white-box exactly where its spec says so.
- A statement says all that a number depends on beside the weights, and its key changes with each of it: attack,
  settings, threat, knowledge, source and that model's weights, data, samples, classes, templates, resolution, seed.
- The key does not change with the name, with spelling, with the order of settings, or with batching.
- Clean accuracy has no attacker, and depends on no threat.
- A subset is a draw by seed, even over the classes however the data is sorted, not its beginning; all protocols of one
  size look at the same.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from advdistill import AttackSpec, ClassSet, Threat
from advdistill.engine import build
from advdistill.engine.data import ArraySplit, Split, stratified
from advdistill.engine.evaluate import Bench
from advdistill.engine.participant import Participant
from advdistill.engine.protocol import RANKS, Attacker, Protocol, key
from advdistill.hooks.registry import default_registry
from advdistill.hooks.specs import KNOWLEDGE
from advdistill.recipe.resolve import resolve_blocks
from advdistill.testing import ToyAttack, ToyConfig, ToyDataset, ToyModel
from advdistill.testing.toy import CLASSES


def spec(**facts: Any) -> AttackSpec:
    return AttackSpec(name="made-up", target="no_such_module:Thing", norms={"linf"}, **facts)


# --- knowledge ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "source", "knowledge"),
    [
        ({}, "self", "white-box"),
        ({"targeted": True}, "self", "white-box"),
        ({"guesses": {"prompts"}}, "self", "grey-box"),
        ({"guesses": {"weights"}}, "self", "grey-box"),
        ({"guesses": {"templates", "class names"}}, "self", "grey-box"),
        ({"asks": "scores"}, "self", "scores"),
        ({"asks": "labels"}, "self", "labels"),
        ({"asks": "nothing"}, "self", "blind"),
        ({"asks": "nothing", "guesses": {"weights", "prompts"}}, "self", "grey-box"),
        ({}, "base", "transfer"),
        ({"guesses": {"prompts"}}, "robust", "transfer"),
        ({"asks": "scores"}, "other.safetensors", "transfer"),
        ({"asks": "nothing"}, "ViT-B-32@openai", "transfer"),
    ],
)
def test_knowledge_has_one_name(facts: dict[str, Any], source: str, knowledge: str) -> None:
    attacker = Attacker.of(spec(**facts), source=source)
    assert attacker.knowledge == knowledge and knowledge in RANKS
    said = attacker.to_json()
    everything = all(said[what] == "known" for what in KNOWLEDGE) and said["asks"] == "gradients"
    assert everything == (knowledge == "white-box"), "white-box is who knows all and may ask all, and nobody else"
    assert said["goal"] == ("targeted at each class in turn" if facts.get("targeted") else "untargeted")
    if source != "self":
        assert said["asks"] == "nothing" and said["weights"] == "guessed"
    elif knowledge in ("scores", "labels", "blind"):
        assert said["weights"] == said["prompts"] == "unknown"


def test_the_default_attacker_knows_everything() -> None:
    assert Attacker() == Attacker.of(spec()) and Attacker().knowledge == "white-box"


def test_a_wrapper_is_as_greedy_as_what_it_wraps() -> None:
    wrapper = spec(wraps="attacks")
    white, scores, blind = (Attacker.of(spec(asks=asks)) for asks in ("gradients", "scores", "nothing"))
    assert Attacker.of(wrapper, (scores,)).knowledge == "scores"
    assert Attacker.of(wrapper, (blind, scores)).knowledge == "scores"
    assert Attacker.of(wrapper, (scores, white, blind)).knowledge == "white-box"
    guessing = Attacker.of(spec(guesses={"prompts"}))
    assert Attacker.of(wrapper, (white, guessing)).knowledge == "grey-box"
    assert Attacker.of(spec(wraps="attack", guesses={"templates"}), (white,)).guesses == {"templates"}
    aiming = Attacker.of(spec(targeted=True))
    assert Attacker.of(wrapper, (aiming, aiming)).targeted and not Attacker.of(wrapper, (aiming, white)).targeted
    assert Attacker.of(wrapper, (white,), "base").knowledge == "transfer"
    elsewhere = Attacker.of(spec(wraps="attack", asks="nothing", guesses={"weights"}), (white,))
    assert (elsewhere.asks, elsewhere.knowledge) == ("nothing", "grey-box")


def test_what_ships_is_named_truly() -> None:
    registry = default_registry()
    names = [entry.qualified for entry in registry.entries("attack") if entry.plugin.name == "advdistill_attacks"]
    found: dict[str, str] = {}
    for name in names:
        block = resolve_blocks({"attack": {"use": name}}, registry)[("attack",)]
        norm = sorted(block.spec.norms)[0]  # type: ignore[attr-defined]
        found[block.spec.name] = build.protocol(registry, name, block, Threat(norm, 0.01)).attacker.knowledge
    grey = {"feature", "cross-prompt", "clean-backbone", "teacher-guided", "universal"}
    others = {"noise": "blind", "square": "scores", "rays": "labels"}
    assert {name for name, knowledge in found.items() if knowledge == "grey-box"} == grey
    assert {name: found[name] for name in others} == others
    assert {
        name for name, knowledge in found.items() if knowledge == "white-box"
    } == found.keys() - grey - others.keys()
    assert {"pgd", "apgd", "apgd-t", "autoattack", "fab-t", "eot"} <= found.keys()


def test_a_source_is_never_white_box() -> None:
    registry = default_registry()
    block = resolve_blocks({"attack": {"use": "pgd"}}, registry)[("attack",)]
    for source in ("base", "clean", "some.safetensors"):
        built = build.protocol(registry, "x", block, Threat("linf", 0.1), source)
        assert built.attacker.source == source and built.attacker.knowledge == "transfer"


# --- statements --------------------------------------------------------------------------------------------------


class Scene:
    """A protocol on the toy's test split, and its key."""

    protocol = Protocol("pgd", limit=12, attack=ToyAttack(None), threat=Threat("linf", 4 / 255),
                        settings={"use": "toy:toy", "steps": 2, "loss": "ce"})  # fmt: skip

    def __init__(self) -> None:
        split = ToyDataset(None).split("test")
        assert isinstance(split, ArraySplit)
        self.split = split

    def said(self, protocol: Protocol = protocol, *, split: Split | None = None, classes: ClassSet = CLASSES,
             seed: int = 0, prints: str = "abc", **how: Any) -> dict[str, Any]:  # fmt: skip
        participant = Participant(ToyModel(ToyConfig()), classes)
        split = split or self.split

        def others(words: Any, source: str) -> dict[str, str]:
            return {} if source == "self" else {source: prints}

        return Bench(participant, lambda name: split, seed, fingerprints=others, **how).statement(protocol)


def test_a_key_changes_with_all_that_matters() -> None:
    scene, one = Scene(), Scene.protocol
    images, labels, ids = scene.split.images, scene.split.labels, list(scene.split.ids)
    wider = torch.cat([images, images[..., :1]], 3)
    changed: dict[str, dict[str, Any]] = {
        "same": scene.said(),
        "steps": scene.said(replace(one, settings={**one.settings, "steps": 3})),
        "another setting": scene.said(replace(one, settings={**one.settings, "restarts": 1})),
        "attack": scene.said(replace(one, settings={**one.settings, "use": "other:toy"})),
        "eps": scene.said(replace(one, threat=Threat("linf", 4.01 / 255))),
        "norm": scene.said(replace(one, threat=Threat("l2", 4 / 255))),
        "limit": scene.said(replace(one, limit=18)),
        "all": scene.said(replace(one, limit=0)),
        "split": scene.said(replace(one, split="val")),
        "asks": scene.said(replace(one, attacker=Attacker(asks="scores"))),
        "guesses": scene.said(replace(one, attacker=Attacker(guesses=frozenset({"prompts"})))),
        "goal": scene.said(replace(one, attacker=Attacker(targeted=True))),
        "source": scene.said(replace(one, attacker=Attacker(source="base"))),
        "source's weights": scene.said(replace(one, attacker=Attacker(source="base")), prints="def"),
        "another source": scene.said(replace(one, attacker=Attacker(source="clean"))),
        "clean": scene.said(replace(one, attack=None)),
        "seed": scene.said(seed=1),
        "labels": scene.said(split=ArraySplit(images, labels.roll(1), ids)),
        "ids": scene.said(split=ArraySplit(images, labels, [*ids[1:], "another"])),
        "resolution": scene.said(split=ArraySplit(wider, labels, ids)),
        "class names": scene.said(classes=ClassSet(("emu", *CLASSES.names[1:]), CLASSES.templates)),
        "order of classes": scene.said(classes=ClassSet(CLASSES.names[::-1], CLASSES.templates)),
        "template": scene.said(classes=ClassSet(CLASSES.names, ("{}",))),
    }
    keys = {what: said["key"] for what, said in changed.items()}
    same = [(a, b) for a in keys for b in keys if a < b and keys[a] == keys[b]]
    assert not same
    assert all(len(each) == 16 for each in keys.values())


def test_a_key_does_not_change_with_what_does_not_matter() -> None:
    scene, one = Scene(), Scene.protocol
    mine = scene.said()
    renamed = scene.said(replace(one, name="PGD, two steps"))
    assert renamed["key"] == mine["key"] and renamed["name"] == "PGD, two steps"
    shuffled = replace(one, settings=dict(reversed(list(one.settings.items()))))
    assert scene.said(shuffled)["key"] == mine["key"]
    assert scene.said(batch_size=1, workers=2)["key"] == mine["key"]
    assert scene.said(replace(one, limit=0))["key"] == scene.said(replace(one, limit=60))["key"], "60 of 60 is all"
    assert key(json.loads(json.dumps(mine))) == mine["key"], "also of a statement that was stored"


def test_two_spellings_of_one_protocol_are_one() -> None:
    registry, scene = default_registry(), Scene()

    def said(tree: dict[str, Any], eps: float) -> dict[str, Any]:
        block = resolve_blocks({"attack": tree}, registry)[("attack",)]
        return scene.said(build.protocol(registry, "x", block, Threat("linf", eps), limit=12))

    long = {"use": "advdistill:pgd", "steps": 10, "step": "1/255", "momentum": 0}
    short = {"step": 1 / 255, "use": "pgd"}
    assert said(long, 4 / 255)["key"] == said(short, 4 / 255)["key"]
    assert said({**short, "momentum": 0.5}, 4 / 255)["key"] != said(short, 4 / 255)["key"]


def test_a_statement_is_complete_and_plain() -> None:
    said = Scene().said(replace(Scene.protocol, attacker=Attacker(source="base")))
    assert json.loads(json.dumps(said)) == said
    assert said["threat"] == {"norm": "linf", "eps": 4 / 255} and said["attack"] == dict(Scene.protocol.settings)
    assert said["knowledge"] == "transfer" and said["source"] == {"model": "base", "fingerprint": "abc"}
    assert said["attacker"]["asks"] == "nothing" and said["precision"] == "fp32" and said["resolution"] == [16, 16]
    split = Scene().split
    assert said["split"] == {"name": "test", "digest": split.digest, "content": split.content, "samples": 12, "of": 60,
                             "drawn": "stratified by class"}  # fmt: skip
    assert said["templates"] == list(CLASSES.templates) and said["classes"] == CLASSES.digest
    assert "64" in said["metric"] and "ties" in said["metric"]
    assert Scene().said(replace(Scene.protocol, limit=0))["split"]["drawn"] == "all"


def test_clean_accuracy_has_no_attacker() -> None:
    clean = Protocol("clean", limit=12)
    said = Scene().said(clean)
    assert said["knowledge"] == "none" == RANKS[0]
    assert said["attack"] is said["threat"] is said["attacker"] is said["source"] is None
    wide = Scene().said(replace(clean, threat=Threat("linf", 0.5)))
    assert wide["key"] == said["key"]


# --- samples -----------------------------------------------------------------------------------------------------


def test_a_subset_is_drawn_evenly_from_sorted_data() -> None:
    labels = torch.arange(6).repeat_interleave(10)
    drawn = stratified(labels, 12, 0)
    assert labels[drawn].tolist() == sorted([*range(6)] * 2) and drawn.tolist() == sorted(drawn.tolist())
    assert not torch.equal(drawn, stratified(labels, 12, 1)), "another seed is another draw"
    assert (drawn % 10 > 1).any(), "not the first of every class"
    assert stratified(labels, 8, 0).tolist() != list(range(8)) and len(stratified(labels, 8, 0).unique()) == 8
    assert set(stratified(labels, 6, 0).tolist()) <= set(drawn.tolist()), "a smaller one is part of it"
    few = torch.tensor([0] * 50 + [1] * 2)
    assert few[stratified(few, 10, 0)].tolist() == [0] * 8 + [1] * 2


def test_all_protocols_look_at_the_same_samples() -> None:
    scene = Scene()
    protocols = [Protocol("clean", limit=12), Scene.protocol, replace(Scene.protocol, threat=Threat("linf", 0.5 / 255))]
    bench = Bench(Participant(ToyModel(ToyConfig()), CLASSES), lambda name: scene.split, 5)
    drawn = [column.outcome.indices.tolist() for column in bench.columns(protocols)]
    assert drawn[0] == drawn[1] == drawn[2] == stratified(scene.split.labels, 12, 5).tolist()
