"""What an engine is: a function from pictures to logits, and a few words on how to get one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import UserError

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]

# Name: the library that it needs, as it is imported and installed, and the extra of ours that brings it. In the
# order in which they are tried.
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
    from importlib import metadata  # takes longer than everything else that an engine needs to be chosen

    try:
        return metadata.version(ENGINES[name][0])
    except metadata.PackageNotFoundError:
        return None


def installation(name: str) -> str | None:
    """What another version of the library behind an engine does not have; None where it is not installed."""
    found = find_spec(ENGINES[name][0])
    if found is None or found.origin is None:
        return None
    about = os.stat(found.origin)  # noqa: PTH116 - of a path that came as a string
    return f"{found.origin} {about.st_size} {about.st_mtime_ns}"


def need(name: str) -> None:
    """Raise UserError where the library behind an engine is not installed."""
    if installation(name) is None:
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
