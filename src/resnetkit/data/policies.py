"""Operations on a training picture, chosen and dosed at random: RandAugment and TrivialAugment.

  randaugment     arXiv 1909.13719 in the form of timm's `rand-mM-mstdS-inc1`: each of `ops` operations is one of 15 and
                  is done with probability 1/2, at a strength drawn around `magnitude` and cut to 0 … 10; all grow with
                  it. What comes in from outside the picture has the mean colour.
  trivialaugment  arXiv 2103.10158 in the form of torchvision's `TrivialAugmentWide`: one of 14 operations, at one of 31
                  strengths. What comes in from outside is black.

All is a pure function of the picture and SLOTS uniform numbers. The operations are Pillow's.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

if TYPE_CHECKING:
    from resnetkit.recipe import Augment

Pixels = NDArray[np.uint8]
PICK, DONE, STRENGTH, SIGN = range(4)  # the numbers of one operation
MOST = 4  # operations
SLOTS = 4 * MOST

Name = Literal[
    "identity",
    "autocontrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize-add",
    "colour",
    "contrast",
    "brightness",
    "sharpness",
    "shear-x",
    "shear-y",
    "translate-x",
    "translate-y",
]
# fmt: off
RANDAUGMENT: tuple[Name, ...] = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize-add", "colour", "contrast",
    "brightness", "sharpness", "shear-x", "shear-y", "translate-x", "translate-y",
)
TRIVIALAUGMENT: tuple[Name, ...] = (
    "identity", "shear-x", "shear-y", "translate-x", "translate-y", "rotate", "brightness", "colour", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)
# fmt: on
STRENGTHS = 31  # of TrivialAugment


def transformed(picture: Pixels, augment: Augment, fill: Pixels, filter: str, draw: list[float]) -> Pixels:
    """`picture` (H, W, C) after the recipe's policy, of the same shape.

    `fill` is the mean colour (C,), `filter` the filter of what is moved between pixels (bicubic, or else bilinear),
    `draw` SLOTS uniform numbers in [0, 1): of each operation which one, whether, how strong, and which way.
    """
    channels = picture.shape[2]
    image = Image.fromarray(picture if channels == 3 else picture[:, :, 0])
    resample = Image.Resampling.BICUBIC if filter == "bicubic" else Image.Resampling.BILINEAR
    if augment.policy == "trivialaugment":
        name = TRIVIALAUGMENT[int(draw[PICK] * len(TRIVIALAUGMENT))]
        amount = trivial_amount(name, int(draw[STRENGTH] * STRENGTHS), 1 if draw[SIGN] < 0.5 else -1)
        image = applied(image, name, amount, resample, (0,) * channels)
    else:
        colour = tuple(fill.tolist())
        for own in (draw[4 * number : 4 * number + 4] for number in range(augment.ops)):
            if own[DONE] < 0.5:
                name = RANDAUGMENT[int(own[PICK] * len(RANDAUGMENT))]
                magnitude = drawn_magnitude(augment.magnitude, augment.magnitude_std, own[STRENGTH])
                amount = rand_amount(name, magnitude / 10, 1 if own[SIGN] < 0.5 else -1, image.size)
                image = applied(image, name, amount, resample, colour)
    return np.array(image).reshape(picture.shape)


def drawn_magnitude(mean: float, deviation: float, uniform: float) -> float:
    """A normal number around `mean`, cut to 0 … 10."""
    edge = 2.0**-53  # the step of uniform numbers; at 0 itself the normal one is infinite
    return max(0.0, min(10.0, mean + deviation * NormalDist().inv_cdf(max(uniform, edge))))


def rand_amount(name: Name, level: float, sign: int, size: tuple[int, int]) -> float:
    """What RandAugment's operation is told at `level` 0 … 1 on a picture of (width, height): see `applied`."""
    match name:
        case "rotate":
            return sign * 30 * level
        case "posterize":
            return 4 - int(4 * level)
        case "solarize":
            return 256 - int(256 * level)
        case "solarize-add":
            return int(110 * level)
        case "colour" | "contrast" | "brightness" | "sharpness":
            return max(0.1, 1 + sign * 0.9 * level)
        case "shear-x" | "shear-y":
            return sign * 0.3 * level
        case "translate-x" | "translate-y":
            return sign * 0.45 * level * size[name == "translate-y"]
    return 0.0


def trivial_amount(name: Name, strength: int, sign: int) -> float:
    """What TrivialAugment's operation is told at `strength` 0 … 30: see `applied`."""
    share = strength / (STRENGTHS - 1)
    match name:
        case "rotate":
            return sign * 135 * share
        case "posterize":
            return 8 - round(6 * share)
        case "solarize":
            return 255 - 255 * share
        case "colour" | "contrast" | "brightness" | "sharpness":
            return 1 + sign * 0.99 * share
        case "shear-x" | "shear-y":
            return sign * 0.99 * share
        case "translate-x" | "translate-y":
            return int(sign * 32 * share)
    return 0.0


def applied(
    image: Image.Image, name: Name, amount: float, resample: Image.Resampling, fill: tuple[int, ...]
) -> Image.Image:
    """One operation. `amount` is degrees (rotate), bits that stay (posterize), the level from which on colours are
    inverted (solarize) or that is added below 128 (solarize-add), Pillow's factor (colour, contrast, brightness,
    sharpness), the tangent (shear), pixels that the picture is read further on (translate); the others take none."""
    across: tuple[float, ...] | None = None
    match name:
        case "autocontrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "invert":
            return ImageOps.invert(image)
        case "rotate":
            return image.rotate(amount, resample, fillcolor=fill if len(fill) > 1 else fill[0])
        case "posterize":
            # Pillow refuses to keep no bit at all, which is black.
            return ImageOps.posterize(image, int(amount)) if amount >= 1 else Image.new(image.mode, image.size)
        case "solarize":
            return ImageOps.solarize(image, amount)  # type: ignore[arg-type]  # compared with levels, never an index
        case "solarize-add":
            table = [min(255, level + int(amount)) if level < 128 else level for level in range(256)]
            return image.point(table * len(image.getbands()))
        case "colour":
            return ImageEnhance.Color(image).enhance(amount)
        case "contrast":
            return ImageEnhance.Contrast(image).enhance(amount)
        case "brightness":
            return ImageEnhance.Brightness(image).enhance(amount)
        case "sharpness":
            return ImageEnhance.Sharpness(image).enhance(amount)
        case "shear-x":
            across = (1, amount, 0, 0, 1, 0)
        case "shear-y":
            across = (1, 0, 0, amount, 1, 0)
        case "translate-x":
            across = (1, 0, amount, 0, 1, 0)
        case "translate-y":
            across = (1, 0, 0, 0, 1, amount)
    if across is None:
        return image
    colour = fill if len(fill) > 1 else fill[0]
    return image.transform(image.size, Image.Transform.AFFINE, across, resample, fillcolor=colour)
