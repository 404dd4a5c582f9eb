"""The same picture through ours and through the peers' own preprocessing: torchvision, timm and Transformers."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import resnetkit.data.resizing as module
from resnetkit.data.decode import decode
from resnetkit.data.transforms import Preprocess
from torchvision_shim import peer

transforms = peer("torchvision.transforms")
timm_data = peer("timm.data")
transformers = peer("transformers")

Pixels = NDArray[np.uint8]
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}
FAST = module.cykooz_resizer
few = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["pillow", "fast"])
def levels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """How far a filter's result may lie from the peer's, with either resizer.

    Nothing, where Pillow resizes the whole picture as it does for the peers; 2 levels for the fast bilinear one, which
    resizes only what the crop keeps.
    """
    bilinear = 0 if request.param == "pillow" else 2
    if request.param == "pillow":
        monkeypatch.setattr(module, "cykooz_resizer", None)
    elif FAST is None:
        pytest.skip("cykooz-resizer has no wheel for this machine")
    return lambda filter: bilinear if filter == "bilinear" else 0


@st.composite
def pictures(draw: st.DrawFn) -> Pixels:
    """Noise, or a smooth picture that reaches black and white; odd, tall and wide ones, up to 15 times as long as wide.

    (Beyond 16 the whole is never resized, by any filter, as it could fill the memory.)
    """
    height, width = draw(st.integers(6, 90)), draw(st.integers(6, 90))
    dice = np.random.default_rng(draw(st.integers(0, 999)))
    if draw(st.booleans()):
        return dice.integers(0, 256, (height, width, 3), dtype=np.uint8)
    down, across = np.mgrid[0:height, 0:width]
    waves = [np.sin(down * a + across * b + c) for a, b, c in dice.uniform(0, 0.3, (3, 3))]
    return np.clip(128 + 150 * np.stack(waves, axis=2), 0, 255).astype(np.uint8)


def ours(size: int, resize_to: int, filter: Any, centre: Any = "even") -> Preprocess:
    return Preprocess(size, "shorter", resize_to, filter, 3, "RGB", (0.0,) * 3, (1.0,) * 3, True, centre)


def distance(a: Any, b: Any) -> int:
    one, other = np.asarray(a, dtype=int), np.asarray(b, dtype=int)
    assert one.shape == other.shape
    return int(np.abs(one - other).max())


FILTER = st.sampled_from(sorted(FILTERS))
SIZE = st.integers(1, 48)
BORDER = st.integers(0, 17)


@few
@given(pictures(), SIZE, BORDER, FILTER)
def test_torchvision(levels: Callable[[str], int], picture: Pixels, size: int, border: int, filter: str) -> None:
    modes = transforms.InterpolationMode
    steps = [transforms.Resize(size + border, modes(filter), antialias=True), transforms.CenterCrop(size)]
    theirs = transforms.Compose(steps)(Image.fromarray(picture))
    assert distance(ours(size, size + border, filter).fit(picture), theirs) <= levels(filter)


@few
@given(pictures(), SIZE, st.sampled_from([0.6, 0.75, 0.875, 0.9, 0.95, 1.0]), FILTER)
def test_timm(levels: Callable[[str], int], picture: Pixels, size: int, share: float, filter: str) -> None:
    """Its crop percentage p becomes the shorter side floor(size / p)."""
    theirs = timm_data.create_transform(
        size, is_training=False, interpolation=filter, crop_pct=share, normalize=False, mean=(0,) * 3, std=(1,) * 3
    )(Image.fromarray(picture))
    theirs = theirs.numpy() if hasattr(theirs, "numpy") else np.asarray(theirs).transpose(2, 0, 1)
    fitted = ours(size, int(np.floor(size / share)), filter).fit(picture)
    assert distance(fitted.transpose(2, 0, 1), theirs) <= levels(filter)


@few
@given(pictures(), SIZE, BORDER, FILTER)
def test_transformers_bit(levels: Callable[[str], int], picture: Pixels, size: int, border: int, filter: str) -> None:
    processor = transformers.BitImageProcessorPil(
        size={"shortest_edge": size + border},
        crop_size={"height": size, "width": size},
        resample=FILTERS[filter],
        do_rescale=False,
        do_normalize=False,
    )
    theirs = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    fitted = ours(size, size + border, filter, "down").fit(picture)
    assert distance(fitted.transpose(2, 0, 1), theirs) <= levels(filter)


@few
@given(pictures(), SIZE, st.sampled_from([0.6, 0.75, 0.875, 0.9, 1.0]), FILTER)
def test_transformers_convnext(
    levels: Callable[[str], int], picture: Pixels, size: int, share: float, filter: str
) -> None:
    """Below 384 pixels it resizes to int(size / crop_pct) and crops, as the files of published ResNets ask for."""
    processor = transformers.ConvNextImageProcessorPil(
        size={"shortest_edge": size},
        crop_pct=share,
        resample=FILTERS[filter],
        do_rescale=False,
        do_normalize=False,
    )
    theirs = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    fitted = ours(size, int(size / share), filter, "down").fit(picture)
    assert distance(fitted.transpose(2, 0, 1), theirs) <= levels(filter)


@pytest.mark.parametrize("filter", sorted(FILTERS))
@pytest.mark.parametrize(("height", "width"), [(500, 375), (201, 640)])
def test_transformers_convnext_stretches_from_384_pixels_on(filter: str, height: int, width: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    processor = transformers.ConvNextImageProcessorPil(
        size={"shortest_edge": 384}, resample=FILTERS[filter], do_rescale=False, do_normalize=False
    )
    theirs = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    stretched = Preprocess(384, "stretch", 384, filter, 3, "RGB", (0.0,) * 3, (1.0,) * 3, True)  # type: ignore[arg-type]
    assert distance(stretched.fit(picture).transpose(2, 0, 1), theirs) <= (2 if filter == "bilinear" else 0)


# Decoding


@settings(max_examples=80)
@given(
    pictures(),
    st.sampled_from(["RGB", "L", "CMYK"]),
    st.sampled_from([5, 30, 75, 90, 100]),
    st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    st.booleans(),
)
def test_jpegs_decode_to_pillows_pixels(picture: Pixels, mode: str, quality: int, chroma: str, scans: bool) -> None:
    file = io.BytesIO()
    options = {} if mode == "L" else {"subsampling": chroma}
    Image.fromarray(picture).convert(mode).save(file, "JPEG", quality=quality, progressive=scans, **options)
    with Image.open(io.BytesIO(file.getvalue())) as image:
        theirs = np.asarray(image.convert("RGB"))
        grey = np.asarray(image.convert("L"))
    assert np.array_equal(decode(file.getvalue()), theirs)
    if mode != "CMYK":
        assert np.array_equal(decode(file.getvalue(), channels=1)[:, :, 0], grey)
