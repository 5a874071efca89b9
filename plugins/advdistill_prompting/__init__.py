"""Adversarial prompt tuning: prompts learned on adversarial images, without a teacher or against the frozen CLIP."""

from __future__ import annotations

from collections.abc import Iterator

from advdistill import StrategySpec, hookimpl

MAPT = "https://github.com/xinwong/Multimodal-Adversarial-Prompt-Tuning"
# One algorithm; what makes the method is the student it is given. name -> (what learns, where it is from)
TUNING = {
    "apt": ("text tokens, best on a robust backbone", "https://arxiv.org/abs/2403.01849"),
    "adv-vp": ("visual tokens or pixels", "https://arxiv.org/abs/2212.07016"),
    "adv-tp": ("text tokens", MAPT),
    "adv-vlp": ("text and visual tokens, independent of each other", MAPT),
    "adv-maple": ("text and visual tokens, coupled", MAPT),
    "moapt": ("a mixture of text prompts, weighed image by image", "https://arxiv.org/abs/2505.17509"),
}


@hookimpl
def advdistill_strategies() -> Iterator[StrategySpec]:
    for name, (learns, reference) in TUNING.items():
        yield StrategySpec(
            name=name,
            target="advdistill_prompting.strategies:PromptTuning",
            config="advdistill_prompting.configs:PromptTuning",
            check=f"advdistill_prompting.checks:{name.replace('-', '_')}",
            attack="labels",
            summary=f"Adversarial prompt tuning: {learns}",
            reference=reference,
        )
    yield StrategySpec(
        name="fap",
        target="advdistill_prompting.strategies:FAP",
        config="advdistill_prompting.configs:FAP",
        check="advdistill_prompting.checks:fap",
        attack="objective",
        summary="FAP: clean cross-entropy, and consistent predictions from features that part",
        reference="https://arxiv.org/abs/2403.14774",
    )
    yield StrategySpec(
        name="capt",
        target="advdistill_prompting.strategies:CAPT",
        config="advdistill_prompting.configs:CAPT",
        check="advdistill_prompting.checks:capt",
        teachers={"original": "the CLIP without prompts, frozen; sees clean images"},
        attack="objective",
        summary="CAPT: adversarial predictions held to the clean ones and to the frozen CLIP's",
        reference="https://arxiv.org/abs/2405.11154",
    )
