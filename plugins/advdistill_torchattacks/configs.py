"""Settings of the torchattacks zoo: that library's words, and its defaults (3.5.1) unless a field says otherwise.

Never settings: `eps` and `norm` (the recipe's threat), `seed` (the run's noise), `verbose`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from advdistill import Config, PixelDistance


class Settings(Config):
    """What the adapter must know of every attack."""

    attack: ClassVar[str]
    """The class in `torchattacks`."""
    one_by_one: ClassVar[bool] = False
    """It loops over samples anyway; given one at a time, its queries and its draws belong to that sample."""

    @property
    def fewest_classes(self) -> int:
        """Its loss needs that many."""
        return 2


class FGSM(Settings):
    """One step of length eps."""

    attack: ClassVar[str] = "FGSM"


class FFGSM(Settings):
    """One step from a uniform random start."""

    attack: ClassVar[str] = "FFGSM"

    alpha: PixelDistance = 10 / 255
    """Length of the step."""


class Iterative(Settings):
    """What all attacks that take steps share."""

    alpha: PixelDistance = 2 / 255
    """Length of a step."""
    steps: int = Field(10, ge=1)
    """How many steps."""


class BIM(Iterative):
    """PGD without a random start."""

    attack: ClassVar[str] = "BIM"


class RFGSM(Iterative):
    """Iterated FGSM from a random corner of the box of radius alpha."""

    attack: ClassVar[str] = "RFGSM"


class TPGD(Iterative):
    """Ascent on KL(clean || adversarial), as TRADES trains against; ignores labels."""

    attack: ClassVar[str] = "TPGD"


class PGD(Iterative):
    """Projected gradient descent on cross-entropy; the last iterate."""

    attack: ClassVar[str] = "PGD"

    random_start: bool = True
    """Start anywhere in the ball."""


class PGDL2(Iterative):
    """The same in l2."""

    attack: ClassVar[str] = "PGDL2"

    alpha: PixelDistance = 0.2
    """Length of a step in l2; the library's default fits eps = 1, choose it to fit yours."""
    random_start: bool = True
    """Start anywhere in the ball."""


class EOTPGD(PGD):
    """PGD on a gradient averaged over several looks, for models with randomness inside."""

    attack: ClassVar[str] = "EOTPGD"

    eot_iter: int = Field(2, ge=1)
    """Looks a step."""


class Jitter(PGD):
    """PGD on a squared error of noisy, rescaled softmax outputs."""

    attack: ClassVar[str] = "Jitter"

    scale: float = Field(10, gt=0)
    """Sharpness of the softmax."""
    std: float = Field(0.1, ge=0)
    """Standard deviation of the noise on its outputs."""


class MIFGSM(Iterative):
    """FGSM with momentum."""

    attack: ClassVar[str] = "MIFGSM"

    decay: float = Field(1.0, ge=0)
    """How much of the accumulated gradient stays."""


class NIFGSM(MIFGSM):
    """FGSM with Nesterov momentum."""

    attack: ClassVar[str] = "NIFGSM"


class SINIFGSM(MIFGSM):
    """NI-FGSM averaged over darkened copies of the image."""

    attack: ClassVar[str] = "SINIFGSM"

    m: int = Field(5, ge=1)
    """Copies."""


class VMIFGSM(MIFGSM):
    """MI-FGSM with the gradient's variance in the neighbourhood taken off."""

    attack: ClassVar[str] = "VMIFGSM"

    N: int = Field(5, ge=1)
    """Neighbours a step."""
    beta: float = Field(1.5, gt=0)
    """Reach of the neighbourhood, in eps."""


class VNIFGSM(VMIFGSM):
    """The same with Nesterov momentum."""

    attack: ClassVar[str] = "VNIFGSM"


class UPGD(MIFGSM):
    """PGD with momentum and a choice of loss. The margin loss is left out: it ignores negative logits."""

    attack: ClassVar[str] = "UPGD"

    random_start: bool = False
    """Start anywhere in the ball."""
    loss: Literal["ce", "dlr"] = "ce"
    """Cross-entropy, or the difference of logits ratio (three classes at least)."""
    eot_iter: int = Field(1, ge=1)
    """Looks a step."""

    @property
    def fewest_classes(self) -> int:
        return 3 if self.loss == "dlr" else 2


class DIFGSM(Iterative):
    """FGSM through random resizing and padding, one draw for the whole batch."""

    attack: ClassVar[str] = "DIFGSM"

    decay: float = Field(0.0, ge=0)
    """How much of the accumulated gradient stays; 1.0 is the paper's M-DI."""
    resize_rate: float = Field(0.9, gt=0, lt=1)
    """Smallest side after resizing, as a part of the image's."""
    diversity_prob: float = Field(0.5, ge=0, le=1)
    """How often a step resizes."""
    random_start: bool = False
    """Start anywhere in the ball."""


class TIFGSM(DIFGSM):
    """FGSM with a smoothed gradient. The library's is TI *and* DI without momentum; for TI-FGSM alone set
    `diversity_prob: 0`, for the paper's TI-MI-FGSM `decay: 1.0` too."""

    attack: ClassVar[str] = "TIFGSM"

    kernel_name: Literal["gaussian", "linear", "uniform"] = "gaussian"
    """Shape of the smoothing kernel."""
    len_kernel: int = Field(15, ge=1)
    """Its side in pixels."""
    nsig: float = Field(3, gt=0)
    """How many standard deviations of the Gaussian it spans to each side."""


class APGD(Settings):
    """Auto-PGD. A sample that it cannot break comes back clean, so it is for evaluation, not for training."""

    attack: ClassVar[str] = "APGD"

    steps: int = Field(10, ge=1)
    """Steps of each restart; AutoAttack takes 100."""
    n_restarts: int = Field(1, ge=1)
    """Independent starts."""
    loss: Literal["ce", "dlr"] = "ce"
    """Cross-entropy, or the difference of logits ratio (three classes at least)."""
    eot_iter: int = Field(1, ge=1)
    """Looks a step."""
    rho: float = Field(0.75, gt=0, lt=1)
    """The step is halved where fewer than this part of the last ones went up."""

    @property
    def fewest_classes(self) -> int:
        return 3 if self.loss == "dlr" else 2


class APGDT(Settings):
    """Auto-PGD towards the likeliest wrong classes in turn. For evaluation, as APGD; at least four classes."""

    attack: ClassVar[str] = "APGDT"

    steps: int = Field(10, ge=1)
    """Steps of each restart; AutoAttack takes 100."""
    n_restarts: int = Field(1, ge=1)
    """Independent starts for each target."""
    targets: int = Field(9, ge=1)
    """How many wrong classes to aim at, at most all; the library would take all 999 of ImageNet."""
    eot_iter: int = Field(1, ge=1)
    """Looks a step."""
    rho: float = Field(0.75, gt=0, lt=1)
    """The step is halved where fewer than this part of the last ones went up."""

    @property
    def fewest_classes(self) -> int:
        return 4


class Square(Settings):
    """Random search by coloured squares; needs no gradient. For evaluation, as APGD."""

    attack: ClassVar[str] = "Square"

    n_queries: int = Field(5000, ge=1)
    """Looks at the model for each sample."""
    n_restarts: int = Field(1, ge=1)
    """Independent starts."""
    p_init: float = Field(0.8, gt=0, le=1)
    """Part of the pixels that the first squares cover."""
    loss: Literal["margin", "ce"] = "margin"
    """What a square must improve."""
    resc_schedule: bool = True
    """Shrink the squares over `n_queries`, not over 10,000; AutoAttack does not."""


class SPSA(Settings):
    """Gradient estimated from random differences; needs none of the model's."""

    attack: ClassVar[str] = "SPSA"

    delta: PixelDistance = 0.01
    """Length of the differences."""
    lr: float = Field(0.01, gt=0)
    """Adam's learning rate, near the length of a step in pixel units."""
    nb_iter: int = Field(1, ge=1)
    """Steps."""
    nb_sample: int = Field(128, ge=1)
    """Directions a step, two looks each."""
    max_batch_size: int = Field(64, ge=1)
    """Directions held in memory at a time; the model sees them in smaller portions."""


class OnePixel(Settings):
    """Differential evolution over a few pixels: as many as the l0 ball holds, three values each."""

    attack: ClassVar[str] = "OnePixel"
    one_by_one: ClassVar[bool] = True

    steps: int = Field(10, ge=1)
    """Generations."""
    popsize: int = Field(10, ge=1)
    """Candidates of a generation (at least one for each number that is searched)."""
    inf_batch: int = Field(128, ge=1)
    """Candidates that the model sees at a time."""


class Pixle(Settings):
    """Copies patches of pixels elsewhere. It knows no radius: the largest changes that fit the l0 ball are kept."""

    attack: ClassVar[str] = "Pixle"
    one_by_one: ClassVar[bool] = True

    x_dimensions: tuple[int, int] = (2, 10)
    """Smallest and largest width of a patch in pixels."""
    y_dimensions: tuple[int, int] = (2, 10)
    """Smallest and largest height of a patch in pixels."""
    pixel_mapping: Literal["random", "similarity", "similarity_random", "distance", "distance_random"] = "random"
    """Where its pixels go."""
    restarts: int = Field(20, ge=1)
    """Patches that may pile up; unused with `update_each_iteration`."""
    max_iterations: int = Field(10, ge=1)
    """Tries for each."""
    update_each_iteration: bool = False
    """Keep every try that helps."""
