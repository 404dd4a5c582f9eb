"""From a decoded picture to the network's input: what is fixed (`Preprocess`) and what is random (`augmented`).

Pictures are uint8 (H, W, C), RGB or grey, until `Preprocess.normalise` turns a batch of them into float32. Nothing here
changes its input; a result may share memory with it where nothing had to be done.

The rules of the field, as torchvision and timm have them:
  resize   "shorter": the shorter side becomes resize_to, the longer floor(resize_to * longer / shorter), up or down;
           "stretch": both sides become resize_to, whatever the shape.
  crop     size x size from the centre; where an odd border is halved, "even" takes the even number of its two
           neighbours (Python's round; torchvision, timm), "down" the smaller one (Transformers).
  filter   antialiased, as Pillow's `resize`: it widens with the reduction. OpenCV's and torch's plain ones do not,
           which costs a pretrained network whole points of accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.decode import Jpeg, Pixels, croppable, decode, luma
from resnetkit.data.policies import SLOTS, transformed
from resnetkit.data.resizing import FILTERS, Filter, resized, with_pillow
from resnetkit.errors import UserError, nearest

if TYPE_CHECKING:  # an exported model answers without them
    import torch
    from torch import Tensor

    from resnetkit.recipe import Augment

# Slots of `augmented`'s draws. Each has one meaning, so switching one augmentation off leaves the others as they are.
FLIP = 0  # mirrored below 0.5
CROP_TOP, CROP_LEFT = 1, 2  # place of the "pad", "resized" or "scale" crop
CROP_TRIES = 3  # "resized": (area, ratio) of ten attempts, slots 3 to 22; "scale": the first is the shorter side
BRIGHTNESS, CONTRAST, SATURATION = 23, 24, 25
ERASE = 26  # erased below augment.erase
ERASE_TRIES = 27  # (area, ratio) of ten attempts, slots 27 to 46
ERASE_TOP, ERASE_LEFT = 47, 48
COLOUR = 49  # along each of the three colour axes, slots 49 to 51
POLICY = 52  # the SLOTS numbers of the policy, slots 52 to 67
DRAWS = POLICY + SLOTS

TRIES = 10
ERASE_RATIO = (0.3, 3.3)  # height / width

# Eigenvalues, and as columns eigenvectors, of the covariance of ImageNet's RGB values in [0, 1]. AlexNet (Krizhevsky
# 2012, Sec. 4.1) does not print its own; these are the numbers of fb.resnet.torch, datasets/imagenet.lua.
COLOUR_VALUES = np.array([0.2175, 0.0188, 0.0045])
COLOUR_VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the network's input. Stored in the model file; training and prediction read this value.

    `mean` and `std` are shares of white, in the network's channel order: one per channel, or for `mean` one per value,
    channels first (the paper's per-pixel mean). The network gets (picture / 255 - mean) / std.
    """

    size: int  # side of the square input
    resize: Literal["shorter", "stretch"]
    resize_to: int  # side after resizing, before the centre crop; `size` where no border is cropped
    filter: Filter
    channels: int  # 1 grey, 3 colour
    order: Literal["RGB", "BGR"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exif: bool  # turn pictures as their EXIF orientation says
    centre: Literal["even", "down"] = "even"  # where a crop of the centre begins when an odd border is halved

    def __post_init__(self) -> None:
        _check(self)

    def load(self, data: bytes | NDArray[np.uint8]) -> Pixels:
        """The picture, (H, W, channels): decoded, or an array (H, W, 1 or 3) turned between grey and RGB.

        Raises BadPicture for bytes that are no picture, UserError for an array that is none.
        """
        if isinstance(data, bytes):
            return decode(data, channels=self.channels, exif=self.exif)
        if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] not in (1, 3) or 0 in data.shape:
            raise UserError(f"an array of {data.dtype} {data.shape} is no picture: use uint8 (height, width, 1 or 3)")
        if data.shape[2] == self.channels:
            return data
        return luma(data) if self.channels == 1 else np.repeat(data, 3, axis=2)

    def at(self, size: int) -> Preprocess:
        """The same at another side, the picture as large in it. One mean per channel only."""
        return replace(self, size=size, resize_to=round(self.resize_to * size / self.size))

    def open(self, data: bytes | NDArray[np.uint8]) -> Pixels | Jpeg:
        """As `load`, but a JPEG of which only a crop has to be decoded stays as it is until then."""
        if isinstance(data, bytes) and self.filter == "bilinear":  # the one that resnetkit-native has
            jpeg = croppable(data, channels=self.channels, exif=self.exif)
            if jpeg is not None:
                return jpeg
        return self.load(data)

    def fit(self, picture: Pixels | Jpeg) -> Pixels:
        """Resize and centre crop: (H, W, C) to (size, size, C)."""
        width, height = self.resized_shape(picture, self.resize_to)
        return self.window(picture, width, height, *self.centre_of(width, height))

    def resized_shape(self, picture: Pixels | Jpeg, side: int) -> tuple[int, int]:
        """(width, height) of the picture resized to `side`."""
        height, width = picture.shape[:2]
        shorter = min(height, width)
        return (side, side) if self.resize == "stretch" else (side * width // shorter, side * height // shorter)

    def centre_of(self, width: int, height: int) -> tuple[int, int]:
        """(left, top) of the centre crop of a resized picture."""
        return self._halved(width - self.size), self._halved(height - self.size)

    def _halved(self, border: int) -> int:
        return round(border / 2) if self.centre == "even" else border // 2

    def window(self, picture: Pixels | Jpeg, to_width: int, to_height: int, left: int, top: int) -> Pixels:
        """The size x size pixels at (left, top) of the picture resized to to_width x to_height."""
        height, width = picture.shape[:2]
        across, down = width / to_width, height / to_height  # only what the crop keeps is resized, on the same grid
        right = min((left + self.size) * across, width)
        bottom = min((top + self.size) * down, height)
        box = (left * across, top * down, right, bottom)
        if isinstance(picture, Jpeg):
            cut = picture.crop(box, self.size, around=True, flip=False)
            if cut is not None:
                return cut
            picture = picture.decoded()
        if with_pillow(self.filter) and max(to_width, to_height) <= 16 * min(to_width, to_height):
            # Pillow rounds a part of a picture another way than the whole, and filters that overshoot show which of its
            # two passes it took first, which hangs on the whole size. (Not so for a thread of a picture, which would be
            # resized to gigabytes.)
            whole = resized(picture, to_width, to_height, self.filter)
            return whole[top : top + self.size, left : left + self.size]
        return resized(picture, self.size, self.size, self.filter, box)

    def normalise(self, batch: Tensor) -> Tensor:
        """uint8 (N, size, size, C) to float32 (N, C, size, size), channels_last in memory, on the batch's device."""
        scale, shift = self._affine_on(batch.device)
        if self.order == "BGR":
            batch = batch.flip(3)
        return shift.addcmul(batch.permute(0, 3, 1, 2), scale)

    def normalise_array(self, batch: Pixels) -> NDArray[np.float32]:
        """`normalise` without torch: float32 (N, C, size, size), channels first in memory too."""
        scale, shift = self.affine
        if self.order == "BGR":
            batch = batch[:, :, :, ::-1]
        result: NDArray[np.float32] = batch.transpose(0, 3, 1, 2).astype(np.float32, order="C")
        result *= scale
        result += shift
        return result

    @cached_property
    def affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """scale (1, C, 1, 1) and shift, of the same shape or (1, C, size, size): the input is level * scale + shift."""
        std = np.array(self.std, dtype=np.float64).reshape(1, -1, 1, 1)
        side = 1 if len(self.mean) == self.channels else self.size
        mean = np.array(self.mean, dtype=np.float64).reshape(1, self.channels, side, side)
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def _affine_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`affine` on a device; kept, because moving it for each batch would make the device wait."""
        if device not in self._affines:
            import torch

            scale, shift = (torch.from_numpy(values) for values in self.affine)
            shift = shift.contiguous(memory_format=torch.channels_last)
            self._affines[device] = (scale.to(device), shift.to(device))
        return self._affines[device]

    @cached_property
    def _affines(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    @cached_property
    def blank(self) -> Pixels:
        """(size, size, C) of the mean colour, in the picture's channel order; what padding and erasing show."""
        colour = np.asarray(self.mean).reshape(self.channels, -1).mean(axis=1)
        if self.order == "BGR":
            colour = colour[::-1]
        levels = np.clip(np.rint(255 * colour), 0, 255).astype(np.uint8)
        return np.tile(levels, (self.size, self.size, 1))

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values; `from_dict` reads them back to an equal value."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Preprocess:
        """The opposite of `to_dict`. Raises UserError naming the key that is unknown, missing or wrong."""
        keys = [field.name for field in fields(cls)]
        data = {"centre": "even", **data}  # files from before there was a choice
        for key in data:
            if key not in keys:
                raise UserError(f"preprocess: unknown key {key!r}{nearest(str(key), keys)}; allowed: {', '.join(keys)}")
        missing = [key for key in keys if key not in data]
        if missing:
            raise UserError(f"preprocess: {', '.join(missing)} missing; write down every one of {', '.join(keys)}")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks each

    def __str__(self) -> str:
        return f"{self.resizing(self.resize_to)}, centre {self.size}, {self.values}"

    def resizing(self, *sides: int) -> str:
        """How pictures are resized to `sides`, in words."""
        how = "shorter side" if self.resize == "shorter" else "stretched to"
        return f"{how} {', '.join(map(str, sides))} {self.filter}"

    @property
    def values(self) -> str:
        """Colours and normalisation in words."""
        mean = " ".join(f"{value:.4g}" for value in self.mean) if len(self.mean) == self.channels else "per pixel"
        std = " ".join(f"{value:.4g}" for value in self.std)
        colours = "grey" if self.channels == 1 else self.order
        return f"{colours}, mean {mean}, std {std}, EXIF {'on' if self.exif else 'off'}"


def _check(value: Preprocess) -> None:
    """Raise UserError naming the first field that cannot be."""
    for key in ("size", "resize_to", "channels"):
        number = getattr(value, key)
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise UserError(f"preprocess {key}={number!r}: must be a whole number, 1 or more")
    for key, allowed in (
        ("channels", (1, 3)),
        ("resize", ("shorter", "stretch")),
        ("filter", FILTERS),
        ("order", ("RGB", "BGR")),
        ("exif", (True, False)),
        ("centre", ("even", "down")),
    ):
        if getattr(value, key) not in allowed or (key == "exif" and type(value.exif) is not bool):
            raise UserError(f"preprocess {key}={getattr(value, key)!r}: choose from {', '.join(map(str, allowed))}")
    if value.resize_to < value.size:
        raise UserError(f"preprocess resize_to={value.resize_to}: must be at least size, which is {value.size}")
    pixels = value.channels * value.size**2
    for key, lengths in (("mean", (value.channels, pixels)), ("std", (value.channels,))):
        numbers = getattr(value, key)
        if not isinstance(numbers, tuple) or len(numbers) not in lengths:
            raise UserError(f"preprocess {key}: must be a list of {' or '.join(map(str, lengths))} numbers")
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise UserError(f"preprocess {key}: must be finite numbers, as shares of white (0.485, not 123.7)")
    if min(value.std) <= 0:
        raise UserError(f"preprocess std={value.std}: must be above 0")


def augmented(picture: Pixels | Jpeg, preprocess: Preprocess, augment: Augment, draws: NDArray[np.float64]) -> Pixels:
    """(H, W, C) to (size, size, C), changed at random: crop, mirror, policy, colour, jitter, erase, in this order.

    A pure function of its arguments; `draws` are DRAWS uniform numbers in [0, 1), each with one meaning (slots above).

    crop "none" is `Preprocess.fit`; "pad" fits, adds `pad` pixels of the mean colour on each side and crops `size`;
    "resized" crops an area and shape drawn at random, then resizes it to `size`; "scale" resizes the picture in its own
    shape to a shorter side drawn from `sides`, none below `size`, then crops `size`. Resolve "auto" first.
    """
    draw: list[float] = draws.tolist()  # reading numbers out of an array one by one is slow
    made = _cropped(picture, preprocess, augment, draw)
    if augment.policy != "none":
        made = transformed(made, augment, preprocess.blank[0, 0], preprocess.filter, draw[POLICY:])
    if augment.colour and made.shape[2] == 3:
        made = _shifted_in_colour(made, augment.colour, draw)
    if augment.jitter:
        made = _jittered(made, augment.jitter, draw)
    if draw[ERASE] < augment.erase:
        made = _erased(made, preprocess.blank, augment.erase_area, draw)
    return made


def _cropped(picture: Pixels | Jpeg, preprocess: Preprocess, augment: Augment, draw: list[float]) -> Pixels:
    """The crop, and mirrored below a half."""
    flip, size = augment.flip and draw[FLIP] < 0.5, preprocess.size
    if augment.crop == "resized":
        height, width = picture.shape[:2]
        left, top, right, bottom = box = resized_crop_box(height, width, augment.scale, augment.ratio, draw)
        if isinstance(picture, Jpeg):
            cut = picture.crop(box, size, around=False, flip=flip)
            if cut is not None:
                return cut
            picture = picture.decoded()
        made = resized(picture[top:bottom, left:right], size, size, preprocess.filter)
    elif augment.crop == "scale":
        made = _scaled_crop(picture, preprocess, augment.sides, draw)
    else:
        made = preprocess.fit(picture)
        if augment.crop == "pad":
            made = _shifted(made, preprocess.blank, augment.pad, draw)
        elif augment.crop != "none":
            raise ValueError(f"augment.crop={augment.crop!r}: choose from none, pad, resized, scale")
    return _mirrored(made) if flip else made


def resized_crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], draw: list[float]
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random resized crop, as in Inception (arXiv 1409.4842) and torchvision.

    Up to ten attempts draw an area uniformly in `scale` (share of the picture) and a width / height log-uniformly in
    `ratio`; the first that fits is placed at random. If none does: the largest centred box whose shape is in `ratio`.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for slot in range(CROP_TRIES, CROP_TRIES + 2 * TRIES, 2):
        area = height * width * (scale[0] + draw[slot] * (scale[1] - scale[0]))
        shape = math.exp(low + draw[slot + 1] * (high - low))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(draw[CROP_TOP] * (height - h + 1)), int(draw[CROP_LEFT] * (width - w + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _scaled_crop(picture: Pixels | Jpeg, preprocess: Preprocess, sides: tuple[int, int], draw: list[float]) -> Pixels:
    """A random crop of the picture with its shorter side resized to one of `sides`, the scale augmentation of VGG."""
    height, width = picture.shape[:2]
    low, high = sides
    side, shorter = low + int(draw[CROP_TRIES] * (high - low + 1)), min(height, width)
    to_width, to_height = side * width // shorter, side * height // shorter
    left = int(draw[CROP_LEFT] * (to_width - preprocess.size + 1))
    top = int(draw[CROP_TOP] * (to_height - preprocess.size + 1))
    return preprocess.window(picture, to_width, to_height, left, top)


def _shifted(picture: Pixels, blank: Pixels, pad: int, draw: list[float]) -> Pixels:
    """A random crop of the padded picture, without making the padded one: the picture moved over a blank."""
    size = blank.shape[0]
    down = int(draw[CROP_TOP] * (2 * pad + 1)) - pad
    right = int(draw[CROP_LEFT] * (2 * pad + 1)) - pad
    result = blank.copy()
    if abs(down) < size and abs(right) < size:
        inside = picture[max(down, 0) : size + min(down, 0), max(right, 0) : size + min(right, 0)]
        top, left = max(-down, 0), max(-right, 0)
        result[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return result


def _mirrored(picture: Pixels) -> Pixels:
    """Left and right exchanged. Channel by channel, because numpy copies reversed runs of 3 bytes 5 times slower."""
    result = np.empty_like(picture)
    for channel in range(picture.shape[2]):
        result[:, :, channel] = picture[:, ::-1, channel]
    return result


def _shifted_in_colour(picture: Pixels, deviation: float, draw: list[float]) -> Pixels:
    """One amount added to every pixel: normal numbers times the eigenvalues, along the eigenvectors (AlexNet)."""
    edge = 2.0**-53  # the step of the uniform numbers; at 0 and 1 themselves the normal ones are infinite
    uniform = (min(max(draw[slot], edge), 1 - edge) for slot in range(COLOUR, COLOUR + 3))
    normal = np.array([deviation * NormalDist().inv_cdf(share) for share in uniform])
    shift = 255 * COLOUR_VECTORS @ (COLOUR_VALUES * normal)
    whole = np.rint(np.clip(shift, -255, 255)).astype(np.int16)  # levels are whole, so it is the shift that is rounded
    result: Pixels = np.clip(picture + whole, 0, 255).astype(np.uint8)
    return result


def _jittered(picture: Pixels, jitter: float, draw: list[float]) -> Pixels:
    """Brightness, contrast, saturation, in this order, as Pillow's ImageEnhance; factor in [1 - jitter, 1 + jitter]."""
    colour = picture.shape[2] == 3
    from PIL import Image, ImageEnhance

    image = Image.fromarray(picture if colour else picture[:, :, 0])
    steps = [(ImageEnhance.Brightness, BRIGHTNESS), (ImageEnhance.Contrast, CONTRAST)]
    if colour:
        steps.append((ImageEnhance.Color, SATURATION))
    for enhancer, slot in steps:
        image = enhancer(image).enhance(max(0.0, 1 + jitter * (2 * draw[slot] - 1)))
    return np.array(image).reshape(picture.shape)


def _erased(picture: Pixels, blank: Pixels, share: tuple[float, float], draw: list[float]) -> Pixels:
    """Random erasing (arXiv 1708.04896) of a rectangle, to the mean colour. Unchanged where ten attempts do not fit."""
    height, width = picture.shape[:2]
    low, high = math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])
    for slot in range(ERASE_TRIES, ERASE_TRIES + 2 * TRIES, 2):
        area = height * width * (share[0] + draw[slot] * (share[1] - share[0]))
        shape = math.exp(low + draw[slot + 1] * (high - low))
        h, w = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < h < height and 0 < w < width:
            top, left = int(draw[ERASE_TOP] * (height - h + 1)), int(draw[ERASE_LEFT] * (width - w + 1))
            result = picture.copy()
            result[top : top + h, left : left + w] = blank[:h, :w]
            return result
    return picture
