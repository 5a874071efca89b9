"""The loop. Everything else in this room serves it.

    build the parts of the recipe; take up the resume point if there is one
    measure the undefended model, the controls and the teachers
    for each step:
        set the learning rates
        for each phase of the strategy:
            for each portion of the batch: losses = phase(step of the portion); backward
            settle the class features; sum gradients over processes; clip; optimizer step
        strategy.updated(means over the batch); teachers that follow the student do so
        tell the reporters; probe and save when due; stop politely when asked to
    measure the student; write checkpoint, examples, results

A resume point holds all that the next step depends on, and data order and noise are functions of seed, epoch and
sample, so that a killed and resumed run takes the very steps of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from advdistill.engine import build, checkpoint, distributed, launch, manifest, memory, optim, recall, resume, timing
from advdistill.engine.attack import NotFinite
from advdistill.engine.data import Batch, epoch_order, seeded, steps_per_epoch
from advdistill.engine.distributed import ALONE, World
from advdistill.engine.evaluate import Results
from advdistill.engine.events import (
    Event,
    Reporters,
    RunFinished,
    RunStarted,
    RunStopped,
    Saved,
    StepDone,
    Warned,
)
from advdistill.engine.examine import Examiner
from advdistill.engine.feed import Feed
from advdistill.engine.folder import RunFolder
from advdistill.engine.noise import Noise
from advdistill.engine.participant import tf32
from advdistill.engine.signatures import Signatures
from advdistill.engine.step import Step
from advdistill.engine.strategy import Losses
from advdistill.engine.types import Clock, Threat
from advdistill.errors import Diverged, RunError, UsageError, UserError, run_warnings

if TYPE_CHECKING:
    from advdistill.hooks.registry import Registry
    from advdistill.recipe.resolve import Recipe


class Interrupted(UserError):
    """The run was asked to stop and has saved where it stands."""

    exit_code = 130


def train(recipe: Recipe, registry: Registry, *, resume: bool = False, overwrite: bool = False) -> list[Results]:
    """Run a recipe to its end.

    Args:
        resume: go on from the folder's resume point (from the beginning where there is none yet).
        overwrite: begin anew in a folder that holds another run.

    Returns:
        The rows of the final table.

    Raises:
        Diverged: loss, images or weights are not finite.
        RunError: folder taken, disk full, memory out.
        Interrupted: after SIGINT or SIGTERM.
        DataError, PluginError, UsageError: from the parts.
    """
    recipe = build.settled(recipe)
    with (
        distributed.joined(build.device_of(recipe.train.device)) as world,
        tf32(recipe.train.precision == "tf32"),
        RunFolder(recipe, resume=resume, overwrite=overwrite, main=world.main) as folder,
    ):
        world.wait()  # a folder that cannot be used ends all of them here
        reporters = Reporters([build.component(registry, block) for block in recipe.report] if world.main else [])
        try:
            with warnings_told(reporters.tell):
                return Run(recipe, registry, folder, reporters.tell, world).go()
        finally:
            reporters.close()


class Run:
    """One recipe under way."""

    def __init__(
        self,
        recipe: Recipe,
        registry: Registry,
        folder: RunFolder,
        tell: Callable[[Event], None],
        world: World = ALONE,
    ) -> None:
        self.recipe, self.folder, self.tell, self.world = recipe, folder, tell, world
        torch.manual_seed(recipe.seed)
        self.parts = build.parts(recipe, registry, world)
        self.examiner = Examiner(recipe, registry, self.parts, tell, world)
        self.optimizer = optim.optimizer(recipe.optim, self.parts.learners)
        self.split, train = self.parts.splits("train"), recipe.train
        self.feed = Feed(self.split, self.parts.device, workers=train.workers, keep=train.keep_images, world=world)
        self.size = min(train.batch_size, len(self.split))
        if self.size < world.size:
            raise UsageError(
                f"{world.size} processes cannot share a batch of {self.size} images",
                "raise train.batch_size or take fewer",
            )
        self.per_epoch = steps_per_epoch(len(self.split), recipe.train.batch_size)
        self.steps = recipe.train.steps or recipe.train.epochs * self.per_epoch
        self.portions = 1 if train.accumulate == "auto" else train.accumulate
        if world.size > 1:
            self._refuse_batch_statistics()
        self.step, self.best, self._halfway = 0, -1.0, False
        self.spent, self.signs = timing.Spent(), Signatures(self.parts, recipe.evaluate.every > 0)
        self._began_with = world.size
        self._recalls: list[recall.Recall] = []
        if folder.resuming and folder.resume_point.exists():
            stand = resume.restore(folder.resume_point, self.parts, self.optimizer, dict(recipe.tree))
            self.step, self.best, self._began_with = stand.step, stand.best, stand.processes
            self.spent = timing.Spent(**stand.spent)
            self.signs.restore(stand.signs)
        if folder.resuming and len(steps := set(world.gather(self.step))) > 1:
            raise RunError(
                f"the processes of this run would go on after different steps: {', '.join(map(str, sorted(steps)))}",
                "save.dir must be a folder that all machines share",
            )
        if train.accumulate == "auto" and self.step < self.steps:
            self.portions = self._fewest_portions()

    def go(self) -> list[Results]:
        """All of it; see the head of this module."""
        started = time.monotonic()
        if len(set(self.world.gather(self.split.digest))) > 1:
            raise RunError(
                "the processes of this run do not see the same training samples", "the data must lie where all see them"
            )
        self.folder.begin()
        self._note_files()
        self.tell(RunStarted(self.recipe.name, self.folder.path, self.steps, self.step, self._plan()))
        for message in self.recipe.warnings:
            self.tell(Warned(message))
        if self._began_with != self.world.size:
            self.tell(
                Warned(
                    f"saved by {self._began_with} process(es) and resumed by {self.world.size}: order, images and "
                    "noise stay the same, but what models draw at random, such as dropout, does not"
                )
            )
        if self.parts.strategy.mixes and self.portions * self.world.size > 1:
            self.tell(
                Warned(
                    f"{self.recipe.strategy.use}, so set, looks at a batch's images together, here at those of one "
                    "portion and process: set train.accumulate: 1 and take one process for the numbers of the batch"
                )
            )
        before = self.examiner.before()
        again = self.steps - self.step > self.per_epoch - self.step % self.per_epoch
        self._recalls = recall.attach(self.recipe, self.parts, self.split, again, self.world)
        with _asked_to_stop() as asked:
            try:
                with memory.named(memory.IN_TRAINING):
                    self._learn(asked)
            except memory.OutOfMemory as error:
                self._give_up(RunError(error.message, error.hint))
            except distributed.Lost:
                self._save_if_sound()
                raise
        rows = self._conclude(before)
        self.tell(RunFinished(self.clock, tuple(rows), self.folder.path, time.monotonic() - started))
        return rows

    def _note_files(self) -> None:
        """Write down which files the run uses; one that goes on must find the same.

        Raises:
            RunError: the data have changed since the run began.
        """
        if not self.folder.ours:
            return
        evaluate, splits = self.recipe.evaluate, self.parts.splits
        looked_at = {"train", *(protocol.split for protocol in evaluate.protocols)}
        looked_at |= {evaluate.probe.split} if evaluate.every else set()
        used = {name: splits(name) for name in sorted(looked_at)}
        now = manifest.manifest(self.parts.dataset, self.recipe.tree["data"], used)
        path = self.folder.path / manifest.FILE
        if not (self.folder.resuming and path.exists()):
            manifest.write(self.folder.path, now)
        elif what := manifest.changed(manifest.read(path), now):
            raise RunError(
                f"the data are not those that this run began with: {what}",
                f"restore them ({path} lists them), or begin anew with another save.dir=…",
            )

    @property
    def clock(self) -> Clock:
        """Steps done so far."""
        return Clock(self.step, self.steps, self.step // self.per_epoch)

    def _learn(self, asked: Callable[[], bool]) -> None:
        probe_every, save_every = self.recipe.evaluate.every, self.recipe.save.every
        began, first = time.monotonic(), self.step
        if probe_every and self.step == 0:
            self._probe()
        since = time.monotonic()
        for batch in self.batches():
            with timing.counted() as passes:
                means, rates = self.take(batch)
            self._spend(time.monotonic() - since, passes)
            pace = (time.monotonic() - began) / (self.step - first)
            self.tell(StepDone(self.clock, means, rates, self.size / pace, pace * (self.steps - self.step)))
            if probe_every and (self.step % probe_every == 0 or self.step == self.steps):
                self._probe()
            stopping = self.world.any(asked()) and self.step < self.steps
            if stopping or self.step == self.steps or (save_every and self.step % save_every == 0):
                if not self._sound():
                    self._diverge(f"not finite after step {self.step}: weights")
                self._save()
            if stopping:
                self._stop()
            since = time.monotonic()

    def _spend(self, seconds: float, passes: Mapping[tuple[str, str], int]) -> None:
        """Note what a step took, in all processes."""
        names = [each.name for each in (self.parts.student, *self.parts.teachers.values())]
        ways = [(name, way) for name in names for way in ("forward", "backward")]
        counts = torch.tensor([passes.get(way, 0) for way in ways])
        self.world.sum([counts])
        self.spent.step(seconds, dict(zip(ways, counts.tolist(), strict=True)))

    def take(self, batch: Batch) -> tuple[dict[str, float], dict[str, float]]:
        """One step of the run. Returns the means over the batch of every term and reported scalar, and the learning
        rates."""
        self._reseed()
        self.parts.student.model.train()
        rates = optim.set_rates(self.optimizer, self.recipe.optim.schedule, self.step, self.steps)
        means: Counter[str] = Counter()
        portions = [self._see(portion) for portion in self._portions(batch)]
        for phase in self.parts.strategy.phases:
            means.update(self._update(phase, portions))
            self._halfway = True
        self.step, self._halfway = self.step + 1, False
        self.parts.strategy.updated(dict(means), self.clock)
        self.signs.stepped(means["loss"])
        for teacher in self.parts.teachers.values():
            if teacher.ema:
                teacher.follow(self.parts.student)
        return dict(means), rates

    def _refuse_batch_statistics(self) -> None:
        """Each process would normalise by its own share of the batch, and the numbers depend on how many they are."""
        model = self.parts.student.model.train()
        shared = self.parts.student.shares_forwards
        model.eval()
        if not shared:
            raise UsageError(
                "the student learns by statistics of the whole batch, which several processes do not have",
                "train it in one process, or freeze its BatchNorm (student.bn=frozen)",
            )

    def _reseed(self) -> None:
        """What models draw at random in a step depends on the step and on who takes it, not on what was drawn before:
        a resumed run draws the same."""
        torch.manual_seed(seeded(self.recipe.seed, "step", self.step, self.world.rank).initial_seed())

    def _fewest_portions(self) -> int:
        """As few as fit; one where a sample's batch mates matter to it, whom portions would change."""
        self.parts.student.model.train()
        apart = all(learner.shares_forwards for learner in self.parts.learners.values())
        if self.parts.strategy.mixes or not apart:
            return 1
        order = epoch_order(len(self.split), self.recipe.train.batch_size, self.recipe.seed, self.clock.epoch)
        batch = next(self.feed.batches(order[:1], partial(Noise, self.recipe.seed, "augment", self.clock.epoch)))
        moments = 0 if self.optimizer.state else 1 + (self.recipe.optim.use == "adamw")
        learns = sum(p.nbytes for learner in self.parts.learners.values() for p in learner.trainable.values())
        return memory.fewest_portions(
            len(batch), lambda count: self._try(batch[:count]), self.parts.device, moments * learns, self.world
        )

    def _try(self, batch: Batch) -> None:
        """All phases of a step on some images, after which everything is as it was before."""
        parts = self.parts
        self._reseed()
        with contextlib.ExitStack() as stack:
            for participant in (parts.student, *parts.teachers.values()):
                stack.callback(participant.discard)
                stack.enter_context(participant.alone())
            s = self._see(batch)
            with contextlib.suppress(NotFinite):  # the step itself will tell
                for phase in parts.strategy.phases:
                    phase(s).total().sum().backward()
                    s.forget()
                    for learner in parts.learners.values():
                        learner.settle()

    def _portions(self, batch: Batch) -> Iterator[Batch]:
        size = -(-len(batch) // self.portions)
        return (batch[start : start + size] for start in range(0, len(batch), size))

    def _update(self, phase: Callable[[Step], Losses], portions: list[Step]) -> dict[str, float]:
        """One optimizer step. Returns the means over the batch of every term and reported scalar."""
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        hits = torch.zeros(2, dtype=torch.float64, device=self.parts.device)
        for s in portions:
            try:
                losses = phase(s)
            except NotFinite as error:
                self._diverge(f"{error.message}, at step {self.step + 1}")
            for name, value in losses.sums().items():
                sums[name] = sums[name] + value if name in sums else value
            with timing.backward():
                (losses.total().sum() / self.size).backward()
            hits += self.signs.seen(s)
            s.forget()
        # One tensor, so that a GPU is waited for once.
        totals = torch.cat([torch.stack(list(sums.values())), hits])
        self.world.sum([totals])
        *found, right, asked = totals.tolist()
        means = {name: total / self.size for name, total in zip(sums, found, strict=True)}
        self._check(means)
        self.signs.attacked(right, asked)
        for learner in self.parts.learners.values():
            learner.settle()
        with timing.phase("optimizer"):
            reached = self._gather_gradients()
            self.signs.gradients()
            norm = torch.nn.utils.clip_grad_norm_(reached, self.recipe.optim.clip_norm or math.inf)
            self._check({"gradient norm": norm.item()})
            self.optimizer.step()
        return means

    def _gather_gradients(self) -> list[Tensor]:
        """Sum everybody's gradients. Returns the parameters that have one."""
        every = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.world.size > 1:
            reached = torch.tensor([float(p.grad is not None) for p in every])
            self.world.sum([reached])
            for parameter, by in zip(every, reached.tolist(), strict=True):
                if by and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        every = [p for p in every if p.grad is not None]
        self.world.sum([p.grad for p in every if p.grad is not None])
        return every

    def _see(self, batch: Batch) -> Step:
        parts = self.parts
        return Step(
            batch,
            self.clock,
            student=parts.student,
            teachers=parts.teachers,
            attack=parts.attack,
            threat=self._threat,
            noise=Noise(self.recipe.seed, "train", self.clock.epoch, batch.samples),
        )

    @property
    def _threat(self) -> Threat:
        """The ball of this step, which may still be growing."""
        full, grown = self.parts.threat, optim.length(self.recipe.train.eps_warmup, self.steps)
        return replace(full, eps=full.eps * (self.step + 1) / grown) if self.step < grown else full

    def batches(self) -> Iterator[Batch]:
        """From where the run stands to its last step."""
        train, seed = self.recipe.train, self.recipe.seed
        while self.step < self.steps:
            epoch = self.clock.epoch
            order = epoch_order(len(self.split), train.batch_size, seed, epoch)
            left = order[self.step % self.per_epoch :][: self.steps - self.step]
            batches = self.feed.batches(left, partial(Noise, seed, "augment", epoch))
            while batch := self._next(batches):
                yield batch
            for kept in self._recalls:
                kept.share()
        self.feed.close()

    @staticmethod
    def _next(batches: Iterator[Batch]) -> Batch | None:
        with timing.phase("data"):
            return next(batches, None)

    def _probe(self) -> None:
        score = self.examiner.probe(self.clock, self.signs, self.spent)
        if score > self.best:
            self.best = score
            self._write("best.safetensors")

    def _conclude(self, before: list[Results]) -> list[Results]:
        """Measure what was learned and write it down. Rows: undefended, controls, student, teachers."""
        self._round()
        after = self.examiner.after()
        if self.recipe.evaluate.select != "none":
            after.insert(1, self._measure_best())
        rows = sorted([*before, *after], key=lambda row: row.subject.endswith(" teacher"))
        self._write("last.safetensors", rows)
        self.examiner.show()
        self.folder.finish(rows, asdict(self.spent))
        return rows

    def _measure_best(self) -> Results:
        """The student as the probe liked it best; the last one is put back afterwards."""
        student = self.parts.student
        last = {name: tensor.clone() for name, tensor in student.model.learned().items()}
        facts, tensors = self.world.told(lambda: checkpoint.read(self.folder.path / "best.safetensors"))
        student.load(checkpoint.of_student(tensors))
        row = self.examiner.student("student, best probe")
        stored = [Results("student", row.counts, row.statements).to_json()]
        if self.world.main:
            checkpoint.write(self.folder.path / "best.safetensors", tensors, {**facts, "results": stored})
        student.load(last)
        return row

    def _round(self) -> None:
        """What is measured is what the file will hold."""
        if self.recipe.save.dtype == "fp16":
            with torch.no_grad():
                for tensor in checkpoint.learned(self.parts.student, self.parts.teachers).values():
                    if tensor.is_floating_point():
                        tensor.copy_(tensor.half().to(tensor.dtype))
            for participant in (self.parts.student, *self.parts.teachers.values()):
                participant.renew()

    def _check(self, values: Mapping[str, float]) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            self._diverge(f"not finite at step {self.step + 1}: {', '.join(bad)}")

    def _diverge(self, why: str) -> NoReturn:
        self._give_up(Diverged(why, "lower optim.lr or set optim.clip_norm"))

    def _give_up(self, why: RunError) -> NoReturn:
        """Stop, with the last good state on disk: the present one, unless an update has ruined it or a step is half
        taken."""
        kept = f"the state after step {self.step}" if self._save_if_sound() else "what was saved last"
        self.tell(RunStopped(self.clock, why.message, None))
        where = f"{kept} is in {self.folder.path}; " if self.folder.ours else ""
        raise type(why)(why.message, where + why.hint)

    def _save_if_sound(self) -> bool:
        """Save the present state, unless an update has ruined it or a step is half taken. Whether it was saved."""
        for learner in self.parts.learners.values():
            learner.discard()
        sound = self._sound() and not self._halfway
        if sound:
            self._save()
        return sound

    def _sound(self) -> bool:
        """Whether all that was learned is finite."""
        tensors = checkpoint.learned(self.parts.student, self.parts.teachers).values()
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    def _stop(self) -> None:
        command = launch.resumed(self.folder.path)
        self.tell(RunStopped(self.clock, "asked to stop", command))
        raise Interrupted(f"stopped after step {self.step} of {self.steps}; all is saved", f"go on with: {command}")

    def _save(self) -> None:
        """The checkpoint, then the resume point; a kill between the two costs nothing."""
        if not self.folder.ours:
            return
        self._write("last.safetensors")
        point = self.folder.resume_point
        stand = resume.Stand(self.step, self.best, self.world.size, asdict(self.spent), self.signs.state())
        resume.save(point, self.parts, self.optimizer, dict(self.recipe.tree), stand)
        self.tell(Saved(point, self.clock))

    def _write(self, name: str, rows: list[Results] | None = None) -> None:
        if not self.folder.ours:
            return
        parts = self.parts
        facts = checkpoint.facts(self.recipe, parts.student, parts.record(), self.clock)
        tensors = checkpoint.learned(parts.student, parts.teachers)
        path = self.folder.path / name
        stored = [row.to_json() for row in rows or []]
        checkpoint.write(path, checkpoint.stored_as(tensors, self.recipe.save.dtype), {**facts, "results": stored})
        self.tell(Saved(path, self.clock))

    def _plan(self) -> dict[str, Any]:
        train, threat, place = self.recipe.train, self.parts.threat, str(self.parts.device)
        if self.world.size > 1:
            place += f", {self.world.size} processes"
        portions = f" in {self.portions} portions" if self.portions > 1 else ""
        sizes = build.count({"student": self.parts.student, **self.parts.teachers})
        learn = [f"{role} {learns:,} of {total:,} parameters" for role, (learns, total) in sizes.items() if learns]
        return {
            "method": self.recipe.strategy.use,
            "data": f"{self.recipe.data.use}, {len(self.split):,} training images, {len(self.parts.classes)} classes",
            "learns": ", ".join(learn),
            "threat": f"{threat.norm}, eps {threat.eps * 255:g}/255",
            "budget": f"{self.steps:,} steps of {self.size} images{portions}, {train.precision} on {place}",
        }


def warnings_told(tell: Callable[[Event], None]) -> contextlib.AbstractContextManager[None]:
    """A `RunWarning` is an event."""
    return run_warnings(lambda message: tell(Warned(message)))


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask; the step in hand is finished first. A second one is obeyed at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # outside the main thread nobody can ask
        before = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
