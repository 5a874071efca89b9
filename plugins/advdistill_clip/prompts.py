"""CLIP with learned prompts: tokens in the text tower, tokens in the visual tower, pixels in the image."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from advdistill import ClassSet, UsageError
from advdistill_clip import configs
from advdistill_clip.loading import Base
from advdistill_clip.models import Clip
from advdistill_clip.text import make_room, text_prompts_fit, tower_of, words
from advdistill_clip.visual import encode_pixels, prompts_fit


class ClipPrompts(Clip):
    """CLIP with learned prompts.

    Tokens of the two towers are independent of each other (IVLP), or those of one are linear maps of the other's:
    `text-to-visual` as in MaPLe (arXiv 2210.03117), `visual-to-text` as in FAP (arXiv 2403.14774), which maps deep
    prompts from visual to text, but those at the input from text to visual. Text tokens are shared by all classes, or
    each class has its own; these are made by `bind`.

    Args:
        generator: what prompts are drawn from; None: one of their own, from `init_seed`.

    Raises:
        UsageError: a tower that cannot take prompts, more depth than blocks, a frame wider than the image.
    """

    config: configs.Prompts

    def __init__(self, base: Base, config: configs.Prompts, generator: torch.Generator | None = None) -> None:
        super().__init__(base, config)
        text, visual, coupling = config.text, config.visual, config.coupling
        self.own_words = text.tokens > 0
        generator = generator or torch.Generator().manual_seed(config.init_seed)
        self.text: nn.Parameter | None = None
        self.vision: nn.Parameter | None = None
        self._contexts: dict[str, int] = {}
        # Of a coupled kind only the source is a parameter; how many blocks' worth of each is told here.
        if text.tokens:
            text_width = _fitting("text", text.depth, *text_prompts_fit(self.model))
            sources = 1 if coupling == "visual-to-text" else text.depth
            if not text.per_class:
                self.text = self._start((sources, text.tokens, text_width), generator)
        if visual.tokens:
            width = _fitting("visual", visual.depth, *prompts_fit(self.model.visual))
            sources = {"none": visual.depth, "text-to-visual": 0, "visual-to-text": visual.depth - 1}[coupling]
            if sources:
                device = next(self.model.visual.parameters()).device
                self.vision = nn.Parameter(self._draw((sources, visual.tokens, width), generator).to(device))
        self.projections = nn.ModuleList()
        if coupling != "none":
            to_visual = linear(text_width, width, generator, self.device)
            deeper = visual.depth - 1 if coupling == "text-to-visual" else text.depth - 1
            ways = (text_width, width) if coupling == "text-to-visual" else (width, text_width)
            deep = linear(*ways, generator, self.device)  # the public code starts the deeper ones as copies of one draw
            self.projections.extend([to_visual, *(deepcopy(deep) for _ in range(deeper))])
        self.pixels = self._draw_pixels(generator) if config.pixels.form != "none" else None
        self._bind_seed = int(torch.randint(2**63 - 1, (), generator=generator))

    def _draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randn(*shape, generator=generator) * self.config.std

    def _start(self, shape: Sequence[int], generator: torch.Generator) -> nn.Parameter:
        """Drawn text tokens (depth, ..., n, d), those at the input replaced by the phrase if there is one.

        They stand where the text tower stands, which may be elsewhere than the rest of a base: a student that shares
        the one but not the other took it along.
        """
        embedding = tower_of(self.model).embedding
        drawn = self._draw(shape, generator).to(embedding.weight.device)
        tokens, init, tokenizer = self.config.text.tokens, self.config.text.init, self.base.tokenizer
        if init:
            ids = words(tokenizer, init)
            if len(ids) < tokens:
                raise UsageError(
                    f"text.init {init!r} has {len(ids)} tokens, fewer than the {tokens} to learn",
                    "give a longer phrase, or an empty one to draw the tokens",
                )
            if not drawn.is_meta:
                drawn[0] = embedding(torch.tensor(ids[:tokens], device=drawn.device)).detach()
        return nn.Parameter(drawn)

    def _draw_pixels(self, generator: torch.Generator) -> nn.Parameter:
        """(3, K) learned pixels, for the K places that `where` lists, row by row."""
        form, width, (height, length) = self.config.pixels.form, self.config.pixels.width, self.size
        place = torch.ones(height, length, dtype=torch.bool)
        if form == "frame":
            if 2 * width >= min(height, length):
                raise UsageError(
                    f"a frame of pixels.width {width} leaves nothing of {height} x {length} pixels",
                    "lower it, or set pixels.form: additive",
                )
            place[width:-width, width:-width] = False
        where = place.flatten().nonzero().squeeze(1)
        self.register_buffer("where", where.to(self.device), persistent=False)
        drawn = torch.randn(3, len(where), generator=generator) * self.config.pixels.std
        return nn.Parameter(drawn.to(self.device))

    # Class-specific contexts

    def bind(self, classes: ClassSet) -> None:
        """Make the contexts that classes have of their own; afterwards any of these classes can be told apart."""
        text = self.config.text
        if not text.per_class:
            return
        if not self._contexts:
            self._contexts = {name: i for i, name in enumerate(classes.names)}
            width, _ = text_prompts_fit(self.model)
            generator = torch.Generator().manual_seed(self._bind_seed)
            self.text = self._start((text.depth, len(classes), text.tokens, width), generator)
        self.contexts(classes.names)

    def contexts(self, names: Sequence[str]) -> Tensor | None:
        if not self.config.text.per_class:
            return None
        if not self._contexts:
            raise UsageError("text.per_class: the classes' contexts are not made yet", "call bind(classes) first")
        if strange := [name for name in names if name not in self._contexts]:
            raise UsageError(
                f"its contexts were learned for other classes: it has none for {', '.join(strange[:3])}",
                "class-specific contexts do not transfer; train with text.per_class: false",
            )
        return torch.tensor([self._contexts[name] for name in names], device=self.device)

    # The prompts of both towers, coupled or not

    @property
    def classifier_learns(self) -> bool:  # type: ignore[override]
        return self.config.text.tokens > 0

    @property
    def text_tokens(self) -> Tensor | None:
        if self.config.coupling != "visual-to-text":
            return self.text
        deep = () if self.vision is None else self.vision
        return torch.stack([self.text[0], *(to(x) for to, x in zip(self.projections[1:], deep, strict=False))])

    @property
    def visual_tokens(self) -> Tensor | None:
        """(depth, n, width) learned tokens of the visual tower."""
        if self.config.coupling == "none":
            return self.vision
        if self.config.coupling == "text-to-visual":
            return torch.stack([to(x) for to, x in zip(self.projections, self.text, strict=False)])
        deep = () if self.vision is None else self.vision
        return torch.stack([self.projections[0](self.text[0]), *deep])

    # What the base asks

    def look(self, pixels: Tensor) -> Tensor:
        return encode_pixels(self.visual, self.with_learned(pixels), self.visual_tokens)

    def with_learned(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels with the learned ones added, within what [0, 1] is after normalisation.

        Normalisation is affine, so this is the same as adding and clamping before it, but at zero it changes no bit.
        """
        if self.pixels is None:
            return pixels
        height, width = self.size
        added = self.pixels.new_zeros(3, height * width).index_copy(1, self.where, self.pixels).view(3, height, width)
        low, high = ((bound - self.mean) / self.std for bound in (0, 1))
        return torch.clamp(pixels + added / self.std, low, high)

    def place_prompts(self, ids: list[list[int]], template: str) -> list[list[int]]:
        """With a phrase the learned tokens take the place of the sentence's first ones, else they stand before them."""
        text = self.config.text
        return make_room(self.base.tokenizer, ids, template, text.tokens, bool(text.init)) if text.tokens else ids

    def learned(self) -> dict[str, Tensor]:
        named = {"text.prompts": self.text, "visual.prompts": self.vision, "pixels": self.pixels}
        found = {name: prompts for name, prompts in named.items() if prompts is not None}
        return found | {f"coupling.{name}": tensor for name, tensor in self.projections.named_parameters()}

    def modalities(self) -> dict[str, list[str]]:
        if self.config.coupling != "none":  # each acts in both
            return {}
        prompts = {"text": self.text, "visual": self.vision}
        return {where: [f"{where}.prompts"] for where, tokens in prompts.items() if tokens is not None}


def _fitting(what: str, depth: int, width: int, blocks: int) -> int:
    """The width of prompts that fit their tower."""
    if depth > blocks:
        raise UsageError(f"{what}.depth is {depth}, but the tower has {blocks} blocks", "lower it")
    return width


def linear(inputs: int, outputs: int, generator: torch.Generator, device: torch.device) -> nn.Linear:
    """A linear map as torch starts them, uniformly in +-1/sqrt(inputs), but drawn from `generator`."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, device=device)
    bound = inputs**-0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    return layer
