"""What was prepared for this machine: networks as its processor likes them, and which engine won.

Lies in $XDG_CACHE_HOME/resnetkit, or ~/.cache/resnetkit; a folder for each model, named by its digest. Everything in it
can be made again: whatever is missing, damaged or not writable costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from resnetkit.atomic import write_json
from resnetkit.cachehome import BLOCKS, cache_home

LIMIT = 4 << 30  # bytes that all models together may take; the ones not used for longest go first


def folder(digest: str) -> Path:
    """Where a model's files are, or would be."""
    return cache_home() / digest[:32]


def processor() -> str:
    """The machine, as far as it decides what is fast and what runs: the name and features of its processor, cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = list(map(str, os.uname()))
    about = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return hashlib.sha256("\n".join([*about, str(cores)]).encode()).hexdigest()[:16]


def remember(place: Path, key: str, value: dict[str, Any]) -> None:
    """Keep a value under a key in a model's folder; where that cannot be written, not."""
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / f"{key}.json", value)


def recall(place: Path, key: str) -> dict[str, Any] | None:
    """What was kept under a key, if anything that can be read."""
    try:
        value = json.loads((place / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def touch(place: Path) -> None:
    """Say that a model was used."""
    with contextlib.suppress(OSError):
        os.utime(place)


def prune(keep: Path, limit: int = LIMIT) -> None:
    """Take away the models not used for longest until all fit into `limit` bytes; never `keep`."""
    import shutil

    with contextlib.suppress(OSError):
        others = [place for place in keep.parent.iterdir() if place.is_dir() and place != keep and place.name != BLOCKS]
        sizes = {place: size_of(place) for place in [*others, keep] if place.is_dir()}
        for place in sorted(others, key=lambda other: other.stat().st_mtime):
            if sum(sizes.values()) <= limit:
                break
            if time.time() - place.stat().st_mtime > 60:  # or somebody may be making it just now
                shutil.rmtree(place, ignore_errors=True)
                del sizes[place]


def size_of(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*"))


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes; lets go of the interpreter lock. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
