"""ONNX Runtime: files of ONNX, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnetkit.engines.engine import Engine, Logits, Pixels, need
from resnetkit.engines.files import Source
from resnetkit.errors import UserError

NAME, SUFFIX = "onnx", ".onnx"
ERRORS = 3  # of its log levels: errors and worse


def load(file: Source, threads: int, ready: Path | None = None) -> Engine:
    """The engine of an ONNX file. Raises UserError.

    ready   the same file as `prepare` wrote it on this machine, which loads faster
    """
    need(NAME)
    import onnxruntime

    options = session_options(threads)
    if ready is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(ready or file.path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes of errors have no common one of their own
        raise UserError(f"{file.path}: ONNX Runtime cannot load it ({str(error).splitlines()[0]})") from None
    (given,), preprocess = session.get_inputs(), file.about.preprocess

    def run(pictures: Pixels) -> Logits:
        x: Any = pictures if file.input == "uint8" else preprocess.normalise_array(pictures)
        logits: Logits = session.run(["logits"], {given.name: x})[0]
        return logits

    return run


def session_options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ERRORS
    return options


def prepare(file: Source, target: Path) -> None:
    """Write the file as ONNX Runtime has optimised it for this machine's processor; of no use on another."""
    import onnxruntime

    options = session_options(1)
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(file.path), options, providers=["CPUExecutionProvider"])
