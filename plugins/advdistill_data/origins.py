"""Where published data sets come from and how they lie on disk; digests are those that torchvision (md5) and TensorFlow
Datasets (sha256, lengths) check.

Folders are those of CoOp's instructions, and for the small sets those of torchvision.
"""

from __future__ import annotations

from advdistill import Origin, Remote

COOP_PAGE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"

_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_BERKELEY = "https://people.eecs.berkeley.edu/~hendrycks"
_TORONTO = "https://www.cs.toronto.edu/~kriz"
_NAMES = {"classnames.txt": "CoOp's class names; open_clip's stand in for them"}


def _split(zhou: str) -> dict[str, str]:
    return {zhou: "CoOp's division into train, val and test, and so without numbers that can be compared with CoOp's"}


def _split_step(zhou: str) -> str:
    return f"Bring {zhou} from Google Drive; the link is at {COOP_PAGE}"


CALTECH101 = Origin(
    folder="caltech-101",
    needs=("101_ObjectCategories",),
    wants=_split("split_zhou_Caltech101.json"),
    images=8242,
    bytes=132_000_000,
    page="https://data.caltech.edu/records/mzrjq-6wc02",
    licence="CC BY 4.0",
    remotes=(
        Remote(
            file="caltech-101.zip",
            urls=(
                "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                "https://huggingface.co/datasets/HuggingFaceM4/Caltech-101/resolve/"
                "71d2394c09f83658fb6f6a1eb272a0d9dc71b331/caltech-101.zip",
            ),
            size=137_414_764,
            sha256="331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91",
            md5="3138e1922a9193bfa496528edbbc45d0",
            inside="caltech-101",
        ),
        Remote(file="101_ObjectCategories.tar.gz", urls=()),
    ),
    steps=(_split_step("split_zhou_Caltech101.json"),),
)

OXFORD_PETS = Origin(
    folder="oxford_pets",
    needs=("images", "split_zhou_OxfordPets.json|annotations"),
    wants=_split("split_zhou_OxfordPets.json"),
    images=7349,
    bytes=812_000_000,
    licence="CC BY-SA 4.0",
    page=f"{_VGG}/pets/",
    remotes=(
        Remote(
            file="images.tar.gz",
            urls=(f"{_VGG}/pets/data/images.tar.gz",),
            size=791_918_971,
            sha256="67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
            md5="5c4f3ee8e5d25df40f4fd59a7f44e54c",
        ),
        Remote(
            file="annotations.tar.gz",
            urls=(f"{_VGG}/pets/data/annotations.tar.gz",),
            size=19_173_078,
            sha256="52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
            md5="95a8c909bbe2e81eed6a22bccdf3f68f",
        ),
    ),
    steps=(_split_step("split_zhou_OxfordPets.json"),),
)

STANFORD_CARS = Origin(
    folder="stanford_cars",
    needs=("cars_train", "cars_test", "split_zhou_StanfordCars.json|devkit"),
    wants=_split("split_zhou_StanfordCars.json"),
    images=16185,
    bytes=1_990_000_000,
    page="https://github.com/pytorch/vision/issues/7545",
    steps=(
        "Bring the images, as cars_train and cars_test, from somebody who has them; "
        "https://github.com/pytorch/vision/issues/7545 names copies. In some of them files bear other names or "
        "classes, which do not fit the split file",
        _split_step("split_zhou_StanfordCars.json"),
    ),
    gone="its authors have taken it off the web",
)

OXFORD_FLOWERS = Origin(
    folder="oxford_flowers",
    needs=("jpg", "split_zhou_OxfordFlowers.json|imagelabels.mat"),
    wants=_split("split_zhou_OxfordFlowers.json"),
    images=8189,
    bytes=347_000_000,
    page=f"{_VGG}/flowers/102/",
    remotes=(
        Remote(
            file="102flowers.tgz",
            urls=(f"{_VGG}/flowers/102/102flowers.tgz",),
            size=344_862_509,
            sha256="2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
            md5="52808999861908f626f3c1f4e79d11fa",
        ),
        Remote(
            file="imagelabels.mat",
            urls=(f"{_VGG}/flowers/102/imagelabels.mat",),
            size=502,
            sha256="4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
            md5="e0620be6f572b9609742df49c70aed4d",
            unpack=False,
        ),
        Remote(
            file="setid.mat",
            urls=(f"{_VGG}/flowers/102/setid.mat",),
            size=14_989,
            sha256="46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd",
            md5="a5357ecc9cb78c4bef273ce3793fc85c",
            unpack=False,
        ),
    ),
    steps=(
        _split_step("split_zhou_OxfordFlowers.json"),
        f"Without it cat_to_name.json is needed, for the class names; its link is at {COOP_PAGE} too",
    ),
)

FOOD101 = Origin(
    folder="food-101",
    needs=("images", "split_zhou_Food101.json|meta"),
    wants=_split("split_zhou_Food101.json"),
    images=101_000,
    bytes=5_000_000_000,
    licence="scientific fair use; images by their owners on Foodspotting",
    page="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    remotes=(
        Remote(
            file="food-101.tar.gz",
            urls=("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",),
            size=4_996_278_331,
            sha256="d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4",
            md5="85eeb15f3717b99a5da872d97d918f87",
            inside="food-101",
        ),
    ),
    steps=(_split_step("split_zhou_Food101.json"),),
)

FGVC_AIRCRAFT = Origin(
    folder="fgvc_aircraft",
    needs=("images", "variants.txt"),
    images=10_000,
    bytes=2_770_000_000,
    licence="non-commercial research only",
    page=f"{_VGG}/fgvc-aircraft/",
    remotes=(
        Remote(
            file="fgvc-aircraft-2013b.tar.gz",
            urls=(f"{_VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",),
            inside="fgvc-aircraft-2013b/data",
        ),
    ),
)

SUN397 = Origin(
    folder="sun397",
    needs=("SUN397", "split_zhou_SUN397.json|ClassName.txt"),
    wants=_split("split_zhou_SUN397.json"),
    images=39_700,
    bytes=39_000_000_000,
    licence="research only",
    page="https://vision.princeton.edu/projects/2010/SUN/",
    steps=(
        "Bring SUN397.tar.gz (md5 8ca2778205c41d23104230ba66911c7a) from somebody who has it, for example "
        "https://opendatalab.com/OpenDataLab/SUN397/tree/main/raw, and unpack it; copies that come in train and test "
        "folders are divided otherwise, and do not fit the split file",
        _split_step("split_zhou_SUN397.json"),
    ),
    gone="its authors' server does not have it any more",
)

DTD = Origin(
    folder="dtd",
    needs=("images", "split_zhou_DescribableTextures.json|labels"),
    wants=_split("split_zhou_DescribableTextures.json"),
    images=5640,
    bytes=625_000_000,
    licence="for research",
    page=f"{_VGG}/dtd/",
    remotes=(
        Remote(
            file="dtd-r1.0.1.tar.gz",
            urls=(f"{_VGG}/dtd/download/dtd-r1.0.1.tar.gz",),
            size=625_239_812,
            sha256="e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
            md5="fff73e5086ae6bdbea199a49dfb8a4c1",
            inside="dtd",
        ),
    ),
    steps=(_split_step("split_zhou_DescribableTextures.json"),),
)

EUROSAT = Origin(
    folder="eurosat",
    needs=("2750",),
    wants=_split("split_zhou_EuroSAT.json"),
    images=27_000,
    bytes=94_000_000,
    licence="MIT",
    page="https://github.com/phelber/EuroSAT",
    remotes=(
        Remote(
            file="EuroSAT.zip",
            urls=(
                "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                "http://madm.dfki.de/files/sentinel/EuroSAT.zip",
            ),
            size=94_280_567,
            sha256="8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd",
            md5="c8fa014336c82ac7804f0398fcb19387",
        ),
    ),
    steps=(_split_step("split_zhou_EuroSAT.json"),),
)

UCF101 = Origin(
    folder="ucf101",
    needs=("UCF-101-midframes", "split_zhou_UCF101.json|ucfTrainTestlist"),
    wants=_split("split_zhou_UCF101.json"),
    images=13_320,
    page="https://www.crcv.ucf.edu/data/UCF101.php",
    steps=(
        f"Bring UCF-101-midframes.zip, which holds the middle frame of every video, from CoOp's authors' Google Drive, "
        f"and unpack it; the link is at {COOP_PAGE}",
        _split_step("split_zhou_UCF101.json"),
    ),
)

IMAGENET = Origin(
    folder="imagenet",
    needs=("images/val|val|images/train|train",),
    wants={"images/train|train": "images to train on", "images/val|val": "images to test on", **_NAMES},
    images=1_331_167,
    bytes=155_000_000_000,
    licence="by registration, for research only",
    page="https://image-net.org/download.php",
    steps=(
        "Register at https://image-net.org and agree to its terms",
        "Unpack ILSVRC2012_img_train.tar, and the archive in it of each class, to images/train/n01440764/*.JPEG",
        "Unpack ILSVRC2012_img_val.tar and sort its images by class, to images/val/n01440764/*.JPEG",
        f"Bring classnames.txt from Google Drive; the link is at {COOP_PAGE}",
    ),
)

IMAGENET_A = Origin(
    folder="imagenet-adversarial",
    needs=("imagenet-a",),
    images=7500,
    bytes=688_000_000,
    licence="MIT, as its repository",
    page="https://github.com/hendrycks/natural-adv-examples",
    remotes=(
        Remote(
            file="imagenet-a.tar",
            urls=(f"{_BERKELEY}/imagenet-a.tar",),
            size=687_552_512,
            sha256="3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
        ),
    ),
)

IMAGENET_R = Origin(
    folder="imagenet-rendition",
    needs=("imagenet-r",),
    images=30_000,
    bytes=2_190_000_000,
    page="https://github.com/hendrycks/imagenet-r",
    remotes=(
        Remote(
            file="imagenet-r.tar",
            urls=(f"{_BERKELEY}/imagenet-r.tar",),
            size=2_191_079_936,
            sha256="18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
        ),
    ),
)

IMAGENET_SKETCH = Origin(
    folder="imagenet-sketch",
    needs=("images|sketch",),
    images=50_889,
    bytes=8_400_000_000,
    licence="MIT, as its repository",
    page="https://github.com/HaohanWang/ImageNet-Sketch",
    remotes=(
        Remote(
            file="ImageNet-Sketch.zip",
            urls=("https://huggingface.co/datasets/songweig/imagenet_sketch/resolve/main/data/ImageNet-Sketch.zip",),
        ),
    ),
)

IMAGENET_V2 = Origin(
    folder="imagenetv2",
    needs=("imagenetv2-matched-frequency-format-val",),
    images=10_000,
    bytes=1_260_000_000,
    licence="images by their authors on Flickr, as ImageNet's",
    page="https://github.com/modestyachts/ImageNetV2",
    remotes=(
        Remote(
            file="imagenetv2-matched-frequency.tar.gz",
            urls=(
                "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz",
            ),
            size=1_264_079_360,
            sha256="f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
        ),
    ),
)

CIFAR10 = Origin(
    folder="cifar-10-batches-py",
    needs=(*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
    images=60_000,
    bytes=184_000_000,
    page=f"{_TORONTO}/cifar.html",
    remotes=(
        Remote(
            file="cifar-10-python.tar.gz",
            urls=(f"{_TORONTO}/cifar-10-python.tar.gz",),
            size=170_498_071,
            md5="c58f30108f718f92721af3b95e74349a",
            inside="cifar-10-batches-py",
        ),
    ),
)

CIFAR100 = Origin(
    folder="cifar-100-python",
    needs=("train", "test", "meta"),
    images=60_000,
    bytes=184_000_000,
    page=f"{_TORONTO}/cifar.html",
    remotes=(
        Remote(
            file="cifar-100-python.tar.gz",
            urls=(f"{_TORONTO}/cifar-100-python.tar.gz",),
            size=169_001_437,
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            inside="cifar-100-python",
        ),
    ),
)

STL10 = Origin(
    folder="stl10_binary",
    needs=("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"),
    images=13_000,
    bytes=3_124_000_000,
    page="https://cs.stanford.edu/~acoates/stl10/",
    remotes=(
        Remote(
            file="stl10_binary.tar.gz",
            urls=("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",),
            size=2_640_397_119,
            sha256="f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866",
            md5="91f7769df0f17e558f3565bffb0c7dfb",
            inside="stl10_binary",
        ),
    ),
)

PCAM = Origin(
    folder="pcam",
    needs=tuple(
        f"camelyonpatch_level_2_split_{part}_{what}.h5" for part in ("train", "valid", "test") for what in ("x", "y")
    ),
    images=327_680,
    bytes=8_000_000_000,
    licence="CC0",
    page="https://github.com/basveeling/pcam",
    steps=(
        "Bring the six files camelyonpatch_level_2_split_*_[xy].h5.gz from https://zenodo.org/record/2546921",
        "Unpack them: gunzip *.gz",
    ),
)
