"""From sentences to token ids, unpadded and never cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import open_clip

from advdistill import DataError


class Tokenizer(Protocol):
    """Sentences to token ids.

    Attributes:
        start: how many start tokens open every sentence, 0 or 1.
        end: how many end tokens close it, 0 or 1, padding apart.
        pad: the id that fills up short sentences.
    """

    start: int
    end: int
    pad: int

    def __call__(self, sentences: Sequence[str]) -> list[list[int]]:
        """Token ids of each sentence, start and end tokens included where it sets any, without padding."""
        ...


class ByteTokenizer:
    """UTF-8 bytes: 0 pads, byte b is b + 1, 257 starts and 258 ends. A vocabulary of 259 that binds any name."""

    start = 1
    end = 1
    pad = 0

    def __call__(self, sentences: Sequence[str]) -> list[list[int]]:
        return [[257, *(byte + 1 for byte in sentence.encode()), 258] for sentence in sentences]

    def decode(self, ids: Sequence[int]) -> str:
        """The sentence again; padding, start and end tokens drop out."""
        return bytes(i - 1 for i in ids if 1 <= i <= 256).decode()


class BytePairTokenizer:
    """CLIP's own byte-pair encoding, which open_clip ships."""

    start = 1
    end = 1
    pad = 0

    def __init__(self, **settings: Any) -> None:
        self._tokenizer = open_clip.SimpleTokenizer(**settings)

    def __call__(self, sentences: Sequence[str]) -> list[list[int]]:
        first, last = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        return [[first, *self._tokenizer.encode(sentence), last] for sentence in sentences]


class HubTokenizer:
    """A tokenizer of the Hugging Face hub, through open_clip's wrapper.

    Raises:
        DataError: transformers is not installed, or the tokenizer is neither cached nor within reach.
    """

    _LONG = 1024  # no class sentence comes near it, so nothing is cut unseen

    def __init__(self, source: str, **settings: Any) -> None:
        try:
            self._tokenizer = open_clip.tokenizer.HFTokenizer(source, context_length=self._LONG, **settings)
        except (ImportError, OSError, ValueError) as error:
            raise DataError(
                f"the tokenizer {source!r} could not be loaded: {error}",
                "install transformers and load it once with a network, or take a model with CLIP's own tokenizer",
            ) from error
        self.pad = self._tokenizer.tokenizer.pad_token_id or 0
        one, other = self(["a", "1"])
        self.start = int(one[0] == other[0])
        self.end = int(one[-1] == other[-1])  # SigLIP's first tokenizer pads with its end token: none is left

    def __call__(self, sentences: Sequence[str]) -> list[list[int]]:
        rows = self._tokenizer(list(sentences)).tolist()
        return [row[: max((i + 1 for i, token in enumerate(row) if token != self.pad), default=0)] for row in rows]


def tokenizer_for(model: str, text_cfg: dict[str, Any]) -> Tokenizer:
    """The tokenizer that a text tower was trained with.

    Args:
        model: the model as named in a config; its folder serves `local-dir:` models.
        text_cfg: open_clip's settings of the text tower; `hf_tokenizer_name: bytes` asks for the byte tokenizer.
    """
    name, settings = text_cfg.get("hf_tokenizer_name"), dict(text_cfg.get("tokenizer_kwargs") or {})
    if name == "bytes":
        return ByteTokenizer()
    if not name:
        return BytePairTokenizer(**settings)
    scheme, _, folder = model.partition(":")
    source = str(Path(folder).expanduser()) if scheme == "local-dir" else name
    return HubTokenizer(source, tokenizer_mode=text_cfg.get("tokenizer_mode"), **settings)
