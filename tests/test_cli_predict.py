"""`resnet predict`: lines and JSON as they come, lists of paths, files to go on with, and what stays unloaded."""

from __future__ import annotations

import csv
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prediction_samples import CLASSES, make_model, opened, picture
from resnetkit import cli_predict, exporting, prediction
from resnetkit.cli_predict import listed, progress, progress_line
from resnetkit.prediction import Prediction
from resnetkit.weights import save_model
from terminals import all_of

Run = Callable[..., tuple[int, str, str]]
START = prediction.start

# A process whose model answers slowly; it is killed, listened to and looked at.
STUB = """
import sys, time
sys.path.insert(0, {tests!r})
from prediction_samples import logits, opened
from resnetkit import cli, prediction
def slow(pictures):
    time.sleep({seconds})
    return logits(pictures)
prediction.start = lambda *_: opened(slow)
cli.main(sys.argv[1:])
"""
LOOKED = "single centre crop; shorter side 12 bilinear, centre 10, RGB, mean 0.4 0.5 0.6, std 0.2 0.25 0.3, EXIF on"
SAID = f"{LOOKED}; engine stub (fp32): there is no other\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with m.safetensors and, in photos/, forty pictures; a function answers for the model."""
    save_model(make_model(), tmp_path / "m.safetensors")
    for i in range(40):
        picture(tmp_path / "photos" / f"{i:02}.png", i)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prediction, "start", lambda *_: opened())
    return tmp_path


def process(*arguments: str, seconds: float = 0, **named: Any) -> subprocess.Popen[bytes]:
    code = STUB.format(tests=str(Path(__file__).parent), seconds=seconds)
    return subprocess.Popen([sys.executable, "-c", code, *arguments], **named)


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def from_file(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands on standard input."""
    Path("list").write_bytes(text)
    monkeypatch.setattr(cli_predict, "STDIN", os.open("list", os.O_RDONLY))


# Lines


@pytest.mark.usefixtures("place")
def test_it_goes_on_after_a_bad_picture(resnet: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        Prediction("a\udcff.jpg", "chat 猫", 0.75, (("chat 猫", 0.75), ("dog", 0.25)), None),
        Prediction("b.jpg", None, None, (), "cut short"),
        Prediction("c.jpg", "dog", 1.0, (("dog", 1.0),), None),
        Prediction("d.jpg", None, 0.41, (("cat", 0.41), ("dog", 0.382)), None),
    ]
    monkeypatch.setattr(prediction, "answers", lambda *_: iter([answers[:1], [], answers[1:]]))
    code, out, err = resnet("predict", "m.safetensors", "photos")
    assert out == (
        "a\\xff.jpg: chat 猫 75.0 %  (dog 25.0 %)\nb.jpg: error: cut short\nc.jpg: dog 100.0 %\n"
        "d.jpg: not sure  (cat 41.0 %, dog 38.2 %)\n"
    )
    assert (code, err) == (1, SAID + "resnet: 1 picture could not be read; the reason stands in place of the class\n")
    code, out, err = resnet("predict", "m.safetensors", "photos", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert out.isascii()
    assert found == [answer.to_dict() for answer in answers]
    assert found[0].keys() == {"path", "class", "probability", "top", "error"}
    assert SAID not in err
    answers.pop(1)
    assert resnet("predict", "m.safetensors", "photos")[0] == 0


@pytest.mark.usefixtures("place")
def test_options_reach_the_answers(resnet: Run) -> None:
    line = ["predict", "m.safetensors", "photos/07.png", "--json"]
    usual = json.loads(resnet(*line)[1])
    assert (len(usual["top"]), usual["class"]) == (5, usual["top"][0]["class"])
    above = str(usual["probability"] + 1e-9)
    unsure = json.loads(resnet(*line, "--top", "2", "--min-probability", above)[1])
    assert unsure == usual | {"class": None, "top": usual["top"][:2]}
    assert resnet(*line, "--min-probability", above)[0] == 0


@pytest.mark.usefixtures("place")
def test_wrong_paths_are_named_before_any_work(resnet: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "start", None)
    Path("empty").mkdir()
    for name, reason in (("nowhere.png", "no such file or folder"), ("empty", "holds no pictures")):
        code, out, err = resnet("predict", "m.safetensors", "photos", name, "--out", "a.csv")
        assert (code, out, err) == (2, "", f"resnet: {name}: {reason}\n")
    assert not Path("a.csv").exists()


# A list on standard input


@pytest.mark.usefixtures("place")
def test_a_list_between_other_paths(resnet: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsencode(picture(Path(os.fsdecode(b"caf\xe9.png"))))
    from_file(b"photos/03.png\n\nnowhere.png\nphotos\n" + name, monkeypatch)
    code, out, _ = resnet("predict", "m.safetensors", "photos/39.png", "-", "photos/38.png", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    photos = [f"photos/{i:02}.png" for i in range(40)]
    expected = ["photos/39.png", "photos/03.png", "nowhere.png", *photos, os.fsdecode(name), "photos/38.png"]
    assert [row["path"] for row in found] == expected
    assert {row["path"]: row["error"] for row in found if row["error"]} == {
        "nowhere.png": "cannot be opened: No such file or directory"
    }
    assert code == 1


def test_listed_paths_come_in_batches() -> None:
    reading, writing = os.pipe()
    names = [f"{i}.png" for i in range(35)]
    os.write(writing, "\n".join(names).encode())
    batches = listed(reading)
    assert [next(batches), next(batches)] == [names[:16], names[16:32]]
    assert next(batches) == names[32:34], "what is there, but for the line that is begun"
    assert next(batches) == []
    os.close(writing)
    assert list(batches) == [["34.png"]]
    os.close(reading)


def test_each_line_comes_when_its_picture_does(place: Path) -> None:
    """The next path is written when the answer for the one before is read; so nobody waits for a batch to be full."""
    del place
    with process("predict", "m.safetensors", "-", "--json", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin
        assert running.stdout
        for i in range(5):
            running.stdin.write(f"photos/{i:02}.png\n".encode())
            running.stdin.flush()
            assert select.select([running.stdout], [], [], 60)[0]
            assert json.loads(running.stdout.readline())["path"] == f"photos/{i:02}.png"
        running.stdin.close()
        assert running.stdout.read() == b""
    assert running.returncode == 0


# Files


@pytest.mark.usefixtures("place")
def test_a_file_of_answers(resnet: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["predict", "m.safetensors", "--out", "a.csv", "--top", "2"]
    code, out, err = resnet(*line, "photos")
    assert (code, out, err) == (0, "a.csv: 40 rows\n", SAID)
    found = rows(Path("a.csv"))
    assert found[0] == ["path", "class", "probability", "top2_class", "top2_probability", "error"]
    answers = [json.loads(text) for text in resnet("predict", "m.safetensors", "photos", "--json")[1].splitlines()]
    assert [(row[0], row[1], float(row[2])) for row in found[1:]] == [
        (answer["path"], answer["class"], answer["probability"]) for answer in answers
    ]
    code, out, err = resnet(*line, "photos")
    assert (code, out, err.split(";")[0]) == (2, "", "resnet: a.csv: exists already")
    picture(Path("photos/40.png"))
    from_file(b"photos/03.png\nbad.png\n", monkeypatch)
    code, out, _ = resnet(*line, "--append", "photos", "-")
    assert (code, out) == (1, "a.csv: 2 rows more, 41 were there\n")
    code, out, err = resnet(*line, "--append", "photos", "--json")
    assert (code, out, err) == (0, "", "")
    assert [row[0] for row in rows(Path("a.csv"))[1:]] == [f"photos/{i:02}.png" for i in range(41)] + ["bad.png"]


@pytest.mark.usefixtures("place")
def test_json_and_a_file_together(resnet: Run) -> None:
    code, out, _ = resnet("predict", "m.safetensors", "photos", "--out", "a.csv", "--json")
    assert (code, len(out.splitlines()), len(rows(Path("a.csv")))) == (0, 40, 41)


@pytest.mark.usefixtures("place")
def test_a_parquet_file_knows_its_model(resnet: Run) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, the extra 'parquet'")
    assert resnet("predict", "m.safetensors", "photos", "--out", "a.parquet")[:2] == (0, "a.parquet: 40 rows\n")
    about = json.loads(parquet.read_schema("a.parquet").metadata[b"resnetkit"])
    assert about["protocol"] == SAID.strip()
    other = make_model()
    other.network.fc.bias.data[0] += 1
    save_model(other, Path("n.safetensors"))
    code, _, err = resnet("predict", "n.safetensors", "photos", "--out", "a.parquet", "--append")
    assert (code, err) == (2, "resnet: a.parquet: has the answers of another model; choose another name\n")
    out = resnet("predict", "m.safetensors", "photos", "--out", "a.parquet", "--append")[1]
    assert out == "a.parquet: 0 rows more, 40 were there\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
@pytest.mark.parametrize("out", ["a.csv", "a.parquet"])
def test_stopped_and_gone_on_with(out: str, number: int, code: int, place: Path) -> None:
    if out.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="needs pyarrow, the extra 'parquet'")
    paths = [f"photos/{i:02}.png" for i in range(40)]
    line = ["predict", "m.safetensors", *paths, "--out", out, "--json"]
    with process(*line, seconds=0.5, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout
        shown = [running.stdout.readline()]
        running.send_signal(number)
        shown += running.stdout.readlines()
    assert running.returncode == code
    assert [json.loads(text)["path"] for text in shown] == paths[: len(shown)], "whole lines"
    assert len(shown) < 40
    if number != signal.SIGKILL or out == "a.csv":
        assert place.joinpath(out).exists()
    with process(*line, "--append", stdout=subprocess.PIPE) as again:
        more = (again.stdout or sys.stdin.buffer).readlines()
    assert again.returncode == 0
    assert len(more) <= 40 - len(shown) or number == signal.SIGKILL
    if out == "a.csv":
        assert [row[0] for row in rows(place / out)[1:]] == paths
    else:
        from pyarrow import parquet

        assert parquet.read_table(place / out)["path"].to_pylist() == paths


def test_a_reader_that_goes_away(place: Path) -> None:
    del place
    with process(
        "predict", "m.safetensors", "photos", "--json", seconds=0.2, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout
        assert running.stderr
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 1


# What a person sees


@pytest.mark.parametrize(
    ("done", "total", "seconds", "text"),
    [
        (0, None, 0.0, "0 pictures"),
        (1, None, 0.5, "1 picture   2.0 images/s"),
        (1024, None, 4.0, "1,024 pictures   256 images/s"),
        (1024, 10_240, 1.0, "1,024 pictures   1,024 images/s"),
        (1024, 185_344, 4.0, "1,024 pictures   256 images/s   12 min left"),
    ],
)
def test_the_line_of_progress(done: int, total: int | None, seconds: float, text: str) -> None:
    assert progress_line(done, total, seconds) == text


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    upper, lower = pty.openpty()
    with os.fdopen(lower, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        for hidden in (True, False):
            with progress(None, hidden=hidden) as done:
                done(4 if hidden else 3)
    shown = all_of(upper)
    assert b"3 pictures   " in shown
    assert b"4 pictures   " not in shown


def test_on_a_terminal_answers_are_drawn(place: Path) -> None:
    """Bold, with no line of progress between them; the sentence on how they came about stands on standard error."""
    del place
    upper, lower = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    line = ["predict", "m.safetensors", "photos/00.png", "photos/01.png", "--top", "1"]
    with process(*line, stdout=lower, stderr=lower, env=environment) as running:
        os.close(lower)
        text = b""
        while select.select([upper], [], [], 60)[0]:
            try:
                text += os.read(upper, 1 << 16)
            except OSError:  # the other end is closed
                break
    os.close(upper)
    assert running.returncode == 0
    first, second, third = text.decode().splitlines()
    assert first == SAID.strip()
    assert second.startswith("photos/00.png: \x1b[1m")
    assert third.startswith("photos/01.png: \x1b[1m")


# What is loaded


@pytest.mark.usefixtures("place")
def test_an_exported_file_answers_without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor with anything else that takes long to import; Pillow's readers only for pictures that need them."""
    pytest.importorskip("onnxruntime", reason="needs onnxruntime, the extra 'onnx'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    exporting.export("m.safetensors", "onnx", "m.onnx")
    code = "import sys\ntry:\n import resnetkit.cli; resnetkit.cli.main(sys.argv[1:])\nfinally:\n print(*sys.modules)"
    for more in ([], ["--json"]):
        line = [sys.executable, "-c", code, "predict", "m.onnx", "photos", "--engine", "onnx", *more]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        *lines, modules = done.stdout.splitlines()
        assert len(lines) == 40
        assert set(modules.split()) & {"torch", "rich", "onnx", "pyarrow", "matplotlib", "jinja2"} == set()
    Image.new("RGB", (30, 20), "red").save("red.jpg")
    line = [sys.executable, "-c", code, "predict", "m.onnx", "red.jpg", "--engine", "onnx"]
    assert "PIL.JpegImagePlugin" not in subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    monkeypatch.setattr(prediction, "start", START)
    paths = [f"photos/{i:02}.png" for i in range(40)]
    for path, text, expected in zip(paths, lines, prediction.predict(make_model(), paths), strict=True):
        answer = json.loads(text)
        assert answer["path"] == path
        assert answer["class"] in CLASSES
        assert answer["probability"] == pytest.approx(expected.probability, abs=1e-4)
