"""Answers for pictures: a `Classifier` is a model file that can be asked."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnetkit.data.folder import find_pictures
from resnetkit.data.loader import Reader, default_threads
from resnetkit.data.pictures import Data, Files
from resnetkit.errors import UserError, shown_name
from resnetkit.protocol import probabilities
from resnetkit.weights import ModelFile, open_model, place


@dataclass(frozen=True)
class Prediction:
    """What a picture shows: the answer, its probability, and the first ones in order; or why there is none."""

    path: str
    answer: str | None
    probability: float | None
    top: tuple[tuple[str, float], ...]
    error: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `class` is the answer."""
        top = [{"class": name, "probability": share} for name, share in self.top]
        about = {"class": self.answer, "probability": self.probability}
        return {"path": self.path, **about, "top": top, "error": self.error}

    def _repr_html_(self) -> str:
        shown = self.error or ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.top)
        return f"<p><code>{html.escape(shown_name(self.path))}</code>: {html.escape(shown_name(shown))}</p>"


class Classifier(ModelFile):
    """A loaded model: `.network`, `.classes`, `.preprocess`, and `.predict`."""

    def predict(self, paths: str | Path | Iterable[str | Path], *, top: int = 5) -> list[Prediction]:
        """Answers for pictures and folders of pictures, in order."""
        return list(predict(self, [paths] if isinstance(paths, str | Path) else paths, top=top))


def load(model: str | Path) -> Classifier:
    """The classifier of a run folder or a model file. Raises UserError when missing or damaged."""
    opened = open_model(model)
    return Classifier(**{name: getattr(opened, name) for name in ModelFile.__dataclass_fields__})


def predict(
    model: str | Path | ModelFile, paths: Iterable[str | Path], *, top: int = 5, device: str = "cpu"
) -> Iterator[Prediction]:
    """Answers one by one, in order: files as they are given, folders walked, their pictures sorted.

    A picture that cannot be read gives a Prediction with `error`. Raises UserError for a path that does not exist.
    """
    opened = model if isinstance(model, ModelFile) else open_model(model)
    if top < 1:
        raise UserError(f"top={top}: must be at least 1")
    reader = unlabelled(opened, paths)
    name = reader.data.pictures.name
    network = place(opened.network, torch.device(device))
    for outputs in probabilities(network, reader, reader.data.select("all")):
        rows = dict(zip(outputs.indices.tolist(), outputs.rows, strict=True))
        for index in sorted(rows.keys() | outputs.bad.keys()):
            if index in outputs.bad:
                yield Prediction(name(index), None, None, (), outputs.bad[index])
                continue
            first = np.argsort(-rows[index], kind="stable")[:top].tolist()
            best = tuple((opened.classes[i], float(rows[index][i])) for i in first)
            yield Prediction(name(index), *best[0], best, None)


def unlabelled(model: ModelFile, paths: Iterable[str | Path]) -> Reader:
    """Pictures without labels as a model reads them: files as they are given, folders walked. Raises UserError."""
    names = [name for path in paths for name in picture_files(os.fspath(path))]
    labels, everything = np.zeros(len(names), np.int64), np.arange(len(names))
    data = Data("pictures", Files(Path(), names), labels, model.classes, {"all": everything})
    return Reader(data, model.preprocess, threads=default_threads())


def picture_files(path: str) -> list[str]:
    """The path itself, or the pictures below a folder. Raises UserError when there is nothing."""
    if not os.path.exists(path):  # noqa: PTH110 - names that are not UTF-8 stay as they are
        raise UserError(f"{shown_name(path)}: no such file or folder")
    if not os.path.isdir(path):  # noqa: PTH112
        return [path]
    found = find_pictures(Path(path))
    if not found:
        raise UserError(f"{shown_name(path)}: holds no pictures")
    return found
