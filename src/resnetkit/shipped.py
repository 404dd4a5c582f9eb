"""The shipped recipes. A docstring is a contract: data, command, hardware, time, score; the figures are in results/."""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc

from resnetkit.errors import UserError, nearest
from resnetkit.recipe import Augment, Data, Model, Optim, Recipe, Run, Schedule


def small() -> Recipe:
    """A folder of pictures, from scratch: ResNet-18 with a size, stem and length that follow from the pictures.

        resnet train photos/

    The default. About 200,000 pictures are shown in all; with few pictures of a hard subject, weights to begin from
    (`--from`) are worth more than any setting here.
    Result: results/tiny-imagenet-10.json
    69.00 % (345 of 500; 95 % interval 64.81 to 72.90); 19 min a run on 2 cores of an AMD EPYC.
    """
    return Recipe(
        name="small",
        model=Model(zero_gamma=True),
        optim=Optim(nesterov=True, weight_decay=5e-4, label_smoothing=0.1),
        augment=Augment(jitter=0.0),
    )


def finetune() -> Recipe:
    """From a model file or published weights to other classes, at the weights' own size and normalisation.

        resnet train photos/ --from weights.safetensors

    The default with `--from`. The dense layer starts anew unless the classes are the same ones. Measured on ten classes
    of Tiny ImageNet, from the network that `small` made of ten others.
    Result: results/finetune.json
    68.20 % (341 of 500; 95 % interval 63.99 to 72.13); 11 min a run on 2 cores of an AMD EPYC.
    """
    return Recipe(
        name="finetune",
        data=Data(normalise="weights"),
        optim=Optim(lr=0.01, batch=32, nesterov=True, label_smoothing=0.1),
        schedule=Schedule(epochs=15),
    )


def digits() -> Recipe:
    """scikit-learn's digits, 8x8 grey pictures, enlarged to 16x16, with a ResNet-20.

        make demo

    Result: results/digits.json
    99.72 % (mean of 5 seeds, sd 0.34); 17 s a run on 2 cores of an AMD EPYC.
    """
    return Recipe(
        name="digits",
        model=Model(arch="resnet20-cifar"),
        data=Data(size=16, channels=1, normalise="measured"),
        augment=Augment(crop="pad", pad=2, flip=False),
        optim=Optim(lr=0.1, nesterov=True, weight_decay=5e-4, batch=64),
        schedule=Schedule(epochs=40),
        run=Run(eval_epochs=5),
    )


def fashion_mnist() -> Recipe:
    """Fashion-MNIST, 28x28 grey pictures, with a ResNet-20; 5 % of the training pictures kept back for the curves.

        resnet train fashion-mnist:DIR --recipe fashion-mnist

    Result: results/fashion-mnist.json
    94.19 % (mean of 3 seeds, sd 0.23); 11 min a run on 2 cores of an AMD EPYC.
    """
    return Recipe(
        name="fashion-mnist",
        model=Model(arch="resnet20-cifar"),
        data=Data(size=28, channels=1, normalise="measured", val=0.05),
        augment=Augment(crop="pad", pad=2, erase=0.25),
        optim=Optim(lr=0.1, nesterov=True, weight_decay=5e-4, batch=128),
        schedule=Schedule(epochs=20),
    )


def cifar_paper() -> Recipe:
    """CIFAR-10 as in Sec. 4.2 of the paper: 45k/5k, 64k steps of 128, learning rate 0.1 cut at 32k and 48k.

        resnet train cifar10:DIR --recipe cifar-paper --model resnet20-cifar

    Weight decay 1e-4 on everything, option A shortcuts, per-pixel mean, pad 4, crop, flip, the single 32x32 view.
    Networks of 110 layers: add --set schedule.warmup_steps=400. Deviations: that warm-up has a fixed length (the paper
    ends it when the training error is below 80 %, after about 400 steps); the mean picture is subtracted after the crop
    and padding is in the mean colour (the paper subtracts, then pads with zeros); one device instead of two.
    Result: not yet measured
    """
    return Recipe(
        name="cifar-paper",
        model=Model(arch="resnet20-cifar"),
        data=Data(size=32, channels=3, normalise="pixel-mean", val=0.1, exif=False),
        augment=Augment(crop="pad", pad=4),
        optim=Optim(lr=0.1, weight_decay=1e-4, decay_all=True, batch=128),
        schedule=Schedule(steps=64000, decay="step", warmup_steps=0, warmup="constant", warmup_start=0.1),
    )


def imagenet_paper() -> Recipe:
    """ImageNet as in Sec. 3.4 of the paper: 224 of 256 to 480 pixels, 600k steps of 256, learning rate 0.1 cut thrice.

        resnet train imagenet/ --recipe imagenet-paper

    Random scale, crop and flip, AlexNet's colour shift, per-pixel mean, weight decay 1e-4 on everything, momentum 0.9,
    no warm-up, no dropout, fp32; ResNet-50 with option B and the stride in the 1x1. The other networks of tables 2
    and 3: --model plain18, plain34, resnet18, resnet34, resnet101 or resnet152; --set model.shortcut=A for option A, as
    in table 2, or C. Deviations: the rate is cut at 150k, 300k and 450k steps (the paper cuts it when the error
    plateaus); the mean picture is that of the centre crops; shifted colours are clipped at black and white, and along
    fb.resnet.torch's eigenvectors (the paper prints none); the score is that of one centre crop of 224 from a shorter
    side of 256 (tables 2 and 3 average ten crops); one device.
    Result: not yet measured
    """
    return Recipe(
        name="imagenet-paper",
        model=Model(arch="resnet50", stride="1x1"),
        data=Data(size=224, crop=0.875, channels=3, normalise="pixel-mean", exif=False),
        augment=Augment(crop="scale", sides=(256, 480), colour=0.1),
        optim=Optim(lr=0.1, momentum=0.9, weight_decay=1e-4, decay_all=True, batch=256),
        schedule=Schedule(steps=600000, decay="step", milestones=(0.25, 0.5, 0.75), gamma=0.1, warmup_steps=0),
        run=Run(precision="fp32"),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "small": small,
    "finetune": finetune,
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar-paper": cifar_paper,
    "imagenet-paper": imagenet_paper,
}


def recipes() -> dict[str, Recipe]:
    """The shipped recipes by name."""
    return {name: make() for name, make in RECIPES.items()}


def shipped(name: str) -> Recipe:
    """The shipped recipe of that name. Raises UserError with the nearest one."""
    if name not in RECIPES:
        raise UserError(f"recipe {name!r}: choose from {', '.join(RECIPES)}, or a .toml file{nearest(name, RECIPES)}")
    return RECIPES[name]()


def contract(name: str) -> str:
    """What the recipe is for, its command and where its measured result stands."""
    return cleandoc(RECIPES[name].__doc__ or "")
