"""What a component must keep, clause by clause. Each `check_*` takes a built component and raises `Broken`."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from advdistill.engine import events
from advdistill.engine.attack import Attack, Objective, Problem
from advdistill.engine.count import Count
from advdistill.engine.data import Batch, Dataset, Split, pixels, stacked
from advdistill.engine.evaluate import Results
from advdistill.engine.model import Encoded, Factored, VisionLanguageModel
from advdistill.engine.noise import Noise
from advdistill.engine.participant import Participant, Seen
from advdistill.engine.step import Step
from advdistill.engine.strategy import Losses, Strategy
from advdistill.engine.types import ClassSet, Clock, Threat
from advdistill.errors import DataError, MissingSplit
from advdistill.testing.toy import CLASSES, ToyAttack, ToyConfig, ToyDataset, ToyModel

RADII = {"linf": 8 / 255, "l2": 2.5, "l1": 20.0, "l0": 60.0}
"""In each of these balls around the toy data a decent attack finds something."""


class Broken(AssertionError):
    """A component does not keep its contract."""


def demand(kept: bool | Tensor, clause: str) -> None:
    """Raise Broken with `clause` unless `kept`."""
    if not bool(kept):
        raise Broken(clause)


# --- attacks -----------------------------------------------------------------------------------------------------


def check_attack(
    attack: Attack, norms: Iterable[str], *, objective: bool = False, radii: Mapping[str, float] = RADII
) -> None:
    """An attack on the toy model: stays in the ball and in [0, 1], raises what it should, leaves nothing behind.

    Args:
        attack: built.
        norms: those that its spec declares.
        objective: as its spec declares: it maximises any per-sample objective, and is then held to the same result
            for a sample whatever its batch mates.
        radii: norm -> radius to try.

    Raises:
        Broken: a clause is not kept.
    """
    batch = _toy_batch(12)
    model = ToyModel(ToyConfig())
    classes = model.prepare(CLASSES)
    direction = torch.linspace(-1, 1, len(CLASSES))
    goals: dict[str, Objective | None] = {"cross-entropy": None}
    if objective:
        # Opposites: who follows the labels instead can raise one of them by luck, not both.
        goals["an objective of its own"] = lambda images, rows: model.predict(images, classes) @ direction
        goals["its opposite"] = lambda images, rows: -model.predict(images, classes) @ direction
    for norm in norms:
        threat = Threat(norm, radii[norm])
        for goal, climb in goals.items():
            told = f"{type(attack).__name__}, {norm}, {goal}: "
            with _undisturbed(model, told):
                _check_attack(attack, told, threat, batch, lambda x, rows: model.predict(x, classes), climb, objective)


def _check_attack(
    attack: Attack,
    told: str,
    threat: Threat,
    batch: Batch,
    logits: Objective,
    climb: Objective | None,
    independent: bool,
) -> None:
    def problem(of: Batch = batch, watch: bool = False) -> Problem:
        return Problem(of.images.clone(), of.labels.clone(), climb, logits, threat, watch, seen=_acquaintance(logits))

    noise = Noise(0, "contract", 0, batch.samples)
    if attack.studies:
        attack.study(problem(), threat, noise)
    trial = problem()
    found = attack.run(trial, threat, noise)
    demand(torch.equal(trial.images, batch.images), told + "it wrote into the clean images")
    demand(found.shape == batch.images.shape, told + f"it returned {tuple(found.shape)}")
    demand(found.dtype == torch.float32 and not found.requires_grad, told + "it must return detached float32 images")
    demand(torch.isfinite(found).all(), told + "it returned pixels that are not finite")
    demand(found.amin() >= 0 and found.amax() <= 1, told + "it left [0, 1]")
    size = threat.size(found - batch.images).max().item()
    demand(threat.holds(found, batch.images).all(), told + f"it left the ball: {size:.5g} > {threat.eps:.5g}")

    with torch.no_grad():
        before, after = (trial.objective(images, trial.rows).mean().item() for images in (batch.images, found))
    demand(after > before + 1e-6, told + f"the objective did not rise: {before:.5g} -> {after:.5g}")

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        again = attack.run(problem(), threat, noise)
    demand(torch.equal(found, again), told + "another run with the same noise gave other images")

    watched = problem(watch=True)
    kept = attack(watched, threat, noise)
    demand(threat.holds(kept, batch.images).all(), told + "in evaluation it left the ball")

    nothing = Threat(threat.norm, 0.0)
    still = attack(Problem(batch.images, batch.labels, climb, logits, nothing), nothing, noise)
    demand(torch.equal(still, batch.images), told + "with eps 0 it changed the images")

    if independent:
        rows = torch.tensor([7, 2, 5])
        alone = attack.run(problem(batch[rows]), threat, noise.of(rows))
        # Sums of another batch size round differently, which can turn the sign of a gradient that is nearly 0.
        apart = ((alone - found[rows]).abs() > 1e-4).float().mean().item()
        demand(apart < 0.01, told + f"{apart:.0%} of the pixels depend on a sample's batch mates")


def _acquaintance(logits: Objective) -> Callable[[str], Seen]:
    """Whoever an attack asks for: the attacked model itself, or for any other name a toy that differs a little."""

    class Self(Seen):
        def logits(self, images: Tensor, classifier: Tensor | None = None) -> Tensor:
            return (
                logits(images, torch.arange(len(images))) if classifier is None else super().logits(images, classifier)
            )

    own, other = ToyModel(ToyConfig()), ToyModel(ToyConfig())
    with torch.no_grad():
        other.gain.mul_(1 + 0.1 * torch.linspace(-1, 1, len(other.gain)))
    known = Self(Participant(own, CLASSES)), Seen(Participant(other, CLASSES))
    return lambda name: known[name != "self"]


@contextlib.contextmanager
def _undisturbed(model: nn.Module, told: str) -> Iterator[None]:
    """What lies in `model` and in the process must come out as it went in, parameters that take gradients included."""
    model.train()
    model.requires_grad_()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    values = copy.deepcopy(model.state_dict())
    said = io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(said):
        torch.manual_seed(0x5EED)  # a state that nobody's `manual_seed(0)` leads to
        generators = _generators()
        yield
        demand(generators == _generators(), told + "it moved a global random generator")
    demand(not said.getvalue(), told + f"it wrote to stdout: {said.getvalue()[:60]!r}")
    demand(all(module.training for module in model.modules()), told + "it left a module in another mode")
    demand(all(p.requires_grad for p in model.parameters()), told + "it left requires_grad changed")
    demand(all(p.grad is not None and (p.grad == 1).all() for p in model.parameters()), told + "it changed .grad")
    demand(all(torch.equal(values[k], v) for k, v in model.state_dict().items()), told + "it changed the model")


def _generators() -> tuple[bytes, ...]:
    numpy_state = np.random.get_state(legacy=False)
    return torch.get_rng_state().numpy().tobytes(), repr(numpy_state).encode(), repr(random.getstate()).encode()


def _toy_batch(size: int) -> Batch:
    split = ToyDataset(None).split("train")
    samples = torch.arange(size)
    return Batch(torch.stack([split.load(i) for i in range(size)]), split.labels[:size], samples)


# --- strategies --------------------------------------------------------------------------------------------------


def check_strategy(
    strategy: Strategy, roles: Iterable[str] = (), *, attack: Attack | None = None, learning: Iterable[str] = ()
) -> None:
    """A strategy on toy twins: terms per sample, whatever its batch mates unless it `mixes`, gradients where somebody
    learns and nowhere else, state that keeps.

    Args:
        strategy: freshly built.
        roles: the teacher roles that its spec names.
        attack: what the recipe would bring; None: a toy attack that maximises any objective.
        learning: roles whose teachers its losses must train where a recipe lets them.

    Raises:
        Broken: a clause is not kept.
    """
    told, roles, learning = f"{type(strategy).__name__}: ", tuple(roles), frozenset(learning)
    attack = attack or ToyAttack(None)
    for side in ("image", "both"):
        for taught in sorted({frozenset(), learning}, key=len):
            scene = _Scene(roles, attack, side, taught)
            built = type(strategy)(strategy.config)
            built.prepare(scene.models)
            _check_phases(scene, built, told, must_reach=side == "image")
    _check_halves(strategy, _Scene(roles, attack, "both", learning, spread=1.0), told)
    _check_state(strategy, _Scene(roles, attack, "both", frozenset()), told)


class _Scene:
    """A student and its teachers, all toys that differ by `spread`, and a batch."""

    def __init__(
        self, roles: tuple[str, ...], attack: Attack, side: str, taught: frozenset[str], spread: float = 0.1
    ) -> None:
        config = ToyConfig(learns=side)
        self.everybody: dict[str, Participant] = {}
        for place, role in enumerate(("student", *roles)):
            model = ToyModel(config)
            with torch.no_grad():
                model.gain.mul_(1 + spread * torch.linspace(-1, 1, len(model.gain)).roll(7 * place))
            self.everybody[role] = Participant(model, CLASSES, learns=role == "student" or role in taught)
        self.attack, self.batch = attack, _toy_batch(6)
        # Everybody is wrong about the last two.
        labels = torch.cat([self.batch.labels[:4], self.batch.labels[4:].roll(1)])
        self.batch = Batch(self.batch.images, labels, self.batch.samples)

    def step(self, rows: Tensor | None = None) -> Step:
        """A step on the batch, or on some of its rows with the noise that they have in it."""
        batch = self.batch if rows is None else self.batch[rows]
        return Step(
            batch,
            Clock(1, 10, 0),
            student=self.everybody["student"],
            teachers={role: p for role, p in self.everybody.items() if role != "student"},
            attack=self.attack,
            threat=Threat("linf", RADII["linf"]),
            noise=Noise(0, "contract", 0, batch.samples),
        )

    @property
    def models(self) -> dict[str, VisionLanguageModel]:
        return {role: participant.model for role, participant in self.everybody.items()}

    def look(self, strategy: Strategy, rows: Tensor | None = None) -> list[Losses]:
        """Each phase's losses of a step, which is then over: no gradient is left."""
        s = self.step(rows)
        said: list[Losses] = []
        for phase in strategy.phases:
            said.append(phase(s))
            for participant in self.everybody.values():
                participant.discard()
            s.forget()
        return said


def _check_phases(scene: _Scene, strategy: Strategy, told: str, must_reach: bool) -> None:
    s, reached = scene.step(), set[tuple[str, str]]()
    for phase in strategy.phases:
        reached |= _check_phase(scene, phase, s, told)
        s.forget()
    learn = {(role, name) for role, participant in scene.everybody.items() for name in participant.trainable}
    for role, name in sorted(learn - reached) if must_reach else ():
        raise Broken(told + f"{role}.{name} learns but got no gradient")


def _check_phase(scene: _Scene, phase: Callable[[Step], Losses], s: Step, told: str) -> set[tuple[str, str]]:
    """Returns (role, name) of the parameters that got a gradient other than 0."""
    size, reached = len(scene.batch), set[tuple[str, str]]()
    losses = phase(s)
    demand(isinstance(losses, Losses) and bool(losses.terms), told + "a step must return Losses with a term")
    for name, term in losses.terms.items():
        demand(term.value.shape == (size,), told + f"term {name!r} must be ({size},), not {tuple(term.value.shape)}")
        demand(losses.weighted(name).shape == (size,), told + f"the weight of {name!r} must be a number or ({size},)")
        demand(torch.isfinite(losses.weighted(name)).all(), told + f"term {name!r} is not finite")
    for name, value in losses.report.items():
        demand(torch.isfinite(torch.as_tensor(value)).all(), told + f"reported {name!r} is not finite")
    (losses.total().sum() / size).backward()
    demand(scene.batch.images.grad is None, told + "the batch's images collected gradients")
    for role, participant in scene.everybody.items():
        participant.settle()
        trainable = participant.trainable
        for name, parameter in participant.model.named_parameters():
            if name not in trainable:
                demand(parameter.grad is None, told + f"{role}.{name} does not learn but got a gradient")
            elif parameter.grad is not None:
                demand(torch.isfinite(parameter.grad).all(), told + f"the gradient of {role}.{name} is not finite")
                if parameter.grad.any():
                    reached.add((role, name))
        participant.discard()
    return reached


def _check_halves(strategy: Strategy, scene: _Scene, told: str) -> None:
    """A batch is worked through in portions, and shared by processes: no sample's loss may depend on the others."""
    strategy = type(strategy)(strategy.config)
    if strategy.mixes:
        return
    strategy.prepare(scene.models)
    whole = scene.look(strategy)
    for rows in torch.arange(len(scene.batch)).chunk(2):
        for phase, part in zip(whole, scene.look(strategy, rows), strict=True):
            for name in phase.terms:
                value = phase.weighted(name)
                apart = (part.weighted(name) - value[rows]).abs().max() if name in part.terms else torch.inf
                # Sums of another batch size round differently.
                same = apart <= 1e-3 * value.abs().max() + 1e-6
                demand(same, told + f"term {name!r} depends on a sample's batch mates, but `mixes` is False")


def _check_state(strategy: Strategy, scene: _Scene, told: str) -> None:
    strategy.prepare(scene.models)
    fresh = copy.deepcopy(strategy.state_dict())
    first = scene.look(strategy)
    demand(_same(fresh, strategy.state_dict()), told + "its state moved outside of `updated`")
    means = {name: (value / len(scene.batch)).item() for losses in first for name, value in losses.sums().items()}
    for step in (1, 2, 3):
        strategy.updated(means, Clock(step, 10, 0))
    moved = [losses.total() for losses in scene.look(strategy)]
    twin = type(strategy)(strategy.config)
    twin.prepare(scene.models)
    twin.load_state_dict(copy.deepcopy(strategy.state_dict()))
    resumed = [losses.total() for losses in scene.look(twin)]
    demand(all(map(torch.equal, moved, resumed)), told + "a twin with its state gives other losses")
    strategy.load_state_dict(fresh)
    back = [losses.total() for losses in scene.look(strategy)]
    same = all(torch.equal(a.total(), b) for a, b in zip(first, back, strict=True))
    demand(same, told + "its state does not go back")


def _same(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


# --- models ------------------------------------------------------------------------------------------------------


def check_model(model: VisionLanguageModel, classes: ClassSet = CLASSES, *, tolerance: float = 1e-4) -> None:
    """A teacher or student: shapes, what it declares about itself, and what it stores.

    Args:
        model: built, on the CPU; it comes back as it was.
        classes: what to tell apart.
        tolerance: for logits that must agree, relative to their size.

    Raises:
        Broken: a clause is not kept.
    """
    told = f"{type(model).__name__}: "
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        _check_predict(model, classes, tolerance, told)
        _check_learned(model, classes, told)
        if isinstance(model, Encoded):
            _check_encoded(model, classes, tolerance, told)
        _check_modes(model, told)
        _check_description(model, told)
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, want in wanted:
            parameter.requires_grad_(want)


def _images(side: int, count: int = 3) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(side))


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item()))


def _check_predict(model: VisionLanguageModel, classes: ClassSet, tolerance: float, told: str) -> None:
    demand(isinstance(model.image_size, int) and model.image_size > 0, told + "image_size must be a side in pixels")
    prepared = model.prepare(classes)
    images = _images(model.image_size)
    with torch.no_grad():
        logits = model.predict(images, prepared)
        model.prepare(ClassSet(tuple(reversed(classes.names))[:2], classes.templates))
        after = model.predict(images, prepared)
        odd = model.predict(_images(model.image_size + 8), prepared)
        oblong = model.predict(images[..., : model.image_size // 2], prepared)
        one = model.predict(images[1:2], prepared)
        reordered = model.predict(images, model.prepare(ClassSet(tuple(reversed(classes.names)), classes.templates)))
    demand(logits.shape == (3, len(classes)), told + f"predict must give (B, C) logits, not {tuple(logits.shape)}")
    demand(logits.dtype == torch.float32 and torch.isfinite(logits).all(), told + "logits must be finite float32")
    if model.deterministic:
        # Other classes were prepared in between: a model that remembers them is found here too.
        demand(_close(after, logits, tolerance), told + "it says it is deterministic, but two looks differ")
    demand(odd.shape == oblong.shape == logits.shape, told + "it must take images of any size")
    if model.deterministic:
        demand(_close(reordered.flip(1), logits, tolerance), told + "logits do not follow the order of the classes")
    if model.deterministic and model.batch_independent:
        demand(_close(one, logits[1:2], tolerance), told + "it says it is batch-independent, but batch mates matter")
    if model.differentiable:
        pixels = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.predict(pixels, prepared)[:, 0].sum(), pixels)
        demand(torch.isfinite(gradient).all(), told + "gradients to pixels are not finite")
        demand(gradient.flatten(1).any(1).all(), told + "it says it is differentiable, but no gradient reaches pixels")


def _check_encoded(model: Encoded, classes: ClassSet, tolerance: float, told: str) -> None:
    prepared, images = model.prepare(classes), _images(model.image_size)
    with torch.no_grad():
        rows, features = model.classifier(prepared), model.features(images)
        some = model.classifier(prepared, torch.tensor([1, 0]))
        apart, whole = model.logits(features, rows), model.predict(images, prepared)
    demand(len(rows) == len(classes), told + f"classifier must have classes first, not {tuple(rows.shape)}")
    demand(features.ndim == 2 and len(features) == 3, told + f"features must be (B, D), not {tuple(features.shape)}")
    demand(rows.dtype == features.dtype == torch.float32, told + "classifier and features must be float32")
    demand(_close(some, rows[[1, 0]], 1e-5), told + "classifier(rows) differs from the rows of classifier()")
    demand(_close(apart, whole, tolerance), told + "predict differs from logits(features, classifier)")
    if isinstance(model, Factored):
        demand(rows.shape[1:] == features.shape[1:], told + f"classifier must be (C, D), not {tuple(rows.shape)}")
        demand((rows.norm(dim=1) - 1).abs().max() < 1e-4, told + "class features must have norm 1")
    learned = [t.requires_grad_() for t in model.learned().values() if isinstance(t, nn.Parameter)]
    with torch.enable_grad():
        encoded = model.classifier(prepared)
    depends = (
        bool(learned)
        and encoded.requires_grad
        and any(g is not None for g in torch.autograd.grad(encoded.square().sum(), learned, allow_unused=True))
    )
    declared = model.classifier_learns
    demand(depends == declared, told + f"classifier_learns is {declared}, but class features show {depends}")


def _check_learned(model: VisionLanguageModel, classes: ClassSet, told: str) -> None:
    images, prepared = _images(model.image_size), model.prepare(classes)
    own = model.learned()
    model.train()
    again = model.learned()
    model.eval()
    demand(
        own.keys() == again.keys() and all(own[name].data_ptr() == again[name].data_ptr() for name in own),
        told + "learned() must name the same live tensors in every mode",
    )
    if not own:
        return
    stored = {name: tensor.detach().clone() for name, tensor in own.items()}
    name = next(iter(stored))
    spoiled = {
        "a missing name": {k: v for k, v in stored.items() if k != name},
        "an unexpected name": {**stored, "no.such.tensor": torch.zeros(1)},
        "another shape": {**stored, name: torch.zeros(*stored[name].shape, 2)},
    }
    with torch.no_grad():
        base = model.undefended().eval().predict(images, prepared)
        try:
            # Another state than the one it was built in must go in, show, and come out; none of it reaches the base.
            for tensor in own.values():
                if tensor.is_floating_point():
                    tensor.add_(0.05 * torch.linspace(-1, 1, tensor.numel()).view_as(tensor))
            changed = {k: v.clone() for k, v in own.items()}
            seen = model.predict(images, prepared)
            model.load_learned(stored)
            demand(_same(stored, model.learned()), told + "load_learned did not restore what learned() gave")
            model.load_learned(changed)
            demand(torch.equal(seen, model.predict(images, prepared)), told + "restored tensors give other logits")
            after = model.undefended().eval().predict(images, prepared)
            demand(torch.equal(base, after), told + "undefended() moves with what is learned")
            for what, tensors in spoiled.items():
                try:
                    model.load_learned(tensors)
                except DataError:
                    demand(_same(changed, model.learned()), told + f"{what} was refused, but changed the model")
                else:
                    raise Broken(told + f"load_learned took {what}")
        finally:
            for key, tensor in own.items():
                tensor.copy_(stored[key])


def _check_modes(model: VisionLanguageModel, told: str) -> None:
    modules = list(model.modules())
    for place, module in enumerate(modules):
        module.training = place % 2 == 0
    with model.attacked():
        pass
    demand(
        all(module.training == (place % 2 == 0) for place, module in enumerate(modules)),
        told + "attacked() did not bring back each module's mode",
    )


def _check_description(model: VisionLanguageModel, told: str) -> None:
    facts = model.describe()
    try:
        json.dumps(facts)
    except TypeError as error:
        raise Broken(told + f"describe() is not JSON: {error}") from error
    missing = {"base", "preprocessing", "activation"} - facts.keys()
    demand(not missing, told + f"describe() lacks {', '.join(sorted(missing))}")
    missing = {"model", "weights", "fingerprint"} - facts["base"].keys()
    demand(not missing, told + f"describe()['base'] lacks {', '.join(sorted(missing))}")


# --- datasets ----------------------------------------------------------------------------------------------------


def check_dataset(dataset: Dataset, splits: Iterable[str] = ("train", "val", "test"), *, look_at: int = 12) -> None:
    """A dataset: images and labels as the engine reads them, splits apart, the same every time; training views drawn
    from the noise of their own sample alone.

    Args:
        dataset: built.
        splits: those that it has.
        look_at: how many samples of each split to load.

    Raises:
        Broken: a clause is not kept.
    """
    told = f"{type(dataset).__name__}: "
    count, seen, shapes, generators = len(dataset.classes), set[str](), set[tuple[int, ...]](), _generators()
    twin = type(dataset)(dataset.config)
    for name in splits:
        split, other = dataset.split(name), twin.split(name)
        labels, ids = split.labels, list(split.ids)
        demand(len(split) > 0 and len(ids) == len(labels), told + f"{name} needs samples, and one id for each")
        demand(labels.dtype == torch.long and labels.ndim == 1, told + f"labels of {name} must be (N,) long")
        demand(labels.min() >= 0 and labels.max() < count, told + f"labels of {name} must lie in [0, {count})")
        demand(len(set(ids)) == len(ids) and not seen & set(ids), told + f"ids of {name} stand twice or elsewhere")
        same = split.digest == other.digest and split.version == other.version
        demand(same, told + f"{name} differs when the dataset is built again")
        if (known := split.sources) is not None:
            shaped = known.dtype == torch.long and known.ndim == 2 and len(known) == len(labels) and known.shape[1] > 0
            demand(shaped, told + f"sources of {name} must be (N, k) long")
            again = other.sources is not None and torch.equal(known, other.sources)
            demand(again, told + f"sources of {name} differ when the dataset is built again")
        if name == "train":
            demand(len(labels.unique()) == count, told + "train must hold every class")
        seen |= set(ids)
        looked_at = torch.linspace(0, len(split) - 1, min(look_at, len(split))).long()
        for index in looked_at.tolist():
            image = split.load(index)
            demand(image.ndim == 3 and len(image) == 3, told + f"images must be (3, H, W), not {tuple(image.shape)}")
            ranged = image.dtype == torch.float32 and bool(image.amin() >= 0 and image.amax() <= 1)
            demand(ranged or image.dtype == torch.uint8, told + "images must be uint8, or float32 in [0, 1]")
            demand(torch.equal(image, other.load(index)), told + f"{name}[{index}] differs from load to load")
            shapes.add(tuple(image.shape))
        _check_views(split, other, looked_at, f"{told}{name}: ")
    demand(len(shapes) == 1, told + f"images differ in shape: {sorted(shapes)}")
    demand(generators == _generators(), told + "it moved a global random generator")
    try:
        dataset.split("no-such-split")
        missed = True
    except DataError as error:
        missed = not isinstance(error, MissingSplit)
    demand(not missed, told + "a split that it does not have must be a MissingSplit")
    json.dumps(dataset.record())


def _check_views(split: Split, other: Split, samples: Tensor, told: str) -> None:
    """What training sees of some samples; `other` is the same split built again."""
    stored = [split.canvas(index) for index in samples.tolist()]
    repeated = [other.canvas(index) for index in samples.tolist()]
    alike = all(torch.equal(canvas, again) for canvas, again in zip(stored, repeated, strict=True))
    demand(alike, told + "a canvas differs from time to time")
    canvases = pixels(stacked(stored))
    images = pixels(stacked([split.load(index) for index in samples.tolist()]))
    handed, noise = canvases.clone(), Noise(0, "contract", 0, samples)
    views = split.augment(handed, noise)
    demand(torch.equal(handed, canvases), told + "augment changes what it is given")
    demand(views.shape == images.shape, told + f"augment must keep the shape {tuple(images.shape)} of images")
    ranged = views.dtype == torch.float32 and bool(views.amin() >= 0 and views.amax() <= 1)
    demand(ranged, told + "augment must give float32 in [0, 1]")
    demand(torch.equal(other.augment(handed, noise), views), told + "augment must depend on its noise alone")
    if not split.augments:
        demand(torch.equal(views, images), told + "augment must give the images where `augments` is False")
        return
    rows = torch.arange(len(samples)).flip(0)[: -(-len(samples) // 2)]
    apart = split.augment(handed[rows], noise.of(rows))
    demand(_close(apart, views[rows], 1e-5), told + "a view must not depend on its batch mates")
    later = split.augment(handed, Noise(0, "contract", 1, samples))
    demand(not torch.equal(later, views), told + "augment gives the same in every epoch, though `augments` is True")


# --- reporters ---------------------------------------------------------------------------------------------------


def check_reporter(reporter: events.Reporter) -> None:
    """A reporter: takes every event, alone and in a run, also one it has never heard of; can be closed twice.

    Raises:
        Broken: a clause is not kept.
    """
    told, generators = f"{type(reporter).__name__}: ", _generators()
    with tempfile.TemporaryDirectory() as folder:
        for event in (*sample_events(Path(folder)), _Unheard()):
            try:
                reporter.handle(event)
            except Exception as error:
                raise Broken(told + f"{type(event).__name__} raised {error!r}") from error
        for time in ("once", "twice"):
            try:
                reporter.close()
            except Exception as error:
                raise Broken(told + f"closing {time} raised {error!r}") from error
    demand(generators == _generators(), told + "it moved a global random generator")


class _Unheard(events.Event):
    """An event of a later version."""


def sample_events(folder: Path) -> tuple[events.Event, ...]:
    """A short run as events, every type among them, then a stop.

    Args:
        folder: the run's; it must exist.
    """
    clock, done = Clock(0, 2, 0), Clock(2, 2, 1)
    statement = {"name": "pgd", "key": "0" * 16}
    rows = tuple(
        Results(subject, {"clean": Count(19, 20), "pgd": Count(hits, 20)}, {"clean": statement, "pgd": statement})
        for subject, hits in (("undefended", 1), ("student", 14))
    )
    images = _toy_batch(2).images
    said = {
        subject: [(("ant", 0.9), ("bee", 0.6)), (("bee", 0.8), ("bee", 0.7))] for subject in ("undefended", "student")
    }
    return (
        events.RunStarted("toy", folder, 2, 0, {"student": "toy"}),
        events.Warned("a warning"),
        events.Measuring("undefended", "pgd", 10, 20),
        events.Measured("before", rows[0]),
        events.Probed(clock, Count(10, 20), None),
        events.StepDone(Clock(1, 2, 0), {"loss": 1.5, "student": 1.5}, {"student": 1e-3}, 100.0, 1.0),
        events.StepDone(done, {"loss": math.pi, "student": math.pi}, {"student": 5e-4}, 120.0, 0.0),
        events.Probed(
            done,
            Count(19, 20),
            Count(14, 20),
            {"largest class": 0.2},
            1.5,
            {"student": {"forward": 40, "backward": 40}},
        ),
        events.Symptom(done, "one-class", "student", 0.9, 0.6, "what was seen", "what to change"),
        events.Measured("after", rows[1]),
        events.Saved(folder / "last.safetensors", done),
        events.Examples(images, dict.fromkeys(said, images), ("ant", "bee"), said, 8 / 255, "linf"),
        events.RunFinished(done, rows, folder, 2.5),
        events.RunStopped(done, "it was asked to stop", f"advdistill train --resume {folder}"),
    )
