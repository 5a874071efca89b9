"""Manifests: which files a run used, as JSON that can be given to someone else.

    {"advdistill manifest": 1, "data": {what the recipe says}, "classes": ["cat", "dog"],
     "splits": {"train": {"samples": 2, "digest": "…", "content": "…", "files": [["cats/1.jpg", 0, 5123], …]}, …},
     "parts": [["split_zhou_Caltech101.json", 861204, "sha256…"], …]}

A file of a split is its name, its label, and its length in bytes (null: it has no file of its own). `digest` is of
names and labels; `content` of the pixels of some hundreds, as the recipe shows them to a model; null: the run has not
looked at them. `parts` are files that hold or list many samples.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advdistill.engine.checkpoint import write_bytes
from advdistill.engine.data import SPLITS, Dataset, Part, Split, Subset
from advdistill.engine.noise import Noise
from advdistill.errors import DataError, MissingSplit, RunWarning
from advdistill.recipe.paths import resource

FILE = "manifest.json"
_KIND, _FORMAT = "advdistill manifest", 1
_HASHED = 64 * 2**20
"""Bytes. Longer parts are known by their length: of a shard or an archive a run may read a few images only."""


def manifest(
    dataset: Dataset, settings: Mapping[str, Any], used: Mapping[str, Split], names: Iterable[str] = SPLITS
) -> dict[str, Any]:
    """What stands in a manifest.

    Args:
        dataset: as it is used. settings: its block in the recipe.
        used: name -> split, of those whose images are looked at. names: of all that are to be listed, where they exist;
            of those that are not used no image is opened.

    Raises:
        DataError: a file is not there any more.
    """
    listed: dict[str, Any] = {}
    for name in names:
        try:
            split = used[name] if name in used else dataset.listed(name)
        except DataError:  # not every data set has every split
            continue
        listed[name] = {
            "samples": len(split),
            "digest": split.digest,
            "content": split.content if name in used else None,
            **({"unreadable": list(split.skipped)} if split.skipped else {}),
            "files": _files(split),
        }
    return {
        _KIND: _FORMAT,
        "data": dict(settings),
        "classes": list(dataset.classes.names),
        "splits": listed,
        "parts": [_part(path) for path in dataset.parts()],
    }


def write(folder: Path, said: Mapping[str, Any], scope: str = "") -> None:
    """Write `manifest.json`, or that of a scope, to a folder, a line for each file; the whole, or nothing."""
    write_bytes(folder / (f"manifest-{scope}.json" if scope else FILE), _text(said).encode())


def _text(said: Mapping[str, Any]) -> str:
    splits = []
    for name, split in said["splits"].items():
        facts = json.dumps({key: value for key, value in split.items() if key != "files"}).removesuffix("}")
        files = ",\n".join(map(json.dumps, split["files"]))
        splits.append(f'  {json.dumps(name)}: {facts}, "files": [\n{files}]}}')
    listed = "{\n" + ",\n".join(splits) + "}"
    told = {key: listed if key == "splits" else json.dumps(value) for key, value in said.items()}
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {text}" for key, text in told.items()) + "\n}\n"


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is different between two manifests of one run, in words; "": nothing that changes its samples."""
    if before["classes"] != now["classes"]:
        return "the classes are others, or called otherwise"
    for name, split in now["splits"].items():
        was = before["splits"].get(name)
        if was is None or was["digest"] != split["digest"]:
            return f"the {name} split has other samples"
        if not split["content"]:
            continue
        for one, other in zip(was["files"], split["files"], strict=True):
            if one != other:
                return f"images of the {name} split have changed, {other[0]} for one"
        if was["content"] != split["content"]:
            return f"images of the {name} split have changed"
    return ""


def _files(split: Split) -> list[list[Any]]:
    labels = split.labels.tolist()
    return [[name, labels[index], split.size(index)] for index, name in enumerate(split.ids)]


def _part(path: Path) -> list[Any]:
    try:
        size = path.stat().st_size
        if size > _HASHED:
            return [path.name, size, None]
        found = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(2**20):
                found.update(block)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "restore it") from error
    return [path.name, size, found.hexdigest()]


def read(path: str | Path) -> dict[str, Any]:
    """A manifest from its file.

    Raises:
        DataError: it is missing, damaged, or none.
    """
    return _parsed(_bytes(path), resource(str(path)))


def _bytes(path: str | Path) -> bytes:
    file = resource(str(path))
    try:
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"there is no manifest {file}: {getattr(error, 'strerror', error)}", _HINT) from error


_HINT = "a run's folder holds one as manifest.json"


def _parsed(content: bytes, file: Path) -> dict[str, Any]:
    try:
        said = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"manifest {file} is damaged: {error}", _HINT) from error
    if not isinstance(said, dict) or said.get(_KIND) != _FORMAT:
        raise DataError(f"{file} is no manifest of format {_FORMAT}", _HINT)
    if not _well_formed(said):
        raise DataError(f"manifest {file} is damaged: classes or files are not what they should be", _HINT)
    return said


def _well_formed(said: Mapping[str, Any]) -> bool:
    match said:
        case {"classes": list(names), "splits": dict(splits), "data": dict()}:
            pass
        case _:
            return False

    def of_file(each: Any) -> bool:
        match each:
            case [str(), int(label), int() | None]:
                return 0 <= label < len(names)
        return False

    def of_split(split: Any) -> bool:
        match split:
            case {"digest": str(), "content": str() | None, "files": [_, *_] as files}:
                return all(map(of_file, files)) and len({name for name, _, _ in files}) == len(files)
        return False

    return all(isinstance(name, str) for name in names) and all(map(of_split, splits.values()))


class Listed(Part):
    """The samples of another data set that a manifest lists, in its order, and no others.

    Args:
        whole: the data set, with all its samples.
        path: the manifest, which is read once: a run that begins anew may put another in its place.

    Attributes:
        half: which half of the classes it was written of.

    Raises:
        DataError: the manifest cannot be read, names classes that the data do not have, or files that are not there or
            of another length.
    """

    def __init__(self, whole: Dataset, path: str) -> None:
        super().__init__(whole)
        content = _bytes(path)
        self._path, self._said = path, _parsed(content, resource(path))
        self._sha256 = hashlib.sha256(content).hexdigest()
        names = {name: label for label, name in enumerate(whole.classes.names)}
        if unknown := [name for name in self._said["classes"] if name not in names]:
            raise DataError(
                f"{path} lists the class {unknown[0]!r}, which the data do not have", "is it a manifest of these data?"
            )
        self.half = self._said["data"].get("half", "all")
        self._labels = [names[name] for name in self._said["classes"]]

    @cached_property
    def _pool(self) -> _Pool:
        found = []
        for name in SPLITS:
            with contextlib.suppress(MissingSplit):
                found.append(self.whole.listed(name))
        return _Pool(found)

    def split(self, name: str) -> Split:
        """See `Dataset.split`. A warning where images are not those that the manifest was written of."""
        split, said = self.listed(name), self._said["splits"][name]
        with contextlib.suppress(DataError):  # an image that cannot be read is told by who needs it
            if said["content"] not in (None, split.content) and said["digest"] == split.digest:
                warnings.warn(
                    f"images of the {name} split are not those that {self._path} was written of: other files, or "
                    "another size or resize",
                    RunWarning,
                    stacklevel=2,
                )
        return split

    def listed(self, name: str) -> Split:
        said = self._said["splits"].get(name)
        if said is None:
            self.whole.listed(name)  # there may be none of that name at all
            raise MissingSplit(f"{self._path} lists no {name} split", "take a manifest of a run that has used one")
        pool = self._pool
        places = []
        for file, label, size in said["files"]:
            place = pool.places.get(file)
            if place is None:
                raise DataError(f"{self._path} lists {file}, which is not in the data", "complete the data")
            there = pool.size(place)
            if None not in (size, there) and size != there:
                raise DataError(
                    f"{file} is {there} bytes long, and {size} in {self._path}", "restore the file that was used"
                )
            if self._labels[label] != pool.labels[place]:
                theirs = self.classes.names[int(pool.labels[place])]
                raise DataError(
                    f"{self._path} calls {file} {self._said['classes'][label]!r}; the data say {theirs!r}",
                    "is it a manifest of these data?",
                )
            places.append(place)
        return Subset(pool, torch.tensor(places, dtype=torch.long))

    def record(self) -> dict[str, Any]:
        return {"manifest": self._sha256, "of": super().record()}


class _Pool(Split):
    """Several splits one after the other. A manifest's split may have been drawn from any of them."""

    def __init__(self, splits: Sequence[Split]) -> None:
        self._splits = splits
        self.ids = [name for split in splits for name in split.ids]
        self.labels = torch.cat([split.labels for split in splits])
        self.places = {name: place for place, name in enumerate(self.ids)}
        self._owners = [(split, index) for split in splits for index in range(len(split))]
        self.augments, self.decodes = any(s.augments for s in splits), any(s.decodes for s in splits)
        self.sources = None
        if all(split.sources is not None for split in splits):
            self.sources = torch.cat([split.sources for split in splits if split.sources is not None])

    def size(self, index: int) -> int | None:
        split, place = self._owners[index]
        return split.size(place)

    def load(self, index: int) -> Tensor:
        split, place = self._owners[index]
        return split.load(place)

    def canvas(self, index: int) -> Tensor:
        split, place = self._owners[index]
        return split.canvas(place)

    def augment(self, canvases: Tensor, noise: Noise) -> Tensor:
        return self._splits[0].augment(canvases, noise)

    @cached_property
    def version(self) -> str:
        return hashlib.sha256("/".join(split.version for split in self._splits).encode()).hexdigest()[:16]
