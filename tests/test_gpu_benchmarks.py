"""The benchmarks that are meant for a GPU run to their end, on a CPU, and write what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = ("--network", "resnet8-cifar", "--size", "32", "--batch", "4", "--windows", "1", "--steps", "2")


def measured(out: Path, script: str, *words: str) -> dict[str, dict[str, dict[str, float]]]:
    command = [sys.executable, str(BENCHMARKS / script), *words, *SMALL, "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=out.parent)
    found: dict[str, dict[str, dict[str, float]]] = json.loads(out.read_text())
    return found


def test_steps_and_answers(tmp_path: Path) -> None:
    found = measured(tmp_path / "step.json", "gpu_step.py", "--device", "cpu")
    sides = {"plain", "resnetkit", "resnetkit, deterministic", "resnetkit, checkpointing"}
    assert found["training"].keys() == found["against_plain"].keys() == sides
    assert all(row["images_per_second"] > 0 for row in found["training"].values())
    assert found["deterministic"]["losses_equal"] is True


def test_input(tmp_path: Path) -> None:
    for k in range(8):
        pixels = np.full((40, 50, 3), 30 * k, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.jpg")
    found = measured(tmp_path / "input.json", "gpu_input.py", str(tmp_path), "--copies", "2")
    assert found["images_per_second"].keys() == {"read", "to device", "train", "in memory"}
    assert found["of_in_memory"]["median"] > 0
