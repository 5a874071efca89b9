"""Base models: which architecture, which weights, checked before anything is built on them.

Nothing here falls back to random weights, and every way of failing says what to do next.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import pickle
import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import open_clip
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf
from open_clip.transform import PreprocessCfg
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from advdistill import DataError, resource
from advdistill_clip import configs
from advdistill_clip.text import Sentences, encode_padded
from advdistill_clip.tokens import Tokenizer, tokenizer_for
from advdistill_clip.visual import arranged, encode_pixels

_OFFLINE = (
    "is this machine offline? Fetch it on another one, and give `model: local-dir:DIR`, or an architecture with the "
    "path of the file as `weights`"
)
_CONFIG = "a model config is a JSON file as open_clip ships them, with embed_dim, vision_cfg and text_cfg"
_DOWNLOADING = (OSError, RuntimeError, ValueError)
_IN_A_FOLDER = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class Architecture:
    """What to build.

    Attributes:
        name: as written in a config.
        config: open_clip's settings of the model.
        preprocess: mean, std and the like, where the source or all published weights of the name tell.
        bundled: finds the weights that a hub repository or folder brings; None: it brings none.
        builtin: open_clip knows the name, so tags go with it.
    """

    name: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    bundled: Callable[[], Path] | None = None
    builtin: bool = False

    @property
    def activation(self) -> str:
        """quickgelu or gelu."""
        return "quickgelu" if self.config.get("quick_gelu") else "gelu"


@dataclass(eq=False)
class Base:
    """A frozen open_clip model in eval mode and what is known of it.

    Attributes:
        model: open_clip's CLIP, CustomTextCLIP or CoCa; no parameter requires gradients.
        architecture: what it was built from.
        weights: as written in the config.
        preprocess: size, mean, std, interpolation and resize mode.
        fixed: names of parameters that are constants by design and never learn.
    """

    model: nn.Module
    architecture: Architecture
    weights: str
    preprocess: dict[str, Any]
    fixed: frozenset[str] = field(default=frozenset())

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Made on first use where no weights are read, since some need a network."""
        return tokenizer_for(self.architecture.name, self.architecture.config["text_cfg"])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over names, shapes, types and bytes of the state dict."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def context(self) -> int:
        """How many tokens a sentence can have."""
        return getattr(getattr(self.model, "text", self.model), "context_length", self.model.context_length)

    def describe(self) -> dict[str, Any]:
        """JSON-able facts for a checkpoint."""
        return {
            "base": {
                "model": self.architecture.name,
                "weights": self.weights,
                "fingerprint": self.fingerprint,
                "config": self.architecture.config,
            },
            "preprocessing": self.preprocess,
            "activation": self.architecture.activation,
        }


_BASES: WeakValueDictionary[tuple[Any, ...], Base] = WeakValueDictionary()


def load_base(config: configs.Base, *, weights: bool = True) -> Base:
    """The base that a config names; equal ones are loaded once and shared, as they never change.

    Args:
        weights: False builds on the meta device and reads no weights.

    Raises:
        DataError: architecture or weights are unknown, missing, unreadable or do not fit together.
    """
    sources = (config.model, config.weights, config.text_weights)
    key = (weights, *map(_stamp, sources), config.weights_seed)
    base = _BASES.get(key)
    if base is None:
        base = _BASES[key] = _load(config) if weights else _outline(config)
    return base


def _outline(config: configs.Base) -> Base:
    architecture = find_architecture(config.model)
    with torch.device("meta"):
        model = _build(architecture)
    return _freeze(model, architecture, config.weights)


def _stamp(name: str) -> tuple[Any, ...]:
    """What tells one source from another, and a file from the same file after it was written anew."""
    path = resource(name)
    if not name or not path.is_file():
        return (name,)
    stat = path.stat()
    return (str(path.resolve()), stat.st_mtime_ns, stat.st_size)


def _load(config: configs.Base) -> Base:
    architecture = find_architecture(config.model)
    if architecture.bundled and (config.weights or config.text_weights):
        raise DataError(f"{config.model} brings its own weights", "leave `weights` and `text_weights` empty")
    fill = _filler(architecture, config.weights, config.text_weights)
    # Building draws random numbers that loaded weights then replace; the run's own stream must not notice.
    tokenizer = tokenizer_for(architecture.name, architecture.config["text_cfg"])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.weights_seed)
        model = _build(architecture)
    told = fill(model)
    base = _freeze(model, architecture, config.weights, told)
    base.tokenizer = tokenizer
    _self_test(base)
    return base


def _freeze(model: nn.Module, architecture: Architecture, weights: str, told: Mapping[str, Any] | None = None) -> Base:
    known = asdict(PreprocessCfg())
    for source in (architecture.preprocess, told or {}, {"size": model.visual.image_size}):
        known.update({key: value for key, value in source.items() if key in known and value is not None})
    known = json.loads(json.dumps(known))  # tuples become lists, as they will in a checkpoint
    for name in ("mean", "std"):
        values = known[name]
        if not isinstance(values, list) or len(values) != 3 or not all(isinstance(v, (int, float)) for v in values):
            raise DataError(f"the {name} of {architecture.name}'s preprocessing is {values}", "give three numbers")
    fixed = frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
    arranged(model.visual)
    return Base(model.requires_grad_(False).eval(), architecture, weights, known, fixed)


# Architectures


def find_architecture(name: str) -> Architecture:
    """Look up an open_clip name, `hf-hub:org/repo`, `local-dir:DIR` or a JSON config. Raises DataError."""
    scheme, _, rest = name.partition(":")
    if scheme == "hf-hub":
        try:
            path = Path(download_pretrained_from_hf(rest, filename="open_clip_config.json"))
        except _DOWNLOADING as error:
            cause = error.__cause__ or error.__context__
            if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
                raise DataError(
                    f"{name} holds no open_clip_config.json: it is not in open_clip's format",
                    "give an architecture's name as `model`, and the file, downloaded, as `weights`",
                ) from error
            raise DataError(f"{name} could not be fetched: {error}", _OFFLINE) from error
        return Architecture(name, *_read_config(path), bundled=lambda: _fetch(name, rest))
    if scheme == "local-dir":
        folder = Path(rest).expanduser()
        return Architecture(name, *_read_config(folder / "open_clip_config.json"), bundled=lambda: _in_folder(folder))
    if (path := resource(name)).suffix == ".json":
        return Architecture(name, *_read_config(path))
    config = open_clip.get_model_config(name)
    if config is None:
        raise DataError(f"open_clip knows no architecture {name!r}", _suggest(name, open_clip.list_models()))
    return Architecture(name, config, _preprocessing_of(name), builtin=True)


def _preprocessing_of(name: str) -> dict[str, Any]:
    """What all of an architecture's published weights agree on: for weights from a file, which cannot tell. SigLIP,
    PE, CLIPA and MobileCLIP want other means than open_clip's default, and run with that one, on wrong colours."""
    tags = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    keys = ("mean", "std", "interpolation", "resize_mode")
    return {key: tags[0].get(key) for key in keys if tags and all(tag.get(key) == tags[0].get(key) for tag in tags)}


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no such model config: {path}", _CONFIG) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a model config: {error}", _CONFIG) from error
    data = data if isinstance(data, dict) else {}
    config, preprocess = data.get("model_cfg", data), data.get("preprocess_cfg") or {}
    parts = config if isinstance(config, dict) else {}
    kinds = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    if missing := [key for key, kind in kinds.items() if not isinstance(parts.get(key), kind)]:
        raise DataError(f"{path} is no open_clip model config: it lacks {', '.join(missing)}", _CONFIG)
    if not isinstance(preprocess, dict):
        raise DataError(f"{path} is no open_clip model config: preprocess_cfg holds no names and values", _CONFIG)
    return {k: v for k, v in parts.items() if k != "preprocess_cfg"}, preprocess


def _build(architecture: Architecture) -> nn.Module:
    settings = deepcopy(architecture.config)
    vision, text = settings["vision_cfg"], settings["text_cfg"]
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    custom = settings.pop("custom_text", False) or "hf_model_name" in text
    kind = open_clip.CLIP
    if custom:
        kind = open_clip.CoCa if "multimodal_cfg" in settings else open_clip.CustomTextCLIP
    try:
        return kind(**settings)
    except Exception as error:  # other libraries on somebody's settings: there is no telling what they raise
        raise DataError(
            f"open_clip cannot build {architecture.name}: {type(error).__name__}: {error}",
            "install transformers"
            if "transformers" in str(error)
            else "is its config for another version of open_clip?",
        ) from error


def _suggest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    folded = {other.lower(): other for other in known}
    near = [folded[match] for match in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.6)]
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known) or 'none'}"


# Weights

Filler = Callable[[nn.Module], Mapping[str, Any]]
"""Puts weights into a model and returns what their source knows of preprocessing."""


def _filler(architecture: Architecture, weights: str, text_weights: str) -> Filler:
    """Find the weights before the model is built, so that what is missing is told at once."""
    if architecture.bundled:
        bundled = architecture.bundled()
        return lambda model: _fill_from_open_clip(model, bundled, architecture) or {}
    if text_weights:
        rest = _filler(architecture, text_weights, "")
        path = _existing(architecture, weights)
        return lambda model: (rest(model), _fill_visual(model, path, architecture))[0]
    if weights == "random":
        return lambda model: {}
    if not weights:
        raise DataError(f"{architecture.name} was given no weights", _choices(architecture))
    tag = open_clip.get_pretrained_cfg(architecture.name, weights) if architecture.builtin else None
    if tag:
        _same_activation(architecture, "quickgelu" if tag.get("quick_gelu") else "gelu", weights)
        try:
            downloaded = Path(download_pretrained(tag))
        except _DOWNLOADING as error:
            raise DataError(f"{architecture.name}@{weights} could not be fetched: {error}", _OFFLINE) from error
        return lambda model: _fill_from_open_clip(model, downloaded, architecture) or tag
    path = _existing(architecture, weights)
    return lambda model: _fill(model, path, architecture) or {}


def _choices(architecture: Architecture) -> str:
    tags = open_clip.list_pretrained_tags_by_model(architecture.name) if architecture.builtin else []
    return f"set `weights` to {', '.join(['the path of a file', *tags])} or random"


def _existing(architecture: Architecture, weights: str) -> Path:
    path = resource(weights)
    if path.is_file():
        return path
    if others := open_clip.pretrained.list_pretrained_models_by_tag(weights):
        raise DataError(f"{architecture.name} has no weights {weights!r}", f"these go with {', '.join(others)}")
    tags = open_clip.list_pretrained_tags_by_model(architecture.name) if architecture.builtin else []
    if near := difflib.get_close_matches(weights, tags, n=3):
        raise DataError(f"{architecture.name} has no weights {weights!r}", f"did you mean {' or '.join(near)}?")
    raise DataError(f"no weights file {weights}", _choices(architecture))


def _fetch(name: str, repository: str) -> Path:
    try:
        return Path(download_pretrained_from_hf(repository))
    except _DOWNLOADING as error:
        raise DataError(f"the weights of {name} could not be fetched: {error}", _OFFLINE) from error


def _in_folder(folder: Path) -> Path:
    for name in _IN_A_FOLDER:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder} holds no weights", f"expected is one of {', '.join(_IN_A_FOLDER)}")


def _same_activation(architecture: Architecture, activation: str, weights: str) -> None:
    """QuickGELU weights in a GELU model run, and give silently wrong numbers."""
    if activation == architecture.activation:
        return
    plain = architecture.name.removesuffix("-quickgelu")
    other = f"{plain}-quickgelu" if activation == "quickgelu" else plain
    raise DataError(
        f"{weights} was trained with {activation}, but {architecture.name} computes {architecture.activation}",
        f"write model: {other}" if architecture.builtin else "set quick_gelu in the model config",
    )


def _fill_from_open_clip(model: nn.Module, path: Path, architecture: Architecture) -> None:
    """Weights from a hub come in several older layouts, which open_clip's own loader knows."""
    try:
        open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except (RuntimeError, SafetensorError, pickle.UnpicklingError, OSError, EOFError, KeyError) as error:
        raise DataError(
            f"{path} does not fit {architecture.name}: {error}", "fetch it again, or check `model`"
        ) from error


def _fill(model: nn.Module, path: Path, architecture: Architecture) -> None:
    tensors = _read(path, architecture)
    visual = model.visual.state_dict().keys()
    if tensors.keys() in (visual, {f"visual.{name}" for name in visual}):
        raise DataError(
            f"{path} holds a visual tower alone", "say in `text_weights` where the rest comes from (a tag or a file)"
        )
    _copy(model, tensors, path, architecture)


def _fill_visual(model: nn.Module, path: Path, architecture: Architecture) -> None:
    tensors = _read(path, architecture)
    visual = {name.removeprefix("visual."): t for name, t in tensors.items() if name.startswith("visual.")}
    if 0 < len(visual) < len(tensors):
        raise DataError(f"{path} holds a whole model", "drop `text_weights`")
    _copy(model.visual, visual or tensors, path, architecture)


def _copy(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, architecture: Architecture) -> None:
    """Strict both ways; half precision becomes the module's own."""
    mine = module.state_dict()
    both = mine.keys() & tensors.keys()
    kinds = {
        "missing": mine.keys() - both,
        "unexpected": tensors.keys() - both,
        "of another shape": {
            f"{name} {tuple(tensors[name].shape)} for {tuple(mine[name].shape)}"
            for name in both
            if tensors[name].shape != mine[name].shape
        },
    }
    if told := [f"{len(names)} {what} ({', '.join(sorted(names)[:3])})" for what, names in kinds.items() if names]:
        raise DataError(
            f"the tensors of {path} do not fit {architecture.name}: {'; '.join(told)}",
            "check `model`; where the file is a student's checkpoint, name it by {use: checkpoint, path: ...}",
        )
    module.load_state_dict(tensors)


def _read(path: Path, architecture: Architecture) -> dict[str, Tensor]:
    """A state dict from a safetensors file or a pickle of tensors. Raises DataError."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path, architecture)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} holds more than tensors, or is damaged; as unpickling can run code, it was not read",
            "where you trust it, convert it: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0] or "it ends too soon"
        raise DataError(f"{path} is damaged: {reason}", "fetch or write it again") from error
    data = data.get("state_dict", data) if isinstance(data, dict) else data
    if not isinstance(data, dict) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise DataError(f"{path} holds no state dict (names and tensors)", "save model.state_dict() alone")
    return {name.removeprefix("module."): tensor for name, tensor in data.items()}


def _read_safetensors(path: Path, architecture: Architecture) -> dict[str, Tensor]:
    """One of our own checkpoints serves too, if it holds a whole model: it says which activation goes with it."""
    try:
        with safe_open(path, "pt") as file:
            ours = json.loads((file.metadata() or {}).get("advdistill", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged or no safetensors file: {error}", "fetch or write it again") from error
    if activation := ours.get("activation"):
        _same_activation(architecture, activation, str(path))
    return tensors


# Self-test


def _self_test(base: Base) -> None:
    """Our functions over open_clip's parts give what open_clip gives, with these very weights, to 1e-5 of the norm."""
    try:
        apart = _differences(base, base.model)
    except (IndexError, RuntimeError) as error:
        raise DataError(
            f"{base.architecture.name} cannot look at an image of its size, or read a sentence: {error}",
            "do image_size, vocab_size and context_length in its config fit the tower and the tokenizer?",
        ) from error
    if max(apart.values()) <= 1e-5:
        return
    # Rounding may add up where activations are large; in double precision only a real difference remains.
    exactly = _differences(base, deepcopy(base.model).double())
    for what, difference in exactly.items():
        if not difference <= 1e-5:
            raise DataError(
                f"{base.architecture.name}@{base.weights}: our {what} features differ from open_clip's by "
                f"{difference:.1e} of their norm",
                "the weights may hold numbers that are not finite; else this version of open_clip is not supported",
            )


@torch.no_grad()
def _differences(base: Base, model: nn.Module) -> dict[str, float]:
    tokenizer, context = base.tokenizer, base.context
    pixels = torch.randn(2, 3, *image_size(base), generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(next(model.parameters()).dtype)
    ids = [row[:context] for row in tokenizer(["a photo of a cat.", "a dog."])]
    padded = torch.tensor([[*row, *[tokenizer.pad] * (context - len(row))] for row in ids])
    sentences = Sentences(model, ids, tokenizer.start, tokenizer.pad, context, padded.device)

    def apart(ours: Tensor, theirs: Tensor) -> float:
        # As a number that no comparison holds for, a NaN would be lost in a maximum.
        return torch.nan_to_num(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max(), nan=torch.inf).item()

    seen = model.visual(pixels)
    return {
        "image": apart(encode_pixels(model.visual, pixels), seen[0] if isinstance(seen, tuple) else seen),
        "text": apart(sentences.encode(model, None, None), encode_padded(model, padded)),
    }


def _pair(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def image_size(base: Base) -> tuple[int, int]:
    """Height and width that the visual tower works at."""
    return _pair(base.preprocess["size"])
