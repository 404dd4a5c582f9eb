"""The threshold below which a model says nothing, and what `calibrate` and `predict` make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from prediction_samples import picture
from resnetkit.abstaining import FEWEST, threshold_for
from resnetkit.calibration import cross_fitted, threshold_of
from resnetkit.prediction import load, predict
from serving_samples import model_file

Answers = tuple[NDArray[np.float64], NDArray[np.bool_]]


@st.composite
def answers(draw: st.DrawFn) -> Answers:
    n = draw(st.integers(1, 80))
    sure = draw(st.lists(st.sampled_from([k / 16 for k in range(1, 17)]), min_size=n, max_size=n))
    return np.array(sure), np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))


@given(answers(), st.floats(0, 1))
def test_it_is_the_lowest_that_does_it(given_: Answers, wanted: float) -> None:
    """Against every threshold there could be."""
    sure, right = given_
    found = threshold_for(sure, right, wanted)
    fits = [
        level
        for level in sorted(set(sure.tolist()))
        if (sure >= level).sum() >= FEWEST and right[sure >= level].sum() / (sure >= level).sum() >= wanted
    ]
    if not fits:
        assert found is None
    else:
        assert found is not None
        assert (sure >= found).tolist() == (sure >= fits[0]).tolist()
        assert (found == 0) == (fits[0] == sure.min())


def test_what_is_said_of_new_pictures_is_true() -> None:
    """Answers that are right as often as they are sure: the share wanted is met on pictures that chose nothing."""
    dice = np.random.default_rng(0)
    logits = dice.normal(0, 2, (4000, 3)).astype(np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (shares.cumsum(1) < dice.random((4000, 1))).sum(1).clip(max=2)
    table, _, answered = cross_fitted(logits, labels, 0.9)
    right = (table.argmax(1) == labels)[answered]
    assert right.mean() == pytest.approx(0.9, abs=0.015)
    assert 0.3 < answered.mean() < 0.9
    threshold = threshold_of(table, labels, 0.9)
    assert threshold is not None
    assert 0.6 < threshold < 0.9


def test_predict_respects_the_threshold_in_words_and_json(
    resnet: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    model = str(model_file(tmp_path / "m.safetensors", calibration={"temperature": 1.0, "threshold": 0.9999}))
    path = str(picture(tmp_path / "a.png"))
    line = ("predict", model, path, "--engine", "torch")
    code, out, err = resnet(*line)
    assert (code, out.startswith(f"{path}: not sure  (")) == (0, True)
    assert "; not sure below 99.99 %" in err
    assert json.loads(resnet(*line, "--json")[1])["class"] is None
    said = json.loads(resnet(*line, "--json", "--min-probability", "0")[1])
    assert said["class"] == said["top"][0]["class"]
    assert [each.answer for each in load(model).predict(path)] == [None]
    assert [each.answer for each in predict(model, path, min_probability=0.0)] == [said["class"]]
