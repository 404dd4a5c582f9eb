"""An engine in a process of its own: it answers as in this process, and its death or silence becomes a sentence."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resnetkit.bench import random_model
from resnetkit.engines import worker
from resnetkit.engines.engine import version
from resnetkit.engines.files import read
from resnetkit.engines.preparing import prepared
from resnetkit.engines.samples import agree, difference, sample_pictures
from resnetkit.engines.starting import RUNS, start
from resnetkit.engines.worker import Worker, serve
from resnetkit.errors import UserError
from resnetkit.weights import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "m.safetensors"
    save_model(random_model("resnet8-cifar"), path)
    return path


def faked(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Workers are processes that run `code`."""
    monkeypatch.setattr(worker, "COMMAND", (sys.executable, "-c", code))


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, on importing torch.fx's fuse
@pytest.mark.parametrize("name", RUNS[".safetensors"])
def test_a_worker_answers_as_the_engine_does_here(name: str, model: Path, tmp_path: Path) -> None:
    if version(name) is None:
        pytest.skip(f"needs the engine {name}")
    source = read(model)
    ready = prepared(source, name, tmp_path)
    with Worker(1) as process:
        loaded = process.load(name, model, ready, 1, 600)
        answers = process.answers(4)
        runs = process.ask({"run": 3, "times": 2})
    assert loaded["seconds"] > 0
    assert loaded["precision"] == "fp32"
    assert loaded["memory"] is None or loaded["memory"] > 0
    assert len(runs["seconds"]) == 2
    assert min(runs["seconds"]) > 0
    assert runs["peak"] is None or runs["peak"] >= runs["memory"] - (1 << 20) > -(1 << 20)
    here = start(name, source, 1, ready)(sample_pictures(4, 32, 3))
    np.testing.assert_allclose(answers, here, rtol=1e-5, atol=1e-5)


def test_limits_are_positive_for_any_number_of_threads() -> None:
    for threads in (1, 2):
        with Worker(threads) as process:
            limits = process.ask({"limits": threads})
        assert limits.keys() == {"sgemm", "copy"}
        assert min(limits.values()) > 0


def test_an_error_is_answered_and_the_next_request_too(model: Path, tmp_path: Path) -> None:
    with Worker(1) as process:
        with pytest.raises(UserError, match=r"nowhere\.onnx"):
            process.load("onnx", tmp_path / "nowhere.onnx", None, 1, 600)
        with pytest.raises(UserError, match="choose from auto"):
            process.load("onxx", model, None, 1, 600)


def test_what_an_engine_prints_is_no_answer() -> None:
    """As MNN does, from C++: on the file descriptor."""
    code = "import os; from resnetkit.engines import worker as w; s = w.Serving.answer\n"
    code += "def noisy(*a): os.write(1, b'hello\\n'); return s(*a)\n"
    code += "w.Serving.answer = noisy; w.main()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input='{"answers": 1}\n', capture_output=True, text=True, check=True)
    assert json.loads(done.stdout).keys() == {"error"}
    assert "hello" in done.stderr


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("raise SystemExit(3)", "its process ended with code 3"),
        ("import os; input(); os.kill(os.getpid(), 9)", "its process was ended by SIGKILL, perhaps for want of memory"),
        ("import os; input(); os.kill(os.getpid(), 11)", "its process was ended by SIGSEGV"),
        ("input(); print('half', end='', flush=True)", "its process ended with code 0"),
        ("input(); print('no json', flush=True); input()", "its process answered with something else than JSON"),
        ("input(); print(3, flush=True); input()", "its process answered with something else than JSON"),
    ],
)
def test_a_death_becomes_a_sentence(code: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch, code)
    with Worker(1) as process, pytest.raises(UserError) as error:
        process.ask({"answers": 1})
    assert str(error.value) == sentence
    assert process.process.poll() is not None


def test_silence_becomes_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch, "import time; time.sleep(10_000)")
    with Worker(1) as process, pytest.raises(UserError, match="its process gave no answer in 0 seconds"):
        process.ask({"answers": 1}, timeout=0.1)
    assert process.process.poll() is not None


def test_a_worker_is_gone_after_its_block_and_when_nobody_asks() -> None:
    with pytest.raises(KeyboardInterrupt), Worker(1) as process:
        raise KeyboardInterrupt
    assert process.process.poll() is not None
    process.close()
    left = subprocess.run(worker.COMMAND, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (left.returncode, left.stdout) == (0, b"")


def test_errors_of_libraries_are_one_line() -> None:
    answers = io.StringIO()
    serve(["[]\n", "not json\n", '{"answers": 1}\n'], answers)
    errors = [json.loads(line)["error"] for line in answers.getvalue().splitlines()]
    assert len(errors) == 3
    assert errors[2].startswith("AttributeError: ")


def test_where_the_system_tells_nothing_of_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(worker, "STATUS", tmp_path / "none")
    assert worker.memory() == {}
    serving = worker.Serving()
    serving.before = worker.memory()
    assert serving.growth("VmHWM") is None


def test_sample_pictures_are_the_same_for_everybody() -> None:
    pictures = sample_pictures(5, 32, 3)
    assert (pictures.shape, pictures.dtype) == ((5, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(pictures[:2], sample_pictures(2, 32, 3))
    assert sample_pictures(1, 8, 1).shape == (1, 8, 8, 1)
    code = "from resnetkit.engines.samples import sample_pictures as s; print(int(s(5, 32, 3).sum()))"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment).stdout
    assert int(told) == int(pictures.sum())
    # Like pictures: neighbours are alike, and no two of them are the same.
    steps = np.abs(np.diff(pictures.astype(int), axis=1)).mean(axis=(1, 2, 3))
    assert (steps < 20).all()
    assert pictures.reshape(5, -1).std(axis=1).min() > 5
    assert len({picture.tobytes() for picture in pictures}) == 5


def test_agreement() -> None:
    reference = np.array([[3.0, -20.0], [1.0, 1.001]], dtype=np.float32)
    assert agree(reference, reference) is None
    assert agree(reference, reference + np.float32(0.015)) is None  # of 20
    assert agree(reference, reference + np.float32(0.05)) == (
        "its answers differ from those of the file's own engine by 0.0025 of the largest, above 0.001"
    )
    assert agree(reference, reference + np.float32(0.5), "int8") is None
    assert difference(reference / 100, reference / 100 + np.float32(0.1)) == pytest.approx(0.1, rel=1e-4)
    sentence = "its answers are no numbers, or have another shape than those of the file's own engine"
    for bad in (reference[:1], reference * np.float32("nan"), np.full_like(reference, np.inf)):
        assert agree(reference, bad) == sentence
