"""Files of the engines: the graph of a network, with what the model says of itself inside and sealed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnetkit.engines import pt2
from resnetkit.engines.files import Input, Source, metadata
from resnetkit.engines.preparing import onnx_bytes
from resnetkit.engines.starting import module_of
from resnetkit.sealing import seal
from resnetkit.tensorfile import KEY
from resnetkit.weights import ModelFile

Export = dict[str, Any]  # the table `export` of the metadata
BIN = "b" * 64  # where the digest of OpenVINO's weights will stand in its metadata


def write_onnx(model: ModelFile, made: Path, graph: Path, export: Export) -> list[Path]:
    """The graph with the metadata in it."""
    import onnx

    network = onnx.load(graph)
    entry = network.metadata_props.add()
    entry.key, entry.value = KEY, metadata(model.about, export)
    made.write_bytes(seal(network.SerializeToString(deterministic=True)))
    return [made]


def write_openvino(model: ModelFile, made: Path, graph: Path, export: Export) -> list[Path]:
    """In fp32 or, where the graph is quantised, int8; never in fp16."""
    openvino, weights = module_of("openvino").imported(), made.with_suffix(".bin")
    network = openvino.Core().read_model(str(graph))
    network.set_rt_info(metadata(model.about, export, bin=BIN), [KEY, "about"])
    openvino.save_model(network, str(made), compress_to_fp16=False)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    made.write_bytes(seal(made.read_bytes().replace(BIN.encode(), digest.encode())))
    return [weights, made]


def write_mnn(model: ModelFile, made: Path, graph: Path, export: Export) -> list[Path]:
    source = Source(graph, model.about, export["input"], "fp32", "")
    module_of("mnn").prepare(source, made, metadata(model.about, export))
    made.write_bytes(seal(made.read_bytes()))
    return [made]


WRITERS: dict[str, Callable[[ModelFile, Path, Path, Export], list[Path]]] = {
    "onnx": write_onnx,
    "openvino": write_openvino,
    "mnn": write_mnn,
}


def write(model: ModelFile, to: str, made: Path, input: Input) -> list[Path]:
    """Write the file `made` for an engine, and what belongs beside it; the one with the metadata comes last."""
    export = {"input": input, "precision": "fp32"}
    if to == "torch-export":
        pt2.write(model, made, input, export)
        return [made]
    graph = made.with_name("graph.onnx")
    graph.write_bytes(onnx_bytes(model, input))
    return WRITERS[to](model, made, graph, export)
