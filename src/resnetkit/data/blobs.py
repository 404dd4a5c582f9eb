"""Files or objects that are read in ranges: where shards lie, on a disk or elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from resnetkit.errors import UserError

Range = tuple[int, int, int]  # a blob, its first byte, how many


class Blobs(Protocol):
    """Files or objects, read in ranges, safe from many threads at once."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """Path or URL, for messages."""

    def size(self, i: int) -> int:
        """Bytes. Raises UserError naming it where it is missing or refused."""

    def version(self, i: int) -> str:
        """Changes when the content does: size and time of a file, ETag of an object. Raises as `size`."""

    def read(self, i: int, start: int, length: int) -> bytes:
        """Exactly `length` bytes, never fewer. Raises UserError or OSError."""

    def read_few(self, i: int, start: int, length: int) -> bytes:
        """As `read`, of a few bytes whose neighbours nobody will ask for."""

    def soon(self, ranges: Sequence[Range]) -> None:
        """Say that these will be read, in this order, after those of before; none: take back what is not begun."""


@dataclass(frozen=True)
class LocalBlobs:
    """Files. Each read opens its file: thousands of shards would be more than a process may hold open."""

    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        return self.paths[i]

    def size(self, i: int) -> int:
        return self._stat(i).st_size

    def version(self, i: int) -> str:
        found = self._stat(i)
        return f"{found.st_size}-{found.st_mtime_ns}"

    def read(self, i: int, start: int, length: int) -> bytes:
        descriptor = os.open(self.paths[i], os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(descriptor, length, start)
            while len(data) < length:  # a signal, or more than 2 GiB at once
                more = os.pread(descriptor, length - len(data), start + len(data))
                if not more:
                    size = os.fstat(descriptor).st_size
                    raise UserError(
                        f"{self.paths[i]}: ends after {size:,} bytes, where {start + length:,} were there before; was "
                        "it changed or cut off? restore it"
                    )
                data += more
        finally:
            os.close(descriptor)
        return data

    read_few = read

    def soon(self, ranges: Sequence[Range]) -> None:
        """Nothing: the operating system reads ahead."""

    def _stat(self, i: int) -> os.stat_result:
        try:
            return os.stat(self.paths[i])  # noqa: PTH116 - a Path costs several times this
        except FileNotFoundError:
            raise UserError(f"{self.paths[i]}: no such file; check the path") from None
        except OSError as error:
            raise UserError(f"{self.paths[i]}: cannot be read ({error.strerror}); check its permissions") from None


def short_names(blobs: Blobs) -> list[str]:
    """Their names without the folders that all of them have in common."""
    parts = [blobs.name(k).replace(os.sep, "/").split("/") for k in range(len(blobs))]
    levels = zip(*(each[:-1] for each in parts), strict=False)
    same = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    return ["/".join(each[same:]) for each in parts]
