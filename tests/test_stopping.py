"""Training as a process: SIGINT, SIGTERM, SIGKILL, and going on afterwards. benchmarks/kill9.py is the long form."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

RECIPE = (
    *("--model", "resnet8-cifar", "--epochs", "30", "--set", "data.size=12", "--set", "optim.batch=8"),
    *("--set", "run.checkpoint_steps=3", "--set", "run.eval_epochs=5"),
)
LAST = "epoch 30/30"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "noise"
    dice = np.random.Generator(np.random.Philox(0))
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(16):
            pixels = dice.integers(256, size=(12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def start(*words: str | Path) -> subprocess.Popen[str]:
    """`resnet` with one thread: two processes on few cores hinder each other."""
    command = [sys.executable, "-m", "resnetkit", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def read_until(stream: IO[str] | None, text: str) -> list[str]:
    """The lines up to the first that begins with `text`."""
    assert stream is not None
    lines = []
    for line in stream:
        lines.append(line)
        if line.startswith(text):
            return lines
    raise AssertionError(f"no line begins with {text!r}: {lines}")


def weights(run: Path) -> dict[str, bytes]:
    with safe_open(run / "model.safetensors", framework="np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118 - not a mapping


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("runs") / "alone"
    process = start("train", pictures, *RECIPE, "--out", run)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return weights(run)


def finish(run: Path) -> str:
    process = start("resume", run)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return out


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_step_and_says_how_to_go_on(
    signum: signal.Signals, code: int, pictures: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start("train", pictures, *RECIPE, "--out", run)
    read_until(process.stdout, "epoch  2/30")
    process.send_signal(signum)
    out, errors = process.communicate()
    assert process.returncode == code
    assert LAST not in out
    assert errors.startswith("resnet: stopped after step ")
    assert errors.endswith(f"; go on with: resnet resume {run}\n")
    step = int(errors.split("step ")[1].split(";")[0].replace(",", ""))
    assert (run / "checkpoints" / f"step-{step:09}.safetensors").is_file()
    out = finish(run)
    assert f"at step {step} of" in out
    assert "epoch  2/30" not in out
    assert weights(run) == undisturbed


@pytest.mark.slow
def test_kill_9(pictures: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """Three times, in the middle of whatever follows the second, ninth and twentieth epoch."""
    run = tmp_path / "run"
    process = start("train", pictures, *RECIPE, "--out", run)
    for line in ("epoch  2/30", "epoch  9/30", "epoch 20/30"):
        read_until(process.stdout, line)
        process.kill()
        process.communicate()
        assert not (run / "model.safetensors").exists()
        process = start("resume", run)
    process.communicate()
    assert weights(run) == undisturbed
    assert list(tmp_path.rglob("*.part")) == []


def test_interrupted_before_the_first_step_nothing_is_left(pictures: Path, tmp_path: Path) -> None:
    """A run that has not begun leaves no folder."""
    process = start("train", pictures, *RECIPE, "--out", tmp_path / "runs" / "run")
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode in (130, -signal.SIGINT)  # the latter while the interpreter itself still starts
    assert [path.name for path in tmp_path.rglob("*")] in ([], ["runs"])
