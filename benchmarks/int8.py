"""What int8 costs: accuracy through the gate of `resnet export --int8`. What it gains is in engines.py.

    python benchmarks/int8.py accuracy NAME=MODEL=DATA … [--out results/int8.json]
    python benchmarks/int8.py methods NAME=MODEL=DATA … [--out results/int8.json]

accuracy  each model is exported in int8 with a gate that lets everything through, for ONNX Runtime and OpenVINO:
          calibrated on training pictures of DATA, scored on its val or test, paired with fp32 in the same engine
methods   how ranges are found: minimum and maximum, percentiles, entropy; in ONNX Runtime, on the same pictures

Each part replaces its own table in the file and leaves the others, so they can be run on different days; each carries
the machine it was measured on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from common import machine, revision, versions
from resnetkit.data.loader import Reader, default_threads, evaluation_batches
from resnetkit.engines import qdq
from resnetkit.engines.engine import Pixels, version
from resnetkit.engines.files import Source
from resnetkit.engines.preparing import onnx_bytes
from resnetkit.engines.starting import start
from resnetkit.evaluation import as_trained
from resnetkit.exporting import export_for_engine
from resnetkit.paired import paired
from resnetkit.quantising import chosen, judging_split
from resnetkit.weights import ModelFile, open_model

SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["accuracy", "methods"])
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL=DATA")
    parser.add_argument("--out", type=Path, default=Path("results/int8.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = (accuracy if args.part == "accuracy" else methods)(args.models, Path(folder))
    engines = {engine: version(engine) for engine in SUFFIX}
    about = {"revision": revision(), "machine": machine(), "versions": versions() | engines}
    whole = json.loads(args.out.read_text()) if args.out.exists() else {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**whole, args.part: {**found, **about}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
