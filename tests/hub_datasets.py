"""A small stand-in for a data set on the Hugging Face hub, on this machine, asked by the hub's real client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from hub_server import answering


@contextmanager
def hub_dataset(name: str, files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Its address, and what is asked for, with ranges; `name` is user/name, `files` path to content."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def send(self, code: int, body: bytes, **headers: str) -> None:
            self.send_response(code)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Range', '')}".strip())
            path, query = unquote(urlsplit(self.path).path), urlsplit(self.path).query
            tree = f"/api/datasets/{name}/tree/main"
            if path.startswith(tree):
                whole = parse_qs(query).get("recursive") == ["true"]
                self.send(200, json.dumps(listed(files, path.removeprefix(tree).strip("/"), whole)).encode())
            elif path == f"/api/datasets/{name}":
                self.send(200, json.dumps({"id": name, "sha": "a" * 40}).encode())
            elif (file := path.removeprefix(f"/datasets/{name}/resolve/main/")) in files:
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                self.send(206, files[file][int(first) : int(last) + 1])
            else:
                self.send(404, b"", X_Error_Code="RepoNotFound")

    with answering(Handler) as address:
        yield address, asked


def listed(files: Mapping[str, bytes], folder: str, whole: bool) -> list[dict[str, object]]:
    """What lies in a folder, as the hub says it; `whole`: and in those below."""
    start = f"{folder}/" if folder else ""
    found: dict[str, dict[str, object]] = {}
    for path, content in files.items():
        if not path.startswith(start):
            continue
        parts = path.removeprefix(start).split("/")
        for depth in range(1, len(parts) if whole else 2):
            if depth < len(parts):
                below = start + "/".join(parts[:depth])
                found[below] = {"type": "directory", "path": below, "oid": "d" * 40, "size": 0}
        if whole or len(parts) == 1:
            oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            found[path] = {"type": "file", "path": path, "oid": oid, "size": len(content)}
    return list(found.values())
