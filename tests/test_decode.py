"""`decode` against Pillow's own pixels, the stated rules for odd pictures, and one reason for every bad one."""

from __future__ import annotations

import io
import struct
import tarfile
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

import resnetkit.data.decode as module
from resnetkit.data.decode import MAX_PIXELS, Header, decode, probe
from resnetkit.errors import BadPicture

SAMPLE = Path(__file__).parents[1] / "../shared/data/imagenet-sample-250.tar.gz"


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def smooth(height: int = 37, width: int = 53, seed: int = 0) -> Image.Image:
    """A colourful picture that JPEG keeps recognisable."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def by_pillow(data: bytes, mode: str = "RGB") -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def png(width: int, height: int, depth: int, kind: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG by hand: Pillow writes neither 16-bit colour nor 16-bit transparency, nor sizes it has no pixels for."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    more = chunk(extra[:4], extra[4:]) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture(params=["simplejpeg", "Pillow alone"])
def decoders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test that asks for it runs twice: with simplejpeg, and as on a machine that has none."""
    if request.param == "Pillow alone":
        monkeypatch.setattr(module, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg")


@pytest.fixture(scope="session")
def sample_jpegs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    if not SAMPLE.exists():
        pytest.skip("imagenet-sample-250.tar.gz is not in ../shared/data")
    folder = tmp_path_factory.mktemp("jpegs")
    with tarfile.open(SAMPLE) as archive:
        archive.extractall(folder, filter="data")
    return sorted(folder.rglob("*.JPEG"))


# --- the same pixels as Pillow


def test_sample_pictures_have_pillows_pixels(sample_jpegs: list[Path]) -> None:
    assert len(sample_jpegs) == 250
    for path in sample_jpegs:
        data = path.read_bytes()
        np.testing.assert_array_equal(decode(data, exif=False), by_pillow(data), err_msg=path.name)


def test_sample_pictures_take_the_fast_way(sample_jpegs: list[Path]) -> None:
    pytest.importorskip("simplejpeg")
    slow = [path.name for path in sample_jpegs if module._fast_jpeg(path.read_bytes(), 3) is None]
    assert len(slow) <= 2  # stray bytes, which make libjpeg warn


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:2:0"},
        {"subsampling": "4:1:1"},
        {"progressive": True},
        {"restart_marker_blocks": 2},
        {"keep_rgb": True},
    ],
    ids=str,
)
@pytest.mark.usefixtures("decoders")
def test_jpeg_has_pillows_pixels(options: dict[str, object], mode: str, channels: int) -> None:
    data = saved(smooth().convert(mode), "JPEG", quality=88, **options)
    pixels = decode(data, channels=channels)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (37, 53, channels)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB").convert("L" if channels == 1 else "RGB"))
    np.testing.assert_array_equal(pixels, expected.reshape(37, 53, channels))


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF"])
def test_other_formats_have_pillows_pixels(form: str) -> None:
    data = saved(smooth().quantize(64) if form == "GIF" else smooth(), form)
    np.testing.assert_array_equal(decode(data), by_pillow(data))
    header = probe(data)
    assert (header.format, header.width, header.height, header.frames) == (form, 53, 37, 1)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF"])
def test_result_is_the_callers_to_change(form: str) -> None:
    data = saved(smooth(), form)
    pixels = decode(data)
    pixels[:] = 7
    assert (decode(data) != 7).any()


# --- odd but good


@pytest.mark.usefixtures("decoders")
def test_cmyk_jpeg_is_pillows_rgb() -> None:
    data = saved(smooth().convert("CMYK"), "JPEG")
    np.testing.assert_array_equal(decode(data), by_pillow(data))
    assert probe(data) == Header("JPEG", "CMYK", 53, 37, 1, 1)


def test_cmyk_tiff() -> None:
    data = saved(smooth().convert("CMYK"), "TIFF")
    np.testing.assert_array_equal(decode(data), by_pillow(data))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_its_high_byte(form: str) -> None:
    values = np.array([[0, 255, 256], [0x7FFF, 0x8000, 0xFFFF]], dtype=np.uint16)
    data = saved(Image.fromarray(values), form)
    assert decode(data, channels=1)[:, :, 0].tolist() == [[0, 0, 1], [0x7F, 0x80, 0xFF]]
    assert decode(data).tolist() == [[[v] * 3 for v in row] for row in [[0, 0, 1], [0x7F, 0x80, 0xFF]]]
    assert probe(data).mode.startswith("I")


def test_16_bit_colour_is_its_high_byte() -> None:
    data = png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0, 255, 256, 0x7FFF, 0x8000, 0xFFFF))
    assert decode(data).tolist() == [[[0, 0, 1], [0x7F, 0x80, 0xFF]]]


def test_16_bit_grey_with_a_transparent_value_is_white_there() -> None:
    data = png(3, 1, 16, 0, b"\0" + struct.pack(">3H", 0x1234, 0x1235, 0), b"tRNS" + struct.pack(">H", 0x1234))
    assert decode(data, channels=1).ravel().tolist() == [255, 0x12, 0]


def test_palette_becomes_its_colours() -> None:
    image = smooth().quantize(16)
    assert image.mode == "P"
    np.testing.assert_array_equal(decode(saved(image)), np.asarray(image.convert("RGB")))


def test_palette_with_transparency_lies_over_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    assert decode(saved(image, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    half = decode(saved(image, transparency=bytes([0, 128])))[0, 1]
    assert np.abs(half - (np.array([40, 50, 60]) * 128 + 255 * 127) / 255).max() <= 1


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (200, 100, 0)), ("LA", (90,))])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_alpha_lies_over_white(mode: str, colour: tuple[int, ...], form: str) -> None:
    image = Image.new(mode, (3, 1))
    image.putdata([(*colour, 0), (*colour, 255), (*colour, 64)])
    pixels = decode(saved(image, form, **({"lossless": True, "exact": True} if form == "WEBP" else {})))
    solid = np.resize(np.array(colour), 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 1].tolist() == solid.tolist()
    assert np.abs(pixels[0, 2] - (solid * 64 + 255 * 191) / 255).max() <= 1


def test_transparent_colour_without_alpha_lies_over_white() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    assert decode(saved(image, transparency=(1, 2, 3))).tolist() == [[[255] * 3, [9] * 3]]


def test_one_bit_is_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    for form in ("PNG", "TIFF", "PPM"):
        assert decode(saved(image, form)).tolist() == [[[0] * 3, [255] * 3]]
        assert decode(saved(image, form), channels=1).tolist() == [[[0], [255]]]


def test_grey_is_itu_601_luma() -> None:
    picture = smooth()
    exact = np.asarray(picture) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode(saved(picture), channels=1)[:, :, 0] - exact).max() <= 0.51


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animation_is_its_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert (decode(data) == [255, 0, 0]).all()
    assert probe(data).frames == 3


# --- EXIF orientation


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """An EXIF block by hand: one directory with a date-like entry before the orientation."""
    mark = b"II" if order == "<" else b"MM"
    value = struct.pack(order + ("I" if kind == 4 else "HH"), *([orientation] if kind == 4 else [orientation, 0]))
    entries = struct.pack(order + "HHI", 0x010F, 2, 4) + b"abc\0" + struct.pack(order + "HHI", 0x0112, kind, 1) + value
    return b"Exif\0\0" + mark + struct.pack(order + "HIH", 42, 8, 2) + entries + struct.pack(order + "I", 0)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.usefixtures("decoders")
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    block = Image.Exif()
    block[0x0112] = orientation
    data = saved(smooth(), form, exif=block)
    with Image.open(io.BytesIO(data)) as image:
        as_stored = None if form == "TIFF" else np.asarray(image.convert("RGB"))
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode(data), upright)
    header = probe(data)
    assert (header.height, header.width) == upright.shape[:2]
    assert header.orientation == orientation
    if as_stored is not None:
        np.testing.assert_array_equal(decode(data, exif=False), as_stored)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.usefixtures("decoders")
def test_exif_of_either_byte_order_and_width(order: str, kind: int) -> None:
    data = saved(smooth(), "JPEG", exif=exif(6, order, kind))
    assert decode(data).shape == (53, 37, 3)


@pytest.mark.parametrize("orientation", [0, 9, 255])
@pytest.mark.usefixtures("decoders")
def test_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    data = saved(smooth(), "JPEG", exif=exif(orientation))
    assert decode(data).shape == (37, 53, 3)
    assert probe(data).orientation == 1


@pytest.mark.usefixtures("decoders")
def test_damaged_exif_is_none() -> None:
    block = exif(6)
    for end in range(len(block) - 8):
        assert decode(saved(smooth(8, 9), "JPEG", exif=block[:end])).shape == (8, 9, 3)
    loop = b"Exif\0\0II*\0" + struct.pack("<I", 0xFFFFFFFF)
    assert decode(saved(smooth(8, 9), "JPEG", exif=loop)).shape == (8, 9, 3)


def test_exif_behind_other_segments_is_found() -> None:
    plain = saved(smooth(), "JPEG", comment=b"x" * 300)
    block = exif(6)
    late = plain[:20] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[20:]  # behind JFIF
    assert decode(late).shape == (53, 37, 3)
    assert decode(late, exif=False).shape == (37, 53, 3)


# --- bad


@pytest.mark.parametrize("read", [decode, probe])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"just some text\n", "not a picture"),
        (b"\0" * 100, "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a picture"),
        (b"\xff\xd8\xff", "JPEG"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG|cut off"),
        (b"\x89PNG\r\n\x1a\n", "PNG|cut off"),
        (b"BMW is a car", "BMP|cut off"),
        (b"GIF89a", "GIF|cut off"),
        (b"II*\0 tiff", "TIFF"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WEBP"),
        (b"P6 is a paper size", "PPM"),
    ],
)
@pytest.mark.usefixtures("decoders")
def test_no_picture(read: Callable[[bytes], object], data: bytes, reason: str) -> None:
    with pytest.raises(BadPicture, match=reason) as caught:
        read(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF"])
@pytest.mark.usefixtures("decoders")
def test_cut_off_anywhere(form: str) -> None:
    rng = np.random.default_rng(3)
    data = saved(Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)), form)
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        with pytest.raises(BadPicture) as caught:
            decode(data[: int(share * len(data))])
        assert "\n" not in str(caught.value)


def test_cut_off_says_so() -> None:
    data = saved(smooth(200, 300), "JPEG")
    with pytest.raises(BadPicture, match=r"^cut off: the file ends after 1,500 bytes"):
        decode(data[:1500])


def test_damaged_inside() -> None:
    data = bytearray(saved(smooth(200, 300), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BadPicture, match="PNG"):
        decode(bytes(data))


def bombs() -> dict[str, bytes]:
    jpeg = bytearray(saved(smooth(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 50_000, 50_000)
    gif = bytearray(saved(smooth().quantize(4), "GIF"))
    gif[6:10] = struct.pack("<HH", 50_000, 50_000)
    return {
        "JPEG": bytes(jpeg),
        "PNG": png(50_000, 50_000, 8, 2, b""),
        "GIF": bytes(gif),
        "PPM": b"P6 50000 50000 255\n",
    }


@pytest.mark.parametrize("read", [decode, probe])
@pytest.mark.parametrize("form", bombs())
@pytest.mark.usefixtures("decoders")
def test_bomb_is_refused_from_the_header(read: Callable[[bytes], object], form: str) -> None:
    with pytest.raises(BadPicture, match=r"^decompression bomb: 50000x50000 pixels"):
        read(bombs()[form])


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_large_pictures_give_no_warning(threshold: float) -> None:
    """Pillow's `open` warns from MAX_PIXELS / 2 on; here a size is either read or refused."""
    side = int((MAX_PIXELS * threshold) ** 0.5)
    data = png(side, side, 1, 0, b"\0" * (((side + 7) // 8 + 1) * side))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert probe(data).width == side
        with pytest.raises(BadPicture, match="decompression bomb"):
            probe(png(side, int(side / threshold) + 2, 1, 0, b""))
    assert not caught


def test_float_pixels_are_refused() -> None:
    data = saved(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF")
    with pytest.raises(BadPicture, match="floating-point"):
        decode(data)


def test_32_bit_pixels_are_refused_unless_they_fit_16() -> None:
    assert decode(saved(Image.fromarray(np.full((2, 2), 0x1234, np.int32)), "TIFF"), channels=1).max() == 0x12
    with pytest.raises(BadPicture, match="32-bit pixels from 70000 to 70000"):
        decode(saved(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"))


def test_channels_are_1_or_3() -> None:
    with pytest.raises(ValueError, match="channels=4"):
        decode(saved(smooth()), channels=4)


# --- threads


def test_threads_at_once_give_the_same_pixels() -> None:
    files = [saved(smooth(60, 80, seed), form) for seed in range(6) for form in ("JPEG", "PNG", "WEBP", "TIFF")]
    alone = [decode(data) for data in files]
    with ThreadPoolExecutor(4) as pool:
        for expected, pixels in zip(alone * 5, pool.map(decode, files * 5), strict=True):
            np.testing.assert_array_equal(pixels, expected)
