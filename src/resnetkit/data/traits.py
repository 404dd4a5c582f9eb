"""One full decode of every picture: what can be measured of a file and of its pixels, kept in about a kilobyte each.

The perceptual hash is the usual one of 64 bits (pHash): grey, 32x32, the 8x8 lowest terms of the cosine transform, each
against their median. Quality of a JPEG is read off its first quantisation table, as the scale that the Independent
JPEG Group's library would take to get there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.audit import GREY, in_threads, oddities
from resnetkit.data.decode import decode, probe
from resnetkit.data.pictures import Data, Indices, Pixels
from resnetkit.errors import BadPicture

SIDE, SMALL = 32, 16  # of what is hashed; of what is kept to compare by
BATCH = 256  # pictures whose hashes are taken at a time
FLAT = 12  # levels between the darkest and the lightest of a row that is border
TRAITS = ("width", "height", "aspect", "bytes", "bits per pixel", "brightness", "contrast", "colour", "border")
QUALITY = "JPEG quality"

# Sums over the luminance table of the JPEG standard (annex K.1), which quality 50 stands for: all 64 values, and the
# first ten, which stay below 255 where low qualities cut the others off.
STANDARD, STANDARD_FIRST = 3688, 132

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Seen:
    """One picture, decoded once."""

    index: int
    error: str = ""
    odd: tuple[str, ...] = ()
    bytes_digest: bytes = b""  # SHA-256, first 16 bytes
    pixel_digest: bytes = b""
    width: int = 0
    height: int = 0
    size: int = 0  # bytes
    quality: float = math.nan
    thumb: Pixels | None = None  # (SIDE, SIDE, 3)


@dataclass(frozen=True, eq=False)
class Traits:
    """Of n pictures that could be decoded, a row each; `error` has the others, index to reason.

    indices       int64 (n,), ascending
    bytes_digest, pixel_digest   bytes (n,), of the file and of the upright pixels with their size
    hashes        uint64 (n, 2): the perceptual hash, and that of the mirror image
    small         uint8 (n, SMALL, SMALL, 3)
    values        name of a property to float64 (n,); NaN where a picture has none
    odd           index to what is unusual about how it is stored
    """

    indices: Indices
    bytes_digest: NDArray[np.bytes_]
    pixel_digest: NDArray[np.bytes_]
    hashes: NDArray[np.uint64]
    small: Pixels
    values: dict[str, NDArray[np.float64]]
    error: dict[int, str]
    odd: dict[int, tuple[str, ...]]


def scan(data: Data, *, threads: int, progress: Progress | None = None) -> Traits:
    """Decode every picture that is in a split, in threads, and keep what is measured of it.

    progress  is called with how many are done and how many there are
    """
    wanted = data.used()
    seen: list[Seen] = []
    measured: list[tuple[NDArray[np.uint64], Pixels, NDArray[np.float64]]] = []
    found = in_threads(lambda index: look(data, index), wanted, threads)
    done = 0
    while batch := list(islice(found, BATCH)):
        done += len(batch)
        thumbs = [one.thumb for one in batch if one.thumb is not None]
        if thumbs:
            measured.append(measure(np.stack(thumbs)))
        seen += [without_thumb(one) for one in batch]
        if progress is not None:
            progress(done, len(wanted))
    good = [one for one in seen if not one.error]
    none = (np.zeros((0, 2), np.uint64), np.zeros((0, SMALL, SMALL, 3), np.uint8), np.zeros((0, 4)))
    hashes, small, pixels = (np.concatenate(parts) for parts in zip(none, *measured, strict=True))
    return Traits(
        np.array([one.index for one in good], np.int64),
        np.array([one.bytes_digest for one in good], "S16"),
        np.array([one.pixel_digest for one in good], "S16"),
        hashes,
        small,
        table(good, pixels),
        {one.index: one.error for one in seen if one.error},
        {one.index: one.odd for one in good if one.odd},
    )


def without_thumb(one: Seen) -> Seen:
    return Seen(**{**vars(one), "thumb": None})


def look(data: Data, index: int) -> Seen:
    """Read, hash, decode and shrink one picture; all that costs time lets go of the interpreter lock."""
    from PIL import Image

    try:
        stored = data.pictures.read(index)
        odd: tuple[str, ...] = ()
        if isinstance(stored, np.ndarray):
            pixels = stored if stored.shape[2] == 3 else np.repeat(stored, 3, axis=2)
            content, quality = stored.tobytes(), math.nan
        else:
            content, header = stored, probe(stored)
            pixels = decode(stored)
            odd, quality = oddities(header, data.pictures.name(index)), jpeg_quality(stored)
            if header.orientation in (2, 4, 5, 7):
                odd = tuple("EXIF-mirrored" if what == "EXIF-rotated" else what for what in odd)
            if header.mode in GREY:
                odd = (*odd, "grey")
    except OSError as error:
        return Seen(index, error=f"cannot be opened: {error.strerror}")
    except BadPicture as error:
        return Seen(index, error=str(error))
    height, width = pixels.shape[:2]
    shown = hashlib.sha256(b"%d %d " % (width, height))
    shown.update(np.ascontiguousarray(pixels).data)
    thumb = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX))
    own = hashlib.sha256(content).digest()[:16]
    return Seen(index, "", odd, own, shown.digest()[:16], width, height, len(content), quality, thumb)


def measure(thumbs: Pixels) -> tuple[NDArray[np.uint64], Pixels, NDArray[np.float64]]:
    """Of thumbs (n, SIDE, SIDE, 3) hashes (n, 2), small pictures, and brightness, contrast, colour, border (n, 4)."""
    n = len(thumbs)
    small = thumbs.reshape(n, SMALL, SIDE // SMALL, SMALL, SIDE // SMALL, 3).mean((2, 4)).round().astype(np.uint8)
    grey: NDArray[np.float32] = thumbs.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    hashes = np.stack([phash(grey), phash(grey[:, :, ::-1])], axis=1)
    colour = (thumbs.max(3).astype(np.float32) - thumbs.min(3)).mean((1, 2))
    about = np.stack([grey.mean((1, 2)), grey.std((1, 2)), colour, border(grey)], axis=1)
    return hashes, small, about.astype(np.float64)


def phash(grey: NDArray[np.float32]) -> NDArray[np.uint64]:
    """64 bits (n,) of grey pictures (n, SIDE, SIDE)."""
    k, x = np.arange(8)[:, None], np.arange(SIDE)
    basis = np.cos(np.pi / SIDE * (x + 0.5) * k).astype(np.float32)
    terms = (basis @ grey @ basis.T).reshape(-1, 64)
    terms[:, 0] = 0  # the mean, which brightness changes
    bits = terms > np.median(terms[:, 1:], axis=1, keepdims=True)
    packed: NDArray[np.uint64] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return packed


def border(grey: NDArray[np.float32]) -> NDArray[np.float64]:
    """The share of each picture that is rows and columns of one grey around it: bars, frames, white margins."""
    flat_rows = np.ptp(grey, axis=2) <= FLAT
    flat_columns = np.ptp(grey, axis=1) <= FLAT
    sides = [np.minimum.accumulate(flat[:, ::step], 1).sum(1) for flat in (flat_rows, flat_columns) for step in (1, -1)]
    top, bottom, left, right = (np.minimum(side, SIDE) for side in sides)
    inner = np.maximum(SIDE - top - bottom, 0) * np.maximum(SIDE - left - right, 0)
    share: NDArray[np.float64] = 1 - inner / SIDE**2
    return share


def table(good: list[Seen], pixels: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The properties by name."""
    width, height, size = np.array([(one.width, one.height, one.size) for one in good], np.float64).reshape(-1, 3).T
    columns = [width, height, width / height, size, 8 * size / (width * height), *pixels.T]
    quality = np.array([one.quality for one in good], np.float64)
    return {**dict(zip(TRAITS, columns, strict=True)), QUALITY: quality}


def jpeg_quality(data: bytes) -> float:
    """1 … 100 of a JPEG; NaN of what is none, or has no 8-bit table before its scan."""
    at = 2 if data.startswith(b"\xff\xd8\xff") else len(data)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = data[at + 2] << 8 | data[at + 3]
        if data[at + 1] == 0xDB and at + 69 <= len(data) and data[at + 4] == 0:
            values = data[at + 5 : at + 69]
            cut = max(values) == 255
            scale = 100 * sum(values[:10]) / STANDARD_FIRST if cut else 100 * sum(values) / STANDARD
            return float(min(100, max(1, round((200 - scale) / 2 if scale <= 100 else 5000 / scale))))
        at += 2 + length if data[at + 1] != 0xFF else 1
    return math.nan
