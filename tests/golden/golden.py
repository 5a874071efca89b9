"""Golden losses: what each strategy says of a tiny CLIP, adversarial images given.

`python tests/golden/golden.py` writes losses.json anew. Do that only where a change of numbers is meant, and say why.
Weights, images and the adversary's signs come from formulas, not from generators, so that no version of anything
changes them; all is float64 on one CPU, so that threads do not either.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from advdistill_apd.configs import APD as APDConfig
from advdistill_apd.strategy import APD
from advdistill_clip.configs import Clip as ClipConfig
from advdistill_clip.configs import Lora, Prompts, Tune
from advdistill_clip.lora import ClipLora
from advdistill_clip.models import Clip
from advdistill_clip.prompts import ClipPrompts
from advdistill_clip.tune import ClipTune
from advdistill_finetuning.strategies import AdversarialCE, Clean
from advdistill_mmt_ard.configs import MMTARD as MMTARDConfig
from advdistill_mmt_ard.strategy import MMTARD
from torch import Tensor

from advdistill import Attack, ClassSet, Clock, Noise, Problem, Step, Strategy, Threat
from advdistill.engine.data import Batch
from advdistill.engine.step import Participant

FILE = Path(__file__).with_name("losses.json")
CLASSES = ClassSet(("zero", "one", "forty-two", "naïve"), ("a photo of a {}.",))
CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 259, "width": 16, "heads": 2, "layers": 2,
                 "hf_tokenizer_name": "bytes"},
}  # fmt: skip
PROMPTS: dict[str, Any] = {"text": {"tokens": 2, "depth": 2}, "visual": {"tokens": 2, "depth": 2}}
# name -> (strategy, the student's kind, who teaches, who of them learns)
CASES: dict[str, tuple[Strategy, str, tuple[str, ...], bool]] = {
    "apd": (APD(APDConfig(beta=0.7)), "prompts", ("clean",), True),
    "apd, temperature 2": (APD(APDConfig(temperature=2.0)), "prompts", ("clean",), True),
    "apd, frozen teacher": (APD(APDConfig()), "prompts", ("clean",), False),
    "mmt-ard": (MMTARD(MMTARDConfig(slope=3.0)), "lora", ("clean", "robust"), False),
    "mmt-ard, released code": (
        MMTARD(MMTARDConfig(weighting="cosine", clean_weight=5, robust_weight=50, reduction="element-mean")),
        "tune",
        ("clean", "robust"),
        False,
    ),
    "mmt-ard, consistency": (
        MMTARD(MMTARDConfig(weighting="probability", consistency=0.5, objective="ce")),
        "prompts",
        ("clean", "robust"),
        False,
    ),
    "clean": (Clean(None), "tune", (), False),
    "adversarial-ce": (AdversarialCE(None), "lora", (), False),
}


def wave(shape: tuple[int, ...], tune: float) -> Tensor:
    """Numbers in [-1, 1] that look arbitrary and are not."""
    index = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return torch.sin(index * (1 + tune) + (index * index % 17) * tune).view(shape)


class Given(Attack):
    """The same images every time; the objective is asked once, at them."""

    def run(self, problem: Problem, threat: Threat, noise: Noise) -> Tensor:
        images = threat.project(
            problem.images + threat.eps * wave(tuple(problem.images.shape), 0.77).sign(), problem.images
        )
        with torch.no_grad():
            self.climbed = problem.objective(images, problem.rows)
        return images


def model(kind: str, source: str, tune: float) -> Clip:
    """A tiny CLIP in float64 whose every tensor is a wave."""
    base: dict[str, Any] = {"model": source, "weights": "random", "weights_seed": int(tune * 1000)}
    built: Clip = {
        "clip": lambda: Clip.from_config(ClipConfig(**base)),
        "prompts": lambda: ClipPrompts.from_config(Prompts(**base, **PROMPTS)),
        "lora": lambda: ClipLora.from_config(Lora(**base, rank=2, dropout=0.0)),
        "tune": lambda: ClipTune.from_config(Tune(**base)),
    }[kind]()
    built.double()
    with torch.no_grad():
        for place, (name, tensor) in enumerate(built.named_parameters()):
            if "logit_scale" in name:
                tensor.fill_(math.log(20))
            else:
                # About what initialisation gives: norms around 1, the rest of size 1/sqrt(width).
                around = (
                    1.0
                    if name.endswith(
                        ("ln_1.weight", "ln_2.weight", "ln_pre.weight", "ln_post.weight", "ln_final.weight")
                    )
                    else 0.0
                )
                tensor.copy_(around + 0.3 * wave(tuple(tensor.shape), tune + 0.01 * place))
    return built


def measure(name: str) -> dict[str, Any]:
    """The objective at the given images, every term and weight, and the gradient's norm of each learner."""
    strategy, kind, roles, learning = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "tiny.json"
        source.write_text(json.dumps(CLIP))
        student = Participant(model(kind, str(source), 0.1), CLASSES, learns=True)
        teachers = {
            role: Participant(
                model("prompts" if learning else "clip", str(source), 0.2 + 0.1 * i), CLASSES, learns=learning
            )
            for i, role in enumerate(roles)
        }
    images = 0.5 + 0.5 * wave((3, 3, 16, 16), 0.5)
    batch = Batch(images, torch.tensor([0, 3, 1]), torch.arange(3))
    attack = Given(None)
    s = Step(batch, Clock(0, 1, 0), student=student, teachers=teachers, attack=attack,
             threat=Threat("linf", 8 / 255), noise=Noise(0, "golden", 0, batch.samples))  # fmt: skip
    losses = strategy.step(s)
    losses.total().mean().backward()
    found: dict[str, Any] = {
        "terms": {term: losses.terms[term].value.tolist() for term in losses.terms},
        "weighted": {term: losses.weighted(term).tolist() for term in losses.terms},
        "gradients": {},
    }
    if hasattr(attack, "climbed"):
        found["objective"] = attack.climbed.tolist()
    for role, participant in {"student": student, **teachers}.items():
        if participant.learns:
            participant.settle()
            gradients = [p.grad.flatten() for p in participant.trainable.values() if p.grad is not None]
            found["gradients"][role] = torch.cat(gradients).norm().item()
    return found


def main() -> None:
    FILE.write_text(json.dumps({name: measure(name) for name in CASES}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
