"""Checkpoints: the last two are kept, a damaged one is passed over, a refused write leaves the ones before it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from resnetkit import checkpoint, tensorfile
from resnetkit.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with checkpoints after steps 1 to 5."""
    run = tmp_path / "run"
    (run / checkpoint.FOLDER).mkdir(parents=True)
    for step in range(1, 6):
        checkpoint.save(run, step, {"w": torch.full((3,), float(step))}, {"best": step / 10})
    return run


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_the_last_two_are_kept(run: Path) -> None:
    assert [path.name for path in checkpoint.saved(run)] == ["step-000000004.safetensors", "step-000000005.safetensors"]
    assert len(list((run / checkpoint.FOLDER).iterdir())) == 2
    tensors, meta, notes = checkpoint.load_latest(run)
    assert tensors["w"].tolist() == [5, 5, 5]
    assert (meta["step"], meta["best"], notes) == (5, 0.5, [])


def test_the_order_is_that_of_the_steps(run: Path) -> None:
    """Not that of the names as text, nor that of the files' times."""
    checkpoint.save(run, 123_456, {"w": torch.zeros(1)}, {})
    os.utime(checkpoint.saved(run)[0])
    assert checkpoint.load_latest(run)[1]["step"] == 123_456


def test_a_damaged_one_is_named_and_passed_over(run: Path) -> None:
    older, newest = checkpoint.saved(run)
    damage(newest)
    tensors, meta, notes = checkpoint.load_latest(run)
    assert (meta["step"], tensors["w"].tolist()) == (4, [4, 4, 4])
    assert len(notes) == 1
    assert notes[0].startswith(f"{newest}: damaged")
    damage(older)
    with pytest.raises(UserError, match=r"^.*run: no usable checkpoint .*step-000000005.*step-000000004"):
        checkpoint.load_latest(run)


def test_a_file_of_another_kind_is_passed_over(run: Path) -> None:
    path = run / checkpoint.FOLDER / "step-000000009.safetensors"
    path.write_bytes(tensorfile.dump({"w": torch.zeros(1)}, {"kind": "model"}))
    _, meta, notes = checkpoint.load_latest(run)
    assert meta["step"] == 5
    assert notes == [f"{path}: not a checkpoint; using the one before it"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_refused_write_names_the_last_good_one(number: int, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    before = {path: path.read_bytes() for path in (run / checkpoint.FOLDER).iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(UserError) as failure:
            checkpoint.save(run, 6, {"w": torch.zeros(3)}, {})
    assert os.strerror(number) in str(failure.value)
    assert f"{checkpoint.saved(run)[-1]} is the last good one" in str(failure.value)
    assert str(failure.value).endswith(f"resnet resume {run}")
    assert {path: path.read_bytes() for path in (run / checkpoint.FOLDER).iterdir()} == before


# In the background


def test_what_is_written_is_what_was_there_when_it_was_saved(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on with the tensors while they are written."""
    go, real = threading.Event(), checkpoint.write_bytes

    def slow(path: Path, data: bytes) -> None:
        assert go.wait(60)
        real(path, data)

    monkeypatch.setattr(checkpoint, "write_bytes", slow)
    tensor, writer = torch.full((2, 3, 4, 4), 7.0).to(memory_format=torch.channels_last), checkpoint.Writer()
    writer.save(run, 8, {"w": tensor}, {"best": 0.5})
    tensor.zero_()
    assert checkpoint.load_latest(run)[1]["step"] == 5
    go.set()
    writer.wait()
    tensors, meta, notes = checkpoint.load_latest(run)
    assert (meta["step"], notes, set(tensors["w"].flatten().tolist())) == (8, [], {7.0})


def test_the_next_one_waits_for_the_one_before_and_hears_of_its_failure(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = checkpoint.Writer()
    for step in range(10, 15):
        writer.save(run, step, {"w": torch.full((3,), float(step))}, {})
    writer.wait()
    assert [path.name[5:14] for path in checkpoint.saved(run)] == ["000000013", "000000014"]
    monkeypatch.setattr(os, "fsync", refuse)
    writer.save(run, 15, {"w": torch.zeros(3)}, {})
    with pytest.raises(UserError, match=r"step-000000015.*No space left.*step-000000014.*is the last good one"):
        writer.save(run, 16, {"w": torch.zeros(3)}, {})
    writer.check()  # said once


def test_a_kill_while_writing_leaves_the_one_before(run: Path) -> None:
    """SIGKILL when all bytes are written and not yet safe on the disk."""
    code = (
        "import os, sys, time, torch; from pathlib import Path; from resnetkit import checkpoint\n"
        "os.fsync = lambda _: (print('writing', flush=True), time.sleep(100))\n"
        "checkpoint.Writer().save(Path(sys.argv[1]), 6, {'w': torch.zeros(3)}, {})"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list((run / checkpoint.FOLDER).glob(".*.part"))) == 1
    assert checkpoint.load_latest(run)[1]["step"] == 5
    checkpoint.save(run, 6, {"w": torch.zeros(3)}, {})
    assert checkpoint.load_latest(run)[1]["step"] == 6
