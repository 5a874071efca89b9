"""A whole suite of protocols on one model, into a folder: outcomes, an evaluation card, pictures."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from advdistill.engine import doubt, manifest
from advdistill.engine.card import card, markdown
from advdistill.engine.checkpoint import write_bytes, write_json
from advdistill.engine.distributed import ALONE, World
from advdistill.engine.doubt import Indicator
from advdistill.engine.evaluate import Progress
from advdistill.engine.outcomes import FILE, Column, Evaluation
from advdistill.engine.pictures import save_curves
from advdistill.engine.store import Folder
from advdistill.engine.subject import Subject, Target
from advdistill.errors import RunError, UsageError, UserError
from advdistill.recipe.dump import to_yaml
from advdistill.recipe.paths import file_name
from advdistill.recipe.resolve import resolve_blocks

if TYPE_CHECKING:
    from advdistill.hooks.registry import Registry
    from advdistill.recipe.suite import Suite

HEAD, PACKS = "evaluation.json", "packs"
WRITTEN = (FILE, "card.md", "card.json", "eps.png", "doubts.json")


def folder_of(target: Target, suite: Suite) -> Path:
    """Where an evaluation goes that was not told: `evaluations/MODEL-SUITE`."""
    path = target.opened.path if target.opened else None
    run = path.parent.name if path and path.stem in ("last", "best") else path.stem if path else target.name
    return Path("evaluations") / f"{file_name(run)}-{suite.name}"


@contextlib.contextmanager
def _of_scope(scope: str) -> Iterator[None]:
    """An error inside says in which scope it was."""
    try:
        yield
    except UserError as error:
        if scope:
            error.message = f"{scope}: {error.message}"
        raise


class Campaign:
    """The folder of one evaluation, locked while it is entered.

    Args:
        out: new, or begun by the same evaluation.
        how: what else decides what is measured; JSON-able.
        overwrite: another evaluation that is in it may go.
        world: who measures; the main process locks and writes, the others add what they measured.

    Raises:
        UsageError: another model or another suite was evaluated there, or something else lies there.
        RunError: another process is at work in it, or it cannot be written.
    """

    def __init__(
        self, out: Path, target: Target, suite: Suite, how: Mapping[str, Any], overwrite: bool, world: World = ALONE
    ) -> None:
        self.path, self.target, self.suite, self._world = out, target, suite, world
        said = {"model": target.fingerprint, "suite": suite.tree, "how": how}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
        self._about = {
            "digest": digest,
            "model": target.fingerprint,
            "subject": target.name,
            "suite": suite.name,
            **how,
        }
        self._overwrite = overwrite
        self._lock: IO[str] | None = None

    def __enter__(self) -> Campaign:
        if self._world.main:
            self._claim()
        self._world.wait()
        return self

    def _claim(self) -> None:
        head, known = self.path / HEAD, None
        try:
            if head.exists():
                known = json.loads(head.read_text(encoding="utf-8"))
            elif self.path.exists() and any(not each.name.startswith(".") for each in self.path.iterdir()):
                raise UsageError(f"{self.path} holds something else than an evaluation", "choose another --out")
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        except (OSError, ValueError) as error:
            raise RunError(f"cannot use {self.path}: {error}", "choose another --out") from error
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise RunError(f"another evaluation is writing to {self.path}", "wait for it, or choose --out") from error
        if known and (known.get("digest") != self._about["digest"] or self._overwrite):
            if not self._overwrite:
                self._lock.close()
                what = "model" if known.get("model") != self._about["model"] else "protocol"
                raise UsageError(
                    f"{self.path} holds an evaluation of another {what} "
                    f"({known.get('suite')} on {known.get('subject')})",
                    "choose another --out, or put this one in its place with --overwrite",
                )
            for name in (*WRITTEN, *(path.name for path in self.path.glob("manifest*.json"))):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / PACKS, ignore_errors=True)
        write_json(head, self._about)
        write_bytes(self.path / "protocol.yaml", to_yaml(self.suite.tree).encode())

    def __exit__(self, *_: object) -> None:
        if self._lock:
            self._lock.close()

    def run(
        self,
        subjects: list[Subject],
        registry: Registry,
        *,
        batch_size: int = 256,
        workers: int = 0,
        images: bool = True,
        progress: Progress = lambda protocol, done, total: None,
    ) -> tuple[Evaluation, list[Indicator]]:
        """Measure what is not measured yet, and write `outcomes.safetensors`, `card.md`, `card.json`, and curves.

        Args:
            subjects: see `advdistill.engine.subject.subjects`.
            images: keep the adversarial images of every sample, as float32.

        Returns:
            What was found, and the doubts; only the main process doubts.

        Raises:
            UserError: from the parts; what was finished before is kept, and the same call goes on from there.
        """
        version = metadata.version("advdistill")
        store = Folder(self.path / PACKS, f"{self.target.fingerprint}/{version}", images, self._world)
        how = {"batch_size": batch_size, "workers": workers, "progress": progress, "store": store}
        how["world"] = self._world
        benches = [(subject, subject.bench(**how)) for subject in subjects]
        for subject, bench in benches:
            with _of_scope(subject.scope):
                for protocol in subject.protocols:
                    bench.statement(protocol)  # a model that is not there is told before anything is measured
        if self._world.main:
            names = [file_name(subject.scope) for subject in subjects]
            if twice := [name for name in names if names.count(name) > 1]:
                raise UsageError(f"two scopes would be written to manifest-{twice[0]}.json", "rename one of them")
            for subject in subjects:
                manifest.write(self.path, subject.manifest(self.suite.model.split), file_name(subject.scope))
        columns: list[Column] = []
        for subject, bench in benches:
            with _of_scope(subject.scope):
                columns += bench.columns(subject.protocols, scope=subject.scope)
        facts = {**self.target.to_json(), "versions": {"advdistill": version}}
        evaluation = Evaluation(self.target.name, facts, tuple(columns))
        if not self._world.main:
            return evaluation, []
        evaluation.save(self.path / FILE)
        indicators = doubt.from_columns(evaluation)
        save_curves(evaluation, self.path)
        self._write_card(evaluation, indicators)
        if self.suite.model.doubt:
            key = [version, *(column.statement["key"] for column in columns)]
            indicators = doubt.combined(indicators, self._doubts(subjects, key, registry, progress))
            self._write_card(evaluation, indicators)
        return evaluation, indicators

    def _write_card(self, evaluation: Evaluation, indicators: list[Indicator]) -> None:
        said = card(evaluation, indicators)
        write_json(self.path / "card.json", said)
        write_bytes(self.path / "card.md", markdown(said).encode())

    def _doubts(
        self, subjects: list[Subject], key: list[str], registry: Registry, progress: Progress
    ) -> list[Indicator]:
        """What the probes say, scope by scope; kept under `key`, so that an evaluation that is asked for again need not
        doubt again."""
        file = self.path / "doubts.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"key": []}
        if known["key"] == key:
            return [Indicator.from_json(each) for each in known["indicators"]]
        found = [each for subject in subjects for each in self._probed(subject, registry, progress)]
        said = {"key": key, "indicators": [each.to_json() for each in found]}
        write_json(file, said)
        return found

    def _probed(self, subject: Subject, registry: Registry, progress: Progress) -> list[Indicator]:
        """The probes on the first white-box attack that takes steps; on APGD-CE where none does."""
        settings = self.suite.model
        chosen = resolve_blocks({"attack": {"use": "apgd", "loss": "ce"}}, registry)[("attack",)]
        threat = next((p.threat for p in subject.protocols if p.threat), None)
        for protocol in subject.protocols:
            block = self.suite.attacks.get(protocol.name)
            if block and protocol.attacker.knowledge == "white-box" and hasattr(block.config, "steps"):
                chosen, threat = block, protocol.threat
                break
        if threat is None:
            return []
        return doubt.probe(subject, chosen, threat, settings.doubt, registry, progress, split=settings.split)
