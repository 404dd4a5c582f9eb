"""What `resnet evaluate` hands to the functions below it and shows of what they give back."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnetkit import evaluation, submitting
from resnetkit.data.transforms import Preprocess
from resnetkit.evaluation import Result
from resnetkit.model import ResNet, architecture
from resnetkit.protocol import Protocol, Scoring
from resnetkit.submitting import Submission
from resnetkit.terminal import scoring, scoring_line
from resnetkit.weights import ModelFile, save_model
from samples import RESULT
from terminals import all_of

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What evaluate and submit are called with; nothing is scored."""
    made: list[Any] = []

    def evaluate(*arguments: Any, **named: Any) -> Result:
        made.append((arguments, named))
        return RESULT

    def submit(*arguments: Any, **named: Any) -> Submission:
        made.append((arguments, named))
        return Submission("out.txt", 4000, RESULT if named["split"] == "val" else None)

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    monkeypatch.setattr(submitting, "submit", submit)
    return made


def test_the_options_of_a_protocol(calls: list[Any], resnet: Run) -> None:
    assert resnet("evaluate", "m", "x", "--protocol", "dense", "--scales", "224, 256", "--size", "192")[0] == 0
    assert (
        resnet("evaluate", "m", "x", "--protocol", "10-crop", "--crop", "0.9", "--ensemble", "a", "--ensemble", "b")[0]
        == 0
    )
    assert resnet("evaluate", "m", "x", "--labels", "numbers", "--json")[0] == 0
    assert [named["protocol"] for _, named in calls] == [
        Protocol("dense", (224, 256), 192),
        Protocol("10-crop", crop=0.9),
        Protocol(),
    ]
    assert [named["ensemble"] for _, named in calls] == [(), ("a", "b"), ()]
    assert [named["labels"] for _, named in calls] == [None, None, "numbers"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "11-crop"], "resnet: invalid value for '--protocol': '11-crop' is not one of '1-crop', "),
        (["--scales", "224"], "resnet: scales: 1-crop has none; leave them out, or take the protocol dense\n"),
        (
            ["--protocol", "dense", "--scales", "224.5"],
            "resnet: --scales 224.5: must be whole numbers between commas, ",
        ),
        (["--protocol", "dense", "--scales", "224,,256"], "resnet: --scales 224,,256: must be whole numbers between"),
        (["--protocol", "dense", "--scales", ""], "resnet: --scales : must be whole numbers between commas"),
        (["--crop", "2"], "resnet: crop 2: must be in (0, 1], such as 0.875 for 224 of 256\n"),
        (["--submission", "o", "--labels", "numbers"], "resnet: --submission: needs DATA, and goes with neither "),
        (
            ["--submission", "o", "--bad", "skip"],
            "resnet: --submission: needs DATA, and goes with neither --labels nor",
        ),
    ],
)
def test_wrong_options(options: list[str], message: str, calls: list[Any], resnet: Run) -> None:
    code, out, err = resnet("evaluate", "m", "x", *options)
    assert (code, out, calls) == (2, "", [])
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_submission(calls: list[Any], resnet: Run) -> None:
    line = ["evaluate", "m", "imagenet:x", "--submission", "out.txt", "--split"]
    assert resnet(*line, "test") == (0, "out.txt: answers for 4,000 pictures\n", "")
    _, out, _ = resnet(*line, "val")
    assert out.startswith("out.txt: answers for 4,000 pictures\ntop-1 66.67 % (2 of 3;")
    assert json.loads(resnet(*line, "test", "--json")[1]) == {"submission": "out.txt", "lines": 4000, "result": None}
    assert Result.from_dict(json.loads(resnet(*line, "val", "--json")[1])["result"]) == RESULT
    assert {arguments for arguments, _ in calls} == {("m", "imagenet:x", "out.txt")}
    assert not {"bad", "labels"} & calls[0][1].keys()


# Progress


@pytest.mark.parametrize(
    ("event", "seconds", "line"),
    [
        (Scoring(1024, 50000, 1, 1), 10.0, "scoring 1,024 of 50,000 pictures   8 min left"),
        (Scoring(1024, 50000, 1, 1), 1.0, "scoring 1,024 of 50,000 pictures"),
        (Scoring(50, 100, 1, 2), 30.0, "scoring 50 of 100 pictures, model 1 of 2   2 min left"),
        (Scoring(100, 100, 2, 2), 60.0, "scoring 100 of 100 pictures, model 2 of 2   0 s left"),
    ],
)
def test_the_line_of_progress(event: Scoring, seconds: float, line: str) -> None:
    assert scoring_line(event, seconds) == line


def test_no_progress_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with scoring() as show:
        show(Scoring(1, 2, 1, 1))
    assert capfd.readouterr() == ("", "")


def test_progress_on_a_terminal_leaves_standard_output_alone(tmp_path: Path) -> None:
    for i in range(3):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)).save(folder / f"{i}.png")
    network = ResNet(architecture("resnet8-cifar", classes=2)).eval()
    preprocess = Preprocess(8, "shorter", 8, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)
    save_model(ModelFile(network, ("a", "b"), preprocess), tmp_path / "m.safetensors")
    command = [sys.executable, "-m", "resnetkit", "evaluate", "m.safetensors", "photos", "--json"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path, env=environment, check=False)
    os.close(theirs)
    shown = all_of(ours).decode()
    assert done.returncode == 0
    assert json.loads(done.stdout)["n"] == 3
    assert "scoring 3 of 3 pictures" in shown
