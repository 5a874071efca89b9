"""Guarantees pinned here:

- the byte tokenizer turns any name into ids below 259 and back, and its end token is the highest id;
- byte-pair ids, padded, are those of open_clip's tokenizer; nothing is ever cut;
- hub tokenizers lose their padding, and tell whether they open with a start token and close with an end token;
- a hub tokenizer that cannot be had is a DataError with a way out.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from advdistill_clip.tokens import BytePairTokenizer, ByteTokenizer, HubTokenizer, tokenizer_for

from advdistill import DataError

NAMES = ["zero", "Käse", "", "東京タワー", "a b  c"]


def test_bytes_come_back():
    tokenizer = ByteTokenizer()
    rows = tokenizer(NAMES)
    assert [tokenizer.decode([*row, 0, 0]) for row in rows] == NAMES
    assert all(row[0] == 257 and row[-1] == 258 == max(row) and min(row) > 0 for row in rows)
    assert tokenizer(["a"]) == [[257, 98, 258]]


def test_byte_pairs_are_open_clips():
    sentences = ["a photo of a cat.", "The Great Pyrenees", "x" * 30]
    expected = open_clip.get_tokenizer("ViT-B-32")(sentences)
    rows = BytePairTokenizer()(sentences)
    assert torch.equal(torch.tensor([[*row, *[0] * (77 - len(row))] for row in rows]), expected)
    assert len(BytePairTokenizer()(["word " * 100])[0]) == 102


def test_the_config_chooses():
    assert isinstance(tokenizer_for("x.json", {"hf_tokenizer_name": "bytes"}), ByteTokenizer)
    assert isinstance(tokenizer_for("ViT-B-32", {}), BytePairTokenizer)
    assert tokenizer_for("x", {"tokenizer_kwargs": {"clean": "whitespace"}})(["A"]) != tokenizer_for("x", {})(["A"])


class FakeHub:
    """A tokenizer that pads with 1, opens with `first` and closes with `last`."""

    first, last = (9,), 2

    def __init__(self, source: str, context_length: int, **settings: object) -> None:
        self.source, self.length = source, context_length
        self.tokenizer = SimpleNamespace(pad_token_id=1)

    def __call__(self, sentences: list[str]) -> torch.Tensor:
        rows = [[*self.first, *(ord(c) for c in sentence), self.last] for sentence in sentences]
        return torch.tensor([row + [1] * (self.length - len(row)) for row in rows])


@pytest.mark.parametrize("last", [2, 1])
@pytest.mark.parametrize("first", [(9,), ()])
def test_hub_tokenizers_lose_their_padding(monkeypatch, first, last):
    monkeypatch.setattr(open_clip.tokenizer, "HFTokenizer", type("Fake", (FakeHub,), {"first": first, "last": last}))
    tokenizer = tokenizer_for("any", {"hf_tokenizer_name": "org/name"})
    assert isinstance(tokenizer, HubTokenizer)
    assert tokenizer.start == len(first) and tokenizer.pad == 1
    end = [2] if last == 2 else []  # an end token that is the padding too, as SigLIP's, goes with it
    assert tokenizer.end == len(end)
    assert tokenizer(["ab", "c"]) == [[*first, 97, 98, *end], [*first, 99, *end]]
    assert tokenizer(["", "c"]) == [[*first, *end], [*first, 99, *end]]


def test_local_models_bring_their_tokenizer(monkeypatch):
    seen = []

    class Spy(FakeHub):
        def __init__(self, source: str, **settings: object) -> None:
            seen.append(source)
            super().__init__(source, **settings)

    monkeypatch.setattr(open_clip.tokenizer, "HFTokenizer", Spy)
    tokenizer_for("local-dir:/some/folder", {"hf_tokenizer_name": "org/name"})
    tokenizer_for("local-dir:~/folder", {"hf_tokenizer_name": "org/name"})
    assert seen == ["/some/folder", str(Path("~/folder").expanduser())]


@pytest.mark.parametrize("error", [ImportError("no transformers"), OSError("no network")])
def test_a_missing_hub_tokenizer_is_told(monkeypatch, error):
    def fail(*args: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(open_clip.tokenizer, "HFTokenizer", fail)
    with pytest.raises(DataError, match="org/name") as caught:
        tokenizer_for("any", {"hf_tokenizer_name": "org/name"})
    assert "transformers" in caught.value.hint
