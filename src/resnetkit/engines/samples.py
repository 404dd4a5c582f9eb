"""Pictures made by arithmetic, to ask engines for answers, and whether two engines agree on them."""

from __future__ import annotations

import numpy as np

from resnetkit.engines.engine import Logits, Pixels

BLOBS = 6
TOLERANCE = {"fp32": 1e-3, "int8": 5e-2}  # shares of the largest logit; int8 kernels of two engines round differently


def sample_pictures(n: int, size: int, channels: int) -> Pixels:
    """uint8 (n, size, size, C): a smooth gradient, blobs and noise in each, as in photographs; always the same ones."""
    across, down = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    pictures = np.empty((n, size, size, channels), dtype=np.uint8)
    for index in range(n):
        draws = np.random.Generator(np.random.Philox(index))
        direction, colours = draws.uniform(-1, 1, 2), draws.uniform(-1, 1, (2, channels))
        value = (across * direction[0] + down * direction[1])[:, :, None] * colours[0] + colours[1] / 2
        for _ in range(BLOBS):
            x, y, radius = draws.uniform(0, 1), draws.uniform(0, 1), draws.uniform(0.05, 0.3)
            near = np.exp(-((across - x) ** 2 + (down - y) ** 2) / radius**2)
            value = value + near[:, :, None] * draws.uniform(-1, 1, channels)
        value = value + draws.normal(0, 0.05, value.shape)
        pictures[index] = np.clip(128 + 100 * value, 0, 255)
    return pictures


def difference(reference: Logits, other: Logits) -> float:
    """The largest one between two engines' logits, as a share of the largest logit, or of 1 where all are smaller;
    infinite where one of them gives other shapes or no numbers."""
    if reference.shape != other.shape or not (np.isfinite(reference).all() and np.isfinite(other).all()):
        return float("inf")
    return float(np.abs(reference - other).max() / max(1.0, float(np.abs(reference).max())))


def agree(reference: Logits, other: Logits, precision: str = "fp32") -> str | None:
    """None where two engines mean the same network, else what is wrong in words.

    The tolerance is above what other orders of the same sums and Winograd's transforms do to deep networks, and far
    below what a wrong layer does. It needs no rule for the first class: that can be another one only where the
    reference's two best are closer than twice the difference.
    """
    found, limit = difference(reference, other), TOLERANCE[precision]
    if found <= limit:
        return None
    if np.isfinite(found):
        return f"its answers differ from those of the file's own engine by {found:.2g} of the largest, above {limit:g}"
    return "its answers are no numbers, or have another shape than those of the file's own engine"
