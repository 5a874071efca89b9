"""Runs made to doubt a number: an attack with more of everything, attacks that must not beat it, and questions to the
model and its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advdistill.engine import build, existence
from advdistill.engine.attack import Problem, right
from advdistill.engine.data import read, stratified
from advdistill.engine.evaluate import Progress, to_device
from advdistill.engine.indicator import (
    BEATEN,
    CHANGED,
    FAILED,
    FEW,
    FOUND,
    GUESSED,
    MATES,
    NOISE,
    OTHER_LOSS,
    SLOPE,
    Indicator,
    counted,
    measured,
    unknown,
)
from advdistill.engine.model import Factored
from advdistill.engine.noise import Noise
from advdistill.engine.outcomes import Column, Outcome
from advdistill.engine.protocol import Protocol
from advdistill.engine.store import Memory
from advdistill.engine.types import Threat
from advdistill.errors import RunError, UserError
from advdistill.recipe.resolve import resolve_blocks
from advdistill.recipe.suite import load_suite

if TYPE_CHECKING:
    from advdistill.engine.subject import Subject
    from advdistill.hooks.registry import Registry
    from advdistill.recipe.resolved import Block

COMPANIONS = "companions"
"""The suite of attacks that must not beat the one in question."""
SLOPES = 16
"""Samples whose gradient is checked. (inferred)"""
DIRECTIONS = 4
"""Random directions for each. (inferred)"""
REACHES = (1e-4, 3e-4, 1e-3, 3e-3)
"""Largest change of a pixel in finite differences: below a grey level, so that curvature hardly counts, and far enough
above float32's 6e-8 for the logits' own rounding, some 1e-6 of them, to stay below a percent. The one that agrees best
is taken. (inferred)"""
PLANTED = 16
"""Samples that an adversarial example is planted for: one miss is then more than 1 - FOUND. (inferred)"""


def probe(
    subject: Subject,
    block: Block,
    threat: Threat,
    limit: int,
    registry: Registry,
    progress: Progress = lambda what, done, total: None,
    *,
    split: str = "test",
    names: Collection[str] = (),
    **how: Any,
) -> list[Indicator]:
    """Doubt the number that the attack `block` finds in the ball `threat`.

    A probe that cannot be taken (a norm that a companion does not know, a model without class features) is unknown, and
    says why.

    Args:
        limit: samples, evenly over the classes, the same for all probes; 0: all.
        progress: see `Progress`.
        split: the split that they are drawn from.
        names: of `PROBES`, those to take; empty: all.
        how: further arguments of `Probes`.
    """
    return list(Probes(subject, block, threat, limit, registry, progress, split=split, **how).take(names))


class Probes:
    """What the probes share: the samples, and what the attack in question found on them.

    Args:
        subject, block, threat, limit, registry, progress, split: see `probe`.
        companions: the suite of attacks that must not beat it.
        batch_size: images at a time.
    """

    def __init__(
        self,
        subject: Subject,
        block: Block,
        threat: Threat,
        limit: int,
        registry: Registry,
        progress: Progress = lambda what, done, total: None,
        companions: str = COMPANIONS,
        batch_size: int = 256,
        split: str = "test",
    ) -> None:
        self._subject, self._block, self._threat = subject, block, threat
        self._where: dict[str, Any] = {"split": split, "limit": limit}
        self._registry, self._progress, self._companions = registry, progress, companions
        self._participant = subject.participant
        self._bench = subject.bench(progress=progress, batch_size=batch_size)
        self._split = subject.splits(split)
        self._indices = stratified(self._split.labels, limit, subject.seed)

    def take(self, names: Collection[str] = ()) -> Iterator[Indicator]:
        """The probes of those names, in the order of `PROBES`."""
        for name, take in PROBES.items():
            if names and name not in names:
                continue
            self._progress(name, 0, 1)
            try:
                found = take(self, name)
            except UserError as error:
                found = unknown(name, error.message)
            yield replace(found, column=self._heading, scope=self._subject.scope)
            self._progress(name, 1, 1)

    # --- what the attack finds ---

    @property
    def _heading(self) -> str:
        what = f"{self._block.use}, {len(self._indices)} of {self._where['split']}"
        return f"{self._subject.scope}: {what}" if self._subject.scope else what

    @cached_property
    def column(self) -> Column:
        """The attack in question on the samples."""
        protocol = self._protocol(self._block, self._threat)
        return Column(protocol.name, self._bench.statement(protocol), self._outcome, scope=self._subject.scope)

    @cached_property
    def _outcome(self) -> Outcome:
        return self._measure(self._protocol(self._block, self._threat))

    @cached_property
    def _held(self) -> Tensor:
        """(n,) long, the samples that withstood."""
        return self._indices[self._outcome.right]

    def _protocol(self, block: Block, threat: Threat, source: str = "self", name: str = "") -> Protocol:
        return build.protocol(self._registry, name or block.use, block, threat, source, **self._where)

    def _measure(self, protocol: Protocol, indices: Tensor | None = None, seed: int = 0) -> Outcome:
        """`seed` is added to the subject's, for other draws."""
        bench = replace(self._bench, seed=self._bench.seed + seed) if seed else self._bench
        indices = self._indices if indices is None else indices
        # A bench's store keeps clean verdicts for all protocols of one limit; here each is on samples of its own.
        return replace(bench, store=Memory()).measure(protocol, self._split, indices, "probe")

    def _altered(self, change: Callable[[dict[str, Any]], bool]) -> Block | None:
        """The attack with `change` made to its settings, and to those of the attacks inside it; None: nothing fits."""
        tree = self._block.tree()
        # sum, not any: every block is changed, not only the first that fits.
        if not sum(change(each) for each in _blocks(tree)):
            return None
        return resolve_blocks({"attack": tree}, self._registry)[("attack",)]

    # --- more of everything ---

    @cached_property
    def _longer(self) -> Outcome | None:
        block = self._altered(lambda settings: _double(settings, "steps") or _double(settings, "queries"))
        return self._measure(self._protocol(block, self._threat)) if block else None

    def steps(self, name: str) -> Indicator:
        """Pintor et al. 2022, I3; Carlini et al. 2019, section 4.3."""
        if self._longer is None:
            return unknown(name, f"{self._block.use} has no steps to double", BEATEN)
        before, after = self._outcome.right, self._longer.right
        lost, total = int((before & ~after).sum()) - int((~before & after).sum()), len(before)
        advice = f"not converged: {self._block.use} breaks more with twice the steps; double them until nothing changes"
        fewer = counted(name, max(lost, 0), total, BEATEN, advice)
        if fewer.verdict != "ok":
            return fewer
        return counted(name, int((before != after).sum()), total, CHANGED, advice)

    def helped(self, name: str) -> Indicator:
        """Carlini et al. 2019, section 5.3: more iterations never do worse."""
        if self._longer is None:
            return unknown(name, f"{self._block.use} has no steps to double", BEATEN)
        before, after = self._outcome.right, self._longer.right
        won = int((~before & after).sum()) - int((before & ~after).sum())
        advice = "twice the steps break less: a smaller step, another loss (loss=cw), or look for masked gradients"
        return counted(name, max(won, 0), len(before), BEATEN, advice)

    def restarts(self, name: str) -> Indicator:
        """Twice the restarts, whatever the attack: once more with other draws, on what withstood."""
        held = self._held
        again = self._measure(self._protocol(self._block, self._threat), held, seed=1) if len(held) else None
        lost = int((~again.right).sum()) if again else 0
        advice = f"not converged: {self._block.use} breaks more from other starts; add restarts until nothing changes"
        return counted(name, lost, len(self._indices), BEATEN, advice)

    def wider(self, name: str) -> Indicator:
        """Carlini et al. 2019, section 5.3: a larger ball holds the smaller one."""
        broken = self._indices[self._outcome.clean & ~self._outcome.right]
        radius = 2 * self._threat.eps
        if self._threat.norm == "linf" and radius > 1:
            return unknown(name, "there is no larger ball than this one", BEATEN)
        protocol = self._protocol(self._block, Threat(self._threat.norm, radius))
        won = int(self._measure(protocol, broken).right.sum()) if len(broken) else 0
        advice = "samples withstand twice the radius that breaks them: more steps, step=0, or loss=cw"
        return counted(name, won, len(self._indices), BEATEN, advice)

    def everything(self, name: str) -> Indicator:
        """Carlini et al. 2019, section 5.3: an unbounded attack reaches 0 %; here, what always one answer would get."""
        size = self._split.load(0).numel()
        radius = {"linf": 1.0, "l2": math.sqrt(size)}.get(self._threat.norm, float(size))
        # A step that was set for a small ball would never leave it.
        block = self._altered(lambda settings: "step" in settings and not settings.update(step=0.0)) or self._block
        outcome = self._measure(self._protocol(block, Threat(self._threat.norm, radius)))
        chance = outcome.labels.bincount().amax().item() / len(outcome)
        beyond = int(outcome.right.sum()) - round(chance * len(outcome))
        value = outcome.count.share
        if beyond < FEW:
            return Indicator(name, value, chance, "ok")
        advice = "a ball as large as the space leaves right answers: the attack cannot climb; bpda, loss=cw, square"
        return Indicator(name, value, chance, "flag", advice)

    def silent(self, name: str) -> Indicator:
        """Pintor et al. 2022, I1: the last image is harmless although the way led through one that was not."""
        model, threat = self._participant.model, self._threat
        if not (model.deterministic and model.batch_independent):
            return unknown(name, "the model answers the same image in more than one way", FAILED)
        lost, total = 0, len(self._indices)
        for batch in self._batches():
            passed = torch.zeros(len(batch.labels), dtype=torch.bool, device=batch.labels.device)

            def logits(images: Tensor, rows: Tensor, batch: Any = batch, passed: Tensor = passed) -> Tensor:
                said = self._participant.logits(images, constant=True)
                with torch.no_grad():
                    inside = threat.holds(images.detach(), batch.images[rows])
                    passed[rows] |= inside & ~right(said, batch.labels[rows])
                return said

            with self._participant.deployed():
                problem = self._problem(batch.images, batch.labels, logits, watch=False)
                images = self._attacked(problem, Noise(self._subject.seed, "evaluate", 0, batch.samples))
                with torch.no_grad():
                    harmless = right(self._participant.logits(images, constant=True), batch.labels)
            lost += int((passed & harmless).sum())
        advice = "the attack's last image is harmless, one on its way was not: count any iterate, as evaluate does"
        return counted(name, lost, total, FAILED, advice)

    # --- who must not beat it ---

    def companion(self, name: str) -> Indicator:
        """An attack of the companions' suite on what withstood; `PROBES` says which, and what it means."""
        heading, threshold, advice = MEANS[name]
        suite = load_suite(self._companions, self._registry)
        if heading not in suite.attacks:
            return unknown(name, f"the suite {self._companions!r} has no protocol {heading!r}", threshold)
        source = suite.model.protocols[heading].source
        if source == "base" and self._is_base():
            return unknown(name, "it says what its base says: nothing is learned that could be attacked", threshold)
        protocol = self._protocol(suite.attacks[heading], self._threat, source, heading)
        beaten = int((~self._measure(protocol, self._held).right).sum()) if len(self._held) else 0
        return counted(name, beaten, len(self._indices), threshold, advice)

    # --- questions to the model ---

    def stochastic(self, name: str) -> Indicator:
        """Athalye et al. 2018, section 3.2; Croce et al.'s check for randomised models."""
        first, second = self._ask(self._some.images), self._ask(self._some.images)
        said = "" if not self._participant.model.deterministic else ", and it declares itself deterministic"
        advice = f"it draws at random{said}: attack with eot draws=20 (autoattack version=rand)"
        return measured(name, _difference(first, second), NOISE, advice)

    def mates(self, name: str) -> Indicator:
        """The answer to an image depends on those beside it."""
        if self.stochastic(name).verdict == "flag":
            return unknown(name, "it draws at random", MATES)
        images = self._some.images
        together = self._ask(images)
        alone = torch.cat([self._ask(image.unsqueeze(0)) for image in images])
        order = torch.arange(len(images), device=images.device).roll(1)
        shuffled = torch.empty_like(together)
        shuffled[order] = self._ask(images[order])
        value = max(_difference(together, alone), _difference(together, shuffled))
        return measured(
            name,
            value,
            MATES,
            "batch mates change its answers: declare batch_independent=False and attack images one by one",
        )

    def mode(self, name: str) -> Indicator:
        """Dropout or batch statistics at work while it is deployed."""
        with self._participant.deployed():
            active = sum(module.training for module in self._participant.model.modules())
        advice = "parts of it stay in training mode when it is deployed: its train() must pass the mode on"
        return measured(name, active, 0, advice)

    def declared(self, name: str) -> Indicator:
        """It says itself that gradients do not reach the pixels."""
        advice = "it declares differentiable=False: attack with bpda, square, and from base"
        return measured(name, float(not self._participant.model.differentiable), 0, advice)

    def probabilities(self, name: str) -> Indicator:
        """Croce et al.'s check: softmax outputs in the place of logits, of which losses take the softmax again."""
        said = self._ask(self._some.images)
        normal = ((said >= 0) & (said <= 1)).all(1) & ((said.sum(1) - 1).abs() < 1e-3)
        advice = "its outputs are probabilities: give attacks the logits before the softmax, or loss=cw"
        return measured(name, normal.float().mean().item(), 0.5, advice)

    def slopes(self, name: str) -> Indicator:
        """Finite differences along the gradient and along random signs, against the gradient (Carlini et al. 2019,
        section 5.1). Samples whose slope is 0 both ways do not count."""
        if self.stochastic(name).verdict == "flag":
            return unknown(name, "it draws at random, so differences say nothing", SLOPE)
        off = self._mismatch()
        off = off[~off.isnan()]
        if not len(off):
            return unknown(name, "it is flat around every sample", SLOPE)
        advice = "its gradients are not its slope (detached, rounded, straight-through): bpda, unrolled, or square"
        return measured(name, off.median().item(), SLOPE, advice)

    def planted(self, name: str) -> Indicator:
        """An adversarial example is known to exist: does the attack find one? See `existence`."""
        model = self._participant.model
        if not isinstance(model, Factored):
            return unknown(name, "it has no class features that could be replaced", FOUND)
        if self.stochastic(name).verdict == "flag":
            return unknown(name, "it draws at random: what misleads it once proves nothing", FOUND)
        rows = self._outcome.clean.nonzero().squeeze(1)[:PLANTED]
        if not len(rows):
            return unknown(name, "it is wrong about every sample", FOUND)
        batch = self._load(self._indices[rows])
        with self._participant.deployed():
            plants = existence.plant(self._participant, batch, self._threat, self._subject.seed)
            if not plants.exists.any():
                return unknown(name, "no random change in the ball moves its features", FOUND)
            batch, plants = batch[plants.exists], plants[plants.exists]
            problem = self._problem(batch.images, torch.zeros_like(batch.labels), plants.logits, watch=True)
            images = self._attacked(problem, Noise(self._subject.seed, "planted", 0, batch.samples))
            with torch.no_grad():
                found = ~right(plants.logits(images, problem.rows), problem.labels)
            guessed = plants.guess(batch, self._threat, self._subject.seed)
        if guessed > GUESSED:
            return unknown(name, f"random guesses find {100 * guessed:.0f} % of what was planted: too easy", FOUND)
        share = found.float().mean().item()
        if share >= FOUND:
            return Indicator(name, share, FOUND, "ok")
        advice = "the attack misses examples that exist: it is too weak for this model; bpda, unrolled, more steps"
        return Indicator(name, share, FOUND, "flag", advice)

    # --- helpers ---

    def _attacked(self, problem: Problem, noise: Noise) -> Tensor:
        """The attack in question on a problem of a probe's own.

        Raises:
            UserError: it does not know the norm, or failed.
        """
        attack = self._protocol(self._block, self._threat).attack
        assert attack is not None  # of a block
        try:
            return attack(problem, self._threat, noise)
        except UserError:
            raise
        except Exception as error:
            raise RunError(f"{self._block.use} failed: {type(error).__name__}: {error}", "-v shows where") from error

    def _problem(self, images: Tensor, labels: Tensor, logits: Callable[..., Tensor], watch: bool) -> Problem:
        return Problem(images, labels, None, logits, self._threat, watch, seen=self._bench.seen, lenient=True)

    def _load(self, indices: Tensor) -> Any:
        return to_device(next(iter(read(self._split, [indices.tolist()]))), self._participant.model.device)

    def _batches(self) -> Iterator[Any]:
        for part in self._indices.split(self._bench.batch_size):
            yield self._load(part)

    @cached_property
    def _some(self) -> Any:
        """A few samples, of all classes as far as they go."""
        return self._load(stratified(self._split.labels, SLOPES, self._subject.seed))

    @torch.no_grad()
    def _ask(self, images: Tensor) -> Tensor:
        with self._participant.deployed():
            return self._participant.logits(images, constant=True)

    @torch.no_grad()
    def _is_base(self) -> bool:
        """Whether the model answers as it did before anything was learned."""
        assert self._bench.seen is not None  # a subject's bench always has company
        said = self._bench.seen("base").logits(self._some.images)
        return _difference(self._ask(self._some.images), said) <= NOISE

    def _mismatch(self) -> Tensor:
        """(n,) how far finite differences are from the gradient, relative to the larger one; NaN where all is flat."""
        batch = self._some
        # Away from the corners of [0, 1], where a clamp would halve the differences.
        images = 0.05 + 0.9 * batch.images
        rows = torch.arange(len(images), device=images.device)

        def height(some: Tensor) -> Tensor:
            """The label's log-odds, which never saturate."""
            said = self._participant.logits(some, constant=True).double()
            label = batch.labels[rows].unsqueeze(1)
            return said.scatter(1, label, -torch.inf).logsumexp(1) - said.gather(1, label).squeeze(1)

        with self._participant.deployed():
            problem = self._problem(images, batch.labels, lambda some, _: some, watch=False)
            gradient, _ = problem.restated(lambda some, _: height(some)).gradient(images, rows)
            noise = Noise(self._subject.seed, "slopes", 0, batch.samples)
            shape = tuple(images.shape[1:])
            largest = gradient.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
            along = torch.where(largest > 0, gradient / largest, torch.zeros_like(gradient))
            signs = [torch.where(noise.uniform(shape, d) < 0.5, -1.0, 1.0) for d in range(DIRECTIONS)]
            with torch.no_grad():
                first = self._off(height, images, gradient, [along])
                others = self._off(height, images, gradient, signs)
        return torch.where(first.isnan(), others, torch.maximum(first, others.nan_to_num(0.0)))

    @staticmethod
    def _off(height: Callable[[Tensor], Tensor], images: Tensor, gradient: Tensor, directions: list[Tensor]) -> Tensor:
        """(n,) the least relative difference over all reaches; NaN where there is no slope at any."""
        said = torch.stack([(gradient.double() * d).flatten(1).sum(1) for d in directions])
        best = torch.full_like(said[0], torch.nan)
        for reach in REACHES:
            seen = torch.stack([(height(images + reach * d) - height(images - reach * d)) / (2 * reach)
                                for d in directions])  # fmt: skip
            # 0 / 0 is NaN: nothing to compare.
            off = (seen - said).norm(dim=0) / torch.maximum(seen.norm(dim=0), said.norm(dim=0))
            best = torch.fmin(best, off)
        return best


def _blocks(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A block and those inside it."""
    yield tree
    for value in tree.values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict) and "use" in inner:
                yield from _blocks(inner)


def _double(settings: dict[str, Any], key: str) -> bool:
    if not isinstance(settings.get(key), int):
        return False
    settings[key] *= 2
    return True


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest one, relative to the largest logit. NaN in both is no difference, in one of them a whole one."""
    same = (a == b) | (a.isnan() & b.isnan())
    scale = a.nan_to_num(0.0, 0.0, 0.0).abs().amax().clamp_min(1e-12)
    off = ((a - b).abs() / scale).nan_to_num(1.0, 1.0)
    return torch.where(same, torch.zeros_like(off), off).amax().item()


MEANS = {
    "one step beats many": (
        "one step", BEATEN, "a single step breaks what many do not: gradients are masked nearby; restarts, square",
    ),
    "noise beats white-box": ("noise", BEATEN, "the gradients mislead: attack with bpda or eot, and with square"),
    "another loss beats its own": (
        "another loss", OTHER_LOSS, "its loss is flat where margins are not: attack with loss=cw too",
    ),
    "scores beat white-box": (
        "random search", BEATEN, "gradients are masked: attack with bpda or eot, or report the square column",
    ),
    "transfer beats white-box": (
        "transfer from base", BEATEN, "gradients are masked: attack with bpda through=base",
    ),
}  # fmt: skip
"""Doubt -> whose attack raises it (a heading of the companions' suite), from where on, what to do next."""

PROBES: dict[str, Callable[[Probes, str], Indicator]] = {
    "training mode": Probes.mode,
    "not differentiable": Probes.declared,
    "stochastic": Probes.stochastic,
    "batch-dependent": Probes.mates,
    "probabilities for logits": Probes.probabilities,
    "gradients are not the slope": Probes.slopes,
    "planted examples found": Probes.planted,
    "steps not converged": Probes.steps,
    "more steps help the defender": Probes.helped,
    "restarts not converged": Probes.restarts,
    "silent success": Probes.silent,
    "a larger radius helps the defender": Probes.wider,
    "right at any radius": Probes.everything,
    **dict.fromkeys(MEANS, Probes.companion),
}
"""Name -> how it is probed, cheap ones first."""
