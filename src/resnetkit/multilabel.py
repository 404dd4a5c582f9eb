"""What a model scores where a picture may have several labels, or none: each label is a question of its own.

Average precision (AP) is the area under precision against recall, in steps and not interpolated, as in scikit-learn's
`average_precision_score`: pictures of equal probability come in together. Chance gives a label's AP its prevalence.
"""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from resnetkit.about import SAID
from resnetkit.errors import shown_name

WORST = 24  # confidently wrong answers that are kept by name
RESAMPLES, LEAST_RESAMPLES = 1000, 100  # of the bootstrap
WORK = 200_000_000  # pictures times labels times resamples, above which there are fewer of them


@dataclass(frozen=True)
class LabelScore:
    """One label: `positives` pictures have it.

    ap          average precision; prevalence: the share of pictures with the label, which chance gives
    precision   of the pictures it is said of, those that have it; 0 where it is said of none
    recall      of the pictures that have it, those it is said of
    """

    name: str
    positives: int
    ap: float
    prevalence: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class WrongLabel:
    """A confident mistake: `said` of a picture that lacks it, or not said of one that has it; its probability."""

    path: str
    label: str
    said: bool
    probability: float


@dataclass(frozen=True)
class MultiLabelResult:
    """A score with everything needed to judge it. Rates are shares in [0, 1].

    mean_average_precision  over the labels that occur; its interval is 95 % of bootstrap resamples of the pictures
    at_random               the same of chance: the mean prevalence of those labels
    exact                   share of pictures of which every label is said and no other
    micro_f1, macro_f1      over all answers, and the mean over the labels that occur; a label is said from 0.5 on
    nll                     mean negative log-likelihood of a picture's labels together, nats: the sum over labels
    mistakes                the most confident ones first
    bad, protocol           as in `evaluation.Result`
    """

    n: int
    labels_per_picture: float
    mean_average_precision: float
    mean_average_precision_interval: tuple[float, float]
    at_random: float
    exact: float
    micro_f1: float
    macro_f1: float
    nll: float
    per_label: tuple[LabelScore, ...]
    mistakes: tuple[WrongLabel, ...]
    bad: dict[str, str]
    protocol: str

    measure: ClassVar[str] = "mean_average_precision"
    title: ClassVar[str] = "mAP"

    @property
    def headline(self) -> float:
        """What epochs are compared by."""
        return self.mean_average_precision

    @property
    def summary(self) -> dict[str, Any]:
        """What the log of a training keeps of it."""
        names = ("n", self.measure, f"{self.measure}_interval", "exact", "nll")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, under the same names."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MultiLabelResult:
        """The inverse of `to_dict`, also after a trip through JSON."""
        low, high = values["mean_average_precision_interval"]
        return cls(
            **{
                **values,
                "mean_average_precision_interval": (low, high),
                "per_label": tuple(LabelScore(**row) for row in values["per_label"]),
                "mistakes": tuple(WrongLabel(**row) for row in values["mistakes"]),
            }
        )

    def __str__(self) -> str:
        low, high = self.mean_average_precision_interval
        return (
            f"{100 * self.mean_average_precision:.2f} % ({self.n:,} pictures, {len(self.per_label):,} labels; "
            f"95 % interval {100 * low:.2f} to {100 * high:.2f}; chance {100 * self.at_random:.2f})"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(shown_name(row.name))}</td><td>{row.positives}</td>"
            f"<td>{100 * row.ap:.1f} %</td></tr>"
            for row in self.per_label
        )
        head = f"<p><b>mAP {self}</b><br>{html.escape(shown_name(self.protocol))}</p>"
        return f"{head}<table><tr><th>label</th><th>pictures</th><th>average precision</th></tr>{rows}</table>"


def measure(
    table: NDArray[np.float64], truth: NDArray[np.bool_], classes: tuple[str, ...], names: list[str]
) -> dict[str, Any]:
    """All figures of a MultiLabelResult but `bad` and `protocol`, from probabilities and labels (n, classes)."""
    said = table >= SAID
    occurring = np.flatnonzero(truth.any(0))
    order, ends = in_order(table[:, occurring])
    ones = np.ones((1, len(table)))
    precisions = average_precisions(truth[:, occurring], order, ends, ones)[0]
    rows = [
        label_score(classes[c], truth[:, c], said[:, c], float(ap)) for c, ap in zip(occurring, precisions, strict=True)
    ]
    own = np.where(truth, table, 1 - table)
    return {
        "n": len(table),
        "labels_per_picture": float(truth.sum(1).mean()),
        "mean_average_precision": float(precisions.mean()) if len(rows) else 0.0,
        "mean_average_precision_interval": interval(truth[:, occurring], order, ends) if rows else (0.0, 1.0),
        "at_random": float(np.mean([row.prevalence for row in rows])) if rows else 0.0,
        "exact": float((said == truth).all(1).mean()),
        "micro_f1": f1(int((said & truth).sum()), int(said.sum()), int(truth.sum())),
        "macro_f1": float(np.mean([row.f1 for row in rows])) if rows else 0.0,
        "nll": float(-np.log(np.clip(own, np.finfo(np.float64).tiny, None)).sum(1).mean()),
        "per_label": tuple(rows),
        "mistakes": mistakes(table, truth, said, classes, names),
    }


def label_score(name: str, truth: NDArray[np.bool_], said: NDArray[np.bool_], ap: float) -> LabelScore:
    hits, told, there = int((said & truth).sum()), int(said.sum()), int(truth.sum())
    precision = hits / told if told else 0.0
    return LabelScore(name, there, ap, there / len(truth), precision, hits / there, f1(hits, told, there))


def f1(hits: int, told: int, there: int) -> float:
    """The harmonic mean of precision and recall; 0 where nothing is said and nothing there."""
    return 2 * hits / (told + there) if told + there else 0.0


def mistakes(
    table: NDArray[np.float64],
    truth: NDArray[np.bool_],
    said: NDArray[np.bool_],
    classes: tuple[str, ...],
    names: list[str],
) -> tuple[WrongLabel, ...]:
    """The wrong answers whose probability is farthest on the wrong side, at most `WORST`."""
    rows, columns = np.nonzero(said != truth)
    far = np.abs(table[rows, columns] - SAID)
    worst = sorted(range(len(rows)), key=lambda k: (-far[k], names[rows[k]], columns[k]))[:WORST]
    places = [(int(rows[k]), int(columns[k])) for k in worst]
    return tuple(WrongLabel(names[i], classes[c], bool(said[i, c]), float(table[i, c])) for i, c in places)


# Average precision


def in_order(table: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each label its pictures by falling probability (n, labels), and whether a place ends a group of equals."""
    order = np.argsort(-table, axis=0, kind="stable")
    falling = np.take_along_axis(table, order, 0)
    ends = np.ones_like(falling, dtype=bool)
    ends[:-1] = falling[:-1] != falling[1:]
    return order, ends


def average_precisions(
    truth: NDArray[np.bool_], order: NDArray[np.int64], ends: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The average precision of each label (resamples, labels); not a number where no picture of a resample has it.

    weights   how often a picture is in each resample (resamples, n)
    """
    found = np.empty((len(weights), truth.shape[1]))
    for label in range(truth.shape[1]):
        places, end = order[:, label], ends[:, label]
        weight = weights[:, places]
        hits = np.cumsum(weight * truth[places, label], axis=1)
        seen = np.cumsum(weight, axis=1)
        hits_at, seen_at = hits[:, end], seen[:, end]
        gained = np.diff(hits_at, axis=1, prepend=0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(seen_at > 0, hits_at / seen_at, 0.0)
            found[:, label] = (gained * precision).sum(1) / hits[:, -1]
    return found


def interval(truth: NDArray[np.bool_], order: NDArray[np.int64], ends: NDArray[np.bool_]) -> tuple[float, float]:
    """95 % of the mean average precisions of resampled pictures, always of the same resamples.

    There are 1,000 of them, fewer where there are very many pictures and labels, which need fewer.
    """
    n, labels = truth.shape
    times = int(np.clip(WORK // (n * labels), LEAST_RESAMPLES, RESAMPLES))
    dice, means = np.random.default_rng(0), []
    for begin in range(0, times, 50):
        drawn = min(50, times - begin)
        weights = np.stack([np.bincount(dice.integers(n, size=n), minlength=n) for _ in range(drawn)])
        found = average_precisions(truth, order, ends, weights.astype(np.float64))
        there = np.isfinite(found)
        means.append(np.where(there, found, 0.0).sum(1) / np.maximum(there.sum(1), 1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)
