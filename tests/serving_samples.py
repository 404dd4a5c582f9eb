"""A server on a port of its own, in a thread of the test's process, and what to send to it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prediction_samples import CLASSES, COLOUR, logits, opened, picture
from resnetkit.engines.engine import Logits, Pixels
from resnetkit.model import ResNet, architecture
from resnetkit.serving.batching import Admission, Batcher
from resnetkit.serving.hosting import Hosted, Models, Place
from resnetkit.serving.limits import Limits
from resnetkit.serving.metrics import Metrics
from resnetkit.serving.running import Asked, Server, listen
from resnetkit.weights import ModelFile, save_model


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        found: str = self.json["error"]
        return found


@dataclass
class Running:
    """A server that answers, its log, and the port."""

    server: Server
    lines: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.server.listener.getsockname()[1])

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, **headers)

    def post(self, path: str, body: bytes = b"", **headers: str) -> Answer:
        return self.ask("POST", path, body, **headers)

    def say(self, data: bytes, *, more: bool = False) -> bytes:
        """Everything that is answered to bytes as they are, until the other side ends; `more`: this side stays open."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as talk:
            talk.sendall(data)
            if not more:
                talk.shutdown(socket.SHUT_WR)
            found = b""
            while part := talk.recv(65536):
                found += part
            return found


@contextmanager
def serving(server: Server, lines: list[str] | None = None) -> Iterator[Running]:
    """`server` in a thread, until the block ends."""
    loop_of: list[asyncio.AbstractEventLoop] = []
    up = threading.Event()

    async def main() -> None:
        loop_of.append(asyncio.get_running_loop())
        task = asyncio.create_task(server.serve(signals=False))
        while not (server.uvicorn.started or task.done()):
            await asyncio.sleep(0.001)
        up.set()
        await task

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="server")
    thread.start()
    assert up.wait(20)
    try:
        yield Running(server, lines if lines is not None else [])
    finally:
        if thread.is_alive():
            loop_of[0].call_soon_threadsafe(server.stop)
            thread.join(20)
        assert not thread.is_alive()


@contextmanager
def stub_server(
    model: Path,
    run: Callable[[Pixels], Logits] | None = None,
    *,
    limits: Limits | None = None,
    largest: int = 4,
    seconds: float = 1e-4,
    **asked: Any,
) -> Iterator[Running]:
    """A server of one model, `pets`, whose answers are those of a function; it stops without a pause."""
    limits = limits or Limits(drain=0.0)

    def load(place: Place) -> Hosted:
        stub = opened() if run is None else opened(run)
        batcher = Batcher(stub.run, largest)
        return Hosted(place, stub, "abc123", batcher, Admission(limits.latency, limits.queue, largest, seconds))

    lines: list[str] = []
    given = Asked((str(model),), port=0, limits=limits, **asked)
    models = Models([Place("pets", model)], load)
    server = Server(given, listen(given.host, 0), models, Metrics(), lines.append)
    with serving(server, lines) as running:
        yield running


def model_file(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A small untrained model in a file, whose answers differ from picture to picture."""
    torch.manual_seed(seed)
    network = ResNet(architecture("resnet8-cifar", classes=len(CLASSES))).eval()
    pixels = np.random.default_rng(1).integers(0, 256, (64, 1, 1, 3)) + np.zeros((64, 10, 10, 3), int)
    with torch.no_grad():
        logits = network(COLOUR.normalise(torch.from_numpy(pixels.astype(np.uint8))))
        network.fc.weight *= 2 / logits.std()
        network.fc.bias -= 2 * logits.mean(0) / logits.std()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(ModelFile(network, CLASSES, COLOUR, **changes), path)
    return path


def png(folder: Path, seed: int = 0, size: tuple[int, int] = (14, 17)) -> bytes:
    return picture(folder / f"{seed}.png", seed, size).read_bytes()


def form(files: list[tuple[str, bytes]], boundary: str = "xYzZy") -> tuple[bytes, str]:
    """A form with files, and its Content-Type (RFC 7578)."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="picture"; filename="{name}"\r\n'.encode()
        + b"Content-Type: application/octet-stream\r\n\r\n"
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def tensors(name: str, datatype: str, array: Any, **top: Any) -> dict[str, Any]:
    """A request of the Open Inference Protocol as JSON values."""
    data = np.asarray(array)
    given = {"name": name, "datatype": datatype, "shape": list(data.shape), "data": data.tolist()}
    return {"inputs": [given], **top}


class Gate:
    """An engine that waits until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Semaphore(0), threading.Event()

    def __call__(self, pictures: Pixels) -> Logits:
        self.begun.release()
        assert self.go.wait(20)
        return logits(pictures)


def in_background(function: Callable[[], object]) -> Callable[[], object]:
    """Begin it in a thread; what is given back waits for its value."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()

    def value() -> object:
        thread.join(20)
        return found[0]

    return value


def until(condition: Callable[[], object]) -> None:
    for _ in range(4000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not come to that")
