"""CLIP with a tower, or some of its blocks, that learns as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from copy import copy, deepcopy

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advdistill_clip import configs
from advdistill_clip.loading import Base
from advdistill_clip.models import Clip
from advdistill_clip.towers import blocks_of, some_of


class ClipTune(Clip):
    """CLIP whose visual tower learns, its text tower, or both, on a copy; what does not learn is the base's own.

    Raises:
        UsageError: there are fewer blocks than wanted, or they are not known.
    """

    config: configs.Tune

    def __init__(self, base: Base, config: configs.Tune) -> None:
        super().__init__(base, config)
        self._learning = parts_of(base.model, config.tower, config.blocks)
        self.model = with_own(base.model, self._learning)
        for name, parameter in self.model.named_parameters():
            if self._learns(name):
                parameter.requires_grad_(name not in base.fixed)
        self._modules_that_learn = [
            part for path in self._learning if isinstance(part := _at(self.model, path), nn.Module)
        ]
        self._norms = [
            module for part in self._modules_that_learn for module in part.modules() if isinstance(module, _BatchNorm)
        ]
        self.train(self.training)

    def _learns(self, name: str) -> bool:
        return any(name == path or name.startswith(f"{path}.") for path in self._learning)

    @property
    def classifier_learns(self) -> bool:  # type: ignore[override]
        return self.config.tower != "visual"

    def train(self, mode: bool = True) -> ClipTune:
        super().train(mode)
        for part in self._modules_that_learn:
            part.train(mode)
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
        """Whole parts, so that they serve as weights; constants in them are no parameters, and so never learn."""
        state = self.model.state_dict(keep_vars=True)
        return {n: t.detach() if n in self.base.fixed else t for n, t in state.items() if self._learns(n)}


_TEXT_IN_THE_MODEL = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
_NO_USE = ("text_decoder", "logit_bias")
"""Parts that no logit of a class depends on: CoCa's captions, SigLIP's bias."""


def parts_of(model: nn.Module, tower: str, blocks: str) -> list[str]:
    """Paths of the modules and parameters that learn."""
    if blocks != "all":
        return [part for block in some_of(blocks_of(model, tower), blocks) for part in block]
    if tower == "visual":
        return ["visual"]
    if tower == "text":
        return ["text"] if hasattr(model, "text") else [p for p in _TEXT_IN_THE_MODEL if getattr(model, p) is not None]
    every = [*model._parameters, *model._modules]
    return [part for part in every if part not in _NO_USE and getattr(model, part) is not None]


def with_own(model: nn.Module, paths: Sequence[str]) -> nn.Module:
    """`model` with copies of the parts at `paths`; all else is shared."""
    memo: dict[int, object] = {}
    own, shells = _shell(model), {""}
    for path in paths:
        holder, at = own, ""
        *above, last = path.split(".")
        for name in above:
            at = f"{at}.{name}"
            if at not in shells:
                shells.add(at)
                setattr(holder, name, _shell(getattr(holder, name)))
            holder = getattr(holder, name)
        setattr(holder, last, deepcopy(getattr(holder, last), memo))
    return own


def _shell(module: nn.Module) -> nn.Module:
    """A module of its own with the very parts of another."""
    own = copy(module)
    for held in ("_parameters", "_buffers", "_modules"):
        setattr(own, held, dict(getattr(module, held)))
    return own


def _at(model: nn.Module, path: str) -> nn.Module | Tensor:
    for name in path.split("."):
        model = getattr(model, name)
    return model
