"""The pictures of a folder that a network finds most like one picture, by the cosine between their vectors.

    python examples/nearest.py MODEL FOLDER QUERY.jpg [--top 5]

prints similarity and path, the nearest first, without the query itself should it lie in the folder. Where the pictures
lie in a folder for each class, it also says how good such neighbours are: how often the nearest other picture has the
same class, beside how often a picture drawn by lot would.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import resnetkit

BLOCK = 1024  # rows of similarities at a time: the whole table of 100,000 pictures would be 40 GB


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (n, d) at length 1, so that a product of two is their cosine; a vector of zeros stays one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def class_folders(paths: tuple[str, ...], folder: Path) -> list[str] | None:
    """The name of the folder that each picture lies in; None where those are not two classes or more."""
    names = [Path(path).parent.name for path in paths]
    loose = any(Path(path).parent == folder for path in paths)
    return None if loose or len(set(names)) < 2 else names


def same_class(vectors: NDArray[np.float32], classes: list[str]) -> tuple[float, float]:
    """How often the nearest other picture has the picture's class, and how often any other one has."""
    labels = np.unique(classes, return_inverse=True)[1]
    hits = 0
    for start in range(0, len(vectors), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(vectors)))
        likeness = vectors[rows] @ vectors.T
        likeness[rows - start, rows] = -np.inf  # leave one out: every picture is nearest to itself
        hits += int((labels[likeness.argmax(1)] == labels[rows]).sum())
    n = len(vectors)
    return hits / n, sum(count * (count - 1) for count in Counter(classes).values()) / (n * (n - 1))


def report(model: str, folder: Path, query: str, top: int) -> None:
    """Print what the module's docstring promises. Raises UserError."""
    opened = resnetkit.load(model)
    asked = resnetkit.embed(opened, [query])
    found = resnetkit.embed(opened, [folder])
    for path, reason in (asked.bad | found.bad).items():
        print(f"{path}: left out: {reason}", file=sys.stderr)
    if not asked.paths or not found.paths:
        raise resnetkit.UserError(f"{folder if asked.paths else query}: no picture that could be read")
    vectors = unit(found.vectors)
    likeness = vectors @ unit(asked.vectors)[0]
    nearest = np.argsort(-likeness, kind="stable").tolist()
    others = (index for index in nearest if not Path(found.paths[index]).samefile(query))
    for index in islice(others, top):
        print(f"{likeness[index]:.4f}  {found.paths[index]}")
    classes = class_folders(found.paths, folder)
    if classes is not None:
        share, chance = same_class(vectors, classes)
        counted = f"of {len(classes):,} pictures in {len(set(classes)):,} classes"
        print(f"{counted}, {100 * share:.1f} % have a nearest neighbour of their class; by lot {100 * chance:.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a run folder or a model file")
    parser.add_argument("folder", type=Path, help="the pictures to look through")
    parser.add_argument("query", help="a picture")
    parser.add_argument("--top", type=int, default=5, help="so many neighbours; 5")
    args = parser.parse_args()
    try:
        report(args.model, args.folder, args.query, args.top)
    except resnetkit.UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
