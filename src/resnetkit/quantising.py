"""int8, gated: a network in 8 bits is written only where it is right about as often as in fp32.

The ranges of int8 come from pictures of the training side, the verdict from those of the validation side, each seen by
both networks in the engine that the file is for. Every layer is quantised first. Only where that costs too much, layers
stay in fp32: those that add most to the error of the logits, measured on training pictures that did not set ranges.
Each such try asks the validation pictures anew, so the number of tries stands beside the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.loader import Batch, Reader, default_threads, evaluation_batches, order
from resnetkit.data.pictures import Data, Indices, count, name_bad
from resnetkit.engines import qdq
from resnetkit.engines.engine import need
from resnetkit.engines.files import Input, Source, peek
from resnetkit.engines.preparing import apart, onnx_bytes
from resnetkit.engines.starting import RUNS, start
from resnetkit.engines.writing import WRITERS, write
from resnetkit.errors import UserError
from resnetkit.paired import paired
from resnetkit.weights import ModelFile

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}  # what int8 is written for
CALIBRATION = 512  # training pictures that set the ranges
SOUNDING = 256  # others of them, on which the error of each layer is measured
BATCH = 32
# In a batch that is calibrated on: all responses of all layers are in memory together, 0.2 GB a picture of 224 x 224 in
# ResNet-50, whatever the number of batches.
PIXELS = 4 * 224 * 224
SEED = 0
MOST_LEFT = 4  # a quarter of the layers
NAMED = 8  # layers in a sentence before the rest is a count
Say = Callable[[str], None]


@dataclass(frozen=True)
class Gate:
    """What int8 costs, on `n` pictures that set no range and that both networks saw. Points are percentage points.

    drop           points of top-1; `drop_interval` is its 95 % interval (Newcombe's, of paired shares)
    lost, won      pictures that only fp32 gets right, and that only int8 does
    p              of McNemar's exact test
    calibrated_on  how many training pictures set the ranges
    left_in_fp32   layers, the most sensitive one first, each with its share of the logits' squared error: what that
                   loses when this layer alone is left out of int8. Below 0: it grows
    error_taken    the share that leaving all of them out takes away; 0 where none is left out
    tries          networks in int8 that these pictures judged, this one included. After several of them the last is a
                   selection, and its drop looks a little smaller than it is
    """

    data: str
    split: str
    engine: str
    n: int
    fp32_correct: int
    int8_correct: int
    drop: float
    drop_interval: tuple[float, float]
    lost: int
    won: int
    p: float
    calibrated_on: int
    layers: int
    left_in_fp32: tuple[tuple[str, float], ...]
    error_taken: float
    tries: int
    max_drop: float

    @property
    def passed(self) -> bool:
        return 100 * (self.fp32_correct - self.int8_correct) <= self.max_drop * self.n + 1e-9

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with what was done to the numbers."""
        return {
            **asdict(self),
            "drop_interval": list(self.drop_interval),
            "left_in_fp32": [{"layer": layer, "share": share} for layer, share in self.left_in_fp32],
            "weight_bits": qdq.WEIGHT_BITS,
            "activation_bits": qdq.ACTIVATION_BITS,
            "calibration": qdq.METHOD,
        }

    @property
    def numbers(self) -> str:
        """The comparison, in words."""
        sign, what = (1, "drop") if self.drop >= 0 else (-1, "gain")
        low, high = sorted(sign * end for end in self.drop_interval)
        changes = f"{self.lost:,} right no longer, {self.won:,} right only now"
        return (
            f"{self.int8_correct:,} of {self.n:,} right, {self.fp32_correct:,} in fp32 ({changes}): a {what} of "
            f"{abs(self.drop):.2f} points (95 % interval {low:.2f} to {high:.2f})"
        )

    @property
    def how(self) -> str:
        """Which layers are in int8, in words."""
        if not self.left_in_fp32:
            return f"all {self.layers} layers"
        shown = ", ".join(f"{name} ({100 * share:.0f} %)" for name, share in self.left_in_fp32[:NAMED])
        more = f" and {len(self.left_in_fp32) - NAMED} more" if len(self.left_in_fp32) > NAMED else ""
        return (
            f"{self.layers - len(self.left_in_fp32)} of {self.layers} layers, in fp32 the most sensitive: "
            f"{shown}{more}, {100 * self.error_taken:.0f} % of the logits' error together"
        )

    def __str__(self) -> str:
        tries = (
            "" if self.tries == 1 else f"; found in {self.tries} tries on these pictures, which flatters it a little"
        )
        return (
            f"{self.engine} in int8 ({self.how}), on {self.data}, {self.split}: {self.numbers}{tries}. Ranges are from "
            f"{count(self.calibrated_on, 'training picture', 'training pictures')}, weights have 7 bits."
        )


def check_int8(to: str, max_drop: float) -> None:
    """Raise UserError, before any work, for what cannot be."""
    if to not in SUFFIXES:
        reason = "MNN ends the whole process at a quantised graph" if to == "mnn" else f"{to} is written in fp32 only"
        raise UserError(f"int8: {reason}; take --to {' or '.join(SUFFIXES)}")
    if isinstance(max_drop, bool) or not isinstance(max_drop, int | float) or not 0 <= max_drop < math.inf:
        raise UserError(f"max_drop={max_drop!r}: must be a number of percentage points, 0 or more")
    need("onnx")  # ONNX Runtime quantises for both


def judging_split(data: Data) -> str:
    """The split that the gate asks. Raises UserError where the data have no two sides."""
    name = next((name for name in ("val", "test") if len(data.splits.get(name, ()))), None)
    if name is None or len(data.splits.get("train", ())) < 2:
        raise UserError(
            f"{data.spec}: int8 takes its ranges from pictures of train (two or more), is judged on those of val "
            f"or test, and finds {', '.join(data.splits) or 'none of them'}; give pictures with both sides, or the "
            "run folder together with the pictures that it divided"
        )
    return name


def chosen(data: Data) -> tuple[Indices, Indices]:
    """Training pictures that set ranges, and others that measure errors: every class as often as can be, seeded."""
    train = np.asarray(data.splits["train"], dtype=np.int64)
    train = train[order(SEED, 0, len(train))]
    turns: dict[int, int] = {}
    turn = []
    for label in data.labels[train].tolist():
        turns[label] = turns.get(label, -1) + 1
        turn.append(turns[label])
    train = train[np.argsort(turn, kind="stable")]
    few = max(1, min(SOUNDING, len(train) // 3))
    rest = train[few:]
    # Sorted: neighbours in a file are read faster together, and no order means anything here.
    return np.sort(rest[:CALIBRATION]), np.sort(train[:few])


def quantised(
    model: ModelFile, data: Data, *, to: str, made: Path, input: Input, max_drop: float, say: Say | None = None
) -> tuple[list[Path], Gate]:
    """Write a model in int8 as the file `made`, and what belongs beside it; the one with the metadata comes last.

    data   with a training and a validation side, of the model's classes
    to     "onnx" or "openvino"
    say    is told what is being done
    Raises UserError with the numbers, and writes nothing, where top-1 drops by more than `max_drop` points.
    """
    check_int8(to, max_drop)
    with apart(made.parent) as working:
        trials = Trials(model, data, to, input, working, say or (lambda _: None))
        gates: list[Gate] = []
        for left in trials.choices():
            gates.append(trials.judge(left, max_drop, len(gates) + 1))
            if gates[-1].passed:
                export = {"input": input, "precision": "int8", "int8": gates[-1].to_dict()}
                return WRITERS[to](model, made, trials.candidate, export), gates[-1]
    raise UserError(refusal(gates))


def refusal(gates: list[Gate]) -> str:
    """Why nothing was written."""
    first, best = gates[0], min(gates[::-1], key=lambda gate: gate.drop)
    also = "" if best is first else f"; at best, of {len(gates)} tries, {best.how}: {best.numbers}"
    return (
        f"int8 on {first.data}, {first.split}, costs more than {first.max_drop:g} points of top-1, and nothing was "
        f"written: {first.how}: {first.numbers}{also}; calibrate on pictures such as the model is for, or allow more "
        "(--max-drop)"
    )


class Trials:
    """Networks in int8, one after the other, against the one in fp32."""

    def __init__(self, model: ModelFile, data: Data, to: str, input: Input, working: Path, say: Say) -> None:
        self.model, self.to, self.input, self.working, self.say = model, to, input, working, say
        self.split = judging_split(data)
        self.data = data.relabelled(model.classes)
        self.reader = Reader(self.data, model.preprocess, threads=default_threads())
        self.calibrating, self.sounding = chosen(self.data)
        self.engine = RUNS[SUFFIXES[to]][0]
        self.graph, self.candidate = working / "fp32.onnx", working / "int8.onnx"
        self.graph.write_bytes(onnx_bytes(model, input))
        self.layers = qdq.layers(self.graph)
        say(f"calibrating on {count(len(self.calibrating), 'training picture', 'training pictures')}")
        batch = max(1, min(BATCH, PIXELS // model.preprocess.size**2))
        self.ranges = qdq.ranges(self.graph, map(self.given, self.batches(self.calibrating, batch)), working)
        self.shares: dict[str, float] = {}

    def choices(self) -> Iterator[tuple[str, ...]]:
        """The layers to leave in fp32: none, then 1, 2, 4 … of the most sensitive, at most a quarter of all."""
        yield ()
        most = len(self.layers) // MOST_LEFT
        if most:
            self.shares = self.sensitivity()
        for power in range(most.bit_length()):
            yield tuple(self.shares)[: 1 << power]

    def judge(self, left: tuple[str, ...], max_drop: float, tries: int) -> Gate:
        """Write the network in int8 but for some layers, and compare it with fp32, picture by picture."""
        self.quantise(left, self.candidate)
        export = {"input": self.input, "precision": "int8"}
        written = WRITERS[self.to](self.model, self.place(f"try{tries}"), self.candidate, export)
        without = f" but {count(len(left), 'layer', 'layers')}" if left else ""
        found = paired(self.right_in_fp32, self.right(written, f"int8{without}"))
        low, high = found.interval
        return Gate(
            data=self.data.spec,
            split=self.split,
            engine=self.engine,
            n=found.n,
            fp32_correct=found.both + found.only_a,
            int8_correct=found.both + found.only_b,
            drop=-100 * found.difference,
            drop_interval=(-100 * high, -100 * low),
            lost=found.only_a,
            won=found.only_b,
            p=found.p,
            calibrated_on=len(self.calibrating),
            layers=len(self.layers),
            left_in_fp32=tuple((name, self.shares[name]) for name in left),
            error_taken=self.taken(left) if left else 0.0,
            tries=tries,
            max_drop=float(max_drop),
        )

    @cached_property
    def right_in_fp32(self) -> NDArray[np.bool_]:
        return self.right(write(self.model, self.to, self.place("fp32"), self.input), "fp32")

    def place(self, name: str) -> Path:
        """A file to make. Each in a folder of its own: an engine may have mapped the last one into memory."""
        folder = self.working / name
        folder.mkdir()
        return folder / f"model{SUFFIXES[self.to]}"

    def right(self, written: list[Path], what: str) -> NDArray[np.bool_]:
        """Which pictures of the validation side a file gets right, in its own engine."""
        indices = self.data.select(self.split)
        self.say(f"scoring {what}, on {count(len(indices), 'picture', 'pictures')} of {self.split}")
        engine = start(self.engine, peek(written[-1]), default_threads())
        parts = [engine(batch.pictures).argmax(1) == batch.labels for batch in self.batches(indices)]
        return np.concatenate(parts)

    def batches(self, indices: Indices, size: int = BATCH) -> Iterator[Batch]:
        """The pictures, a batch at a time. Raises UserError for those that cannot be read: both sides see all."""
        for batch in evaluation_batches(self.reader, indices, batch=size):
            if batch.bad:
                raise UserError(name_bad(self.data, batch.bad, "give other pictures"))
            yield batch

    def given(self, batch: Batch) -> NDArray[Any]:
        """What the graph takes."""
        return batch.pictures if self.input == "uint8" else self.model.preprocess.normalise_array(batch.pictures)

    def quantise(self, left: Iterable[str], file: Path) -> None:
        """Write the graph with every layer in int8 but for some."""
        nodes = [node for name in left for node in self.layers[name]]
        file.write_bytes(qdq.quantised(self.graph, self.ranges, nodes))

    def sensitivity(self) -> dict[str, float]:
        """Each layer's share of the logits' squared error, the largest first: what leaving it alone in fp32 takes away.

        So it is the gain that is measured, not what a layer does by itself in a network of floats: that counts the
        rounding of its input and output too, which stay in int8 for its neighbours whatever becomes of the layer.
        """
        self.say(f"measuring what each of {len(self.layers)} layers adds to the error")
        shares = {name: self.taken((name,)) for name in self.layers}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def taken(self, left: tuple[str, ...]) -> float:
        """The share of the logits' squared error that leaving layers in fp32 takes away."""
        return (self.full_error - self.error(left)) / self.full_error if self.full_error else 0.0

    @cached_property
    def full_error(self) -> float:
        return self.error(())

    def error(self, left: tuple[str, ...]) -> float:
        """The mean squared error of the logits with all layers in int8 but for some, on the pictures kept for that."""
        file = self.working / "sounding.onnx"
        self.quantise(left, file)
        return float(((self.logits(file) - self.sounded) ** 2).mean())

    @cached_property
    def sounded(self) -> NDArray[np.float64]:
        return self.logits(self.graph)

    def logits(self, graph: Path) -> NDArray[np.float64]:
        """In ONNX Runtime, whatever the file is for: it loads a graph soonest, and int8 means the same in both."""
        engine = start("onnx", Source(graph, self.model.about, self.input, "int8", ""), default_threads())
        return np.concatenate([engine(batch.pictures) for batch in self.batches(self.sounding)]).astype(np.float64)
