"""What published data sets have in common: a usual place, and sentences of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from advdistill import DataError, MissingData, Origin, data_folder
from advdistill_data import configs
from advdistill_data.ensembles import ensemble
from advdistill_data.labelled import Listing, PictureDataset
from advdistill_data.pictures import Source
from advdistill_data.scan import existing_folder


class KnownDataset(PictureDataset):
    """A published data set.

    Attributes:
        name: what recipes call it.
        origin: its usual folder, and what must lie there.
        sentences: key of its templates in `ensembles`; "": its name.
        template: the one that it is usually learned with.

    Args:
        root: where it was found.
        source, listing, shares: as `PictureDataset` has them.
    """

    name: ClassVar[str]
    origin: ClassVar[Origin]
    sentences: ClassVar[str] = ""
    template: ClassVar[str]
    config: Any

    def __init__(
        self,
        config: configs.Known,
        root: Path,
        source: Source,
        listing: Listing,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        self._root = root
        super().__init__(config, source, listing, shares)

    @property
    def place(self) -> str:
        return str(self._root)

    def _templates(self) -> Sequence[str]:
        if self.config.prompts == "ensemble":
            return ensemble(self.sentences or self.name)
        return self.config.templates or [self.template]


def own_folder(name: str, origin: Origin, root: str) -> Path:
    """The folder of a published data set.

    Args:
        name: what recipes call it.
        root: its folder, or the one that holds it under its usual name; "": the usual one.

    Raises:
        MissingData: there is none, or a fetch into it was not finished. DataError: it is no folder.
    """
    place = data_folder(origin, root)
    try:
        return existing_folder(place)
    except MissingData as error:
        raise MissingData(
            f"{name} is not here: there is no folder {place}", f"advdistill data fetch {name}, or correct data.root"
        ) from error


def first_of(root: Path, need: str) -> Path | None:
    """The first of the paths `a|b` that is there below `root`."""
    return next((root / name for name in need.split("|") if (root / name).exists()), None)


def digests(root: Path, files: Iterable[Path]) -> dict[str, str]:
    """Path below `root` -> SHA-256, for the record. Raises DataError where one cannot be read."""
    found = {}
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}", "check its permissions") from error
        name = file.relative_to(root) if file.is_relative_to(root) else file
        found[name.as_posix()] = hashlib.sha256(content).hexdigest()
    return found
