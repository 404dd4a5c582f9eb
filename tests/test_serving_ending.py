"""Reloading, versions, and the end of a server: nothing is dropped."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs resnetkit[serve]")

from resnetkit.errors import UserError
from resnetkit.serving.limits import Limits
from resnetkit.serving.running import Asked, open_server
from serving_samples import Gate, in_background, model_file, png, serving, stub_server, until

TOKEN = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("limits")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return model_file(folder / "pets.safetensors")


def test_a_reload_drops_nothing_and_a_damaged_file_changes_nothing(folder: Path, tmp_path: Path) -> None:
    path = model_file(tmp_path / "pets.safetensors", seed=1)
    lines: list[str] = []
    asked = Asked((str(path),), port=0, engine="torch", token=TOKEN, limits=Limits(drain=0.0))
    bearer = {"authorization": f"Bearer {TOKEN}"}
    data = png(folder)
    with serving(open_server(asked, lines.append, lines.append), lines) as running:
        first = running.post("/predict", data, **bearer).json
        stop, seen = threading.Event(), set[tuple[int, str]]()

        def ask() -> None:
            while not stop.is_set():
                answer = running.post("/predict", data, **bearer)
                seen.add((answer.status, answer.json.get("version", "")))

        asking = [in_background(ask) for _ in range(2)]
        reload = "/v2/repository/models/pets/load"
        assert running.post(reload, **bearer).status == 200
        again = running.post("/predict", data, **bearer).json  # in other batches, so the last bits may be others
        assert again["version"] == first["version"], "the same file is the same version"
        model_file(path, seed=2)
        assert running.post(reload, b"{}", **bearer).status == 200
        second = running.post("/predict", data, **bearer).json
        assert second["version"] != first["version"]
        path.write_bytes(path.read_bytes()[:-100])
        answer = running.post(reload, **bearer)
        assert (answer.status, str(tmp_path) in answer.error) == (400, False)
        assert any("not loaded anew" in line for line in running.lines)
        assert running.post("/predict", data, **bearer).json["version"] == second["version"]
        assert running.post("/v2/repository/models/cats/load", **bearer).status == 404
        assert running.post(reload, b'{"parameters": {"file": "x"}}', **bearer).status == 400
        stop.set()
        for value in asking:
            value()
    assert seen == {(200, first["version"]), (200, second["version"])}, [line for line in lines if "Traceback" in line]


def test_without_a_token_nobody_reloads(model: Path) -> None:
    with stub_server(model) as running:
        assert running.post("/v2/repository/models/pets/load").status == 403


@pytest.mark.slow
def test_versions_and_names(folder: Path, tmp_path: Path) -> None:
    old, new = model_file(tmp_path / "old.safetensors", seed=1), model_file(tmp_path / "new.safetensors", seed=2)
    asked = Asked((f"pets={old}", f"pets={new}", f"cats={old}"), port=0, engine="torch", limits=Limits(drain=0.0))
    with serving(open_server(asked, lambda _: None, lambda _: None)) as running:
        versions = running.get("/v2/models/pets").json["versions"]
        assert len(versions) == 2
        data = png(folder)
        answers = [running.post(f"/predict?model=pets&version={each}", data).json for each in versions]
        assert [each["version"] for each in answers] == versions
        assert answers[0]["predictions"] != answers[1]["predictions"]
        assert running.post("/predict", data).json == answers[1], "the first name, its last version"
        assert running.post("/predict?model=cats", data).json["predictions"] == answers[0]["predictions"]
    with pytest.raises(UserError, match="already there"):
        open_server(Asked((f"pets={old}", f"pets={old}"), port=0, engine="torch"), lambda _: None, lambda _: None)


def test_an_end_in_order(model: Path, folder: Path) -> None:
    """Not ready, but what comes is answered; then what has begun is answered, and nobody is dropped."""
    gate = Gate()
    with stub_server(model, gate, limits=Limits(drain=0.3)) as running:
        data = png(folder)
        waiting = [in_background(lambda: running.post("/predict", data)) for _ in range(3)]
        until(lambda: running.server.service.models.find("pets").admission.under_way == 3)
        loop = running.server.uvicorn.servers[0].get_loop()
        loop.call_soon_threadsafe(running.server.stop)
        until(lambda: running.get("/v2/health/ready").status == 503)
        answer = running.get("/v2/health/live")
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        until(lambda: running.server.uvicorn.should_exit)
        gate.go.set()
        assert [value().status for value in waiting] == [200, 200, 200]  # type: ignore[attr-defined]


def test_the_command_answers_reloads_and_ends(folder: Path, tmp_path: Path) -> None:
    path = model_file(tmp_path / "pets.safetensors")
    command = [sys.executable, "-m", "resnetkit", "serve", str(path), "--port", "0", "--engine", "torch"]
    with subprocess.Popen([*command, "--limit", "drain=0.01"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            ready = next(line for line in process.stderr if line.startswith("ready: "))
            port = int(ready.rsplit(":", 1)[1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("POST", "/predict", png(folder))
            assert connection.getresponse().status == 200
            connection.close()
            os.kill(process.pid, signal.SIGHUP)
            assert any("no file has changed" in line for line in process.stderr)
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_what_the_command_refuses(resnet: Callable[..., tuple[int, str, str]], folder: Path, model: Path) -> None:
    for line, sentence in {
        ("nope.safetensors",): "nope.safetensors",
        (str(model), "--limit", "bdy=1"): "did you mean 'body'",
        (str(model), "--token-file", str(folder / "none")): "cannot be read",
        (str(model), "--port", "70000"): "70000 is not in the range",
        (str(model), "--host", "no.such.host.invalid"): "no address of this machine",
    }.items():
        code, out, err = resnet("serve", *line)
        assert (code, out) == (2, "")
        assert sentence in err
    bad = np.zeros(10, np.uint8).tobytes()
    (folder / "bad.safetensors").write_bytes(bad)
    assert resnet("serve", str(folder / "bad.safetensors"))[0] == 2
