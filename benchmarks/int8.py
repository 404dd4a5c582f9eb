"""What int8 costs and gains: accuracy through the gate of `resnet export --int8`, speed against fp32.

    python benchmarks/int8.py accuracy NAME=MODEL=DATA … [--out results/int8.json]
    python benchmarks/int8.py methods NAME=MODEL=DATA … [--out results/int8.json]
    python benchmarks/int8.py speed [--networks resnet18,…] [--rounds 7] [--out results/int8.json]

accuracy  each model is exported in int8 with a gate that lets everything through, for ONNX Runtime and OpenVINO:
          calibrated on training pictures of DATA, scored on its val or test, paired with fp32 in the same engine
methods   how ranges are found: minimum and maximum, percentiles, entropy; in ONNX Runtime, on the same pictures
speed     random weights, engines in processes of their own, in turns; ratios are fp32 / int8 of the same round. `best`
          compares the engine that is faster in fp32 with the one that is faster in int8

Each part replaces its own table in the file and leaves the others, so they can be run on different days; each carries
the machine it was measured on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import resnetkit
from common import machine, revision, versions
from resnetkit.data.loader import Reader, default_threads, evaluation_batches
from resnetkit.engines import qdq
from resnetkit.engines.engine import Pixels, version
from resnetkit.engines.files import Source
from resnetkit.engines.preparing import onnx_bytes
from resnetkit.engines.samples import sample_pictures
from resnetkit.engines.starting import start
from resnetkit.engines.worker import Worker
from resnetkit.engines.writing import WRITERS, write
from resnetkit.evaluation import as_trained
from resnetkit.exporting import export_for_engine
from resnetkit.paired import paired
from resnetkit.quantising import chosen, judging_split
from resnetkit.weights import ModelFile, open_model

NETWORKS = "resnet18,resnet34,resnet50,resnet152"
SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
BATCHES = (1, 16)
TURN = 1.0  # seconds of a turn, of one run at least
REST = 0.05
IMAGENET = resnetkit.Preprocess(
    224, "shorter", 256, "bilinear", 3, "RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), exif=False
)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "minimum and maximum": ("MinMax", {}),
    "percentile 99.999": ("Percentile", {"percentile": 99.999, "num_bins": 2048}),
    "percentile 99.99": ("Percentile", {"percentile": 99.99, "num_bins": 2048}),
    "entropy": ("Entropy", {}),
}


def accuracy(models: list[str], folder: Path) -> dict[str, Any]:
    """The gate's numbers of each model, by name and engine."""
    found: dict[str, Any] = {}
    for name, model, data in (text.split("=", 2) for text in models):
        found[name] = {}
        for engine in (engine for engine in SUFFIX if version(engine)):
            out, begin = folder / f"{name}{SUFFIX[engine]}", time.perf_counter()
            done = export_for_engine(model, engine, out, int8=data, max_drop=100.0, say=print)
            numbers = done.to_dict()["proof"]
            where = {"data": Path(data).name, "seconds": round(time.perf_counter() - begin, 1)}
            found[name][engine] = {**numbers, **where, "max_drop": None}
            print(done.proof)
    return found


def methods(models: list[str], folder: Path) -> dict[str, Any]:
    """Correct answers by the way in which ranges are found, of each model."""
    found: dict[str, Any] = {}
    for name, path, spec in (text.split("=", 2) for text in models):
        model = open_model(path)
        data = as_trained(path, spec).relabelled(model.classes)
        reader = Reader(data, model.preprocess, threads=default_threads())
        (calibrating, _), judged = chosen(data), data.select(judging_split(data))
        given = [batch.pictures for batch in evaluation_batches(reader, calibrating, batch=32)]
        asked = [batch.pictures for batch in evaluation_batches(reader, judged, batch=32)]
        graph, candidate = folder / f"{name}-fp32.onnx", folder / f"{name}-int8.onnx"
        graph.write_bytes(onnx_bytes(model))
        right = answers(model, graph, asked) == data.labels[judged]
        found[name] = {"n": len(judged), "calibrated_on": len(calibrating), "fp32_correct": int(right.sum())}
        for method, (kind, options) in METHODS.items():
            begin = time.perf_counter()
            ranges = ranges_by(graph, given, folder, kind, options)
            seconds = time.perf_counter() - begin
            candidate.write_bytes(qdq.quantised(graph, ranges))
            pair = paired(right, answers(model, candidate, asked) == data.labels[judged])
            found[name][method] = {
                "int8_correct": pair.both + pair.only_b,
                "lost": pair.only_a,
                "won": pair.only_b,
                "drop": -100 * pair.difference,
                "drop_interval": [-100 * end for end in reversed(pair.interval)],
                "seconds_calibrating": round(seconds, 1),
            }
            print(name, method, found[name][method], flush=True)
    return found


def answers(model: ModelFile, graph: Path, asked: list[Pixels]) -> Any:
    engine = start("onnx", Source(graph, model.about, "uint8", "int8", ""), default_threads())
    return np.concatenate([engine(pictures).argmax(1) for pictures in asked])


def ranges_by(graph: Path, given: list[Pixels], folder: Path, kind: str, options: dict[str, Any]) -> Any:
    """What `qdq.ranges` finds, by another method of ONNX Runtime."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    calibrator = create_calibrator(
        graph,
        [*qdq.LAYERS, *qdq.ALONG],
        augmented_model_path=str(folder / "calibrating.onnx"),
        calibrate_method=CalibrationMethod[kind],
        extra_options=options,
    )
    for pictures in given:
        calibrator.collect_data(qdq.Once({"pictures": pictures}))
    return calibrator.compute_data()


def speed(networks: list[str], rounds: int, folder: Path) -> dict[str, Any]:
    """Ratios of each network, by batch size."""
    return {"rounds": rounds, "turn_seconds": TURN, **{name: speed_of(name, rounds, folder) for name in networks}}


def speed_of(name: str, rounds: int, folder: Path) -> dict[str, Any]:
    files, threads = written(name, folder), default_threads()
    workers = {key: Worker(threads) for key in files}
    found: dict[str, Any] = {}
    try:
        for key, worker in workers.items():
            worker.load(key.partition(" ")[0], files[key], None, threads, 600)
        for batch in BATCHES:
            seconds: dict[str, list[float]] = {key: [] for key in workers}
            times = dict.fromkeys(workers, 1)
            for number in range(-1, rounds):  # the first round warms up and says how many runs fit into a turn
                keys = list(workers)
                for key in [*keys[number % len(keys) :], *keys[: number % len(keys)]]:
                    time.sleep(REST)
                    turn = median(workers[key].ask({"run": batch, "times": times[key]})["seconds"])
                    times[key] = max(1, min(50, round(TURN / turn)))
                    if number >= 0:
                        seconds[key].append(turn)
            found[f"batch {batch}"] = ratios(seconds)
            print(name, batch, json.dumps(found[f"batch {batch}"]), flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return found


def ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians in milliseconds, and fp32 / int8 round by round."""
    middle = {key: median(values) for key, values in seconds.items()}
    engines = [key.partition(" ")[0] for key in seconds if key.endswith("fp32")]
    pairs = {engine: (f"{engine} fp32", f"{engine} int8") for engine in engines}
    pairs["best"] = tuple(  # type: ignore[assignment]
        min((key for key in seconds if key.endswith(kind)), key=middle.__getitem__) for kind in ("fp32", "int8")
    )
    found: dict[str, Any] = {"milliseconds": {key: round(1000 * value, 2) for key, value in middle.items()}}
    for label, (fp32, int8) in pairs.items():
        each = [a / b for a, b in zip(seconds[fp32], seconds[int8], strict=True)]
        found[label] = {"of": [fp32, int8], "ratio": median(each), "lowest": min(each), "highest": max(each)}
    return found


def written(name: str, folder: Path) -> dict[str, Path]:
    """Files of a network with random weights: "engine precision" to path."""
    torch.manual_seed(0)
    network = resnetkit.ResNet(resnetkit.architecture(name)).eval()
    model = ModelFile(network, tuple(map(str, range(network.arch.classes))), IMAGENET)
    graph, candidate = folder / "fp32.onnx", folder / "int8.onnx"
    graph.write_bytes(onnx_bytes(model))
    candidate.write_bytes(qdq.quantised(graph, qdq.ranges(graph, [sample_pictures(8, 224, 3)], folder)))
    files: dict[str, Path] = {}
    for engine in (engine for engine in SUFFIX if version(engine)):
        for precision in ("fp32", "int8"):
            place = folder / name / engine / precision
            place.mkdir(parents=True)
            made = place / f"model{SUFFIX[engine]}"
            if precision == "fp32":
                write(model, engine, made, "uint8")
            else:
                WRITERS[engine](model, made, candidate, {"input": "uint8", "precision": "int8"})
            files[f"{engine} {precision}"] = made
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["accuracy", "methods", "speed"])
    parser.add_argument("models", nargs="*", metavar="NAME=MODEL=DATA")
    parser.add_argument("--networks", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("results/int8.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.part == "speed":
            found = speed(args.networks.split(","), args.rounds, Path(folder))
        else:
            found = (accuracy if args.part == "accuracy" else methods)(args.models, Path(folder))
    engines = {engine: version(engine) for engine in SUFFIX}
    about = {"revision": revision(), "machine": machine(), "versions": versions() | engines}
    whole = json.loads(args.out.read_text()) if args.out.exists() else {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**whole, args.part: {**found, **about}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
