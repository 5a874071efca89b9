"""Contracts over every registered component, and proof that the contracts bite.

Pinned here:
- every attack, strategy, dataset, teacher, student and reporter that the installed plugins register keeps its contract;
  there are as many as we ship, so none is skipped in silence; each builds from its defaults or from what `MADE` says;
- an attack that does nothing, leaves the ball, pollutes or clears `.grad`, reseeds or draws from a global generator,
  prints, writes into the clean images, or lets batch mates matter, is found out;
- so is a strategy that leaks into a teacher or the pixels, reaches nothing, mixes a batch's samples unsaid, or whose
  state moves in `step` or is lost; shipped methods that mix would be found out;
- so is a model that keeps state in `prepare`, lies about itself, forgets modes, or is lax with what it loads;
- so is a dataset with a class missing, shared ids, labels or pixels out of range, or hidden randomness;
- so is a reporter that chokes on an event.
"""

import random
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from advdistill import Attack, Losses, Reporter, Strategy, Term, cross_entropy, kl
from advdistill.engine import checkpoint, events
from advdistill.engine.build import component
from advdistill.engine.data import ArraySplit
from advdistill.hooks.registry import default_registry
from advdistill.recipe.header import FORMAT
from advdistill.recipe.resolve import resolve_blocks
from advdistill.testing import (
    Broken,
    ToyAttack,
    ToyConfig,
    ToyDataset,
    ToyModel,
    check_attack,
    check_dataset,
    check_model,
    check_reporter,
    check_strategy,
)
from advdistill.testing.contracts import RADII, sample_events
from advdistill.testing.toy import CLASSES

REGISTRY = default_registry()
SHIPPED = {"attack": 46, "strategy": 25, "dataset": 28, "teacher": 5, "student": 5, "reporter": 4}
CLIP = {"model": "advdistill_demo:small.json", "weights": "random"}
MADE = {
    "ta-square": {"n_queries": 200},
    "ta-spsa": {"nb_iter": 2, "nb_sample": 16},
    "ta-onepixel": {"steps": 1},
    "ta-pixle": {"restarts": 1, "max_iterations": 3},
    "apgd": {"steps": 20, "restarts": 2},
    "apgd-t": {"steps": 8, "classes": 3},
    "eot": {"draws": 2, "attack": {"use": "apgd", "steps": 8, "restarts": 1}},
    "bpda": {"through": "base", "attack": {"use": "apgd", "steps": 8, "restarts": 1}},
    "unrolled": {"attack": {"use": "apgd", "steps": 8, "restarts": 1}},
    "autoattack": {"version": "custom", "attacks": [{"use": "apgd", "steps": 8}, {"use": "square", "queries": 50}]},
    "fab-t": {"steps": 20, "classes": 2},
    "fmn": {"steps": 30},
    "square": {"queries": 200},
    "rays": {"queries": 400},
    "clip": CLIP,
    "clip-prompts": {**CLIP, "text": {"tokens": 2, "depth": 2}, "visual": {"tokens": 2, "depth": 2}},
    "clip-lora": {**CLIP, "rank": 2},
    "clip-tune": CLIP,
    "ciard": {"teacher_start": 0},
    "clip-anchor": CLIP,
    "ttc": CLIP,
    "r-tpt": {"checkpoint": "advdistill_demo:clean_prompts.safetensors", "views": 8},
    "clipure-cos": {"checkpoint": "advdistill_demo:small.safetensors"},
    "clip-moapt": {**CLIP, "prompts": 2},
}
RADIUS = {"ta-onepixel": {**RADII, "l0": 6.0}, "ta-square": {**RADII, "linf": 16 / 255}}
SLOW = {"apgd-ce-apgd-t"}
"""What cannot be made smaller without another name."""


IN_LAYOUTS = {
    *("caltech101", "oxford-pets", "stanford-cars", "oxford-flowers", "food101", "fgvc-aircraft", "sun397", "dtd"),
    *("eurosat", "ucf101", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2"),
    *("csv", "webdataset", "huggingface", "torchvision", "cifar10", "cifar100", "stl10", "pcam"),
}
"""Data sets that lie on disk in a way of their own: the tests that make such trees, tests/unit/test_data_*.py, hold
them to the same contract."""


def entries(kind):
    return [
        pytest.param(entry, id=entry.qualified, marks=[pytest.mark.slow] * (entry.spec.name in SLOW))
        for entry in REGISTRY.entries(kind)
    ]


def build(entry, settings=None):
    config = REGISTRY.load(entry.spec, "config")
    settings = settings or MADE.get(entry.spec.name, {})
    return REGISTRY.load(entry.spec), config(**settings) if config else None


def test_nothing_is_skipped():
    assert not REGISTRY.broken
    shipped = Counter(e.spec.kind for e in REGISTRY.entries() if e.plugin.dist == "advdistill")
    assert shipped == SHIPPED


@pytest.mark.parametrize("entry", entries("attack"))
def test_attacks(entry, monkeypatch):
    # A toy hides nothing: there is nothing to expose, and nothing changes.
    monkeypatch.setattr(ToyModel, "exposes", frozenset({"bpda", "unrolled"}))
    settings = {"use": entry.qualified, **MADE.get(entry.spec.name, {})}
    attack = component(REGISTRY, resolve_blocks({"attack": settings}, REGISTRY)["attack",])
    radii = RADIUS.get(entry.spec.name, RADII)
    check_attack(attack, entry.spec.norms, objective=entry.spec.objective, radii=radii)


@pytest.mark.parametrize("entry", entries("strategy"))
def test_strategies(entry):
    strategy, config = build(entry)
    optional = [role if role != "*" else "third" for role in entry.spec.optional]
    for roles in ([*entry.spec.teachers], [*entry.spec.teachers, *optional]):
        check_strategy(strategy(config), roles, learning=entry.spec.trains)


@pytest.mark.parametrize("entry", [*entries("teacher"), *entries("student")])
def test_models(entry, tmp_path):
    settings = {"path": str(a_checkpoint(tmp_path))} if entry.spec.name == "checkpoint" else None
    model, config = build(entry, settings)
    check_model(model.from_config(config))


def a_checkpoint(folder):
    """A student of the demo's size with something learned, as a file."""
    student = next(e for e in REGISTRY.entries("student") if e.spec.name == "clip-lora")
    block = MADE["clip-lora"]
    cls, config = build(student)
    model = cls.from_config(config)
    tensors = {name: tensor.detach() + 0.01 for name, tensor in model.learned().items()}
    path = folder / "last.safetensors"
    facts = {"format": FORMAT, "recipe": {"student": {"use": "clip-lora", **block}}, "plugins": [], **model.describe()}
    run = {"classes": CLASSES.names, "templates": CLASSES.templates, "threat": {"norm": "linf", "eps": 8 / 255}}
    checkpoint.write(path, tensors, {**facts, **run})
    return path


@pytest.mark.parametrize("entry", [each for each in entries("dataset") if each.values[0].spec.name not in IN_LAYOUTS])
def test_datasets(entry, tmp_path):
    settings = {}
    fields = REGISTRY.load(entry.spec, "config").model_fields
    if "size" in fields:
        for folder, count in (("train", 9), ("val", 4)):
            for wnid in ("n01440764", "n01443537"):
                (tmp_path / folder / wnid).mkdir(parents=True)
                for i in range(count):
                    Image.new("RGB", (20, 12), (9 * i, 90, len(folder))).save(tmp_path / folder / wnid / f"{i}.png")
        (tmp_path / "names.txt").write_text("n01440764 tench\nn01443537 goldfish\n")
        settings = {"root": str(tmp_path), "size": 16}
        if "classnames" in fields:
            settings["classnames"] = str(tmp_path / "names.txt")
    elif "root" in fields:
        for folder, count in (("train", 4), ("test", 2)):
            for kind in range(10):
                (tmp_path / folder / f"{kind}").mkdir(parents=True)
                for i in range(count):
                    shade = Image.linear_gradient("L").resize((32, 32)).rotate(90 * i).convert("RGB")
                    shade.save(tmp_path / folder / f"{kind}" / f"{i}.png")
        settings = {"root": str(tmp_path), "val": 20}
    dataset, config = build(entry, settings)
    check_dataset(dataset(config))
    augmented = {"augment": "crop-flip"} if "augment" in fields else {"shift": 2}
    check_dataset(dataset(build(entry, {**settings, **augmented})[1]))


@pytest.mark.parametrize("entry", entries("reporter"))
def test_reporters(entry):
    if entry.spec.name == "tensorboard":
        pytest.importorskip("tensorboard", reason="an optional dependency")
    reporter, config = build(entry)
    check_reporter(reporter(config))


def test_toys_keep_their_contracts():
    check_attack(ToyAttack(None), {"linf"}, objective=True)
    check_dataset(ToyDataset(None))
    for side in ("image", "text", "both"):
        check_model(ToyModel(ToyConfig(learns=side)))


def test_reporters_see_every_kind_of_event(tmp_path):
    known = {cls for cls in events.Event.__subclasses__() if cls.__module__ == events.__name__}
    assert {type(event) for event in sample_events(tmp_path)} == known


# --- attacks that do not keep it ---------------------------------------------------------------------------------


class Nothing(ToyAttack):
    def run(self, problem, threat, noise):
        return problem.images.clone()


class Downhill(ToyAttack):
    def run(self, problem, threat, noise):
        gradient, _ = problem.gradient(problem.images, problem.rows)
        return threat.project(problem.images - threat.eps * gradient.sign(), problem.images)


class LeavesBall(ToyAttack):
    def run(self, problem, threat, noise):
        found = super().run(problem, threat, noise)
        return (problem.images + 1.01 * (found - problem.images)).clamp(0, 1)


class LeavesRange(ToyAttack):
    def run(self, problem, threat, noise):
        return super().run(problem, threat, noise) - 0.5


class Pollutes(ToyAttack):
    def run(self, problem, threat, noise):
        pixels = problem.images.clone().requires_grad_()
        with torch.enable_grad():
            problem.objective(pixels, problem.rows).sum().backward()
        return super().run(problem, threat, noise)


class Reseeds(ToyAttack):
    def run(self, problem, threat, noise):
        torch.manual_seed(0)
        return super().run(problem, threat, noise)


class DrawsGlobally(ToyAttack):
    def run(self, problem, threat, noise):
        found = super().run(problem, threat, noise)
        return torch.where(torch.rand_like(found) < 0.5, found, problem.images)


class DrawsWithPython(ToyAttack):
    def run(self, problem, threat, noise):
        random.random()
        return super().run(problem, threat, noise)


class DrawsElsewhere(ToyAttack):
    generator = torch.Generator()

    def run(self, problem, threat, noise):
        found = super().run(problem, threat, noise)
        return torch.where(torch.rand(found.shape, generator=self.generator) < 0.5, found, problem.images)


class Prints(ToyAttack):
    def run(self, problem, threat, noise):
        print("attacking")
        return super().run(problem, threat, noise)


class WritesInPlace(ToyAttack):
    def run(self, problem, threat, noise):
        problem.images.copy_(super().run(problem, threat, noise))
        return problem.images.clone()


class SharesAMean(ToyAttack):
    def run(self, problem, threat, noise):
        found = super().run(problem, threat, noise)
        delta = (found - problem.images) + (found - problem.images).mean(0, keepdim=True)
        return threat.project(problem.images + delta.sign() * threat.eps, problem.images)


class KeepsAGraph(ToyAttack):
    def run(self, problem, threat, noise):
        return super().run(problem, threat, noise).requires_grad_()


@pytest.mark.parametrize(
    ("attack", "clause"),
    [
        (Nothing, "did not rise"),
        (Downhill, "did not rise"),
        (LeavesBall, "left the ball"),
        (LeavesRange, r"left \[0, 1\]"),
        (Pollutes, r"changed \.grad"),
        (Reseeds, "global random generator"),
        (DrawsGlobally, "other images"),
        (DrawsElsewhere, "other images"),
        (DrawsWithPython, "global random generator"),
        (Prints, "stdout"),
        (WritesInPlace, "clean images"),
        (SharesAMean, "batch mates"),
        (KeepsAGraph, "detached"),
    ],
)
def test_bad_attacks_are_found_out(attack, clause):
    with pytest.raises(Broken, match=clause):
        check_attack(attack(None), {"linf"}, objective=True)


class IgnoresObjective(Attack):
    def run(self, problem, threat, noise):
        images = problem.images.clone().requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(problem.module()(images), problem.labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images)
        return (problem.images + threat.eps * gradient.sign()).clamp(0, 1)


def test_an_attack_that_only_knows_labels_must_say_so():
    check_attack(IgnoresObjective(None), {"linf"}, objective=False)
    with pytest.raises(Broken, match=r"an objective of its own|its opposite"):
        check_attack(IgnoresObjective(None), {"linf"}, objective=True)


# --- strategies --------------------------------------------------------------------------------------------------


class Good(Strategy):
    """Distils from a teacher, with a weight that adapts."""

    def __init__(self, config=None):
        super().__init__(config)
        self.register_buffer("share", torch.tensor(0.5))

    def step(self, s):
        adversarial = s.attack(lambda images, rows: cross_entropy(s.student(images), s.labels[rows]))
        teacher = s.teacher("clean")(s.images)
        return Losses(
            {"share": self.share},
            distil=Term(kl(teacher.detach(), s.student(adversarial)), self.share),
            label=cross_entropy(s.student(s.images), s.labels),
        )

    def updated(self, means, clock):
        self.share.mul_(1 + 0.1 * means["label"])


class Alternating(Good):
    @property
    def phases(self):
        return (self.step, lambda s: Losses(label=cross_entropy(s.student(s.images), s.labels)))


class Deaf(Good):
    def step(self, s):
        return Losses(label=super().step(s).terms["label"].value.detach().requires_grad_())


class NotFinite(Good):
    def step(self, s):
        return Losses(label=super().step(s).terms["label"].value * torch.inf)


class MovesInStep(Good):
    def step(self, s):
        self.share.mul_(0.9)
        return super().step(s)


class HidesState(Good):
    hidden = 1.0

    def step(self, s):
        return Losses(label=super().step(s).terms["label"].value * self.hidden)

    def updated(self, means, clock):
        self.hidden = self.hidden * 2


class TouchesPixels(Good):
    def step(self, s):
        s.images.requires_grad_()
        return super().step(s)


class ThawsTeacher(Good):
    def step(self, s):
        teacher = s._teachers["clean"].model.requires_grad_()
        prepared = s._teachers["clean"].prepared
        leak = cross_entropy(teacher.predict(s.images, prepared), s.labels)
        return Losses(label=super().step(s).terms["label"].value, leak=leak)


class Mixes(Good):
    def step(self, s):
        losses = super().step(s)
        return Losses(**losses.terms, calm=losses.terms["label"].value.mean().expand(len(s.labels)))


class SaysThatItMixes(Mixes):
    mixes = True


def test_good_strategies():
    check_strategy(SaysThatItMixes(), ["clean"])
    check_strategy(Good(), ["clean"])
    check_strategy(Alternating(), ["clean"])


@pytest.mark.parametrize(
    ("strategy", "clause"),
    [
        (Deaf, "got no gradient"),
        (NotFinite, "not finite"),
        (Mixes, "'calm' depends on a sample's batch mates"),
        (MovesInStep, "outside of `updated`"),
        (HidesState, "a twin with its state"),
        (TouchesPixels, "images collected gradients"),
        (ThawsTeacher, "clean.* does not learn but got a gradient"),
    ],
)
def test_bad_strategies_are_found_out(strategy, clause):
    with pytest.raises(Broken, match=clause):
        check_strategy(strategy(), ["clean"])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mmt-ard", {"weighting": "saad"}),
        ("mmt-ard", {"level": "contrastive"}),
        ("ciard", {"teacher_start": 0}),
    ],
)
def test_shipped_strategies_that_mix_would_be_found_out(monkeypatch, name, settings):
    entry = next(e for e in REGISTRY.entries("strategy") if e.spec.name == name)
    strategy, config = build(entry, settings)
    check_strategy(strategy(config), [*entry.spec.teachers], learning=entry.spec.trains)
    monkeypatch.setattr(strategy, "mixes", False)
    with pytest.raises(Broken, match="batch mates"):
        check_strategy(strategy(config), [*entry.spec.teachers], learning=entry.spec.trains)


def test_a_teacher_that_should_learn_must():
    with pytest.raises(Broken, match=r"clean\.gain learns but got no gradient"):
        check_strategy(Good(), ["clean"], learning=["clean"])


# --- models ------------------------------------------------------------------------------------------------------


class Stateful(ToyModel):
    def prepare(self, classes):
        self.latest = super().prepare(classes)
        return self.latest

    def classifier(self, classes, rows=None):
        return super().classifier(self.latest if rows is None else self.latest[rows])


class LongRows(ToyModel):
    def classifier(self, classes, rows=None):
        return 2 * super().classifier(classes, rows)


class IgnoresRows(ToyModel):
    def classifier(self, classes, rows=None):
        return super().classifier(classes)


class Couples(ToyModel):
    def features(self, images):
        found = super().features(images)
        return found + found.mean(0, keepdim=True)


class Wavers(ToyModel):
    def features(self, images):
        return super().features(images) + torch.rand(1)


class Opaque(ToyModel):
    def features(self, images):
        return super().features(images.detach()) + 0 * images.flatten(1).sum(1, keepdim=True)


class OneSize(ToyModel):
    def features(self, images):
        return torch.tanh(F.avg_pool2d(images - 0.5, 2).flatten(1) * self.gain)


class WrongLearns(ToyModel):
    def __init__(self, config):
        super().__init__(config)
        self.classifier_learns = not self.classifier_learns


class Copies(ToyModel):
    def learned(self):
        return {name: tensor.clone() for name, tensor in super().learned().items()}


class Lax(ToyModel):
    def load_learned(self, tensors):
        for name, tensor in self.learned().items():
            if name in tensors and tensors[name].shape == tensor.shape:
                tensor.copy_(tensors[name])


class ForgetsModes(ToyModel):
    def __init__(self, config):
        super().__init__(config)
        self.inner = torch.nn.Identity()

    def attacked(self):
        import contextlib

        @contextlib.contextmanager
        def all_train():
            self.eval()
            yield
            self.train()

        return all_train()


class SharedBase(ToyModel):
    def undefended(self):
        return self


class Mute(ToyModel):
    def describe(self):
        return {"base": {"model": "toy"}, "preprocessing": {}, "activation": ""}


@pytest.mark.parametrize(
    ("model", "clause"),
    [
        (Stateful, "two looks differ"),
        (LongRows, "norm 1"),
        (IgnoresRows, "rows"),
        (Couples, "batch mates matter"),
        (Wavers, "two looks differ"),
        (Opaque, "no gradient reaches pixels"),
        (WrongLearns, "classifier_learns"),
        (Copies, "live tensors"),
        (Lax, "load_learned took a missing name"),
        (ForgetsModes, "each module's mode"),
        (SharedBase, r"undefended\(\) moves"),
        (Mute, "lacks fingerprint, weights"),
    ],
)
def test_bad_models_are_found_out(model, clause):
    with pytest.raises(Broken, match=clause):
        check_model(model(ToyConfig()))


def test_a_model_for_one_size_only_is_found_out():
    with pytest.raises(RuntimeError):
        check_model(OneSize(ToyConfig()))


# --- datasets ----------------------------------------------------------------------------------------------------


def changed(change):
    class Changed(ToyDataset):
        def split(self, name):
            return change(super().split(name), name)

    return Changed(None)


class Jitters(ArraySplit):
    def load(self, index):
        return (super().load(index) + 0.01 * torch.rand(1)).clamp(0, 1)

    version = "1"


class Wanders(ArraySplit):
    def canvas(self, index):
        return (self.load(index) + 0.01 * torch.rand(1)).clamp(0, 1)


def sourced(sources):
    def change(split, name):
        split.sources = sources(len(split))
        return split

    return change


def augmenting(augment, augments=True):
    kind = type("Augmenting", (ArraySplit,), {"augments": augments, "augment": augment})
    return lambda s, n: kind(s.images, s.labels, s.ids)


def dimmed(split, canvases, noise):
    return canvases * noise.uniform((1, 1, 1))


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (lambda s, n: ArraySplit(s.images[s.labels > 0], s.labels[s.labels > 0], s.ids[10:]), "every class"),
        (lambda s, n: ArraySplit(s.images, s.labels, [str(i) for i in range(len(s))]), "stand twice or elsewhere"),
        (lambda s, n: ArraySplit(s.images, s.labels + 1, s.ids), "labels of train must lie"),
        (lambda s, n: ArraySplit(s.images * 255, s.labels, s.ids), "images must be uint8"),
        (lambda s, n: ArraySplit(s.images[:, :1], s.labels, s.ids), r"must be \(3, H, W\)"),
        (lambda s, n: ArraySplit(s.images, s.labels[torch.randperm(len(s))], s.ids), "built again"),
        (lambda s, n: Jitters(s.images, s.labels, s.ids), "from load to load"),
        (lambda s, n: Wanders(s.images, s.labels, s.ids), "a canvas differs"),
        (augmenting(lambda s, c, noise: c[..., 1:]), "keep the shape"),
        (augmenting(lambda s, c, noise: c.double()), "float32"),
        (augmenting(lambda s, c, noise: c + 0.5), "float32 in"),
        (augmenting(lambda s, c, noise: c * torch.rand(1)), "noise alone"),
        (augmenting(lambda s, c, noise: dimmed(s, c, noise) * c.mean()), "batch mates"),
        (augmenting(lambda s, c, noise: c.mul_(0.9)), "changes what it is given"),
        (augmenting(dimmed, augments=False), "`augments` is False"),
        (augmenting(lambda s, c, noise: c.flip(3)), "the same in every epoch"),
        (sourced(lambda count: torch.arange(count)), r"sources of train must be \(N, k\) long"),
        (sourced(lambda count: torch.zeros(count - 1, 2, dtype=torch.long)), r"must be \(N, k\) long"),
        (sourced(lambda count: torch.randint(9, (count, 2))), "sources of train differ"),
        (lambda s, n: ArraySplit(s.images[..., : 16 if n == "train" else 8], s.labels, s.ids), "differ in shape"),
    ],
)
def test_bad_datasets_are_found_out(change, clause):
    with pytest.raises(Broken, match=clause):
        check_dataset(changed(change))


def test_a_good_augmentation_passes():
    check_dataset(changed(augmenting(dimmed)))


def test_an_unknown_split_must_be_an_error():
    class Obliging(ToyDataset):
        def split(self, name):
            return super().split(name if name in ("train", "val", "test") else "test")

    with pytest.raises(Broken, match="MissingSplit"):
        check_dataset(Obliging(None))


# --- reporters ---------------------------------------------------------------------------------------------------


class Chokes(Reporter):
    def handle(self, event):
        if isinstance(event, events.StepDone):
            raise KeyError("loss")


class Closes(Reporter):
    def handle(self, event):
        self.file = open("/dev/null")  # noqa: SIM115, PTH123

    def close(self):
        self.file.close()
        del self.file


def test_bad_reporters_are_found_out():
    with pytest.raises(Broken, match="StepDone raised KeyError"):
        check_reporter(Chokes(None))
    with pytest.raises(Broken, match="closing"):
        check_reporter(Closes(None))
