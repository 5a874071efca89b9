"""A single-file plugin with a published data set, whose images are those of the toy one once its folder is there."""

from __future__ import annotations

from collections.abc import Iterator

from advdistill import Config, DatasetSpec, Origin, hookimpl
from advdistill.data.place import data_folder
from advdistill.errors import MissingData
from advdistill.testing import ToyDataset

ORIGIN = Origin(folder="kept", needs=("images.txt",))


class Settings(Config):
    """Where it lies."""

    root: str = ""
    """Its folder; "": the usual one."""


class Kept(ToyDataset):
    """The toy images, where `images.txt` is there."""

    def __init__(self, config: Settings) -> None:
        folder = data_folder(ORIGIN, config.root)
        if not (folder / "images.txt").exists():
            raise MissingData(f"kept is not in {folder}", "bring it")
        super().__init__(config)


@hookimpl
def advdistill_datasets() -> Iterator[DatasetSpec]:
    yield DatasetSpec(name="kept", target=Kept, config=Settings, origin=ORIGIN)
