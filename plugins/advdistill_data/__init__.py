"""Datasets of image files: any tree of class folders, and ImageNet."""

from __future__ import annotations

from collections.abc import Iterable

from advdistill import DatasetSpec, hookimpl


@hookimpl
def advdistill_datasets() -> Iterable[DatasetSpec]:
    yield DatasetSpec(
        name="folder",
        target="advdistill_data.folder:Folder",
        config="advdistill_data.configs:Folder",
        folder=True,
        summary="Class folders, or train/val/test of class folders; all images or k shots",
    )
    yield DatasetSpec(
        name="imagenet",
        target="advdistill_data.imagenet:ImageNet",
        config="advdistill_data.configs:ImageNet",
        summary="ImageNet-1k in its usual tree, or a tree of some of its classes",
        reference="https://www.image-net.org",
    )
