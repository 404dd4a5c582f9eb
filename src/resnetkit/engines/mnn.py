"""MNN: its own files, converted from ONNX, on the CPU."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from resnetkit.engines.engine import Engine, Logits, Pixels, need, silent
from resnetkit.engines.files import Source
from resnetkit.errors import UserError

NAME, SUFFIX, BESIDE = "mnn", ".mnn", ""
# MNN's own script would install a package for its log and send that home; what it calls does not.
CONVERT = "import sys, _tools; sys.exit(not _tools.mnnconvert([*sys.argv, '--bizCode', sys.stdin.read()]))"


def load(file: Source, threads: int, ready: Path | None = None) -> Engine:
    """The engine of a file of MNN; of one of ONNX, `ready` is what `prepare` made of it. Raises UserError."""
    need(NAME)
    with silent():  # it tells the world what the processor can do
        import MNN

        try:
            interpreter = MNN.Interpreter(str(ready or file.path))
            session = interpreter.createSession({"backend": "CPU", "numThread": threads, "precision": "high"})
            given = interpreter.getSessionInput(session)
        except Exception as error:
            raise UserError(f"{file.path}: MNN cannot load it ({error})") from None
    file.check_input(given.getShape())
    preprocess, last = file.about.preprocess, 0
    side, channels = preprocess.size, preprocess.channels

    def run(pictures: Pixels) -> Logits:
        nonlocal last
        # A wrong shape is no error to MNN: it reads beyond the array.
        assert pictures.dtype == np.uint8
        assert pictures.shape[1:] == (side, side, channels)
        x: Any = pictures if file.input == "uint8" else preprocess.normalise_array(pictures)
        x = np.ascontiguousarray(x)
        if len(x) != last:
            interpreter.resizeTensor(given, x.shape)
            interpreter.resizeSession(session)
            last = len(x)
        kind = MNN.Halide_Type_Uint8 if file.input == "uint8" else MNN.Halide_Type_Float
        # "Caffe": the array's own order of axes, whatever they mean.
        given.copyFrom(MNN.Tensor(x.shape, kind, x, MNN.Tensor_DimensionType_Caffe))
        interpreter.runSession(session)
        logits: Logits = interpreter.getSessionOutput(session).getNumpyData().copy()  # the next run writes over it
        return logits

    return run


def prepare(file: Source, target: Path, text: str = "") -> None:
    """Convert a file of ONNX; `text` becomes the file's own metadata. Raises UserError.

    In a process of its own, because MNN ends the process where it cannot convert.
    """
    need(NAME)
    arguments = [
        "-f",
        "ONNX",
        "--modelFile",
        os.fspath(file.path.absolute()),
        "--MNNModel",
        os.fspath(target.absolute()),
    ]
    # -P: what lies in the folder where somebody types the command is no module of MNN's.
    command = [sys.executable, "-P", "-c", CONVERT, *arguments]
    given = (text or "none").encode()
    # It leaves a file where it runs, so it runs where the caller clears away.
    done = subprocess.run(command, input=given, capture_output=True, check=False, cwd=target.parent)
    if done.returncode or not target.exists():
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        raise UserError(f"{file.path}: MNN cannot convert it; take another engine")
