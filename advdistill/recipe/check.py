"""Checks a recipe, phase by phase, and collects every problem: shape, plugin names, each block, all blocks together.

(The phase before these, YAML itself, is `advdistill.recipe.nodes`.) A phase works on whatever the ones before it could
make sense of, so that one wrong block hides nothing in the others.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from advdistill.errors import PluginError, RecipeError, UserError, did_you_mean
from advdistill.hooks.registry import Entry, Registry
from advdistill.hooks.specs import AttackSpec, Spec, StrategySpec
from advdistill.recipe.fields import Config, format_distance
from advdistill.recipe.model import FORMAT, Evaluate, Learning, Optim, Portion, RecipeModel, Threat, Train
from advdistill.recipe.nodes import InvalidRecipe, KeyPath, Mark, Node, Problem, dotted, from_plain
from advdistill.recipe.providers import Record, find
from advdistill.recipe.resolved import Block, DataBlock, Recipe, TeacherBlock

_Section = TypeVar("_Section", bound=Config)

HOSTS_OWN: dict[str, type[Config]] = {"teacher": Learning, "dataset": Portion}
"""Kind -> the keys in its blocks that the host understands."""

_EXPECTED = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "string_type": "must be text",
    "dict": "must be a map of keys",
    "model": "must be a map of keys",
    "list": "must be a list",
}

_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "object": "a map of keys",
    "array": "a list",
    "null": "null",
}


class Check:
    """The phases over one recipe, in the order of the methods.

    Args:
        root: the recipe, overrides applied.
        registry: who offers what.
        provided: records of `Recipe.providers`, where the recipe comes from a checkpoint.
    """

    def __init__(self, root: Node, registry: Registry, provided: Iterable[Record] = ()) -> None:
        self.root, self.registry, self.provided = root, registry, tuple(provided)
        self.problems: list[Problem] = []
        self.blame: BaseException | None = None
        self.warnings: list[str] = []
        self.entries: dict[KeyPath, Entry] = {}
        self.blocks: dict[KeyPath, Block] = {}

    def fail(
        self, path: KeyPath, message: str, *, key: bool = False, hint: str = "", blame: BaseException | None = None
    ) -> None:
        """Note a problem at `path`, or as near to it as the recipe says anything.

        Args:
            key: at the key, not the value.
            blame: what a plugin raised; the problem lies with it, not with the recipe.
        """
        node = self.root.nearest(path)
        mark = node.key if node.key and (key or node is not self.root.at(path)) else node.mark
        self.problems.append(Problem(mark, dotted(path), message, hint, plugin=blame is not None))
        self.blame = self.blame or blame

    def raise_if_any(self) -> None:
        """Raise what was found: PluginError if plugins alone are to blame, else InvalidRecipe."""
        if self.problems:
            error = InvalidRecipe(self.problems)
            raise (
                PluginError(error.message, error.hint) if all(p.plugin for p in self.problems) else error
            ) from self.blame

    def shape(self) -> RecipeModel | None:
        """Phase 2: the host's own keys."""
        return self.validated(RecipeModel)

    def validated(self, model: type[_Section]) -> _Section | None:
        """The whole file as a `model`; None where it is none, with the problems noted."""
        return self._validated(model, self.root, ())

    def names(self) -> None:
        """Phase 3: every block names a plugin that is there."""
        for path, kind, node in _blocks(self.root):
            self._name(path, kind, node)

    def _name(self, path: KeyPath, kind: str, node: Node) -> None:
        use = node.value.get("use")
        if use is None:
            hint = "`advdistill plugins list` shows the names."
            self.fail(path, f"says not which {kind}: it needs `use: NAME`", hint=hint)
        elif not isinstance(use.value, str):
            self.fail((*path, "use"), f"must be the name of a {kind}")
        else:
            try:
                self.entries[path] = find(self.registry, kind, use.value, self.provided)
            except RecipeError as error:
                self.fail((*path, "use"), error.message, hint=error.hint)
            except PluginError as error:
                self.fail((*path, "use"), error.message, hint=error.hint, blame=error)

    def settings(self) -> None:
        """Phase 4: each block against its plugin's own Config, and the attacks that attacks wrap."""
        for path in list(self.entries):
            self._setting(path, self.root.nearest(path))

    def _setting(self, path: KeyPath, node: Node) -> None:
        entry = self.entries[path]
        try:
            config_class = self.registry.load(entry.spec, "config") or Config
        except PluginError as error:
            self.fail((*path, "use"), error.message, hint=error.hint, blame=error)
            return
        hosts = HOSTS_OWN.get("teacher" if path[0] == "teachers" else entry.spec.kind, Config)
        own = {"use", *hosts.model_fields}
        rest = Node({key: item for key, item in node.value.items() if key not in own}, node.mark, node.key)
        hint = f"`advdistill plugins show {entry.spec.kind}:{entry.spec.name}` lists its settings."
        config = self._validated(config_class, rest, path, hint)
        given = Node({key: node.value[key] for key in hosts.model_fields if key in node.value}, node.mark, node.key)
        said = self._validated(hosts, given, path)
        inner = self._wrapped(path, node, entry.spec, config)
        if config is None or said is None or inner is None:
            return
        block = (node.value["use"].value, entry.qualified, entry.spec, config)
        if isinstance(said, Learning):
            self.blocks[path] = TeacherBlock(*block, train=said.train, ema=said.ema)
        elif isinstance(said, Portion):
            if said.manifest and getattr(config, "shots", None):
                clash = "says which samples are used, and shots would draw others"
                self.fail((*path, "manifest"), clash, hint="Leave shots out.")
            self.blocks[path] = DataBlock(*block, portion=said)
        else:
            self.blocks[path] = Block(*block, inner)

    def _wrapped(self, path: KeyPath, node: Node, spec: Spec, config: Config | None) -> tuple[Block, ...] | None:
        """The blocks that stand in an attack's settings, or in their defaults; None where one is not valid."""
        if not isinstance(spec, AttackSpec) or not spec.wraps or config is None:
            return ()
        given = node.value.get(spec.wraps)
        held = given if given and given.value else from_plain(getattr(config, spec.wraps), Mark("default"))
        usual = type(config).model_fields[spec.wraps].get_default(call_default_factory=True)
        if isinstance(held.value, dict) and isinstance(usual, dict) and "use" not in held.value:
            # Settings of the attack that would be wrapped anyway need not name it.
            held = Node({**from_plain(usual, Mark("default")).value, **held.value}, held.mark, held.key)
        several = isinstance(held.value, list)
        places = [((*path, spec.wraps, i), item) for i, item in enumerate(held.value)] if several else [
            ((*path, spec.wraps), held)
        ]  # fmt: skip
        found = []
        for place, item in places:
            if not isinstance(item.value, dict):
                self.fail(place, "must be the block of an attack, like {use: pgd, steps: 20}")
                continue
            self._name(place, "attack", item)
            if place in self.entries:
                self._setting(place, item)
            if place in self.blocks:
                found.append(self.blocks.pop(place))
        return tuple(found) if len(found) == len(places) else None

    def together(self) -> None:
        """Phase 5: what only shows across blocks."""
        threat = self._section("threat", Threat)
        train = self._section("train", Train)
        optim = self._section("optim", Optim)
        evaluate = self._section("evaluate", Evaluate)
        if train:
            self._length(train)
        self._strategy()
        if optim:
            self._groups(optim)
        if threat:
            attacked = any(entry.spec.kind == "attack" for entry in self.entries.values())
            self._radius(threat, ("threat",), attacked)
            for path, radius in self._attacks(threat, evaluate):
                self._attack(path, radius)
        if evaluate:
            self._measurements(evaluate)

    def plugins_own(self, recipe: Recipe) -> None:
        """Phase 5, the plugins' part: the `check` functions of the specs, on a recipe that is valid so far."""
        for path, block in [pair for place, top in self.blocks.items() for pair in top.all(place)]:
            try:
                check = self.registry.load(block.spec, "check")
                for key, message in check(block.config, recipe) if check else ():
                    self.fail((*path, *str(key).split(".")) if key else path, message)
            except PluginError as error:
                self.fail(path, error.message, hint=error.hint, blame=error)
            except UserError as error:
                self.fail(path, error.message, hint=error.hint)
            except Exception as error:
                self.fail(path, f"the check of {block.qualified} failed: {type(error).__name__}: {error}", blame=error)

    def _validated(self, model: type[_Section], node: Node, path: KeyPath, hint: str = "") -> _Section | None:
        """`node` as a `model`, its problems noted with paths below `path`."""
        given = node.plain()
        try:
            value = model.model_validate(given)
        except ValidationError as invalid:
            unions: set[KeyPath] = set()
            for error in invalid.errors(include_url=False):
                place = tuple(step for step in error["loc"] if step != "[key]")
                if found := _union(model, place):
                    place, taken = found
                    if place not in unions:  # else told of another of its alternatives
                        unions.add(place)
                        self.fail((*path, *place), f"must be {taken}{_not(_at(given, place))}", hint=hint)
                    continue
                unknown = error["type"] == "extra_forbidden"
                self.fail(
                    (*path, *place), _message(error, model, place), key=unknown or "[key]" in error["loc"], hint=hint
                )
            return None
        # pydantic takes `true` for 1, which nobody means.
        wrong = list(_booleans_made_numbers(given, value.model_dump(), path))
        for place in wrong:
            self.fail(place, "must be a number, not true or false", hint=hint)
        return None if wrong else value

    def _section(self, name: str, model: type[_Section]) -> _Section | None:
        """A top-level map on its own, if that much of the recipe is valid."""
        node = self.root.at((name,))
        try:
            return model.model_validate(node.plain() if node else {})
        except ValidationError:
            return None

    def _length(self, train: Train) -> None:
        if train.steps and train.epochs:
            self.fail(("train", "epochs"), f"give steps or epochs, not both ({train.steps} and {train.epochs})")
        elif not train.steps and not train.epochs:
            self.fail(("train",), "says not how long to train", hint="Give train.steps or train.epochs.")
        if train.accumulate != "auto" and train.batch_size % train.accumulate:
            message = f"{train.accumulate} equal portions do not make a batch of {train.batch_size}"
            self.fail(("train", "accumulate"), message)
        if train.compile == "on" and train.precision == "tf32":
            self.warnings.append("train.compile: towers are not compiled in tf32; take fp32 or bf16, or compile: off")

    def _strategy(self) -> None:
        entry = self.entries.get(("strategy",))
        if not entry or not isinstance(entry.spec, StrategySpec):
            return
        spec = entry.spec
        self._roles(spec)
        attack = self.root.at(("attack",))
        if spec.attack and (attack is None or attack.value is None):
            self.fail(
                ("attack",), f"strategy {spec.name!r} needs an attack; without one it would train on clean images"
            )
        for path, used in self.entries.items():
            if path[0] != "attack" or not isinstance(used.spec, AttackSpec):
                continue
            if spec.attack == "objective" and not used.spec.objective:
                message = (
                    f"strategy {spec.name!r} brings its own objective; {used.spec.name!r} is driven by labels alone"
                )
                able = [e.spec.name for e in self.registry.entries("attack") if getattr(e.spec, "objective", False)]
                self.fail((*path, "use"), message, hint=f"Attacks that can: {', '.join(able)}." if able else "")

    def _roles(self, spec: StrategySpec) -> None:
        """Who must teach, who may, and who may change."""
        known = {**spec.teachers, **spec.optional}
        teachers = self.root.at(("teachers",))
        if teachers is None or isinstance(teachers.value, dict):
            given = set(teachers.value) if teachers else set()
            for role in spec.teachers.keys() - given:
                message = f"strategy {spec.name!r} needs a teacher in this role: {spec.teachers[role]}"
                self.fail(("teachers", role), message)
            for role in () if "*" in known else given - known.keys():
                close = did_you_mean(role, known)
                message = f"strategy {spec.name!r} has no such role (its roles: {', '.join(known) or 'none'}){close}"
                self.fail(("teachers", role), message, key=True)
        student = self.blocks.get(("student",))
        for path, block in self.blocks.items():
            if not isinstance(block, TeacherBlock):
                continue
            if block.train and (path[1] if path[1] in known else "*") not in spec.trains:
                message = f"strategy {spec.name!r} has no loss that would train the {path[1]} teacher"
                self.fail((*path, "train"), message, hint="Drop it; the teacher stays as it is.")
            if block.ema and student and (block.qualified, block.config) != (student.qualified, student.config):
                message = "a teacher that follows the student must be its twin: give it the student's own settings"
                self.fail((*path, "ema"), message)

    def _groups(self, optim: Optim) -> None:
        teachers = self.root.at(("teachers",))
        roles = teachers.value if teachers and isinstance(teachers.value, dict) else {}
        if "student" in roles:
            self.fail(("teachers", "student"), "'student' is not a role of a teacher", key=True)
        for name in optim.groups:
            if name == "student":
                continue
            block = self.blocks.get(("teachers", name))
            if name not in roles:
                close = did_you_mean(name, ["student", *roles])
                self.fail(("optim", "groups", name), f"there is no teacher in this role{close}", key=True)
            elif isinstance(block, TeacherBlock) and not block.train:
                hint = f"Set teachers.{name}.train: true, or drop the group."
                self.fail(("optim", "groups", name), "this teacher does not train", key=True, hint=hint)

    def _radius(self, threat: Threat, path: KeyPath, attacked: bool) -> None:
        if threat.norm == "linf" and threat.eps > 1:
            shown = f"{threat.eps:g}"
            self.fail((*path, "eps"), f"{shown} is wider than the whole pixel range, 0 to 1; write eps: {shown}/255")
        elif threat.eps == 0 and attacked:
            self.fail((*path, "eps"), "0 allows no perturbation: the attack would do nothing")
        elif threat.norm == "l0" and 0 < threat.eps < 1:
            self.fail((*path, "eps"), "l0 counts values, so eps must be at least 1")

    def _attacks(self, threat: Threat, evaluate: Evaluate | None) -> Iterator[tuple[KeyPath, Threat]]:
        """Where attacks stand, and the threat each is run under."""
        for path, entry in self.entries.items():
            if entry.spec.kind != "attack":
                continue
            radius = threat
            if path[:2] == ("evaluate", "protocols"):
                if not evaluate:
                    continue
                own = evaluate.protocols[int(path[2])].threat
                if own:
                    self._radius(own, (*path[:3], "threat"), attacked=True)
                    radius = own
            yield path, radius

    def _attack(self, path: KeyPath, threat: Threat) -> None:
        spec = self.entries[path].spec
        if isinstance(spec, AttackSpec) and threat.norm not in spec.norms:
            message = f"{spec.name!r} does not know the norm {threat.norm}, only {', '.join(sorted(spec.norms))}"
            able = [e.spec.name for e in self.registry.entries("attack") if threat.norm in getattr(e.spec, "norms", ())]
            self.fail((*path, "use"), message, hint=f"Attacks that do: {', '.join(able)}." if able else "")
        config = self.blocks[path].config if path in self.blocks else None
        steps, step = getattr(config, "steps", None), getattr(config, "step", None)
        if not isinstance(steps, int) or not isinstance(step, float) or threat.norm == "l0":
            return
        # A step of 0 leaves the choice to the attack.
        if 0 < steps * step < threat.eps and not getattr(config, "random_start", False):
            reach = f"{steps} steps of {format_distance(step)}"
            self.warnings.append(f"{dotted(path)}: {reach} cannot reach eps {format_distance(threat.eps)}")

    def _measurements(self, evaluate: Evaluate) -> None:
        names = [protocol.name for protocol in evaluate.protocols]
        for index, name in enumerate(names):
            if name in names[:index]:
                self.fail(("evaluate", "protocols", index, "name"), f"{name!r} stands twice")
        data = self.blocks.get(("data",))
        if isinstance(data, DataBlock) and data.portion.sealed:
            open_ = [("protocols", i) for i, p in enumerate(evaluate.protocols) if p.split == "test"]
            for place in [*open_, *([("probe",)] if evaluate.probe.split == "test" else [])]:
                message = "looks at the test split, which data.sealed keeps closed"
                self.fail(("evaluate", *place), message, hint="Look at val, or leave it out.")
        if evaluate.select != "none" and not evaluate.every:
            message = "nothing to select by: evaluate.every is 0, so no probe is taken"
            self.fail(("evaluate", "select"), message)
        attack = self.root.at(("attack",))
        attacked = evaluate.probe.attack is not None or (attack is not None and attack.value is not None)
        if evaluate.select in ("robust", "harmonic") and not attacked:
            message = f"{evaluate.select!r} needs an attack to probe with, and the recipe has none"
            self.fail(("evaluate", "select"), message, hint="Give evaluate.probe.attack.")


def check_format(root: Node) -> None:
    """Phase 2, first question: is this a recipe of a format that this version reads?

    Raises:
        InvalidRecipe: it does not say, or is newer.
    """
    node = root.at(("advdistill",))
    if node is None:
        message = "missing: the format of the recipe"
        raise InvalidRecipe([Problem(root.mark, "advdistill", message, "Put `advdistill: 1` at its top.")])
    if isinstance(node.value, int) and node.value > FORMAT:
        message = f"the recipe has format {node.value}; this version reads up to {FORMAT}"
        raise InvalidRecipe([Problem(node.mark, "advdistill", message, "pip install --upgrade advdistill")])


def _blocks(root: Node) -> Iterator[tuple[KeyPath, str, Node]]:
    """Where plugins are named, in a recipe or a suite whose shape may be wrong."""
    places: list[tuple[KeyPath, str]] = [
        (("data",), "dataset"),
        (("student",), "student"),
        (("attack",), "attack"),
        (("strategy",), "strategy"),
        (("evaluate", "probe", "attack"), "attack"),
    ]
    for parent, kind, tail in (
        (("teachers",), "teacher", ()),
        (("report",), "reporter", ()),
        (("evaluate", "protocols"), "attack", ("attack",)),
        (("protocols",), "attack", ("attack",)),
        (("scopes",), "dataset", ("data",)),
    ):
        node = root.at(parent)
        if node is not None and isinstance(node.value, (dict, list)):
            keys: list[Any] = list(node.value) if isinstance(node.value, dict) else list(range(len(node.value)))
            places += [((*parent, key, *tail), kind) for key in keys]
    for path, kind in places:
        node = root.at(path)
        if node is not None and isinstance(node.value, dict):
            yield path, kind, node


def _message(error: Mapping[str, Any], model: type[Config], place: KeyPath) -> str:
    """A pydantic error in the words of a recipe."""
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(str(place[-1]), _fields(model, place[:-1]))}"
    if kind == "missing":
        field = _fields(model, place[:-1]).get(str(place[-1]))
        return f"missing: {field.description}" if field and field.description else "missing"
    if kind == "literal_error":
        return f"must be {error['ctx']['expected']}, not {value!r}{did_you_mean(str(value), _quoted(error))}"
    expected = next((text for prefix, text in _EXPECTED.items() if kind.startswith(prefix)), None)
    if expected is None:
        message = error["msg"].removeprefix("Value error, ").replace("Input should", "must")
        expected = message[:1].lower() + message[1:]
        if kind == "value_error":  # a plugin's own words
            return expected
    return f"{expected}{_not(value)}"


def _not(value: Any) -> str:
    """What was given instead, where that is short."""
    return f", not {value!r}" if isinstance(value, (str, int, float, bool, type(None))) else ""


def _at(given: Any, place: KeyPath) -> Any:
    for step in place:
        given = given[step]
    return given


def _union(model: type[Config], place: KeyPath) -> tuple[KeyPath, str] | None:
    """Where a field of several types stands on the way to `place`, and what it takes in words; pydantic tells of each
    type apart, under keys of its own making."""
    for depth in range(1, len(place)):
        field = _fields(model, place[: depth - 1]).get(str(place[depth - 1]))
        taken: Any = field.annotation if field else None
        union = typing.get_origin(taken) in (typing.Union, types.UnionType)
        if not union or len(set(typing.get_args(taken)) - {type(None)}) < 2:
            continue
        schema = TypeAdapter(taken).json_schema()
        if "$defs" not in schema:  # a block of one of several kinds says best itself what is wrong in it
            return place[:depth], ", or ".join(_taken(one) for one in schema["anyOf"])
    return None


def _taken(schema: Mapping[str, Any]) -> str:
    """What one of several types takes."""
    if names := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return " or ".join(map(str, names))
    least = f" from {schema['minimum']} on" if "minimum" in schema else ""
    return _TYPES[schema["type"]] + least


def _quoted(error: Mapping[str, Any]) -> list[str]:
    return [word.strip(" '") for word in error["ctx"]["expected"].replace(" or ", ", ").split(",")]


def _fields(model: type[Config], place: KeyPath) -> Mapping[str, FieldInfo]:
    """The fields of the Config that stands at `place` below `model`; {} where none does."""
    current: Any = model
    for step in place:
        if isinstance(current, type) and issubclass(current, Config):
            field = current.model_fields.get(str(step))
            current = field.annotation if field else None
        else:
            # A list's items or a dict's values: the last type argument.
            current = (typing.get_args(current) or (None,))[-1]
        while typing.get_origin(current) not in (None, list, dict, tuple):
            # Annotated[X, …] and X | None: the first argument.
            current = typing.get_args(current)[0]
    return current.model_fields if isinstance(current, type) and issubclass(current, Config) else {}


def _booleans_made_numbers(given: Any, made: Any, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(given, bool) and isinstance(made, (int, float)) and not isinstance(made, bool):
        yield path
    elif isinstance(given, dict) and isinstance(made, dict):
        for key in given.keys() & made.keys():
            yield from _booleans_made_numbers(given[key], made[key], (*path, key))
    elif isinstance(given, list) and isinstance(made, (list, tuple)):
        for index, (one, other) in enumerate(zip(given, made, strict=False)):
            yield from _booleans_made_numbers(one, other, (*path, index))
