"""Engines side by side: who is out and why, whose turn it is, who is fastest."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resnetkit.bench import random_model
from resnetkit.engines import race as racing
from resnetkit.engines import worker
from resnetkit.engines.engine import version
from resnetkit.engines.files import read
from resnetkit.engines.preparing import prepared
from resnetkit.engines.race import Entry, Lane, fastest, race
from resnetkit.engines.starting import RUNS
from resnetkit.errors import UserError
from resnetkit.weights import save_model

# Speaks the protocol of a worker; what it does is the file it is given, and all that is asked stands in a file.
FAKE = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    with open({log!r}, "a") as log:
        log.write(json.dumps(asked) + "\\n")
    kind = asked.get("path", globals().get("kind", ""))
    if "start" in asked:
        if kind == "refuses":
            answer = {{"error": "cannot load it"}}
        elif kind == "hangs":
            continue
        else:
            answer = {{"seconds": 0.5, "memory": 1000, "precision": "fp32"}}
    elif "answers" in asked:
        number = float("nan") if kind == "no numbers" else 2.0 if kind == "wrong" else 1.0
        answer = {{"answers": [[number, 0.0]] * asked["answers"]}}
    elif kind == "dies":
        os.kill(os.getpid(), 11)
    else:
        answer = {{"seconds": [float(kind)] * asked["times"], "memory": 2000, "peak": 3000}}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Workers are fakes; what they were asked is written there."""
    path = tmp_path / "asked.jsonl"
    monkeypatch.setattr(worker, "COMMAND", (sys.executable, "-c", FAKE.format(log=str(path))))
    monkeypatch.setattr(racing, "REST", 0.0)
    return path


def lanes_of(*kinds: str, **options: Any) -> list[Lane]:
    names = ("torch", "onnx", "openvino", "mnn")
    entries = [Entry(name, Path(kind)) for name, kind in zip(names, kinds, strict=False)]
    return race(entries, [8], threads=1, **{"seconds": 0, **options})


def lane(engine: str, *seconds: float, error: str | None = None) -> Lane:
    return Lane(engine, "1.0", seconds={8: list(seconds)}, error=error)


def test_the_fastest_when_nothing_disturbs_wins() -> None:
    """One quick run among many is luck; a machine that is busy most of the time must not decide."""
    lanes = [lane("torch", 3, 3, 3, 3, 3), lane("onnx", 2, 2, 9, 9, 9), lane("mnn", 1, 4, 4, 4, 4)]
    assert fastest(lanes, 8) == "onnx"
    lanes = [lane("torch", 3, 3, 3), lane("onnx", 2, 2, 9), lane("mnn", 1, 4, 4)]
    assert fastest(lanes, 8) == "onnx"
    assert [each.rate(8) for each in lanes] == pytest.approx([8 / 3, 4, 2])
    assert fastest([lane("torch", 2), lane("onnx", 2)], 8) == "torch"
    assert fastest([lane("torch", 2), lane("onnx", 1, error="is out")], 8) == "torch"
    assert fastest([lane("torch", 2), lane("onnx")], 8) == "torch"


@pytest.mark.usefixtures("log")
def test_the_later_turns_are_of_those_that_may_still_win() -> None:
    torch, onnx, mnn = lanes_of("2.0", "1.0", "1.1", seconds=0.4)
    assert len(onnx.seconds[8]) == len(mnn.seconds[8])
    assert 3 <= len(torch.seconds[8]) < len(onnx.seconds[8])


def test_of_engines_that_no_race_tells_apart_the_smallest_wins() -> None:
    mnn, onnx, slow = (replace(lane(name, seconds), peaks={8: peak}) for name, seconds, peak in RACE)
    assert fastest([mnn, onnx, slow], 8) == "onnx"
    assert fastest([replace(onnx, seconds={8: [1.03]}), mnn, slow], 8) == "mnn"


def test_once_counts_the_time_to_load() -> None:
    slow, quick = replace(lane("openvino", 1.0), load=3.0), replace(lane("onnx", 2.0), load=0.5)
    assert fastest([slow, quick], 8) == "openvino"
    assert fastest([slow, quick], 8, once=True) == "onnx"


RACE = (("mnn", 1.0, 300), ("onnx", 1.01, 100), ("openvino", 1.03, 50))


def test_without_an_engine_there_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^no engine runs this model here \(onnx: gone; mnn: not timed\)$"):
        fastest([lane("onnx", 1, error="gone"), lane("mnn")], 8)


def test_the_slowest_of_a_hundred() -> None:
    assert lane("onnx", *range(1, 101)).slowest(8) == 100
    assert lane("onnx", *range(1, 201)).slowest(8) == 199
    assert lane("onnx", 5.0, 7.0, 6.0).slowest(8) == 7


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("wrong", "its answers differ from those of the file's own engine by 1 of the largest, above 0.001"),
        ("no numbers", "its answers are no numbers, or have another shape than those of the file's own engine"),
        ("dies", "its process was ended by SIGSEGV"),
        ("refuses", "cannot load it"),
    ],
)
@pytest.mark.usefixtures("log")
def test_who_is_out_and_why(kind: str, error: str) -> None:
    """However fast: others go on without it."""
    lanes = lanes_of("0.2", kind, "0.1")
    assert [each.error for each in lanes] == [None, error, None]
    assert fastest(lanes, 8) == "openvino"
    assert lanes[0].difference == 0
    assert lanes[0].load == 0.5
    assert (lanes[0].memory, lanes[0].peaks) == (1000, {8: 3000})


@pytest.mark.usefixtures("log")
def test_without_the_first_the_next_is_what_others_are_compared_with() -> None:
    lanes = lanes_of("refuses", "0.2", "wrong")
    assert [each.error is None for each in lanes] == [False, True, False]
    lanes = lanes_of("refuses", "dies")
    assert [each.error is None for each in lanes] == [False, False]


@pytest.mark.usefixtures("log")
def test_an_engine_that_does_not_start_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "START_SECONDS", 0.1)
    (only,) = lanes_of("hangs")
    assert only.error == "its process gave no answer in 0 seconds"


def test_turns_rotate(log: Path) -> None:
    told: list[str] = []
    lanes_of("0.3", "0.4", "0.5", rounds=3, say=told.append)
    turns = [line.rpartition(" ")[2] for line in told if line.startswith("batches")]
    order = ["torch", "onnx", "openvino"]
    assert turns == [*order, *order[1:], *order[:1], *order[2:], *order[:2]]
    assert log.read_text().count('"times": 1}') == 12  # one run of each ahead


@pytest.mark.usefixtures("log")
def test_short_runs_are_many_and_the_first_of_a_turn_does_not_count() -> None:
    lanes = lanes_of("0.01", "0.3")
    assert [len(each.seconds[8]) for each in lanes] == [3 * 25, 3 * 1]


def test_workers_end_when_a_race_is_stopped(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[worker.Worker] = []

    class Noted(worker.Worker):
        def __init__(self, threads: int) -> None:
            super().__init__(threads)
            made.append(self)

    def stop(text: str) -> None:
        if text.startswith("batches"):
            raise KeyboardInterrupt

    monkeypatch.setattr(racing, "Worker", Noted)
    with pytest.raises(KeyboardInterrupt):
        lanes_of("0.3", "0.4", say=stop)
    assert [each.process.poll() is None for each in made] == [False, False]
    assert log.exists()


def test_the_real_engines_agree(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(random_model("resnet8-cifar"), path)
    source = read(path)
    names = [name for name in RUNS[".safetensors"] if version(name) is not None]
    entries = [Entry(name, path, prepared(source, name, tmp_path)) for name in names]
    lanes = race(entries, [4, 1, 4], threads=1, seconds=0)
    assert [(each.engine, each.error) for each in lanes] == [(name, None) for name in names]
    assert all(list(each.seconds) == [1, 4] for each in lanes)
    assert max(each.difference or 0 for each in lanes) < 1e-3
    assert fastest(lanes, 4) in names
