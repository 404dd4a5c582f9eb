"""Archives of torch.export."""

from __future__ import annotations

from resnetkit.engines.engine import Engine
from resnetkit.engines.files import Source


def load(source: Source, threads: int, device: str = "cpu") -> Engine:
    raise NotImplementedError
