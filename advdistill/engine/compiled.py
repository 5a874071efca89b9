"""A model's towers, compiled: a few fixed sizes, and the model as it is where compiling fails."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from advdistill.engine.model import Encoded


class Compiled:
    """`model.features`, compiled.

    Args:
        model: on its device.
    """

    def __init__(self, model: Encoded) -> None:
        self._model = model
        self._compiled = torch.compile(model.features, dynamic=False)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D)."""
        try:
            return self._compiled(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            warnings.warn(f"towers run uncompiled: {error}", stacklevel=2)
            self._compiled = self._model.features
            return self._model.features(images)
