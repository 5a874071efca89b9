"""What an advdistill checkpoint says of itself, read with the standard library alone.

A safetensors file is an 8-byte little-endian length, that many bytes of JSON (tensor name -> dtype, shape and offsets;
`__metadata__` -> text by text), and the tensors' bytes. Ours hold one metadata key, `advdistill`, with JSON.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from advdistill.errors import DataError

KEY = "advdistill"
FORMAT = 1
_LARGEST_HEADER = 100_000_000
_KINDS = {
    "recipe": dict, "base": dict, "threat": dict, "clock": dict, "versions": dict,
    "classes": list, "templates": list, "plugins": list, "results": list,
}  # fmt: skip
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_header(path: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Read the head of a checkpoint; its tensors are not read.

    Returns:
        The facts under the metadata key `advdistill`, and name -> {"dtype", "shape", "data_offsets"} of the tensors.

    Raises:
        DataError: the file is missing, is no safetensors file, is cut off, holds no advdistill metadata, or has a
            newer format.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if start.startswith(_PICKLES):
                raise DataError(
                    f"{file} is a pickle, as torch.save writes it; loading one can run code, so none is read",
                    "Give a checkpoint that advdistill wrote (.safetensors).",
                )
            if len(start) < 8 or not 2 <= length <= _LARGEST_HEADER:
                raise DataError(f"{file} is not a safetensors file", "Give a checkpoint that advdistill wrote.")
            text = stream.read(length)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}", "Check the path of the checkpoint.") from error
    if len(text) < length:
        raise _damaged(file, "it ends within its header")
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (ValueError, AttributeError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise _damaged(file, "its header cannot be read") from error
    if 8 + length + end != size:
        raise _damaged(file, f"it has {size:,} bytes and should have {8 + length + end:,}")
    return _facts(file, metadata), header


def _facts(file: Path, metadata: Any) -> dict[str, Any]:
    if not isinstance(metadata, dict) or KEY not in metadata:
        raise DataError(
            f"{file} is a safetensors file, but no advdistill checkpoint: it holds no metadata key {KEY!r}",
            "Foreign weights go into a recipe, as `weights:` of a student or teacher.",
        )
    try:
        facts = json.loads(metadata[KEY])
        version = facts["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(file, f"its metadata key {KEY!r} cannot be read") from error
    if not isinstance(version, int) or version > FORMAT:
        versions = facts.get("versions")
        writer = versions.get("advdistill", "") if isinstance(versions, dict) else ""
        raise DataError(
            f"{file} has format {version}, written by advdistill {writer or 'of a newer version'}; "
            f"this version reads up to format {FORMAT}",
            "Upgrade: pip install --upgrade advdistill.",
        )
    if odd := [key for key, kind in _KINDS.items() if not isinstance(facts.get(key, kind()), kind)]:
        raise _damaged(file, f"its {odd[0]} cannot be what it says")
    return dict(facts)


def _damaged(file: Path, how: str) -> DataError:
    return DataError(f"{file} is damaged: {how}", "Copy or download it again; a cut-off copy is the usual cause.")
