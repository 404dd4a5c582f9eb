"""The pictures of a report: the largest confusions as strips, what is typical of each class, where models differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.comparison import Differing
from resnetkit.data.audit import pixels
from resnetkit.data.pictures import Data
from resnetkit.drawing import percent
from resnetkit.errors import BadPicture
from resnetkit.evaluation import Result
from resnetkit.report import Confusion, Shown, data_uri, largest_confusions
from resnetkit.typical import of_classes

THUMBNAIL = 112  # longest side, pixels
PAIRS, TOGETHER, MANY = 6, 6, 3  # confusions as strips, pictures of a strip, and of each kind of a class
BYTES = 3_000_000  # of all pictures, so that the page stays below 5 MB


class Album:
    """Small pictures of answered ones, until there are as many bytes of them as a page holds.

    indices, labels, names  of n pictures; table (n, classes) and vectors (n, d), what the model makes of them
    """

    def __init__(
        self,
        data: Data,
        indices: NDArray[np.int64],
        table: NDArray[np.float64],
        vectors: NDArray[np.float32],
        *,
        exif: bool,
    ) -> None:
        self.data, self.indices, self.table, self.vectors, self.exif = data, indices, table, vectors, exif
        self.labels = data.labels[indices].astype(np.int64)
        self.names = [data.pictures.name(index) for index in indices.tolist()]
        self.rows = {name: row for row, name in enumerate(self.names)}
        self.left = BYTES

    def shown(self, row: int, words: str) -> Shown:
        """One picture, small; without itself where it cannot be read any more."""
        uri = ""
        try:
            small = Image.fromarray(pixels(self.data, int(self.indices[row]), channels=3, exif=self.exif))
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            uri = data_uri(small)
        except BadPicture:
            pass
        self.left -= len(uri)
        return Shown(self.names[row], words, uri)

    def answer(self, row: int) -> str:
        """`"rose, 93.1 %"`"""
        return f"{self.data.classes[self.table[row].argmax()]}, {percent(float(self.table[row].max()), 1)}"

    def strips(self, result: Result) -> list[tuple[Confusion, list[Shown]]]:
        """Pictures of each of the largest confusions, the most confident first."""
        answers, sure = self.table.argmax(1), self.table.max(1)
        found = []
        for pair in largest_confusions(self.data.classes, result.confusion)[:PAIRS]:
            label, answer = (self.data.classes.index(name) for name in (pair.label, pair.answer))
            rows = np.flatnonzero((self.labels == label) & (answers == answer))
            rows = rows[np.argsort(-sure[rows], kind="stable")][:TOGETHER]
            found.append((pair, [self.shown(row, percent(float(sure[row]), 1)) for row in rows.tolist()]))
        return found

    def typical(self, result: Result) -> tuple[list[tuple[str, list[Shown], list[Shown], list[Shown]]], int]:
        """For each class, worst recall first, its most and least typical pictures and most confident mistakes.

        The number is that of classes that did not fit.
        """
        recall = {score.name: score.top1 for score in result.per_class}
        classes = of_classes(self.vectors, self.table, self.labels, MANY)
        classes.sort(key=lambda each: recall[self.data.classes[each.label]])
        found = []
        for each in classes:
            if self.left <= 0:
                break
            kinds = (
                [self.shown(row, self.answer(row)) for row in rows] for rows in (each.most, each.least, each.wrong)
            )
            most, least, wrong = kinds
            found.append((self.data.classes[each.label], most, least, wrong))
        return found, len(classes) - len(found)

    def differing(self, pictures: Sequence[Differing]) -> list[Shown]:
        """Pictures that one of two models only gets right."""
        return [
            self.shown(self.rows[each.path], f"{each.label}: A says {each.a}, B says {each.b}")
            for each in pictures
            if each.path in self.rows
        ]
