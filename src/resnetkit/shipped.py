"""The shipped recipes. A docstring is a contract: data, command, hardware, time, score; the figures are in results/."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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


def frozen() -> Recipe:
    """The dense layer alone, from weights whose other layers stay as they are: seconds instead of minutes.

        resnet train photos/ --from weights.safetensors --freeze backbone

    Every picture is embedded once, and its vector kept for the next time; the layer is fitted by L-BFGS, with the
    weight decay that is best on fifths of the training pictures.
    Result: not yet measured
    """
    return Recipe(
        name="frozen",
        data=Data(normalise="weights"),
        augment=Augment(crop="none", flip=False),
        optim=Optim(optimizer="lbfgs", freeze="backbone", weight_decay=0.0),
        run=Run(precision="fp32"),
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


def imagenet_goyal() -> Recipe:
    """ImageNet in large batches (arXiv 1706.02677): 8192 pictures a step, learning rate 3.2 after 5 epochs of warm-up.

        resnet train imagenet/ --recipe imagenet-goyal

    Sec. 5.1: 90 epochs, the rate 0.1 x batch / 256, from 0.1 to it in 5 epochs, cut at 30, 60 and 80; Nesterov momentum
    0.9, weight decay 1e-4 but on normalisation, whose last gamma in a block begins at 0. Another batch: change optim.lr
    in proportion. On one GPU add --set optim.accumulate=64; the paper had 256 P100 for an hour.
    Cost: 115 M pictures, 1.41 E multiply-adds. The paper: 76.26 % (23.74 % wrong, mean of 5).
    Batch statistics are of 32 pictures, as the paper's, on any number of processes.
    Deviation: the dense layer begins as He's (the paper: deviation 0.01), and its bias is not decayed.
    Never run on the whole of ImageNet; a few hundred steps on Tiny ImageNet stand in results/recipes.json.
    Result: not yet measured
    """
    return Recipe(
        name="imagenet-goyal",
        model=Model(arch="resnet50", zero_gamma=True),
        data=Data(size=224, crop=0.875, channels=3, exif=False),
        augment=Augment(crop="resized", scale=(0.08, 1.0)),
        optim=Optim(lr=3.2, momentum=0.9, nesterov=True, weight_decay=1e-4, batch=8192, ghost_batch=32),
        schedule=Schedule(
            epochs=90,
            decay="step",
            milestones=(30 / 90, 60 / 90, 80 / 90),
            warmup_share=5 / 90,
            warmup_start=1 / 32,
        ),
    )


def imagenet_torchvision_v1() -> Recipe:
    """ImageNet as torchvision's first weights: 90 epochs of 256 a step, learning rate 0.1 cut at 30 and 60.

        resnet train imagenet/ --recipe imagenet-torchvision-v1

    From the defaults of its references/classification: momentum 0.9, weight decay 1e-4 on everything, crops of 8 to
    100 % of the area at 224 pixels, mirrored, no warm-up. There it ran on 8 V100 with 32 pictures each.
    Cost: 115 M pictures, 1.41 E multiply-adds. torchvision: 76.13 % (ResNet50_Weights.IMAGENET1K_V1).
    Deviation: batch statistics are over the pictures that are worked off together (there: 32).
    Never run on the whole of ImageNet; a few hundred steps on Tiny ImageNet stand in results/recipes.json.
    Result: not yet measured
    """
    return Recipe(
        name="imagenet-torchvision-v1",
        model=Model(arch="resnet50"),
        data=Data(size=224, crop=0.875, channels=3, exif=False),
        augment=Augment(crop="resized", scale=(0.08, 1.0)),
        optim=Optim(lr=0.1, momentum=0.9, weight_decay=1e-4, decay_all=True, batch=256),
        schedule=Schedule(epochs=90, decay="step", milestones=(1 / 3, 2 / 3), warmup_share=0.0),
    )


def imagenet_torchvision_v2() -> Recipe:
    """ImageNet as torchvision's second weights: 600 epochs at 176 pixels with TrivialAugment, mixup, CutMix and EMA.

        resnet train imagenet/ --recipe imagenet-torchvision-v2

    1024 a step, learning rate 0.5 on a cosine after 5 epochs from 0.005, weight decay 2e-5 but on normalisation,
    label smoothing 0.1, mixup 0.2 or CutMix 1, erasing 0.1, 4 crops of each picture in a batch; scored at 224 of 232.
    torchvision averages every 32 steps with a decay that its script turns from 0.99998 into 0.9989, which is 0.999966 a
    step and stands here. On one GPU add --set optim.accumulate=4; there it ran on 8 GPUs with 128 pictures each.
    Cost: 769 M pictures, 6.01 E multiply-adds. torchvision: 80.86 % (ResNet50_Weights.IMAGENET1K_V2).
    Deviations: the rate moves with every step and falls to 0 (there: every epoch); pictures are mixed with the batch in
    reverse order (there: shifted by one); the average forgets faster in the first third, where its decay is (1 + step)
    / (10 + step); the bias of the dense layer is not decayed.
    Never run on the whole of ImageNet; a few hundred steps on Tiny ImageNet stand in results/recipes.json.
    Result: not yet measured
    """
    return Recipe(
        name="imagenet-torchvision-v2",
        model=Model(arch="resnet50"),
        data=Data(size=224, crop=224 / 232, channels=3, exif=False),
        augment=Augment(
            repeats=4,
            sizes=((0.0, 176),),
            crop="resized",
            scale=(0.08, 1.0),
            policy="trivialaugment",
            erase=0.1,
            erase_area=(0.02, 0.33),
            mixup=0.2,
            cutmix=1.0,
        ),
        optim=Optim(lr=0.5, momentum=0.9, weight_decay=2e-5, batch=1024, label_smoothing=0.1, ema=0.999966),
        schedule=Schedule(epochs=600, warmup_share=5 / 600, warmup_start=0.01),
    )


def imagenet_a1() -> Recipe:
    """ImageNet as A1 of "ResNet strikes back" (arXiv 2110.00476): LAMB and BCE, 600 epochs at 224 pixels.

        resnet train imagenet/ --recipe imagenet-a1

    Table 2: LAMB, 2048 a step, learning rate 5e-3 on a cosine after 5 epochs of warm-up, weight decay 0.01, label
    smoothing 0.1, stochastic depth 0.05, 3 crops of each picture in a batch, RandAugment 7 / 0.5, mixup 0.2 or
    CutMix 1; scored at 224 of 236 (0.95). On one GPU add --set optim.accumulate=8; the paper's took 4.6 days on 4 V100.
    Cost: 768 M pictures, 9.42 E multiply-adds. The paper: 80.4 %.
    As timm's: gradients clipped to a norm of 1, bicubic crops. Targets stay soft, for a threshold would undo smoothing.
    Deviations: warm-up begins at 0 and the cosine ends there (timm: 1e-6, moved every epoch).
    Never run on the whole of ImageNet; a few hundred steps on Tiny ImageNet stand in results/recipes.json.
    Result: not yet measured
    """
    return Recipe(
        name="imagenet-a1",
        model=Model(arch="resnet50", zero_gamma=True),
        data=Data(size=224, crop=0.95, filter="bicubic", channels=3, exif=False),
        augment=Augment(
            repeats=3,
            crop="resized",
            scale=(0.08, 1.0),
            policy="randaugment",
            ops=2,
            magnitude=7.0,
            magnitude_std=0.5,
            mixup=0.2,
            cutmix=1.0,
        ),
        optim=Optim(
            optimizer="lamb",
            lr=5e-3,
            weight_decay=0.01,
            batch=2048,
            clip=1.0,
            loss="bce",
            label_smoothing=0.1,
            stochastic_depth=0.05,
        ),
        schedule=Schedule(epochs=600, warmup_share=5 / 600),
    )


def imagenet_a2() -> Recipe:
    """ImageNet as A2 of "ResNet strikes back": 300 epochs at 224 pixels.

        resnet train imagenet/ --recipe imagenet-a2

    As imagenet-a1 but for: 300 epochs, weight decay 0.02, no label smoothing, mixup 0.1, and targets above 0.2 become
    1, as it is run with timm (--bce-target-thresh 0.2): both classes of a mixed picture count in full.
    Cost: 384 M pictures, 4.71 E multiply-adds. The paper: 79.8 %.
    Never run on the whole of ImageNet; a few hundred steps on Tiny ImageNet stand in results/recipes.json.
    Result: not yet measured
    """
    a1 = imagenet_a1()
    return replace(
        a1,
        name="imagenet-a2",
        augment=replace(a1.augment, mixup=0.1),
        optim=replace(a1.optim, weight_decay=0.02, label_smoothing=0.0, target_threshold=0.2),
        schedule=Schedule(epochs=300, warmup_share=5 / 300),
    )


def imagenet_a3() -> Recipe:
    """ImageNet as A3 of "ResNet strikes back": 100 epochs at 160 pixels, scored at 224.

        resnet train imagenet/ --recipe imagenet-a3

    As imagenet-a2 but for: 100 epochs, learning rate 8e-3, crops of 160 pixels, RandAugment 6 / 0.5, one crop of each
    picture, no stochastic depth.
    Cost: 128 M pictures, 802 P multiply-adds. The paper: 78.1 %.
    Never run on the whole of ImageNet; a few hundred steps on Tiny ImageNet stand in results/recipes.json.
    Result: not yet measured
    """
    a2 = imagenet_a2()
    return replace(
        a2,
        name="imagenet-a3",
        augment=replace(a2.augment, repeats=1, sizes=((0.0, 160),), magnitude=6.0),
        optim=replace(a2.optim, lr=8e-3, stochastic_depth=0.0),
        schedule=Schedule(epochs=100, warmup_share=5 / 100),
    )


def imagenet_fast() -> Recipe:
    """ImageNet in 16 epochs of small pictures: 160 pixels, 192 for the last quarter, scored at 224.

        resnet train imagenet/ --recipe imagenet-fast

    After ffcv-imagenet's 16 epochs of a ResNet-50: these sizes, SGD, label smoothing 0.1, no decay of normalisation;
    the network sees at 224 what it learnt at 192 (arXiv 1906.06423). Ours are 1024 a step, a learning rate of 2.0 on a
    cosine after 2 epochs of warm-up, weight decay 5e-5, and crops of 25 to 100 % of the area. On one GPU add
    --set run.compile=true, and optim.accumulate=4 where memory is short.
    Cost: 20.5 M pictures, 142 P multiply-adds. ffcv-imagenet: 73.8 % in 15 minutes on 8 A100, with BlurPool and with
    mirrored pictures averaged when it scores, which are not done here: expect less.
    Never run on the whole of ImageNet; a few hundred steps on Tiny ImageNet stand in results/recipes.json.
    Result: not yet measured
    """
    return Recipe(
        name="imagenet-fast",
        model=Model(arch="resnet50", zero_gamma=True),
        data=Data(size=224, crop=0.875, channels=3, exif=False),
        augment=Augment(sizes=((0.0, 160), (0.75, 192)), crop="resized", scale=(0.25, 1.0)),
        optim=Optim(lr=2.0, momentum=0.9, nesterov=True, weight_decay=5e-5, batch=1024, label_smoothing=0.1),
        schedule=Schedule(epochs=16, warmup_share=2 / 16),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "small": small,
    "finetune": finetune,
    "frozen": frozen,
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar-paper": cifar_paper,
    "imagenet-paper": imagenet_paper,
    "imagenet-goyal": imagenet_goyal,
    "imagenet-torchvision-v1": imagenet_torchvision_v1,
    "imagenet-torchvision-v2": imagenet_torchvision_v2,
    "imagenet-a1": imagenet_a1,
    "imagenet-a2": imagenet_a2,
    "imagenet-a3": imagenet_a3,
    "imagenet-fast": imagenet_fast,
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
