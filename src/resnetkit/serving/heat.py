"""Heat maps for the page, where what draws them is installed."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from resnetkit import explaining
from resnetkit.engines.folding import TRACING
from resnetkit.weights import open_model


def heat_maps() -> Callable[[Path, bytes, str], bytes] | None:
    """What draws where a model looked for a class, as `app.Service` takes it; None where it is not installed."""
    return drawn if find_spec("captum") is not None else None


def drawn(path: Path, data: bytes, label: str) -> bytes:
    """A PNG: what the network sees of a picture, under its heat map.

    Raises BadPicture; UserError for an exported file, which has no gradients.
    """
    model, file = open_model(path), io.BytesIO()
    explaining.captum()  # its import takes seconds, in which others shall be answered
    with TRACING:
        heat = explaining.heat_map(model, data, of=label)
    explaining.overlay(explaining.view(model, data), heat).save(file, "PNG")
    return file.getvalue()
