"""How fast are class features with learned prompts, and how exact?

Compared in one run, forward and backward into the prompts: the packed encoding of `clip-prompts` against the usual
one, in which every sentence is encoded at the full 77 tokens, 100 names at a time. Random weights do: neither time nor
exactness depends on them.

    python tests/benchmarks/class_features.py [--classes 1000] [--runs 3] [--threads N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from advdistill_clip.configs import Prompts
from advdistill_clip.prompts import ClipPrompts
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor

from advdistill import ClassSet


def usual_way(student: ClipPrompts, ids: Tensor) -> Tensor:
    """(C, 77) ids with placeholders -> (C, D) unit features: the whole row, every class, every layer."""
    clip, prompts = student.model, student.learned()["text.prompts"]
    n = prompts.shape[1]

    def place(x: Tensor, tokens: Tensor) -> Tensor:
        return torch.cat([x[:, :1], tokens.expand(len(x), -1, -1), x[:, 1 + n :]], dim=1)

    x = place(clip.token_embedding(ids), prompts[0]) + clip.positional_embedding
    for i, block in enumerate(clip.transformer.resblocks):
        x = block(place(x, prompts[i]) if 0 < i < len(prompts) else x, attn_mask=clip.attn_mask)
    x = clip.ln_final(x)
    return F.normalize(x[torch.arange(len(x)), ids.argmax(1)] @ clip.text_projection, dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--chunk", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    text = {"tokens": 4, "depth": 9, "init": "a photo of a"}
    student = ClipPrompts.from_config(
        Prompts.model_validate({"model": args.model, "weights": "random", "text": text, "visual": {"tokens": 0}})
    )
    prompts = student.learned()["text.prompts"]
    names = tuple(dict.fromkeys(IMAGENET_CLASSNAMES))[: args.classes]
    template = "a photo of a {}."
    classes = student.prepare(ClassSet(names, (template,)))
    sentences = student.place_prompts(student.base.tokenizer([template.replace("{}", n) for n in names]), template)
    context = student.base.context
    ids = torch.tensor([[*row, *[0] * (context - len(row))] for row in sentences])
    pack = classes[0].pack
    ratio = context * len(names) / (len(pack.prefix) + len(pack.own))
    pull = torch.randn(len(names), student.model.text_projection.shape[1], generator=torch.Generator().manual_seed(0))

    def packed() -> Tensor:
        features = student.classifier(classes)
        (features * pull).sum().backward()
        return features.detach()

    def usual() -> Tensor:
        done = []
        for chunk, weight in zip(ids.split(args.chunk), pull.split(args.chunk), strict=True):
            features = usual_way(student, chunk)
            (features * weight).sum().backward()
            done.append(features.detach())
        return torch.cat(done)

    def timed(way: Callable[[], Tensor]) -> tuple[tuple[float, float], Tensor, Tensor]:
        prompts.grad = None
        wall, cpu = time.perf_counter(), time.process_time()
        features = way()
        times = time.perf_counter() - wall, time.process_time() - cpu
        return times, features, prompts.grad.clone()

    packed()
    runs: dict[str, list[tuple[float, float]]] = {"packed": [], "usual": []}
    for _ in range(args.runs):
        seconds, features, gradient = timed(packed)
        runs["packed"].append(seconds)
        seconds, expected, expected_gradient = timed(usual)
        runs["usual"].append(seconds)
    learned = f"{text['tokens']} learned tokens to depth {text['depth']}"
    print(
        f"{args.model}, {len(names)} names, {learned}, {args.threads} threads, medians of {args.runs} interleaved runs"
    )
    print(f"tokens      {context * len(names)} usual, {len(pack.prefix)} + {len(pack.own)} packed: ratio {ratio:.1f}")
    for i, clock in enumerate(("wall", "CPU ")):  # on a busy machine CPU time is the steadier one
        ours, theirs = (statistics.median(times[i] for times in runs[way]) for way in ("packed", "usual"))
        speedup = f"{theirs / ours:.1f} times as fast = {theirs / ours / ratio:.2f} x the token ratio"
        print(f"{clock} time   {theirs:.2f} s usual, {ours:.2f} s packed: {speedup}")
    print(f"features    differ by {(features - expected).abs().max():.1e} at most")
    print(f"gradients   differ by {(gradient - expected_gradient).norm() / expected_gradient.norm():.1e} of their norm")


if __name__ == "__main__":
    main()
