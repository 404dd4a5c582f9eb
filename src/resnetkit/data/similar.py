"""Copies of pictures: the very same, by their digests, and near ones, by perceptual hash and then by correlation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BITS = 14  # of 64 that near copies may differ in; unrelated pictures differ in about 32
FAR_BITS = 20  # the same where a model takes two pictures for one
ALIKE = 0.93  # least correlation of two near copies
SURE = 0.97  # from which no two different pictures were seen
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
CONTRAST = 8.0  # levels; flatter pictures are alike without being copies
BLOCK = 2048  # pictures that are compared with as many others at a time
SLICE = 1 << 16  # pairs that are looked at more closely at a time


@dataclass(frozen=True)
class Copy:
    """Row `a` and row `b` show the same; `likeness` is a correlation or a cosine, 1 for the very same."""

    a: int
    b: int
    likeness: float
    mirrored: bool = False


class Groups:
    """Rows joined into groups, with the copies that joined them: a forest, so never more than there are rows."""

    def __init__(self, n: int) -> None:
        self.parent = np.arange(n)
        self.copies: list[Copy] = []

    def root(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = int(self.parent[i])
        return i

    def roots(self) -> NDArray[np.int64]:
        """The root of every row."""
        while not np.array_equal(above := self.parent[self.parent], self.parent):
            self.parent = above
        return self.parent

    def join(self, copy: Copy) -> None:
        a, b = self.root(copy.a), self.root(copy.b)
        if a != b:
            self.parent[max(a, b)] = min(a, b)
            self.copies.append(copy)

    def members(self) -> list[NDArray[np.int64]]:
        """The groups of two and more, by their first row; rows ascending."""
        roots = self.roots()
        order = np.argsort(roots, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(roots[order])) + 1)
        return [part for part in parts if len(part) > 1]


def same(digests: NDArray[np.bytes_]) -> list[NDArray[np.int64]]:
    """Groups of rows with the same digest, by their first row."""
    _, group, size = np.unique(digests, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(size[group] > 1)
    order = rows[np.argsort(group[rows], kind="stable")]
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(order) else []
    return sorted(parts, key=lambda part: int(part[0]))


def near(hashes: NDArray[np.uint64], small: NDArray[np.uint8], groups: Groups) -> None:
    """Join the rows that are near copies of each other, as they are or mirrored.

    hashes  uint64 (n, 2), upright and mirrored; small  uint8 (n, s, s, 3)
    Two rows are near copies when their hashes differ in at most `BITS` bits and their small pictures correlate by
    `ALIKE` at least, in grey, whatever their brightness and contrast.
    """
    flat = small.reshape(len(small), -1).std(1) < CONTRAST if len(small) else np.zeros(0, bool)
    rows = np.flatnonzero(~flat)
    sides = [signs(hashes[rows, side]) for side in (0, 1)]
    for mirrored in (False, True):
        for a, b in close((sides[0], sides[int(mirrored)], 64 - 2 * BITS)):
            for at in range(0, len(a), SLICE):
                one, other = rows[a[at : at + SLICE]], rows[b[at : at + SLICE]]
                roots = groups.roots()
                apart = roots[one] != roots[other]
                one, other = one[apart], other[apart]
                found = correlation(small[one, :, ::-1] if mirrored else small[one], small[other])
                for i in np.flatnonzero(found >= ALIKE).tolist():
                    groups.join(Copy(int(one[i]), int(other[i]), float(found[i]), mirrored))


def alike(
    vectors: NDArray[np.float32], hashes: NDArray[np.uint64], small: NDArray[np.uint8], least: float, groups: Groups
) -> None:
    """Join the rows whose vectors, less the mean of all, have a cosine of `least` at least, and whose hashes are closer
    than those of unrelated pictures: a network may well take all of a class for the same.
    """
    centred = vectors - vectors.mean(0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    sides = [signs(hashes[:, side]) for side in (0, 1)]
    flat = small.reshape(len(small), -1).std(1) < CONTRAST
    for mirrored in (False, True):
        for a, b in close((unit, unit, least), (sides[0], sides[int(mirrored)], 64 - 2 * FAR_BITS)):
            found = np.einsum("nd,nd->n", unit[a], unit[b])
            for i in np.flatnonzero(~flat[a] & ~flat[b]).tolist():
                groups.join(Copy(int(a[i]), int(b[i]), float(found[i]), mirrored))


def signs(hashes: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Bits as -1 and 1 (n, 64): their product of two hashes is 64 less twice the bits that differ."""
    bits = np.unpackbits(np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, 8), axis=1)
    return 2 * bits.astype(np.float32) - 1


def close(
    *measures: tuple[NDArray[np.float32], NDArray[np.float32], float],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The pairs i < j of rows whose product left[i] · right[j] is at least as large as given, in every one of the
    measures (left, right, least), block by block."""
    n = len(measures[0][0])
    for i in range(0, n, BLOCK):
        for j in range(i, n, BLOCK):
            both = [left[i : i + BLOCK] @ right[j : j + BLOCK].T >= least for left, right, least in measures]
            a, b = np.nonzero(np.logical_and.reduce(both))
            a, b = a + i, b + j
            yield a[a < b], b[a < b]


def correlation(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of each two pictures (m, s, s, 3), in grey, so that a copy without its colours is one.

    The smaller of that of all and that of the inside: pictures in the same frame are alike by the frame.
    """
    x, y = (each @ LUMA for each in (a, b))
    inside = slice(a.shape[1] // 4, a.shape[1] - a.shape[1] // 4)
    return np.minimum(of_rows(x, y), of_rows(x[:, inside, inside], y[:, inside, inside]))


def of_rows(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """The correlation of each x[i] with y[i]; 0 where one of them is flat."""
    x, y = (each.reshape(len(each), -1) for each in (x, y))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    scale = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    found: NDArray[np.float32] = np.einsum("nd,nd->n", x, y) / np.maximum(scale, 1e-12)
    return found
