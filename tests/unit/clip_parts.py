"""Tiny open_clip models for the tests of the CLIP plugin: configs and weights on disk, as users have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

VISION = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {
    "context_length": 40,
    "vocab_size": 259,
    "width": 24,
    "heads": 2,
    "layers": 3,
    "hf_tokenizer_name": "bytes",
}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "patch_size": None}
COCA = {"context_length": 40, "vocab_size": 259, "width": 24, "heads": 2, "layers": 1, "attn_pooler_heads": 2}


def settings(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    """An open_clip model config, tiny, with a byte tokenizer; None as a value drops a key."""
    vision, text = VISION | (vision or {}), TEXT | (text or {})
    vision = {key: value for key, value in vision.items() if value is not None}
    text = {key: value for key, value in text.items() if value is not None}
    return {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, **top}


def reference(config: dict[str, Any], seed: int = 0) -> nn.Module:
    """The model that open_clip builds, with noise on every tensor so that no weight is a neutral 0 or 1."""
    config = dict(config)
    custom = config.pop("custom_text", False)
    kind = open_clip.CLIP
    if custom:
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(**config).eval()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point() and name != "logit_scale":
                    tensor.add_(0.05 * torch.rand_like(tensor))
    return model


class Parts:
    """A tiny model on disk.

    Attributes:
        model: open_clip's own, to compare with.
        source: `{"model": ..., "weights": ...}` as a recipe would write it.
    """

    def __init__(self, folder: Path, config: dict[str, Any], name: str = "tiny") -> None:
        self.config = config
        self.model = reference(config)
        self.path = folder / f"{name}.json"
        self.path.write_text(json.dumps(config))
        self.weights = folder / f"{name}.safetensors"
        save_file(self.model.state_dict(), self.weights)
        self.source = {"model": str(self.path), "weights": str(self.weights)}

    def pixels(self, images: Tensor) -> Tensor:
        """What open_clip's preprocessing makes of images in [0, 1]."""
        mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
        std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
        return (images - mean) / std


def images(count: int = 2, side: int = 32, seed: int = 0) -> Tensor:
    """(count, 3, side, side) random images in [0, 1]."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def shake(tensors: dict[str, Tensor], size: float = 0.1) -> None:
    """Move learned tensors away from where they start, the same way each time."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in tensors.values():
            if tensor.is_floating_point():
                tensor.add_(size * torch.randn(tensor.shape, generator=generator))
