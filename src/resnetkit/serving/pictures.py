"""Bytes from strangers to the network's input, as `resnet predict` has it, after a look at what they would take."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.decode import effort
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import BadPicture

SCANS = 12  # of a progressive JPEG as large as may be; the usual script has ten. Smaller pictures may have more

Pixels = NDArray[np.uint8]


def prepared(data: bytes, preprocess: Preprocess, most: int) -> Pixels:
    """uint8 (size, size, C) of a picture of `most` pixels at most.

    Raises BadPicture; before anything is decoded, where the picture is too large.
    """
    pixels, scans = effort(data)
    if pixels > most:
        raise BadPicture(f"too large: {pixels:,} pixels, and {most:,} may be")
    if pixels * scans > SCANS * most:
        raise BadPicture(f"takes too much work: {scans:,} scans of {pixels:,} pixels")
    try:
        return preprocess.fit(preprocess.open(data))
    except MemoryError:
        raise BadPicture("takes more memory than there is") from None
