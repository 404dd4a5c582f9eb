"""What an engine is: a function from pictures to logits, and a few words on how to get one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib import metadata
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import UserError

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]

# Name: the distribution that it needs, and the extra of ours that brings it. In the order in which they are tried.
ENGINES = {
    "onnx": ("onnxruntime", "onnx"),
    "openvino": ("openvino", "openvino"),
    "mnn": ("MNN", "mnn"),
    "torch": ("torch", ""),
}


class Engine(Protocol):
    """uint8 (N, size, size, C), as `Preprocess.fit` gives them, to float32 logits (N, classes). N may change."""

    def __call__(self, pictures: Pixels) -> Logits: ...


def version(name: str) -> str | None:
    """Of the library behind an engine; None where it is not installed."""
    try:
        return metadata.version(ENGINES[name][0])
    except metadata.PackageNotFoundError:
        return None


def need(name: str) -> None:
    """Raise UserError where the library behind an engine is not installed."""
    if version(name) is None:
        library, extra = ENGINES[name]
        raise UserError(f"engine {name}: {library} is not installed; run: pip install 'resnetkit[{extra}]'")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing reaches standard output and error, not even from C++, which knows no `sys.stdout`."""
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)


def last_line(error: Exception) -> str:
    """What an engine's error says; OpenVINO's begin with places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
