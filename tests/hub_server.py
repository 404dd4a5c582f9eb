"""A small stand-in for the Hugging Face hub on this machine: repositories of a few files, asked by the real client."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMITS = {"main": "a" * 40, "v1": "b" * 40}  # of every repository


@contextmanager
def hub(
    repositories: Mapping[str, Mapping[str, Mapping[str, bytes]]], gated: str = ""
) -> Iterator[tuple[str, list[str]]]:
    """Its address and the paths that are asked for; `repositories` are name to revision to file to content."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def refuse(self, code: int, error: str) -> None:
            self.send_response(code)
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", error)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            parts = self.path.strip("/").split("/")
            if len(parts) != 5 or parts[2] != "resolve":
                return self.refuse(404, "EntryNotFound")
            name, revision, file = "/".join(parts[:2]), parts[3], parts[4]
            revision = {commit: known for known, commit in COMMITS.items()}.get(revision, revision)
            if name == gated:
                return self.refuse(403, "GatedRepo")
            if name not in repositories:
                return self.refuse(404, "RepoNotFound")
            if revision not in repositories[name]:
                return self.refuse(404, "RevisionNotFound")
            if file not in repositories[name][revision]:
                return self.refuse(404, "EntryNotFound")
            data = repositories[name][revision][file]
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMITS[revision])
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)
            return None

    with answering(Handler) as address:
        yield address, asked


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a web server in a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
