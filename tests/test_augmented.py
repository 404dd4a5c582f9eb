"""`augmented`, the random half of `data.transforms`: against slow obvious references, and as a pure function."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

import resnetkit.data.transforms as module
from resnetkit.data.transforms import (
    BRIGHTNESS,
    COLOUR,
    CONTRAST,
    CROP_LEFT,
    CROP_TOP,
    CROP_TRIES,
    DRAWS,
    ERASE,
    ERASE_LEFT,
    ERASE_TOP,
    ERASE_TRIES,
    FLIP,
    POLICY,
    SATURATION,
    TRIES,
    Preprocess,
    augmented,
    resized_crop_box,
)
from resnetkit.recipe import Augment

Pixels = NDArray[np.uint8]
SMALL = Preprocess(
    size=32,
    resize="shorter",
    resize_to=32,
    filter="bilinear",
    channels=3,
    order="RGB",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    exif=True,
)
GREY = replace(SMALL, channels=1, mean=(0.5,), std=(0.25,))
FIXED = Augment(crop="none", flip=False)


def noise(height: int, width: int, channels: int = 3) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def random_draws(seed: int = 0, **slots: float) -> NDArray[np.float64]:
    """Uniform numbers, with the slots named by the module's constants set by hand."""
    draws = np.random.default_rng(seed).random(DRAWS)
    for name, value in slots.items():
        draws[getattr(module, name)] = value
    return draws


def distance(a: Pixels, b: Pixels) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


AUGMENTS = [
    FIXED,
    Augment(crop="none"),
    Augment(crop="pad"),
    Augment(crop="resized", jitter=0.4),
    Augment(crop="pad", pad=40, jitter=0.2, erase=1.0),
    Augment(crop="scale", sides=(32, 50), colour=0.3),
]


@pytest.mark.parametrize("augment", AUGMENTS, ids=repr)
@pytest.mark.parametrize("preprocess", [SMALL, GREY, replace(SMALL, resize_to=36)], ids=str)
@pytest.mark.parametrize("shape", [(32, 32), (40, 33), (7, 90)])
def test_augmented_is_a_pure_function(augment: Augment, preprocess: Preprocess, shape: tuple[int, int]) -> None:
    picture = noise(*shape, preprocess.channels)
    before = picture.copy()
    draws = random_draws(3)
    drawn = draws.copy()
    result = augmented(picture, preprocess, augment, draws).copy()
    assert result.dtype == np.uint8
    assert result.shape == (32, 32, preprocess.channels)
    np.testing.assert_array_equal(result, augmented(picture, preprocess, augment, draws))
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_array_equal(draws, drawn)
    picture.setflags(write=False)  # a cached picture may well be read-only
    np.testing.assert_array_equal(result, augmented(picture, preprocess, augment, draws))


def test_nothing_random_is_fit() -> None:
    picture = noise(50, 40)
    np.testing.assert_array_equal(augmented(picture, SMALL, FIXED, random_draws()), SMALL.fit(picture))


def test_auto_has_to_be_resolved_before() -> None:
    with pytest.raises(ValueError, match="choose from none, pad, resized, scale"):
        augmented(noise(32, 32), SMALL, Augment(crop="auto"), random_draws())


def test_each_slot_has_one_meaning() -> None:
    """Changing a draw changes the result only where its augmentation is on; every slot is used by something."""
    picture = noise(64, 64)
    everything = {
        "flip": (replace(FIXED, flip=True), {FLIP}),
        "pad": (replace(FIXED, crop="pad"), {CROP_TOP, CROP_LEFT}),
        "resized": (replace(FIXED, crop="resized"), {CROP_TOP, CROP_LEFT, CROP_TRIES, CROP_TRIES + 1}),
        "scale": (replace(FIXED, crop="scale", sides=(40, 60)), {CROP_TOP, CROP_LEFT, CROP_TRIES}),
        "colour": (replace(FIXED, colour=2.0), {COLOUR, COLOUR + 1, COLOUR + 2}),
        "jitter": (replace(FIXED, jitter=0.9), {BRIGHTNESS, CONTRAST, SATURATION}),
        "erase": (replace(FIXED, erase=0.5), {ERASE, ERASE_TRIES, ERASE_TRIES + 1, ERASE_TOP, ERASE_LEFT}),
    }
    for name, (augment, slots) in everything.items():
        draws = np.full(DRAWS, 0.3)
        plain = augmented(picture, SMALL, augment, draws)
        changed = set()
        for slot in range(DRAWS):
            other = draws.copy()
            other[slot] = 0.6
            if not np.array_equal(augmented(picture, SMALL, augment, other), plain):
                changed.add(slot)
        assert changed == slots, name


def test_flip_mirrors_half_the_time() -> None:
    picture = noise(32, 32)
    flips = replace(FIXED, flip=True)
    np.testing.assert_array_equal(augmented(picture, SMALL, flips, random_draws(FLIP=0.499)), picture[:, ::-1])
    np.testing.assert_array_equal(augmented(picture, SMALL, flips, random_draws(FLIP=0.5)), picture)


@pytest.mark.parametrize("pad", [0, 1, 4, 32, 50])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_pad_is_a_crop_of_the_padded_picture(pad: int, order: Any) -> None:
    preprocess = replace(SMALL, order=order)
    picture = noise(32, 32)
    colour = np.rint(255 * np.array(preprocess.mean))[:: 1 if order == "RGB" else -1]  # mean is in the network's order
    canvas = np.empty((32 + 2 * pad, 32 + 2 * pad, 3), np.uint8)
    canvas[:] = colour
    canvas[pad : pad + 32, pad : pad + 32] = picture
    seen = set()
    for seed in range(200):
        draws = random_draws(seed)
        top, left = int(draws[CROP_TOP] * (2 * pad + 1)), int(draws[CROP_LEFT] * (2 * pad + 1))
        seen.add((top, left))
        result = augmented(picture, preprocess, replace(FIXED, crop="pad", pad=pad), draws)
        np.testing.assert_array_equal(result, canvas[top : top + 32, left : left + 32])
    assert {0, 2 * pad} <= {top for top, _ in seen} or pad > 4
    assert len(seen) > min(60, (2 * pad + 1) ** 2 - 1)


def test_per_pixel_mean_pads_with_its_average() -> None:
    mean = np.linspace(0, 1, 32 * 32)
    preprocess = replace(GREY, mean=tuple(mean.tolist()))
    result = augmented(noise(32, 32, 1), preprocess, replace(FIXED, crop="pad", pad=32), random_draws(CROP_TOP=0.0))
    assert (result == 128).all()


def slow_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random resized crop as torchvision words it, with draws when they are needed."""
    for _ in range(10):
        target = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            i, j = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            return j, i, j + w, i + h
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    i, j = (height - h) // 2, (width - w) // 2
    return j, i, j + w, i + h


@pytest.mark.parametrize(("height", "width"), [(375, 500), (64, 64), (500, 200)])
def test_resized_crop_boxes_are_distributed_as_the_reference(height: int, width: int) -> None:
    scale, ratio, n = (0.08, 1.0), (0.75, 4 / 3), 4000
    rng = np.random.default_rng(11)
    slow = np.array([slow_box(height, width, scale, ratio, rng) for _ in range(n)], float)
    draws = np.random.default_rng(12).random((n, DRAWS))
    fast = np.array([resized_crop_box(height, width, scale, ratio, row.tolist()) for row in draws], float)
    for column in range(4):  # two-sample Kolmogorov-Smirnov; 0.05 is a false alarm of 1 in 10,000 with n = 4000
        grid = np.unique(np.concatenate([slow[:, column], fast[:, column]]))
        one, other = (np.searchsorted(np.sort(x[:, column]), grid, "right") / n for x in (slow, fast))
        assert np.abs(one - other).max() < 0.05
    assert (fast[:, 0] >= 0).all()
    assert (fast[:, 1] >= 0).all()
    assert (fast[:, 2] <= width).all()
    assert (fast[:, 3] <= height).all()


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.05, 1), st.floats(1, 3))
@settings(max_examples=200, deadline=None)
def test_resized_crop_falls_back_to_the_centre(height: int, width: int, low: float, high: float) -> None:
    """With areas far above the picture no attempt fits."""
    expected = slow_box(height, width, (50.0, 60.0), (low, high), np.random.default_rng(0))
    left, top, right, bottom = resized_crop_box(height, width, (50.0, 60.0), (low, high), [0.5] * DRAWS)
    if expected[2] > expected[0] and expected[3] > expected[1]:
        assert (left, top, right, bottom) == expected
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_each_attempt_has_its_own_draws() -> None:
    draw = [0.5] * DRAWS
    draw[CROP_TRIES], draw[CROP_TRIES + 1] = 0.999, 0.999  # too wide for a square picture
    draw[CROP_TRIES + 2], draw[CROP_TRIES + 3] = 0.0, 0.5
    left, top, right, bottom = resized_crop_box(100, 100, (0.25, 1.0), (0.5, 2.0), draw)
    assert (right - left, bottom - top) == (50, 50)
    assert (left, top) == (25, 25)
    assert CROP_TRIES + 2 * TRIES == BRIGHTNESS
    assert ERASE_TRIES + 2 * TRIES == ERASE_TOP
    assert max(ERASE_TOP, ERASE_LEFT) == COLOUR - 1
    assert COLOUR + 3 == POLICY


@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "box", "lanczos"])
def test_resized_crop_is_crop_then_resize(filter: Any) -> None:
    picture = noise(60, 80)
    augment = replace(FIXED, crop="resized")
    for seed in range(20):
        draws = random_draws(seed)
        box = resized_crop_box(60, 80, augment.scale, augment.ratio, draws.tolist())
        expected = Image.fromarray(picture).crop(box).resize((32, 32), Image.Resampling[filter.upper()])
        result = augmented(picture, replace(SMALL, filter=filter), augment, draws)
        assert distance(result, np.asarray(expected)) <= 2


def test_jitter_is_pillows_in_a_fixed_order() -> None:
    picture = noise(32, 32)
    for seed in range(10):
        draws = random_draws(seed)
        image = Image.fromarray(picture)
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhancer, slot in zip(enhancers, (BRIGHTNESS, CONTRAST, SATURATION), strict=True):
            image = enhancer(image).enhance(0.6 + 0.8 * draws[slot])
        result = augmented(picture, SMALL, replace(FIXED, jitter=0.4), draws)
        assert distance(result, np.asarray(image)) <= 1  # 0.6 + 0.8 u and 1 + 0.4 (2 u - 1) round apart


def test_jitter_in_the_middle_changes_nothing() -> None:
    for preprocess in (SMALL, GREY):
        picture = noise(32, 32, preprocess.channels)
        draws = random_draws(BRIGHTNESS=0.5, CONTRAST=0.5, SATURATION=0.5)
        np.testing.assert_array_equal(augmented(picture, preprocess, replace(FIXED, jitter=0.8), draws), picture)


@pytest.mark.parametrize("preprocess", [SMALL, GREY], ids=["colour", "grey"])
def test_erase_paints_one_rectangle_in_the_mean_colour(preprocess: Preprocess) -> None:
    white = np.full((32, 32, preprocess.channels), 255, np.uint8)
    colour = np.rint(255 * np.array(preprocess.mean))
    shares = []
    for seed in range(300):
        result = augmented(white, preprocess, replace(FIXED, erase=1.0), random_draws(seed))
        rows, columns = np.nonzero((result != 255).any(axis=2))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width  # a full rectangle
        assert (result[rows, columns] == colour).all()
        assert 0.2 < height / width < 5  # 0.3 to 3.3, rounded to pixels
        shares.append(len(rows) / 32**2)
    assert min(shares) > 0.01
    assert max(shares) < 0.45
    assert np.mean(shares) == pytest.approx(0.2, abs=0.03)


def test_erase_happens_as_often_as_asked() -> None:
    white = np.full((32, 32, 3), 255, np.uint8)
    n = 1000
    changed = sum(
        (augmented(white, SMALL, replace(FIXED, erase=0.3), random_draws(seed)) != 255).any() for seed in range(n)
    )
    assert abs(changed / n - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)


def test_order_of_the_changes() -> None:
    """Crop, mirror, colour, jitter, erase: the erased rectangle is neither mirrored, coloured nor brightened."""
    picture = noise(32, 32)
    draws = random_draws(FLIP=0.0)
    whole = Augment(crop="pad", flip=True, colour=0.5, jitter=0.5, erase=1.0)
    step = augmented(picture, SMALL, replace(FIXED, crop="pad"), draws)
    step = step[:, ::-1].copy()
    step = augmented(step, SMALL, replace(FIXED, colour=0.5), draws)
    step = augmented(step, SMALL, replace(FIXED, jitter=0.5), draws)
    step = augmented(step, SMALL, replace(FIXED, erase=1.0), draws)
    np.testing.assert_array_equal(augmented(picture, SMALL, whole, draws), step)
