"""Memory of a network at batch 1 in the engine that auto takes, and in engines as people call them.

    python benchmarks/memory.py [--out results/memory.json]

What a process has grown by, after the first answers, more than one that runs a network of a fifth of a megabyte in the
same engine, so that the engine's own code does not count: `steady` is resident now, `peak` the most that ever was. Both
are compared with what cannot be avoided: the weights, and the largest sum of activations that are alive at once, which
follows from the shapes in the graph. Weights that are mapped from a file count in full.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import onnx

from common import write
from engines import NETWORKS, PEERS, model_file
from resnetkit.complexity import count
from resnetkit.data.loader import default_threads
from resnetkit.engines import files
from resnetkit.engines.preparing import place_of, prepared
from resnetkit.engines.worker import Worker
from resnetkit.exporting import export
from resnetkit.model import architecture

RUNS = 5
TINY = {"width": 4}


def live_activations(path: Path) -> int:
    """Bytes of float32 of the values that are alive at once, at most, when nodes run in their order at batch 1."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    sizes = {}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        dims = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        sizes[value.name] = 4 * math.prod(dims)
    last = {name: index for index, node in enumerate(graph.node) for name in node.input}
    alive, most = {graph.input[0].name}, 0
    for index, node in enumerate(graph.node):
        alive |= set(node.output)
        if node.op_type != "Relu":  # made in place, or in the node before
            most = max(most, sum(sizes[name] for name in alive))
        alive -= {name for name in node.input if last[name] == index}
    return most


def used(path: Path, engine: str, threads: int) -> dict[str, int]:
    """Growth in one of our engines."""
    source = files.read(path)
    with place_of(source) as (place, _), Worker(threads) as worker:
        worker.load(engine, path, prepared(source, engine, place), threads, 120)
        found = worker.ask({"run": 1, "times": RUNS})
    return {"steady": found["memory"], "peak": found["peak"]}


def used_plainly(path: Path, peer: str, threads: int) -> dict[str, int]:
    """Growth in one of peers.py."""
    with Worker(threads, PEERS) as worker:
        worker.ask({"start": peer, "path": str(path), "threads": threads})
        found = worker.ask({"run": 1, "times": RUNS})
    return {"steady": found["memory"], "peak": found["peak"]}


def compared(large: dict[str, int], tiny: dict[str, int], unavoidable: int) -> dict[str, Any]:
    found = {name: large[name] - tiny[name] for name in large}
    return found | {f"{name}_ratio": value / unavoidable for name, value in found.items()}


def both(name: str, folder: Path, **choices: int) -> tuple[Path, Path]:
    """A model file and, beside it, the ONNX file of its graph with float input."""
    path = model_file(name, folder, **choices)
    export(path, "onnx", path.with_suffix(".onnx"), input="float")
    return path, path.with_suffix(".onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/memory.json"))
    args = parser.parse_args()
    threads, found = default_threads(), []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        tiny = both("resnet18", Path(folder), **TINY)
        for name in NETWORKS:
            path, plain = both(name, Path(folder))
            weights, activations = 4 * count(architecture(name), 224).parameters, live_activations(plain)
            row: dict[str, Any] = {"network": name, "weights": weights, "activations": activations}
            for engine in ("onnx", "openvino", "mnn"):
                sides = (used(each, engine, threads) for each in (path, tiny[0]))
                row[engine] = compared(*sides, weights + activations)
            for peer in ("ONNX Runtime", "OpenVINO"):
                sides = (used_plainly(each, peer, threads) for each in (plain, tiny[1]))
                row[peer] = compared(*sides, weights + activations)
            found.append(row)
    write(args.out, {"what": "memory at batch 1, bytes, and against weights plus live activations", "results": found})


if __name__ == "__main__":
    main()
