"""Blocks of remote objects, kept on a local disk: bounded in bytes, checked on use, shared by threads and jobs.

The blocks lie in 64 folders, by the first digits of their key; each folder has its share of the limit and keeps to it
by itself, dropping what was not used for longest. So there is no index, nothing that two jobs could disagree on, and no
lock. A block is a file "<key>-<size>": magic, CRC-32 of every 64 KiB, CRC-32 of all that, the data. It is written
beside its place and renamed; power loss may leave a torn one, which its checksums show.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from resnetkit.cachehome import BLOCKS, cache_home

FOLDERS = 64
PAGE = 64 << 10
MAGIC = b"rnkblk1\n"
NAME = re.compile(r"[0-9a-f]+-[0-9]+(\.[0-9a-f]+\.part)?")  # of a block, or of one that is being written
AHEAD = 60 * 10**9  # ns: a time of use so far in the future comes from a clock that has jumped since


def default_place() -> Path:
    """Where blocks are kept unless somebody says otherwise."""
    return cache_home() / BLOCKS


@dataclass(eq=False)
class BlockCache:
    """Blocks by key (hexadecimal, 8 digits at least) and size. Safe from many threads, and from many processes at once.

    place  folder, which need not be there
    limit  bytes on disk that all blocks together may take; jobs on one place should agree on it
    Never raises OSError: what cannot be read is not there, and after a first write that fails no more is written, of
    which one warning says why.
    """

    place: Path
    limit: int
    _full: threading.Event = field(default_factory=threading.Event)

    def get(self, key: str, size: int, start: int, length: int) -> bytes | None:
        """Bytes of a block, or None: not there, or damaged, and then it is removed."""
        path = self._path(key, size)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            data = checked(descriptor, key, size, start, length)
            if data is not None:
                with contextlib.suppress(OSError):
                    os.utime(descriptor)
        except OSError:
            data = None
        finally:
            os.close(descriptor)
        if data is None:
            self.forget(key, size)
        return data

    def there(self, key: str, size: int) -> bool:
        """Whether a block is there, be it whole or not; True also where none is kept any more."""
        return self._full.is_set() or os.path.exists(self._path(key, size))  # noqa: PTH110

    def put(self, key: str, data: bytes) -> None:
        """Keep a block, if there is a way to."""
        size = head_length(len(data)) + len(data)
        if self._full.is_set() or size > self.limit // FOLDERS:
            return
        path = self._path(key, len(data))
        temporary = f"{path}.{secrets.token_hex(8)}.part"
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
            with open(temporary, "xb", buffering=0) as file:  # noqa: PTH123
                write_all(file.fileno(), head(key, data))
                write_all(file.fileno(), data)
                self._make_room(temporary, size, os.fstat(file.fileno()).st_mtime_ns)
            os.replace(temporary, path)  # noqa: PTH105
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            if isinstance(error, FileNotFoundError) or self._full.is_set():
                return  # somebody emptied the folder just now
            self._full.set()
            reason = error.strerror or str(error)
            warnings.warn(
                f"{self.place}: no more blocks of remote objects are kept there ({reason}); reading goes on from "
                "the store alone",
                stacklevel=2,
            )

    def forget(self, key: str, size: int) -> None:
        """Remove a block, if it is there."""
        with contextlib.suppress(OSError):
            os.unlink(self._path(key, size))  # noqa: PTH108

    def _path(self, key: str, size: int) -> str:
        return os.path.join(self.place, f"{int(key[:8], 16) % FOLDERS:02x}", f"{key}-{size}")  # noqa: PTH118

    def _make_room(self, own: str, size: int, now: int) -> None:
        """Remove the blocks of own's folder not used for longest, so that `size` more bytes fit into its share."""
        folder, name = os.path.split(own)
        kept = {other: bytes_of(other) for other in os.listdir(folder) if NAME.fullmatch(other) and other != name}  # noqa: PTH208
        total, share = sum(kept.values()) + size, self.limit // FOLDERS
        if total <= share:
            return
        for path in sorted((os.path.join(folder, other) for other in kept), key=lambda path: used(path, now)):  # noqa: PTH118
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108
            total -= kept[os.path.basename(path)]  # noqa: PTH119
            if total <= share:
                break


def bytes_of(name: str) -> int:
    """How long the file of a block is, or will be."""
    size = int(name.partition("-")[2].partition(".")[0])
    return head_length(size) + size


def used(path: str, now: int) -> int:
    """When a block was last used, in ns by the clock of the disk; -1: by a clock that has been put back since."""
    try:
        when = os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError:
        return -1
    return when if when <= now + AHEAD else -1


def pages(size: int) -> int:
    return -(-size // PAGE)


def head_length(size: int) -> int:
    return len(MAGIC) + 4 * pages(size) + 4


def head(key: str, data: bytes) -> bytes:
    """What stands before the data. The last checksum is of the key too, so a file under a wrong name is noticed."""
    view = memoryview(data)
    sums = [zlib.crc32(view[at : at + PAGE]) for at in range(0, len(data), PAGE)]
    body = MAGIC + struct.pack(f"<{len(sums)}I", *sums)
    return body + struct.pack("<I", zlib.crc32(key.encode(), zlib.crc32(body)))


def checked(descriptor: int, key: str, size: int, start: int, length: int) -> bytes | None:
    """Bytes of an open block if it, as far as they reach, is whole. Raises OSError."""
    before = head_length(size)
    known = os.pread(descriptor, before, 0)
    body, seal = known[:-4], known[-4:]
    if len(known) < before or seal != struct.pack("<I", zlib.crc32(key.encode(), zlib.crc32(body))):
        return None
    if not body.startswith(MAGIC):
        return None
    first, last = start // PAGE, pages(start + length)
    at, stop = first * PAGE, min(last * PAGE, size)
    view = memoryview(os.pread(descriptor, stop - at, before + at))
    if len(view) < stop - at:
        return None
    sums = struct.unpack(f"<{last - first}I", body[len(MAGIC) + 4 * first : len(MAGIC) + 4 * last])
    for page, wanted in enumerate(sums):
        if zlib.crc32(view[page * PAGE : (page + 1) * PAGE]) != wanted:
            return None
    return bytes(view[start - at : start - at + length])


def write_all(descriptor: int, data: bytes) -> None:
    """Raises OSError, also where a part was written before."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
