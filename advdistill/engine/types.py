"""The small nouns of the engine: a threat, the classes of a run, its clock."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from advdistill.errors import UsageError
from advdistill.hooks.specs import NORMS


@dataclass(frozen=True)
class Threat:
    """What an attacker may change: every image with `norm(x' - x) <= eps` and pixels in [0, 1].

    Args:
        norm: "linf", "l2", "l1" or "l0".
        eps: radius on the [0, 1] pixel scale, at the resolution of the images that are attacked.
    """

    norm: str
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UsageError(f"unknown norm {self.norm!r}", f"use one of {', '.join(NORMS)}")
        if not self.eps >= 0 or (self.norm == "linf" and self.eps > 1):
            raise UsageError(f"eps {self.eps} is not a radius on the [0, 1] pixel scale", "write it like 8/255")

    def size(self, delta: Tensor) -> Tensor:
        """(B,) norm of each perturbation of (B, 3, H, W)."""
        flat = delta.flatten(1).abs()
        if self.norm == "linf":
            return flat.amax(1)
        if self.norm == "l2":
            return flat.square().sum(1).sqrt()
        return flat.sum(1) if self.norm == "l1" else (flat > 0).sum(1).to(flat.dtype)

    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        """The nearest images (for linf; a nearby one else) inside the ball around `clean` and inside [0, 1].

        Args:
            images, clean: (B, 3, H, W).
        """
        if self.norm == "linf":
            return torch.clamp(images, clean - self.eps, clean + self.eps).clamp_(0, 1)
        # [0, 1] first: clean lies in it, so shrinking towards clean afterwards stays in it.
        delta = images.clamp(0, 1) - clean
        flat = delta.flatten(1)
        if self.norm == "l2":
            size = flat.norm(dim=1, keepdim=True)
            flat = flat * (self.eps / size.clamp_min(1e-12)).clamp_max(1)
        elif self.norm == "l1":
            flat = _onto_l1_ball(flat, self.eps)
        else:
            keep = min(int(self.eps), flat.shape[1])
            kept = torch.zeros_like(flat)
            if keep:
                index = flat.abs().topk(keep, dim=1).indices
                kept.scatter_(1, index, flat.gather(1, index))
            flat = kept
        return clean + flat.view_as(delta)

    def holds(self, images: Tensor, clean: Tensor, tolerance: float = 1e-5) -> Tensor:
        """(B,) bool: which images lie in the ball and in [0, 1], up to a relative and absolute rounding `tolerance`."""
        inside = (images.flatten(1) >= -tolerance).all(1) & (images.flatten(1) <= 1 + tolerance).all(1)
        return inside & (self.size(images - clean) <= self.eps * (1 + tolerance) + tolerance)


def _onto_l1_ball(flat: Tensor, radius: float) -> Tensor:
    """Euclidean projection onto the l1 ball by sorting (Duchi et al. 2008, figure 1)."""
    if radius == 0:
        return torch.zeros_like(flat)
    magnitude = flat.abs()
    ordered = magnitude.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - radius
    count = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    last = (ordered * count > excess).sum(1, keepdim=True)
    shift = (excess.gather(1, last - 1) / last).clamp_min(0)
    return flat.sign() * (magnitude - shift).clamp_min(0)


@dataclass(frozen=True)
class ClassSet:
    """The classes of a run in label order, and the templates that turn a name into a sentence.

    Args:
        names: one per label, unique.
        templates: each with exactly one `{}`; several are averaged as unit class features.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "templates", tuple(self.templates))
        if len(self.names) < 2:
            raise UsageError(f"a classifier needs at least two classes, not {len(self.names)}")
        if len(set(self.names)) < len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise UsageError(f"class names stand twice: {', '.join(twice[:5])}")
        for template in self.templates:
            if template.count("{}") != 1:
                raise UsageError(f"template {template!r} must hold exactly one {{}}")
        if not self.templates:
            raise UsageError("at least one template is needed", 'for example "a photo of a {}."')

    def __len__(self) -> int:
        return len(self.names)

    @property
    def digest(self) -> str:
        """Hash of names, order and templates."""
        text = json.dumps([self.names, self.templates], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Clock:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        steps: optimizer steps in all.
        epoch: passes over the training data begun, from 0.
    """

    step: int
    steps: int
    epoch: int

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end."""
        return self.step / max(self.steps, 1)
