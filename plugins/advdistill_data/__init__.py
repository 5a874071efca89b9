"""Datasets of image files: any tree of class folders, and ImageNet."""

from __future__ import annotations

from collections.abc import Iterable

from advdistill import DatasetSpec, hookimpl

_PUBLISHED = (
    ("caltech101", "Caltech101", "100 kinds of objects", "https://data.caltech.edu/records/mzrjq-6wc02"),
    ("oxford-pets", "OxfordPets", "37 breeds of cats and dogs", "https://www.robots.ox.ac.uk/~vgg/data/pets/"),
    (
        "stanford-cars",
        "StanfordCars",
        "196 cars by year, make and model",
        "https://github.com/pytorch/vision/issues/7545",
    ),
    ("oxford-flowers", "OxfordFlowers", "102 flowers", "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"),
    ("food101", "Food101", "101 dishes", "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"),
    ("fgvc-aircraft", "FGVCAircraft", "100 variants of aircraft", "https://arxiv.org/abs/1306.5151"),
    ("sun397", "SUN397", "397 scenes", "https://vision.princeton.edu/projects/2010/SUN/"),
    ("dtd", "DescribableTextures", "47 textures", "https://arxiv.org/abs/1311.3618"),
    ("eurosat", "EuroSAT", "10 kinds of land in satellite images", "https://arxiv.org/abs/1709.00029"),
    ("ucf101", "UCF101", "101 actions, a frame of each video", "https://arxiv.org/abs/1212.0402"),
)
"""Name, class in `coop`, summary and reference of each data set of CoOp's benchmark but ImageNet."""

_SHIFTED = (
    (
        "imagenet-a",
        "ImageNetA",
        "Photographs of 200 of ImageNet's classes that mislead",
        "https://arxiv.org/abs/1907.07174",
    ),
    ("imagenet-r", "ImageNetR", "Renditions of 200 of ImageNet's classes", "https://arxiv.org/abs/2006.16241"),
    ("imagenet-sketch", "ImageNetSketch", "Sketches of ImageNet's classes", "https://arxiv.org/abs/1905.13549"),
    ("imagenet-v2", "ImageNetV2", "A new test set for ImageNet", "https://arxiv.org/abs/1902.10811"),
)
"""Name, class in `shifts`, summary and reference of each."""


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
        origin="advdistill_data.origins:IMAGENET",
        summary="ImageNet-1k in its usual tree, or a tree of some of its classes",
        reference="https://www.image-net.org",
    )
    for name, target, summary, reference in _PUBLISHED:
        yield DatasetSpec(
            name=name,
            target=f"advdistill_data.coop:{target}",
            config="advdistill_data.configs:Published",
            origin=f"advdistill_data.origins:{name.replace('-', '_').upper()}",
            summary=summary,
            reference=reference,
        )
    for name, target, summary, reference in _SHIFTED:
        yield DatasetSpec(
            name=name,
            target=f"advdistill_data.shifts:{target}",
            config="advdistill_data.configs:Shifted",
            origin=f"advdistill_data.origins:{name.replace('-', '_').upper()}",
            summary=summary,
            reference=reference,
        )
    yield DatasetSpec(
        name="csv",
        target="advdistill_data.tables:Csv",
        config="advdistill_data.configs:Csv",
        summary="A table of images and classes, with a column that divides them or without",
    )
    yield DatasetSpec(
        name="webdataset",
        target="advdistill_data.shards:WebDataset",
        config="advdistill_data.configs:WebDataset",
        summary="Tar shards as the library webdataset writes them",
    )
    yield DatasetSpec(
        name="huggingface",
        target="advdistill_data.hub:HuggingFace",
        config="advdistill_data.configs:HuggingFace",
        summary="What the library datasets loads: from the hub, parquet files or save_to_disk",
    )
    yield DatasetSpec(
        name="torchvision",
        target="advdistill_data.torchvision_sets:TorchVision",
        config="advdistill_data.configs:TorchVision",
        summary="Any classification set of torchvision, by the name of its class",
    )
    yield DatasetSpec(
        name="cifar10",
        target="advdistill_data.torchvision_sets:Cifar10",
        config="advdistill_data.configs:Small",
        origin="advdistill_data.origins:CIFAR10",
        summary="CIFAR-10: 10 classes, 32 × 32",
        reference="https://www.cs.toronto.edu/~kriz/cifar.html",
    )
    yield DatasetSpec(
        name="cifar100",
        target="advdistill_data.torchvision_sets:Cifar100",
        config="advdistill_data.configs:Small",
        origin="advdistill_data.origins:CIFAR100",
        summary="CIFAR-100: 100 classes, 32 × 32",
        reference="https://www.cs.toronto.edu/~kriz/cifar.html",
    )
    yield DatasetSpec(
        name="stl10",
        target="advdistill_data.torchvision_sets:Stl10",
        config="advdistill_data.configs:Small",
        origin="advdistill_data.origins:STL10",
        summary="STL-10: 10 classes, 96 × 96",
        reference="https://cs.stanford.edu/~acoates/stl10",
    )
    yield DatasetSpec(
        name="pcam",
        target="advdistill_data.torchvision_sets:Pcam",
        config="advdistill_data.configs:Small",
        origin="advdistill_data.origins:PCAM",
        summary="PatchCamelyon: tumour tissue or none, 96 × 96",
        reference="https://arxiv.org/abs/1806.03962",
    )
