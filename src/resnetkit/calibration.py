"""One temperature that makes a model's probabilities mean what they say (Guo et al. 2017, arXiv 1706.04599).

Networks trained for long are surer than they are right. Dividing the logits by one number T before the softmax sets
that right on the whole: the T of least negative log-likelihood on pictures that were held back. No answer changes by
it, only how sure the answer is. The T in a model file is fitted on all pictures of a split; what it gains is measured
by cross-fitting, so that no picture is judged with a T that it had a part in.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resnetkit.about import model_path
from resnetkit.abstaining import Abstention, threshold_for
from resnetkit.data.loader import Reader, default_threads, order
from resnetkit.data.pictures import Data, count, name_bad
from resnetkit.errors import UserError
from resnetkit.evaluation import as_trained, choose_split, describe_protocol
from resnetkit.protocol import Progress, Scoring, check_numbers, outputs, tempered
from resnetkit.reliability import Reliability, reliability
from resnetkit.weights import ModelFile, open_model, place, save_model

LOWEST, HIGHEST = 0.05, 20.0  # temperatures; beyond them it is not confidence that is wrong with a model
FEWEST = 20  # pictures
FOLDS = 5
NEWTON, STEPS = 20, 100  # steps of Newton's, and in all; it takes about ten
PRECISION = 1e-12  # relative, of the temperature
ROWS = 4096  # pictures at a time, because doubles of 50,000 pictures and 1,000 classes would fill the memory
EXPORTED = (".onnx", ".xml", ".mnn", ".pt2")


@dataclass(frozen=True)
class Calibration:
    """A temperature and what it gains.

    folds   the temperatures of cross-fitting: how much it depends on which pictures there were
    before  of the raw logits, which is temperature 1
    after   every picture with the temperature that was fitted on the other folds
    abstention  the threshold that goes with the temperature, judged in the same way
    """

    temperature: float
    n: int
    data: str
    split: str
    folds: tuple[float, ...]
    before: Reliability
    after: Reliability
    abstention: Abstention
    bad: dict[str, str]  # unreadable pictures left out: path to reason
    notes: tuple[str, ...]  # sentences on what to know of it
    protocol: str  # data, split, views and preprocessing, in words

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, under the same names."""
        return asdict(self)

    def to_meta(self) -> dict[str, Any]:
        """As it stands in a model file: `replace(model, calibration=this)` is the model with it."""
        figures = {
            name: {"nll": of.nll, "ece": of.ece} for name, of in (("before", self.before), ("after", self.after))
        }
        about = {"temperature": self.temperature, "n": self.n, "data": self.data, "split": self.split, **figures}
        found = self.abstention
        return about | ({"threshold": found.threshold, "accuracy": found.wanted} if found.threshold else {})

    def __str__(self) -> str:
        before, after = self.before, self.after
        return (
            f"temperature {self.temperature:.4g}: negative log-likelihood {before.nll:.4f}, then {after.nll:.4f} nats; "
            f"expected calibration error {100 * before.ece:.2f} %, then {100 * after.ece:.2f} %"
        )


def calibrate(
    model: str | Path | ModelFile,
    data: str | Path | Data | None = None,
    *,
    split: str | None = None,
    accuracy: float = 0.95,
    bad: str = "stop",
    device: str = "cpu",
    progress: Progress | None = None,
) -> Calibration:
    """Fit a model's temperature on pictures that were held back, and write it into the model file.

    With it comes a threshold (`threshold_for`), below which the first class is no answer.

    model     a run folder or model file gets the temperature; a ModelFile stays as it is, and nothing is written:
              `dataclasses.replace(model, calibration=found.to_meta())` is the one with it
    data      anything `open_data` takes; None: the pictures that the model's run kept back
    split     which part; None: "val", else "test", else all of them; never "train"
    bad       "stop": raise when a picture cannot be read; "skip": leave it out and list it
    progress  is called with a `Scoring` after every batch
    A temperature that the model has already is replaced, and plays no part. Raises UserError.
    """
    path = None if isinstance(model, ModelFile) else model_path(model)
    if path is not None and path.suffix in EXPORTED:
        raise UserError(f"{path}: an exported file; calibrate the model it was exported from, then export again")
    file = model if isinstance(model, ModelFile) else open_model(model)
    given = data if isinstance(data, Data) else as_trained(model, data)
    name = held_back(given, split)
    found = given.relabelled(file.classes)
    check_number(found, name, len(found.select(name)))
    reader = Reader(found, file.preprocess, threads=default_threads())
    indices, logits, unreadable = raw_answers(file, reader, found.select(name), device, progress)
    if unreadable and bad != "skip":
        raise UserError(name_bad(found, unreadable, 'leave out what cannot be read (--bad skip; in Python bad="skip")'))
    check_number(found, name, len(indices))
    labels = found.labels[indices]
    temperature = fit(logits, labels)
    table, folds, answered = cross_fitted(logits, labels, accuracy)
    threshold = threshold_of(softmax(logits, temperature), labels, accuracy)
    made = Calibration(
        temperature=temperature,
        n=len(indices),
        data=found.spec,
        split=name,
        folds=folds,
        before=reliability(softmax(logits, 1.0), labels),
        after=reliability(table, labels),
        abstention=abstention(table, labels, answered, threshold or 0.0, accuracy),
        bad={found.pictures.name(index): reason for index, reason in sorted(unreadable.items())},
        notes=(),
        protocol=describe_protocol(found, name, file.preprocess),
    )
    notes = [*notes_on_split(found, name, split), *notes_on_fit(made, fits_everything(logits, labels))]
    notes += [f"no threshold makes {100 * accuracy:g} % of the answers right, so there is none"] * (threshold is None)
    if file.calibration:
        notes.append(f"temperature {file.about.temperature:.4g}, which the model had, is replaced")
    made = replace(made, notes=tuple(notes))
    if path is not None:
        write(path, replace(file, calibration=made.to_meta()))
    return made


def held_back(data: Data, wanted: str | None) -> str:
    """The split to fit on. Raises UserError for pictures of the training and for those without labels."""
    there = (name for name in ("val", "test", "all") if name in data.splits)
    name = choose_split(data, wanted or next(there, None))
    if name == "train":
        raise UserError(
            f"{data.spec}: train: a model is surer of pictures that it was trained on than of others, so they cannot "
            "say how sure it may be; take pictures that were held back"
        )
    if name in data.unlabelled:
        raise UserError(f"{data.spec}: {name} has no labels; take another split")
    return name


def check_number(data: Data, split: str, n: int) -> None:
    """Raise UserError for too few pictures, on which a temperature would be chance."""
    if n < FEWEST:
        number = count(n, "picture", "pictures")
        raise UserError(f"{data.spec}: {split} has {number} to fit a temperature on; it takes {FEWEST} at least")


def raw_answers(
    file: ModelFile, reader: Reader, indices: NDArray[np.int64], device: str, progress: Progress | None
) -> tuple[NDArray[np.int64], NDArray[np.float32], dict[int, str]]:
    """The logits (n, classes) of the centre crops, whose pictures they are, and what could not be read."""
    network = place(file.network, torch.device(device))
    done, rows = [np.empty(0, np.int64)], [np.empty((0, len(file.classes)), np.float32)]
    bad: dict[int, str] = {}
    for part in outputs(network, reader, indices, network):
        check_numbers(part, reader.data)
        bad |= part.bad
        if len(part.indices):
            done.append(part.indices)
            rows.append(part.rows)
        if progress is not None:
            progress(Scoring(sum(map(len, done)) + len(bad), len(indices), 1, 1))
    return np.concatenate(done), np.concatenate(rows), bad


def softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Probabilities (n, classes), by the same function that gives a model's answers."""
    table: NDArray[np.float64] = tempered(torch.from_numpy(logits), temperature).numpy()
    return table


def cross_fitted(
    logits: NDArray[np.float32], labels: NDArray[np.int64], accuracy: float = 0.0
) -> tuple[NDArray[np.float64], tuple[float, ...], NDArray[np.bool_]]:
    """Probabilities of every picture with the temperature fitted on the four other fifths; the five temperatures; and
    whether each picture is answered, by the threshold of the four others.

    The fifths are drawn at random, always in the same way: folders are sorted by class.
    """
    fold = np.empty(len(labels), np.int64)
    fold[order(0, 0, len(labels))] = np.arange(len(labels)) % FOLDS
    table, temperatures, answered = np.empty(logits.shape), [], np.empty(len(labels), np.bool_)
    for number in range(FOLDS):
        inside = fold == number
        temperatures.append(fit(logits[~inside], labels[~inside]))
        table[inside] = softmax(logits[inside], temperatures[-1])
        others = softmax(logits[~inside], temperatures[-1])
        answered[inside] = table[inside].max(1) >= (threshold_of(others, labels[~inside], accuracy) or 0.0)
    return table, tuple(temperatures), answered


def threshold_of(table: NDArray[np.float64], labels: NDArray[np.int64], accuracy: float) -> float | None:
    """As `threshold_for`, of probabilities (n, classes). Raises UserError for an accuracy that is none."""
    if not 0 <= accuracy <= 1:
        raise UserError(f"accuracy={accuracy}: must be from 0 to 1")
    return threshold_for(table.max(1), table.argmax(1) == labels, accuracy)


def abstention(
    table: NDArray[np.float64],
    labels: NDArray[np.int64],
    answered: NDArray[np.bool_],
    threshold: float,
    wanted: float,
) -> Abstention:
    """The threshold and what it does, each picture judged by that of the others; without one all are answered."""
    answered = answered if threshold else np.ones_like(answered)
    right = table.argmax(1) == labels
    accuracy = float(right[answered].mean()) if answered.any() else None
    return Abstention(threshold, wanted, float(answered.mean()), accuracy)


def fits_everything(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> bool:
    """Whether no class is more probable than the label, for any picture."""
    return bool((logits.max(1) <= logits[np.arange(len(labels)), labels]).all())


def fit(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature in [LOWEST, HIGHEST] of least mean negative log-likelihood of softmax(logits / T).

    The likelihood is convex in 1 / T, so the only root of its slope is the place: Newton's steps inside a bracket,
    halves of the bracket where they leave it. Where every answer is right it has none: the likelihood grows for ever as
    T falls to 0, the pictures do not say how far to go, and T is 1.
    """
    if fits_everything(logits, labels):
        return 1.0
    low, high = 1 / HIGHEST, 1 / LOWEST
    if derivatives(logits, labels, low)[0] >= 0:
        return HIGHEST
    if derivatives(logits, labels, high)[0] <= 0:
        return LOWEST
    sharpness = 1.0  # 1 / T
    for step in range(STEPS):
        slope, bend = derivatives(logits, labels, sharpness)
        low, high = (low, sharpness) if slope > 0 else (sharpness, high)
        newton = sharpness - slope / bend if bend > 0 else high
        if abs(newton - sharpness) <= PRECISION * sharpness:
            break
        sharpness = newton if low < newton < high and step < NEWTON else math.sqrt(low * high)
    return 1 / sharpness


def derivatives(logits: NDArray[np.float32], labels: NDArray[np.int64], sharpness: float) -> tuple[float, float]:
    """The first and second derivative of the mean negative log-likelihood by 1 / T, at 1 / T = sharpness."""
    slope = bend = 0.0
    for first in range(0, len(labels), ROWS):
        gaps, own = logits[first : first + ROWS].astype(np.float64), labels[first : first + ROWS]
        gaps -= gaps[np.arange(len(own)), own][:, None]
        powers = np.exp(sharpness * (gaps - gaps.max(1, keepdims=True)))
        powers /= powers.sum(1, keepdims=True)
        means = (powers * gaps).sum(1)
        slope += float(means.sum())
        bend += float((powers * (gaps - means[:, None]) ** 2).sum())
    return slope / len(labels), bend / len(labels)


def notes_on_split(data: Data, split: str, wanted: str | None) -> list[str]:
    """What fitting on these pictures takes from them."""
    if split != choose_split(data, None):
        return []
    begin = "there is no val: " if wanted is None and split == "test" else ""
    return [
        f"{begin}the score on {split} is no longer untouched: the likelihood and calibration error that evaluate gives "
        "there are of pictures that the temperature was fitted on (those under 'after' are not); accuracy cannot change"
    ]


def notes_on_fit(made: Calibration, everything_right: bool) -> list[str]:
    """Where the temperature is not simply the best one."""
    if everything_right:
        return [
            "all answers are right, so the temperature would fall to 0; these pictures do not say where to stop, and "
            "it stays at 1"
        ]
    if made.temperature == LOWEST:
        return [f"the likelihood still grows at temperature {LOWEST:g}, the lowest there is"]
    if made.temperature == HIGHEST:
        return [f"the answers are worth less than even odds: temperature {HIGHEST:g} is the highest there is"]
    if made.after.nll >= made.before.nll:
        return ["on pictures that it was not fitted on, this temperature is no better than 1"]
    return []


def write(path: Path, model: ModelFile) -> None:
    """The model in place of the old one. Raises UserError where it cannot be written; the old one then stays."""
    try:
        save_model(model, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); make room or ask for the permission") from None
