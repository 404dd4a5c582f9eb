"""Pictures with an object at a known place: a digit on a texture, beside pieces of digits that mean nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Placed:
    """A picture uint8 (side, side, 3), its label, and where the digit is: left, top, right, bottom, in pixels."""

    picture: NDArray[np.uint8]
    label: int
    box: tuple[int, int, int, int]


def texture(dice: np.random.Generator, side: int) -> NDArray[np.float64]:
    """Waves of three random directions and noise, 0 to 1, (side, side, 3)."""
    y, x = np.mgrid[:side, :side] / side
    waves = np.zeros((side, side))
    for _ in range(3):
        angle, cycles = dice.uniform(0, np.pi), dice.uniform(2, 9)
        waves += np.sin(2 * np.pi * cycles * (np.cos(angle) * x + np.sin(angle) * y) + dice.uniform(0, 2 * np.pi))
    grey = 0.4 + 0.1 * waves + dice.normal(0, 0.05, (side, side))
    return np.clip(grey[:, :, None] * dice.uniform(0.7, 1.3, 3), 0, 1)


def boxes_apart(dice: np.random.Generator, side: int, sizes: list[int]) -> list[tuple[int, int, int, int]]:
    """A box of each size, none over another."""
    while True:
        corners = [dice.integers(0, side - size + 1, 2) for size in sizes]
        boxes = [(int(x), int(y), int(x) + size, int(y) + size) for (x, y), size in zip(corners, sizes, strict=True)]
        pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
        if all(a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3] for a, b in pairs):
            return boxes


def placed(digit: NDArray[np.float64], label: int, dice: np.random.Generator, side: int) -> Placed:
    """A digit (8, 8), 0 to 1, somewhere on a texture, twice enlarged, with two shuffled ones of like colour."""
    canvas = texture(dice, side)
    boxes = boxes_apart(dice, side, [16, 16, 16])
    for number, (left, top, right, bottom) in enumerate(boxes):
        strokes = digit if number == 0 else dice.permutation(digit.reshape(-1)).reshape(8, 8)
        factor = (right - left) // 8
        strength = np.kron(strokes, np.ones((factor, factor)))[:, :, None]
        colour = dice.uniform(0.75, 1.0, 3)
        canvas[top:bottom, left:right] = (1 - strength) * canvas[top:bottom, left:right] + strength * colour
    return Placed((255 * canvas).round().astype(np.uint8), label, boxes[0])


def edges(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How steep the grey of a picture (side, side, 3) is at each place, (side, side): what needs no network."""
    down, right = np.gradient(picture.astype(np.float32).mean(2))
    found: NDArray[np.float32] = np.hypot(down, right)
    return found


def hit(heat: NDArray[np.float32], box: tuple[int, int, int, int]) -> bool:
    """Whether the strongest place of a map lies in a box; a map of nothing but 0 has none."""
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    return bool(heat.max() > 0 and box[0] <= column < box[2] and box[1] <= row < box[3])
