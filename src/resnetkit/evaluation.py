"""What a model scores: every picture counts once, counts are added and rates never averaged.

The same function gives the score during training, the final score and the score of `resnet evaluate`. It always runs
in fp32, so that precision settings of the training do not move it.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resnetkit.data.loader import Reader, default_threads, evaluation_batches
from resnetkit.data.pictures import Data, name_bad
from resnetkit.data.source import absolute, open_data
from resnetkit.data.split import load_split
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import Diverged, UserError, shown_name
from resnetkit.runs import read_json
from resnetkit.weights import ModelFile, model_path, open_model, place

BINS = 15  # of the expected calibration error (arXiv 1706.04599)
WORST = 24  # confidently wrong pictures that are kept by name
BATCH = 128


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: picture, its label, the answer and the probability given to it."""

    path: str
    label: str
    answer: str
    probability: float


@dataclass(frozen=True)
class ClassScore:
    """Recall of one class: `correct` of `n` pictures, with the Wilson interval."""

    name: str
    n: int
    correct: int
    top1: float
    top1_interval: tuple[float, float]


@dataclass(frozen=True)
class Result:
    """A score with everything needed to judge it. Rates are shares in [0, 1]; intervals are 95 % Wilson intervals."""

    n: int
    correct: int
    top1: float
    top1_interval: tuple[float, float]
    top5: float | None  # None with fewer than six classes, where it says nothing
    top5_interval: tuple[float, float] | None
    balanced_accuracy: float  # mean recall over the classes that occur
    nll: float  # mean negative log-likelihood, nats
    ece: float  # expected calibration error, 15 bins of equal width
    per_class: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]  # [label][answer], counts
    mistakes: tuple[Mistake, ...]  # the most confident ones first
    bad: dict[str, str]  # unreadable pictures left out: path to reason
    protocol: str  # data, split, views and preprocessing, in words

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, under the same names."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Result:
        """The inverse of `to_dict`, also after a trip through JSON."""
        per_class = tuple(
            ClassScore(**{**row, "top1_interval": tuple(row["top1_interval"])}) for row in values["per_class"]
        )
        five = values["top5_interval"]
        return cls(
            **{
                **values,
                "top1_interval": tuple(values["top1_interval"]),
                "top5_interval": None if five is None else tuple(five),
                "per_class": per_class,
                "confusion": tuple(tuple(row) for row in values["confusion"]),
                "mistakes": tuple(Mistake(**row) for row in values["mistakes"]),
            }
        )

    def __str__(self) -> str:
        low, high = self.top1_interval
        counted = f"{self.correct:,} of {self.n:,}"
        return f"{100 * self.top1:.2f} % ({counted}; 95 % interval {100 * low:.2f} to {100 * high:.2f})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(shown_name(row.name))}</td><td>{row.correct} of {row.n}</td>"
            f"<td>{100 * row.top1:.1f} %</td></tr>"
            for row in self.per_class
        )
        head = f"<p><b>{self}</b><br>{html.escape(shown_name(self.protocol))}</p>"
        return f"{head}<table><tr><th>class</th><th>correct</th><th>recall</th></tr>{rows}</table>"


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927); (0, 1) for n = 0."""
    if n == 0:
        return (0.0, 1.0)
    z = 1.959963984540054
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (max(0.0, centre - half), min(1.0, centre + half))


@dataclass
class Outputs:
    """A row for each of the pictures `indices` of the data, and what could not be read."""

    indices: NDArray[np.int64]
    rows: NDArray[Any]
    bad: dict[int, str]


def outputs(
    network: nn.Module, reader: Reader, indices: NDArray[np.int64], answer: Callable[[Tensor], Tensor]
) -> Iterator[Outputs]:
    """What `answer` makes of the network's input, batch by batch, in fp32, on the device where the network is.

    answer   calls the network: (N, C, size, size) to (N, d). The network is left in evaluation mode.
    """
    device = next(network.parameters()).device
    network.eval()
    for batch in evaluation_batches(reader, indices, batch=BATCH):
        if len(batch.indices):
            with torch.inference_mode():
                rows = answer(reader.preprocess.normalise(batch.pictures.to(device))).cpu().numpy()
        else:
            rows = np.empty((0, 0))
        yield Outputs(batch.indices, rows, batch.bad)


def probabilities(network: nn.Module, reader: Reader, indices: NDArray[np.int64]) -> Iterator[Outputs]:
    """Softmax outputs (n, classes), batch by batch."""
    # In double, or a sure and wrong answer would round to a probability of zero.
    return outputs(network, reader, indices, lambda pictures: network(pictures).double().softmax(1))


def score(network: nn.Module, reader: Reader, indices: NDArray[np.int64], *, protocol: str) -> Result:
    """The Result of a network on the pictures `indices`; pictures that cannot be read are in `result.bad`."""
    data = reader.data
    parts = list(probabilities(network, reader, indices))
    bad = {index: reason for part in parts for index, reason in part.bad.items()}
    seen = [part for part in parts if len(part.indices)]
    if not seen:
        raise UserError(f"{data.spec}: no picture to evaluate" + (f"; {name_bad(data, bad)}" if bad else ""))
    positions = np.concatenate([part.indices for part in seen])
    table = np.concatenate([part.rows for part in seen])
    if not np.isfinite(table).all():
        raise Diverged(
            f"{data.spec}: the network answers with what is no number; train it anew with a smaller optim.lr"
        )
    assert len(positions) + len(bad) == len(indices), "every picture counts once"
    result = measure(table, data.labels[positions], data.classes, [data.pictures.name(i) for i in positions.tolist()])
    return Result(**result, bad={data.pictures.name(i): reason for i, reason in bad.items()}, protocol=protocol)


def measure(
    table: NDArray[np.float64], labels: NDArray[np.int64], classes: tuple[str, ...], names: list[str]
) -> dict[str, Any]:
    """All figures of a Result but `bad` and `protocol`, from probabilities (n, classes) and labels (n,)."""
    n, width = table.shape
    answers, sure = table.argmax(1), table.max(1)
    right = answers == labels
    own = table[np.arange(n), labels]
    # A tie counts against the answer: rank is the number of classes with at least the label's probability.
    rank = (table >= own[:, None]).sum(1)
    in_five = int((rank <= 5).sum())
    confusion = np.zeros((len(classes), width), dtype=np.int64)
    np.add.at(confusion, (labels, answers), 1)
    totals = confusion.sum(1)
    recalls = [(classes[c], int(totals[c]), int(confusion[c, c])) for c in range(len(classes)) if totals[c]]
    wrong = sorted(np.flatnonzero(~right).tolist(), key=lambda i: (-sure[i], names[i]))[:WORST]
    return {
        "n": n,
        "correct": int(right.sum()),
        "top1": float(right.mean()),
        "top1_interval": wilson(int(right.sum()), n),
        "top5": in_five / n if width > 5 else None,
        "top5_interval": wilson(in_five, n) if width > 5 else None,
        "balanced_accuracy": float(np.mean([correct / count for _, count, correct in recalls])),
        "nll": float(-np.log(np.maximum(own, 1e-300)).mean()),
        "ece": calibration_error(sure, right),
        "per_class": tuple(ClassScore(name, m, k, k / m, wilson(k, m)) for name, m, k in recalls),
        "confusion": tuple(tuple(row) for row in confusion.tolist()),
        "mistakes": tuple(Mistake(names[i], classes[labels[i]], classes[answers[i]], float(sure[i])) for i in wrong),
    }


def calibration_error(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Mean gap between confidence and accuracy over bins of equal width, weighted by their counts."""
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    gaps = np.abs(np.bincount(bins, right, BINS) - np.bincount(bins, sure, BINS))
    return float(gaps[counts > 0].sum() / len(sure))


def evaluate(
    model: str | Path | ModelFile,
    data: str | Path | Data | None = None,
    *,
    split: str | None = None,
    bad: str = "stop",
    device: str = "cpu",
) -> Result:
    """Score a model on pictures.

    data    anything `open_data` takes; None: the pictures that the model's run kept back
    split   which part; None: "test", else "val", else all of them
    bad     "stop": raise when a picture cannot be read; "skip": leave it out and list it in the result
    Raises UserError, also when the pictures have a class that the model does not know.
    """
    opened = model if isinstance(model, ModelFile) else open_model(model)
    found = data if isinstance(data, Data) else as_trained(model, data)
    name = choose_split(found, split)
    found = found.relabelled(opened.classes)
    reader = Reader(found, opened.preprocess, threads=default_threads())
    network = place(opened.network, torch.device(device))
    protocol = describe_protocol(found, name, opened.preprocess)
    result = score(network, reader, found.select(name), protocol=protocol)
    if result.bad and bad != "skip":
        index = {found.pictures.name(i): i for i in found.select(name).tolist()}
        unreadable = {index[path]: reason for path, reason in result.bad.items()}
        raise UserError(name_bad(found, unreadable, 'leave out what cannot be read (--bad skip; in Python bad="skip")'))
    return result


def choose_split(data: Data, wanted: str | None) -> str:
    """The split asked for, or the one that was held back furthest from training."""
    if wanted is not None and wanted not in data.splits:
        raise UserError(f"{data.spec}: no split {wanted!r}; it has {', '.join(data.splits)}")
    return wanted or next(name for name in ("test", "val", "all", "train") if name in data.splits)


def describe_protocol(data: Data, split: str, preprocess: Preprocess) -> str:
    """The protocol in one line, as it stands beside every score."""
    return f"{data.spec}, {split}, single centre crop; {preprocess}; fp32"


def as_trained(model: str | Path | ModelFile, data: str | Path | None) -> Data:
    """The data, divided as for training when they are those that the model's own run divided by itself.

    Without that, an undivided folder would be scored with the pictures that were trained on.
    """
    folder = None if isinstance(model, ModelFile) else model_path(model).parent
    if folder is None or not (folder / "environment.json").exists():
        if data is None:
            raise UserError("this model does not lie in a run folder: say which pictures to evaluate it on")
        return open_data(data)
    own = str(read_json(folder / "environment.json")["data"])
    found = open_data(own if data is None else data)
    same = data is None or os.path.realpath(absolute(data)) == os.path.realpath(own)
    return load_split(found, folder / "split.csv") if same and (folder / "split.csv").exists() else found
