"""Objects of a store as blobs: read in blocks, each fetched once, kept in memory for a while and on disk for longer."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from resnetkit.data.blobs import Range
from resnetkit.data.blocks import FOLDERS, BlockCache
from resnetkit.errors import UserError
from resnetkit.stores import BLOCK, Facts, Patience, Store, protocol_of

HELD = 128 << 20  # bytes of blocks in memory
LEAST = 4 * FOLDERS * BLOCK  # of a cache on disk: below, a folder of it would hold fewer than four blocks
SIDE_BY_SIDE = 16  # blocks of long reads
FETCHERS = 16  # threads for what will be read
T = TypeVar("T")


class RemoteBlobs:
    """Objects by URL, as `data.blobs.Blobs`; safe from many threads at once, whose requests run side by side.

    urls      s3://bucket/key, https://…, or any other protocol that fsspec has a driver for
    cache     folder for blocks on disk, which jobs may share; None: none
    limit     bytes of that folder, a GiB at least
    patience  how long a store may be slow, refuse or be gone

    Raises UserError: a driver is missing, the limit is too small; `size`, `version` and `read`: the object is not
    there, refused, changed since its first use, or the store is given up.
    """

    def __init__(
        self, urls: Sequence[str], *, cache: Path | None, limit: int, patience: Patience | None = None
    ) -> None:
        if cache is not None and limit < LEAST:
            raise UserError(f"a cache of {limit:,} bytes is too small; give it {LEAST:,} at least, or none at all")
        self._urls = urls
        self._stores: dict[str, Store] = {}
        for url in urls:
            if protocol_of(url) not in self._stores:
                self._stores[protocol_of(url)] = Store(url, patience)
        self._disk = None if cache is None else BlockCache(cache, limit)
        self._run = secrets.token_hex(8)  # stands for what a store does not tell of an object's version
        self._lock = threading.Lock()
        self._known: dict[int, Facts] = {}
        self._held: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._held_bytes = 0
        self._coming: dict[Hashable, Future[Any]] = {}
        self._wanted: dict[tuple[int, int], None] = {}  # blocks that will be read, in order
        self._fetchers = 0  # threads that fetch them
        self._pool = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="blocks")

    def __len__(self) -> int:
        return len(self._urls)

    def name(self, i: int) -> str:
        return self._urls[i]

    def size(self, i: int) -> int:
        return self._facts(i).size

    def version(self, i: int) -> str:
        """The ETag, else the time of the last change; where a store says neither, another one in each process."""
        facts = self._facts(i)
        return f"{facts.size}-{facts.stamp or self._run}"

    def read(self, i: int, start: int, length: int) -> bytes:
        self._check(i, start, length)

        def part(at: int) -> bytes:
            begin, end = max(start, at), min(start + length, at + BLOCK)
            return self._part(i, at // BLOCK, begin - at, end - begin)

        blocks = range(start - start % BLOCK, start + length, BLOCK)
        return part(blocks[0]) if len(blocks) == 1 else b"".join(self._pool.map(part, blocks))

    def read_few(self, i: int, start: int, length: int) -> bytes:
        """As `read`; asks for these bytes alone, and keeps nothing."""
        self._check(i, start, length)
        return self._stores[protocol_of(self._urls[i])].read(self._urls[i], start, length, self._facts(i))

    def soon(self, ranges: Sequence[Range]) -> None:
        """Fetch the blocks of these in the background, for the cache on disk; without one, none.

        What goes wrong is told to whoever reads them.
        """
        if self._disk is None:
            return
        blocks = [
            (i, block) for i, start, length in ranges for block in range(start // BLOCK, -(-(start + length) // BLOCK))
        ]
        with self._lock:
            self._wanted.update(dict.fromkeys(blocks))
            if not blocks:
                self._wanted.clear()
            begun = max(0, min(FETCHERS, len(self._wanted)) - self._fetchers)
            self._fetchers += begun
        for _ in range(begun):  # daemons, as nobody should wait at the end for what nobody reads
            threading.Thread(target=self._fetch_wanted, name="ahead", daemon=True).start()

    def _fetch_wanted(self) -> None:
        """Fetch one block after the other, until none is wanted."""
        while True:
            with self._lock:
                if not self._wanted:
                    self._fetchers -= 1
                    return
                i, block = next(iter(self._wanted))
                del self._wanted[i, block]
            with contextlib.suppress(Exception):
                if self._disk is not None and not self._disk.there(self._key(i, block), self._length(i, block)):
                    self._once((i, block), partial(self._fetch, i, block, hold=False))

    def _check(self, i: int, start: int, length: int) -> None:
        size = self.size(i)
        if start < 0 or length < 0 or start + length > size:
            raise UserError(
                f"{self._urls[i]}: has {size:,} bytes, and {start:,} to {start + length:,} were asked for; was it "
                "replaced by a shorter one?"
            )

    def forget(self, i: int, start: int, length: int) -> None:
        """Drop what is kept of these bytes, because they are found to be wrong; the next read asks the store."""
        for block in range(start // BLOCK, -(-(start + length) // BLOCK)):
            with self._lock:
                self._held_bytes -= len(self._held.pop((i, block), b""))
            if self._disk is not None:
                self._disk.forget(self._key(i, block), self._length(i, block))

    def _facts(self, i: int) -> Facts:
        found = self._known.get(i)
        return found or self._once(i, lambda: self._known.get(i) or self._ask_facts(i))

    def _ask_facts(self, i: int) -> Facts:
        url = self._urls[i]
        found = self._known[i] = self._stores[protocol_of(url)].facts(url)
        return found

    def _part(self, i: int, block: int, start: int, length: int) -> bytes:
        """Bytes of one block: from memory, else from the disk, else from the store."""
        data = self._from_memory(i, block)
        if data is None and self._disk is not None:
            kept = self._disk.get(self._key(i, block), self._length(i, block), start, length)
            if kept is not None:
                return kept
        if data is None:
            data = self._once((i, block), lambda: self._from_memory(i, block) or self._fetch(i, block))
        return data[start : start + length]

    def _fetch(self, i: int, block: int, *, hold: bool = True) -> bytes:
        """A block from the store, kept on disk, and in memory where it is to be held there."""
        url = self._urls[i]
        store = self._stores[protocol_of(url)]
        data = store.read(url, block * BLOCK, self._length(i, block), self._facts(i))
        with self._lock:
            if hold:
                self._held[i, block] = data
                self._held_bytes += len(data)
            while self._held_bytes > HELD:
                self._held_bytes -= len(self._held.popitem(last=False)[1])
        if self._disk is not None:
            self._disk.put(self._key(i, block), data)
        return data

    def _from_memory(self, i: int, block: int) -> bytes | None:
        with self._lock:
            data = self._held.get((i, block))
            if data is not None:
                self._held.move_to_end((i, block))
        return data

    def _length(self, i: int, block: int) -> int:
        return min(BLOCK, self.size(i) - block * BLOCK)

    def _key(self, i: int, block: int) -> str:
        text = f"{self._urls[i]}\0{self.version(i)}\0{block}\0{BLOCK}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives; of threads that ask at the same time one makes it, and no lock is held meanwhile."""
        with self._lock:
            coming = self._coming.get(key)
            mine = coming is None
            if coming is None:
                coming = self._coming[key] = Future()
        if mine:
            try:
                coming.set_result(make())
            except BaseException as error:
                coming.set_exception(error)
            finally:
                with self._lock:
                    del self._coming[key]
        found: T = coming.result()
        return found
