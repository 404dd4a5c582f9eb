"""Mixup and CutMix: the share of the labels is the share of the pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resnetkit.mixing import cut, mixed
from resnetkit.recipe import Augment

BATCH = torch.arange(4.0)[:, None, None, None].expand(4, 3, 12, 10)  # picture i is all i


def dice(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def test_off_is_off() -> None:
    x, share = mixed(BATCH, Augment(), dice(0))
    assert x is BATCH
    assert share == 1


@given(st.integers(0, 2**32), st.floats(0.05, 4))
def test_mixup_is_the_convex_blend_with_the_reversed_batch(seed: int, alpha: float) -> None:
    x, share = mixed(BATCH, Augment(mixup=alpha), dice(seed))
    assert 0 <= share <= 1
    torch.testing.assert_close(x, share * BATCH + (1 - share) * BATCH.flip(0))


@given(st.integers(0, 2**32), st.floats(0.05, 4))
def test_cutmix_counts_its_pixels(seed: int, alpha: float) -> None:
    """Each pixel is the picture's own or that of the picture in reversed place, and the share is the count."""
    x, share = mixed(BATCH, Augment(cutmix=alpha), dice(seed))
    own = x == BATCH
    assert bool((own | (x == BATCH.flip(0))).all())
    assert own.float().mean().item() == pytest.approx(share, abs=1e-6)
    rows, columns = (~own[0, 0]).any(1), (~own[0, 0]).any(0)
    assert (~own[0, 0]).sum() == rows.sum() * columns.sum()  # a box
    torch.testing.assert_close(BATCH, torch.arange(4.0)[:, None, None, None].expand(4, 3, 12, 10))


@pytest.mark.parametrize(
    ("share", "across", "down", "rows", "columns"),
    [
        (0.75, 0.5, 0.5, (8, 24), (4, 12)),  # a quarter of the area is half of each side
        (0.75, 0.0, 0.999, (23, 32), (0, 4)),  # what would lie outside is cut off
        (0.75, 0.999, 0.0, (0, 8), (11, 16)),
        (0.0, 0.5, 0.5, (0, 32), (0, 16)),
        (1.0, 0.5, 0.5, (0, 0), (0, 0)),
    ],
)
def test_the_box_has_the_area_that_was_drawn_and_ends_at_the_border(
    share: float, across: float, down: float, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    expected = np.zeros((32, 16))
    expected[slice(*rows), slice(*columns)] = 1
    x, left = cut(torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 3, 32, 16), share, across, down)
    np.testing.assert_array_equal(x[0], np.stack([expected] * 3))
    np.testing.assert_array_equal(x[1], 1 - np.stack([expected] * 3))
    assert left == pytest.approx(1 - expected.mean())


def test_with_both_on_each_takes_about_half_of_the_batches() -> None:
    both = Augment(mixup=1.0, cutmix=1.0)
    blended = 0
    for seed in range(400):
        x, _ = mixed(BATCH, both, dice(seed))
        blended += not bool(((x == BATCH) | (x == BATCH.flip(0))).all())
    assert 160 < blended < 240  # four standard deviations of a fair coin
