"""Zoo A: broken defences around a model that nobody has defended, each with the doubt that must notice it.

Every one is declared as a careless author would: batch-independent, deterministic and differentiable, unless it draws
at random openly. `ZOO` is the table that `docs/evaluation.md` shows; `python tests/zoo/defences.py` writes it there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from advdistill_demo.configs import Digits as DigitsConfig
from advdistill_demo.digits import Digits
from torch import Tensor, nn

from advdistill import ClassSet, Dataset, Factored, VisionLanguageModel
from advdistill.engine.evaluate import split_reader
from advdistill.engine.participant import Participant
from advdistill.engine.subject import Subject, Target, undefended
from advdistill.hooks.registry import default_registry

BASE = "advdistill_demo:small.json@advdistill_demo:small.safetensors"
RADIUS = 8 / 255
STANDARD = "broken by `standard`"
"""In the place of an indicator: nothing doubts the number, for the number itself is as low as without the defence."""


class Behind(VisionLanguageModel):
    """A finished model behind something that shall make it robust."""

    def __init__(self, inner: Factored) -> None:
        super().__init__()
        self.inner = inner
        self.image_size, self.templates = inner.image_size, inner.templates

    @classmethod
    def from_config(cls, config: Any, *, weights: bool = True) -> VisionLanguageModel:
        raise NotImplementedError

    def prepare(self, classes: ClassSet) -> Any:
        return self.inner.prepare(classes)

    def learned(self) -> dict[str, Tensor]:
        return {}

    def undefended(self) -> VisionLanguageModel:
        return self.inner

    def describe(self) -> dict[str, Any]:
        return self.inner.describe()


class Defence(Behind, Factored):
    """One that does something to images, features or logits. Subclasses write one of the last three methods."""

    def __init__(self, inner: Factored) -> None:
        super().__init__(inner)
        self.width = inner.width

    def classifier(self, classes: Any, rows: Tensor | None = None) -> Tensor:
        return self.inner.classifier(classes, rows)

    def features(self, images: Tensor) -> Tensor:
        return self.kept(self.inner.features(self.filtered(images)))

    def logits(self, features: Tensor, classifier: Tensor) -> Tensor:
        return self.answer(self.inner.logits(features, classifier))

    def filtered(self, images: Tensor) -> Tensor:
        """What becomes of (B, 3, H, W) images."""
        return images

    def kept(self, features: Tensor) -> Tensor:
        """What becomes of (B, D) features."""
        return features

    def answer(self, logits: Tensor) -> Tensor:
        """What becomes of (B, C) logits."""
        return logits


# --- outputs -----------------------------------------------------------------------------------------------------


class Saturated(Defence):
    """Logits times ten thousand."""

    def answer(self, logits: Tensor) -> Tensor:
        return 1e4 * logits


class Probabilities(Defence):
    """The softmax of sharpened logits."""

    def answer(self, logits: Tensor) -> Tensor:
        return (8 * logits).softmax(1)


class Rounded(Defence):
    """Two decimals."""

    def answer(self, logits: Tensor) -> Tensor:
        return logits.mul(100).round() / 100


class Abstention(Defence):
    """Equal logits where the first two classes lie close together."""

    def answer(self, logits: Tensor) -> Tensor:
        top = logits.topk(2, dim=1).values
        return torch.where(top[:, :1] - top[:, 1:] < 2, torch.zeros_like(logits), logits)


class NoNumber(Defence):
    """NaN where it is unsure."""

    def answer(self, logits: Tensor) -> Tensor:
        unsure = logits.softmax(1).amax(1, keepdim=True) < 0.9
        return torch.where(unsure, torch.full_like(logits, torch.nan), logits)


class Tiny(Defence):
    """A "gradient regulariser": the way back is scaled by 1e-46, which float32 does not hold."""

    def answer(self, logits: Tensor) -> Tensor:
        return _Scaled.apply(logits, 1e-46)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.factor, None


# --- inputs ------------------------------------------------------------------------------------------------------


class Quantised(Defence):
    """Eight grey levels."""

    def filtered(self, images: Tensor) -> Tensor:
        return images.mul(7).round() / 7


class RoundedPixels(Defence):
    """Pixels rounded to 8 bits, as a preprocessing step."""

    def filtered(self, images: Tensor) -> Tensor:
        return images.mul(255).round() / 255


class Blocks(Defence):
    """A crude JPEG: 8x8 cosine transform, coefficients rounded to steps of a tenth."""

    def filtered(self, images: Tensor) -> Tensor:
        place = torch.arange(8, dtype=images.dtype, device=images.device)
        basis = torch.cos(math.pi / 8 * (place + 0.5) * place.unsqueeze(1)) * 0.5
        basis[0] /= math.sqrt(2)
        n, c, h, w = images.shape
        tiles = images.view(n, c, h // 8, 8, w // 8, 8).transpose(3, 4)
        coarse = (basis @ tiles @ basis.T).mul(10).round() / 10
        return (basis.T @ coarse @ basis).transpose(3, 4).reshape(n, c, h, w)


class Median(Defence):
    """A 3x3 median, computed without gradient and added back as a constant."""

    def filtered(self, images: Tensor) -> Tensor:
        padded = F.pad(images.detach(), (1, 1, 1, 1), mode="replicate")
        windows = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
        return windows.median(4).values


class Detached(Defence):
    """Smooths the image, and hands on only the gradient of what was cut off."""

    def filtered(self, images: Tensor) -> Tensor:
        smooth = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return smooth.detach() + 0.05 * (images - smooth)


class HalfPixels(Defence):
    """Pixels in fp16 on the scale of 16-bit integers: the gradient underflows on its way back."""

    def filtered(self, images: Tensor) -> Tensor:
        return (images.half() * 60000).float() / 60000


class CoarsePatches(Defence):
    """bf16 before the patch embedding: small steps vanish."""

    def filtered(self, images: Tensor) -> Tensor:
        return (images + 1).to(torch.bfloat16).float() - 1


class Noisy(Defence):
    """Gaussian noise on pixels, drawn anew in every forward."""

    deterministic = False

    def filtered(self, images: Tensor) -> Tensor:
        return images + 0.1 * torch.randn_like(images)


class Resized(Defence):
    """Random resizing and padding (Xie et al. 2018), declared as if it were none."""

    def filtered(self, images: Tensor) -> Tensor:
        side = images.shape[-1]
        smaller = int(torch.randint(side - 6, side + 1, ()))
        left, top = (int(torch.randint(side - smaller + 1, ())) for _ in range(2))
        small = F.interpolate(images, size=(smaller, smaller), mode="bilinear", antialias=True)
        return F.pad(small, (left, side - smaller - left, top, side - smaller - top))


class Dropout(Defence):
    """Dropout on pixels that stays on: its author never passes the mode on."""

    def __init__(self, inner: Factored) -> None:
        super().__init__(inner)
        self.drop = nn.Dropout(0.1)

    def train(self, mode: bool = True) -> Dropout:
        super().train(mode)
        self.drop.train(True)
        return self

    def filtered(self, images: Tensor) -> Tensor:
        return self.drop(images)


# --- features ----------------------------------------------------------------------------------------------------


class Purified(Defence):
    """Features walk towards the batch's mean: detached steps, and one norm for the whole batch."""

    def kept(self, features: Tensor) -> Tensor:
        unit = F.normalize(features, dim=1)
        middle = F.normalize(unit.detach().mean(0), dim=0)
        for _ in range(5):
            towards = (middle - (unit @ middle).unsqueeze(1) * unit).detach()
            unit = F.normalize(unit + 0.3 * towards / towards.norm().clamp_min(1e-12), dim=1)
        return unit


class Winners(Defence):
    """k-winners-take-all: a quarter of the features survives (Xiao et al. 2020, arXiv 1905.10510)."""

    def kept(self, features: Tensor) -> Tensor:
        least = features.abs().topk(features.shape[1] // 4, dim=1).values[:, -1:]
        return torch.where(features.abs() >= least, features, torch.zeros_like(features))


class Signs(Defence):
    """Binary features."""

    def kept(self, features: Tensor) -> Tensor:
        return features.sign()


class RandomHead(Defence):
    """One of several disturbed heads, drawn in every forward."""

    def logits(self, features: Tensor, classifier: Tensor) -> Tensor:
        return self.inner.logits(features, F.normalize(classifier + 0.05 * torch.randn_like(classifier), dim=1))


class CounterAttack(Defence):
    """Attacks its own input before it looks, away from the features that it had, and detaches the way (after Xing et
    al. 2025, arXiv 2503.03613)."""

    def filtered(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            start = self.inner.features(images.detach()).detach()
            moved = images.detach() + 1e-3
            for _ in range(2):
                moved = moved.detach().requires_grad_()
                away = (self.inner.features(moved) - start).square().sum()
                (slope,) = torch.autograd.grad(away, moved)
                moved = moved + 3 / 255 * slope.sign()
        return images + (moved - images).detach()


class Ripples(Defence):
    """Pixels on a ripple much shorter than the radius: gradients point anywhere, the image hardly changes."""

    def filtered(self, images: Tensor) -> Tensor:
        wave = 2 * math.pi / (2 / 255)
        return images + 4 / wave * torch.sin(wave * images)


# --- look-ups and state ------------------------------------------------------------------------------------------


class Routed(Behind):
    """Hard routing: the image chooses one of three prompts by argmax, and hears that one alone."""

    TEMPLATES = ("a photo of the digit {}.", "a blurry {}.", "the number {}")

    def prepare(self, classes: ClassSet) -> Any:
        prepared = [self.inner.prepare(ClassSet(classes.names, (each,))) for each in self.TEMPLATES]
        with torch.no_grad():
            return torch.stack([self.inner.classifier(each) for each in prepared])

    def predict(self, images: Tensor, classes: Any) -> Tensor:
        features = self.inner.features(images)
        said = torch.stack([self.inner.logits(features, each) for each in classes], 1)
        return said[torch.arange(len(said)), said.amax(2).argmax(1)]


class Voted(Defence):
    """A vote: the answer alone, as one-hot logits."""

    def answer(self, logits: Tensor) -> Tensor:
        return 10 * F.one_hot(logits.argmax(1), logits.shape[1]).float()


class Neighbour(Defence):
    """Looks up the nearest training image, and classifies that."""

    def __init__(self, inner: Factored) -> None:
        super().__init__(inner)
        split = digits().split("train")
        self.known = torch.stack([split.load(i) for i in range(len(split))])

    def filtered(self, images: Tensor) -> Tensor:
        return self.known[torch.cdist(images.flatten(1), self.known.flatten(1)).argmin(1)]


class Remembered(Defence):
    """A cache with the wrong key: it answers mostly what it said to the first batch of that size."""

    def __init__(self, inner: Factored) -> None:
        super().__init__(inner)
        self.known: dict[torch.Size, Tensor] = {}

    def answer(self, logits: Tensor) -> Tensor:
        return self.known.setdefault(logits.shape, logits.detach()) + 1e-3 * logits


class Leaked(Defence):
    """Reads the label off the batch, in which classes are taken to come in order, as in many test sets."""

    def answer(self, logits: Tensor) -> Tensor:
        count = logits.shape[1]
        place = torch.arange(len(logits), device=logits.device) * count // len(logits)
        return logits + 6 * F.one_hot(place, count)


class Smoothed(Defence):
    """Answers for the whole batch are averaged with those of the neighbours in it."""

    def answer(self, logits: Tensor) -> Tensor:
        return logits + 0.5 * (logits.roll(1, 0) + logits.roll(-1, 0))


# --- training ----------------------------------------------------------------------------------------------------


class Overfitted(Defence):
    """Catastrophic overfitting (Wong et al. 2020, arXiv 2001.03994): withstands the single step that it was trained on.
    Built, not trained: on a ripple twice as long as that step, a single step along the gradient lands where the next
    one points back; many find more."""

    def filtered(self, images: Tensor) -> Tensor:
        wave = math.pi / RADIUS
        return images + 3 / wave * torch.sin(wave * images)


@dataclass(frozen=True)
class Kept:
    """A row of the table.

    Attributes:
        build: makes the defence. says: what it is, in a line. doubt: the indicator that must notice, or `STANDARD`.
    """

    build: Callable[[Factored], Behind]
    says: str
    doubt: str


ZOO = {
    "saturated logits": Kept(Saturated, "logits times 10,000", "saturated"),
    "softmax outputs": Kept(Probabilities, "probabilities in the place of logits", "probabilities for logits"),
    "rounded logits": Kept(Rounded, "two decimals", "zero gradients"),
    "abstention": Kept(Abstention, "equal logits where unsure", STANDARD),
    "abstention by NaN": Kept(NoNumber, "NaN where unsure", STANDARD),
    "tiny gradients": Kept(Tiny, "the way back scaled by 1e-46", "gradients are not the slope"),
    "quantised input": Kept(Quantised, "eight grey levels", "planted examples found"),
    "rounded pixels": Kept(RoundedPixels, "8 bits", "zero gradients"),
    "JPEG-like blocks": Kept(Blocks, "rounded cosine coefficients", "right at any radius"),
    "median filter": Kept(Median, "3x3, without gradient", "gradients are not the slope"),
    "detached gradient": Kept(Detached, "smoothing that is detached", "gradients are not the slope"),
    "fp16 underflow": Kept(HalfPixels, "pixels in fp16 on the scale of 16-bit integers", "zero gradients"),
    "bf16 patch embedding": Kept(CoarsePatches, "pixels in bf16", "gradients are not the slope"),
    "Gaussian noise": Kept(Noisy, "on pixels, openly random", "stochastic"),
    "random resizing": Kept(Resized, "and padding, declared deterministic", "stochastic"),
    "dropout": Kept(Dropout, "that stays in training mode", "training mode"),
    "purified features": Kept(Purified, "detached steps, one norm for the batch", "batch-dependent"),
    "k winners take all": Kept(Winners, "a quarter of the features", STANDARD),
    "binary features": Kept(Signs, "signs alone", "planted examples found"),
    "random head": Kept(RandomHead, "class features disturbed in every forward", "stochastic"),
    "counter-attack": Kept(CounterAttack, "attacks its input first, detached", "gradients are not the slope"),
    "ripples": Kept(Ripples, "a ripple on pixels, shorter than the radius", "transfer beats white-box"),
    "hard routing": Kept(Routed, "one of three prompts, by argmax", STANDARD),
    "vote": Kept(Voted, "one-hot answers", "objective does not rise"),
    "nearest training image": Kept(Neighbour, "looked up and classified", "right at any radius"),
    "cached answers": Kept(Remembered, "by the batch's size", "batch-dependent"),
    "label leak": Kept(Leaked, "read off the place in the batch", "batch-dependent"),
    "smoothed over the batch": Kept(Smoothed, "answers of neighbours added", "batch-dependent"),
    "catastrophic overfitting": Kept(Overfitted, "withstands its own single step", "transfer beats white-box"),
}


def digits() -> Dataset:
    """The demo's data."""
    return _digits()


@cache
def _digits() -> Dataset:
    return Digits(DigitsConfig())


class Caged(Target):
    """A target that is no file."""

    def __init__(self, name: str, model: VisionLanguageModel) -> None:
        self.name, self.model, self.opened = name, model.eval(), None
        self._registry, self._device = default_registry(), torch.device("cpu")

    fingerprint = "zoo"  # type: ignore[assignment]


def base() -> Factored:
    """The undefended model."""
    model = undefended(BASE, default_registry())
    assert isinstance(model, Factored)
    return model


def subject(model: VisionLanguageModel, name: str = "zoo") -> Subject:
    """A model on the demo's data, as a command would be pointed at it."""
    data = digits()
    seen = Participant(model, data.classes)
    return Subject(name, seen, data, None, split_reader(data), [], 0, (), Caged(name, model))


def table() -> str:
    """Zoo A as Markdown."""
    rows = [f"| {name} | {kept.says} | {kept.doubt} |" for name, kept in ZOO.items()]
    return "\n".join(["| defence | what it does | noticed by |", "|---|---|---|", *rows]) + "\n"


def written(text: str) -> str:
    """`text` of the page with the table as it should be."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + table() + END + rest.partition(END)[2]


PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
BEGIN = "<!-- Zoo A: written by `python tests/zoo/defences.py`. -->\n"
END = "<!-- end of zoo A -->\n"

if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
