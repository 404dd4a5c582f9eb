"""What a recipe leaves open ("auto"), decided from the pictures and the weights, each by a rule that is printed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from resnetkit.data.audit import Audit, channel_statistics, shorter_sides
from resnetkit.data.loader import Reader, default_threads
from resnetkit.data.pictures import Data, class_sorted
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.model import Architecture
from resnetkit.optim import frozen_parts, part_names
from resnetkit.recipe import Optim, Recipe
from resnetkit.recipe_file import from_dict, to_dict
from resnetkit.weights import ModelFile, asked_architecture

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)  # the averages of the three
ITERATIONS = 300  # of L-BFGS at most
SHOWN = 200_000  # pictures in a whole training from scratch, where the recipe leaves the length open


@dataclass(frozen=True)
class Resolved:
    """A recipe without "auto", what follows from it, and the rules that were used."""

    recipe: Recipe
    arch: Architecture
    preprocess: Preprocess
    rules: tuple[str, ...]


def resolve(recipe: Recipe, data: Data, audit: Audit, weights: ModelFile | None) -> Resolved:
    """Decide all that is open. `data` is already split; `weights` is what training begins from."""
    rules: list[str] = []
    if recipe.optim.optimizer == "lbfgs" and weights is None:
        raise UserError('optim.optimizer="lbfgs": a backbone that does not learn must have learnt before; give --from')
    recipe = resolve_input(recipe, data, audit, weights, rules)
    if recipe.data.sampling == "balanced" and data.shards is not None:
        raise UserError(
            f'data.sampling="balanced": the pictures of {data.spec} lie in far shards, which are read one group after '
            "the other; set optim.class_weights=1 instead"
        )
    if class_sorted(data, data.splits["train"]):
        raise UserError(
            f"{data.spec}: its pictures are sorted by class, and they lie in shards (or row groups) of which a few are "
            f"read together, so each step would see few classes; shuffle them once: resnet shard {data.spec} FOLDER"
        )
    if data.sets is not None:
        recipe = several(recipe, rules)
    recipe = resolve_length(recipe, len(data.splits["train"]), rules)
    recipe = resolve_run(recipe, rules)
    if recipe.run.watch == "test" and "test" not in data.splits:
        raise UserError(f'run.watch="test": {data.spec} has no such split, only {", ".join(data.splits)}')
    arch = resolve_architecture(recipe, data, weights)
    check_parts(recipe.optim, arch)
    own = {key: getattr(arch, key) for key in ("shortcut", "stride", "preactivation")}
    recipe = replace(recipe, model=replace(recipe.model, arch=arch.name, **own))
    recipe = from_dict(to_dict(recipe), where="the recipe")  # refuses what a resumed run would refuse
    preprocess = make_preprocess(recipe, data, audit, weights)
    if recipe.augment.sizes and len(preprocess.mean) > preprocess.channels:
        raise UserError("augment.sizes: a mean picture fits one size alone; leave it out, or data.normalise=imagenet")
    return Resolved(recipe, arch, preprocess, tuple(rules))


def several(recipe: Recipe, rules: list[str]) -> Recipe:
    """The recipe for pictures with several labels each. Raises UserError for what it knows of one label alone."""
    optim = recipe.optim
    if optim.optimizer == "lbfgs":
        raise UserError('optim.optimizer="lbfgs" (--freeze backbone): fits one label a picture; freeze layer3 instead')
    for key, on in (
        ('data.sampling="balanced"', recipe.data.sampling == "balanced"),
        (f"optim.class_weights={optim.class_weights:g}", optim.class_weights != 0),
        (f"optim.logit_adjustment={optim.logit_adjustment:g}", optim.logit_adjustment != 0),
    ):
        if on:
            raise UserError(f"{key}: makes up for classes of unlike size where a picture has one label; leave it out")
    rules.append("loss: the sum of each label's binary cross-entropy, as a picture may have several")
    return replace(recipe, optim=replace(optim, loss="bce"))


def check_parts(optim: Optim, arch: Architecture) -> None:
    """Raise UserError for what this network cannot freeze or leave out."""
    *backbone, _ = part_names(arch)
    if optim.freeze not in ("none", "backbone", *backbone):
        raise UserError(
            f'optim.freeze="{optim.freeze}": {arch.name} has no such stage; choose from {", ".join(backbone)}, backbone'
        )
    rate = optim.stochastic_depth
    if rate and frozen_parts(arch, optim.freeze) == backbone:
        raise UserError(f"optim.stochastic_depth={rate:g}: a frozen backbone leaves out no block; set it to 0")
    if rate and arch.shortcut == "none":
        raise UserError(
            f"optim.stochastic_depth={rate:g}: {arch.name} has no shortcuts, so nothing would "
            "get past a block that is left out; set it to 0"
        )


def resolve_input(recipe: Recipe, data: Data, audit: Audit, weights: ModelFile | None, rules: list[str]) -> Recipe:
    """Channels, size, stem and crop."""
    if weights is not None:
        recipe = take_over(recipe, weights, rules)
    spec, model, augment = recipe.data, recipe.model, recipe.augment
    if spec.channels == "auto":
        spec = replace(spec, channels=1 if audit.all_grey else 3)
        rules.append(f"{spec.channels} channels: {'every picture is grey' if audit.all_grey else 'colour pictures'}")
    if spec.size == "auto":
        train = data.splits["train"]
        median = int(np.median(shorter_sides(audit, train)))
        size = next((size for size, most in ((32, 40), (64, 80), (96, 112)) if median <= most), 128)
        spec = replace(spec, size=size)
        rules.append(f"input {size} pixels: the median shorter side is {median}")
    assert not isinstance(spec.size, str)
    if model.stem_stride == "auto":
        small = model.arch.endswith("-cifar") or spec.size <= 40
        model = replace(model, stem_stride=1 if small else 2 if spec.size <= 112 else 4)
        rules.append(f"stem stride {model.stem_stride}: follows from the input size and the architecture")
    if augment.crop == "auto":
        augment = replace(augment, crop="pad" if spec.size <= 40 else "resized")
        rules.append(f"crop {augment.crop!r}: follows from the input size")
    largest, name = max([(spec.size, "data.size"), *((side, "augment.sizes") for _, side in augment.sizes)])
    if augment.crop == "scale" and augment.sides[0] < largest:
        raise UserError(
            f"augment.sides={list(augment.sides)}: a crop of {name}={largest} pixels does not fit in a shorter "
            f"side of {augment.sides[0]}; begin them at {largest} or more"
        )
    if augment.colour and spec.channels == 1:
        raise UserError(f"augment.colour={augment.colour:g}: grey pictures have no colour to shift; set it to 0")
    return replace(recipe, data=spec, model=model, augment=augment)


def take_over(recipe: Recipe, weights: ModelFile, rules: list[str]) -> Recipe:
    """What weights decide: the architecture, the channels, and the size where the recipe leaves it open.

    Raises UserError for a wish that contradicts them.
    """
    given, own = weights.preprocess, weights.network.arch
    spec, model = recipe.data, recipe.model
    for key, wish, has in (
        ("model.arch", model.arch, own.name),
        ("model.shortcut", model.shortcut, own.shortcut),
        ("model.stem_stride", model.stem_stride, own.stem_stride),
        ("data.channels", spec.channels, given.channels),
    ):
        if wish not in ("auto", has):
            raise UserError(f"{key}={wish}: the weights have {has}; leave it out")
    if spec.size == "auto":
        spec = replace(spec, size=given.size, resize=given.resize, crop=given.size / given.resize_to)
        rules.append(f"input {given.size} pixels: the weights' own")
    rules.append(f"{own.name}, {given.channels} channels: the weights' own")
    model = replace(
        model,
        arch=own.name,
        shortcut=own.shortcut,
        stride=own.stride,
        stem_stride=own.stem_stride,
        zero_gamma=own.zero_gamma,
        preactivation=own.preactivation,
        norm=own.norm,
        init=own.init,
    )
    return replace(recipe, data=replace(spec, channels=given.channels), model=model)


def resolve_length(recipe: Recipe, pictures: int, rules: list[str]) -> Recipe:
    """Batch, learning rate, epochs and warm-up, from the number of training pictures."""
    optim, schedule = recipe.optim, recipe.schedule
    if optim.optimizer == "lbfgs":
        return resolve_at_once(recipe, pictures, rules)
    if optim.batch == "auto":
        fitting = next((size for size, least in ((128, 10_000), (64, 1_000), (32, 200)) if pictures >= least), 16)
        optim = replace(optim, batch=fitting)
        rules.append(f"batch {fitting}: {pictures:,} training pictures")
    if int(optim.batch) > pictures:
        optim = replace(optim, batch=pictures)
        rules.append(f"batch {pictures}: there are no more training pictures")
    batch = int(optim.batch)
    if optim.lr == "auto":
        optim = replace(optim, lr=0.1 * batch / 128)
        rules.append(f"learning rate {optim.lr:g}: 0.1 for a batch of 128, in proportion")
    if schedule.steps == 0 and schedule.epochs == "auto":
        epochs = min(60, max(15, round(SHOWN / pictures)))
        schedule = replace(schedule, epochs=epochs)
        rules.append(f"{epochs} epochs: about {SHOWN:,} pictures in all, within 15 to 60 epochs")
    per_epoch = pictures // batch
    if schedule.steps:
        steps = schedule.steps
    else:
        assert not isinstance(schedule.epochs, str)
        steps = max(1, round(schedule.epochs * per_epoch))
    schedule = replace(schedule, steps=steps, epochs=steps / per_epoch)
    if schedule.warmup_steps == "auto":
        schedule = replace(schedule, warmup_steps=int(schedule.warmup_share * steps + 1e-9))
        rules.append(f"warm-up {schedule.warmup_steps} steps: {100 * schedule.warmup_share:.3g} % of {steps:,}")
    return replace(recipe, optim=optim, schedule=schedule)


def resolve_at_once(recipe: Recipe, pictures: int, rules: list[str]) -> Recipe:
    """All pictures in a batch, each step an iteration. Raises UserError where the recipe wants another batch."""
    optim, schedule = recipe.optim, recipe.schedule
    if optim.batch not in ("auto", pictures):
        raise UserError(
            f'optim.batch={optim.batch}: "lbfgs" takes all {pictures:,} training pictures at once; leave it out'
        )
    epochs = schedule.steps or (ITERATIONS if schedule.epochs == "auto" else math.ceil(schedule.epochs))
    rules.append(f"at most {epochs} iterations of L-BFGS, each over all {pictures:,} training pictures")
    optim = replace(optim, batch=pictures, lr=1.0)
    return replace(recipe, optim=optim, schedule=replace(schedule, epochs=epochs, steps=epochs, warmup_steps=0))


def resolve_run(recipe: Recipe, rules: list[str]) -> Recipe:
    """Device, precision and threads, from this machine."""
    run = recipe.run
    if run.device == "auto":
        run = replace(run, device="cuda" if torch.cuda.is_available() else "cpu")
    if run.device == "cuda" and not torch.cuda.is_available():
        raise UserError('run.device = "cuda": torch finds no CUDA device here; set it to "cpu" or "auto"')
    if run.cuda_graphs and run.device != "cuda":
        raise UserError(
            f'run.cuda_graphs = true: a GPU replays them, and run.device is "{run.device}"; set it to false'
        )
    if run.precision == "auto":
        native = bf16_is_native(run.device)
        run = replace(run, precision="bf16" if native else "fp32")
        rules.append(f"{run.precision} convolutions: this device {'has' if native else 'lacks'} bf16 instructions")
    if run.threads == "auto":
        run = replace(run, threads=default_threads())
    return replace(recipe, run=run)


def bf16_is_native(device: str) -> bool:
    """Whether this device multiplies bfloat16: a GPU from Ampere on, a CPU with AVX512-BF16 or AMX."""
    if device == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve_architecture(recipe: Recipe, data: Data, weights: ModelFile | None) -> Architecture:
    """The network that is trained: the recipe's, or that of the weights with as many classes as the data have."""
    if weights is not None:
        return replace(weights.network.arch, classes=len(data.classes))
    assert not isinstance(recipe.data.channels, str)
    return asked_architecture(recipe.model, classes=len(data.classes), channels=recipe.data.channels)


def make_preprocess(recipe: Recipe, data: Data, audit: Audit, weights: ModelFile | None) -> Preprocess:
    """The Preprocess that training measures or takes over, and that the model file will carry."""
    spec = recipe.data
    assert not isinstance(spec.size, str)
    assert not isinstance(spec.channels, str)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mean, std = (GREY_MEAN, GREY_STD) if spec.channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)
    own = Preprocess(
        size=spec.size,
        resize=spec.resize,
        resize_to=round(spec.size / spec.crop),
        filter=spec.filter,
        channels=spec.channels,
        order="RGB",
        mean=mean,
        std=std,
        exif=spec.exif,
    )
    if spec.normalise == "weights" and weights is not None:
        given = weights.preprocess
        if len(given.mean) > given.channels and given.size != own.size:
            raise UserError(
                f"data.size={own.size}: the weights subtract a mean picture of {given.size} pixels; keep that size"
            )
        return replace(own, filter=given.filter, order=given.order, mean=given.mean, std=given.std, centre=given.centre)
    if spec.normalise in ("measured", "pixel-mean"):
        train = data.splits["train"]
        measured = channel_statistics(
            data, audit, train, exif=spec.exif, channels=spec.channels, threads=default_threads()
        )
        std = tuple(max(value, 0.01) for value in measured.std)  # pictures of one colour would divide by zero
        own = replace(own, mean=measured.mean, std=std)
        if spec.normalise == "pixel-mean":
            # The paper subtracts the mean alone; the common scale only sets the units, so it stays with one value.
            own = replace(own, mean=mean_picture(data, own), std=(1.0,) * spec.channels)
    return own


def mean_picture(data: Data, preprocess: Preprocess) -> tuple[float, ...]:
    """The average training picture after `Preprocess.fit`, channels first; white is 1; four places."""
    reader = Reader(data, preprocess, threads=1)
    total = np.zeros((preprocess.size, preprocess.size, preprocess.channels))
    for index in data.splits["train"].tolist():
        total += preprocess.fit(reader(index))
    mean = total.transpose(2, 0, 1) / (255 * len(data.splits["train"]))
    return tuple(np.round(mean, 4).ravel().tolist())
