"""What a command is pointed at: a checkpoint, or a model that nobody has defended, with data and protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from advdistill.engine import build
from advdistill.engine.checkpoint import open_checkpoint
from advdistill.engine.data import Dataset, Split
from advdistill.engine.evaluate import Protocol, split_reader
from advdistill.engine.model import VisionLanguageModel
from advdistill.engine.step import Participant
from advdistill.engine.types import Threat
from advdistill.errors import DataError, UsageError
from advdistill.recipe.model import Threat as ThreatFields
from advdistill.recipe.paths import resource
from advdistill.recipe.resolve import resolve_blocks

if TYPE_CHECKING:
    from advdistill.hooks.registry import Registry
    from advdistill.recipe.providers import Record


@dataclass(frozen=True)
class Subject:
    """A model with the data and the protocols that it is measured on.

    Attributes:
        name: what to call it. splits: name -> Split. seed: of subsets and noise. notes: what to know about it.
    """

    name: str
    participant: Participant
    splits: Callable[[str], Split]
    protocols: list[Protocol]
    seed: int
    notes: tuple[str, ...]


def subject(
    model: str,
    registry: Registry,
    *,
    data: str | None = None,
    attack: str | None = None,
    settings: Sequence[str] = (),
    norm: str | None = None,
    eps: float | None = None,
    limit: int | None = None,
    device: str = "auto",
) -> Subject:
    """Build what `--model` and its sister options say.

    Args:
        model: a checkpoint, or NAME@WEIGHTS for an undefended model.
        data: an image folder; None: the checkpoint's own data.
        attack: a plugin's name; None: the protocols of the checkpoint's recipe.
        settings: words like `steps=20` for the attack.
        norm, eps: the threat; None: the checkpoint's, protocol by protocol.
        limit: samples a protocol; None: as the protocol says.

    Raises:
        UsageError: the options do not fit together.
        DataError, PluginError, RecipeError: from the parts.
    """
    bare = _bare(model)
    if not bare and not resource(model).exists():
        raise DataError(
            f"there is no checkpoint {model}", "an undefended model is written NAME@WEIGHTS: ViT-B-32-quickgelu@openai"
        )
    opened = None if bare else open_checkpoint(model, registry)
    facts: Mapping[str, Any] = opened.facts if opened else {}
    tree: dict[str, Any] = {}
    if data is not None:
        tree["data"] = {"use": _one(registry, "dataset", "folder", "--data"), "root": data}
    elif opened:
        tree["data"] = facts["recipe"]["data"]
    else:
        raise UsageError(f"{model} brings no data", "give a folder of class folders: --data DIR")
    if attack is not None:
        tree["attack"] = {"use": attack}
    elif opened:
        tree["evaluate"] = {"protocols": facts["recipe"]["evaluate"]["protocols"]}
    else:
        raise UsageError(f"{model} brings no protocols", "say which attack: --attack pgd steps=20")
    if settings and attack is None:
        raise UsageError(f"{settings[0]!r} is a setting of an attack, but none is named", "--attack NAME key=value …")
    if odd := [word for word in settings if "=" not in word]:
        raise UsageError(f"{odd[0]!r} is not a setting", "Write key=value, like steps=20.")
    records = facts.get("plugins", [])
    blocks = resolve_blocks(tree, registry, provided=records, overrides=[f"attack.{word}" for word in settings])

    dataset: Dataset = build.component(registry, blocks[("data",)])
    built = opened.model if opened else undefended(model, registry)
    participant = Participant(built.to(build.device_of(device)), dataset.classes)

    def threat(stored: Mapping[str, Any] | None) -> Threat:
        given = stored or facts.get("threat") or {"norm": "linf", "eps": None}
        radius = given["eps"] if eps is None else eps
        if radius is None:
            raise UsageError("how strong may the attack be?", "say so with --eps, for example --eps 4/255")
        return Threat(norm or given["norm"], radius)

    where: dict[str, Any] = {} if limit is None else {"limit": limit}
    if attack is not None:
        name = " ".join([attack, *settings])
        protocols = [Protocol("clean", **where), _protocol(registry, name, blocks[("attack",)], threat(None), **where)]
    else:
        protocols = []
        for index, stored in enumerate(facts["recipe"]["evaluate"]["protocols"]):
            block = blocks.get(("evaluate", "protocols", index, "attack"))
            at = {"split": stored["split"], "limit": stored["limit"], **where}
            protocols.append(_protocol(registry, stored["name"], block, threat(_parsed(stored["threat"])), **at))
    seed = facts["recipe"]["seed"] if opened else 0
    notes = [f"{name}.py has changed since {model} was written" for name in _changed(records, registry)]
    if opened and opened.classes.names != dataset.classes.names:
        notes.append(
            f"the data has other classes than the {len(opened.classes)} that {model} was trained on: zero-shot"
        )
    return Subject(model, participant, split_reader(dataset), protocols, seed, tuple(notes))


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


def _protocol(registry: Registry, name: str, block: Any, threat: Threat, **where: Any) -> Protocol:
    if block is not None and threat.norm not in block.spec.norms:
        known = ", ".join(sorted(block.spec.norms))
        raise UsageError(
            f"attack {block.use!r} knows {known}, not {threat.norm}", f"give --norm {known.split(', ')[0]}"
        )
    return build.protocol(registry, name, block, threat, **where)


def _parsed(threat: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A stored threat with its radius as a number."""
    if threat is None:
        return None
    fields = ThreatFields(**threat)
    return {"norm": fields.norm, "eps": fields.eps}
