"""How far a training step is from its floor, and from the usual way of doing it.

    python tests/benchmarks/step_time.py [--method apd|mmt-ard] [--model ViT-B-32] [--teacher MODEL] [--classes 100]
        [--batch 8] [--attack-steps 2] [--runs 7] [--usual-runs N] [--threads 2]
        [--device cuda --precision bf16 --compile]

APD with K attack steps looks at a batch K + 2 times, each with its gradient: K times in the attack, once as student,
once as teacher. MMT-ARD looks K times in the attack, once at both views as student with a gradient to the weights, and
once, without any gradient, as each teacher.

floor   so many passes of open_clip's own visual transformer (compiled and in the precision asked for, if so), same
        batch and token count, as deep and wide as each model's, attack's backward to its input, + class features by
        shared prefix, forward and backward, once for each model whose prompts learn
ours    one step of a run: attack, losses, backward, optimizer
usual   APD alone: the same step in eager float32 with all class names encoded at 77 tokens in every forward pass, in
        chunks of 100, as the public implementations do: in each attack step, for the student and for the teacher.
        A chunk's graph goes before the next one's is made, so that memory is no limit; the loss is therefore taken with
        class features of just before, which costs the usual way nothing

They are run in turn; ratios are taken turn by turn; medians are printed. Weights are random: they change no cost.

Passes where ours takes at most 1.10 times its floor, on CUDA 1 / 0.9 times, and the usual way at least 4 times ours
with 100 classes, 12 with 1,000, 6 on CUDA.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from advdistill_clip.text import encode_padded
from step_parts import STEP, a_run, in_turn, parser, ratio, table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from advdistill import cross_entropy, kl
from advdistill.engine.data import Batch
from advdistill.engine.fit import Run
from advdistill.engine.participant import Participant, tf32


def main() -> None:
    """Run the comparison."""
    options = parser(__doc__)
    options.add_argument("--usual-runs", type=int, help="default: as many as --runs; 0: never")
    given = options.parse_args()
    with a_run(given) as run:
        device, batch = run.parts.device, next(run.batches())
        floor = _floor(run, batch, given.attack_steps, given.compile, given.precision)
        usual_runs = given.runs if given.usual_runs is None else given.usual_runs
        warm = 3 if given.compile or device.type == "cuda" else 1
        flops = _flops(_floor(run, batch, given.attack_steps, False, "fp32"))
        times = in_turn({"floor": floor, "ours": lambda: run.take(batch)}, given.runs, device, warm)
        if given.method == "apd" and usual_runs:
            # The usual way stands beside a step of ours each time, too.
            ways = {"again": lambda: run.take(batch), "usual": tf32(False)(_usual(run, batch, given.attack_steps))}
            times |= in_turn(ways, usual_runs, device, warm_up=usual_runs > 1)
        print(
            f"{given.method}, {given.model}, {given.classes} classes, batch {given.batch}, {given.attack_steps} attack "
            f"steps, {given.precision}{', compiled' * given.compile}, {torch.get_num_threads()} threads, {device}"
        )
        print(table(times))
        on_cuda = device.type == "cuda"
        print(f"ours / floor {(slower := ratio(times, 'ours', 'floor')):6.2f}")
        passes = slower <= (1 / 0.9 if on_cuda else 1.10)
        if "usual" in times:
            print(f"usual / ours {(faster := ratio(times, 'usual', 'again')):6.2f}")
            passes &= faster >= (6 if on_cuda else 12 if given.classes >= 1000 else 4 if given.classes >= 100 else 0)
        if on_cuda:
            rate, ours = _matmul_rate(device), flops / sorted(times["ours"])[len(times["ours"]) // 2]
            print(f"ours {ours / 1e12:.0f} TFLOP/s, bf16 matmul {rate / 1e12:.0f} TFLOP/s: {100 * ours / rate:.0f} %")
    print("passes" if passes else "FAILS")
    sys.exit(not passes)


def _floor(run: Run, batch: Batch, attack_steps: int, compiled: bool, precision: str) -> Callable[[], None]:
    student, teachers = run.parts.student, run.parts.teachers
    device, size = run.parts.device, len(batch)
    raw: dict[str, tuple[nn.Module, Tensor]] = {}
    for role, participant in {"student": student, **teachers}.items():
        visual = participant.model.visual
        prompts = getattr(participant.model.config, "visual", None)
        count = 1 + visual.grid_size[0] * visual.grid_size[1] + (prompts.tokens if prompts else 0)
        tokens = torch.randn(2 * size, count, visual.positional_embedding.shape[1], device=device)
        tower = torch.compile(visual.transformer, dynamic=False) if compiled else visual.transformer
        raw[role] = tower, tokens

    def passes(role: str, images: int, backward: bool, pixels: bool = True) -> None:
        tower, tokens = raw[role]
        with torch.set_grad_enabled(backward), _autocast(device, precision):
            x = tokens[:images].detach().requires_grad_(pixels)
            found = tower(x)
        if backward:
            found.sum().backward()

    def apd() -> None:
        with _frozen(student):
            for _ in range(attack_steps):
                passes("student", size, backward=True)
        # The prompts are rows of the tower's input.
        passes("student", size, backward=True)
        passes("clean", size, backward=True)
        with _autocast(device, precision):
            for learner in (student, teachers["clean"]):
                learner.model.classifier(learner.prepared).sum().backward()

    def mmt_ard() -> None:
        with _frozen(student):
            for _ in range(attack_steps):
                passes("student", size, backward=True)
        passes("student", 2 * size, backward=True, pixels=False)
        for role in teachers:
            passes(role, size, backward=False)
        student.model.zero_grad(set_to_none=True)

    return apd if run.recipe.strategy.use == "apd" else mmt_ard


@contextlib.contextmanager
def _frozen(participant: Participant) -> Iterator[None]:
    for parameter in participant.trainable.values():
        parameter.requires_grad_(False)
    yield
    for parameter in participant.trainable.values():
        parameter.requires_grad_()


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _flops(way: Callable[[], None]) -> float:
    with FlopCounterMode(display=False) as counter:
        way()
    return float(counter.get_total_flops())


def _matmul_rate(device: torch.device, side: int = 8192) -> float:
    """Operations a second of the device's bf16 matrix product."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = min(in_turn({"matmul": lambda: [a @ b for _ in range(20)]}, 5, device)["matmul"])
    return 20 * 2 * side**3 / seconds


def _usual(run: Run, batch: Batch, attack_steps: int) -> Callable[[], None]:
    student, teacher = run.parts.student, run.parts.teachers["clean"]
    eps, generator = run.parts.threat.eps, torch.Generator(run.parts.device).manual_seed(0)

    def padded(learner: Participant) -> Tensor:
        model = learner.model
        template = learner.classes.templates[0]
        tokenizer = model.base.tokenizer
        rows = model.place_prompts(tokenizer([template.replace("{}", n) for n in learner.classes.names]), template)
        context = model.base.context  # 77, of CLIP's
        return torch.tensor([row + [0] * (context - len(row)) for row in rows], device=model.device)

    ids = {id(learner): padded(learner).split(100) for learner in (student, teacher)}

    def encoded(learner: Participant, chunk: Tensor) -> Tensor:
        return F.normalize(encode_padded(learner.model.model, chunk, learner.model.text), dim=-1)

    @torch.no_grad()
    def all_encoded(learner: Participant) -> Tensor:
        return torch.cat([encoded(learner, chunk) for chunk in ids[id(learner)]])

    def logits(learner: Participant, images: Tensor, classes: Tensor) -> Tensor:
        return learner.model.logits(learner.model.features(images), classes)

    taught_by = all_encoded(teacher)

    def run_once() -> None:
        run.optimizer.zero_grad(set_to_none=True)
        noise = torch.rand(batch.images.shape, generator=generator, device=batch.images.device)
        adversarial = batch.images + eps * (2 * noise - 1)
        for _ in range(attack_steps):
            adversarial = adversarial.clamp(0, 1).detach().requires_grad_()
            classes = all_encoded(student)
            loss = cross_entropy(logits(student, adversarial, classes), batch.labels).sum()
            (gradient,) = torch.autograd.grad(loss, adversarial)
            stepped = adversarial.detach() + STEP * gradient.sign()
            adversarial = batch.images + (stepped - batch.images).clamp(-eps, eps)
        known = {id(student): classes.requires_grad_(), id(teacher): taught_by.detach().requires_grad_()}
        said = logits(student, adversarial.clamp(0, 1).detach(), known[id(student)])
        taught = logits(teacher, batch.images, known[id(teacher)])
        losses = kl(taught.detach(), said) + cross_entropy(taught, batch.labels) + kl(said.detach(), taught)
        losses.mean().backward()
        for learner in (student, teacher):
            for chunk, gradient in zip(ids[id(learner)], known[id(learner)].grad.split(100), strict=True):
                encoded(learner, chunk).backward(gradient)
        run.optimizer.step()

    return run_once


if __name__ == "__main__":
    main()
