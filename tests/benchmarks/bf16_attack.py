"""How much weaker is an attack that is crafted in bfloat16?

    python tests/benchmarks/bf16_attack.py [--device cpu] [--steps 10] [--eps 1 4]

PGD from the same random starts is run twice on each of the demo's models: with the tower in float32, and under bf16
autocast as `train.precision: bf16` has it in training. The pixels that come out are judged by the model in float32, on
all 1,797 digits. The bar: at eps = 1/255 the two robust accuracies lie within 0.5 points of each other.

The models are small: an undefended one, three fine-tuned ones, and one with learned prompts.
"""

from __future__ import annotations

import argparse

import torch
from attack_parts import attack, digits, model
from torch import Tensor

from advdistill import ArraySplit, Attack, ClassSet, Noise, Threat
from advdistill.engine import build
from advdistill.engine.attack import Problem
from advdistill.engine.judge import Judge
from advdistill.engine.participant import Manner, Participant

MODELS = ("clean", "robust", "adversarial_ce", "clean_prompts")


def main() -> None:
    """Compare, model by model."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cpu")
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--eps", type=float, nargs="+", default=[1, 4])
    given = options.parse_args()
    device = torch.device(given.device)
    split, classes = digits("train", "val", "test")
    print(f"PGD-{given.steps}, {len(split)} digits, {device}; accuracy in %, judged in float32")
    print(f"{'model':16}{'eps':>8}{'clean':>8}{'fp32':>8}{'bf16':>8}{'points':>8}{'pixels that differ':>21}")
    for name in ("small", *MODELS):
        subject = undefended(classes) if name == "small" else model(f"advdistill_demo:{name}.safetensors", classes)
        subject.model.to(device)
        for eps in given.eps:
            row = compare(subject, split, attack({"use": "pgd", "steps": given.steps}), Threat("linf", eps / 255))
            clean, full, half, apart = (100 * value for value in row)
            print(f"{name:16}{eps:>4g}/255{clean:8.2f}{full:8.2f}{half:8.2f}{half - full:+8.2f}{apart:20.1f}%")


def undefended(classes: ClassSet) -> Participant:
    """The demo's small CLIP as it is."""
    source = {"model": "advdistill_demo:small.json", "weights": "advdistill_demo:small.safetensors"}
    return Participant(build.model_of({"use": "clip", **source}), classes)


def compare(subject: Participant, split: ArraySplit, how: Attack, threat: Threat) -> tuple[float, float, float, float]:
    """Accuracy on clean images, under the attack in float32 and in bf16; how many pixels differ; all in [0, 1]."""
    device = subject.model.device
    images, labels = split.images.float().to(device), split.labels.to(device)
    images = images / 255 if split.images.dtype == torch.uint8 else images
    half = Participant(subject.model, subject.classes, manner=Manner("bf16"))
    found = [crafted(who, images, labels, how, threat) for who in (subject, half)]
    with subject.deployed():
        judge = Judge(subject.logits)
        clean, *robust = (judge.look(x, labels).right.float().mean().item() for x in (images, *found))
    return clean, robust[0], robust[1], (found[0] != found[1]).float().mean().item()


def crafted(who: Participant, images: Tensor, labels: Tensor, how: Attack, threat: Threat) -> Tensor:
    """What a training step's attack makes of (N, 3, H, W) images, 256 at a time."""
    parts = []
    for rows in torch.arange(len(images), device=images.device).split(256):
        problem = Problem(
            images[rows], labels[rows], None, lambda some, _: who.logits(some, constant=True), threat, lenient=True
        )
        with who.under_attack():
            parts.append(how(problem, threat, Noise(0, "train", 0, rows)))
    return torch.cat(parts)


if __name__ == "__main__":
    main()
