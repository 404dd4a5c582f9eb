"""Resizing of decoded pictures, antialiased as Pillow does it."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

try:
    import cykooz_resizer
except ImportError:  # no wheel for this machine; Pillow does the same, more slowly
    cykooz_resizer = None

Pixels = NDArray[np.uint8]
Filter = Literal["bilinear", "bicubic", "box", "lanczos"]

FILTERS: tuple[Filter, ...] = get_args(Filter)


def with_pillow(filter: Filter) -> bool:
    """Whether Pillow does it, and not cykooz-resizer, which is faster."""
    # cykooz-resizer resizes up and down first, Pillow whichever way is cheaper. That shows with filters that overshoot
    # (by 50 levels), and box breaks ties another way, so only bilinear, which is the usual one, can be left to it.
    return cykooz_resizer is None or filter != "bilinear"


def resized(
    picture: Pixels,
    width: int,
    height: int,
    filter: Filter,
    box: tuple[float, float, float, float] | None = None,
) -> Pixels:
    """(H, W, C) to (height, width, C), antialiased: Pillow's `resize(box=box, reducing_gap=None)` within 2 levels.

    `box` is (left, top, right, bottom) in source pixels, within the picture; pixels around it count at its edge. Where
    only whole pixels are cut out nothing is resampled. Runs in the calling thread and releases the GIL.
    """
    left, top, right, bottom = box or (0, 0, picture.shape[1], picture.shape[0])
    if (right - left, bottom - top) == (width, height) and left == int(left) and top == int(top):
        return picture[int(top) : int(bottom), int(left) : int(right)]
    if with_pillow(filter):
        from PIL import Image  # which the usual filter never needs

        kernel = Image.Resampling[filter.upper()]
        image = Image.fromarray(picture if picture.shape[2] == 3 else picture[:, :, 0])
        small = np.array(image.resize((width, height), kernel, (left, top, right, bottom), None))
        return small.reshape(height, width, -1)
    kind = cykooz_resizer.PixelType.U8x3 if picture.shape[2] == 3 else cykooz_resizer.PixelType.U8
    source = cykooz_resizer.ImageData(picture.shape[1], picture.shape[0], kind, picture.tobytes())
    target = cykooz_resizer.ImageData(width, height, kind)
    options = cykooz_resizer.ResizeOptions(
        resize_alg=cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear),
        crop_box=cykooz_resizer.CropBox(left, top, right - left, bottom - top),
        use_alpha=False,
    )
    cykooz_resizer.Resizer().resize(source, target, options)  # a resizer holds scratch space: one per call, not shared
    return np.array(np.frombuffer(target.get_buffer(), np.uint8)).reshape(height, width, -1)
