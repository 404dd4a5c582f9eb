"""examples/demo_pictures.py: the pictures are scikit-learn's, and nobody's folder is overwritten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetkit.data.source import open_data

PROGRAM = Path(__file__).parents[1] / "examples" / "demo_pictures.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_digits_as_a_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn, the extra 'demo'")
    done = run(tmp_path / "pictures")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    data = open_data(tmp_path / "pictures")
    assert {name: len(indices) for name, indices in data.splits.items()} == {"train": 1437, "val": 360}
    assert data.notes == ()
    shares = np.bincount(data.labels[data.splits["val"]]) / np.bincount(data.labels)
    assert (abs(shares - 0.2) < 0.005).all()
    digits = datasets.load_digits()
    for index in range(0, 1797, 50):
        path = tmp_path / "pictures" / data.pictures.name(index)
        number = int(path.stem)
        assert data.classes[data.labels[index]] == str(digits.target[number])
        assert (np.asarray(Image.open(path)) == np.round(digits.images[number] * 255 / 16)).all()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert run(tmp_path / "pictures").stdout == done.stdout
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("sklearn.datasets", reason="needs scikit-learn, the extra 'demo'")
    (tmp_path / "mine.txt").write_text("mine")
    done = run(tmp_path)
    assert done.returncode == 2
    assert "not empty, and not written by this program" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
