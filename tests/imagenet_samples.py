"""Small ILSVRC-2012 folders as its archives unpack, and meta.mat in the layout of the development kit's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WNIDS = tuple(f"n{number:08}" for number in np.random.default_rng(0).permutation(10**6)[:1860].tolist())
LEAVES = WNIDS[:1000]  # in the development kit's order, which is not that of the strings


def write_meta(path: Path) -> None:
    """1,860 synsets, of which the first 1,000 are leaves; the fields and types are those of the real file."""
    io = pytest.importorskip("scipy.io", reason="needs scipy, the extra 'imagenet'")
    names = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    synsets = np.empty((len(WNIDS), 1), dtype=[(name, object) for name in (*names, "num_train_images")])
    for i, wnid in enumerate(WNIDS):
        children = np.array([[1.0, 2.0]]) if i >= 1000 else np.empty((1, 0))
        row = (float(i + 1), wnid, f"words {i}", "gloss", float(children.size), children, float(i >= 1000), 1300.0)
        synsets[i, 0] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    io.savemat(path, {"synsets": synsets})


def picture(path: Path, seed: int = 0) -> None:
    """A PNG of coarse noise, whatever its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((14, 11)).save(path, "PNG")


def write_devkit(folder: Path, ids: Sequence[int]) -> None:
    """meta.mat and the ground truth."""
    write_meta(folder / "meta.mat")
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in ids))


def write_flat(folder: Path, split: str, number: int) -> None:
    """ILSVRC2012_val_00000001.JPEG and so on."""
    for i in range(1, number + 1):
        picture(folder / f"ILSVRC2012_{split}_{i:08}.JPEG", seed=i)
