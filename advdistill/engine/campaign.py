"""A whole suite of protocols on one model, into a folder: outcomes, an evaluation card, pictures."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advdistill.engine import doubt
from advdistill.engine.card import card, markdown
from advdistill.engine.checkpoint import write_bytes
from advdistill.engine.doubt import Indicator
from advdistill.engine.evaluate import Progress
from advdistill.engine.outcomes import FILE, Column, Evaluation
from advdistill.engine.pictures import save_curves
from advdistill.engine.store import Folder
from advdistill.engine.subject import Subject, Target
from advdistill.errors import RunError, UsageError
from advdistill.recipe.dump import to_yaml
from advdistill.recipe.resolve import resolve_blocks

if TYPE_CHECKING:
    from advdistill.hooks.registry import Registry
    from advdistill.recipe.suite import Suite

HEAD = "evaluation.json"


def folder_of(target: Target, suite: Suite) -> Path:
    """Where an evaluation goes that was not told: `evaluations/MODEL-SUITE`."""
    path = target.opened.path if target.opened else None
    run = path.parent.name if path and path.stem in ("last", "best") else path.stem if path else target.name
    return Path("evaluations") / f"{''.join(c if c.isalnum() or c in '-_.' else '_' for c in run)}-{suite.name}"


def claim(out: Path, target: Target, suite: Suite, how: dict[str, Any], overwrite: bool) -> None:
    """Make `out` the folder of this evaluation, new or begun.

    Args:
        how: what else decides what is measured; JSON-able.

    Raises:
        UsageError: another model or another suite was evaluated there, or something else lies there.
        RunError: it cannot be written.
    """
    said = {"model": target.fingerprint, "suite": suite.tree, "how": how}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
    head = out / HEAD
    try:
        known = json.loads(head.read_text(encoding="utf-8")) if head.exists() else None
        if known is None and out.exists() and any(out.iterdir()):
            raise UsageError(f"{out} holds something else than an evaluation", "choose another --out")
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot use {out}: {error}", "choose another --out") from error
    if known and known.get("digest") != digest and not overwrite:
        what = "model" if known.get("model") != target.fingerprint else "protocol"
        raise UsageError(
            f"{out} holds an evaluation of another {what} ({known.get('suite')} on {known.get('subject')})",
            "choose another --out, or put this one in its place with --overwrite",
        )
    about = {"digest": digest, "model": target.fingerprint, "subject": target.name, "suite": suite.name, **how}
    write_bytes(head, (json.dumps(about, indent=2) + "\n").encode())
    write_bytes(out / "protocol.yaml", to_yaml(suite.tree).encode())


def run(
    target: Target,
    suite: Suite,
    subjects: list[Subject],
    registry: Registry,
    out: Path,
    *,
    batch_size: int = 256,
    workers: int = 0,
    images: bool = True,
    progress: Progress = lambda protocol, done, total: None,
) -> tuple[Evaluation, list[Indicator]]:
    """Measure what is not measured yet, and write `outcomes.safetensors`, `card.md`, `card.json`, and curves.

    Args:
        subjects: see `advdistill.engine.subject.subjects`.
        out: claimed before.
        images: keep the adversarial images of every sample, as float32.

    Raises:
        UserError: from the parts; what was finished before is kept, and the same call goes on from there.
    """
    store = Folder(out / "packs", target.fingerprint, images)
    how = {"batch_size": batch_size, "workers": workers, "progress": progress, "store": store}
    benches = [(subject, subject.bench(**how)) for subject in subjects]
    for subject, bench in benches:
        for protocol in subject.protocols:
            bench.statement(protocol)  # a source that is not there is told before anything is measured
    columns: list[Column] = []
    for subject, bench in benches:
        columns += bench.columns(subject.protocols, scope=subject.scope)
    facts = {**target.to_json(), "versions": {"advdistill": metadata.version("advdistill")}}
    evaluation = Evaluation(target.name, facts, tuple(columns))
    evaluation.save(out / FILE)
    indicators = doubt.from_columns(evaluation)
    if suite.model.doubt:
        indicators = doubt.combined(indicators, doubts(subjects[0], suite, registry, progress))
    said = card(evaluation, indicators)
    write_bytes(out / "card.json", (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode())
    write_bytes(out / "card.md", markdown(said).encode())
    save_curves(evaluation, out)
    return evaluation, indicators


def doubts(subject: Subject, suite: Suite, registry: Registry, progress: Progress) -> list[Indicator]:
    """The probes on the suite's first white-box attack that takes steps; on APGD-CE where none does."""
    chosen = resolve_blocks({"attack": {"use": "apgd", "loss": "ce"}}, registry)[("attack",)]
    threat = next((p.threat for p in subject.protocols if p.threat), None)
    for protocol in subject.protocols:
        block = suite.attacks.get(protocol.name)
        if block and protocol.attacker.knowledge == "white-box" and hasattr(block.config, "steps"):
            chosen, threat = block, protocol.threat
            break
    if threat is None:
        return []
    return doubt.probe(subject, chosen, threat, suite.model.doubt, registry, progress)
