"""A recipe that has been read, checked and completed: what the engine is handed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from advdistill.hooks.specs import AttackSpec, Spec
from advdistill.recipe.fields import Config
from advdistill.recipe.model import Optim, Portion, Save, Threat, Train
from advdistill.recipe.nodes import KeyPath


@dataclass(frozen=True)
class Block:
    """A plugin and its settings.

    Attributes:
        use: the name as the recipe writes it.
        qualified: `dist:name`.
        spec: what the plugin declared.
        config: its validated settings.
        inner: the blocks of the attacks that an attack wraps.
    """

    use: str
    qualified: str
    spec: Spec
    config: Config
    inner: tuple[Block, ...] = ()

    def tree(self) -> dict[str, Any]:
        """The block as a recipe would write it, defaults filled in; JSON-able."""
        tree = {"use": self.use, **self.config.model_dump(mode="json")}
        if self.inner and isinstance(self.spec, AttackSpec):
            wrapped = [block.tree() for block in self.inner]
            tree[self.spec.wraps] = wrapped if isinstance(tree[self.spec.wraps], list) else wrapped[0]
        return tree

    def all(self, path: KeyPath) -> Iterator[tuple[KeyPath, Block]]:
        """This block, which stands at `path`, and those inside it, each with its own path."""
        yield path, self
        if isinstance(self.spec, AttackSpec):
            several = isinstance(getattr(self.config, self.spec.wraps or "model_config"), list)
            for index, block in enumerate(self.inner):
                yield from block.all((*path, self.spec.wraps, *([index] if several else [])))


@dataclass(frozen=True)
class TeacherBlock(Block):
    """A teacher; fields as in `advdistill.recipe.model.Learning`."""

    train: bool = False
    ema: float = 0.0

    def tree(self) -> dict[str, Any]:
        return {"use": self.use, "train": self.train, "ema": self.ema, **self.config.model_dump(mode="json")}


@dataclass(frozen=True)
class DataBlock(Block):
    """A data set, and what of it takes part."""

    portion: Portion = field(default_factory=Portion)

    def tree(self) -> dict[str, Any]:
        return {"use": self.use, **self.portion.model_dump(mode="json"), **self.config.model_dump(mode="json")}


@dataclass(frozen=True)
class ResolvedProbe:
    """The measurement while training; `attack` None: clean accuracy only."""

    split: str
    limit: int
    attack: Block | None


@dataclass(frozen=True)
class ResolvedProtocol:
    """A column of the final table; `attack` None: clean accuracy; `limit` 0: all samples."""

    name: str
    attack: Block | None
    threat: Threat
    split: str
    limit: int


@dataclass(frozen=True)
class ResolvedEvaluate:
    """What is measured, and when; fields as in `advdistill.recipe.model.Evaluate`."""

    every: int
    batch_size: int
    probe: ResolvedProbe
    select: str
    protocols: tuple[ResolvedProtocol, ...]
    undefended: bool
    teachers: bool
    controls: Mapping[str, str]


@dataclass(frozen=True)
class Recipe:
    """A valid recipe.

    Attributes:
        tree: the same as plain JSON-able data with every default filled in; a recipe file of it resolves to it again.
        origins: dotted path of every value in `tree` -> `file:line:column`, "override" or "default".
        providers: one record for each block, JSON-able: path (dotted, in the recipe), kind, use, name, dist, version,
            plugin, and for a single-file plugin file and sha256 ("" for an installed one).
        plugin_hashes: path of each single-file plugin -> sha256 of its content.
        warnings: what is legal but hardly meant.
    """

    name: str
    seed: int
    threat: Threat
    data: Block
    teachers: Mapping[str, TeacherBlock]
    student: Block
    attack: Block | None
    strategy: Block
    optim: Optim
    train: Train
    evaluate: ResolvedEvaluate
    save: Save
    report: tuple[Block, ...]
    tree: Mapping[str, Any]
    origins: Mapping[str, str]
    providers: tuple[dict[str, str], ...]
    plugin_hashes: Mapping[str, str]
    warnings: tuple[str, ...]
