"""What a model scores: every picture counts once, counts are added and rates never averaged.

The same function gives the score during training, the final score and the score of `resnet evaluate`. It always runs
in fp32, so that precision settings of the training do not move it.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from resnetkit import multilabel
from resnetkit.about import model_path
from resnetkit.data.excluded import names_of_run, read_names, without_names
from resnetkit.data.joined import with_validation
from resnetkit.data.labels import Labels, read_labels, same_classes, unmatched
from resnetkit.data.loader import Reader, default_threads
from resnetkit.data.pictures import Data, name_bad
from resnetkit.data.source import absolute, open_data
from resnetkit.data.split import load_split
from resnetkit.data.transforms import Preprocess
from resnetkit.distributed import ALONE, Ranks, joined
from resnetkit.errors import UserError, shown_name
from resnetkit.model import ResNet
from resnetkit.multilabel import MultiLabelResult
from resnetkit.protocol import ONE_CROP, Answers, Member, Progress, Protocol, ask
from resnetkit.reliability import calibration_error, likelihood_cost
from resnetkit.runs import read_json
from resnetkit.weights import ModelFile, open_model, place

WORST = 24  # confidently wrong pictures that are kept by name


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

    measure: ClassVar[str] = "top1"
    title: ClassVar[str] = "top-1"

    @property
    def headline(self) -> float:
        """What epochs are compared by."""
        return self.top1

    @property
    def summary(self) -> dict[str, Any]:
        """What the log of a training keeps of it."""
        return {name: getattr(self, name) for name in ("n", "correct", "top1", "top1_interval", "nll")}

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


Score = Result | MultiLabelResult


def score_from(values: dict[str, Any]) -> Score:
    """A score as it stands in result.json."""
    return (MultiLabelResult if "per_label" in values else Result).from_dict(values)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927); (0, 1) for n = 0."""
    if n == 0:
        return (0.0, 1.0)
    z = 1.959963984540054
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The rounding of floats must not leave p itself outside, which happens at 0 of 7.
    return (min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def score(network: ResNet, reader: Reader, indices: NDArray[np.int64], *, protocol: str, ranks: Ranks = ALONE) -> Score:
    """The score of a network on the pictures `indices`, one crop of each; unreadable ones are in `result.bad`.

    protocol   how it was measured, in words
    ranks      divide the pictures among them, and all get the score
    """
    member = Member(network, reader, multi_label=reader.data.sets is not None)
    answers = ask([member], indices, ranks=ranks)
    return ranks.agreed(lambda: judge_all(reader.data, answers, protocol))


def judge_all(data: Data, answers: Answers, protocol: str, labels: Labels | None = None) -> Score:
    """The score of answers: a MultiLabelResult where a picture may have several labels, else that of `judge`."""
    if data.sets is None:
        return judge(data, answers, protocol, labels)
    sets = data.sets[data.labels[answers.indices]]
    found = multilabel.measure(answers.table, sets, data.classes, names_in(data, answers.indices.tolist()))
    return MultiLabelResult(**found, bad=reasons(data, answers), protocol=protocol)


def names_in(data: Data, indices: Sequence[int]) -> list[str]:
    return [data.pictures.name(i) for i in indices]


def reasons(data: Data, answers: Answers) -> dict[str, str]:
    """Why pictures could not be read, by their names."""
    return {data.pictures.name(i): reason for i, reason in answers.bad.items()}


def judge(data: Data, answers: Answers, protocol: str, labels: Labels | None = None) -> Result:
    """The Result of answers, one label for each picture.

    labels   where several outputs may be right, the most probable of them is taken for the picture's label. So an
             answer counts when it is among them and top-5 when any of them is among the first five; classes, confusion,
             and likelihood count the picture under the answer where that is right, else under the most probable label.
    """
    truth = data.labels[answers.indices] if labels is None else nearest_labels(answers, labels)
    found = measure(answers.table, truth, data.classes, names_in(data, answers.indices.tolist()))
    return Result(**found, bad=reasons(data, answers), protocol=protocol)


def nearest_labels(answers: Answers, labels: Labels) -> NDArray[np.int64]:
    """Of each picture's labels the most probable one."""
    pairs = zip(answers.indices.tolist(), answers.table, strict=True)
    return np.array([max(labels.accepted[index], key=row.__getitem__) for index, row in pairs], dtype=np.int64)


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
        "nll": likelihood_cost(own),
        "ece": calibration_error(sure, right),
        "per_class": tuple(ClassScore(name, m, k, k / m, wilson(k, m)) for name, m, k in recalls),
        "confusion": tuple(tuple(row) for row in confusion.tolist()),
        "mistakes": tuple(Mistake(names[i], classes[labels[i]], classes[answers[i]], float(sure[i])) for i in wrong),
    }


def evaluate(
    model: str | Path | ModelFile,
    data: str | Path | Data | None = None,
    *,
    split: str | None = None,
    bad: str = "stop",
    device: str = "cpu",
    protocol: Protocol = ONE_CROP,
    ensemble: Sequence[str | Path | ModelFile] = (),
    labels: str | Path | None = None,
    exclude: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Score:
    """Score a model on pictures: a MultiLabelResult where they may have several labels, else a Result.

    data      anything `open_data` takes; None: the pictures that the model's run kept back
    split     which part; None: "test", else "val", else all of them
    bad       "stop": raise when a picture cannot be read; "skip": leave it out and list it in the result
    protocol  the views of a picture that are averaged; see `resnetkit.protocol`
    ensemble  further models of the same classes; the mean of all probabilities is scored
    labels    other labels than the pictures' own; see `data.labels.read_labels`
    exclude   files with names of pictures to leave out; see `data.excluded`
    progress  is called with a `Scoring` after every batch
    Under torchrun its processes divide the pictures among them, and all return the same.
    Raises UserError, also when the pictures have a class that the model does not know.
    """
    with joined() as ranks:
        left = read_names(exclude)
        asked = ask_for(
            model, data, split=split, device=device, protocol=protocol, ensemble=ensemble, labels=labels, exclude=left
        )
        if asked.labels is None and asked.split in asked.data.unlabelled:
            raise UserError(
                f"{asked.data.spec}: {asked.split} has no labels; write the answers down with --submission FILE (in "
                "Python `submit`), or take another split"
            )
        answers = ask(asked.members, asked.indices, protocol, progress, ranks)
        if answers.bad and bad != "skip":
            skip = 'leave out what cannot be read (--bad skip; in Python bad="skip")'
            raise UserError(name_bad(asked.data, answers.bad, skip))
        return ranks.agreed(lambda: judge_all(asked.data, answers, asked.protocol, asked.labels))


def free_file(out: str | Path) -> Path:
    """A file that can be made. Raises UserError before any work is done."""
    path = Path(out)
    if os.path.lexists(path):
        raise UserError(f"{out}: exists already; choose another name")
    if not path.parent.is_dir():
        raise UserError(f"{out}: there is no folder {path.parent}; make it first, or choose another place")
    return path


@dataclass(frozen=True)
class Asked:
    """What an evaluation was asked for: the models, the pictures, and both in words."""

    members: list[Member]
    data: Data
    split: str
    indices: NDArray[np.int64]
    labels: Labels | None
    protocol: str


def ask_for(
    model: str | Path | ModelFile,
    data: str | Path | Data | None,
    *,
    split: str | None,
    device: str,
    protocol: Protocol,
    ensemble: Sequence[str | Path | ModelFile],
    labels: str | Path | None = None,
    exclude: Sequence[str] = (),
) -> Asked:
    """Open what `evaluate` is given. Raises UserError."""
    models = [model, *ensemble]
    opened = [each if isinstance(each, ModelFile) else open_model(each, several=True) for each in models]
    columns = [
        same_classes(opened[0].classes, each.classes, each.network.arch.name if isinstance(of, ModelFile) else str(of))
        for each, of in zip(opened, models, strict=True)
    ]
    preprocesses = [protocol.preprocess(each.preprocess) for each in opened]
    found = without_names(data if isinstance(data, Data) else as_trained(model, data, several=True), exclude)
    agree(opened, found, labels)
    name = choose_split(found, split)
    indices = found.unlabelled[name] if name in found.unlabelled else found.select(name)
    other = None if labels is None else read_labels(labels, found, indices, opened[0].classes)
    found = found.relabelled(opened[0].classes) if other is None else unmatched(found, opened[0].classes)
    if other is not None:
        indices = np.array([i for i in indices.tolist() if i in other.accepted], dtype=np.int64)
    members = [
        Member(
            place(each.network, torch.device(device)),
            Reader(found, preprocess, threads=default_threads()),
            order,
            each.about.temperature,
            each.multi_label,
        )
        for each, preprocess, order in zip(opened, preprocesses, columns, strict=True)
    ]
    words = describe_protocol(found, name, preprocesses[0], protocol, other, members)
    return Asked(members, found, name, indices, other, words)


def agree(models: Sequence[ModelFile], data: Data, labels: str | Path | None) -> None:
    """Raise UserError where a model gives several labels and a picture has one, or the other way round."""
    many = data.sets is not None
    if any(each.multi_label != many for each in models):
        has, gives = ("may have several labels", "one") if many else ("have one label each", "several")
        raise UserError(f"{data.spec}: the pictures {has}, and a model gives {gives}; take a model for such pictures")
    if many and labels is not None:
        raise UserError("--labels: takes the place of one label for each picture, and these may have several")


def choose_split(data: Data, wanted: str | None) -> str:
    """The split asked for, or the one that was held back furthest from training."""
    there = [*data.splits, *data.unlabelled]
    if wanted is not None and wanted not in there:
        raise UserError(f"{data.spec}: no split {wanted!r}; it has {', '.join(there)}")
    order = [name for name in ("test", "val", "all", "train") if name in data.splits]
    return wanted or [*order, *data.unlabelled][0]


def describe_protocol(
    data: Data,
    split: str,
    preprocess: Preprocess,
    protocol: Protocol = ONE_CROP,
    labels: Labels | None = None,
    members: Sequence[Member] = (),
) -> str:
    """The protocol in one line, as it stands beside every score; none of `members`: a network that is being trained."""
    each = [protocol.describe(member.reader.preprocess, member.temperature) for member in members]
    views = each[0] if each else protocol.describe(preprocess)
    if len(each) > 1:
        named = (f"{member.network.arch.name}: {how}" for member, how in zip(members, each, strict=True))
        views = f"ensemble of {len(each)}, probabilities averaged; {'; '.join(named)}"
    if data.sets is not None:
        views = views.replace("softmax", "probabilities")
    return f"{data.spec}, {split}{f', {labels}' if labels else ''}, {views}; fp32"


def as_trained(model: str | Path | ModelFile, data: str | Path | None, *, several: bool = False) -> Data:
    """The data, divided as for training when they are those that the model's own run divided by itself.

    Without that, an undivided folder would be scored with the pictures that were trained on.
    """
    folder = None if isinstance(model, ModelFile) else model_path(model).parent
    if folder is None or not (folder / "environment.json").exists():
        if data is None:
            raise UserError("this model does not lie in a run folder: say which pictures to evaluate it on")
        return open_data(data, several=several)
    environment = read_json(folder / "environment.json")
    own = str(environment["data"])
    found = open_data(own if data is None else data, several=several)
    if data is None and environment.get("val"):
        found = with_validation(found, open_data(environment["val"]))
    same = data is None or os.path.realpath(absolute(data)) == os.path.realpath(own)
    if same:
        found = without_names(found, names_of_run(folder, environment.get("excluded", 0)))
    return load_split(found, folder / "split.csv") if same and (folder / "split.csv").exists() else found
