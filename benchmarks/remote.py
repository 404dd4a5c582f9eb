"""Reading from an S3 on this machine: blocks by 1, 4 and 16 threads, cold and warm, against s3fs read in order.

    python benchmarks/remote.py [--out results/remote.json]

Objects of 8 MiB in moto's server, which shares the processor with its reader, so MB/s say little of a real store.
"at once" asks the server as it is. "100 ms" asks through a proxy, in a process of its own, that answers 100 ms later,
as S3 does by its own account (docs: "Performance design patterns for Amazon S3"): there threads hide the wait.

plain   `s3fs.open(url).read(1 MiB)` in order, with s3fs's own read-ahead of 4 MiB, one thread
cold    RemoteBlobs, 1 MiB at a time in order within an object, one object for each thread; the cache is empty
warm    the same again by a new reader: from the cache on disk, each block's checksums checked

Connections are made and sizes asked for before the clock starts. Each repeat measures all of them in turn. Ratios are
those of one repeat; the figure is their median.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import s3fs

from common import spread, write
from resnetkit.data.remote import LEAST, RemoteBlobs
from resnetkit.stores import BLOCK

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from store_server import CREDENTIALS, moto, proxy, upload

OBJECTS, SIZE, PIECE = 16, 8 << 20, 1 << 20
THREADS = (1, 4, 16)
REPEATS = 5
WAIT = 0.1


def clock(read: Callable[[], int]) -> tuple[float, float]:
    """MB/s, and milliseconds of this process's processor time for each MiB."""
    begin, spent = time.perf_counter(), time.process_time()
    got = read()
    seconds, spent = time.perf_counter() - begin, time.process_time() - spent
    assert got == OBJECTS * SIZE
    return got / seconds / 1e6, spent * 1e3 / (got / (1 << 20))


def plain(urls: list[str]) -> Callable[[], int]:
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    opened = [files.open(url, "rb", block_size=BLOCK) for url in urls]

    def read() -> int:
        got = 0
        for file in opened:
            while piece := file.read(PIECE):
                got += len(piece)
            file.close()
        return got

    return read


def blocks(urls: list[str], cache: Path, threads: int) -> Callable[[], int]:
    blobs = RemoteBlobs(urls, cache=cache, limit=LEAST)
    sizes = [blobs.size(i) for i in range(len(urls))]

    def whole(i: int) -> int:
        return sum(len(blobs.read(i, at, PIECE)) for at in range(0, sizes[i], PIECE))

    def read() -> int:
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(whole, range(len(urls))))

    return read


def one_repeat(urls: list[str]) -> dict[str, tuple[float, float]]:
    found = {"plain": clock(plain(urls))}
    for threads in THREADS:
        with tempfile.TemporaryDirectory() as folder:
            for state in ("cold", "warm"):
                found[f"{state}, {threads} threads"] = clock(blocks(urls, Path(folder), threads))
    return found


def measure(urls: list[str]) -> dict[str, Any]:
    repeats = [one_repeat(urls) for _ in range(REPEATS)]
    ratios = {name: statistics.median(found[name][0] / found["plain"][0] for found in repeats) for name in repeats[0]}
    return {
        "mb_per_s": {name: spread([found[name][0] for found in repeats]) for name in repeats[0]},
        "cpu_ms_per_mib": {name: spread([found[name][1] for found in repeats]) for name in repeats[0]},
        "times_plain": {name: round(ratio, 2) for name, ratio in ratios.items() if name != "plain"},
    }


def delayed(address: str, said: Connection) -> None:
    """A process that is the way to the server, until it is ended."""
    with proxy(address) as way:
        way.wait = WAIT
        said.send(way.address)
        said.recv()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/remote.json"))
    out = parser.parse_args().out
    os.environ.update(CREDENTIALS)
    result: dict[str, Any] = {"objects": OBJECTS, "bytes_each": SIZE, "repeats": REPEATS}
    here, there = multiprocessing.Pipe()
    with moto() as address:
        upload(f"{address}/bucket")
        for i in range(OBJECTS):
            upload(f"{address}/bucket/{i}", os.urandom(SIZE))
        way = multiprocessing.get_context("spawn").Process(target=delayed, args=(address, there))
        way.start()
        for name, asked in (("at once", address), ("100 ms", here.recv())):
            os.environ["AWS_ENDPOINT_URL"] = asked
            result[name] = measure([f"s3://bucket/{i}" for i in range(OBJECTS)])
        here.send("end")
        way.join()
    write(out, {**result, **{name: version(name) for name in ("s3fs", "fsspec", "moto")}})


if __name__ == "__main__":
    main()
