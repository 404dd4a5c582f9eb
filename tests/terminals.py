"""What was written to a pseudo-terminal."""

from __future__ import annotations

import contextlib
import os


def all_of(upper: int) -> bytes:
    """Everything, once the lower end is closed; then the upper one is closed too."""
    shown = b""
    with contextlib.suppress(OSError):  # which is how the end is told
        while part := os.read(upper, 1 << 16):  # of which a read gives as much as has come by then
            shown += part
    os.close(upper)
    return shown
