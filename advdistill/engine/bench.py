"""What a recipe's step costs on this machine, phase by phase, beside what it would have to.

Steps are the run's own (`fit.Run.take`); nothing is evaluated, nothing is written. The floor of a step is what the
method cannot do without, each part timed alone: the passes that were counted in its steps (forward alone, forward and
backward to the pixels, forward and backward to the parameters), as many images as went each way, and class features
encoded once, forward and backward, for each model whose class features learn.
"""

from __future__ import annotations

import contextlib
import gc
import resource
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advdistill.engine import build, memory, recall, timing
from advdistill.engine.cost import median_of
from advdistill.engine.events import Event, Warned
from advdistill.engine.feed import loading_rates
from advdistill.engine.fit import Run, warnings_told
from advdistill.engine.folder import RunFolder
from advdistill.engine.launch import cores
from advdistill.engine.model import Encoded
from advdistill.engine.participant import Participant, tf32
from advdistill.engine.plan import Plan, estimated
from advdistill.engine.standin import with_data
from advdistill.engine.subject import undefended
from advdistill.engine.timing import CLASS_FEATURES
from advdistill.errors import UserError
from advdistill.recipe.loader import recipe_files
from advdistill.recipe.resolve import load_recipe, resolve_blocks

if TYPE_CHECKING:
    from advdistill.hooks.registry import Registry
    from advdistill.recipe.resolve import Recipe

WARM_UP = 2
"""Steps before those that count: towers are compiled, memory is taken."""

QUICKSTART = "quickstart"
"""Whose data all methods can be measured on, without a download."""

FLOOR = (
    "floor: the step's passes through models, and class features once for each that learns them, each timed alone\n"
    "other: losses, and what the engine adds"
)


@dataclass(frozen=True)
class Inference:
    """How fast a model answers, in float32.

    Attributes:
        latency: seconds for one image, the median. throughput: images a second, `batch` at a time.
    """

    latency: float
    throughput: float
    batch: int

    def to_json(self) -> dict[str, Any]:
        """As plain data, units in the names."""
        return {"latency_seconds": self.latency, "images_per_second": self.throughput, "batch_size": self.batch}


@dataclass(frozen=True)
class Measured:
    """A recipe's cost.

    Attributes:
        name, method: of the recipe. where: device, precision and threads, in words.
        size: images in a step. steps: how many were measured.
        seconds: of a step, the median; on a GPU while nobody watches, which makes the host wait.
        phases: phase -> seconds of it in a step, the median. floor: phase -> its part of the floor, seconds.
        flops: phase -> floating-point operations of the run's first step, as counted by `advdistill.engine.cost`; None:
            not known.
        rate: FLOPs a second of a matrix product here, in the towers' precision; None: not known.
        memory: peak, bytes. memory_of: what that is the memory of.
        learns: role -> (parameters that learn, parameters in all).
        hardened, plain: the student, and what it was before anything was learned.
        notes: what to know about the numbers.
    """

    name: str
    method: str
    where: str
    size: int
    steps: int
    seconds: float
    phases: dict[str, float]
    floor: dict[str, float]
    flops: dict[str, float] | None
    rate: float | None
    memory: int
    memory_of: str
    learns: dict[str, tuple[int, int]]
    hardened: Inference
    plain: Inference
    notes: tuple[str, ...]

    @property
    def images_per_second(self) -> float:
        """In training."""
        return self.size / self.seconds

    @property
    def to_floor(self) -> float:
        """How many times the floor a step takes."""
        return self.seconds / sum(self.floor.values())

    def estimate(self, phase: str) -> float | None:
        """Seconds of a phase at the rate of a matrix product; None: not known."""
        return self.flops.get(phase, 0.0) / self.rate if self.flops is not None and self.rate else None

    @property
    def utilisation(self) -> float | None:
        """FLOPs a second of the step as a share of the matrix product's; None: not known."""
        return sum(self.flops.values()) / self.seconds / self.rate if self.flops is not None and self.rate else None

    def to_json(self) -> dict[str, Any]:
        """As plain data, units in the names."""
        return {
            "recipe": self.name,
            "method": self.method,
            "where": self.where,
            "batch_size": self.size,
            "steps": self.steps,
            "seconds_per_step": self.seconds,
            "images_per_second": self.images_per_second,
            "seconds_by_phase": self.phases,
            "floor_seconds_by_phase": self.floor,
            "ratio_to_floor": self.to_floor,
            "flops_by_phase": self.flops,
            "matmul_flops_per_second": self.rate,
            "share_of_matmul_rate": self.utilisation,
            "peak_memory_bytes": self.memory,
            "peak_memory_of": self.memory_of,
            "parameters": {role: {"learns": a, "total": b} for role, (a, b) in self.learns.items()},
            "inference": {"hardened": self.hardened.to_json(), "undefended": self.plain.to_json()},
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Failed:
    """A recipe that could not be measured, and why."""

    name: str
    method: str
    why: str

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"recipe": self.name, "method": self.method, "error": self.why}


def measure(recipe: Recipe, registry: Registry, steps: int = 5) -> Measured:
    """Take a run's first steps: `WARM_UP`, and then `steps` that are measured.

    Raises:
        RunError: non-finite loss. DataError: weights or a teacher are missing, or data that is there cannot be used.
        PluginError, RecipeError, UsageError: from the parts.
    """
    recipe, lacks = with_data(recipe, registry)
    notes = [f"not on this machine: {lacks}; loading and augmentation are not in these numbers"] if lacks else []
    planned = estimated(recipe, registry)
    if planned.unknown:
        notes.append(f"no estimate: {planned.unknown}")
    recipe = build.settled(_bare(recipe, WARM_UP + 2 * steps))

    def hear(event: Event) -> None:
        if isinstance(event, Warned):
            notes.append(event.message)

    with tf32(recipe.train.precision == "tf32"), memory.named(memory.IN_TRAINING), warnings_told(hear):
        run = Run(recipe, registry, RunFolder(recipe, resume=False, overwrite=False, main=False), hear)
        batches, device = run.batches(), run.parts.device
        again = planned.steps > planned.per_epoch
        with recall.foreseen(recipe.train, run.parts.teachers, run.split, again) as kept:
            for _ in range(WARM_UP):
                run.take(next(batches))
        afresh = _reset_peak(device)
        seconds, bills = [], []
        for _ in range(steps):
            if device.type != "cpu":
                seconds.append(_seconds(lambda: run.take(next(batches)), device))
            with timing.watched(timing.clock(device)) as watch:
                run.take(next(batches))
            bills.append(watch.seen())
        peak, peak_of = _peak(device, afresh)
        seconds = seconds or [sum(bill.spent.values()) for bill in bills]
        names = dict.fromkeys(name for bill in bills for name in bill.spent)
        floor = _floor(run, bills)
    notes += _later(planned, list(kept))
    side = run.split.load(0).shape[-1]
    return Measured(
        name=recipe.name,
        method=recipe.strategy.use,
        where=_where(recipe, run),
        size=run.size,
        steps=steps,
        seconds=statistics.median(seconds),
        phases={name: statistics.median(bill.spent.get(name, 0.0) for bill in bills) for name in names},
        floor=floor,
        flops=planned.first,
        rate=planned.rate,
        memory=peak,
        memory_of=peak_of,
        learns=build.count({"student": run.parts.student, **run.parts.teachers}),
        hardened=inference(run.parts.student, side, recipe.evaluate.batch_size),
        plain=inference(run.parts.undefended(), side, recipe.evaluate.batch_size),
        notes=tuple(notes),
    )


def _later(planned: Plan, kept: Sequence[str]) -> list[str]:
    """How later steps of the run differ from its first ones.

    Args:
        kept: names of teachers who were asked what a run keeps.
    """
    told = []
    if planned.first is not None and planned.last is not None:
        times = sum(planned.last.values()) / sum(planned.first.values())
        if abs(times - 1) > 0.01:
            told.append(f"these are the first steps of a run; its last one does {times:.2f} x their arithmetic")
    if kept:
        saved = sum(planned.kept.values()) / sum(planned.first.values()) if planned.first else 0.0
        share = f", {100 * saved:.0f} % of the arithmetic" if saved else ""
        who = " and ".join(f"the {name}" for name in kept)
        told.append(f"the first epoch's steps; later ones know what {who} said of clean images{share}: cache_teachers")
    return told


@dataclass(frozen=True)
class Loading:
    """Whether a run waits for its data.

    Attributes:
        computing: images a second that training would take if they were always there.
        first, later: images a second that come, in the first epoch and in later ones.
        augmenting: those that can be augmented. workers: processes that decode. kept: decoded images stay in memory.
    """

    computing: float
    first: float
    later: float
    augmenting: float
    workers: int
    kept: bool

    @property
    def limit(self) -> str:
        """What later epochs wait for: "loading" or "computing"."""
        return "loading" if self.later < self.computing else "computing"

    @property
    def advice(self) -> str:
        """What to set."""
        if self.limit == "computing":
            return "the data keeps up; more workers would change nothing"
        if self.augmenting < 1.2 * self.later:
            return "augmentation is what takes the time: train on a GPU, or without data.augment"
        if self.kept:
            return "smaller data.size: images come from memory already"
        told = ["train.keep_images larger than the decoded images, if memory allows"]
        told.append(f"train.workers={cores()}" if self.workers < cores() else "smaller data.size, or a faster disk")
        return " or ".join(told)

    def to_json(self) -> dict[str, Any]:
        """As plain data, units in the names."""
        return {
            "computing_images_per_second": self.computing,
            "loading_images_per_second": {"first_epoch": self.first, "later_epochs": self.later},
            "augmenting_images_per_second": self.augmenting,
            "workers": self.workers,
            "kept_in_memory": self.kept,
            "limit": self.limit,
            "advice": self.advice,
        }


def loading(recipe: Recipe, registry: Registry, steps: int = 5) -> Loading:
    """Measure how fast images come, and how fast they are used up.

    Raises:
        DataError: the data is missing. Further ones as `measure`.
    """
    rates = loading_rates(recipe, registry)
    found = measure(recipe, registry, steps)
    computing = found.size / (found.seconds - found.phases.get("data", 0.0))
    return Loading(computing, rates.first, rates.later, 1 / rates.augment_seconds_per_image, rates.workers, rates.kept)


def attempt(recipe: Recipe, registry: Registry, steps: int = 5) -> Measured | Failed:
    """`measure`, where failing is an answer too."""
    try:
        return measure(recipe, registry, steps)
    except UserError as error:
        return Failed(recipe.name, recipe.strategy.use, error.message)
    finally:
        gc.collect()


def methods(registry: Registry, overrides: Sequence[str] = (), backbone: str = "") -> list[Recipe]:
    """One recipe for each strategy that has some on the quickstart's data, sorted by strategy: the one that is named
    after both (apd_digits), else the one with the shortest name.

    Args:
        overrides: for all of them.
        backbone: see `on_backbone`.

    Raises:
        DataError, UsageError: there is no such backbone. RecipeError, UsageError: an override does not fit one of them.
    """
    if backbone:
        undefended(backbone, registry, weights=False)
    data = load_recipe(QUICKSTART, registry=registry).data.qualified
    chosen: dict[str, tuple[tuple[bool, int, str], Path]] = {}
    for path, _ in recipe_files(registry):
        try:
            recipe = load_recipe(path, registry=registry)
        except UserError:
            continue  # a plugin's recipe that is not valid takes no others with it
        use = recipe.strategy.use
        rank = path.stem != f"{use.replace('-', '_')}_{recipe.data.use}", len(path.stem), path.stem
        if recipe.data.qualified == data and (use not in chosen or rank < chosen[use][0]):
            chosen[use] = rank, path
    found = [load_recipe(chosen[use][1], overrides, registry) for use in sorted(chosen)]
    return [on_backbone(recipe, backbone, registry) for recipe in found] if backbone else found


def ordered(steps: Iterable[Mapping[str, float]]) -> list[str]:
    """The phases that occur, in the order of a step."""
    known = dict.fromkeys(phase for phases in steps for phase in phases)
    first, last = ("data", CLASS_FEATURES, "attack", "student"), ("optimizer", timing.OTHER)
    between = sorted(known.keys() - {*first, *last})
    return [phase for phase in (*first, *between, *last) if phase in known]


def random_weights(recipe: Recipe, registry: Registry) -> Recipe:
    """The recipe with random weights in every model that says where its weights come from: a step costs the same."""
    return _changed(recipe, registry, lambda block: {**block, "weights": "random"} if block.get("weights") else block)


def on_backbone(recipe: Recipe, model: str, registry: Registry) -> Recipe:
    """The recipe with every model on the architecture `model`, with random weights; a teacher that is a checkpoint
    becomes an undefended model of that architecture, or one like the student where it learns."""
    plain = next(entry for entry in registry.entries("teacher") if getattr(entry.spec, "bare", False)).qualified

    def change(block: Mapping[str, Any]) -> dict[str, Any]:
        if not {"model", "weights"} <= block.keys():
            like = recipe.tree["student"] if block.get("train") else {"use": plain}
            block = {**like, **{key: block[key] for key in ("train", "ema") if key in block}}
        return {**block, "model": model, "weights": "random"}

    return _changed(recipe, registry, change)


def _changed(recipe: Recipe, registry: Registry, change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Recipe:
    """The recipe with other models."""
    tree = {
        "student": change(recipe.tree["student"]),
        "teachers": {role: change(block) for role, block in recipe.tree["teachers"].items()},
    }
    blocks = resolve_blocks(tree, registry)
    teachers: Any = {role: blocks["teachers", role] for role in recipe.teachers}
    return replace(recipe, student=blocks[("student",)], teachers=teachers, tree={**recipe.tree, **tree})


def _bare(recipe: Recipe, steps: int) -> Recipe:
    """Without all that is no step, and long enough."""
    probe = replace(recipe.evaluate.probe, attack=None)
    evaluate = replace(recipe.evaluate, every=0, protocols=(), probe=probe, controls={})
    train = recipe.train
    if train.steps:
        train = train.model_copy(update={"steps": max(train.steps, steps)})
    else:
        train = train.model_copy(update={"epochs": max(train.epochs, steps)})
    return replace(recipe, evaluate=evaluate, train=train, report=())


def _where(recipe: Recipe, run: Run) -> str:
    device = run.parts.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    everyone = [run.parts.student, *run.parts.teachers.values()]
    compiled = [participant.compiled for participant in everyone if isinstance(participant.model, Encoded)]
    how = ", compiled" if compiled and all(compiled) else ""
    return f"{name}, {recipe.train.precision}{how}{threads}"


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    read = timing.clock(device)
    start = read()
    work()
    return read() - start


def _floor(run: Run, bills: list[timing.Bill]) -> dict[str, float]:
    """See the head of this module. Phase -> seconds."""
    passes, attacks = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for bill in bills:
        passes += bill.passes
        attacks += bill.attacks
    parts, floor = run.parts, defaultdict[str, float](float)
    portion = -(-run.size // run.portions)
    images = torch.rand(portion, *run.split.load(0).shape).to(parts.device)
    parts.student.model.train()
    for participant in (parts.student, *parts.teachers.values()):
        who, alone = participant.name, _Alone(participant, images)
        to_pixels, blind = attacks[who, "backward"], attacks[who, "forward"] - attacks[who, "backward"]
        to_parameters = passes[who, "backward"] - to_pixels
        looks = passes[who, "forward"] - passes[who, "backward"] - blind
        if to_pixels:
            floor["attack"] += to_pixels * alone.to_pixels()
        if to_parameters:
            floor[who] += to_parameters * alone.to_parameters()
        if blind or looks:
            seconds = alone.forward()
            floor["attack"] += blind * seconds
            floor[who] += looks * seconds
        if isinstance(participant.model, Encoded) and participant.learns and participant.model.classifier_learns:
            floor[CLASS_FEATURES] += len(bills) * alone.class_features()
        participant.discard()
    return {phase: seconds / len(bills) for phase, seconds in floor.items() if seconds}


class _Alone:
    """Seconds of a model's passes over images, for each image."""

    def __init__(self, participant: Participant, images: Tensor) -> None:
        self._participant, self._images = participant, images
        self._look = participant.features if isinstance(participant.model, Encoded) else participant.logits

    def to_pixels(self) -> float:
        """Forward, and backward to the pixels, as under attack."""

        def work() -> None:
            pixels = self._images.clone().requires_grad_()
            torch.autograd.grad(self._look(pixels).sum(), pixels)

        with self._participant.under_attack():
            return self._median(work) / len(self._images)

    def to_parameters(self) -> float:
        """Forward, and backward to the parameters."""
        return self._median(lambda: self._look(self._images).sum().backward()) / len(self._images)

    def forward(self) -> float:
        """Without a graph."""
        with torch.no_grad():
            return self._median(lambda: self._look(self._images)) / len(self._images)

    def class_features(self) -> float:
        """All classes, forward and backward; seconds of the whole."""

        def work() -> None:
            self._participant.encoded().sum().backward()
            self._participant.settle()

        return self._median(work)

    def _median(self, work: Callable[[], object]) -> float:
        work()
        return median_of(lambda: _seconds(work, self._images.device), least=3, budget=0.5)


def inference(participant: Participant, side: int, batch: int) -> Inference:
    """How fast a model answers as it is deployed: eval mode, float32, class features encoded before.

    Args:
        side: of the images, in pixels.
        batch: images at a time for throughput; halved until a batch should take no more than two seconds.
    """
    device = participant.model.device

    def seconds(count: int, least: int) -> float:
        images = torch.rand(count, 3, side, side, device=device)
        participant.logits(images)
        return median_of(lambda: _seconds(lambda: participant.logits(images), device), least, budget=0.5)

    with participant.deployed(), torch.no_grad():
        latency = seconds(1, least=5)
        while batch > 1 and batch * latency > 2 and device.type != "cuda":
            batch //= 2
        return Inference(latency, batch / seconds(batch, least=3), batch)


def _reset_peak(device: torch.device) -> bool:
    """Measure the peak from now on. Whether that can be done."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Linux: what the kernel remembers of this process begins anew.
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return False
    return True


def _peak(device: torch.device, afresh: bool) -> tuple[int, str]:
    """Bytes, and of what.

    Args:
        afresh: what `_reset_peak` said.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "tensors on the GPU"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                told = "this process, torch and all" if afresh else "this process since it began"
                return 1024 * int(line.split()[1]), told
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "this process since it began"
