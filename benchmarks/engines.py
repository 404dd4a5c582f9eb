"""Engines on the CPU, side by side: what resnetkit takes against the same engines and torch as people call them.

    python benchmarks/engines.py [--networks resnet18,resnet34,resnet50,resnet152] [--out results/engines.json]

Random weights, 224x224, all cores. For each network and batch size every lane takes a turn in every round, in rotating
order, each in a process of its own; a turn is some runs, of which the median counts, or a single long one. The ratios
are made within a round; the figure is their median, with the lowest and the highest.

auto         what `resnet predict` would run: the winner of its own short race, made before anything here is timed
int8         the same in int8: 7-bit weights, every layer, the faster of ONNX Runtime and OpenVINO by the same race
the others   `peers.py`; they get their input normalised, which is timed apart; auto and int8 get uint8 pictures

The limit of a network is the time that its multiply-adds would take in a matrix product, measured in every round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common import sgemm_gflops, spread, write
from resnetkit.complexity import count
from resnetkit.data.loader import default_threads
from resnetkit.data.transforms import Preprocess
from resnetkit.engines import files, qdq
from resnetkit.engines.opening import choose
from resnetkit.engines.preparing import onnx_bytes, place_of, prepared
from resnetkit.engines.samples import sample_pictures
from resnetkit.engines.worker import Worker
from resnetkit.engines.writing import write_onnx
from resnetkit.exporting import export
from resnetkit.model import ResNet, architecture
from resnetkit.weights import ModelFile, open_model, save_model

NETWORKS = ("resnet18", "resnet34", "resnet50", "resnet152")
BATCHES = (1, 16)
ROUNDS = 5
TURN = 0.4  # seconds, of one run at least
REST = 0.05  # between turns: threads of the last one may spin a while longer
PEERS = (sys.executable, str(Path(__file__).with_name("peers.py")))
PREPROCESS = Preprocess(
    224, "shorter", 256, "bilinear", 3, "RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), exif=False
)


def model_file(name: str, folder: Path, **choices: int) -> Path:
    """Random weights, with batch statistics of noise, so that the numbers stay sane through 152 layers."""
    torch.manual_seed(0)
    network = ResNet(architecture(name, **choices))
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(4, 3, 224, 224))
    path = folder / f"{'-'.join([name, *choices])}.safetensors"
    save_model(ModelFile(network.eval(), tuple(map(str, range(1000))), PREPROCESS), path)
    return path


class Lanes:
    """The workers of one network. `ours` says which of them answers for "auto" and "int8" at each batch size."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.name, self.folder, self.threads = name, folder, threads
        self.workers: dict[str, Worker] = {}
        self.ours: dict[tuple[str, int], str] = {}
        self.notes: dict[str, str] = {}
        path = model_file(name, folder)
        quantised = int8_file(path)
        self.race("auto", path)
        self.race("int8", quantised)
        plain = folder / f"{name}.onnx"
        export(path, "onnx", plain, input="float")
        export(path, "mnn", plain.with_suffix(".mnn"), input="float")
        files_of = {"ONNX Runtime": plain, "OpenVINO": plain, "MNN": plain.with_suffix(".mnn")}
        for peer in ("timm eager", "torch channels_last", "torch.compile", *files_of):
            self.workers[peer] = Worker(threads, PEERS)
            self.workers[peer].ask({"start": peer, "path": str(files_of.get(peer, name)), "threads": threads})

    def race(self, lane: str, path: Path) -> None:
        """Choose as `resnet predict` does, and start what was chosen."""
        source = files.read(path)
        with place_of(source) as (place, _):
            for batch in BATCHES:
                engine, why = choose(source, batch, self.threads, place, True, None)
                self.ours[lane, batch], self.notes[f"{lane} {batch}"] = f"{lane} {engine}", why
                if f"{lane} {engine}" not in self.workers:
                    worker = self.workers[f"{lane} {engine}"] = Worker(self.threads)
                    worker.load(engine, path, prepared(source, engine, place), self.threads, 120)

    def turn(self, lane: str, batch: int, times: int) -> tuple[float, float]:
        """Median seconds of some runs, and of normalising; before short ones, one that does not count wakes the
        threads."""
        worker = self.workers[self.ours.get((lane, batch), lane)]
        answer = worker.ask({"run": batch, "times": times + (times > 1)})
        apart = answer.get("normalising", [0.0])
        return statistics.median(answer["seconds"][-times:]), statistics.median(apart[-times:])

    def rounds(self, batch: int) -> list[dict[str, float]]:
        """Seconds of a batch of each lane, of normalising one, and GFLOP/s of a matrix product, round by round."""
        names = ["auto", "int8", *(peer for peer in self.workers if not peer.startswith(("auto ", "int8 ")))]
        times = {name: max(1, int(TURN / self.turn(name, batch, 2)[0])) for name in names}
        rows = []
        for number in range(ROUNDS):
            row, normalising = {"sgemm": sgemm_gflops()}, []
            for name in names[number % len(names) :] + names[: number % len(names)]:
                row[name], apart = self.turn(name, batch, times[name])
                normalising += [apart] if apart else []
                time.sleep(REST)
            rows.append(row | {"normalising": statistics.median(normalising)})
        return rows

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def int8_file(path: Path) -> Path:
    """The model in int8, every layer, calibrated on made-up pictures: enough for its speed."""
    model, graph, made = open_model(path), path.with_suffix(".graph"), path.with_name(f"{path.stem}-int8.onnx")
    graph.write_bytes(onnx_bytes(model))
    found = qdq.ranges(graph, [sample_pictures(8, 224, 3)], path.parent)
    candidate = path.with_suffix(".qdq")
    candidate.write_bytes(qdq.quantised(graph, found))
    write_onnx(model, made, candidate, {"input": "uint8", "precision": "int8"})
    return made


def summary(name: str, batch: int, lanes: Lanes, rows: list[dict[str, float]]) -> dict[str, Any]:
    """The figures of one network and batch size."""
    peers = [lane for lane in rows[0] if lane not in ("auto", "int8", "sgemm", "normalising")]
    plain = min(peers, key=lambda peer: statistics.median(row[peer] for row in rows))
    operations = 2 * count(architecture(name), 224).multiply_adds * batch
    return {
        "network": name,
        "batch": batch,
        "auto": lanes.ours["auto", batch].removeprefix("auto "),
        "int8": lanes.ours["int8", batch].removeprefix("int8 "),
        "why": {lane: lanes.notes[f"{lane} {batch}"] for lane in ("auto", "int8")},
        "best_plain": plain,
        "images_per_second": {
            lane: batch / statistics.median(row[lane] for row in rows) for lane in ("auto", "int8", *peers)
        },
        "auto_to": {peer: spread([row[peer] / row["auto"] for row in rows]) for peer in peers},
        "auto_to_best_from_uint8": spread([(row[plain] + row["normalising"]) / row["auto"] for row in rows]),
        "int8_to": {peer: spread([row[peer] / row["int8"] for row in rows]) for peer in ("auto", "timm eager")},
        "share_of_sgemm": {
            lane: statistics.median(operations / row[lane] / row["sgemm"] / 1e9 for row in rows)
            for lane in ("auto", "int8")
        },
        "rounds": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--out", type=Path, default=Path("results/engines.json"))
    args = parser.parse_args()
    found = []
    for name in args.networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder  # so that auto chooses anew
            lanes = Lanes(name, Path(folder), default_threads())
            try:
                found += [summary(name, batch, lanes, lanes.rounds(batch)) for batch in BATCHES]
            finally:
                lanes.close()
        print(json.dumps({key: value for key, value in found[-1].items() if key != "rounds"}), file=sys.stderr)
    what = "seconds of a batch in the engine that auto takes, in int8, and in engines as people call them"
    write(args.out, {"what": what, "threads": default_threads(), "engines": versions(), "results": found})


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("onnxruntime", "openvino", "MNN", "timm")}


if __name__ == "__main__":
    main()
