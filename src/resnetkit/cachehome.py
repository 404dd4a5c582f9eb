"""Where what can be made or fetched again is kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path

BLOCKS = "blocks"  # of remote objects; the other folders are of models


def cache_home() -> Path:
    """$XDG_CACHE_HOME/resnetkit, or ~/.cache/resnetkit; it need not be there."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "resnetkit"
