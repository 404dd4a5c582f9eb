"""Broken pictures and broken requests without end, by seed."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A PNG that says side x side black pixels, and has the first millions of them in a few kilobytes."""
    rows = zlib.compress(bytes(min(side * (1 + side // 8), 8 << 20)), 1)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def seeds(dice: random.Random) -> list[bytes]:
    """Good pictures of every format and of many modes."""
    pixels = np.frombuffer(dice.randbytes(40 * 30 * 3), np.uint8).reshape(30, 40, 3)
    found = []
    for kind in FORMATS:
        for mode in ("RGB", "L"):
            file = io.BytesIO()
            Image.fromarray(pixels).convert(mode).save(file, kind)
            found.append(file.getvalue())
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    return [*found, file.getvalue()]


def broken_pictures(seed: int, n: int) -> Iterator[bytes]:
    """n pictures: cut, with flipped bits, with bytes put in and taken out, mixed of two, of absurd sizes, or noise."""
    dice = random.Random(seed)
    good = seeds(dice)
    for _ in range(n):
        data = bytearray(dice.choice(good))
        match dice.randrange(7):
            case 0:
                del data[dice.randrange(len(data)) :]
            case 1:
                for _ in range(dice.choice((1, 3, 30))):
                    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            case 2:  # mostly in the header
                at = dice.randrange(min(64, len(data)))
                data[at : at + dice.randrange(8)] = dice.randbytes(dice.randrange(12))
            case 3:
                other = dice.choice(good)
                data = data[: dice.randrange(len(data))] + other[dice.randrange(len(other)) :]
            case 4:
                data = bytearray(bomb(dice.choice((7_000, 20_000, 1 << 20, (1 << 31) - 1))))
            case 5:
                data = bytearray(dice.randbytes(dice.randrange(1, 2000)))
            case _:
                at = dice.randrange(len(data))
                data[at:at] = bytes(dice.choice((1, 100, 60_000)))
        yield bytes(data)


HEAD = b"%s %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n"
PIXELS = {"name": "pixels", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [0] * 12}


def broken_requests(seed: int, n: int, infer: str) -> Iterator[bytes]:
    """n requests as bytes: HTTP, forms and JSON that are damaged in many ways."""
    dice = random.Random(seed)
    for _ in range(n):
        match dice.randrange(6):
            case 0:  # no HTTP
                yield dice.randbytes(dice.randrange(1, 300)) + b"\r\n\r\n"
            case 1:  # contradictory headers
                header = dice.choice(
                    (
                        b"Content-Length: -1\r\n",
                        b"Content-Length: 5\r\nContent-Length: 6\r\n",
                        b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
                        b"Transfer-Encoding: gzip\r\n",
                        b"Content-Length: 99999999999999999999\r\n",
                        b"Expect: 200-ok\r\nContent-Length: 1\r\n",
                        b"X: " + dice.randbytes(20).replace(b"\n", b"") + b"\r\n",
                        b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
                    )
                )
                yield HEAD % (b"POST", b"/predict", header) + b"abc"
            case 2:  # chunks that are none
                body = dice.choice((b"zz\r\nabc\r\n", b"-3\r\nabc\r\n", b"ffffffffffffffffff\r\n", b"3\r\nabcd\r\n"))
                yield HEAD % (b"POST", b"/predict", b"Transfer-Encoding: chunked\r\n") + body
            case 3:
                yield form_request(dice)
            case 4:
                yield json_request(dice, infer)
            case _:  # odd addresses and methods
                target = dice.choice(
                    (b"/../../etc/passwd", b"/%00", b"/static/%2e%2e/x", b"*", b"http://a/", b"/?" * 900)
                )
                yield HEAD % (dice.choice((b"GET", b"PUT", b"TRACE", b"x" * 40)), target, b"")


def form_request(dice: random.Random) -> bytes:
    edge = dice.choice((b"x", b"", b"y" * 80, b"x\x00", b'"x', b"--"))
    part = b"--x\r\nContent-Disposition: form-data; " + dice.choice(
        (b'name="a"; filename="b"', b'filename="', b"filename*=utf-99''%ff; name=\"a\"", b"=;=;", b"\xff\xfe")
    )
    body = bytearray(part + b"\r\n\r\n" + dice.randbytes(50) + b"\r\n--x--\r\n")
    if dice.random() < 0.7:
        del body[dice.randrange(len(body)) :]
    header = b"Content-Type: multipart/form-data; boundary=%s\r\nContent-Length: %d\r\n" % (edge, len(body))
    return HEAD % (b"POST", b"/predict", header) + bytes(body)


def json_request(dice: random.Random, infer: str) -> bytes:
    odd = dice.choice((None, True, -1, 1e400, "x", [], {}, [[]], 1 << 70, "\ud800", {"a": {"b": []}}))
    table: dict[str, object] = {"id": "1", "inputs": [dict(PIXELS)], "outputs": [{"name": "logits"}]}
    where = dice.choice(("id", "inputs", "outputs", "parameters", "name", "datatype", "shape", "data"))
    if where in PIXELS:
        table["inputs"] = [PIXELS | {where: odd}]
    else:
        table[where] = odd
    body = bytearray(json.dumps(table).encode())
    match dice.randrange(4):
        case 0:
            del body[dice.randrange(len(body)) :]
        case 1:
            body[dice.randrange(len(body))] = dice.randrange(256)
        case 2:
            body = bytearray(b"[" * dice.choice((10, 100_000)))
    header = b"Content-Length: %d\r\n" % len(body)
    if dice.random() < 0.3:
        header += b"Inference-Header-Content-Length: %d\r\n" % dice.choice((0, 5, len(body), 1 << 40))
    return HEAD % (b"POST", infer.encode(), header) + bytes(body)
