"""Teachers and students on open_clip: zero-shot CLIP, learned prompts, low-rank adapters, fine-tuned towers."""

from __future__ import annotations

from collections.abc import Iterator

from advdistill import StudentSpec, TeacherSpec, hookimpl


@hookimpl
def advdistill_teachers() -> Iterator[TeacherSpec]:
    yield TeacherSpec(
        name="clip",
        target="advdistill_clip.models:Clip",
        config="advdistill_clip.configs:Clip",
        bare=True,
        summary="A frozen zero-shot CLIP: any open_clip architecture and weights",
        reference="https://github.com/mlfoundations/open_clip",
    )


@hookimpl
def advdistill_students() -> Iterator[StudentSpec]:
    yield StudentSpec(
        name="clip-prompts",
        target="advdistill_clip.prompts:ClipPrompts",
        config="advdistill_clip.configs:Prompts",
        summary="CLIP with learned text, visual or pixel prompts: shallow, deep, coupled, class-specific",
        reference="https://arxiv.org/abs/2210.03117",
    )
    yield StudentSpec(
        name="clip-moapt",
        target="advdistill_clip.moapt:ClipMoapt",
        config="advdistill_clip.configs:Moapt",
        summary="CLIP with several text prompts that a router mixes for each image",
        reference="https://arxiv.org/abs/2505.17509",
    )
    yield StudentSpec(
        name="clip-lora",
        target="advdistill_clip.lora:ClipLora",
        config="advdistill_clip.configs:Lora",
        summary="CLIP with low-rank adapters in its visual tower, its text tower, or both",
        reference="https://arxiv.org/abs/2106.09685",
    )
    yield StudentSpec(
        name="clip-tune",
        target="advdistill_clip.tune:ClipTune",
        config="advdistill_clip.configs:Tune",
        summary="CLIP whose visual tower, text tower or both are fine-tuned, wholly or by blocks",
    )
    yield StudentSpec(
        name="clip-anchor",
        target="advdistill_clip.anchor:ClipAnchor",
        config="advdistill_clip.configs:Anchor",
        summary="CLIP behind a low-pass filter, with an anchor in its first attention that learns",
        reference="https://arxiv.org/abs/2603.12799",
    )
