"""ONNX Runtime: files of ONNX, on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from resnetkit.engines.engine import Engine, Logits, Pixels, last_line, need
from resnetkit.engines.files import Source
from resnetkit.errors import UserError

NAME, SUFFIX, BESIDE = "onnx", ".onnx", ".data"
ERRORS = 3  # of its log levels: errors and worse


def load(file: Source, threads: int, ready: Path | None = None) -> Engine:
    """The engine of an ONNX file. Raises UserError.

    ready   the same file as `prepare` wrote it on this machine, which loads faster
    """
    onnxruntime = imported()
    options = session_options(threads)
    if ready is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = session_of(ready or file.path, options)
    except Exception as error:  # its classes of errors have no common one of their own
        raise UserError(f"{file.path}: ONNX Runtime cannot load it ({last_line(error)})") from None
    given, preprocess = session.get_inputs()[0], file.about.preprocess
    file.check_input(given.shape)

    def run(pictures: Pixels) -> Logits:
        x: Any = pictures if file.input == "uint8" else preprocess.normalise_array(pictures)
        logits: Logits = session.run(["logits"], {given.name: x})[0]
        return logits

    return run


def session_options(threads: int) -> Any:
    options = imported().SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ERRORS
    return options


def session_of(path: Path, options: Any) -> Any:
    """Without what it falls back on after an error: the same once more, and a banner on standard output."""
    return imported().InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)


def prepare(file: Source, target: Path) -> None:
    """Write the file as ONNX Runtime has optimised it for this machine's processor; of no use on another.

    The weights lie beside it, in a .data file that is mapped into memory: loading is quicker then, and memory less than
    half (results/memory.json) and shared between processes.
    """
    options = session_options(1)
    options.optimized_model_filepath = str(target)
    for key, value in (("file_name", target.with_suffix(BESIDE).name), ("min_size_in_bytes", "1024")):
        options.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)
    session_of(file.path, options)


def imported() -> Any:
    """The package, which would report home."""
    need(NAME)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime
