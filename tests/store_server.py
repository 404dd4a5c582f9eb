"""A store on this machine: moto as S3, and between it and its reader a proxy that counts, delays and spoils answers."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import uuid4

GIVEN = {"connection", "transfer-encoding", "content-length", "expect"}
DROPPED = {"connection", "transfer-encoding", "content-length", "keep-alive", "server", "date"}
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def upload(address: str, data: bytes = b"") -> None:
    """Put an object that everybody may read, or make a bucket."""
    headers = {"Content-Type": "application/octet-stream", "x-amz-acl": "public-read"}
    urlopen(Request(address, data, headers, method="PUT"), timeout=10).close()


@contextmanager
def server(command: Callable[[str], list[str]], folder: Path | None = None) -> Iterator[str]:
    """The address of a server in a process of its own, which `command` starts at a port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command(str(port)), stdout=quiet, stderr=quiet, env=os.environ | CREDENTIALS, cwd=folder)
    try:
        for _ in range(300):
            try:
                urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except HTTPError:  # it answers
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def moto() -> AbstractContextManager[str]:
    """The address of a new, empty S3 in a process of its own."""
    return server(lambda port: [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port])


@dataclass
class Proxy:
    """What goes through, and what to do to it.

    faults  for the next requests of a kind, such as {"GET": ["503", "half"]}: a status; "half" cuts the body,
            "stall" sends none, "reset" closes without an answer, "deaf" does so after it was done, "wrong" turns one
            byte, "long" ignores the range
    forever one fault for all requests that have none of their own
    meeting answers to GET wait until so many readers wait, and fail where they do not come
    silent  headers that answers lack
    ignored headers of questions that the store takes no notice of
    wait    seconds before each answer
    """

    address: str
    behind: str
    bucket: str = field(default_factory=lambda: f"bucket-{uuid4().hex}")
    faults: dict[str, list[str]] = field(default_factory=dict)
    forever: str = ""
    meeting: threading.Barrier | None = None
    silent: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    wait: float = 0.0
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def add(self, name: str, data: bytes) -> str:
        """An object, put past the proxy; its name as users write it."""
        upload(f"{self.behind}/{self.bucket}/{name}", data)
        return f"s3://{self.bucket}/{name}"

    def web(self, name: str) -> str:
        """The same object at a plain web server."""
        return f"{self.address}/{self.bucket}/{name}"

    def count(self, method: str) -> int:
        return sum(line.startswith(method) for line in self.asked)


class Way(BaseHTTPRequestHandler):
    """One request on its way through a proxy."""

    protocol_version = "HTTP/1.1"  # botocore waits for "100 Continue"
    state: Proxy

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        state = self.state
        with state.lock:
            state.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
            state.headers.append({name.lower(): value for name, value in self.headers.items()})
            mine = state.faults.get(self.command, [])
            fault = mine.pop(0) if mine else state.forever
        try:
            if state.meeting is not None and self.command == "GET":
                state.meeting.wait(10)
            state.ended.wait(state.wait)
            self.answer(fault)
        except (BrokenPipeError, ConnectionResetError, threading.BrokenBarrierError, http.client.IncompleteRead):
            pass  # the reader gave up, or others did not come, or the server behind broke off

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - the names that http.server looks for

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, fault: str) -> None:
        self.close_connection = True
        given = self.body()
        if fault == "reset":
            return
        if fault == "stall":
            self.state.ended.wait(30)
            return
        if fault.isdigit():
            self.send_response(int(fault), "as planned")
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()
            return
        self.hand_on(fault, given)

    def hand_on(self, fault: str, given: bytes) -> None:
        """What the server behind says, perhaps spoilt."""
        dropped = {*GIVEN, *self.state.ignored}
        lines = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        if fault == "long":
            lines.pop("Range", None)
        connection = http.client.HTTPConnection(self.state.behind.removeprefix("http://"), timeout=30)
        connection.request(self.command, self.path, body=given or None, headers=lines)
        found = connection.getresponse()
        body = found.read()
        connection.close()
        if fault == "deaf":
            return
        self.send_response(found.status, found.reason)
        for name, value in found.getheaders():
            if name.lower() not in (*DROPPED, *self.state.silent):
                self.send_header(name, value)
        self.send_header("Content-Length", found.headers.get("Content-Length", str(len(body))))
        self.send_header("Connection", "close")
        self.end_headers()
        if fault == "half":
            body = body[: len(body) // 2]
        if fault == "wrong" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    request_queue_size = 64


@contextmanager
def proxy(behind: str) -> Iterator[Proxy]:
    """A proxy before the server at this address."""
    handler = type("Handler", (Way,), {})
    server = Server(("127.0.0.1", 0), handler)
    state = Proxy(f"http://127.0.0.1:{server.server_address[1]}", behind)
    handler.state = state
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
