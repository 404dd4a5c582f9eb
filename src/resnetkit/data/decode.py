"""Bytes of a picture file to pixels: one small module, so that a faster decoder has one place to go.

The format is taken from the content, never from a suffix: JPEG, PNG, GIF, BMP, TIFF, WebP, PPM. Pixels are Pillow's.
Grey and RGB JPEGs are decoded by simplejpeg where it is installed (libjpeg-turbo with the accurate DCT and smooth
upsampling, as Pillow sets it, without Pillow's per-picture cost); a JPEG that it refuses goes to Pillow. Where
resnetkit-native is installed (native/README.md), `croppable` decodes no more of a JPEG than is wanted. All release the
GIL, and nothing here keeps state, so threads may decode at once.

  picture                         becomes
  16-bit                          the high byte of each value
  32-bit integers                 the same where all values fit 16 bits, otherwise refused
  floating point                  refused: the file does not say which value is white
  palette                         its colours
  alpha, transparent colour       laid over white
  CMYK, YCbCr                     RGB as Pillow converts it; colour profiles are not applied
  grey, one-bit as channels=3     three equal channels; one-bit is 0 and 255
  colour as channels=1            ITU-R 601 luma (0.299 R + 0.587 G + 0.114 B), Pillow's "L"
  EXIF orientation                applied when exif=True; TIFF's own orientation tag is part of the format, so always
  animation, several pages        the first
  above MAX_PIXELS                refused, from the header, before anything is decoded
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import BadPicture

if TYPE_CHECKING:  # Pillow is imported when a picture needs it: most JPEGs do not, and it takes as long as they do
    from PIL.ImageFile import ImageFile
    from PIL.TiffImagePlugin import TiffImageFile

try:
    import simplejpeg
except ImportError:  # no wheel for this machine; Pillow alone gives the same pixels
    simplejpeg = None
try:
    import resnetkit_native
except ImportError:  # it is built by hand; without it whole pictures are decoded
    resnetkit_native = None

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

MAX_PIXELS = 178_956_970  # where Pillow too refuses; the warning it gives from half of that on is not given here

# Pillow's readers are called directly: `Image.open` would warn about large pictures, and warnings can only be
# silenced for all threads at once.
_READERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"\xff\xd8\xff"), "Jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "Png"),
    (re.compile(rb"GIF8[79]a"), "Gif"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "WebP"),
    (re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), "Tiff"),
    (re.compile(rb"BM"), "Bmp"),
    (re.compile(rb"P[1-6f]\s"), "Ppm"),
)
_JPEG_MODES = {"Gray": "L", "YCbCr": "RGB", "RGB": "RGB", "CMYK": "CMYK", "YCCK": "CMYK"}

# EXIF orientation: (swap the axes, then reverse rows, then reverse columns) makes the picture upright.
_UPRIGHT = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@dataclass(frozen=True)
class Header:
    """What a picture's header says. The pixels behind it may still turn out to be damaged."""

    format: str  # "JPEG", "PNG", …
    mode: str  # Pillow's name: "RGB", "L", "P", "CMYK", "I;16", …
    width: int  # as shown: after the orientation
    height: int
    orientation: int  # 1 … 8 as in EXIF; 1 is upright
    frames: int


def decode(data: bytes, *, channels: int = 3, exif: bool = True) -> Pixels:
    """The picture as uint8 (H, W, channels), a new array; `channels` is 1 (grey) or 3 (RGB).

    `exif` turns the picture as its EXIF orientation says. Raises BadPicture with the reason.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}: choose 1 (grey) or 3 (RGB)")
    pixels = _fast_jpeg(data, channels)
    if pixels is not None:
        return _upright(pixels, _orientation(_jpeg_exif(data))) if exif else pixels
    with _opened(data) as image:
        image.load()  # PNG may keep its EXIF behind the pixels
        orientation = _orientation(_exif(data, image)) if exif else 1
        return _upright(_pixels(image, channels), orientation)


def native_version() -> str | None:
    """Of the resnetkit-native that crops are decoded with; None where it is not installed."""
    return str(resnetkit_native.__version__) if resnetkit_native is not None else None


class Jpeg:
    """A JPEG of which only a crop will be wanted: its `shape` from the header, the pixels when they are asked for."""

    def __init__(self, data: bytes, width: int, height: int, channels: int, exif: bool) -> None:
        self.data, self.exif = data, exif
        self.shape = (height, width, channels)

    def decoded(self) -> Pixels:
        """All of its pixels, as `decode` gives them. Raises BadPicture."""
        return decode(self.data, channels=self.shape[2], exif=self.exif)

    def crop(self, box: Box, size: int, *, around: bool, flip: bool) -> Pixels | None:
        """The box, resized to (size, size, C) as Pillow's bilinear does; None where all must be decoded instead.

        Within 2 levels of `decoded`, cut and resized. What lies below the box is not looked at, so damage there
        passes. With `around`, pixels around the box count at its edge. `flip` mirrors the result.
        """
        left, top, right, bottom = box
        out: Pixels = np.empty((size, size, self.shape[2]), np.uint8)
        where = (left, top, right - left, bottom - top)
        try:
            resnetkit_native.decode_crop(self.data, where, size, flip, self.shape[2], out=out, around=around)
        except ValueError:
            return None
        return out


def croppable(data: bytes, *, channels: int, exif: bool) -> Jpeg | None:
    """The JPEG, where resnetkit-native is installed and can cut pieces out of it; None where `decode` has to do.

    Raises BadPicture for a size that `decode` refuses.
    """
    if resnetkit_native is None or not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        width, height = resnetkit_native.size(data)
    except ValueError:
        return None
    _check_size(width, height)
    turned = exif and _orientation(_jpeg_exif(data)) != 1
    return None if turned else Jpeg(data, width, height, channels, exif)


def effort(data: bytes) -> tuple[int, int]:
    """Pixels that a picture has by its header, and how often a JPEG goes over them: what `decode` will take, found out
    before. Raises BadPicture as `probe`, but looks at no second page."""
    head = _jpeg_head(data) if data.startswith(b"\xff\xd8\xff") else None
    if head is not None:
        return head[0] * head[1], scans(data)
    with _opened(data) as image:
        return image.width * image.height, scans(data) if image.format == "JPEG" else 1


def scans(data: bytes) -> int:
    """Scans of the first picture in a JPEG: 1, or some ten where it is progressive; a hostile one has thousands."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        at += 1 if data[at + 1] == 0xFF else 2 + (data[at + 2] << 8 | data[at + 3])
    end = data.find(b"\xff\xd9", at)
    return max(1, data.count(b"\xff\xda", at, end if end >= 0 else len(data)))


def probe(data: bytes) -> Header:
    """The picture's header, without decoding. Raises BadPicture where `decode` would for the header's sake."""
    head = _jpeg_head(data)
    if head is not None:
        height, width, colour = head
        orientation = _orientation(_jpeg_exif(data))
        if orientation > 4:
            width, height = height, width
        return Header("JPEG", _JPEG_MODES[colour], width, height, orientation, frames=1)
    with _opened(data) as image:
        width, height = image.size
        if image.format == "TIFF":  # its size is already that of the upright picture
            tiff: TiffImageFile = image  # type: ignore[assignment]
            orientation = tiff.tag_v2.get(274, 1)
        else:
            orientation = _orientation(_exif(data, image))
            if orientation > 4:
                width, height = height, width
        frames = getattr(image, "n_frames", 1)
        return Header(str(image.format), image.mode, width, height, orientation, frames)


def _jpeg_head(data: bytes) -> tuple[int, int, str] | None:
    """(height, width, colour space) of a JPEG; None where Pillow should look instead."""
    if simplejpeg is None or not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_size(width, height)
    return (height, width, colour) if colour in _JPEG_MODES else None


def _fast_jpeg(data: bytes, channels: int) -> Pixels | None:
    """The pixels of a grey or RGB JPEG as it is stored; None where Pillow should decode instead."""
    head = _jpeg_head(data)
    if head is None or _JPEG_MODES[head[2]] == "CMYK":
        return None
    grey = channels == 1 and head[2] == "Gray"
    try:
        # strict: whatever makes libjpeg as much as warn is left to Pillow to judge.
        pixels: Pixels = simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB", strict=True)
    except ValueError:
        return None
    return pixels if pixels.shape[2] == channels else luma(pixels)


def luma(picture: Pixels) -> Pixels:
    """(H, W, 3) RGB to (H, W, 1) grey, as Pillow's "L": (19595 R + 38470 G + 7471 B + 2**15) >> 16."""
    from PIL import Image

    return np.array(Image.fromarray(picture).convert("L"))[:, :, None]


@contextmanager
def _opened(data: bytes) -> Iterator[ImageFile]:
    """Pillow's reader for the data; whatever goes wrong in the block becomes a BadPicture."""
    if not data:
        raise BadPicture("empty file")
    name = next((name for signature, name in _READERS if signature.match(data)), None)
    if name is None:
        raise BadPicture("not a picture (of JPEG, PNG, GIF, BMP, TIFF, WebP or PPM)")
    from PIL import Image

    reader = getattr(import_module(f"PIL.{name}ImagePlugin"), f"{name}ImageFile")
    # Pillow would look for the resolution in a JPEG's EXIF block, and warn where that is damaged: hide it.
    shown = data.replace(b"Exif\0\0", b"none\0\0", 1) if name == "Jpeg" else data
    try:
        with reader(io.BytesIO(shown)) as image:
            _check_size(*image.size)
            yield image
    except (BadPicture, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadPicture(f"decompression bomb: {error}") from error
    except Exception as error:  # readers raise what their formats' damage happens to run into
        raise BadPicture(_reason(error, str(reader.format), len(data))) from error


def _reason(error: Exception, form: str, size: int) -> str:
    """What Pillow's error tells, in words for people. What its header readers stumble on, it wraps in SyntaxError."""
    message = str(error)
    if "truncated" in message.lower():
        return f"cut off: the file ends after {size:,} bytes, its picture does not"
    if isinstance(error, SyntaxError) and (error.__cause__ or "not identified" in message):
        return f"damaged {form}: its header ends early or makes no sense"
    return f"damaged {form}: {message or type(error).__name__}"


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadPicture(f"decompression bomb: {width}x{height} pixels, more than {MAX_PIXELS:,}")
    if width < 1 or height < 1:
        raise BadPicture(f"no pixels: its size is {width}x{height}")


def _pixels(image: ImageFile, channels: int) -> Pixels:
    """The pixels of a loaded picture by the rules of the module's table, before its orientation."""
    if image.mode == "F":
        raise BadPicture("floating-point pixels, which have no stated white; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return np.repeat(_high_byte(image)[:, :, None], channels, axis=2)
    from PIL import Image

    plain: Image.Image = image
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        plain = Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
    if plain.mode not in ("1", "L", "RGB"):
        plain = plain.convert("RGB")
    pixels: Pixels = np.array(plain.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _high_byte(image: ImageFile) -> Pixels:
    """(H, W) grey of a picture with 16 or 32 bits per pixel."""
    values: NDArray[np.integer] = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise BadPicture(f"32-bit pixels from {low} to {high}; save it with 8 or 16 bits")
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return grey


def _exif(data: bytes, image: ImageFile) -> bytes:
    """The EXIF block of an opened picture, or nothing."""
    block = _jpeg_exif(data) if image.format == "JPEG" else image.info.get("exif")
    return block if isinstance(block, bytes) else b""


def _jpeg_exif(data: bytes) -> bytes:
    """The EXIF block of a JPEG, or nothing. Walks the few segments before the scan; Pillow's own opening of a file
    costs more than decoding a small picture does."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:  # start of scan
            break
        if marker == 0xE1 and data.startswith(b"Exif\0\0", at + 4):
            return data[at + 4 : at + 2 + (data[at + 2] << 8 | data[at + 3])]
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return b""


def _orientation(exif: bytes) -> int:
    """1 … 8 from an EXIF block (a TIFF structure; tag 0x0112 of its first directory); 1 where there is none to read."""
    if not exif:
        return 1
    exif = exif.removeprefix(b"Exif\0\0")
    order = "<" if exif[:2] == b"II" else ">"
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, directory)
        for at in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, at)
            if tag == 0x0112:
                (value,) = struct.unpack_from(f"{order}{'I' if kind == 4 else 'H'}", exif, at + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:  # the block ends early: as good as none
        pass
    return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation == 1:
        return pixels
    swap, rows, columns = _UPRIGHT[orientation]
    if swap:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1])
