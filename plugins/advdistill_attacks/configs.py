"""Settings of our attacks. The radius is not among them: it comes from the recipe's `threat`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator, model_validator

from advdistill import Config, PixelDistance

Block = Annotated[dict[str, Any], WithJsonSchema({"block": "attack"})]
"""An attack inside another one's settings, written like any other: `{use: pgd, steps: 20}`."""


class Climbing(Config):
    """What a gradient attack climbs."""

    loss: Literal["", "ce", "sice", "cw", "dlr", "margin", "kl", "feature"] = ""
    """What is raised; "": the objective of whoever asks (a strategy's own in training, cross-entropy in evaluation).
    `ce`; `sice`, cross-entropy at a scale of its own for each sample; `cw`, the margin of logits; `dlr` (three classes
    or more); `margin`, that of probabilities; `kl`, the divergence from what a model says; `feature`, the distance
    from the clean image's features."""
    to: str = "self"
    """kl, feature: whose answers or features: `self`, `base`, a teacher's role, or in evaluation another model."""
    of: Literal["clean", "adversarial"] = "clean"
    """kl: what that model is shown."""
    distance: Literal["l2", "cosine"] = "l2"
    """feature: squared Euclidean distance, or 1 - cosine."""

    @model_validator(mode="after")
    def _said_in_vain(self) -> Climbing:
        if self.loss not in ("kl", "feature") and self.to != "self":
            raise ValueError("`to` says nothing here: it belongs to loss: kl and loss: feature")
        if self.loss != "kl" and self.of != "clean":
            raise ValueError("`of` says nothing here: it belongs to loss: kl")
        if self.loss != "feature" and self.distance != "l2":
            raise ValueError("`distance` says nothing here: it belongs to loss: feature")
        if (self.loss, self.to, self.of) == ("kl", "self", "adversarial"):
            raise ValueError("a model's divergence from itself on one image is 0; take of: clean, or another `to`")
        flat = self.loss == "feature" or (self.loss == "kl" and self.to == "self")
        if flat and not getattr(self, "random_start", True):
            raise ValueError(f"loss: {self.loss} has no slope at the clean image; set random_start: true")
        return self


class PGD(Climbing):
    """Projected gradient ascent."""

    steps: int = Field(10, ge=1)
    """Gradient steps of each restart."""
    step: PixelDistance = 0.0
    """Length of a step in the threat's norm; 0: 2.5 * eps / steps."""
    restarts: int = Field(1, ge=1)
    """Independent starts; each sample keeps the one with the highest objective."""
    momentum: float = Field(0.0, ge=0, le=1)
    """How much of the last direction stays: v <- momentum * v + sign(g), then a step along sign(v)."""
    random_start: bool = True
    """Start anywhere in the ball, not at the clean image."""

    @model_validator(mode="after")
    def _restarts_differ(self) -> PGD:
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts without random_start all end at the same image; set restarts: 1")
        return self


class FGSM(Climbing):
    """The fast gradient sign method."""

    step: PixelDistance = 0.0
    """Length of the step in the threat's norm; 0: eps, or 1.25 * eps from a random start (arXiv 2001.03994)."""
    random_start: bool = False
    """Start anywhere in the ball, not at the clean image."""


# --- against distillation and prompts ---

HAND_WRITTEN = ["a photo of a {}."]
SEVEN = [
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
]
"""The seven templates that Radford et al. (2021, arXiv 2103.00020) found to do best together on ImageNet."""


class TeacherGuided(Config):
    """Away from the teacher."""

    attack: Block = Field(default_factory=lambda: {"use": "apgd"})
    """The attack that climbs; it must climb any objective."""
    teacher: str = "clean"
    """The role of the teacher in the recipe, or `base`."""
    teacher_sees: Literal["clean", "adversarial"] = "clean"
    """The image that the teacher looks at: the clean one, as in APD, or the adversarial one."""
    order: Literal["teacher-student", "student-teacher"] = "teacher-student"
    """KL(teacher || student), which distillation minimises, or KL(student || teacher)."""


class Feature(Config):
    """Away from the clean image's features."""

    attack: Block = Field(default_factory=lambda: {"use": "apgd"})
    """The attack that climbs; it must climb any objective."""
    distance: Literal["l2", "cosine"] = "l2"
    """Squared Euclidean distance, or 1 - cosine."""


class CrossPrompt(Config):
    """With prompts of the attacker's own."""

    attack: Block = Field(default_factory=lambda: {"use": "apgd"})
    """The attack."""
    prompts: Literal["hand-written", "teacher", "ensemble"] = "hand-written"
    """Class features of hand-written templates, averaged; the teacher's own; or several templates, each a classifier of
    its own whose losses are averaged (a loss of the inner attack's own is that of their mean logits)."""
    teacher: str = "clean"
    """Whose prompts, for `teacher`."""
    templates: list[str] = Field(default_factory=list)
    """Sentences with one {} each; empty: `a photo of a {}.`, and for `ensemble` seven of CLIP's."""

    @field_validator("templates")
    @classmethod
    def _fitting(cls, templates: list[str], known: ValidationInfo) -> list[str]:
        if any(template.count("{}") != 1 for template in templates):
            raise ValueError("each template must hold exactly one {}")
        if known.data.get("prompts") == "teacher":
            if templates:
                raise ValueError("the teacher brings its prompts; drop the templates, or set prompts: hand-written")
            return []
        return templates or (SEVEN if known.data.get("prompts") == "ensemble" else HAND_WRITTEN)


class CleanBackbone(Config):
    """On the undefended twin."""

    attack: Block = Field(default_factory=lambda: {"use": "apgd"})
    """The attack."""


class Universal(Config):
    """One perturbation for all images."""

    images: int = Field(500, ge=1)
    """How many training images it is learned on."""
    epochs: int = Field(10, ge=1)
    """Passes over them."""
    batch_size: int = Field(64, ge=1)
    """Images whose mean gradient makes a step."""
    step: PixelDistance = 0.0
    """Length of a step in the threat's norm; 0: eps / 4. (inferred)"""


class FABT(Config):
    """The fast adaptive boundary attack, one target at a time."""

    classes: int = Field(9, ge=1)
    """Classes to aim at, those with the highest logits on the clean image; all others where there are fewer."""
    steps: int = Field(100, ge=1)
    """Steps towards each target."""
    restarts: int = Field(1, ge=1)
    """Runs towards each target; the first starts at the clean image, the others at random half a radius away."""
    alpha_max: float = Field(0.1, ge=0, le=1)
    """The largest weight of the way back to the clean image in a step."""
    eta: float = Field(1.05, ge=1)
    """How far beyond the linearised boundary a step goes, as a factor."""
    beta: float = Field(0.9, gt=0, lt=1)
    """How much of its perturbation a misclassified image keeps before the next step."""
    final_search: int = Field(0, ge=0)
    """Steps of interpolation from the nearest image found back to the boundary: the paper takes 3, the standard
    ensemble's code none."""


class FMN(Config):
    """The fast minimum-norm attack."""

    steps: int = Field(100, ge=1)
    """Gradient steps."""
    step: float = Field(0.0, ge=0)
    """l2 length of the first step, of the last a hundredth of it; 0: 1, and 10 for linf."""
    gamma: float = Field(0.05, gt=0, lt=1)
    """By which share the radius grows or shrinks in the first step; it falls to 0.001."""


class Square(Config):
    """Random search with squares."""

    queries: int = Field(5000, ge=1)
    """Images that the model is asked about, per sample; the stripes (bumps) that it starts from are the first."""
    p_init: float = Field(0.8, gt=0, le=1)
    """Share of the image that the first squares cover."""
    rescale: bool = False
    """Run through the schedule, which is made for 10,000 queries, in as many as there are."""


class RayS(Config):
    """Search for the nearest corner by answers alone."""

    queries: int = Field(10000, ge=1)
    """Images that the model is asked about, per sample."""


class Transfer(Config):
    """Iterated gradient signs, and what makes them transfer."""

    steps: int = Field(10, ge=1)
    """Gradient steps."""
    step: PixelDistance = 0.0
    """Length of a step in the threat's norm; 0: eps / steps, as in the papers."""
    decay: float = Field(0.0, ge=0)
    """How much of the accumulated gradient stays: g <- decay * g + gradient / mean |gradient|; 0: no momentum."""
    kernel: int = Field(1, ge=1)
    """Side of the Gaussian in pixels that smooths the gradient; odd; 1: no smoothing."""
    sigma: float = Field(3.0, gt=0)
    """Standard deviations from the middle of that kernel to its edge."""
    probability: float = Field(0.0, ge=0, le=1)
    """How often an image is made smaller and moved before the model sees it; 0: never."""
    resize_rate: float = Field(0.9, gt=0, le=1)
    """The smallest size that it then gets, as a share of its own."""
    random_start: bool = False
    """Start anywhere in the ball, not at the clean image."""

    @model_validator(mode="after")
    def _kernel_has_a_middle(self) -> Transfer:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: {self.kernel} has no middle; take an odd number")
        return self


class MIFGSM(Transfer):
    """Momentum."""

    decay: float = Field(1.0, ge=0)
    """How much of the accumulated gradient stays."""


class TIFGSM(Transfer):
    """Smoothed gradients."""

    kernel: int = Field(15, ge=1)
    """Side of the Gaussian in pixels that smooths the gradient; odd; 1: no smoothing."""


class DIFGSM(Transfer):
    """Images of random size and place."""

    probability: float = Field(0.5, ge=0, le=1)
    """How often an image is made smaller and moved before the model sees it; 0: never."""


class TIMIDIFGSM(Transfer):
    """Smoothing, momentum and diversity together."""

    decay: float = Field(1.0, ge=0)
    """How much of the accumulated gradient stays."""
    kernel: int = Field(15, ge=1)
    """Side of the Gaussian in pixels that smooths the gradient; odd; 1: no smoothing."""
    probability: float = Field(0.5, ge=0, le=1)
    """How often an image is made smaller and moved before the model sees it; 0: never."""


class RandomNoise(Config):
    """Noise without any question to the model."""

    draws: int = Field(20, ge=1)
    """Images submitted, by turns anywhere in the ball and at its corners; an evaluation counts any that misleads."""


class APGD(Climbing):
    """Projected gradient ascent that sets its own step."""

    steps: int = Field(100, ge=1)
    """Gradient steps of each restart."""
    restarts: int = Field(0, ge=0)
    """Independent starts; 0: one, and five in l1, as the standard ensemble has it."""
    wide: bool = True
    """l1: three tenths of the steps in a ball of 3 eps, three tenths in 2 eps, the rest in eps (arXiv 2103.01208);
    in linf and l2 it changes nothing."""


class APGDTargeted(Config):
    """The same towards one class after the other."""

    loss: Literal["dlr", "cw", "ce"] = "dlr"
    """What is raised; `dlr` needs four classes."""
    steps: int = Field(100, ge=1)
    """Gradient steps for each target."""
    targets: Literal["top", "malt"] = "top"
    """Which classes, and in which order: `top`, by their logits; `malt`, by how near the decision boundary to each
    seems from gradients, out of the 100 with the largest logits (one more pass for each of these)."""
    classes: int = Field(0, ge=0)
    """How many targets, as far as there are; 0: nine, and five in l1, as the standard ensemble has it."""
    restarts: int = Field(1, ge=1)
    """Independent starts for each target."""
    wide: bool = True
    """As for `apgd`."""


class EOT(Config):
    """An attack on a model that draws at random."""

    attack: Block = Field(default_factory=lambda: {"use": "apgd"})
    """The attack."""
    draws: int = Field(20, ge=1)
    """Evaluations that each gradient is the mean of."""


class BPDA(Config):
    """An attack through a stand-in for what has no gradient, or none that leads anywhere."""

    attack: Block = Field(default_factory=lambda: {"use": "apgd"})
    """The attack."""
    through: str = Field("own", min_length=1)
    """Whose gradients: `own`, the model's own stand-ins; or another model's, at the answers of the attacked one:
    `base`, a teacher's role, or in evaluation another model."""


class Unrolled(Config):
    """An attack through the optimisation that a model runs on its input."""

    attack: Block = Field(default_factory=lambda: {"use": "apgd"})
    """The attack."""


def _randomised(loss: str) -> Block:
    return {"use": "eot", "draws": 20, "attack": {"use": "apgd", "loss": loss, "steps": 100, "restarts": 1}}


_CE = {"use": "apgd", "loss": "ce", "steps": 100}
_DLR_T = {"use": "apgd-t", "loss": "dlr", "steps": 100}
_ENSEMBLES: dict[str, list[Block]] = {
    "standard": [_CE, _DLR_T, {"use": "fab-t"}, {"use": "square", "queries": 5000}],
    "rand": [_randomised("ce"), _randomised("dlr")],
    "custom": [],
    "pair": [_CE, _DLR_T],
}


def _whole(block: Block) -> Any:
    """The block with the defaults of what it names, as far as that is ours; any other block comes back as it is."""
    known: dict[str, type[Config]] = {
        "apgd": APGD,
        "apgd-t": APGDTargeted,
        "fab-t": FABT,
        "square": Square,
        "eot": EOT,
    }
    use = block.get("use")
    if use not in known:
        return block
    settings = known[use](**{key: value for key, value in block.items() if key != "use"}).model_dump(mode="json")
    if "attack" in settings:
        settings["attack"] = _whole(settings["attack"])
    return {"use": use, **settings}


def _filled(data: Any, version: str) -> Any:
    """Settings of an ensemble with its list put in where there is none."""
    if isinstance(data, dict) and not data.get("attacks") and version in _ENSEMBLES:
        return {**data, "attacks": _ENSEMBLES[version]}
    return data


class AutoAttack(Config):
    """The standard ensemble."""

    version: Literal["standard", "rand", "custom"] = "standard"
    """`standard`: apgd on cross-entropy, apgd-t, fab-t, square with 5,000 queries; `rand`, for models that draw at
    random: apgd on cross-entropy and on dlr, each with 20 evaluations a gradient; `custom`: what `attacks` says."""
    attacks: list[Block] = Field(default_factory=lambda: _ENSEMBLES["standard"])
    """The attacks, each on what the ones before it left over; any others than the version's own need `custom`."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        return _filled(data, data.get("version", "standard") if isinstance(data, dict) else "")

    @model_validator(mode="after")
    def _keeps_its_name(self) -> AutoAttack:
        if self.version == "custom":
            if not self.attacks:
                raise ValueError("version: custom needs its attacks, such as [{use: apgd}, {use: square}]")
        elif not _same(self.attacks, self.version):
            raise ValueError(f"these are not the attacks of version: {self.version}; call it version: custom")
        return self


class APGDPair(Config):
    """apgd on cross-entropy, then apgd-t."""

    attacks: list[Block] = Field(default_factory=lambda: _ENSEMBLES["pair"])
    """The two; no others."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        return _filled(data, "pair")

    @model_validator(mode="after")
    def _keeps_its_name(self) -> APGDPair:
        if not _same(self.attacks, "pair"):
            raise ValueError("other attacks than apgd-ce-apgd-t's own belong under autoattack, version: custom")
        return self


def _same(attacks: list[Block], version: str) -> bool:
    try:
        return [_whole(block) for block in attacks] == [_whole(block) for block in _ENSEMBLES[version]]
    except ValueError:
        return False
