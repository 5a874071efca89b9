"""Sentences that class names are put into, several for a data set, and class names that its files do not spell out.

They are those of CLIP's authors (arXiv 2103.00020; https://github.com/openai/CLIP/blob/main/data/prompts.md) as CLIP
benchmark has them (https://github.com/LAION-AI/CLIP_benchmark), by which the zero-shot suites of robust CLIP models are
measured. UCF101, which the latter lacks, is from the former.
"""

from __future__ import annotations

from functools import cache

_LOOKS = ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")
_KINDS = (
    *("{a} photo of {x}", "{a} painting of {x}", "{the} plastic {}", "{a} sculpture of {x}", "{a} sketch of {x}"),
    *("{a} tattoo of {x}", "{the} toy {}", "{a} rendition of {x}", "{the} embroidered {}", "{the} cartoon {}"),
    *("{the} {} in a video game", "{the} plushie {}", "{the} origami {}", "art of {x}", "graffiti of {x}"),
    *("{a} drawing of {x}", "{a} doodle of {x}"),
)
_DEEDS = ("", "using ", "doing ", "during ", "performing ", "practicing ")

# Long lists are built from their parts, in the order of the source.
_CIFAR = tuple(
    sentence
    for the in ("a", "the")
    for sentence in (
        *(f"a {look}photo of {the} {{}}." for look in _LOOKS),
        *(f"a photo of {the} {size} {{}}." for size in ("small", "big")),
    )
)
_CALTECH = tuple(
    kind.replace("{a}", "a").replace("{the}", the).replace("{x}", f"{the} {{}}") + "."
    for the in ("a", "the")
    for kind in _KINDS
)
_UCF = tuple(
    f"a {medium} of {the} person {deed}{{}}."
    for deed in _DEEDS
    for the in ("a", "the")
    for medium in ("photo", "video", "example", "demonstration")
)
_TEXTURE = tuple(
    f"a photo of {the} {{}} {what}." for the in ("a", "the") for what in ("texture", "pattern", "thing", "object")
)

_ENSEMBLES = {
    "caltech101": _CALTECH,
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "dtd": _TEXTURE,
    "eurosat": tuple(f"a centered satellite photo of {the}{{}}." for the in ("", "a ", "the ")),
    "fgvc-aircraft": tuple(f"a photo of {the} {{}}, a type of aircraft." for the in ("a", "the")),
    "food101": ("a photo of {}, a type of food.",),
    "oxford-flowers": ("a photo of a {}, a type of flower.",),
    "oxford-pets": ("a photo of a {}, a type of pet.",),
    "pcam": ("a histopathology slide showing {}", "histopathology image of {}"),
    "stanford-cars": (
        *(f"a photo of {whose} {{}}." for whose in ("a", "the", "my")),
        "i love my {}!",
        *(f"a photo of my {state} {{}}." for state in ("dirty", "clean", "new", "old")),
    ),
    "stl10": ("a photo of a {}.", "a photo of the {}."),
    "sun397": ("a photo of a {}.", "a photo of the {}."),
    "ucf101": _UCF,
}

_NAMES = {
    "cifar10": "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck",
    "cifar100": "apple, aquarium fish, baby, bear, beaver, bed, bee, beetle, bicycle, bottle, bowl, boy, bridge, bus, "
    "butterfly, camel, can, castle, caterpillar, cattle, chair, chimpanzee, clock, cloud, cockroach, couch, crab, "
    "crocodile, cup, dinosaur, dolphin, elephant, flatfish, forest, fox, girl, hamster, house, kangaroo, keyboard, "
    "lamp, lawn mower, leopard, lion, lizard, lobster, man, maple tree, motorcycle, mountain, mouse, mushroom, "
    "oak tree, orange, orchid, otter, palm tree, pear, pickup truck, pine tree, plain, plate, poppy, porcupine, "
    "possum, rabbit, raccoon, ray, road, rocket, rose, sea, seal, shark, shrew, skunk, skyscraper, snail, snake, "
    "spider, squirrel, streetcar, sunflower, sweet pepper, table, tank, telephone, television, tiger, tractor, train, "
    "trout, tulip, turtle, wardrobe, whale, willow tree, wolf, woman, worm",
    "pcam": "lymph node, lymph node containing metastatic tumor tissue",
    "stl10": "airplane, bird, car, cat, deer, dog, horse, monkey, ship, truck",
}


@cache
def ensemble(name: str) -> tuple[str, ...]:
    """The sentences of a data set, each with one `{}`.

    Args:
        name: as recipes call it, `oxford-pets`; `imagenet`: the 80 of open_clip, for the shifted ImageNets too.

    Raises:
        KeyError: there are none for it.
    """
    if name == "imagenet":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    return _ENSEMBLES[name]


def names(name: str) -> tuple[str, ...]:
    """Class names in label order: of cifar10, cifar100, stl10 and pcam. Raises KeyError for others."""
    return tuple(_NAMES[name].split(", "))
