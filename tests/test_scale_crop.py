"""The paper's augmentation for ImageNet, random scale and AlexNet's colour shift, against independent references."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.audit import Audit
from resnetkit.data.loader import draws
from resnetkit.data.pictures import Arrays, Data
from resnetkit.data.transforms import COLOUR, CROP_LEFT, CROP_TOP, CROP_TRIES, DRAWS, Preprocess, augmented
from resnetkit.errors import UserError
from resnetkit.recipe import Augment, Recipe
from resnetkit.recipe_file import with_settings
from resnetkit.resolve import resolve
from resnetkit.shipped import shipped

Pixels = NDArray[np.uint8]
SMALL = Preprocess(
    size=32,
    resize="shorter",
    resize_to=36,
    filter="bilinear",
    channels=3,
    order="RGB",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    exif=True,
)
SCALE = Augment(crop="scale", sides=(32, 60), flip=False)
COLOURED = Augment(crop="none", flip=False, colour=0.1)

# Table of fb.resnet.torch; one eigenvector a row here, written out apart from the code.
AXES = ((-0.5675, -0.5808, -0.5836), (0.7192, -0.0045, -0.6948), (0.4009, -0.8140, 0.4203))
VALUES = (0.2175, 0.0188, 0.0045)


def noise(height: int, width: int, channels: int = 3) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def distance(a: Pixels, b: Pixels) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def slow_crop(picture: Pixels, size: int, filter: str, side: int, top: float, left: float) -> Pixels:
    """The whole picture resized by Pillow, then cut; `top` and `left` are shares of the room there is."""
    height, width = picture.shape[:2]
    if width < height:
        width, height = side, side * height // width
    else:
        width, height = side * width // height, side
    image = Image.fromarray(picture if picture.shape[2] == 3 else picture[:, :, 0])
    whole = np.asarray(image.resize((width, height), Image.Resampling[filter.upper()])).reshape(height, width, -1)
    y, x = int(top * (height - size + 1)), int(left * (width - size + 1))
    return whole[y : y + size, x : x + size]


# Crop


@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "box", "lanczos"])
@pytest.mark.parametrize("shape", [(40, 40, 3), (75, 100, 3), (130, 61, 3), (20, 27, 3), (50, 90, 1)], ids=str)
def test_it_is_a_crop_of_the_resized_picture(shape: tuple[int, int, int], filter: Any) -> None:
    """Within 2 levels, as `resized` is of Pillow's; smaller pictures are enlarged."""
    mean = (0.5,) * shape[2]
    preprocess = replace(SMALL, filter=filter, channels=shape[2], mean=mean, std=mean)
    picture = noise(*shape)
    for seed in range(30):
        row = np.random.default_rng(seed).random(DRAWS)
        side = 32 + int(row[CROP_TRIES] * 29)  # 32, 33, … 60
        expected = slow_crop(picture, 32, filter, side, row[CROP_TOP], row[CROP_LEFT])
        assert distance(augmented(picture, preprocess, SCALE, row), expected) <= 2


@pytest.mark.parametrize("resize", ["shorter", "stretch"])
def test_the_shape_is_kept_whatever_evaluation_does(resize: Any) -> None:
    picture = noise(50, 90)
    row = np.random.default_rng(4).random(DRAWS)
    preprocess = replace(SMALL, resize=resize, resize_to=32)
    np.testing.assert_array_equal(augmented(picture, preprocess, SCALE, row), augmented(picture, SMALL, SCALE, row))


def test_every_side_is_drawn_as_often_with_both_ends() -> None:
    """A ramp from left to right is as steep as the picture was reduced, which tells the side."""
    width, sides = 400, (32, 40)
    ramp = np.linspace(0, 255, width)
    picture = np.broadcast_to(np.rint(ramp)[None, :, None], (width, width, 3)).astype(np.uint8)
    n, found = 900, []
    for row in draws(0, 0, 0, n):
        result = augmented(picture, SMALL, replace(SCALE, sides=sides), row)[0, :, 0].astype(float)
        found.append(round(255 * 31 / (result[-1] - result[0])))
    share, expected = np.bincount(found, minlength=41)[32:], n / 9
    assert (min(found), max(found)) == sides
    assert float(((share - expected) ** 2 / expected).sum()) < 26.1  # chi-squared, 8 degrees: 1 false alarm in 1,000


@pytest.mark.parametrize(("draw", "side"), [(0.0, 32), (1 - 2**-53, 60)])
def test_the_ends_themselves(draw: float, side: int) -> None:
    picture, row = noise(70, 70), np.full(DRAWS, 0.5)
    row[CROP_TRIES] = draw
    expected = slow_crop(picture, 32, "bilinear", side, 0.5, 0.5)
    assert distance(augmented(picture, SMALL, SCALE, row), expected) <= 2


@pytest.mark.parametrize(("draw", "corner"), [(0.0, slice(0, 32)), (1 - 2**-53, slice(8, 40))])
def test_the_crop_reaches_the_edges(draw: float, corner: slice) -> None:
    picture, row = noise(40, 40), np.full(DRAWS, draw)
    expected = picture[corner, corner]  # a side of 40 resamples nothing
    np.testing.assert_array_equal(augmented(picture, SMALL, replace(SCALE, sides=(40, 40)), row), expected)


# Colour


def test_the_shift_is_that_of_the_float_reference() -> None:
    """At most half a level from adding floats, then clipped: three normal numbers by the inverse of their CDF."""
    stats = pytest.importorskip("scipy.stats", reason="comes with scikit-learn, the extra 'demo'")
    picture = noise(32, 36)[:, 2:34]
    for row in draws(3, 0, 0, 50):
        shift = np.zeros(3)
        for axis, value, uniform in zip(AXES, VALUES, row[COLOUR : COLOUR + 3], strict=True):
            shift += stats.norm.ppf(uniform, scale=0.5) * value * np.array(axis)
        expected = np.clip(picture / 255 + shift, 0, 1) * 255
        result = augmented(picture, replace(SMALL, resize_to=32), replace(COLOURED, colour=0.5), row)
        assert result.dtype == np.uint8
        assert np.abs(result - expected).max() <= 0.5 + 1e-9


def test_shifts_have_the_covariance_of_the_axes() -> None:
    """Along each axis colour x eigenvalue, mean zero, unrelated: 20,000 draws of one grey pixel, turned to the axes."""
    n, colour = 20_000, 0.6  # 6 deviations from being clipped
    grey, augment = np.full((1, 1, 3), 128, np.uint8), replace(COLOURED, colour=colour)
    preprocess = replace(SMALL, size=1, resize_to=1)
    shifts = np.array([augmented(grey, preprocess, augment, row)[0, 0] for row in draws(1, 0, 0, n)]) / 255 - 128 / 255
    along = shifts @ np.array(AXES).T
    variance = (colour * np.array(VALUES)) ** 2 + 1 / 255**2 / 12  # rounding to levels adds a twelfth of one squared
    assert np.abs(along.mean(axis=0) / np.sqrt(variance)).max() < 5 / np.sqrt(n)
    assert np.abs(along.var(axis=0) / variance - 1).max() < 5 * np.sqrt(2 / n)
    assert np.abs(np.corrcoef(along.T)[~np.eye(3, dtype=bool)]).max() < 5 / np.sqrt(n)


@pytest.mark.parametrize("uniform", [0.0, 1.0])
def test_the_ends_of_the_uniform_numbers_are_finite(uniform: float) -> None:
    picture, row = np.full((32, 32, 3), 128, np.uint8), np.full(DRAWS, 0.5)
    row[COLOUR : COLOUR + 3] = uniform
    result = augmented(picture, replace(SMALL, resize_to=32), COLOURED, row)
    assert 20 < abs(int(result[0, 0, 0]) - 128) < 60  # 8.2 deviations of 0.1
    assert augmented(picture, SMALL, replace(COLOURED, colour=1e6), row).max() in (0, 255)


def test_no_colour_changes_nothing() -> None:
    picture = noise(40, 40)
    for row in draws(0, 0, 0, 5):
        np.testing.assert_array_equal(augmented(picture, SMALL, replace(COLOURED, colour=0.0), row), SMALL.fit(picture))
    middle = np.full(DRAWS, 0.5)  # the median, which is no shift
    np.testing.assert_array_equal(augmented(picture, SMALL, COLOURED, middle), SMALL.fit(picture))


def test_the_slots_before_have_the_numbers_they_had() -> None:
    """Golden: slots 0 to 48 as they were when there were no others; runs of then show the same pictures."""
    table = np.ascontiguousarray(draws(7, 3, 5, 1000)[:, :49], "<f8")
    digest = hashlib.sha256(table.tobytes()).hexdigest()
    assert digest == "d0e27b96fc3c7e8f25b4d2faffb14cf588f9ae9ca8d9d974e8dd8a92f20d1572"
    first = draws(0, 0, 0, 3)
    assert (first[0, 0], first[1, 3], first[2, 48]) == (0.3035680343067586, 0.450169370558798, 0.6954261854765579)
    assert draws(2**62 + 5, 1, 10**9, 1)[0, 26] == 0.7360460600208986


# What cannot be


def resolved(*settings: str, grey: bool = False) -> Recipe:
    """`small` with settings for ten pictures of 300 x 200, which nobody looks at."""
    data = Data(
        "photos",
        Arrays(np.zeros((10, 1, 1, 1 if grey else 3), np.uint8), (("x", 10),)),
        np.arange(10) % 2,
        ("a", "b"),
        {"train": np.arange(10)},
    )
    sides = (np.full(10, side, np.int32) for side in (300, 200))
    audit = Audit(np.arange(10), np.zeros((10, 32), np.uint8), *sides, {}, {}, grey, True)
    return resolve(with_settings(shipped("small"), settings), data, audit, None).recipe


@pytest.mark.parametrize("size", ["224", "auto"])
def test_sides_below_the_size_are_refused(size: str) -> None:
    shown = 128 if size == "auto" else size
    with pytest.raises(UserError) as caught:
        resolved("augment.crop=scale", "augment.sides=96,480", f"data.size={size}")
    assert str(caught.value) == (
        f"augment.sides=[96, 480]: a crop of data.size={shown} pixels does not fit in a shorter side of 96; "
        f"begin them at {shown} or more"
    )


def test_sides_concern_that_crop_alone_and_may_begin_at_the_size() -> None:
    assert resolved("augment.crop=resized", "data.size=300").augment.sides == (256, 480)
    assert resolved("augment.crop=scale", "data.size=256").augment.sides == (256, 480)


@pytest.mark.parametrize("sides", ["480,256", "0,256", "256", "256.5,480"])
def test_sides_are_two_ascending_whole_numbers(sides: str) -> None:
    with pytest.raises(UserError, match=r"^augment\.sides = .* must be an array of 2 integers with 0 < low <= high$"):
        resolved(f"augment.sides={sides}")


@pytest.mark.parametrize("settings", [["data.channels=1"], []], ids=["asked", "auto"])
def test_grey_pictures_have_no_colour_to_shift(settings: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        resolved("augment.colour=0.1", *settings, grey=True)
    assert str(caught.value) == "augment.colour=0.1: grey pictures have no colour to shift; set it to 0"
    assert resolved("augment.colour=0.1").augment.colour == 0.1
