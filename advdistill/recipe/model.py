"""The shape of a recipe: what the host itself understands. What follows `use:` in a block belongs to a plugin."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, model_validator

from advdistill.hooks.specs import Norm
from advdistill.recipe.fields import Bytes, Config, PixelDistance

FORMAT = 1

Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Blocks are checked by the plugin they name. In the JSON schema "block" stands for all plugins of the kind; see schema.
Block = dict[str, Any]
AttackBlock = Annotated[Block, WithJsonSchema({"block": "attack"})]
TeacherBlock = Annotated[Block, WithJsonSchema({"block": "teacher"})]


class CheckpointConfig(Config):
    """Settings of the teacher `checkpoint`."""

    path: str
    """An advdistill checkpoint: a path, or `package:file` for one that an installed package ships."""


class Learning(Config):
    """How a teacher changes in a run; these keys stand in its block beside its own. By default it is frozen."""

    train: bool = False
    """It learns from the strategy's losses."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """It is the student's exponential moving average with this decay: t <- ema * t + (1 - ema) * s after each step; 0:
    it is not. All other keys of its block must say what the student's say."""

    @model_validator(mode="after")
    def _one_way(self) -> Learning:
        if self.train and self.ema:
            raise ValueError("a teacher that follows the student (ema) does not train")
        return self


class Portion(Config):
    """What of a data set takes part; these keys stand in its block beside its own."""

    half: Literal["all", "base", "new"] = "all"
    """`base`: the first half of the classes, one more where their number is odd; `new`: the others. CoOp's base-to-new
    protocol trains on the one and measures on both (arXiv 2109.01134, 2203.05557)."""
    sealed: bool = False
    """The run cannot open the test split: nothing can be chosen by it. `advdistill evaluate` opens it afterwards."""
    manifest: str = ""
    """A manifest of an earlier run: the samples that it lists are used, and no others, whatever the data set's own
    settings would draw; "": none."""
    on_error: Literal["stop", "skip"] = "stop"
    """What becomes of an image that cannot be read. `stop`: an error names it. `skip`: all images are looked at before
    they are used; those that cannot be read take no part, after shots were drawn. The run's manifest names them, and
    the statement of every number counts those of its split."""


class Threat(Config):
    """What the attacker may change."""

    norm: Norm = "linf"
    """Norm that bounds the perturbation of an image."""
    eps: PixelDistance
    """Radius on the [0, 1] pixel scale, written like `8/255`; for l0 the number of values."""


class Schedule(Config):
    """How the learning rate moves."""

    use: Literal["constant", "cosine"] = "cosine"
    """`cosine` falls to 0 at the last step; `constant` stays."""
    warmup: NotNegative = 0.0
    """Warm-up at the start: below 1 a share of all steps, from 1 on a number of steps."""
    warmup_lr: NotNegative = 0.0
    """Learning rate during the warm-up; 0: a linear ramp up to `lr`."""


class Group(Config):
    """Settings of the optimizer for one model of the run; what is null is as for all."""

    lr: Rate | None = None
    """Learning rate of this model."""
    weight_decay: NotNegative | None = None
    """Weight decay of this model."""


class Optim(Config):
    """The optimizer."""

    use: Literal["adamw", "sgd"] = "adamw"
    """Which one."""
    lr: Rate
    """Peak learning rate."""
    weight_decay: NotNegative = 0.0
    """Decoupled (adamw) or L2 (sgd) weight decay."""
    decay: Literal["matrices", "all"] = "matrices"
    """What decays: tensors of two or more dimensions, or all, biases, norms and scales included."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd; adamw does not look at it."""
    clip_norm: NotNegative = 0.0
    """Largest norm of the gradient over all trainables; 0: no clipping."""
    schedule: Schedule = Schedule()
    """How the learning rate moves."""
    groups: dict[str, Group] = Field(default_factory=dict)
    """Other settings for the `student`, or for the teacher of a role, where it trains."""


class Train(Config):
    """How long and in which portions. Exactly one of `steps` and `epochs` is positive."""

    steps: Natural = 0
    """Optimizer steps in all."""
    epochs: Natural = 0
    """Passes over the training data."""
    batch_size: Positive = 64
    """Images in one optimizer step, over all processes and accumulated portions together."""
    accumulate: Positive | Literal["auto"] = 1
    """Portions that a batch is worked through in, to save memory; `auto`: as few as fit, found before training by
    trying. Changes no number, but for what draws at random inside models (dropout), models that learn by a batch's
    statistics, and methods that look at a batch's samples together, which say so; `auto` portions neither of those."""
    eps_warmup: NotNegative = 0.0
    """The training attack's radius grows evenly from 0 to `threat.eps`: over this share of all steps if below 1, from 1
    on over this number of steps. Keeps adversarial training from scratch from collapsing."""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """Arithmetic of the towers in training; `auto`: bf16 on CUDA, else fp32. Pixels, normalisation, patch embedding,
    logits and losses are always fp32, and so is every evaluation."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether torch compiles the towers; `auto`: on CUDA. Where it fails they run as they are, and the run says so; in
    tf32 they always do."""
    class_chunk: Natural | Literal["auto"] = "auto"
    """Class features are computed for so many classes at a time, and once more in the backward pass, so that memory
    does not grow with their number; 0: all at once; `auto`: at most 1,024 at a time. Changes no number."""
    cache_teachers: Literal["off", "memory", "disk"] = "memory"
    """What frozen teachers say of images that are not augmented is found once and kept: in memory, where there is more
    than one epoch, or on disk for later runs too. Adversarial images are new in each step and never kept."""
    cache_dir: str = "~/.cache/advdistill/teachers"
    """Folder of what is kept on disk: a file for each teacher, data set and precision, found again only where not a
    weight, image or setting has changed. Its files can be deleted at any time."""
    cache_limit: Bytes = Field(2 * 2**30, validate_default=False)
    """What teachers say is kept as long as all of it takes no more than this, in each process."""
    keep_images: Bytes = Field(2 * 2**30, validate_default=False)
    """Decoded training images stay in memory, 8 bits a value, if all of them, in every process of a machine, take no
    more than this; 0: they never do."""
    workers: Natural | Literal["auto"] = "auto"
    """Processes that decode image files, in each training process; 0: the training process itself; `auto`: one for each
    core but one, at most 8, divided among a machine's training processes; none for fewer than 256 images that stay in
    memory."""


class Probe(Config):
    """The small measurement that is taken while training."""

    split: Literal["val", "test"] = "val"
    """Samples it looks at."""
    limit: Positive = 128
    """How many of them, evenly over the classes."""
    attack: AttackBlock | None = None
    """Attack for robust accuracy; null: the one of training."""


class Protocol(Config):
    """One column of the final table."""

    name: Annotated[str, Field(min_length=1)]
    """Its heading."""
    attack: AttackBlock | None = None
    """The attack; null: clean accuracy."""
    threat: Threat | None = None
    """The threat; null: the recipe's."""
    split: Literal["val", "test"] = "test"
    """Samples it looks at."""
    limit: Natural = 0
    """How many of them, evenly over the classes; 0: all."""


class Evaluate(Config):
    """What is measured, and when."""

    every: Natural = 0
    """Optimizer steps between probes; 0: none."""
    batch_size: Positive = 256
    """Images in one portion; changes speed, not numbers."""
    probe: Probe = Probe()
    """The small measurement while training."""
    select: Literal["none", "clean", "robust", "harmonic"] = "none"
    """The probe's number that picks `best.safetensors`; harmonic: the harmonic mean of both."""
    protocols: list[Protocol] = Field(default_factory=lambda: [Protocol(name="clean")])
    """The columns of the final table."""
    undefended: bool = True
    """Measure the undefended model too."""
    teachers: bool = True
    """Measure the teachers too, before the training starts."""
    controls: dict[str, str] = Field(default_factory=dict)
    """Heading -> checkpoint of further models to measure."""


class Save(Config):
    """What is written, and where."""

    dir: str = "runs/{name}"
    """The run's folder; `{name}` stands for the recipe's name."""
    every: Natural = 0
    """Optimizer steps between resume points; 0: only at the end."""
    dtype: Literal["fp32", "fp16"] = "fp32"
    """How the trained tensors are stored."""


class RecipeModel(Config):
    """A recipe of advdistill: everything a run depends on."""

    advdistill: Annotated[int, Field(ge=1)]
    """Format of the recipe: 1."""
    name: Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]
    """Name of the run; the file's name where it is not given."""
    plugins: list[str] = Field(default_factory=list)
    """Single-file plugins to load, relative to the recipe."""
    seed: Natural = 0
    """Seed of everything random."""
    threat: Threat
    """Norm and radius, for training and for evaluation unless a protocol says otherwise."""
    data: Annotated[Block, WithJsonSchema({"block": "dataset"})]
    """The dataset."""
    teachers: dict[Annotated[str, Field(pattern=r"^[a-z]\w*$")], TeacherBlock] = Field(default_factory=dict)
    """Role -> teacher. `train: true` in a block lets that teacher learn, `ema: 0.999` makes it follow the student."""
    student: Annotated[Block, WithJsonSchema({"block": "student"})]
    """The model that is hardened."""
    attack: AttackBlock | None = None
    """The attack of training."""
    strategy: Annotated[Block, WithJsonSchema({"block": "strategy"})]
    """The training method."""
    optim: Optim
    """The optimizer."""
    train: Train
    """How long and in which portions."""
    evaluate: Evaluate = Evaluate()
    """What is measured, and when."""
    save: Save = Save()
    """What is written, and where."""
    report: list[Annotated[Block, WithJsonSchema({"block": "reporter"})]] = Field(
        default_factory=lambda: [{"use": "console"}, {"use": "jsonl"}]
    )
    """Who reports on the run."""
