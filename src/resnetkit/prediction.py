"""Answers for pictures, as a stream. Nothing here imports torch, so that an exported model answers without it."""

from __future__ import annotations

import html
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.about import About, model_path
from resnetkit.data.folder import find_pictures
from resnetkit.data.loader import default_threads, in_threads
from resnetkit.data.pictures import SEPARATOR, Pixels
from resnetkit.data.transforms import Preprocess
from resnetkit.engines import files
from resnetkit.engines.opening import Opened, open_engine
from resnetkit.errors import BadPicture, Diverged, UserError, shown_name
from resnetkit.stores import NotThere, Store, is_url, protocol_of

if TYPE_CHECKING:
    from resnetkit.model import ResNet
    from resnetkit.weights import ModelFile

    Model = str | os.PathLike[str] | ModelFile

BATCH = 16  # pictures that the engine sees at a time, at most
FEW = 4  # below that the engine is wanted that is soonest done with a single picture

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prediction:
    """What a picture shows: the answer, its probability, and the first ones in order; or why there is none.

    Where the first one is less probable than what was asked for, there is no answer, its probability and the first ones
    nevertheless; and no error.

    labels   of a model that gives several: those of the first ones that are said; the answer has them with `|` between
    """

    path: str
    answer: str | None
    probability: float | None
    top: tuple[tuple[str, float], ...]
    error: str | None
    labels: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `class` is the answer."""
        top = [{"class": name, "probability": share} for name, share in self.top]
        about = {"class": self.answer, "probability": self.probability}
        several = {} if self.labels is None else {"labels": list(self.labels)}
        return {"path": self.path, **about, **several, "top": top, "error": self.error}

    @property
    def nothing(self) -> str:
        """What is said where no class is probable enough."""
        return "not sure" if self.labels is None else "no label"

    def _repr_html_(self) -> str:
        shown = ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.top)
        shown = self.error or (shown if self.answer is not None else f"{self.nothing} ({shown})")
        return f"<p><code>{html.escape(shown_name(self.path))}</code>: {html.escape(shown_name(shown))}</p>"


class Classifier(os.PathLike[str]):
    """A model that can be asked, of a model file or an exported one; stands for its path wherever a model is taken.

    The file is what answers: changes to `.network` change no answer. An engine is started by the first question.
    """

    def __init__(self, path: Path, about: About) -> None:
        self.path, self.about = path, about
        self._engines: dict[str, Opened] = {}

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __repr__(self) -> str:
        return f"Classifier({os.fspath(self.path)!r})"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.about.classes

    @property
    def preprocess(self) -> Preprocess:
        return self.about.preprocess

    @property
    def network(self) -> ResNet:
        """The torch.nn.Module, in evaluation mode. Raises UserError where there is none."""
        return self.model.network

    @cached_property
    def model(self) -> ModelFile:
        """Everything, in memory. Raises UserError for what is exported."""
        if self.path.suffix != ".safetensors":
            raise UserError(f"{self.path}: an exported file has no network; load the model that it came from")
        from resnetkit.weights import open_model

        return open_model(self.path, several=True)

    def predict(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        top: int = 5,
        engine: str = "auto",
        min_probability: float | None = None,
    ) -> list[Prediction]:
        """Answers for pictures and folders of pictures, in order; see `predict`."""
        check(top, min_probability)
        batches = in_batches(names_of(paths))
        if engine not in self._engines:
            self._engines[engine] = start(self.path, engine)
        found = answers(self._engines[engine], batches, top, min_probability, os.fspath(self.path))
        return [answer for batch in found for answer in batch]


def load(model: str | Path) -> Classifier:
    """The classifier of a run folder, model file or exported file. Raises UserError when missing or damaged."""
    path = model_path(model)
    return Classifier(path, files.read(path).about)


def predict(
    model: Model,
    paths: str | Path | Iterable[str | Path],
    *,
    top: int = 5,
    engine: str = "auto",
    min_probability: float | None = None,
    say: Say | None = None,
) -> Iterator[Prediction]:
    """Answers one by one, in order: files as they are given, folders walked, their pictures sorted.

    paths            a collection is looked through before any work, and a path in it that does not exist raises
                     UserError; an iterator is read as its pictures are wanted, and may have no end
    min_probability  where the first class has less, `answer` is None; by default the threshold that the model states
    say              is told in a sentence what takes time

    A picture that cannot be read gives a Prediction with `error`. Raises UserError at once for what is wrong with the
    arguments.
    """
    check(top, min_probability)
    where = place_of(model)
    names = names_of(paths)
    opened = start(model, engine, say, len(names) if isinstance(names, list) else None)
    found = answers(opened, in_batches(names), top, min_probability, where)
    return (answer for batch in found for answer in batch)


def check(top: int, min_probability: float | None) -> None:
    if top < 1:
        raise UserError(f"top={top}: must be at least 1")
    if min_probability is not None and not 0 <= min_probability <= 1:
        raise UserError(f"min_probability={min_probability}: must be from 0 to 1")


def place_of(model: Model) -> str:
    """A model in messages. Raises UserError where there is no such file or folder."""
    if not isinstance(model, str | os.PathLike):
        return "the model"
    model_path(Path(model))
    return os.fspath(model)


def start(model: Model, engine: str = "auto", say: Say | None = None, pictures: int | None = None) -> Opened:
    """The model in an engine; `auto` takes the one for so many pictures, or for many. Raises UserError."""
    if isinstance(model, str | os.PathLike):
        few = pictures is not None and pictures < FEW
        return open_engine(Path(model), engine, batch=1 if few else BATCH, once=few, say=say)
    if engine not in ("auto", "torch"):
        raise UserError(f"engine {engine}: runs files, and this model is in memory; save it first (weights.save_model)")
    from resnetkit.engines import torch

    run = torch.load(model, default_threads())
    return Opened(model.about, run, "torch", "the model is in memory", "fp32")


def in_words(opened: Opened, min_probability: float | None = None) -> str:
    """How pictures are looked at and what answers, in a sentence for people."""
    about = opened.about
    least = about.threshold if min_probability is None else min_probability
    below = "not said" if about.multi_label else "not sure"
    unsure = f"; {below} below {100 * least:.4g} %" if least else ""
    tempered = "" if about.temperature == 1 else f"; temperature {about.temperature:.4g}"
    engine = f"engine {opened.engine} ({opened.precision}): {opened.why}"
    return f"single centre crop; {about.preprocess}; {engine}{tempered}{unsure}"


# Which pictures


def names_of(paths: str | Path | Iterable[str | Path]) -> Iterable[str]:
    """The pictures that are meant; see `predict`. Raises UserError for a collection."""
    if isinstance(paths, str | Path):
        paths = [paths]
    if isinstance(paths, Collection):
        return [name for path in paths for name in picture_files(os.fspath(path))]
    return (name for path in paths for name in found_below(os.fspath(path)))


def picture_files(path: str) -> list[str]:
    """The path itself, or the pictures below a folder; objects that a URL with braces or stars stands for.

    Raises UserError when there is nothing.
    """
    if is_url(path):
        from resnetkit.data.patterns import expand

        return expand(path)
    if not os.path.exists(path):  # noqa: PTH110 - names that are not UTF-8 stay as they are
        raise UserError(f"{shown_name(path)}: no such file or folder")
    if not os.path.isdir(path):  # noqa: PTH112
        return [path]
    found = find_pictures(Path(path))
    if not found:
        raise UserError(f"{shown_name(path)}: holds no pictures")
    return found


def found_below(path: str) -> list[str]:
    """As `picture_files`, but what cannot be is given back, to get its reason when its turn comes."""
    if not os.path.isdir(path):  # noqa: PTH112
        return [path]
    try:
        return find_pictures(Path(path)) or [path]
    except UserError:
        return [path]


def in_batches(names: Iterable[str]) -> Iterator[list[str]]:
    """As many as the engine sees at a time, the last ones as few as there are."""
    rest = iter(names)
    while batch := list(islice(rest, BATCH)):
        yield batch


# Answers


def answers(
    opened: Opened, batches: Iterable[list[str]], top: int, min_probability: float | None, where: str
) -> Iterator[list[Prediction]]:
    """Answers batch by batch, while threads make the pictures of the next ones (`loader.AHEAD`).

    An empty batch is one of an endless list in which nothing new stands yet; it gives an empty list. `where` names the
    model in messages. Raises UserError where the model answers with what is no number, or not as its metadata say.
    """
    preprocess, contents = opened.about.preprocess, Contents()
    least = opened.about.threshold if min_probability is None else min_probability
    shape = (preprocess.size, preprocess.size, preprocess.channels)
    several = opened.about.multi_label
    under_way: deque[tuple[list[str], Pixels]] = deque()

    def groups() -> Iterator[list[Callable[[], str | None]]]:
        for names in batches:
            out = np.empty((len(names), *shape), dtype=np.uint8)
            under_way.append((names, out))
            yield [partial(fill, out[row], name, preprocess, contents) for row, name in enumerate(names)]

    for reasons in in_threads(default_threads(), groups()):
        names, pictures = under_way.popleft()
        good = [row for row, reason in enumerate(reasons) if reason is None]
        if len(good) < len(names):
            pictures = pictures[good]
        rows = iter(asked(opened, pictures, top, where) if good else ())
        yield [
            answered(name, next(rows), least, several=several)
            if reason is None
            else Prediction(name, None, None, (), reason)
            for name, reason in zip(names, reasons, strict=True)
        ]


class Contents:
    """The bytes of a file, or of an object in a store, by its path or URL; for many threads."""

    def __init__(self) -> None:
        self.stores: dict[str, Store] = {}
        self.lock = Lock()

    def __call__(self, name: str) -> bytes:
        """Raises OSError for a file; NotThere for an object, and UserError where its store is gone or refuses."""
        if not is_url(name):
            with open(name, "rb", buffering=0) as file:  # noqa: PTH123 - a Path costs several times this
                return file.read()
        protocol = protocol_of(name)
        with self.lock:
            store = self.stores[protocol] = self.stores.get(protocol) or Store(name)
        facts = store.facts(name)
        return store.read(name, 0, facts.size, facts)


def fill(out: Pixels, name: str, preprocess: Preprocess, contents: Contents | None = None) -> str | None:
    """Read a picture into `out`, or say why that cannot be. Raises UserError where a store is gone or refuses."""
    try:
        out[:] = preprocess.fit(preprocess.open((contents or Contents())(name)))
    except NotThere:
        return "cannot be opened: No such object"
    except BadPicture as error:
        return str(error)
    except IsADirectoryError:
        return "a folder in which no pictures were found"
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    except ValueError:
        if "\0" not in name:
            raise
        return "cannot be opened: no file has a zero byte in its name"
    return None


def asked(opened: Opened, pictures: Pixels, top: int, where: str) -> list[tuple[tuple[str, float], ...]]:
    """For each picture the first classes and their probabilities."""
    return ranked(opened.run(pictures), opened.about, top, where)


def ranked(logits: NDArray[np.float32], about: About, top: int, where: str) -> list[tuple[tuple[str, float], ...]]:
    """For each row of logits the first classes and their probabilities. Raises UserError as `answers`."""
    classes = about.classes
    if logits.shape[1] != len(classes):
        raise UserError(
            f"{where}: answers {logits.shape[1]:,} classes, and its metadata name {len(classes):,}; export it again"
        )
    if not np.isfinite(logits).all():
        raise Diverged(f"{where}: the network answers with what is no number; train it anew with a smaller optim.lr")
    shares = probabilities(logits, about)
    # By the logits: shares may be so small that they are equal.
    first = np.argsort(-logits, axis=1, kind="stable")[:, :top].tolist()
    return [tuple((classes[i], float(row[i])) for i in best) for best, row in zip(first, shares, strict=True)]


def probabilities(logits: NDArray[np.float32], about: About) -> NDArray[np.float64]:
    """The softmax of logits / temperature, or of several labels each one's sigmoid, in double as in `protocol`."""
    shares: NDArray[np.float64]
    if about.multi_label:
        small = np.exp(-np.abs(logits.astype(np.float64)))  # of no power that is too large
        shares = np.where(logits >= 0, 1, small) / (1 + small)
        return shares
    scaled = logits.astype(np.float64) / about.temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    return shares


def answered(
    name: str, best: tuple[tuple[str, float], ...], min_probability: float, *, several: bool = False
) -> Prediction:
    """The answer of the first classes: the first one, or of `several` labels all that are probable enough."""
    answer, probability = best[0]
    if several:
        labels = tuple(label for label, share in best if share >= min_probability)
        return Prediction(name, SEPARATOR.join(labels) or None, probability, best, None, labels)
    return Prediction(name, answer if probability >= min_probability else None, probability, best, None)
