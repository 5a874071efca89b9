"""What a plugin declares: frozen, cheap, free of torch.

A spec names a component and says where its code lives; the code is imported on first use.
`target`, `config` and `check` are written `"package.module:Name"`; a single-file plugin, which has
been imported already, may pass the object itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from advdistill.hooks.origin import Origin

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
Norm = Literal["linf", "l2", "l1", "l0"]
NORMS: tuple[str, ...] = get_args(Norm)
ASKS = ("gradients", "scores", "labels", "nothing")
KNOWLEDGE = ("weights", "prompts", "templates", "class names", "labels")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A named component.

    Attributes:
        name: kebab-case, as written after `use:` in a recipe.
        target: the class, `"package.module:Class"`.
        config: its `advdistill.Config` subclass, in a module that does not import torch; None: takes no settings.
        check: `"package.module:function"`, called as `function(config, recipe)` and yielding `(key, message)`
            for what one field alone cannot show; must not import torch.
        summary: one line for `plugins list`.
        reference: a paper or page.
    """

    kind: ClassVar[str] = ""

    name: str
    target: str | type
    config: str | type | None = None
    check: str | Callable[..., Any] | None = None
    summary: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{type(self).__name__} name {self.name!r} is not kebab-case, like 'my-{self.kind}'")
        for label in ("target", "config", "check"):
            _check_reference(self.name, label, getattr(self, label))


def _check_reference(name: str, label: str, value: object) -> None:
    if isinstance(value, str) and not re.fullmatch(r"[\w.]+:\w+", value):
        raise ValueError(f"{name}: {label} {value!r} is not of the form 'package.module:Name'")


@dataclass(frozen=True, kw_only=True)
class TeacherSpec(Spec):
    """A frozen model.

    Attributes:
        bare: marks the one that the command line builds for `--model NAME@WEIGHTS`; its config has the fields `model`
            and `weights`.
    """

    kind: ClassVar[str] = "teacher"
    bare: bool = False


@dataclass(frozen=True, kw_only=True)
class StudentSpec(Spec):
    """A model with something to learn. Every student can stand as a teacher too, frozen or learning."""

    kind: ClassVar[str] = "student"


@dataclass(frozen=True, kw_only=True)
class AttackSpec(Spec):
    """An attack on pixels.

    Attributes:
        norms: the threat norms it respects, out of linf, l2, l1, l0.
        objective: it maximises any per-sample objective; False: it is driven by labels alone and sees a module.
        asks: what it asks the attacked model for: "gradients", "scores" (logits), "labels" (the answer), or "nothing"
            (it is made on another model, or is noise).
        guesses: what it does without that a white-box attacker knows: some of "weights", "prompts", "templates",
            "class names", "labels".
        targeted: it aims at one class at a time.
        wraps: the name of the setting that holds another attack's block, or a list of them; "": none. They are built
            first and handed over as `inner`.
    """

    kind: ClassVar[str] = "attack"
    norms: frozenset[str] | set[str] = field(default=frozenset())
    objective: bool = False
    asks: str = "gradients"
    guesses: frozenset[str] | set[str] = field(default=frozenset())
    targeted: bool = False
    wraps: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "norms", frozenset(self.norms))
        object.__setattr__(self, "guesses", frozenset(self.guesses))
        if not self.norms or self.norms - set(NORMS):
            raise ValueError(f"{self.name}: norms {sorted(self.norms)} must be some of {sorted(NORMS)}")
        if self.asks not in ASKS:
            raise ValueError(f"{self.name}: asks {self.asks!r} must be one of {', '.join(ASKS)}")
        if self.guesses - set(KNOWLEDGE):
            raise ValueError(f"{self.name}: guesses {sorted(self.guesses)} must be some of {', '.join(KNOWLEDGE)}")


@dataclass(frozen=True, kw_only=True)
class StrategySpec(Spec):
    """A distillation or training method.

    Attributes:
        teachers: role -> what the teacher in that role is for; all are required.
        optional: the same for teachers that a recipe may leave out; the role `"*"` stands for any further name.
        trains: roles whose teachers its losses train, where a recipe says `train: true`; `"*"` as in `optional`.
        attack: what it asks of the attack: `"objective"` (it brings its own), `"labels"` (cross-entropy
            would do, so label-driven attacks serve too), or None (it does not attack).
    """

    kind: ClassVar[str] = "strategy"
    teachers: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    trains: frozenset[str] | set[str] = field(default=frozenset())
    attack: str | None = "objective"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack not in ("objective", "labels", None):
            raise ValueError(f"{self.name}: attack {self.attack!r} must be 'objective', 'labels' or None")
        object.__setattr__(self, "trains", frozenset(self.trains))
        if strange := self.trains - self.teachers.keys() - self.optional.keys():
            raise ValueError(f"{self.name}: it trains {sorted(strange)}, which are none of its roles")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """Images, labels, class names, splits.

    Attributes:
        folder: marks the one that the command line builds for `--data DIR`; its config has the field `root`.
        origin: of a published data set, where it comes from and how it lies on disk: an `Origin`, or
            `"package.module:NAME"` of one, in a module that imports no torch. Its config has the field `root`, "" for
            the usual place.
    """

    kind: ClassVar[str] = "dataset"
    folder: bool = False
    origin: str | Origin | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_reference(self.name, "origin", self.origin)


@dataclass(frozen=True, kw_only=True)
class ReporterSpec(Spec):
    """An observer of a run's events."""

    kind: ClassVar[str] = "reporter"


@dataclass(frozen=True, kw_only=True)
class CommandSpec:
    """A subcommand.

    Attributes:
        name: the word after `advdistill`; the host's own cannot be taken.
        target: a function with typer annotations, `"package.module:function"`, imported when it is called.
        summary: one line for the list of commands.
    """

    kind: ClassVar[str] = "command"

    name: str
    target: str | Callable[..., Any]
    summary: str = ""


KINDS: dict[str, type[Spec]] = {
    spec.kind: spec for spec in (TeacherSpec, StudentSpec, AttackSpec, StrategySpec, DatasetSpec, ReporterSpec)
}
