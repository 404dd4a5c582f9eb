"""A file's own SHA-256 inside the file, so that a changed bit is noticed whatever the format.

The digest stands in the file's metadata as 64 hexadecimal digits, and is taken with these as zeros. Any format
does that keeps a text of ASCII letters as it is.
"""

from __future__ import annotations

import hashlib
from mmap import mmap

PLACE = "resnetkit".ljust(64, "-")  # where the digest will stand, while the file is made
ZEROS = b"0" * 64


def seal(data: bytes) -> bytes:
    """The file's bytes with its digest in `PLACE`, which they hold once."""
    assert data.count(PLACE.encode()) == 1, "one place for the digest"
    at = data.index(PLACE.encode())
    return data[:at] + digest_at(data, at).encode() + data[at + 64 :]


def is_whole(data: bytes | mmap, digest: str) -> bool:
    """Whether the file's bytes are those that were sealed with `digest`."""
    at = data.find(digest.encode("utf-8", "surrogatepass")) if len(digest) == 64 else -1
    return at >= 0 and digest_at(data, at) == digest


def digest_at(data: bytes | mmap, at: int) -> str:
    """The SHA-256 of the bytes with zeros for the 64 of them at `at`; lets go of the interpreter lock."""
    view = memoryview(data)
    found = hashlib.sha256(view[:at])
    found.update(ZEROS)
    found.update(view[at + 64 :])
    return found.hexdigest()
