"""From a resolved recipe to the parts of a run: data, models, attack, strategy, protocols."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from advdistill.engine import launch
from advdistill.engine.attack import Attack
from advdistill.engine.checkpoint import open_checkpoint
from advdistill.engine.class_features import AT_MOST
from advdistill.engine.data import SPLITS, Dataset, HalfOfClasses, Readable, Sealed, Split
from advdistill.engine.distributed import ALONE, World
from advdistill.engine.evaluate import split_reader
from advdistill.engine.manifest import Listed
from advdistill.engine.model import VisionLanguageModel
from advdistill.engine.participant import Manner, Participant, Seen
from advdistill.engine.protocol import Attacker, Protocol
from advdistill.engine.strategy import Strategy
from advdistill.engine.types import ClassSet, Threat
from advdistill.errors import DataError, RecipeError, RunWarning, UsageError
from advdistill.hooks.registry import default_registry
from advdistill.hooks.specs import AttackSpec
from advdistill.recipe.model import Portion
from advdistill.recipe.resolve import resolve_blocks
from advdistill.recipe.resolved import DataBlock

if TYPE_CHECKING:
    from advdistill.hooks.registry import Registry
    from advdistill.recipe.model import Train
    from advdistill.recipe.resolve import Block, Recipe


def device_of(name: str) -> torch.device:
    """`auto` (the GPU if there is one), or what torch calls it; with several processes, each has a GPU of its own.

    Raises:
        UsageError: torch cannot use it, or there are more processes than GPUs.
    """
    place = launch.place()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if place.size > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise UsageError(f"device {name!r} is one, and there are {place.size} processes", "use cuda or auto")
        seen = torch.cuda.device_count()
        # SLURM may show each task its own GPU alone (--gpus-per-task), which is then its first.
        number = 0 if place.address and seen == 1 else place.local
        if number >= seen:
            raise UsageError(
                f"process {place.local} of this machine has no GPU: there are {seen}",
                "start as many processes as there are GPUs",
            )
        return torch.device("cuda", number)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used here: {first}", "use cpu, cuda or auto") from error
    return device


def model(registry: Registry, block: Block, *, weights: bool = True) -> VisionLanguageModel:
    """Build a teacher or student."""
    built: VisionLanguageModel = registry.load(block.spec).from_config(block.config, weights=weights)
    return built


def model_of(block: Mapping[str, Any], *, weights: bool = True) -> VisionLanguageModel:
    """Build the model that a block of a recipe describes, for models that stand on another one.

    Args:
        block: like `{"use": "clip", "model": "ViT-B-32-quickgelu", "weights": "openai"}`.
        weights: as for `VisionLanguageModel.from_config`.

    Raises:
        RecipeError: the block is not valid.
        DataError, PluginError, UsageError: from the model.
    """
    registry = default_registry()
    blocks = resolve_blocks({"teachers": {"model": dict(block)}}, registry)
    return model(registry, blocks["teachers", "model"], weights=weights)


def component(registry: Registry, block: Block) -> Any:
    """Build an attack (with those it wraps), strategy, dataset or reporter."""
    if not isinstance(block.spec, AttackSpec):
        return registry.load(block.spec)(block.config)
    inner = [component(registry, each) for each in block.inner]
    attack = registry.load(block.spec)(block.config, inner) if inner else registry.load(block.spec)(block.config)
    attack.name = block.use
    return attack


def dataset(registry: Registry, block: Block, half: str = "") -> Dataset:
    """Build a data set, or what of it its block asks for.

    Args:
        half: the half of its classes to take, in the place of the block's.
    """
    found: Dataset = component(registry, block)
    portion = block.portion if isinstance(block, DataBlock) else Portion()
    wanted = half or portion.half
    if portion.manifest:
        found = listed = Listed(found, portion.manifest)
        if listed.half not in ("all", wanted):
            warnings.warn(
                f"{portion.manifest} was written of data.half: {listed.half}, and {wanted} is used",
                RunWarning,
                stacklevel=2,
            )
    if wanted != "all":
        found = HalfOfClasses(found, wanted)
    return Readable(found) if portion.on_error == "skip" else found


def protocols(registry: Registry, recipe: Recipe) -> list[Protocol]:
    """The columns of the recipe's final table."""
    built = []
    for p in recipe.evaluate.protocols:
        threat = p.threat or recipe.threat
        built.append(
            protocol(registry, p.name, p.attack, Threat(threat.norm, threat.eps), split=p.split, limit=p.limit)
        )
    return built


def protocol(
    registry: Registry, name: str, attack: Block | None, threat: Threat, source: str = "self", **where: Any
) -> Protocol:
    """One protocol; `where` is its split and limit. Without an attack it is clean accuracy.

    Raises:
        UsageError: the attack does not know the norm, or the radius is 0.
    """
    if attack is None:
        return Protocol(name, **where)
    for _, block in attack.all(()):
        if isinstance(block.spec, AttackSpec) and threat.norm not in block.spec.norms:
            known = ", ".join(sorted(block.spec.norms))
            raise UsageError(
                f"{name}: attack {block.use!r} knows {known}, not {threat.norm}",
                f"take another attack, leave it out ('protocols.{name}=null'), or give --norm {known.split(', ')[0]}",
            )
    if not threat.eps:
        raise UsageError(f"{name}: eps 0 attacks nothing", "give a radius such as 4/255; clean accuracy has no attack")
    return Protocol(
        name,
        attack=component(registry, attack),
        threat=threat,
        settings={**attack.tree(), "use": attack.qualified},
        code=_written_by(registry, attack),
        words=tuple(_words(attack)),
        attacker=_attacker(attack, source),
        **where,
    )


def _words(attack: Block) -> Iterator[str]:
    """The free text in an attack's settings. A word out of a closed list, like `of: clean`, names no model."""
    for _, block in attack.all(()):
        for name, known in type(block.config).model_fields.items():
            if known.annotation is str:
                yield getattr(block.config, name)


def _written_by(registry: Registry, attack: Block) -> dict[str, str]:
    """Where others' code attacks: its plugin's name -> which version or content of it."""
    found = {}
    for _, block in attack.all(()):
        plugin = registry.get("attack", block.qualified).plugin
        if plugin.dist != "advdistill":
            found[plugin.name] = plugin.sha256 or plugin.version
    return found


def _attacker(block: Block, source: str = "self") -> Attacker:
    assert isinstance(block.spec, AttackSpec)
    return Attacker.of(block.spec, tuple(_attacker(each) for each in block.inner), source)


@dataclass
class Parts:
    """Everything that a run is made of.

    Attributes:
        splits: name -> Split. student, teachers: who takes part. attack: None where the recipe has none.
    """

    device: torch.device
    dataset: Dataset
    splits: Callable[[str], Split]
    student: Participant
    teachers: dict[str, Participant]
    attack: Attack | None
    strategy: Strategy
    threat: Threat

    @property
    def learners(self) -> dict[str, Participant]:
        """Who learns, by role."""
        return {role: p for role, p in {"student": self.student, **self.teachers}.items() if p.learns}

    @property
    def classes(self) -> ClassSet:
        """The names of the run and the data set's templates."""
        return self.dataset.classes

    def record(self) -> dict[str, Any]:
        """JSON-able facts about the data: every split's size and digest, and the data set's own under `record`."""
        splits = {}
        for name in SPLITS:
            with contextlib.suppress(DataError):  # not every data set has every split
                split = self.splits(name)
                splits[name] = {"samples": len(split), "digest": split.digest}
        return {"splits": splits, "record": self.dataset.record()}

    def undefended(self) -> Participant:
        """What the student was before anything was learned."""
        bare = self.student.model.undefended().to(self.device)
        bare.templates = self.student.model.templates
        return Participant(bare, self.classes)

    @contextlib.contextmanager
    def deployed_teachers(self) -> Iterator[None]:
        """Teachers as they are used, for a while: an attack in an evaluation may look at them."""
        with contextlib.ExitStack() as stack:
            for teacher in self.teachers.values():
                stack.enter_context(teacher.deployed(compiled=True))
            yield

    def seen(self, subject: Participant) -> Callable[[str], Seen]:
        """Whom an attack on `subject` can look at: itself, the undefended student, and the teachers, who must be
        deployed."""
        known = {"self": subject, **self.teachers}

        def look(name: str) -> Seen:
            if name == "base":
                known.setdefault("base", self.undefended())
            if name not in known:
                raise UsageError(
                    f"an attack asks for the model {name!r}; there are: {', '.join(['base', *known])}",
                    "`advdistill evaluate` can look at checkpoints and NAME@WEIGHTS too",
                )
            return Seen(known[name])

        return look

    def control(self, path: str, registry: Registry) -> Participant:
        """The model of another run's checkpoint, on this run's classes.

        Raises:
            RecipeError: it tells other classes apart.
        """
        opened = open_checkpoint(path, registry)
        if opened.classes.names != self.classes.names:
            raise RecipeError(f"evaluate.controls: {path} tells other classes apart than this run's data")
        opened.model.stored_results = opened.own_results
        return Participant(opened.model.to(self.device), self.classes)


def settled(recipe: Recipe) -> Recipe:
    """The recipe with what depends on the machine decided: its precision."""
    device = device_of(recipe.train.device)
    precision = recipe.train.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    tree = {**recipe.tree, "train": {**recipe.tree["train"], "precision": precision}}
    return replace(recipe, train=recipe.train.model_copy(update={"precision": precision}), tree=tree)


def manner(train: Train, device: torch.device, world: World = ALONE) -> Manner:
    """How models of a settled recipe compute in training."""
    return Manner(
        precision=train.precision,
        # What must not be rounded is kept out of TF32 by switches that a compiled graph does not obey.
        compile=train.precision != "tf32"
        and (train.compile == "on" or (train.compile == "auto" and device.type == "cuda")),
        class_chunk=AT_MOST if train.class_chunk == "auto" else train.class_chunk,
        world=world,
    )


def parts(recipe: Recipe, registry: Registry, world: World = ALONE) -> Parts:
    """Build everything that `recipe`, which must be `settled`, names; `world` shares the work.

    Raises:
        RecipeError: nothing would learn.
        DataError, PluginError, UsageError: as the parts do.
    """
    device = device_of(recipe.train.device)
    data = dataset(registry, recipe.data)
    if isinstance(recipe.data, DataBlock) and recipe.data.portion.sealed:
        data = Sealed(data)
    how = manner(recipe.train, device, world)

    def join(name: str, block: Block, learns: bool, ema: float = 0.0) -> Participant:
        built = model(registry, block).to(device)
        return Participant(built, data.classes, learns=learns, ema=ema, manner=how, name=name)

    student = join("student", recipe.student, learns=True)
    teachers = {role: join(f"{role} teacher", b, b.train, b.ema) for role, b in recipe.teachers.items()}
    for teacher in teachers.values():
        if teacher.ema:
            teacher.load(student.model.learned())
    for role, participant in {"student": student, **teachers}.items():
        if participant.learns and not participant.trainable:
            raise RecipeError(f"{role}: nothing in it learns", "a student needs prompts, adapters or a tuned tower")
    strategy: Strategy = component(registry, recipe.strategy)
    strategy.prepare({role: participant.model for role, participant in {"student": student, **teachers}.items()})
    return Parts(
        device,
        data,
        split_reader(data),
        student,
        teachers,
        component(registry, recipe.attack) if recipe.attack else None,
        strategy.to(device),
        Threat(recipe.threat.norm, recipe.threat.eps),
    )


def count(participants: Mapping[str, Participant]) -> dict[str, tuple[int, int]]:
    """Role -> (parameters that learn, parameters in all)."""
    return {
        role: (sum(t.numel() for t in p.trainable.values()), sum(t.numel() for t in p.model.parameters()))
        for role, p in participants.items()
    }
