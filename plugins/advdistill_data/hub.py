"""Data sets of the library `datasets`: from the Hugging Face hub, from parquet files, or saved by the library."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from advdistill import DataError, MissingData, resource
from advdistill_data import configs
from advdistill_data.labelled import (
    ALIASES,
    SPLITS,
    Listing,
    PictureDataset,
    check_trained,
    labels_in_order,
    numbered,
)
from advdistill_data.pictures import Source, decode, stamp_of


class Rows(Source):
    """Images in the rows of tables, which the library maps into memory: copies of this one share them.

    Args:
        place: to call the data by.
        tables: split -> rows that are images, undecoded: {"bytes": …, "path": …}.
        column: where they are.
    """

    def __init__(self, place: str, tables: Mapping[str, Any], column: str) -> None:
        self._place, self._tables, self._column = place, tables, column
        self._files = {part: [Path(file["filename"]) for file in table.cache_files] for part, table in tables.items()}
        # Folders of images become tables of paths: what is seen then changes with the file, not with the table.
        first = {part: table[0][column] or {} for part, table in tables.items() if len(table)}
        self._paths = {part for part, held in first.items() if not held.get("bytes")}

    def picture(self, name: str) -> Image.Image:
        part, row = name.split("/")
        told = f"{name} of {self._place}"
        try:
            held = self._tables[part][int(row)][self._column]
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"image {told} cannot be read: {error}", "fetch the data again") from error
        match held:
            case {"bytes": bytes(content)}:
                return decode(io.BytesIO(content), told)
            case {"path": str(path)}:
                return decode(Path(path), f"{told} ({path})")
        raise DataError(f"{told} holds no image", "leave the row out")

    def stamp(self, name: str) -> str:
        part, row = name.split("/")
        if part in self._paths and (path := (self._tables[part][int(row)][self._column] or {}).get("path")):
            return f"{name}/{stamp_of(Path(path))}"
        return name

    def parts(self) -> list[Path]:
        return sorted({file for files in self._files.values() for file in files})


class HuggingFace(PictureDataset):
    """Splits of a `datasets.DatasetDict`, or one that is not divided.

    Classes are the names that the label column has, or as `numbered` says.

    Raises:
        DataError: the library is missing, or cannot load the data; no such split or column; rows without a class;
            labels with gaps; or what `PictureDataset` says.
        MissingData: the data are not on this machine, and the hub does not give them.
    """

    config: configs.HuggingFace

    def __init__(self, config: configs.HuggingFace) -> None:
        library = _library()
        tables = _parts(_loaded(library, config), config)
        features = next(iter(tables.values())).features
        for part, table in tables.items():
            if table.features != features:
                raise DataError(
                    f"{config.path}: the {part} split has other columns than the others", "give data.train_split"
                )
        image, label = _image_column(library, features, config), _label_column(library, features, config)
        found = {part: table.select_columns([label])[:][label] for part, table in tables.items()}
        keys, samples = _labelled(found, getattr(features[label], "names", None), config.path)
        pictures = {
            part: table.select_columns([image]).cast_column(image, library.Image(decode=False))
            for part, table in tables.items()
        }
        source = Rows(config.path, pictures, image)
        shares = {"test": config.test_share, "val": config.val_share}
        super().__init__(config, source, Listing(keys, samples), shares)

    @property
    def place(self) -> str:
        return self.config.path


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "reading data of Hugging Face takes the library datasets", 'pip install "advdistill[huggingface]"'
        ) from error
    return datasets


def _loaded(library: Any, config: configs.HuggingFace) -> Mapping[str, Any]:
    """Split -> table, as the library calls them."""
    folder = resource(config.path)
    here = folder.is_dir()
    try:
        if here and any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            loaded = library.load_from_disk(str(folder))
        else:
            name, revision = config.config_name or None, config.revision or None
            loaded = library.load_dataset(str(folder) if here else config.path, name, revision=revision)
    except Exception as error:  # the library and those below it raise what they please
        absent = isinstance(error, (FileNotFoundError, ConnectionError)) and not here
        reason = " ".join(str(error).split()) or type(error).__name__
        raise (MissingData if absent else DataError)(
            f"datasets cannot load {config.path}: {reason}",
            "is it the name of a data set on the hub (owner/name), or a folder on this machine? "
            "Where the hub cannot be asked, fetch it elsewhere and copy what save_to_disk writes"
            if absent
            else "correct data.path, data.config_name or data.revision, or fetch the data again",
        ) from error
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _parts(loaded: Mapping[str, Any], config: configs.HuggingFace) -> dict[str, Any]:
    """Our splits, of those that the data have."""
    found: dict[str, Any] = {}
    for part in SPLITS:
        asked = getattr(config, f"{part}_split")
        names = [name for name in loaded if (name == asked if asked else ALIASES.get(name.lower()) == part)]
        if asked and not names:
            raise DataError(
                f"{config.path} has no split {asked!r}, but {', '.join(loaded)}",
                f"correct data.{part}_split, or leave it out",
            )
        if len(names) > 1:
            raise DataError(
                f"{config.path} has two {part} splits: {', '.join(names)}", f"name one as data.{part}_split"
            )
        if names:
            found[part] = loaded[names[0]]
    if not found:
        raise DataError(
            f"{config.path} has no split called train, val or test, but {', '.join(loaded)}",
            "name those to use as data.train_split, data.val_split and data.test_split",
        )
    return found


def _image_column(library: Any, features: Mapping[str, Any], config: configs.HuggingFace) -> str:
    images = [name for name, feature in features.items() if isinstance(feature, library.Image)]
    return _chosen("image", config.image, images, "images", features, config)


def _label_column(library: Any, features: Mapping[str, Any], config: configs.HuggingFace) -> str:
    named = [name for name, feature in features.items() if isinstance(feature, library.ClassLabel)]
    types = {name: str(getattr(feature, "dtype", "")) for name, feature in features.items()}
    plain = [name for name, kind in types.items() if name not in named and kind.startswith(("int", "uint", "string"))]
    if config.label in plain:
        return config.label
    if not (config.label or named) and "label" in plain:
        return "label"
    return _chosen("label", config.label, named, "classes", features, config)


def _chosen(
    setting: str, asked: str, fitting: list[str], what: str, features: Mapping[str, Any], config: configs.HuggingFace
) -> str:
    if asked in fitting:
        return asked
    if not asked and len(fitting) == 1:
        return fitting[0]
    told = f"column {asked!r} of {what}" if asked else f"single column of {what}"
    raise DataError(
        f"{config.path} has no {told}; its columns are {', '.join(features)}", f"name the column as data.{setting}"
    )


def _labelled(
    found: Mapping[str, list[Any]], names: list[str] | None, place: str
) -> tuple[list[str], dict[str, tuple[list[str], list[int]]]]:
    """The classes in label order, and names and labels of each split's rows."""
    for part, values in found.items():
        for row, value in enumerate(values):
            if value is None or value == "" or (names is not None and value < 0):
                raise DataError(
                    f"row {row} of the {part} split of {place} has no class",
                    f"is that split published without classes? Name another one as data.{part}_split",
                )
    every = [value for values in found.values() for value in values]
    if names is None:
        keys, labels = numbered([str(value) for value in every], place)
    else:
        keys, labels = list(names), every
        labels_in_order(labels, place, len(keys))
    left = iter(labels)
    samples = {
        part: ([f"{part}/{row:06d}" for row in range(len(values))], [next(left) for _ in values])
        for part, values in found.items()
    }
    check_trained(samples, keys, place)
    return keys, samples
