"""The four models: frozen zero-shot CLIP, and CLIP with prompts, with adapters, or fine-tuned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from copy import copy, deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advdistill import ClassSet, Factored, UsageError
from advdistill_clip import configs
from advdistill_clip.blocks import NONE, Adapters, is_plain
from advdistill_clip.loading import Base, image_size, load_base
from advdistill_clip.lora import adapters_for, weight_name
from advdistill_clip.text import PLACEHOLDER, Sentences, tower_of
from advdistill_clip.visual import encode_pixels, full_precision, is_native


class Clip(Factored):
    """A frozen zero-shot CLIP, and what the others build on: pixels in, cosines times the model's own scale out.

    Args:
        base: the frozen model; shared, so it is never changed.
        config: the settings that it was built from.
    """

    def __init__(self, base: Base, config: configs.Base) -> None:
        super().__init__()
        self.base = base
        self.config = config
        self.model = base.model
        self.size = image_size(base)
        self.image_size = max(self.size)
        for name in ("mean", "std"):
            values = torch.tensor(base.preprocess[name], device=self.device).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    @classmethod
    def from_config(cls, config: Any, *, weights: bool = True) -> Clip:
        return cls(load_base(config, weights=weights), config)

    # What subclasses replace

    @property
    def visual(self) -> nn.Module:
        """The visual tower that looks."""
        return self.model.visual

    def look(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels of the tower's size -> (B, D)."""
        return encode_pixels(self.visual, pixels)

    def place_prompts(self, ids: list[list[int]], template: str) -> list[list[int]]:
        """Make room for learned tokens in a template's sentences."""
        return ids

    @property
    def text_tokens(self) -> Tensor | None:
        """(depth, n, d) learned tokens of the text tower."""
        return None

    # The contract

    def prepare(self, classes: ClassSet) -> list[Sentences]:
        classes = ClassSet(classes.names, tuple(self.config.templates) or classes.templates)
        tokenizer, context = self.base.tokenizer, self.base.context
        prepared = []
        for template in classes.templates:
            ids = self.place_prompts(tokenizer([template.replace("{}", name) for name in classes.names]), template)
            longest = max(range(len(ids)), key=lambda i: len(ids[i]))
            if len(ids[longest]) > context:
                raise UsageError(
                    f"the sentence of class {classes.names[longest]!r} takes {len(ids[longest])} tokens; "
                    f"{self.base.architecture.name} reads {context}",
                    "shorten the class name or the template, or learn fewer text tokens",
                )
            prepared.append(Sentences(self.model, ids, tokenizer.start, tokenizer.pad, context, self.device))
        return prepared

    def classifier(self, classes: list[Sentences], rows: Tensor | None = None) -> Tensor:
        units = [
            F.normalize(_at_least_fp32(sentences.encode(self.model, self.text_tokens, rows)), dim=-1)
            for sentences in classes
        ]
        return units[0] if len(units) == 1 else F.normalize(torch.stack(units).mean(0), dim=-1)

    def features(self, images: Tensor) -> Tensor:
        with full_precision(images.device):
            pixels = images.to(self.mean.dtype)
            if pixels.shape[-2:] != self.size:
                mode = "bilinear" if self.base.preprocess["interpolation"] == "bilinear" else "bicubic"
                smaller = pixels.shape[-2] > self.size[0] or pixels.shape[-1] > self.size[1]
                pixels = F.interpolate(pixels, self.size, mode=mode, antialias=smaller).clamp(0, 1)
            pixels = (pixels - self.mean) / self.std
        return _at_least_fp32(self.look(pixels))

    def logits(self, features: Tensor, classifier: Tensor) -> Tensor:
        with full_precision(features.device):
            return self.model.logit_scale.exp() * F.normalize(features, dim=-1) @ classifier.T

    def learned(self) -> dict[str, Tensor]:
        return {}

    def undefended(self) -> Clip:
        return self if type(self) is Clip else Clip(self.base, self.config)

    def describe(self) -> dict[str, Any]:
        return self.base.describe()

    def train(self, mode: bool = True) -> Clip:
        super().train(mode)
        self.model.eval()
        return self


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


class ClipLora(Clip):
    """CLIP with low-rank adapters in the blocks of its visual tower.

    Raises:
        UsageError: the tower is not open_clip's own vision transformer of the common kind.
    """

    config: configs.Lora

    def __init__(self, base: Base, config: configs.Lora) -> None:
        super().__init__(base, config)
        visual = self.model.visual
        if not is_native(visual) or not all(is_plain(block) for block in visual.transformer.resblocks):
            raise UsageError(
                f"the visual tower of {base.architecture.name} cannot take adapters",
                "use clip-tune, or a ViT of open_clip's own",
            )
        if config.blocks > len(visual.transformer.resblocks):
            raise UsageError(f"blocks is {config.blocks}, but the tower has {len(visual.transformer.resblocks)}")
        self.adapters = adapters_for(
            visual, config.targets, config.blocks, config.rank, config.alpha, config.dropout, config.init_seed
        )

    def _adapters(self) -> list[Adapters]:
        return [dict(block.items()) if len(block) else NONE for block in self.adapters]

    def look(self, pixels: Tensor) -> Tensor:
        return encode_pixels(self.visual, pixels, adapters=self._adapters())

    def learned(self) -> dict[str, Tensor]:
        return {f"visual.lora.{name}": parameter for name, parameter in self.adapters.named_parameters()}

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """The base's state dict with the updates added in: weights that any open_clip model of its kind can load."""
        state = dict(self.model.state_dict())
        for i, block in enumerate(self._adapters()):
            for target, adapter in block.items():
                name = f"visual.{weight_name(target, i)}"
                state[name] = state[name] + adapter.merged()
        return state


class ClipTune(Clip):
    """CLIP whose visual tower learns, or all of it, on a copy; what does not learn is the base's own."""

    config: configs.Tune

    def __init__(self, base: Base, config: configs.Tune) -> None:
        super().__init__(base, config)
        everything = config.tower == "all"
        self.model = deepcopy(base.model) if everything else _with_own_visual(base.model)
        self._prefix = "" if everything else "visual."
        for name, parameter in self._learning.named_parameters():
            parameter.requires_grad_(self._prefix + name not in base.fixed)
        self._norms = [module for module in self._learning.modules() if isinstance(module, _BatchNorm)]
        self.train(self.training)

    @property
    def classifier_learns(self) -> bool:  # type: ignore[override]
        return self.config.tower == "all"

    @property
    def _learning(self) -> nn.Module:
        return self.model if self.config.tower == "all" else self.model.visual

    def train(self, mode: bool = True) -> ClipTune:
        super().train(mode)
        self._learning.train(mode)
        if self.config.bn == "frozen":
            for norm in self._norms:
                norm.eval()
        return self

    @contextlib.contextmanager
    def attacked(self) -> Iterator[None]:
        """Eval; with `bn: train` batch norms use the batch's statistics, as in training, and keep theirs unchanged."""
        with super().attacked():
            if self.config.bn == "frozen":
                yield
                return
            for norm in self._norms:
                norm.training, norm.track_running_stats = True, False
            try:
                yield
            finally:
                for norm in self._norms:
                    norm.track_running_stats = True

    def learned(self) -> dict[str, Tensor]:
        return {self._prefix + name: tensor for name, tensor in self._learning.state_dict(keep_vars=True).items()}


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _with_own_visual(model: nn.Module) -> nn.Module:
    """`model` with a copy of its visual tower; all else is shared."""
    own = copy(model)
    for part in ("_parameters", "_buffers", "_modules"):
        setattr(own, part, dict(getattr(model, part)))
    own.visual = deepcopy(model.visual)
    return own
