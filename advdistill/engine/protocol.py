"""Protocols: complete statements of how a number is taken, and of who attacks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from advdistill.engine.attack import Attack
from advdistill.engine.data import Split
from advdistill.engine.judge import PORTION
from advdistill.engine.participant import Participant
from advdistill.engine.types import Threat
from advdistill.hooks.specs import ASKS, KNOWLEDGE, AttackSpec

RANKS = ("none", "white-box", "grey-box", "scores", "labels", "transfer", "blind")
"""What an attacker has to go on, in the order of columns; "none": there is no attack."""


@dataclass(frozen=True)
class Attacker:
    """What an attacker knows of the deployed model, may ask it, and wants.

    Attributes:
        asks: "gradients", "scores", "labels" or "nothing", of the model that is measured.
        guesses: which of `KNOWLEDGE` he stands in for with a guess.
        targeted: he aims at one class at a time.
        source: the model he makes his images on; "self" is the measured one.
    """

    asks: str = "gradients"
    guesses: frozenset[str] = frozenset()
    targeted: bool = False
    source: str = "self"

    @classmethod
    def of(cls, spec: AttackSpec, inner: tuple[Attacker, ...] = (), source: str = "self") -> Attacker:
        """As an attack's spec declares; one that wraps others asks for no more than the greediest of them."""
        greediest = min((ASKS.index(each.asks) for each in inner), default=0)
        asks = ASKS[max(greediest, ASKS.index(spec.asks))]
        guesses = frozenset(spec.guesses).union(*(each.guesses for each in inner))
        targeted = spec.targeted or (bool(inner) and all(each.targeted for each in inner))
        return cls(asks, guesses, targeted, source)

    @property
    def knowledge(self) -> str:
        """One of `RANKS`: results under different ones never share a column."""
        if self.source != "self":
            return "transfer"
        if self.guesses and self.asks in ("gradients", "nothing"):
            return "grey-box"
        return {"gradients": "white-box", "nothing": "blind"}.get(self.asks, self.asks)

    def to_json(self) -> dict[str, str]:
        """`known`, `guessed` or `unknown` for each of `KNOWLEDGE`, then `asks` and `goal`."""
        if self.source != "self":
            said = dict.fromkeys(KNOWLEDGE, "guessed") | {"class names": "known", "labels": "known"}
        elif self.knowledge in ("white-box", "grey-box"):
            said = {what: "guessed" if what in self.guesses else "known" for what in KNOWLEDGE}
        else:
            said = dict.fromkeys(KNOWLEDGE, "unknown") | {"class names": "known", "labels": "known"}
        asks = "nothing" if self.source != "self" else self.asks
        return {**said, "asks": asks, "goal": "targeted at each class in turn" if self.targeted else "untargeted"}


@dataclass(frozen=True)
class Protocol:
    """How one number is taken.

    Attributes:
        name: the column's head. split: which split. limit: a stratified subset of that many samples; 0: all.
        attack: None for clean accuracy. threat: the ball, None for clean accuracy.
        settings: what the attack was built from, JSON-able; part of the statement. code: name -> version or content of
            the plugins that attack, where they are others'. words: its free text in settings, which may name models.
        attacker: see there; its `source` names the model that the images are made on.
    """

    name: str
    split: str = "test"
    limit: int = 0
    attack: Attack | None = None
    threat: Threat | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    attacker: Attacker = Attacker()
    code: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    def statement(
        self,
        split: Split,
        samples: int,
        participant: Participant,
        seed: int,
        side: tuple[int, int],
        seen: Mapping[str, str] | None = None,
        batch_size: int = 0,
    ) -> dict[str, Any]:
        """Everything that the number depends on beside the model's weights, and a `key` that hashes it.

        Args:
            samples: how many are drawn. side: height and width of the images that are attacked.
            seen: fingerprints of the other models that the attack looks at, its source among them, by name.
            batch_size: where the model mixes samples; else it changes nothing and is 0.
        """
        attacked = self.attack is not None
        said: dict[str, Any] = {
            "name": self.name,
            "attack": dict(self.settings) if attacked else None,
            "threat": {"norm": self.threat.norm, "eps": self.threat.eps} if attacked and self.threat else None,
            "attacker": self.attacker.to_json() if attacked else None,
            "knowledge": self.attacker.knowledge if attacked else "none",
            "source": self.source(seen or {}) if attacked else None,
            "split": {
                "name": self.split,
                "digest": split.digest,
                "content": split.content,
                "samples": samples,
                "of": len(split),
                "drawn": "all" if samples == len(split) else "stratified by class",
            },
            "classes": participant.classes.digest,
            "class count": len(participant.classes),
            "templates": list(participant.classes.templates),
            "resolution": list(side),
            "metric": f"top-1 of a fresh forward, {PORTION} images at a time; ties and NaN are errors",
            "seed": seed,
            "precision": "fp32",
        }
        if split.skipped:
            said["split"]["unreadable"] = len(split.skipped)
        if batch_size:
            said["batch size"] = batch_size
        if self.code:
            said["code"] = dict(self.code)
        return {**said, "key": key(said)}

    def source(self, seen: Mapping[str, str]) -> dict[str, Any]:
        """Which models the images rest on, by name and fingerprint."""
        made_on = self.attacker.source
        others = {name: mark for name, mark in seen.items() if name != made_on}
        found: dict[str, Any] = {"model": made_on, "fingerprint": seen.get(made_on, "")}
        return {**found, "also": others} if others else found


def key(statement: Mapping[str, Any]) -> str:
    """A hash of a statement, 16 hex digits. The name is a label: two spellings of one protocol are one measurement; how
    many classes there are the hash of the classes knows already."""
    facts = json.dumps({k: v for k, v in statement.items() if k not in ("name", "key", "class count")}, sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]
