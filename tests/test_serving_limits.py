"""Each limit of a server, its answer, and that the next request is answered. No test measures time."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs resnetkit[serve]")

from resnetkit.errors import UserError
from resnetkit.serving.limits import Limits
from resnetkit.serving.running import listen, token_of
from serving_samples import Gate, Running, form, in_background, model_file, png, stub_server, until

TOKEN = "0123456789abcdef0123"
GET = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("limits")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return model_file(folder / "pets.safetensors")


@pytest.fixture(scope="module")
def small(model: Path) -> Iterator[Running]:
    """A server with limits that a test can reach."""
    limits = Limits(
        body=4000, json=1000, pixels=20_000, batch=3, headers=2048, body_seconds=0.2, body_rate=1 << 20,
        header_seconds=0.3, idle=0.2, drain=0.0,
    )  # fmt: skip
    with stub_server(model, limits=limits) as running:
        yield running


# What one request may take


def test_the_body(small: Running) -> None:
    said = small.say(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4001\r\n\r\n", more=True)
    assert b" 413 " in said, "refused before it was sent"
    assert b"4,000 bytes may be" in said
    chunks = b"".join(b"3e8\r\n" + b"x" * 1000 + b"\r\n" for _ in range(5)) + b"0\r\n\r\n"
    said = small.say(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    assert b" 413 " in said


def test_pixels_before_anything_is_decoded(small: Running, folder: Path) -> None:
    from PIL import Image

    Image.new("L", (200, 101)).save(folder / "wide.png")
    answer = small.post("/predict", (folder / "wide.png").read_bytes())
    assert (answer.status, answer.error) == (400, "too large: 20,200 pixels, and 20,000 may be")


def test_a_jpeg_of_thousands_of_scans(small: Running, folder: Path) -> None:
    from PIL import Image

    Image.new("RGB", (140, 140)).save(folder / "p.jpg", progressive=True, quality=1)
    data = (folder / "p.jpg").read_bytes()
    at = data.rindex(b"\xff\xda")
    bomb = data[:at] + data[at:-2] * 40 + data[-2:]
    assert small.post("/predict", data).status == 200
    assert "takes too much work" in small.post("/predict", bomb).error


def test_pictures_in_a_request(small: Running, folder: Path) -> None:
    data = png(folder, size=(4, 4))
    body, kind = form([("a", data)] * 4)
    answer = small.post("/predict", body, content_type=kind)
    assert (answer.status, "3 may be" in answer.error) == (413, True)
    asked = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [4], "data": ["aaaa"] * 4}]}
    assert small.post("/v2/models/pets/infer", json.dumps(asked).encode()).status == 413


def test_json(small: Running) -> None:
    answer = small.post("/v2/models/pets/infer", b"[" * 1001)
    assert (answer.status, "send binary data" in answer.error) == (413, True)
    assert small.post("/v2/models/pets/infer", b"[" * 999).error == "the request is no JSON"


def test_compressed_bodies(small: Running) -> None:
    assert small.post("/predict", b"x", content_encoding="gzip").status == 415


def test_headers(small: Running) -> None:
    said = small.say(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 3000 + b"\r\n\r\n")
    assert b" 431 " in said, "in one piece"
    with socket.create_connection(("127.0.0.1", small.port), timeout=20) as talk:
        for _ in range(4):  # in pieces
            talk.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 3000)
            if said := talk.recv(4096):
                break
    assert said.startswith(b"HTTP/1.1 400 ")
    assert b" 400 " in small.say(b"hello\r\n\r\n")


# What a slow client may take


def test_headers_that_do_not_come(small: Running) -> None:
    said = small.say(b"GET / HTTP/1.1\r\nHost: loc", more=True)
    assert said.startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_asks_for_nothing(small: Running) -> None:
    assert small.say(b"", more=True) == b""
    assert small.say(GET, more=True).count(b"HTTP/1.1 200") == 1


def test_a_body_that_stops(small: Running) -> None:
    said = small.say(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc", more=True)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert small.server.service.bodies.taken == 0


def test_a_body_that_drips(small: Running) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=20) as talk:
        talk.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        talk.settimeout(0.02)
        said = b""
        for _ in range(1000):  # a byte now and then keeps no place
            try:
                talk.sendall(b"x")
                said = talk.recv(4096)
                break
            except TimeoutError:
                continue
        assert said.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_takes_no_answer(model: Path) -> None:
    limits = Limits(body=1000, body_seconds=0.1, body_rate=1 << 20, answer=0.2, heat=0.2, header_seconds=0.2, drain=0.0)
    with stub_server(model, limits=limits) as running:
        with socket.socket() as talk:
            talk.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            talk.connect(("127.0.0.1", running.port))
            talk.sendall(GET.replace(b"/v2/health/live", b"/metrics") * 2000)  # and reads nothing
            until(lambda: running.server.uvicorn.server_state.connections)
            until(lambda: not running.server.uvicorn.server_state.connections)
        assert running.get("/v2/health/live").status == 200


# What all together may take


def test_the_queue(model: Path, folder: Path) -> None:
    gate = Gate()
    with stub_server(model, gate, limits=Limits(queue=2, drain=0.0)) as running:
        data = png(folder)
        waiting = [in_background(lambda: running.post("/predict", data).status) for _ in range(2)]
        until(lambda: running.server.service.models.find("pets").admission.under_way == 2)
        answer = running.post("/predict", data)
        assert (answer.status, answer.error) == (503, "too many pictures are waiting")
        assert int(answer.headers["retry-after"]) >= 1
        assert running.get("/v2/health/live").status == 200
        gate.go.set()
        assert [value() for value in waiting] == [200, 200]
        assert running.post("/predict", data).status == 200


def test_latency_is_foreseen(model: Path, folder: Path) -> None:
    """Where a picture takes 0.3 s, a second one would not be answered within 0.5 s."""
    gate = Gate()
    with stub_server(model, gate, limits=Limits(latency=0.5, drain=0.0), seconds=0.3) as running:
        waiting = in_background(lambda: running.post("/predict", png(folder)).status)
        assert gate.begun.acquire(timeout=20)
        assert running.post("/predict", png(folder, 1)).status == 503
        gate.go.set()
        assert waiting() == 200


def test_an_answer_that_does_not_come(model: Path, folder: Path) -> None:
    gate = Gate()
    with stub_server(model, gate, limits=Limits(answer=0.1, drain=0.0)) as running:
        answer = running.post("/predict", png(folder))
        assert (answer.status, answer.error) == (503, "there was no answer in time")
        gate.go.set()
        assert running.post("/predict", png(folder)).status == 200


def test_connections(model: Path) -> None:
    with stub_server(model, limits=Limits(connections=2, drain=0.0)) as running:
        with (
            socket.create_connection(("127.0.0.1", running.port)),
            socket.create_connection(("127.0.0.1", running.port)),
        ):
            until(lambda: len(running.server.uvicorn.server_state.connections) == 2)
            said = running.say(b"", more=True)
            assert said.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in said
        until(lambda: not running.server.uvicorn.server_state.connections)
        assert running.get("/v2/health/live").status == 200


def test_connections_and_requests_of_an_address(model: Path, folder: Path) -> None:
    with stub_server(model, limits=Limits(address_connections=1, drain=0.0)) as running:
        first = socket.create_connection(("127.0.0.1", running.port))
        until(lambda: running.server.uvicorn.server_state.connections)
        assert running.say(b"", more=True).startswith(b"HTTP/1.1 429 ")
        first.close()
    gate = Gate()
    with stub_server(model, gate, limits=Limits(address_requests=1, drain=0.0)) as running:
        waiting = in_background(lambda: running.post("/predict", png(folder)).status)
        assert gate.begun.acquire(timeout=20)
        assert running.get("/v2/health/live").status == 429
        gate.go.set()
        assert waiting() == 200
        assert running.get("/v2/health/live").status == 200


def test_memory_for_bodies(model: Path) -> None:
    with stub_server(model, limits=Limits(bodies=10, drain=0.0)) as running:
        assert running.post("/predict", b"x" * 11).status == 503
        assert running.post("/predict", b"x" * 10).status == 400
        assert running.server.service.bodies.taken == 0


# Who may ask


def test_a_token(model: Path, folder: Path) -> None:
    with stub_server(model, token=TOKEN) as running:
        data = png(folder)
        for given in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": f"Basic {TOKEN}"},
            {"authorization": ""},
        ):
            answer = running.post("/predict", data, **given)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        for path in ("/metrics", "/docs", "/openapi.json", "/v2", "/v2/models/pets", "/nope"):
            assert running.get(path).status == 401, path
        for path in ("/", "/static/serve.js", "/v2/health/live", "/v2/health/ready"):
            assert running.get(path).status == 200, path
        assert running.post("/predict", data, authorization=f"bearer {TOKEN}").status == 200
        assert not any(TOKEN in line for line in running.lines)


def test_a_token_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "good").write_text(f"{TOKEN}\n")
    assert token_of(tmp_path / "good") == TOKEN
    for number, text in enumerate(("", "short", "0123456789 0123456789")):
        (tmp_path / f"{number}").write_text(text)
        with pytest.raises(UserError, match="at least 16 letters"):
            token_of(tmp_path / f"{number}")
    with pytest.raises(UserError, match="cannot be read"):
        token_of(tmp_path / "none")


def test_other_names_and_pages_of_others(model: Path, folder: Path) -> None:
    with stub_server(model) as running:
        assert running.get("/v2/health/live", host="evil.example").status == 421
        assert running.get("/v2/health/live", host=f"localhost:{running.port}").status == 200
        answer = running.post("/predict", png(folder), origin="http://evil.example")
        assert (answer.status, answer.error) == (403, "pages of other servers may not ask")
        answer = running.post("/predict", png(folder), origin=f"http://127.0.0.1:{running.port}")
        assert answer.status == 200
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert running.ask("OPTIONS", "/predict", origin="http://evil.example").status == 403


def test_headers_of_every_answer(model: Path) -> None:
    with stub_server(model) as running:
        for path in ("/", "/nope", "/v2"):
            headers = running.get(path).headers
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in policy
            assert "http" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert "server" not in headers
            assert len(headers["x-request-id"]) == 16


def test_every_limit_stands_in_the_docs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "security.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(Limits):
        assert f"| `{field.name}` | {field.default:g} " in page.replace(f"{field.default}", f"{field.default:g}"), field


def test_a_port_that_is_taken() -> None:
    taken = listen("127.0.0.1", 0)
    taken.listen()
    try:
        with pytest.raises(UserError, match="choose another with --port"):
            listen("127.0.0.1", taken.getsockname()[1])
    finally:
        taken.close()
    with pytest.raises(UserError, match="no address of this machine"):
        listen("no.such.host.invalid", 0)
