"""The fit of a temperature against a grid and against known ones; cross-fitting, reliability."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from resnetkit import calibration as module
from resnetkit.calibration import HIGHEST, LOWEST, cross_fitted, fit
from resnetkit.data.loader import order
from resnetkit.evaluation import measure
from resnetkit.reliability import BINS, reliability

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]


def plain_nll(logits: Logits, labels: Labels, temperature: float) -> float:
    """The definition, in double, picture by picture."""
    total = 0.0
    for row, label in zip(logits.astype(np.float64) / temperature, labels.tolist(), strict=True):
        total += row.max() + np.log(np.exp(row - row.max()).sum()) - row[label]
    return total / len(labels)


def drawn(logits: NDArray[Any], seed: int) -> Labels:
    """Labels that really have the probabilities softmax(logits)."""
    noise = np.random.default_rng(seed).gumbel(size=logits.shape)
    return (logits + noise).argmax(1)


def case(n: int, classes: int, seed: int, factor: float = 1.0) -> tuple[Logits, Labels]:
    """Logits that are `factor` times those which the labels were drawn from."""
    logits = np.random.default_rng(seed).normal(0, 2, (n, classes))
    return (factor * logits).astype(np.float32), drawn(logits, seed + 1)


# The fit


@settings(max_examples=60)
@given(
    st.integers(3, 40), st.integers(2, 6), st.integers(0, 10**6), st.floats(0.05, 20), st.floats(0, 1), st.booleans()
)
def test_the_fit_is_the_best_of_a_grid(
    n: int, classes: int, seed: int, factor: float, share: float, coarse: bool
) -> None:
    """Also where the labels are partly noise, and where logits are whole numbers and so tie."""
    logits, labels = case(n, classes, seed, factor)
    dice = np.random.default_rng(seed)
    labels = np.where(dice.random(n) < share, dice.integers(0, classes, n), labels)
    logits = np.round(logits) if coarse else logits
    own = logits[np.arange(n), labels]
    assume((logits.max(1) > own).any())
    found = fit(logits, labels)
    grid = np.geomspace(LOWEST, HIGHEST, 301)
    costs = [plain_nll(logits, labels, temperature) for temperature in grid]
    assert LOWEST <= found <= HIGHEST
    assert plain_nll(logits, labels, found) <= min(costs) + 1e-12
    best = int(np.argmin(costs))
    assert grid[max(best - 1, 0)] * (1 - 1e-5) <= found <= grid[min(best + 1, 300)] * (1 + 1e-5)


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0, 2.5, 9.0])
def test_a_known_temperature_is_found(factor: float) -> None:
    logits, labels = case(20_000, 5, 1, factor)
    assert fit(logits, labels) == pytest.approx(factor, rel=0.03)


@given(st.integers(0, 10**6), st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_larger_logits_have_a_larger_temperature(seed: int, factor: float) -> None:
    logits, labels = case(200, 4, seed)
    assert fit(np.float32(factor) * logits, labels) == pytest.approx(factor * fit(logits, labels), rel=1e-9)


def test_slopes_are_those_of_the_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Central differences; and a few pictures at a time give what all of them at once do."""
    logits, labels = case(50, 6, 2, 3.0)
    whole = {b: module.derivatives(logits, labels, b) for b in (0.06, 0.4, 1.0, 5.0, 19.0)}
    for b, (slope, bend) in whole.items():
        low, middle, high = (plain_nll(logits, labels, 1 / (b + step)) for step in (-1e-4, 0, 1e-4))
        assert slope == pytest.approx((high - low) / 2e-4, rel=1e-5, abs=1e-7)
        assert bend == pytest.approx((high - 2 * middle + low) / 1e-8, rel=1e-2, abs=1e-5)
    monkeypatch.setattr(module, "ROWS", 7)
    for b, expected in whole.items():
        assert module.derivatives(logits, labels, b) == pytest.approx(expected, rel=1e-12)


def test_huge_logits_do_no_harm() -> None:
    logits, labels = case(100, 4, 5, 1e30)
    assert fit(logits, labels) == HIGHEST
    with np.errstate(all="raise", under="ignore"):
        assert 0.05 < fit(logits / np.float32(1e30), labels) < 20


def test_where_every_answer_is_right_the_temperature_stays_at_one() -> None:
    logits, _ = case(50, 4, 6)
    labels = logits.argmax(1)
    assert fit(logits, labels) == 1.0
    assert fit(np.zeros((5, 3), np.float32), np.arange(5) % 3) == 1.0, "and where all classes tie"
    labels[0] = logits[0].argmin()
    assert fit(logits, labels) != 1.0, "one mistake says how sure is too sure"


def test_the_ends_of_the_range() -> None:
    logits = np.zeros((1000, 2), np.float32)
    logits[:, 0] = 1
    logits[0] = 0, 1e-9
    assert fit(logits, np.zeros(1000, np.int64)) == LOWEST
    assert fit(logits, np.ones(1000, np.int64)) == HIGHEST, "worse than guessing"


# Cross-fitting and reliability


def test_cross_fitting_is_that_of_a_plain_loop() -> None:
    logits, labels = case(23, 3, 8, 2.0)
    fold = {int(picture): position % 5 for position, picture in enumerate(order(0, 0, 23))}
    table, temperatures, _ = cross_fitted(logits, labels)
    for number in range(5):
        others = [i for i in range(23) if fold[i] != number]
        assert len(others) in (18, 19)
        expected = fit(logits[others], labels[others])
        assert temperatures[number] == expected
        for i in (i for i in range(23) if fold[i] == number):
            powers = np.exp(logits[i].astype(np.float64) / expected)
            np.testing.assert_allclose(table[i], powers / powers.sum(), rtol=1e-12)
    assert len(set(temperatures)) == 5


def test_no_picture_has_a_part_in_its_own_temperature() -> None:
    logits, labels = case(40, 3, 9)
    table, _, _ = cross_fitted(logits, labels)
    moved = 0
    for i in range(40):
        other = labels.copy()
        other[i] = (labels[i] + 1) % 3
        again, _, _ = cross_fitted(logits, other)
        assert (again[i] == table[i]).all()
        moved += (again != table).any()
    assert moved == 40, "but in those of others"


@pytest.mark.parametrize(("n", "classes"), [(3, 3), (500, 3), (300, 8)])
def test_reliability_is_that_of_a_plain_loop(n: int, classes: int) -> None:
    logits, labels = case(n, classes, 10)
    table = module.softmax(logits, 0.7)
    found = reliability(table, labels)
    for number, row in enumerate(found.bins):
        assert (row.low, row.high) == (number / BINS, (number + 1) / BINS)
        inside = [i for i in range(n) if row.low <= max(table[i]) < row.high]
        assert row.n == len(inside)
        if inside:
            assert row.confidence == pytest.approx(sum(max(table[i]) for i in inside) / len(inside), abs=1e-12)
            assert row.accuracy == sum(int(table[i].argmax() == labels[i]) for i in inside) / len(inside)
        else:
            assert (row.confidence, row.accuracy) == (None, None)
    gaps = sum(row.n / n * abs(row.confidence - row.accuracy) for row in found.bins if row.n)  # type: ignore[operator]
    assert found.ece == pytest.approx(gaps, abs=1e-12)
    whole = measure(table, labels, tuple(map(str, range(classes))), list(map(str, range(n))))
    assert (found.nll, found.ece) == (whole["nll"], whole["ece"])


def test_a_certain_answer_is_in_the_last_bin() -> None:
    found = reliability(np.eye(3), np.array([0, 1, 0]))
    assert [row.n for row in found.bins] == [0] * 14 + [3]
    assert (found.bins[-1].confidence, found.bins[-1].accuracy) == (1.0, 2 / 3)
