"""Pictures as vectors: what the dense layer sees of each, for search, clustering and classifiers of one's own."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from resnetkit.atomic import write_bytes, write_text
from resnetkit.data.loader import Reader, default_threads
from resnetkit.data.pictures import Data, Files
from resnetkit.errors import UserError, shown_name
from resnetkit.parquet import pyarrow
from resnetkit.prediction import picture_files
from resnetkit.protocol import outputs
from resnetkit.weights import ModelFile, open_model, place


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors float32 (n, d), a row for each of `paths`; the pictures that could not be read, path to reason."""

    paths: tuple[str, ...]
    vectors: NDArray[np.float32]
    bad: dict[str, str]

    def save(self, out: str | Path) -> list[str]:
        """Write a .npy file with a .csv of the paths beside it, or a .parquet file; the names of what was written.

        Raises UserError when one of them is there already, and when there is no vector.
        """
        files = check_target(out)
        if not self.paths:
            raise UserError(f"{files[0]}: not written, as there is no picture that could be read")
        try:
            if len(files) == 1:
                write_bytes(Path(files[0]), as_parquet(self))
            else:
                self._save_array(*map(Path, files))
        except OSError as error:
            raise UserError(f"{out}: cannot be written ({error.strerror}); choose another place or make room") from None
        return files

    def _save_array(self, array: Path, table: Path) -> None:
        """The paths first, so that wherever there are vectors it is known whose they are."""
        write_text(table, as_csv(self.paths))
        try:
            write_bytes(array, as_npy(self.vectors))
        except BaseException:
            table.unlink()
            raise


def embed(
    model: str | os.PathLike[str] | ModelFile, paths: str | Path | Iterable[str | Path], *, device: str = "cpu"
) -> Embeddings:
    """One vector per picture, in order: files as they are given, folders walked, their pictures sorted.

    A picture that cannot be read is left out and stands in `bad`. Raises UserError for a path that does not exist.
    """
    opened = model if isinstance(model, ModelFile) else open_model(os.fspath(model), several=True)
    reader = unlabelled(opened, [paths] if isinstance(paths, str | Path) else paths)
    name = reader.data.pictures.name
    network = place(opened.network, torch.device(device))
    parts = list(outputs(network, reader, reader.data.select("all"), network.embed))
    bad = {name(index): reason for part in parts for index, reason in sorted(part.bad.items())}
    names = tuple(name(index) for part in parts for index in part.indices.tolist())
    rows = [part.rows for part in parts if len(part.rows)]
    none = np.empty((0, network.fc.in_features), np.float32)
    return Embeddings(names, np.concatenate([none, *rows]), bad)


def unlabelled(model: ModelFile, paths: Iterable[str | Path]) -> Reader:
    """Pictures without labels as a model reads them: files as they are given, folders walked. Raises UserError."""
    names = [name for path in paths for name in picture_files(os.fspath(path))]
    labels, everything = np.zeros(len(names), np.int64), np.arange(len(names))
    data = Data("pictures", Files(Path(), names), labels, model.classes, {"all": everything})
    return Reader(data, model.preprocess, threads=default_threads())


def check_target(out: str | Path) -> list[str]:
    """The files that `out` means, the vectors first. Raises UserError when they cannot be made, before any work."""
    path = os.fspath(out)
    suffix = Path(path).suffix
    if suffix not in (".npy", ".parquet"):
        raise UserError(f"{path}: vectors go into a .npy or a .parquet file; give the name one of these endings")
    files = [path] if suffix == ".parquet" else [path, path.removesuffix(".npy") + ".csv"]
    for file in files:
        if os.path.lexists(file):
            raise UserError(f"{file}: exists already; choose another name")
    folder = Path(path).parent
    if not folder.is_dir():
        raise UserError(f"{path}: there is no folder {folder}; make it first, or choose another place")
    if suffix == ".parquet":
        pyarrow()
    return files


def as_npy(vectors: NDArray[np.float32]) -> bytes:
    """The bytes that `numpy.load` reads."""
    file = io.BytesIO()
    np.save(file, vectors, allow_pickle=False)
    return file.getvalue()


def as_csv(paths: Iterable[str]) -> str:
    """The column `path`, quoted where a name needs it."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["path"])
    writer.writerows([path] for path in paths)
    return file.getvalue()


def as_parquet(embeddings: Embeddings) -> bytes:
    """Columns `path` and `vector`. Parquet's strings are UTF-8: other bytes in a path become escapes, as on screen."""
    pa, parquet = pyarrow(), pyarrow("pyarrow.parquet")
    vectors = embeddings.vectors
    flat = pa.array(vectors.reshape(-1), pa.float32())
    columns = {
        "path": pa.array([shown_name(path) for path in embeddings.paths], pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()
