"""The head of a checkpoint, read without torch.

Guarantees:
- facts and tensors of a good file come back, and nothing but its head is read;
- a missing file, a folder, a pickle, something else, a cut-off or padded file, a broken header, foreign weights and a
  newer format are DataErrors (exit code 5) that say what to do; no prefix of a good file is taken for one.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from advdistill.errors import DataError
from advdistill.recipe.header import FORMAT, read_header

FACTS = {"format": FORMAT, "recipe": {"name": "r"}, "versions": {"advdistill": "9.9"}}


def checkpoint(facts: Any = FACTS, *, metadata: Any = None, body: bytes = bytes(24)) -> bytes:
    """A safetensors file with one (2, 3) float32 tensor, made by hand."""
    header = {
        "__metadata__": {"advdistill": json.dumps(facts)} if metadata is None else metadata,
        "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def test_a_good_file(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(checkpoint())
    facts, tensors = read_header(tmp_path / "c")
    assert facts == FACTS
    assert tensors == {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def test_a_file_that_the_library_wrote(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    import numpy as np

    numpy.save_file({"w": np.zeros((2, 3), "f4")}, tmp_path / "c", {"advdistill": json.dumps(FACTS)})
    assert read_header(tmp_path / "c")[0] == FACTS


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (checkpoint()[:-1], "is damaged: it has", "cut-off copy"),
        (checkpoint() + b"x", "is damaged: it has", "cut-off copy"),
        (checkpoint()[:30], "is damaged: it ends within its header", "cut-off copy"),
        (b"", "is not a safetensors file", "advdistill wrote"),
        (b"hello world, this is text", "is not a safetensors file", "advdistill wrote"),
        (pickle.dumps({"a": 1}), "is a pickle", "safetensors"),
        ((8).to_bytes(8, "little") + b"not json", "its header cannot be read", ""),
        ((2).to_bytes(8, "little") + b"[]", "its header cannot be read", ""),
        (checkpoint(metadata={}), "no advdistill checkpoint", "weights:"),
        (checkpoint(metadata={"advdistill": "{"}), "its metadata key 'advdistill' cannot be read", ""),
        (checkpoint({"recipe": {}}), "its metadata key 'advdistill' cannot be read", ""),
        (
            checkpoint({**FACTS, "format": FORMAT + 1}),
            f"has format {FORMAT + 1}, written by advdistill 9.9; this version reads up to format {FORMAT}",
            "pip install --upgrade advdistill",
        ),
        (
            checkpoint({**FACTS, "format": FORMAT + 1, "versions": []}),
            "written by advdistill of a newer version",
            "pip install --upgrade advdistill",
        ),
    ],
)
def test_a_bad_file(tmp_path: Path, content: bytes, message: str, hint: str) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_header(tmp_path / "c")
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == 5


def test_no_prefix_of_a_good_file_is_taken_for_one(tmp_path: Path) -> None:
    whole = checkpoint()
    for length in range(len(whole)):
        (tmp_path / "c").write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_header(tmp_path / "c")


def test_a_file_of_torch_save_is_told_apart(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    with pytest.raises(DataError, match="is a pickle"):
        read_header(tmp_path / "c.pt")


@pytest.mark.parametrize("name", ["missing", "."])
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_header(tmp_path / name)
