"""An engine by its name, for a file that it runs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from resnetkit.engines.engine import ENGINES, Engine
from resnetkit.engines.files import Source
from resnetkit.errors import UserError, nearest

# What each kind of file may run in; the first one is the file's own, which answers are compared with.
RUNS = {
    ".safetensors": ("torch", "onnx", "openvino", "mnn"),
    ".onnx": ("onnx", "openvino", "mnn"),
    ".xml": ("openvino",),
    ".mnn": ("mnn",),
    ".pt2": ("torch",),
}


def engines_for(source: Source) -> tuple[str, ...]:
    """The engines that can run a file, its own first."""
    names = RUNS[source.path.suffix]
    return tuple(name for name in names if name != "mnn") if source.precision == "int8" else names


def module_of(name: str) -> Any:
    """The module of an engine: NAME, SUFFIX of its files, what lies BESIDE one, load, prepare. Raises UserError."""
    if name not in ENGINES:
        raise UserError(f"engine {name!r}: choose from auto, {', '.join(ENGINES)}{nearest(name, ENGINES)}")
    if name == "onnx":
        return import_module("resnetkit.engines.onnxruntime")
    if name == "openvino":
        return import_module("resnetkit.engines.openvino")
    return import_module("resnetkit.engines.mnn")


def start(name: str, source: Source, threads: int, ready: Path | None = None, device: str = "cpu") -> Engine:
    """Load a file into an engine. Raises UserError: no such engine, not installed, or not for this file.

    ready    what the engine prepared of the file (`preparing`); where the file is not of its own kind it needs that
    device   of torch
    """
    if name == "torch" and source.path.suffix == ".pt2":
        from resnetkit.engines import pt2

        return pt2.load(source, threads, device)
    if name == "torch":
        from resnetkit.engines import torch
        from resnetkit.weights import open_model

        return torch.load(open_model(source.path, several=True), threads, device)
    engine: Engine = module_of(name).load(source, threads, ready)
    return engine
