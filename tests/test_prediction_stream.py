"""Answers as a stream: lists without an end, how far ahead pictures are read, what an iterator may hold."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prediction_samples import logits, make_model, opened, picture
from resnetkit import prediction
from resnetkit.data.loader import AHEAD
from resnetkit.engines.engine import Logits, Pixels
from resnetkit.prediction import BATCH, predict


def endless(path: Path, read: list[int]) -> Iterator[Path]:
    """The same picture for ever; `read` counts how often it was asked for."""
    while True:
        read[0] += 1
        yield path


def test_a_list_without_an_end(tmp_path: Path) -> None:
    """The first answers come, and no more pictures are read than may be in the making."""
    read = [0]
    answers = predict(make_model(), endless(picture(tmp_path / "a.png"), read), top=1)
    assert read == [0], "nothing is read before the first answer is wanted"
    for number in range(1, 5 * BATCH):
        assert next(answers).error is None
        assert read[0] <= BATCH * (AHEAD + 2) + BATCH * (number // BATCH)


def test_no_picture_is_decoded_long_before_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = itertools.count()
    seen = [0]

    def fill(*_: Any) -> None:
        seen[0] = next(filled) + 1

    monkeypatch.setattr(prediction, "fill", fill)
    found = prediction.answers(opened(), prediction.in_batches(endless(tmp_path, [0])), 1, 0.0, "m")  # type: ignore[arg-type]
    next(found)
    time.sleep(0.1)
    assert seen[0] <= BATCH * (AHEAD + 1)


def test_an_iterator_goes_on_after_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "many/b.png")
    good, missing = picture(tmp_path / "a.png"), tmp_path / "nowhere.png"
    asked = [good, missing, tmp_path / "many", tmp_path / "empty", f"{tmp_path}/a\0.png", good]
    answers = list(predict(make_model(), iter(asked)))
    assert [answer.path for answer in answers] == [
        str(path) for path in [*asked[:2], tmp_path / "many/b.png", *asked[3:]]
    ]
    assert [answer.error for answer in answers] == [
        None,
        "cannot be opened: No such file or directory",
        None,
        "a folder in which no pictures were found",
        "cannot be opened: no file has a zero byte in its name",
        None,
    ]


def test_batches(tmp_path: Path) -> None:
    """Sixteen at a time, the rest in one; pictures that cannot be read take no place; a single one stays alone."""
    sizes: list[int] = []

    def run(pictures: Pixels) -> Logits:
        sizes.append(len(pictures))
        return logits(pictures)

    good, bad = str(picture(tmp_path / "a.png")), str(tmp_path / "b.png")
    for names in ([good], [good, bad] * 20, [bad] * 20, []):
        batches = prediction.in_batches(names)
        answers = [answer for batch in prediction.answers(opened(run), batches, 1, 0.0, "m") for answer in batch]
        assert [(answer.path, answer.error is None) for answer in answers] == [(name, name == good) for name in names]
    assert sizes == [1, 8, 8, 4]
