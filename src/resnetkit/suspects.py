"""Labels that look wrong: by confident learning (Northcutt et al. 2021, arXiv 1911.00068) on answers out of fold.

The classifier is a linear one on vectors of the pictures, fitted by ridge regression on the classes. For it the answer
for a picture that took no part in the fit has a closed form (Allen 1974, PRESS), so every picture is its own fold and
the fit is made once. Its answers become probabilities by a temperature.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from resnetkit.calibration import fit, softmax
from resnetkit.data.findings import Finding, singles
from resnetkit.data.pictures import Data
from resnetkit.data.traits import Traits

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the mean square of a component
DIMENSIONS = 256  # principal components that are kept, at most
SHARPER = 10.0  # scores of a fit on zeros and ones lie close together
ABLE = 0.6  # share of labels that the classifier must find, or it knows too little to judge them
MARGIN = 0.8  # how much more probable another class must be than the label
ADVICE = "look at each, the likelier class stands below it; mend the label, or leave the picture out as the CSV does"


def suspects(
    data: Data, traits: Traits, vectors: NDArray[np.float32], what: str
) -> tuple[list[Finding], tuple[str, ...]]:
    """A finding on labels that look wrong, and what to know of it.

    vectors  a row for each picture as in `traits`, float32 (n, d); what  what they are, in words
    """
    labels = data.labels[traits.indices].astype(np.int64)
    if len(np.unique(labels)) < 2 or len(labels) < 10 * len(data.classes):
        return [], ("labels were not judged: there are fewer than ten pictures to a class",)
    scores = left_out(vectors, labels, len(data.classes))
    told = scores.argmax(1) == labels
    able = float(np.mean([told[labels == label].mean() for label in np.unique(labels)]))  # the largest alone is no feat
    if able - 2 * math.sqrt(able * (1 - able) / len(labels)) < ABLE:  # of few pictures many are told by luck
        little = f"{what} tells only {100 * able:.0f} % of them"
        return [], (f"labels were not judged: {little}; --model with one that knows more",)
    table = softmax(scores, fit(scores, labels))
    rows, answers = confident(table, labels)
    margin = table[rows, answers] - table[rows, labels[rows]]
    pairs = [
        (int(traits.indices[rows[i]]), f"{data.classes[answers[i]]}? ({100 * table[rows[i], answers[i]]:.0f} %)")
        for i in np.argsort(-margin, kind="stable").tolist()
    ]
    note = f"labels were judged by {what}, which tells {100 * able:.0f} % of them without the picture's own"
    if not pairs:
        return [], (note,)
    title = "labels that look wrong"
    return [Finding("suspects", title, len(pairs), ADVICE, singles(pairs), leave_out=tuple(pairs))], (note,)


def left_out(vectors: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Scores (n, classes) of every picture by a ridge regression on all others, with the best of a few penalties."""
    n = len(labels)
    x, strength = components(vectors)
    wanted = np.zeros((n, classes))
    wanted[np.arange(n), labels] = 1
    mean = wanted.mean(0)
    together = x.T @ (wanted - mean) / n
    best, least = wanted, np.inf
    for penalty in PENALTIES:
        inverse = 1 / (strength + penalty * strength.mean())
        answer = mean + (x * inverse) @ together
        leverage = 1 / n + ((x * x) @ inverse) / n
        without = wanted - (wanted - answer) / (1 - leverage)[:, None]
        error = float(((without - wanted) ** 2).mean())
        if error < least:
            best, least = without, error
    found: NDArray[np.float32] = (SHARPER * best).astype(np.float32)
    return found


def components(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first principal components (n, d) of the vectors, each number scaled to variance 1, and their variances."""
    centred = vectors - vectors.mean(0)
    scale = centred.std(0)
    centred = centred[:, scale > 0] / scale[scale > 0]
    values, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    values, axes = values[::-1][:DIMENSIONS], axes[:, ::-1][:, :DIMENSIONS]
    kept = values > 1e-6 * max(float(values[:1].sum()), 1e-30)
    return (centred @ axes[:, kept]).astype(np.float64), values[kept].astype(np.float64)


def confident(table: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows whose label looks wrong, and the class that each looks like.

    A picture counts for a class that is at least as probable as it is, on average, for the pictures of that class; for
    the most probable of several. It is a suspect where that is not its label, by `MARGIN` at least.
    """
    own = table[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=table.shape[1])
    usual = np.bincount(labels, own, minlength=table.shape[1]) / np.maximum(counts, 1)
    usual[counts == 0] = np.inf
    likely = np.where(table >= usual, table, -1.0)
    answers = likely.argmax(1)
    rows = np.flatnonzero((likely.max(1) >= 0) & (answers != labels) & (likely.max(1) - own >= MARGIN))
    return rows, answers[rows]
