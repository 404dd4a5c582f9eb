"""Small pictures, and tars of them with as much wrong as a test wants."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(seed: int, side: int = 12) -> bytes:
    """A JPEG of coarse noise that says 0 or 1 by its colour (even seeds are dark)."""
    noise = np.random.default_rng(seed).integers(0, 60, (3, 4, 3), dtype=np.uint8) + (180 if seed % 2 else 0)
    target = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).resize((side + 2, side)).save(target, "JPEG")
    return target.getvalue()


def tar_bytes(members: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return target.getvalue()


def samples(seeds: Iterable[int]) -> list[tuple[str, bytes]]:
    """key.jpg and key.cls for each seed; the class is the seed's last bit."""
    return [part for k in seeds for part in ((f"{k:04}.jpg", jpeg(k)), (f"{k:04}.cls", str(k % 2).encode()))]


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, form))
    return path


def write_folder(root: Path, splits: dict[str, range]) -> Path:
    """<split>/<dark or light>/<seed>.jpg."""
    for split, seeds in splits.items():
        for k in seeds:
            path = root / split / ("light" if k % 2 else "dark") / f"{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(k))
    return root
