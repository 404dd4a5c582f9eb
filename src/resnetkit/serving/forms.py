"""The files of a form (multipart/form-data, RFC 7578), from a body that is in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from resnetkit.serving.limits import Refused


@dataclass
class Part:
    headers: dict[str, bytes] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)


class Parts:
    """What the parser tells, put together. It bounds the headers of a part itself."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.found: list[Part] = []
        self.name, self.value = b"", b""
        self.ended = False

    def on_part_begin(self) -> None:
        if len(self.found) == self.most:
            raise too_many(self.most)
        self.found.append(Part())

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.found[-1].pieces.append(data[start:end])

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def on_header_end(self) -> None:
        self.found[-1].headers[self.name.decode("latin-1").lower()] = self.value
        self.name = self.value = b""

    def on_end(self) -> None:
        self.ended = True


def too_many(most: int) -> Refused:
    return Refused(413, f"too many pictures in one request: {most:,} may be", reason="batch")


def files_of(body: bytes, content_type: str, most: int) -> list[tuple[str, bytes]]:
    """(file name, bytes) of each file in the form, in order. Raises Refused: no form, or more than `most`."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:  # RFC 2046
        raise Refused(400, "the form states no usable boundary", reason="form")
    parts = Parts(most)
    calls: Any = {name: getattr(parts, name) for name in dir(parts) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, calls)
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise Refused(400, "the form is damaged", reason="form") from None
    if not parts.ended:
        raise Refused(400, "the form is cut off", reason="form")
    found = []
    for part in parts.found:
        _, about = parse_options_header(part.headers.get("content-disposition", b""))
        if b"filename" not in about:
            name = about.get(b"name", b"").decode("utf-8", "replace")[:64]
            raise Refused(400, f"field {name!r} of the form is no file; settings belong in the address", reason="form")
        found.append((about[b"filename"].decode("utf-8", "replace")[:255], b"".join(part.pieces)))
    if not found:
        raise Refused(400, "the form has no picture", reason="form")
    return found
