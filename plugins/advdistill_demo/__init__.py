"""The embedded default: a tiny CLIP and real handwritten digits. No network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from advdistill import DatasetSpec, hookimpl


@hookimpl
def advdistill_datasets() -> Iterable[DatasetSpec]:
    yield DatasetSpec(
        name="digits",
        target="advdistill_demo.digits:Digits",
        config="advdistill_demo.configs:Digits",
        summary="1,797 real handwritten digits that come with scikit-learn, 32x32",
        reference="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
    )
    yield DatasetSpec(
        name="number-pairs",
        target="advdistill_demo.pairs:NumberPairs",
        config="advdistill_demo.configs:NumberPairs",
        summary="Two of these digits side by side, 100 ordered names, 20 of them new to the shipped models, 32x32",
        reference="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
    )
    yield DatasetSpec(
        name="photos",
        target="advdistill_demo.photos:Photos",
        config="advdistill_demo.configs:Photos",
        summary="32x32 photographs in class folders, from a tar archive or a folder",
    )
    yield DatasetSpec(
        name="photo-pairs",
        target="advdistill_demo.photos:PhotoPairs",
        config="advdistill_demo.configs:PhotoPairs",
        summary="Two of these photographs side by side, 100 ordered names, 20 kept out of pre-training",
    )


@hookimpl
def advdistill_recipe_dirs() -> Iterable[Path]:
    yield Path(__file__).parent / "recipes"
