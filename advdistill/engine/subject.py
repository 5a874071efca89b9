"""What a command is pointed at: a checkpoint, or a model that nobody has defended, with data and protocols."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from advdistill.data.presence import lacking_scopes
from advdistill.engine import build
from advdistill.engine.checkpoint import Classifier, Opened, open_checkpoint, open_teacher
from advdistill.engine.data import Dataset, Split, Subset, stratified
from advdistill.engine.evaluate import Bench, split_reader
from advdistill.engine.judge import Judge
from advdistill.engine.manifest import manifest
from advdistill.engine.model import VisionLanguageModel
from advdistill.engine.participant import Participant, Seen
from advdistill.engine.protocol import RANKS, Protocol
from advdistill.engine.types import ClassSet, Threat
from advdistill.errors import DataError, MissingData, UsageError
from advdistill.recipe.model import Threat as ThreatFields
from advdistill.recipe.paths import resource
from advdistill.recipe.resolve import resolve_blocks

if TYPE_CHECKING:
    from advdistill.hooks.registry import Registry
    from advdistill.recipe.providers import Record
    from advdistill.recipe.resolved import Block
    from advdistill.recipe.suite import Suite


class Target:
    """What `--model` names, opened once.

    Args:
        name: a checkpoint, or NAME@WEIGHTS for an undefended model.
        device: where it is put.

    Attributes:
        opened: the checkpoint; None for an undefended model, which is built when it is first asked for.

    Raises:
        DataError, PluginError, RecipeError, UsageError: from its parts.
    """

    def __init__(self, name: str, registry: Registry, device: str = "auto") -> None:
        self.name, self._registry, self._device = name, registry, build.device_of(device)
        bare = _bare(name)
        if not bare and not resource(name).exists():
            raise DataError(
                f"there is no checkpoint {name}",
                "an undefended model is written NAME@WEIGHTS: ViT-B-32-quickgelu@openai",
            )
        self.opened: Opened | None = None if bare else open_checkpoint(name, registry)

    @cached_property
    def model(self) -> VisionLanguageModel:
        """On its device; asked in its own templates."""
        return (self.opened.model if self.opened else undefended(self.name, self._registry)).to(self._device)

    @cached_property
    def _templates(self) -> tuple[str, ...]:
        """The model's own: those that it was trained with, or that its settings bring; empty: it takes its data's."""
        return self.opened.classes.templates if self.opened else self.model.templates

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the checkpoint says of itself; {} for an undefended model."""
        return self.opened.facts if self.opened else {}

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the model: a hash of its file, or of its name and all that it says of itself; 16 hex digits."""
        if self.opened:
            return hashlib.sha256(self.opened.path.read_bytes()).hexdigest()[:16]
        return _digest([self.name.rpartition("@")[0], self.model.describe()])

    def undefended(self) -> VisionLanguageModel:
        """What it was before anything was learned, asked in its own sentences; itself where nothing was."""
        base = self.model.undefended()
        base.templates = self._templates
        return base

    def participant(self, classes: ClassSet, told: bool = False) -> Participant:
        """The model on some classes; `told`: somebody has said that their templates count, not those that it was
        trained with. Prompts of its own count in any case. The model itself is left with its own templates."""
        own = self._templates
        self.model.templates = classes.templates if told and not self.model.own_words else own
        try:
            return Participant(self.model, classes)
        finally:
            self.model.templates = own

    def judge(self, classes: ClassSet) -> Judge:
        """Asks the model as it is exported: opened anew from its file, apart from the one that is attacked."""
        model = open_checkpoint(self.name, self._registry).model if self.opened else self.model
        exported = copy.deepcopy(model).to(self._device)
        exported.templates = classes.templates
        return Judge(Classifier(Participant(exported, classes), Threat("linf", 0.0)))

    def company(self, participant: Participant) -> Company:
        """Whom an attack on `participant` can look at."""
        return Company(self, participant, self._registry)

    def roles(self) -> list[str]:
        """The teachers that its run had."""
        return list(self.facts.get("recipe", {}).get("teachers", {}))

    def to_json(self) -> dict[str, Any]:
        """What an evaluation says of the model."""
        said: dict[str, Any] = {"model": {"name": self.name, "fingerprint": self.fingerprint, **self.model.describe()}}
        if self.opened:
            recipe = self.facts["recipe"]
            said["recipe"] = {
                "name": recipe["name"],
                "seed": recipe["seed"],
                "strategy": recipe["strategy"]["use"],
                "shots": recipe["data"].get("shots", 0),
            }
            said["trained for"] = dict(self.facts["threat"])
        return said


class Company:
    """The models that an attack can look at, built when it asks; called with a name, as `Problem.seen` says."""

    def __init__(self, target: Target, participant: Participant, registry: Registry) -> None:
        self._target, self._registry = target, registry
        self._known = {"self": participant}
        self._prints = {"self": ""}

    def __call__(self, name: str) -> Seen:
        return Seen(self._participant(name))

    def fingerprints(self, words: Iterable[str], source: str) -> dict[str, str]:
        """Name -> what identifies the model, of the source and of every model among `words`, an attack's settings."""
        named = [source, *(word for word in words if self._is_model(word))]
        for name in named:
            self._participant(name)
        return {name: self._prints[name] for name in named if name != "self"}

    def _is_model(self, text: str) -> bool:
        known = ("base", *self._target.roles())
        return text in known or (text.endswith(".safetensors") and resource(text).exists()) or bool(_bare(text))

    def _participant(self, name: str) -> Participant:
        if name not in self._known:
            model, self._prints[name] = self._build(name)
            own = self._known["self"]
            self._known[name] = Participant(model.to(own.model.device), own.classes)
        return self._known[name]

    def _build(self, name: str) -> tuple[VisionLanguageModel, str]:
        target = self._target
        if name == "base":
            base = target.undefended()
            base.templates = self._known["self"].classes.templates
            return base, _digest(base.describe())
        if target.opened and name in target.roles():
            teacher = open_teacher(target.opened, name, self._registry)
            return teacher, f"{_digest(teacher.describe())}/{_contents(teacher)}"
        if resource(name).exists() or _bare(name):
            other = Target(name, self._registry, str(self._known["self"].model.device))
            return other.model, other.fingerprint
        known = ", ".join(["self", "base", *target.roles()])
        raise UsageError(
            f"{target.name} knows no model {name!r} (it knows {known})",
            "name one of these, a checkpoint, or NAME@WEIGHTS; or leave the column out: protocols.HEADING=null",
        )


@dataclass(frozen=True)
class Subject:
    """A model with the data and the protocols that it is measured on.

    Attributes:
        name: what to call it. data, block: where the samples come from, and its settings. splits: name -> Split.
        seed: of subsets and noise. notes: what to know about it. target: where it comes from. scope: what to call its
            data; "" for the model's own.
    """

    name: str
    participant: Participant
    data: Dataset
    block: Block
    splits: Callable[[str], Split]
    protocols: list[Protocol]
    seed: int
    notes: tuple[str, ...]
    target: Target
    scope: str = ""

    def manifest(self, split: str) -> dict[str, Any]:
        """Which files it is measured on, see `advdistill.engine.manifest`."""
        whole, limits = self.splits(split), [protocol.limit for protocol in self.protocols]
        drawn = stratified(whole.labels, max(limits) if all(limits) else 0, self.seed)
        return manifest(self.data, self.block.tree(), {split: Subset(whole, drawn)}, [split])

    def bench(self, **how: Any) -> Bench:
        """Where it is measured; the verdict is the exported model's. `how`: further fields of `Bench`."""
        company = self.target.company(self.participant)
        classes = self.participant.classes
        return Bench(
            self.participant,
            self.splits,
            self.seed,
            judge=self.target.judge(classes),
            seen=company,
            fingerprints=company.fingerprints,
            **how,
        )


def subject(
    model: str | Target,
    registry: Registry,
    *,
    data: str | None = None,
    attack: str | None = None,
    settings: Sequence[str] = (),
    norm: str | None = None,
    eps: float | None = None,
    limit: int | None = None,
    classes: str = "all",
    source: str = "self",
    data_of: Target | None = None,
    device: str = "auto",
) -> Subject:
    """Build what `--model` and its sister options say.

    Args:
        model: a checkpoint, or NAME@WEIGHTS for an undefended model.
        data: an image folder; None: the checkpoint's own data.
        attack: a plugin's name; None: the protocols of the checkpoint's recipe.
        settings: words like `steps=20` for the attack.
        norm, eps: the threat; None: as trained for, or as the protocol says.
        limit: samples a protocol; None: as the protocol says.
        classes: see `advdistill.recipe.suite.Scope`.
        source: the model that the attack's images are made on, see `Problem.seen`.
        data_of: whose data and threat are meant where nobody says; None: the model's own.

    Raises:
        UsageError: the options do not fit together.
        DataError, PluginError, RecipeError: from the parts.
    """
    if settings and attack is None:
        raise UsageError(f"{settings[0]!r} is a setting of an attack, but none is named", "--attack NAME key=value …")
    if odd := [word for word in settings if "=" not in word]:
        raise UsageError(f"{odd[0]!r} is not a setting", "Write key=value, like steps=20.")
    target = model if isinstance(model, Target) else Target(model, registry, device)
    facts = target.facts
    tree: dict[str, Any] = {}
    if attack is not None:
        tree["attack"] = {"use": attack}
    elif target.opened:
        tree["evaluate"] = {"protocols": facts["recipe"]["evaluate"]["protocols"]}
    else:
        raise UsageError(f"{target.name} brings no protocols", "say which attack: --attack pgd steps=20")
    block = _folder(registry, data) or (_own_data(data_of, registry) if data_of else None)
    block = block or _own_data(target, registry)
    dataset, notes = _data(target, registry, block, classes)
    provided = facts.get("plugins", [])
    blocks = resolve_blocks(tree, registry, provided=provided, overrides=[f"attack.{word}" for word in settings])

    where: dict[str, Any] = {} if limit is None else {"limit": limit}
    if attack is not None:
        name = " ".join([attack, *settings])
        ball = _threat((data_of or target).facts.get("threat"), norm, eps)
        protocols = [
            Protocol("clean", **where),
            build.protocol(registry, name, blocks[("attack",)], ball, source, **where),
        ]
    else:
        protocols = []
        for index, stored in enumerate(facts["recipe"]["evaluate"]["protocols"]):
            attacker = blocks.get(("evaluate", "protocols", index, "attack"))
            at = {"split": stored["split"], "limit": stored["limit"], **where}
            ball = _threat(_parsed(stored["threat"]) or facts.get("threat"), norm, eps)
            protocols.append(build.protocol(registry, stored["name"], attacker, ball, source, **at))
    seed = facts["recipe"]["seed"] if target.opened else 0
    participant, splits = target.participant(dataset.classes), split_reader(dataset)
    return Subject(target.name, participant, dataset, block, splits, protocols, seed, notes, target)


def subjects(
    target: Target,
    suite: Suite,
    registry: Registry,
    *,
    data: str | None = None,
    classes: str = "",
    norm: str | None = None,
    eps: float | None = None,
    limit: int | None = None,
    data_of: Target | None = None,
) -> Iterator[Subject]:
    """A model with a suite's protocols, scope by scope; columns in the order of what the attacker has to go on.

    Args:
        data, norm, eps, limit: as for `subject`; they go before what the suite says.
        data_of: whose data and threat are meant where nobody says; None: the model's own.
        classes: as for `subject`; "": as the scope says.

    Scopes whose data are not there are left out: `left_out` says which.

    Raises:
        MissingData: there are no others.
        UsageError, DataError, PluginError, RecipeError: as `subject`.
    """
    from advdistill.recipe.suite import WORDING, Scope

    settings = suite.model
    listed, scopes = settings.protocols.items(), settings.scopes or {"": Scope()}
    lacks = left_out(target, suite, registry, data=data, data_of=data_of)
    if len(lacks) == len(scopes):
        raise MissingData(
            f"none of the data of {suite.name} are there: {'; '.join(lacks.values())}",
            "`advdistill data list` says how to come by them",
        )
    for name, scope in scopes.items():
        if name in lacks:
            continue
        other = None if data else suite.data.get(name)
        block = other or _folder(registry, data) or _own_data(data_of or target, registry)
        dataset, notes = _data(target, registry, block, classes or scope.classes)
        where: dict[str, Any] = {"split": settings.split, "limit": settings.limit if limit is None else limit}
        protocols: list[Protocol] = []
        for heading, wanted in listed:
            if scope.columns and heading not in scope.columns:
                continue
            fields = wanted.threat or settings.threat
            given = {"norm": fields.norm, "eps": fields.eps} if fields else (data_of or target).facts.get("threat")
            attack = suite.attacks.get(heading)
            if attack is None:
                protocols.append(Protocol(heading, **where))
                continue
            ball = _threat(given, norm, eps)
            if why := _left_out(target, wanted.source):
                notes = (*notes, f"{heading} is left out: {why}")
                continue
            sources = target.roles() if wanted.source == "teachers" else [wanted.source]
            for source in sources:
                label = f"{heading} ({source})" if wanted.source == "teachers" else heading
                for times in wanted.times:
                    radius = min(ball.eps * times, 1.0) if ball.norm == "linf" else ball.eps * times
                    more = f" ×{times:g}" if times != 1 else ""
                    wider = replace(ball, eps=radius)
                    protocols.append(build.protocol(registry, label + more, attack, wider, source, **where))
        names = [protocol.name for protocol in protocols]
        if twice := [heading for heading in names if names.count(heading) > 1]:
            raise UsageError(f"two columns are called {twice[0]!r}", "rename one of them")
        ranked = sorted(protocols, key=lambda p: RANKS.index(p.attacker.knowledge if p.attack else "none"))
        # A checkpoint's own data say all, and what they say is what it was trained with, if it had none of its own.
        told = other is not None and not other.config.model_fields_set.isdisjoint(WORDING)
        if told and target.model.own_words:
            notes = (*notes, f"{target.name} has prompts of its own, which stand in the place of {name}'s templates")
        participant, splits = target.participant(dataset.classes, told), split_reader(dataset)
        yield Subject(target.name, participant, dataset, block, splits, ranked, settings.seed, notes, target, name)


def left_out(
    target: Target, suite: Suite, registry: Registry, *, data: str | None = None, data_of: Target | None = None
) -> Mapping[str, str]:
    """Scope -> what of its data is missing, so that it cannot be measured here. Arguments as for `subjects`."""
    if data:
        return {}
    owner, named = data_of or target, suite.data.keys() >= suite.model.scopes.keys()
    own = None if named or owner.opened is None else _own_data(owner, registry)
    return lacking_scopes(suite, registry, own)


def _data(target: Target, registry: Registry, block: Block, classes: str) -> tuple[Dataset, tuple[str, ...]]:
    """The images and classes to measure on, and what to know about them.

    Raises:
        UsageError: they are other classes than the model's, and nobody said so.
    """
    records = target.facts.get("plugins", [])
    dataset = build.dataset(registry, block, classes if classes in ("base", "new") else "")
    notes = [f"{name}.py has changed since {target.name} was written" for name in _changed(records, registry)]
    return dataset, (*notes, *other_classes(target, dataset.classes, classes))


def other_classes(target: Target, asked: ClassSet, classes: str) -> list[str]:
    """What to know about classes that are not just those that a model was trained on.

    Args:
        classes: as for `subject`.

    Raises:
        UsageError: they are others, and nobody said so.
    """
    trained, names = set(target.opened.classes.names if target.opened else asked.names), set(asked.names)
    if trained == names:
        return []
    if trained > names:
        more = "; they are no new ones to it" if classes == "new" else ""
        return [f"{len(names)} of the {len(trained)} classes that {target.name} was trained on{more}"]
    said = f"the data has other classes than the {len(trained)} that {target.name} was trained on"
    if classes == "all":
        raise UsageError(said, "say --classes data to classify zero-shot among the data's own")
    return [f"{said}: zero-shot"]


def _own_data(target: Target, registry: Registry) -> Any:
    """The block of the data that a checkpoint was trained on."""
    if target.opened is None:
        raise UsageError(f"{target.name} brings no data", "give a folder of class folders: --data DIR")
    own = {"data": target.facts["recipe"]["data"]}
    return resolve_blocks(own, registry, provided=target.facts["plugins"])[("data",)]


def _folder(registry: Registry, root: str | None) -> Any:
    """The block of `--data DIR`; None where none is given."""
    if root is None:
        return None
    tree = {"use": _one(registry, "dataset", "folder", "--data"), "root": root}
    return resolve_blocks({"data": tree}, registry)[("data",)]


def _threat(given: Mapping[str, Any] | None, norm: str | None, eps: float | None) -> Threat:
    """The ball that was given, or what options put in its place."""
    if norm and eps is None and given and norm != given["norm"]:
        raise UsageError(
            f"--norm {norm} needs a radius of its own: {given['eps']:g} is one of {given['norm']}",
            "give --eps too, for example --norm l2 --eps 0.5",
        )
    radius = eps if eps is not None else (given or {}).get("eps")
    if radius is None:
        raise UsageError("how strong may the attack be?", "say so with --eps, for example --eps 4/255")
    return Threat(norm or (given or {}).get("norm", "linf"), radius)


def _left_out(target: Target, source: str) -> str:
    """Why a suite's column cannot be measured on this model; "" where it can."""
    if source == "base" and target.opened is None:
        return f"{target.name} is its own base"
    if source == "teachers" and not target.roles():
        return f"{target.name} had no teachers"
    return ""


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _contents(model: VisionLanguageModel) -> str:
    """A hash of what a model has learned."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.learned().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _changed(records: Iterable[Record], registry: Registry) -> list[str]:
    """The single-file plugins that are loaded with other content than the records say."""
    loaded = {plugin.name: plugin.sha256 for plugin in registry.plugins if plugin.file}
    noted = {record["plugin"]: record["sha256"] for record in records if record["sha256"]}
    return [name for name, digest in noted.items() if loaded.get(name, digest) != digest]


def _bare(model: str) -> tuple[str, str, str] | None:
    """(plugin or "", name, weights) of NAME@WEIGHTS; None: it is a file."""
    name, at, weights = model.rpartition("@")
    if not at or resource(model).exists():
        return None
    use, colon, rest = name.partition(":")
    named = colon and use not in ("hf-hub", "local-dir") and not resource(name).exists()
    return (use, rest, weights) if named else ("", name, weights)


def undefended(model: str, registry: Registry, *, weights: bool = True) -> VisionLanguageModel:
    """Build what NAME@WEIGHTS says.

    Args:
        weights: False builds it on the meta device; `@WEIGHTS` may then be missing.
    """
    use, name, source = _bare(model) or ("", model, "")
    use = use or _one(registry, "teacher", "bare", "--model NAME")
    blocks = resolve_blocks({"teachers": {"model": {"use": use, "model": name, "weights": source}}}, registry)
    return build.model(registry, blocks[("teachers", "model")], weights=weights)


def _one(registry: Registry, kind: str, mark: str, option: str) -> str:
    """The one component of a kind whose spec carries a mark."""
    marked = [entry.qualified for entry in registry.entries(kind) if getattr(entry.spec, mark)]
    if len(marked) != 1:
        found = ", ".join(marked) or "none"
        raise UsageError(f"{option} needs exactly one {kind} that is meant for it; there is: {found}")
    return marked[0]


def _parsed(threat: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A stored threat with its radius as a number."""
    if threat is None:
        return None
    fields = ThreatFields(**threat)
    return {"norm": fields.norm, "eps": fields.eps}
