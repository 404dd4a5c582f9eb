"""What was asked for: a frozen tree of plain values. Reading, writing and checking TOML is in `recipe_file`.

`"auto"` stands for a value that follows from the pictures or the network; `runs.resolve` puts the value in its place
and says the rule that gave it, so a run folder's recipe.json holds no "auto".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Auto = Literal["auto"]


@dataclass(frozen=True)
class Model:
    """The network; see `resnetkit.model` for what each choice means."""

    arch: str = "auto"  # a name of `resnetkit.model`; "auto": the weights' own, or resnet18
    shortcut: Literal["auto", "A", "B", "C", "none"] = "auto"
    stride: Literal["auto", "1x1", "3x3"] = "auto"
    stem_stride: int | Auto = "auto"
    zero_gamma: bool = False
    preactivation: bool = False  # True, or a name such as resnetv2_50
    norm: Literal["batch", "none"] = "batch"
    init: Literal["he", "xavier", "small"] = "he"


@dataclass(frozen=True)
class Data:
    """Which pictures, and how a picture becomes the network's input."""

    size: int | Auto = "auto"  # side of the square input, pixels
    resize: Literal["shorter", "stretch"] = "shorter"
    crop: float = 1.0  # evaluation: side of the centre crop / shorter side after resizing; 0.875 is 224 of 256
    filter: Literal["bilinear", "bicubic", "box", "lanczos"] = "bilinear"
    channels: int | Auto = "auto"  # 1 grey, 3 RGB
    normalise: Literal["imagenet", "measured", "pixel-mean", "weights"] = "imagenet"
    exif: bool = True  # turn the picture as its EXIF orientation says
    val: float = 0.2  # share of the training pictures kept back where the data have no validation split
    bad: Literal["stop", "skip"] = "stop"
    sampling: Literal["uniform", "balanced"] = "uniform"  # "balanced": an epoch shows every class equally often


@dataclass(frozen=True)
class Augment:
    """Random changes to a training picture; each a pure function of (seed, epoch, position)."""

    repeats: int = 1  # crops of each picture in a batch; an epoch then shows so many times fewer pictures (1902.05509)
    # Side of the training input from a share of the training on, as (share, pixels); () is data.size throughout.
    sizes: tuple[tuple[float, int], ...] = ()
    crop: Literal["none", "pad", "resized", "scale"] | Auto = "auto"
    pad: int = 4  # pixels on each side, for crop = "pad"
    scale: tuple[float, float] = (0.25, 1.0)  # share of the area, for crop = "resized"
    ratio: tuple[float, float] = (0.75, 4 / 3)  # width / height, for crop = "resized"
    sides: tuple[int, int] = (256, 480)  # shorter side after resizing, pixels, both included, for crop = "scale"
    flip: bool = True
    colour: float = 0.0  # standard deviation of the shift along ImageNet's colour axes, AlexNet's is 0.1; 0 is off
    jitter: float = 0.0  # brightness, contrast and saturation, each by a factor in [1 - jitter, 1 + jitter]
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"  # randomly chosen operations; `data.policies`
    ops: int = 2  # operations that "randaugment" chooses, each then done with probability 1/2
    magnitude: float = 7.0  # of "randaugment", 10 is the strongest
    magnitude_std: float = 0.5  # its standard deviation from operation to operation
    erase: float = 0.0  # probability of random erasing (arXiv 1708.04896)
    erase_area: tuple[float, float] = (0.02, 0.4)  # of the picture, that is erased
    mixup: float = 0.0  # alpha of the Beta distribution (arXiv 1710.09412); 0 is off
    cutmix: float = 0.0  # alpha (arXiv 1905.04899); 0 is off; with mixup too, each batch takes one of the two


@dataclass(frozen=True)
class Optim:
    """The optimizer and what changes the loss."""

    # "lamb": arXiv 1904.00962; "lbfgs": the dense layer alone, on vectors of all pictures at once; see `head`.
    optimizer: Literal["sgd", "lamb", "lbfgs"] = "sgd"
    lr: float | Auto = "auto"  # the highest learning rate of the schedule
    momentum: float = 0.9  # LAMB: of the first moment; that of the second is 0.999
    nesterov: bool = False
    weight_decay: float = 1e-4  # "lbfgs": 0 is the best of a few on pictures left out
    decay_all: bool = False  # True decays batch-norm weights and biases too, as the paper does
    batch: int | Auto = "auto"  # pictures per step
    accumulate: int = 1  # a step's batch, or each process' share of it, is worked off in this many parts
    ghost_batch: int = 0  # batch norm's statistics are of groups of so many pictures (arXiv 1705.08741); 0 is off
    sync_norm: bool = False  # they are of all that the processes see at a time, instead of what each of them does
    clip: float = 0.0  # largest gradient norm; 0 is off
    loss: Literal["cross-entropy", "bce"] = "cross-entropy"  # "bce": each class is a yes or no (arXiv 2110.00476)
    target_threshold: float = 0.0  # for "bce": targets above it, after smoothing and mixing, become 1, the others 0
    label_smoothing: float = 0.0
    class_weights: float = 0.0  # a picture's loss is divided by its class's number to this power; 0 is off
    logit_adjustment: float = 0.0  # so many times log(share of the class) is added to logits (2007.07314); 0 is off
    ema: float = 0.0  # decay per step of the averaged weights that are evaluated and kept; 0 is off
    stochastic_depth: float = 0.0  # probability of skipping the last block; less before it (arXiv 1603.09382); 0 is off
    # Parts that do not learn, from the input up to and including this one; "backbone": all but the dense layer.
    freeze: Literal["none", "stem", "layer1", "layer2", "layer3", "backbone"] = "none"
    layer_decay: float = 1.0  # factor of lr in the last stage; its square in the stage before, and so on to the stem


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of progress, in shares of the whole training."""

    epochs: float | Auto = "auto"
    steps: int = 0  # > 0: the length in steps, instead of epochs; "lbfgs": the most iterations
    decay: Literal["cosine", "step"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)  # shares of progress, for decay = "step"
    gamma: float = 0.1  # factor at each milestone
    warmup_steps: int | Auto = "auto"  # "auto": warmup_share of all steps
    warmup_share: float = 0.05
    warmup: Literal["linear", "constant"] = "linear"
    warmup_start: float = 0.0  # factor of lr at the first step (linear) or during the whole warm-up (constant)


@dataclass(frozen=True)
class Run:
    """How it is run; nothing here is meant to change what is learnt, but for seed and precision."""

    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = True
    deterministic: bool = True
    compile: bool = False  # torch.compile: pays after the minutes that it takes, on a GPU above all
    cuda_graphs: bool = False  # with compile, on a GPU: its kernels are recorded once and replayed
    activation_checkpointing: bool = False  # computes blocks a second time instead of keeping what they gave
    threads: int | Auto = "auto"  # that read and decode pictures
    cache_mb: int = 1024  # decoded pictures kept in memory when all of them fit
    watch: Literal["val", "test"] = "val"  # the split scored on the way, where the pictures have it
    eval_epochs: int = 1  # evaluate every so many epochs, and after the last
    checkpoint_steps: int = 500
    checkpoint_minutes: float = 5.0


@dataclass(frozen=True)
class Recipe:
    """One training run, whole. `name` says which shipped recipe it began as."""

    name: str = "small"
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    run: Run = field(default_factory=Run)
