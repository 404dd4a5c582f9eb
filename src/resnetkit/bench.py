"""Every engine at hand on one model, in one run: how fast, how large, and how near to what the machine can do."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from resnetkit.about import model_path
from resnetkit.complexity import Complexity, count
from resnetkit.data.loader import default_threads
from resnetkit.data.transforms import Preprocess
from resnetkit.engines.engine import need, version
from resnetkit.engines.files import Source, read
from resnetkit.engines.opening import reason
from resnetkit.engines.preparing import prepared
from resnetkit.engines.race import Entry, Lane, fastest, race
from resnetkit.engines.samples import sample_pictures
from resnetkit.engines.starting import engines_for
from resnetkit.engines.worker import Worker
from resnetkit.errors import UserError
from resnetkit.model import NAME, ResNet
from resnetkit.resolve import IMAGENET_MEAN, IMAGENET_STD
from resnetkit.weights import ModelFile, named_architecture, read_architecture, save_model

BATCHES = (1, 8, 32)
SECONDS = 10.0  # for each batch size and number of threads
SEED = 0
BYTES = {"fp32": 4, "int8": 1}  # of a weight
Say = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """What the machine did at most, before and after the engines ran: GFLOP/s of a matrix product, GB/s of copying,
    bytes read and bytes written."""

    sgemm: float
    copy: float


@dataclass(frozen=True)
class Timed:
    """The engines with one number of threads. `chosen`: for each batch size the fastest one, and why."""

    threads: int
    limits: Limits
    lanes: tuple[Lane, ...]
    chosen: dict[int, tuple[str, str]]


@dataclass(frozen=True)
class Bench:
    """All that `bench` found.

    missing    engines that are not installed, with what to do about it
    unable     engines that cannot have this network, with the reason
    preparing  seconds that the others took to make their own file of it, which happens once on a machine
    """

    model: str
    precision: str
    complexity: Complexity
    batches: tuple[int, ...]
    timed: tuple[Timed, ...]
    missing: dict[str, str]
    unable: dict[str, str]
    preparing: dict[str, float]

    @property
    def weights(self) -> int:
        """Bytes of the parameters."""
        return self.complexity.parameters * BYTES[self.precision]

    def share(self, timed: Timed, rate: float) -> float:
        """Of the matrix product's speed, at so many pictures a second. A multiply-add is two operations."""
        return 2 * self.complexity.multiply_adds * rate / (1e9 * timed.limits.sgemm)

    def streaming(self, timed: Timed) -> float:
        """Seconds to read the weights once, at the speed at which copies read and write."""
        return self.weights / (1e9 * timed.limits.copy)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in JSON."""
        return {
            "model": self.model,
            "architecture": self.complexity.architecture.name,
            "precision": self.precision,
            "input": list(self.complexity.input),
            "multiply_adds": self.complexity.multiply_adds,
            "weights": self.weights,
            "machine": machine(),
            "versions": versions(),
            "batches": list(self.batches),
            "missing": self.missing,
            "unable": self.unable,
            "preparing": self.preparing,
            "timed": [self.timed_dict(timed) for timed in self.timed],
        }

    def timed_dict(self, timed: Timed) -> dict[str, Any]:
        return {
            "threads": timed.threads,
            "limits": asdict(timed.limits),
            "streaming": self.streaming(timed),
            "lanes": [lane.to_dict() | {"figures": self.figures(timed, lane)} for lane in timed.lanes],
            "chosen": {batch: {"engine": name, "why": why} for batch, (name, why) in timed.chosen.items()},
        }

    def figures(self, timed: Timed, lane: Lane) -> dict[int, dict[str, float | None]]:
        """Of each batch size: pictures a second, seconds at the median and the slow end, share of the limit."""
        return {
            batch: {
                "rate": lane.rate(batch),
                "p50": batch / lane.rate(batch),
                "p99": lane.slowest(batch),
                "runs": len(lane.seconds[batch]),
                "share": self.share(timed, lane.rate(batch)),
                "peak": lane.peaks[batch],
            }
            for batch in sorted(lane.seconds)
            if lane.seconds[batch]
        }


def bench(
    model: str | Path = "resnet50",
    *,
    batches: Sequence[int] = BATCHES,
    threads: Sequence[int] = (),
    seconds: float = SECONDS,
    say: Say | None = None,
) -> Bench:
    """Time every engine at hand. Raises UserError: no such model, or none of them runs it.

    model    a run folder, model file or exported file; or the name of an architecture, which gets random weights
    threads  by default as many as there are cores
    seconds  for each batch size and number of threads; at least two rounds are made
    say      is told in a few words what is being done
    """
    batches, say = tuple(sorted(set(batches))), say or (lambda _: None)
    threads = tuple(sorted(set(threads))) or (default_threads(),)
    with tempfile.TemporaryDirectory(prefix="resnetkit-bench-") as folder:
        source = source_of(model, Path(folder))
        missing = {name: missing_line(name) for name in engines_for(source) if version(name) is None}
        entries, unable, preparing = at_hand(source, Path(folder), say)
        timed = tuple(timed_with(entries, batches, number, seconds, say) for number in threads)
    counted = count(read_architecture(source.about.architecture), source.about.preprocess.size)
    return Bench(str(model), source.precision, counted, batches, timed, missing, unable, preparing)


def missing_line(name: str) -> str:
    """What an engine that is not installed says of that."""
    try:
        need(name)
    except UserError as error:
        return str(error)
    raise AssertionError(name)


def at_hand(source: Source, folder: Path, say: Say) -> tuple[list[Entry], dict[str, str], dict[str, float]]:
    """The engines that race, those that cannot have the network and why, and the seconds that preparing it took."""
    entries, unable, preparing = [], {}, {}
    for name in engines_for(source):
        if version(name) is None:
            continue
        say(f"preparing {name}")
        begin = time.perf_counter()
        try:
            entry = Entry(name, source.path, prepared(source, name, folder))
        except UserError as error:
            unable[name] = str(error)
            continue
        entries.append(entry)
        if entry.ready is not None:
            preparing[name] = time.perf_counter() - begin
    if not entries:
        raise UserError("; ".join([f"{source.path}: no engine for it here", *unable.values()]))
    return entries, unable, preparing


def timed_with(entries: list[Entry], batches: tuple[int, ...], threads: int, seconds: float, say: Say) -> Timed:
    """The race with one number of threads, between two measurements of the limits."""
    before = limits(threads, say)
    lanes = race(entries, batches, threads=threads, seconds=seconds, say=say)
    after = limits(threads, say)
    best = Limits(max(before.sgemm, after.sgemm), max(before.copy, after.copy))
    return Timed(threads, best, tuple(lanes), chosen(lanes, batches))


def chosen(lanes: list[Lane], batches: tuple[int, ...]) -> dict[int, tuple[str, str]]:
    """The fastest engine for each batch size that any has mastered, and why. Raises UserError when there is none."""
    able = [batch for batch in batches if any(lane.error is None and lane.seconds.get(batch) for lane in lanes)]
    return {batch: (fastest(lanes, batch), reason(lanes, batch)) for batch in able or batches}


def limits(threads: int, say: Say) -> Limits:
    """Just now, in a process of its own: numpy decides on its threads when it is imported."""
    say("measuring what the machine can do")
    with Worker(threads) as worker:
        return Limits(**worker.ask({"limits": threads}))


def source_of(model: str | Path, folder: Path) -> Source:
    """The model's file; for the name of an architecture one in `folder` with random weights."""
    path = Path(model)
    if NAME.fullmatch(str(model)) or not (path.exists() or os.sep in str(model) or "." in str(model)):
        path = folder / "random.safetensors"
        save_model(random_model(str(model)), path)
    return read(model_path(path))


def random_model(name: str) -> ModelFile:
    """An architecture with random weights, the same ones every time, and ImageNet's or CIFAR's size and classes.

    Its normalisations hold the statistics of sample pictures, or the numbers would grow from block to block until
    they are none any more.
    """
    cifar = name.endswith("-cifar")
    size, resize_to, classes = (32, 32, 10) if cifar else (224, 256, 1000)
    arch = named_architecture(name, classes=classes)
    preprocess = Preprocess(size, "shorter", resize_to, "bilinear", 3, "RGB", IMAGENET_MEAN, IMAGENET_STD, exif=False)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        network = ResNet(arch).train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over all batches, of which there is one
        network(preprocess.normalise(torch.from_numpy(sample_pictures(8, size, 3))))
    names = tuple(f"class {index}" for index in range(classes))
    return ModelFile(network.eval(), names, preprocess, provenance={"weights": f"random, seed {SEED}"})


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, system."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return {
        "cpu": names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Of what measured; those of the engines stand in their lanes."""
    return {"resnetkit": metadata.version("resnetkit"), "python": platform.python_version(), "numpy": np.__version__}
