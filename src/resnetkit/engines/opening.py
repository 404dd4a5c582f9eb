"""A model, whatever its file, as a function from pictures to logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resnetkit.about import About
from resnetkit.engines.engine import Engine


@dataclass(frozen=True)
class Opened:
    """A model that answers.

    run        uint8 (N, size, size, C), as `Preprocess.fit` gives them, to logits float32 (N, classes)
    engine     the name of the engine, `why` it is that one in words
    precision  "fp32" or "int8"
    """

    about: About
    run: Engine
    engine: str
    why: str
    precision: str


def open_engine(
    model: str | Path,
    engine: str = "auto",
    *,
    batch: int = 16,
    threads: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Opened:
    """Load a model file, run folder or exported file into an engine. Raises UserError.

    engine   "auto", the fastest here for `batch` pictures at a time, or one by name
    say      is told in a sentence what takes time
    """
    raise NotImplementedError
