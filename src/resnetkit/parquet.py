"""pyarrow, which is not among the requirements."""

from __future__ import annotations

import importlib
from typing import Any

from resnetkit.errors import UserError


def pyarrow(part: str = "pyarrow", instead: str = ".npy") -> Any:
    """A module of pyarrow. Raises UserError, which names the ending of a file that can do without it."""
    try:
        return importlib.import_module(part)
    except ImportError:
        hint = "pip install 'resnetkit[parquet]'"
        raise UserError(
            f".parquet files need pyarrow, which is not installed: {hint}, or write a {instead} file"
        ) from None
