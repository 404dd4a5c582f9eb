"""OpenVINO: its own files and those of ONNX, on the CPU."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np

from resnetkit.engines.engine import Engine, Logits, Pixels, last_line, need, silent
from resnetkit.engines.files import Source
from resnetkit.errors import UserError

NAME, SUFFIX, BESIDE = "openvino", ".xml", ".bin"


def load(file: Source, threads: int, ready: Path | None = None) -> Engine:
    """The engine of a file of OpenVINO or ONNX. Raises UserError.

    ready   the same file as `prepare` wrote it, which loads faster
    """
    one = core()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # it waits for its own cores where others use them too, such as our decoders
    }
    try:
        with silent():
            compiled = one.compile_model(str(ready or file.path), "CPU", options)
    except Exception as error:  # RuntimeError, and UnicodeDecodeError where the message quotes a damaged file
        raise UserError(f"{file.path}: OpenVINO cannot load it ({last_line(error)})") from None
    file.check_input([part.get_length() if part.is_static else None for part in compiled.input(0).partial_shape])
    request, preprocess = compiled.create_infer_request(), file.about.preprocess
    nothing = np.empty((0, len(file.about.classes)), dtype=np.float32)

    def run(pictures: Pixels) -> Logits:
        if len(pictures) == 0:  # for which it gives the answers before, and gives them again for the next pictures
            return nothing
        x: Any = pictures if file.input == "uint8" else preprocess.normalise_array(pictures)
        logits: Logits = request.infer(x, share_inputs=True)[0]
        return logits

    return run


def prepare(file: Source, target: Path) -> None:
    """Write a file of ONNX as OpenVINO's own, in fp32: `target` and its weights beside it, in a .bin file."""
    imported().save_model(core().read_model(str(file.path)), str(target), compress_to_fp16=False)


@functools.cache
def core() -> Any:
    """The one that all engines of this process have, for as long as it lives.

    Its plugin gives the thread that first loads an engine a stack for signals of its own, and takes it away in whatever
    thread the last engine ends: the next signal, be it SIGTERM to a server, would then end the process.
    """
    return imported().Core()


def imported() -> Any:
    """The package. Its converter, which we do not need, would report home and take a tenth of a second: left out."""
    need(NAME)
    if "openvino" not in sys.modules:
        sys.modules["openvino.tools.ovc"] = None  # type: ignore[assignment]  # so importing it fails, which is caught
        try:
            import openvino
        finally:
            del sys.modules["openvino.tools.ovc"]
    else:
        import openvino
    return openvino
