"""How far a training step is from its floor, and from the usual way of doing it.

    python tests/benchmarks/step_time.py [--classes 100] [--batch 8] [--runs 7] [--threads 2] [--device cpu]

APD with two attack steps looks at a batch four times: twice in the attack, once as student, once as teacher.

floor   4 x (open_clip's visual transformer, forward and backward to its input, same batch and token count, weights
        frozen) + 2 x (class features by shared prefix, forward and backward): twice, for both models' prompts learn
ours    one step of the engine: attack, both losses, backward, optimizer
usual   the same step with all class names encoded at 77 tokens in every forward pass, in chunks of 100, as the public
        implementations do: in each attack step, for the student and for the teacher

The three are run in turn; ratios are taken run by run; medians are printed. Weights are random: they change no cost.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import open_clip
import torch
import torch.nn.functional as F
from advdistill_apd.configs import APD as ApdConfig
from advdistill_apd.strategy import APD
from advdistill_attacks.configs import PGD as PgdConfig
from advdistill_attacks.pgd import PGD
from advdistill_clip.configs import Prompts
from advdistill_clip.prompts import ClipPrompts
from advdistill_clip.text import encode_padded
from torch import Tensor

from advdistill import ClassSet, Clock, Noise, Step, Threat, cross_entropy, kl
from advdistill.engine.data import Batch
from advdistill.engine.participant import Participant

EPS, STEP, ATTACK_STEPS = 4 / 255, 1 / 255, 2


def main() -> None:
    """Run the comparison."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--classes", type=int, default=100)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--runs", type=int, default=7)
    options.add_argument("--threads", type=int, default=0)
    options.add_argument("--device", default="cpu")
    options.add_argument("--model", default="ViT-B-32")
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    names = open_clip.zero_shot_metadata.IMAGENET_CLASSNAMES[: given.classes]
    classes = ClassSet(tuple(dict.fromkeys(names)), ("a photo of a {}.",))
    config = Prompts(model=given.model, weights="random")
    student, teacher = (Participant(ClipPrompts.from_config(config).to(device), classes, learns=True) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(given.batch, 3, 224, 224, generator=generator).to(device)
    labels = torch.randint(len(classes), (given.batch,), generator=generator).to(device)
    batch = Batch(images, labels, torch.arange(given.batch, device=device))
    parameters = [p for learner in (student, teacher) for p in learner.trainable.values()]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)

    ways = {
        "floor": _floor(student, teacher, given.batch),
        "ours": _ours(student, teacher, batch, optimizer),
        "usual": _usual(student, teacher, batch, optimizer),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(given.runs + 1):
        for name, way in ways.items():
            _wait(device)
            start = time.perf_counter()
            way()
            _wait(device)
            if run:  # the first is for warming up
                times[name].append(time.perf_counter() - start)
    print(f"{given.model}, {len(classes)} classes, batch {given.batch}, {torch.get_num_threads()} threads, {device}")
    for name, seconds in times.items():
        print(f"{name:6} {statistics.median(seconds):8.3f} s  (min {min(seconds):.3f}, max {max(seconds):.3f})")
    pairs = list(zip(times["floor"], times["ours"], times["usual"], strict=True))
    print(f"ours / floor {statistics.median(ours / floor for floor, ours, _ in pairs):6.2f}")
    print(f"usual / ours {statistics.median(usual / ours for _, ours, usual in pairs):6.2f}")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _floor(student: Participant, teacher: Participant, batch: int) -> Callable[[], None]:
    visual = student.model.model.visual
    count = 1 + visual.grid_size[0] * visual.grid_size[1] + student.model.config.visual.tokens
    tokens = torch.randn(batch, count, visual.positional_embedding.shape[1], device=student.model.device)

    def run() -> None:
        for _ in range(ATTACK_STEPS + 2):
            x = tokens.clone().requires_grad_()
            visual.transformer(x).sum().backward()
        for learner in (student, teacher):
            learner.model.classifier(learner.prepared).sum().backward()

    return run


def _ours(
    student: Participant, teacher: Participant, batch: Batch, optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    strategy, attack = APD(ApdConfig()), PGD(PgdConfig(steps=ATTACK_STEPS, step=STEP))

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        noise = Noise(0, "train", 0, batch.samples)
        threat = Threat("linf", EPS)
        s = Step(
            batch,
            Clock(0, 1, 0),
            student=student,
            teachers={"clean": teacher},
            attack=attack,
            threat=threat,
            noise=noise,
        )
        strategy.step(s).total().mean().backward()
        for learner in (student, teacher):
            learner.settle()
        optimizer.step()

    return run


def _usual(
    student: Participant, teacher: Participant, batch: Batch, optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    def padded(learner: Participant) -> Tensor:
        model = learner.model
        template = learner.classes.templates[0]
        tokenizer = model.base.tokenizer
        rows = model.place_prompts(tokenizer([template.replace("{}", n) for n in learner.classes.names]), template)
        return torch.tensor([row + [0] * (77 - len(row)) for row in rows], device=model.device)

    ids = {id(learner): padded(learner) for learner in (student, teacher)}

    def logits(learner: Participant, images: Tensor) -> Tensor:
        model = learner.model
        chunks = ids[id(learner)].split(100)
        encoded = torch.cat([encode_padded(model.model, chunk, model.text) for chunk in chunks])
        return model.logits(model.features(images), F.normalize(encoded, dim=-1))

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        adversarial = batch.images + EPS * (2 * torch.rand_like(batch.images) - 1)
        for _ in range(ATTACK_STEPS):
            adversarial = adversarial.clamp(0, 1).detach().requires_grad_()
            loss = cross_entropy(logits(student, adversarial), batch.labels).sum()
            (gradient,) = torch.autograd.grad(loss, adversarial)
            stepped = adversarial.detach() + STEP * gradient.sign()
            adversarial = batch.images + (stepped - batch.images).clamp(-EPS, EPS)
        said, taught = logits(student, adversarial.clamp(0, 1).detach()), logits(teacher, batch.images)
        losses = kl(taught.detach(), said) + cross_entropy(taught, batch.labels) + kl(said.detach(), taught)
        losses.mean().backward()
        optimizer.step()

    return run


if __name__ == "__main__":
    main()
