"""Shards of samples as the library webdataset writes them, read at random rather than in a stream."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from advdistill import DataError, MissingData, resource
from advdistill_data import configs
from advdistill_data.labelled import SPLITS, Listing, PictureDataset, check_trained, labels_in_order, numbered
from advdistill_data.pictures import Source, decode
from advdistill_data.scan import check_name, is_folder

_REMOTE = re.compile(r"[A-Za-z][\w+.-]+:")
_META = re.compile(r"__[^/]*__($|/)")  # members that webdataset passes over


@dataclass(frozen=True)
class _Member:
    """A file in a shard: its name there, where its bytes start, and how many they are."""

    name: str
    start: int
    length: int


class Shards(Source):
    """Images within tar files.

    Every read opens the file anew, which takes a hundredth of the time of decoding and leaves nothing open that
    processes would share.

    Args:
        places: name -> (shard, member).
    """

    def __init__(self, places: Mapping[str, tuple[Path, _Member]]) -> None:
        self._places = places

    def picture(self, name: str) -> Image.Image:
        shard, member = self._places[name]
        return decode(io.BytesIO(_bytes(shard, member)), f"{shard}/{member.name}")

    def stamp(self, name: str) -> str:
        return f"{name}/{self._places[name][1].start}"

    def parts(self) -> list[Path]:
        return sorted({shard for shard, _ in self._places.values()})


class WebDataset(PictureDataset):
    """Shards, divided or not; of each sample an image and a class.

    Labels follow the sorted classes, or are what the shards say where they say whole numbers; these are named by the
    recipe, or by a `classnames.txt` beside the shards or one folder above.

    Raises:
        DataError: the library is missing; there are no such shards; one is compressed or damaged; a sample lacks image
            or class, or stands twice; a member's name leads out of the archive; labels with gaps; or what
            `PictureDataset` says.
    """

    config: configs.WebDataset

    def __init__(self, config: configs.WebDataset) -> None:
        patterns = (
            {"train": config.shards} if config.shards else {part: getattr(config, f"{part}_shards") for part in SPLITS}
        )
        shards = {part: _expanded(pattern) for part, pattern in patterns.items() if pattern}
        every = [shard for some in shards.values() for shard in some]
        if twice := [shard for shard, count in Counter(every).items() if count > 1]:
            raise DataError(f"shard {twice[0]} is listed twice", "give every shard to one split, once")
        top = Path(os.path.commonpath([shard.parent for shard in every]))
        places: dict[str, tuple[Path, _Member]] = {}
        samples: dict[str, tuple[list[str], list[str]]] = {}
        for part, some in shards.items():
            ids, texts = samples[part] = ([], [])
            for shard in some:
                for key, image, text in _samples(shard, config):
                    ids.append(f"{shard.relative_to(top).as_posix()}/{key}")
                    texts.append(text)
                    places[ids[-1]] = (shard, image)
        listing = _listing(samples, every[0].parent, config)
        super().__init__(config, Shards(places), listing, {"test": config.test_share, "val": config.val_share})

    @property
    def place(self) -> str:
        config = self.config
        return config.shards or config.train_shards or config.test_shards or config.val_shards


def _listing(samples: Mapping[str, tuple[list[str], list[str]]], folder: Path, config: configs.WebDataset) -> Listing:
    keys, labels = numbered([text for _, texts in samples.values() for text in texts], str(folder))
    left = iter(labels)
    found = {part: (ids, [next(left) for _ in ids]) for part, (ids, _) in samples.items()}
    check_trained(found, keys, str(folder))
    beside = next((each for each in (folder, folder.parent) if (each / "classnames.txt").is_file()), None)
    if config.classes or config.class_names or beside is None or keys != [str(label) for label in range(len(keys))]:
        return Listing(keys, found)
    file = beside / "classnames.txt"
    try:
        names = [name for line in file.read_text(encoding="utf-8-sig").splitlines() if (name := line.strip())]
    except (OSError, ValueError) as error:
        raise DataError(f"class names {file} cannot be read: {error}", "correct or remove the file") from error
    if len(names) < len(keys):
        raise DataError(f"{file} names {len(names)} classes, the shards hold {len(keys)}", "correct or remove the file")
    labels_in_order(labels, str(folder), len(names))
    return Listing(keys, found, dict(zip(keys, names, strict=True)), parts=[file])


def _expanded(pattern: str) -> list[Path]:
    """The shards that a pattern stands for, as webdataset expands it, and folders and wildcards besides."""
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise DataError(
            "reading shards takes the library webdataset", 'pip install "advdistill[webdataset]"'
        ) from error
    try:
        expanded = expand_urls(str(resource(pattern)))
    except (AssertionError, ValueError) as error:
        raise DataError(f"{pattern} is no pattern of shards: {error}", "write data/train-{0000..0009}.tar") from error
    found: list[Path] = []
    for each in expanded:
        if _REMOTE.match(each):
            raise DataError(f"{each} is not a file on this machine", "download the shards first, and give their folder")
        path = Path(each).absolute()
        some = sorted(path.glob("*.tar")) if is_folder(path) else _matching(path)
        if not some:
            raise MissingData(f"there are no shards {path}", "a relative path starts at the current folder")
        found += some
    return found


def _matching(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    try:
        return sorted(each for each in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if each.is_file())
    except ValueError as error:
        raise DataError(f"{path} is no pattern of shards: {error}", "write data/train-{0000..0009}.tar") from error


def _samples(shard: Path, config: configs.WebDataset) -> Iterator[tuple[str, _Member, str]]:
    """Key, image and class of every sample of a shard, grouped as webdataset groups members."""
    from webdataset.tariterators import group_by_keys

    seen: set[str] = set()
    members = ({"fname": each.name, "data": each, "__url__": str(shard)} for each in _members(shard))
    try:
        for sample in group_by_keys(members):
            key: str = sample["__key__"]
            if key in seen:
                raise DataError(
                    f"{shard}: the sample {key} stands in two places", "write the members of a sample one after another"
                )
            seen.add(key)
            image = next((sample[suffix] for suffix in config.image.lower().split(";") if suffix in sample), None)
            if image is None:
                raise DataError(f"{shard}: the sample {key} has no image ({config.image})", "correct data.image")
            if config.label.lower() not in sample:
                raise DataError(f"{shard}: the sample {key} has no class ({config.label})", "correct data.label")
            yield key, image, _class(shard, sample[config.label.lower()], config)
    except ValueError as error:
        raise DataError(f"{shard}: {error.args[0]}", "write the shard again") from error


def _members(shard: Path) -> list[_Member]:
    """All of them, before any is believed."""
    found: list[_Member] = []
    try:
        with shard.open("rb") as file:
            if file.read(2) == b"\x1f\x8b" or shard.suffix.lower() in (".tgz", ".gz", ".zst", ".xz", ".bz2"):
                raise DataError(f"{shard} is compressed", "unpack it to a plain .tar: images in it are read at random")
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                check_name(member.name, shard)
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise DataError(
                        f"{shard}: the member {member.name} leads out of the archive", "write the shard again"
                    )
                if member.issparse():
                    raise DataError(f"{shard}: the member {member.name} is sparse", "write the shard again")
                if member.isreg() and not _META.match(member.name):
                    found.append(_Member(member.name, member.offset_data, member.size))
            # Tarfile takes whatever is no header for the end; the real one is a block of zeros.
            with shard.open("rb") as file:
                file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    last = f" behind the member {found[-1].name}" if found else ""
                    raise DataError(f"shard {shard} is cut off or damaged{last}", "fetch or write it again")
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"shard {shard} cannot be read: {error}", "fetch or write it again") from error
    return found


def _class(shard: Path, member: _Member, config: configs.WebDataset) -> str:
    where = f"{shard}: the member {member.name}"
    try:
        text = _bytes(shard, member).decode("utf-8-sig").strip()
        said: Any = json.loads(text)[config.label_field] if config.label_field else text
        str(said).encode()  # JSON can spell halves of characters
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{where} is not a class: {error}", "correct data.label or data.label_field") from error
    if not isinstance(said, (str, int)) or said == "":
        raise DataError(f"{where} is not a class but {said!r}", "correct data.label or data.label_field")
    return str(said)


def _bytes(shard: Path, member: _Member) -> bytes:
    try:
        with shard.open("rb") as file:
            file.seek(member.start)
            return file.read(member.length)
    except OSError as error:
        raise DataError(f"shard {shard} cannot be read: {error}", "fetch or write it again") from error
