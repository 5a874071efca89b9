"""A model's look at images, compiled: a few fixed sizes, and the model as it is where compiling fails.

What is compiled is `features` alone. Every size and mode (pixels or parameters with gradients, none, training, eval)
has one graph of its own, compiled when it is first met and never again: weights change in place, and all else that a
graph relies on stays. What does not go into one graph runs uncompiled. CUDA graphs (`mode="reduce-overhead"`) are not
used: a replay overwrites what the one before it returned, while a step still holds the features of several looks.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from advdistill.engine.model import Encoded
from advdistill.errors import RunWarning, UserError

SHARES = (1, 2, 3, 4, 8)
"""The largest batch is divided by these: one of two, three or four views that are looked at together keeps its size,
and survivors of an attack wait for the next smaller one."""
AT_MOST = 24
"""Graphs of one model; what would need more runs uncompiled."""

_number = itertools.count()


class Compiled:
    """`model.features`, compiled, size by size.

    Smaller batches are filled up to one of a few sizes with copies of their last image, which get no gradient and are
    cut off afterwards. Where compiling fails, the model runs as it is, with one `RunWarning`.

    Attributes:
        backend: torch.compile's. failed: compiling did, and the model runs as it is.

    Args:
        model: on its device, with all its parameters.
        independent: tells whether, as it is now, what it says of an image does not depend on the others; only then are
            batches filled up.
        name: who it is, for the warning.
    """

    backend: ClassVar[str] = "inductor"

    def __init__(self, model: Encoded, independent: Callable[[], bool], name: str) -> None:
        self._model, self._independent, self._name = model, independent, name
        self._parameters = [tensor for tensor in model.learned().values() if isinstance(tensor, nn.Parameter)]
        self._graphs: dict[Hashable, Callable[[Tensor], Tensor]] = {}
        self._largest = Counter[str]()
        self.failed = False

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D), in training."""
        return self._look(images, "training")

    def deployed(self, images: Tensor) -> Tensor:
        """The same while the model is measured, whose batches have other sizes."""
        return self._look(images, "deployed")

    def _look(self, images: Tensor, use: str) -> Tensor:
        if self.failed or not len(images):
            return self._model.features(images)
        full = self._filled(images, use)
        learning = [parameter for parameter in self._parameters if parameter.requires_grad]
        modes = torch.is_grad_enabled(), images.requires_grad, bool(learning), self._model.training
        key = (use, *full.shape, *modes)
        try:
            if key in self._graphs:
                return self._graphs[key](full)[: len(images)]
            if len(self._graphs) == AT_MOST:
                return self._model.features(images)
            return self._first(key, full, learning)[: len(images)]
        except UserError:
            raise
        except Exception as error:  # compilers raise what they like
            for cause in _causes(error):
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from error
            found = self._model.features(images)  # what is wrong with the model itself is told here
            self.failed = True
            origin = getattr(error, "inner_exception", None) or error
            first = str(origin).strip().partition("\n")[0]
            warnings.warn(
                f"{self._name}: its tower runs uncompiled, as compiling failed: {type(origin).__name__}: {first}",
                RunWarning,
                stacklevel=2,
            )
            return found

    def _filled(self, images: Tensor, use: str) -> Tensor:
        count = len(images)
        largest = self._largest[use] = max(self._largest[use], count)
        size = min(size for share in SHARES if (size := -(-largest // share)) >= count)
        if size == count or not self._independent():
            return images
        return torch.cat([images, images[-1:].detach().expand(size - count, -1, -1, -1)])

    def _first(self, key: Hashable, images: Tensor, learning: list[nn.Parameter]) -> Tensor:
        """Compile, forward and backward: what fails must fail here, and not in somebody's backward."""
        graph = self._compile()
        # An attack may go backward through one look more than once; and TF32 is not there for the asking.
        with torch._functorch.config.patch(donated_buffer=False), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
            found = graph(images)
            if found.requires_grad:
                sources = [images] if images.requires_grad else learning
                torch.autograd.grad(found, sources, torch.zeros_like(found), retain_graph=True, allow_unused=True)
        self._graphs[key] = graph  # now that it has worked
        return found

    def _compile(self) -> Callable[[Tensor], Tensor]:
        look = self._model.features

        def features(images: Tensor) -> Tensor:
            return look(images)

        # torch keeps its graphs, and counts them, by code object: each of these has one of its own.
        features.__code__ = features.__code__.replace(co_name=f"features_{next(_number)}")
        if self.backend != "inductor":
            return torch.compile(features, fullgraph=True, dynamic=False, backend=self.backend)
        # Random numbers are those that the uncompiled model draws.
        return torch.compile(features, fullgraph=True, dynamic=False, options={"fallback_random": True})


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it came from, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = getattr(cause, "inner_exception", None) or cause.__cause__ or cause.__context__
