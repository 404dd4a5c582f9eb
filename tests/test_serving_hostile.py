"""A seeded slice of what benchmarks/hostile.py sends: nothing of it is a crash or a 500, and the next is answered."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs resnetkit[serve]")

from hostile_samples import bomb, broken_pictures, broken_requests
from resnetkit.serving.limits import Limits
from serving_samples import Running, model_file, png, stub_server, until

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Running]:
    limits = Limits(drain=0.0, header_seconds=0.3, body_seconds=0.3, body_rate=1 << 30, pixels=1_000_000)
    with stub_server(model_file(folder / "pets.safetensors"), limits=limits) as running:
        yield running


def test_broken_pictures(running: Running, folder: Path) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    seen = set()
    for data in broken_pictures(7, 250):
        connection.request("POST", "/predict", data)
        answer = connection.getresponse()
        answer.read()
        seen.add(answer.status)
    connection.close()
    assert seen == {200, 400}
    assert running.post("/predict", png(folder)).status == 200


def test_bombs_are_refused_by_their_header(running: Running) -> None:
    assert "too large: 169,000,000 pixels" in running.post("/predict", bomb(13_000)).error


def test_broken_requests(running: Running, folder: Path) -> None:
    seen = set()
    for data in broken_requests(3, 120, "/v2/models/pets/infer"):
        said = running.say(data)
        seen |= {int(status) for status in STATUS.findall(said)}
        assert b"Traceback" not in said
    assert {400, 404} <= seen
    assert not any(status >= 500 for status in seen), seen
    until(lambda: running.server.service.bodies.taken == 0)
    assert running.post("/predict", png(folder)).status == 200
