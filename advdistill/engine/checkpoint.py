"""Checkpoints: one safetensors file with what was learned, and one metadata key that says the rest.

The metadata key `advdistill` holds canonical JSON (see `advdistill.recipe.header`), readable with the standard library.
Files are written whole or not at all, and loaded strictly both ways.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from advdistill.engine.model import VisionLanguageModel
from advdistill.engine.participant import Participant
from advdistill.engine.types import ClassSet, Clock, Threat
from advdistill.errors import DataError, PluginError, RecipeError, RunError, UsageError
from advdistill.hooks.registry import Registry, default_registry
from advdistill.recipe.header import FORMAT, KEY, read_header
from advdistill.recipe.paths import resource
from advdistill.recipe.providers import find
from advdistill.recipe.resolve import resolve_blocks

if TYPE_CHECKING:
    from advdistill.recipe.resolve import Recipe

_TEACHER = "teacher."


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a safetensors file atomically: temporary file, fsync, rename. What was at `path` survives a failure.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    flat: dict[str, Tensor] = {}
    storages = set[int]()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        # safetensors takes no two tensors in one place: tied weights, or views.
        flat[name] = plain.clone() if place in storages else plain
        storages.add(place)
    data = safetensors.torch.save(flat, {KEY: json.dumps(facts, sort_keys=True, ensure_ascii=False)})
    write_bytes(path, data)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` whole or not at all. Raises RunError where that fails."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        partial.unlink(missing_ok=True)
        kept = f"; {path.name} as it was before is kept" if path.exists() else ""
        raise RunError(
            f"cannot write {path}: {error.strerror}{kept}", "free some space or choose another save.dir"
        ) from error


def write_json(path: Path, said: Any) -> None:
    """Write plain data to `path` whole or not at all, readable by people. Raises RunError where that fails."""
    write_bytes(path, (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode())


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts and the tensors of a file that `write` wrote. Raises DataError for anything else."""
    facts, _ = read_header(path)
    try:
        return facts, safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: {error}", "the file is damaged; copy or train it again") from error


def learned(student: Participant, teachers: Mapping[str, Participant]) -> dict[str, Tensor]:
    """All that a run changes, live: the student's names as they are, as `teacher.ROLE.name` those of a teacher that
    learns or follows."""
    found = dict(student.model.learned())
    for role, teacher in teachers.items():
        if teacher.changes:
            found |= {f"{_TEACHER}{role}.{name}": tensor for name, tensor in teacher.model.learned().items()}
    return found


def of_student(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The student's share of what `learned` gathered."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_TEACHER)}


def stored_as(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The tensors with floating-point ones as "fp32" or "fp16"."""
    to = {"fp32": torch.float32, "fp16": torch.float16}[dtype]
    return {name: tensor.to(to) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def facts(recipe: Recipe, student: Participant, data: Mapping[str, Any], clock: Clock) -> dict[str, Any]:
    """What a checkpoint says beside its tensors. `results` is added once there are some."""
    return {
        "format": FORMAT,
        "recipe": dict(recipe.tree),
        **student.model.describe(),
        "classes": list(student.classes.names),
        "templates": list(student.classes.templates),
        "data": dict(data),
        "threat": {"norm": recipe.threat.norm, "eps": recipe.threat.eps},
        "clock": {"step": clock.step, "steps": clock.steps, "epoch": clock.epoch},
        "plugins": list(recipe.providers),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python, advdistill, and what it requires."""
    lines = [line for line in metadata.requires("advdistill") or () if "extra ==" not in line]
    required = [re.split(r"[^\w.-]", line)[0] for line in lines]
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in ["advdistill", *required]}}


@dataclass(frozen=True)
class Opened:
    """A checkpoint brought back to life.

    Attributes:
        model: the student with its learned values, in eval mode. classes: the names and templates it was trained with.
        facts: the metadata. path: the file.
    """

    model: VisionLanguageModel
    classes: ClassSet
    facts: dict[str, Any]
    path: Path

    @property
    def own_results(self) -> dict[str, Any] | None:
        """The student's row among the stored results."""
        return next((row for row in self.facts.get("results", []) if row["subject"] == "student"), None)


def open_checkpoint(path: str | Path, registry: Registry | None = None, *, weights: bool = True) -> Opened:
    """Rebuild the student of a checkpoint from the file alone (and from the base weights that it names).

    Args:
        weights: False builds it on the meta device (for plans).

    Raises:
        DataError: the file or the base weights are missing, damaged, of a newer format, or do not fit.
        PluginError: a plugin that it needs is not installed; says which and what to install.
    """
    file = resource(str(path))
    facts, tensors = read(file) if weights else (read_header(file)[0], {})
    if lacking := [key for key in ("recipe", "classes", "templates", "threat", "plugins") if key not in facts]:
        raise DataError(
            f"{file} holds no model that is ready for use: it lacks {', '.join(lacking)}",
            "a run's model is its last.safetensors; its resume.safetensors is there for `train --resume`",
        )
    registry = registry or default_registry()
    block = dict(facts["recipe"]["student"])
    try:
        spec = find(registry, "student", block["use"], facts["plugins"]).spec
    except (PluginError, RecipeError) as error:
        raise PluginError(f"{file}: {error.message}", error.hint) from error
    config = registry.load(spec, "config")
    settings = {key: value for key, value in block.items() if key != "use"}
    model = registry.load(spec).from_config(config(**settings) if config else None, weights=weights)
    model.eval()
    model.templates = tuple(facts["templates"])
    opened = Opened(model, ClassSet(tuple(facts["classes"]), tuple(facts["templates"])), facts, file)
    model.bind(opened.classes)
    if not weights:
        return opened
    base = model.describe()["base"]
    own = model.learned()
    if sum(t.numel() for t in own.values()) < sum(p.numel() for p in model.parameters()):
        wanted = facts["base"]["fingerprint"]
        if base["fingerprint"] != wanted:
            raise DataError(
                f"{file} was trained on other base weights than {base['model']} {base['weights']} "
                f"(fingerprint {wanted[:12]}, here {base['fingerprint'][:12]})",
                "give it the weights it was trained on",
            )
    try:
        model.load_learned(of_student(tensors))
    except DataError as error:
        raise DataError(f"{file}: {error.message}", error.hint) from error
    return opened


def open_teacher(opened: Opened, role: str, registry: Registry) -> VisionLanguageModel:
    """The teacher that the run of a checkpoint had in that role, as it was when the run ended.

    Raises:
        UsageError: there was none.
        DataError, PluginError, RecipeError: from its parts.
    """
    blocks = opened.facts["recipe"].get("teachers", {})
    if role not in blocks:
        raise UsageError(f"the run of {opened.path} had no {role!r} teacher", f"it had: {', '.join(blocks) or 'none'}")
    place = ("teachers", role)
    block = resolve_blocks({"teachers": {role: blocks[role]}}, registry, provided=opened.facts["plugins"])[place]
    model: VisionLanguageModel = registry.load(block.spec).from_config(block.config)
    model.bind(opened.classes)
    head = f"{_TEACHER}{role}."
    own = {name.removeprefix(head): t for name, t in read(opened.path)[1].items() if name.startswith(head)}
    if own:
        model.load_learned(own)
    return model.eval()


class Classifier(nn.Module):
    """A trained model as other people's code wants it: pixels in [0, 1] -> logits, class names fixed.

    Attributes:
        names: class names in label order. threat: the ball it was trained for. image_size: its tower's native side.

    Args:
        participant: a model with its classes.
        threat: see above.
    """

    def __init__(self, participant: Participant, threat: Threat) -> None:
        super().__init__()
        self.model = participant.model
        self.names = participant.classes.names
        self.threat = threat
        self.image_size = participant.model.image_size
        self._participant = participant
        super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> (B, C) float32 logits, differentiable in the pixels."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise UsageError(f"images must be (B, 3, H, W) floats, not {tuple(images.shape)} {images.dtype}")
        if images.numel() and (images.amin() < -1e-4 or images.amax() > 1 + 1e-4):
            low, high = images.amin().item(), images.amax().item()
            raise UsageError(
                f"pixels must lie in [0, 1], these lie in [{low:.3g}, {high:.3g}]",
                "do not normalise: that happens inside the model",
            )
        return self._participant.logits(images.float())

    def train(self, mode: bool = True) -> Classifier:
        """Stays in eval mode: attack libraries switch modes, and this model is finished."""
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Moving the model moves its parameters; the prepared classes and class features must follow.
        moved = super()._apply(fn, recurse)
        self._participant = Participant(self.model, self._participant.classes)
        return moved


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    classes: ClassSet | None = None,
    plugins: Iterable[str | Path] = (),
) -> Classifier:
    """Load a checkpoint as a module, ready for anything that takes a classifier.

    Args:
        path: an advdistill checkpoint.
        device: where to put it.
        classes: other classes to tell apart (zero-shot); None: those it was trained with.
        plugins: single-file plugins that it needs.

    Raises:
        DataError, PluginError: as `open_checkpoint`.
    """
    opened = open_checkpoint(path, default_registry().with_files(plugins))
    if classes:
        opened.model.templates = classes.templates
    # A copy: models share their frozen base, and moving or casting this one must not reach another.
    model = copy.deepcopy(opened.model).to(device)
    return Classifier(Participant(model, classes or opened.classes), Threat(**opened.facts["threat"]))


class CheckpointTeacher(VisionLanguageModel):
    """`use: checkpoint`: the student of an earlier run teaches. Never built itself: `from_config` returns it."""

    @classmethod
    def from_config(cls, config: Any, *, weights: bool = True) -> VisionLanguageModel:
        """The model in the file `config.path`, with its own templates and its stored results."""
        opened = open_checkpoint(config.path, weights=weights)
        opened.model.stored_results = opened.own_results
        return opened.model
