"""CLIP with learned prompts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from advdistill import UsageError
from advdistill_clip import configs
from advdistill_clip.loading import Base
from advdistill_clip.models import Clip
from advdistill_clip.text import PLACEHOLDER, tower_of
from advdistill_clip.visual import encode_pixels, is_native


class ClipPrompts(Clip):
    """CLIP with learned tokens in the text tower, the visual tower, or both; independent of each other (IVLP).

    Raises:
        UsageError: a tower that cannot take prompts, more depth than blocks, no token at all.
    """

    config: configs.Prompts

    def __init__(self, base: Base, config: configs.Prompts) -> None:
        super().__init__(base, config)
        generator = torch.Generator().manual_seed(config.init_seed)
        name = base.architecture.name
        if not config.text.tokens and not config.visual.tokens:
            raise UsageError("clip-prompts learns nothing: text and visual tokens are both 0", "set one of them")
        self.text: nn.Parameter | None = None
        self.vision: nn.Parameter | None = None
        if config.text.tokens:
            tower = tower_of(self.model)
            if tower is None:
                raise UsageError(f"the text tower of {name} cannot take prompts", "set text.tokens: 0")
            self.text = self._draw("text", config.text, tower.blocks, tower.positions.shape[1], generator)
            if config.text.init and not self.text.is_meta:
                with torch.no_grad():
                    self.text[0] = tower.embedding(torch.tensor(self._phrase(), device=self.device))
        if config.visual.tokens:
            if not is_native(self.model.visual):
                raise UsageError(f"the visual tower of {name} cannot take prompts", "set visual.tokens: 0")
            blocks = self.model.visual.transformer.resblocks
            width = self.model.visual.positional_embedding.shape[1]
            self.vision = self._draw("visual", config.visual, blocks, width, generator)

    def _draw(
        self, what: str, wanted: Any, blocks: nn.ModuleList, width: int, generator: torch.Generator
    ) -> nn.Parameter:
        if wanted.depth > len(blocks):
            raise UsageError(f"{what}.depth is {wanted.depth}, but the tower has {len(blocks)} blocks", "lower it")
        drawn = torch.randn(wanted.depth, wanted.tokens, width, generator=generator) * self.config.std
        return nn.Parameter(drawn.to(self.device))

    def _phrase(self) -> list[int]:
        text, tokenizer = self.config.text, self.base.tokenizer
        ids = tokenizer([text.init])[0][tokenizer.start : -1]
        if len(ids) < text.tokens:
            raise UsageError(
                f"text.init {text.init!r} has {len(ids)} tokens, fewer than the {text.tokens} to learn",
                "give a longer phrase, or an empty one to draw the tokens",
            )
        return ids[: text.tokens]

    @property
    def classifier_learns(self) -> bool:  # type: ignore[override]
        return self.text is not None

    @property
    def text_tokens(self) -> Tensor | None:
        return self.text

    def look(self, pixels: Tensor) -> Tensor:
        return encode_pixels(self.visual, pixels, self.vision)

    def place_prompts(self, ids: list[list[int]], template: str) -> list[list[int]]:
        """With a phrase the learned tokens take the place of the sentence's first ones, else they stand before them."""
        text, tokenizer = self.config.text, self.base.tokenizer
        if not text.tokens:
            return ids
        start, taken = tokenizer.start, text.tokens if text.init else 0
        opening = tokenizer([template.partition("{}")[0]])[0][start:-1]
        if len(opening) < taken:
            raise UsageError(
                f"template {template!r} has {len(opening)} tokens before the name; {taken} learned ones replace them",
                'use a template like "a photo of a {}.", fewer text tokens, or text.init: ""',
            )
        return [[*row[:start], *[PLACEHOLDER] * text.tokens, *row[start + taken :]] for row in ids]

    def learned(self) -> dict[str, Tensor]:
        named = {"text.prompts": self.text, "visual.prompts": self.vision}
        return {name: prompts for name, prompts in named.items() if prompts is not None}
