"""`Preprocess` and `resized` against Pillow and torchvision's stated rules; `augmented` has test_augmented.py."""

from __future__ import annotations

import io
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import resnetkit.data.resizing as module
from resnetkit.data.resizing import resized
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import BadPicture, UserError

Pixels = NDArray[np.uint8]
IMAGENET = Preprocess(
    size=224,
    resize="shorter",
    resize_to=256,
    filter="bilinear",
    channels=3,
    order="RGB",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    exif=True,
)
SMALL = replace(IMAGENET, size=32, resize_to=32)
GREY = replace(SMALL, channels=1, mean=(0.5,), std=(0.25,))
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def image_of(picture: Pixels) -> Image.Image:
    return Image.fromarray(picture if picture.shape[2] == 3 else picture[:, :, 0])


def by_pillow(
    picture: Pixels, width: int, height: int, filter: str, box: tuple[float, float, float, float] | None = None
) -> Pixels:
    small = image_of(picture).resize((width, height), FILTERS[filter], box=box, reducing_gap=None)
    return np.asarray(small).reshape(height, width, -1)


def distance(a: Pixels, b: Pixels) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# --- resized


@st.composite
def resizes(draw: st.DrawFn) -> dict[str, Any]:
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    picture = noise(height, width, draw(st.sampled_from([1, 3])), draw(st.integers(0, 99)))
    if draw(st.booleans()):
        picture = np.where(picture > 127, 255, 0).astype(np.uint8)  # the worst case for overshoot and rounding
    kind = draw(st.sampled_from(["whole", "pixels", "fractions"]))
    box: tuple[float, float, float, float] | None = None
    if kind == "pixels":
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        box = (left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height)))
    elif kind == "fractions":
        share = st.floats(0, 0.9, allow_subnormal=False)
        left, top = draw(share) * width, draw(share) * height
        box = (left, top, left + (width - left) * (1 - draw(share)), top + (height - top) * (1 - draw(share)))
        box = (left, top, min(box[2], width), min(box[3], height))
    return {
        "picture": picture,
        "width": draw(st.integers(1, 70)),
        "height": draw(st.integers(1, 70)),
        "filter": draw(st.sampled_from(list(FILTERS))),
        "box": box,
    }


@given(resizes())
@settings(max_examples=400, deadline=None)
def test_resized_is_within_two_levels_of_pillow(case: dict[str, Any]) -> None:
    before = case["picture"].copy()
    assert distance(resized(**case), by_pillow(**case)) <= 2
    np.testing.assert_array_equal(case["picture"], before)


def test_resized_of_a_photo_sized_picture() -> None:
    picture = np.asarray(image_of(noise(30, 40)).resize((1200, 900), Image.Resampling.BICUBIC))
    assert distance(resized(picture, 224, 224, "bilinear"), by_pillow(picture, 224, 224, "bilinear")) <= 2


@given(resizes())
@settings(max_examples=50, deadline=None)
def test_without_cykooz_pillow_does_it(case: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "cykooz_resizer", None)
        np.testing.assert_array_equal(resized(**case), by_pillow(**case))


@pytest.mark.parametrize("filter", FILTERS)
def test_whole_pixels_are_not_resampled(filter: Any) -> None:
    picture = noise(20, 30)
    assert resized(picture, 30, 20, filter) is picture or np.shares_memory(resized(picture, 30, 20, filter), picture)
    np.testing.assert_array_equal(resized(picture, 7, 9, filter, (3, 4, 10, 13)), picture[4:13, 3:10])
    for box in ((3.5, 4.0, 10.5, 13.0), (3.0, 4.25, 10.0, 13.25)):  # the size is kept, the pixels are not whole
        assert distance(resized(picture, 7, 9, filter, box), by_pillow(picture, 7, 9, filter, box)) <= 2


def test_resizing_starts_no_threads_and_lets_others_run() -> None:
    picture = noise(600, 800)
    before = threading.active_count()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: resized(picture, 224, 224, "bilinear"), range(40)))
    assert threading.active_count() == before
    assert all((result == results[0]).all() for result in results)


# --- Preprocess.load and fit


def test_load_decodes_with_its_own_channels_and_exif() -> None:
    out = io.BytesIO()
    block = Image.Exif()
    block[0x0112] = 6
    image_of(noise(10, 20)).save(out, "PNG", exif=block)
    assert IMAGENET.load(out.getvalue()).shape == (20, 10, 3)
    assert replace(IMAGENET, exif=False).load(out.getvalue()).shape == (10, 20, 3)
    assert GREY.load(out.getvalue()).shape == (20, 10, 1)
    with pytest.raises(BadPicture, match="empty file"):
        GREY.load(b"")


def test_load_turns_arrays_between_grey_and_colour() -> None:
    colour, grey = noise(4, 5), noise(4, 5, 1)
    assert IMAGENET.load(colour) is colour
    assert GREY.load(grey) is grey
    np.testing.assert_array_equal(IMAGENET.load(grey), np.concatenate([grey] * 3, axis=2))
    np.testing.assert_array_equal(GREY.load(colour)[:, :, 0], np.asarray(image_of(colour).convert("L")))


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 3)), np.zeros((4, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8)],
)
def test_load_refuses_what_is_no_picture(array: Any) -> None:
    with pytest.raises(UserError, match=r"no picture: use uint8 \(height, width, 1 or 3\)"):
        IMAGENET.load(array)


@pytest.mark.parametrize(
    ("height", "width", "to", "left", "top"),
    [  # shorter side 256, longer floor(256 longer / shorter); offset round((side - 224) / 2), halves to even
        (375, 500, (256, 341), 58, 16),
        (500, 375, (341, 256), 16, 58),
        (256, 256, (256, 256), 16, 16),
        (500, 333, (384, 256), 16, 80),
        (100, 301, (256, 770), 273, 16),
        (90, 100, (256, 284), 30, 16),  # enlarged
    ],
)
@pytest.mark.parametrize("filter", FILTERS)
def test_shorter_side_and_centre_crop(
    height: int, width: int, to: tuple[int, int], left: int, top: int, filter: Any
) -> None:
    picture = noise(height, width)
    whole = by_pillow(picture, to[1], to[0], filter)
    expected = whole[top : top + 224, left : left + 224]
    assert distance(replace(IMAGENET, filter=filter).fit(picture), expected) <= (2 if filter == "bilinear" else 0)


def test_stretch_ignores_the_shape() -> None:
    picture = noise(50, 91)
    expected = by_pillow(picture, 40, 40, "bilinear")[4:36, 4:36]
    assert distance(replace(SMALL, resize="stretch", resize_to=40).fit(picture), expected) <= 2


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 24), st.integers(0, 12), st.sampled_from(list(FILTERS)))
@settings(max_examples=150, deadline=None)
def test_fit_gives_the_size_for_any_picture(height: int, width: int, size: int, border: int, filter: Any) -> None:
    preprocess = replace(IMAGENET, size=size, resize_to=size + border, filter=filter)
    assert (preprocess.fit(np.full((height, width, 3), 77, np.uint8)) == 77).all()
    assert preprocess.fit(noise(height, width, 1)).shape == (size, size, 1)


def test_fit_of_a_thread_of_a_picture_stays_small() -> None:
    """Resized whole, 1 x 30,000 pixels would be 224 x 6,720,000."""
    for filter in ("bilinear", "lanczos"):
        assert replace(IMAGENET, filter=filter).fit(noise(1, 30_000)).shape == (224, 224, 3)


def test_fit_leaves_a_fitting_picture_alone() -> None:
    picture = noise(32, 32)
    np.testing.assert_array_equal(SMALL.fit(picture), picture)
    assert np.shares_memory(SMALL.fit(picture), picture)


# --- Preprocess.normalise


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_normalise_is_the_formula(order: Any, channels: int, per_pixel: bool) -> None:
    rng = np.random.default_rng(5)
    mean = rng.random((channels, 6, 6)) if per_pixel else rng.random((channels, 1, 1))
    std = 0.2 + rng.random(channels)
    preprocess = Preprocess(
        6, "shorter", 6, "bilinear", channels, order, tuple(mean.ravel().tolist()), tuple(std.tolist()), True
    )
    batch = noise(4 * 6, 6, channels).reshape(4, 6, 6, channels)
    before = batch.copy()
    result = preprocess.normalise(torch.from_numpy(batch))
    pictures = batch[:, :, :, ::-1] if order == "BGR" else batch
    expected = (pictures.transpose(0, 3, 1, 2) / 255 - mean) / std[:, None, None]
    assert result.dtype == torch.float32
    assert result.shape == (4, channels, 6, 6)
    assert result.is_contiguous(memory_format=torch.channels_last)
    without_torch = preprocess.normalise_array(batch)
    assert without_torch.flags.c_contiguous
    np.testing.assert_allclose(without_torch, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(batch, before)
    again = preprocess.normalise(torch.from_numpy(batch))
    assert torch.equal(again, result)


def test_normalise_caffe_style() -> None:
    """The original weights want BGR, 0 to 255, minus a mean: std is 1/255 of white."""
    mean = (103.939, 116.779, 123.68)
    caffe = replace(SMALL, order="BGR", mean=tuple(value / 255 for value in mean), std=(1 / 255,) * 3)
    batch = noise(32, 32)[None]
    expected = batch[..., ::-1].transpose(0, 3, 1, 2).astype(np.float64) - np.array(mean)[:, None, None]
    np.testing.assert_allclose(caffe.normalise(torch.from_numpy(batch)).numpy(), expected, atol=1e-4)


# --- Preprocess as a value


@pytest.mark.parametrize("preprocess", [IMAGENET, GREY, replace(GREY, size=2, resize_to=2, mean=(0.1, 0.2, 0.3, 0.4))])
def test_dict_goes_through_json_and_back(preprocess: Preprocess) -> None:
    again = Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict())))
    assert again == preprocess
    assert hash(again) == hash(preprocess)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sise": 3}, r"unknown key 'sise'; did you mean 'size'\?"),
        ({"size": None}, "size=None: must be a whole number"),
        ({"size": 224.0}, "size=224.0: must be a whole number"),
        ({"size": True}, "size=True"),
        ({"size": 0}, "size=0"),
        ({"size": 257}, "resize_to=256: must be at least size, which is 257"),
        ({"resize": "longer"}, "resize='longer': choose from shorter, stretch"),
        ({"filter": "nearest"}, "filter='nearest': choose from bilinear, bicubic, box, lanczos"),
        ({"channels": 4}, "channels=4: choose from 1, 3"),
        ({"order": "GBR"}, "order='GBR': choose from RGB, BGR"),
        ({"order": ["RGB"]}, "order=.*choose from RGB, BGR"),
        ({"exif": "yes"}, "exif='yes': choose from True, False"),
        ({"exif": 1}, "exif=1"),
        ({"mean": [0.5]}, "mean: must be a list of 3 or 150528 numbers"),
        ({"mean": 0.5}, "mean: must be a list"),
        ({"mean": [0.5, "a", 0.5]}, "mean: must be finite numbers"),
        ({"mean": [0.5, math.nan, 0.5]}, "mean: must be finite numbers"),
        ({"std": [1, 1]}, "std: must be a list of 3 numbers"),
        ({"std": [1, 1, 0]}, "std=.*must be above 0"),
    ],
)
def test_from_dict_names_what_is_wrong(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocess.from_dict({**IMAGENET.to_dict(), **change})


def test_from_dict_names_every_missing_key() -> None:
    values = IMAGENET.to_dict()
    del values["exif"], values["size"]
    with pytest.raises(UserError, match="size, exif missing"):
        Preprocess.from_dict(values)


def test_text_for_people() -> None:
    assert str(IMAGENET) == (
        "shorter side 256 bilinear, centre 224, RGB, mean 0.485 0.456 0.406, std 0.229 0.224 0.225, EXIF on"
    )
    per_pixel = replace(GREY, size=2, resize_to=2, resize="stretch", mean=(0.1,) * 4, exif=False)
    assert str(per_pixel) == "stretched to 2 bilinear, centre 2, grey, mean per pixel, std 0.25, EXIF off"
