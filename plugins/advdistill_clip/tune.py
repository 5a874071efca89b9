"""CLIP with a tower that learns as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from copy import copy, deepcopy

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advdistill_clip import configs
from advdistill_clip.loading import Base
from advdistill_clip.models import Clip


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


def _with_own_visual(model: nn.Module) -> nn.Module:
    """`model` with a copy of its visual tower; all else is shared."""
    own = copy(model)
    for part in ("_parameters", "_buffers", "_modules"):
        setattr(own, part, dict(getattr(model, part)))
    own.visual = deepcopy(model.visual)
    return own
