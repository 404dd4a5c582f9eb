"""`resnet shard` against what bounds it: writing to this disk, and SHA-256 over every byte.

    python benchmarks/sharding.py FOLDER [--work DIR] [--copies 20] [--out results/sharding.json]

FOLDER has pictures in class folders, which are read from the page cache; they are taken `--copies` times under other
names, so that there is enough to write. In each repeat, in turns:

    shard     `resnet shard` of all of it, each shard fsynced, as always
    disk      the same bytes, from memory, to one file after the other of a shard's size, with fsync, in as many threads
    checksum  SHA-256 over the same bytes in memory, in one thread

Beside them, MB for each second of one processor, of the command and of SHA-256, which a machine that others use too
slows less. The figure is the median of shard / min(disk, checksum), repeat by repeat. `resnet shard` takes two SHA-256,
of each picture and of each shard, and reads each picture's header.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import spread, write
from resnetkit import sharding
from resnetkit.data.loader import default_threads

REPEATS = 5
SHARD_MB = 64


def links(folder: Path, work: Path, copies: int) -> Path:
    """The pictures `copies` times, as hard links or copies."""
    source = work / "source"
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg"):
            for k in range(copies):
                link = source / (path.parent.name if path.parent != folder else path.stem[:9]) / f"{k}-{path.name}"
                link.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, link)
    return source


def time_shard(source: Path, work: Path) -> tuple[float, float, list[bytes]]:
    """Bytes a second, bytes a second of one processor, and the shards' bytes."""
    out = work / "shards"
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    begin, processor = time.perf_counter(), time.process_time()
    *_, end = sharding.shard(source, out, shard_mb=SHARD_MB)
    seconds, processor = time.perf_counter() - begin, time.process_time() - processor
    assert isinstance(end, sharding.Sharded)
    return end.bytes / seconds, end.bytes / processor, [path.read_bytes() for path in sorted(out.glob("*.tar"))]


def time_disk(shards: list[bytes], work: Path) -> float:
    out = work / "plain"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()

    def put(k: int) -> int:
        with (out / f"{k}").open("wb") as file:
            for at in range(0, len(shards[k]), 1 << 20):
                file.write(shards[k][at : at + (1 << 20)])
            file.flush()
            os.fsync(file.fileno())
        return len(shards[k])

    begin = time.perf_counter()
    with ThreadPoolExecutor(default_threads()) as pool:
        total = sum(pool.map(put, range(len(shards))))
    seconds = time.perf_counter() - begin
    shutil.rmtree(out)
    return total / seconds


def time_checksum(shards: list[bytes], clock: Callable[[], float] = time.perf_counter) -> float:
    begin = clock()
    for shard in shards:
        hashlib.sha256(shard).digest()
    return sum(map(len, shards)) / (clock() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/sharding"), help="a folder on the disk to measure")
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("results/sharding.json"))
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    source = links(args.folder, args.work, args.copies)
    *_, shards = time_shard(source, args.work)
    rows = []
    for repeat in range(REPEATS):
        rates: dict[str, float] = {}
        turns: list[tuple[str, Callable[[], float]]] = [
            ("shard", lambda: time_shard(source, args.work)[0]),
            ("disk", lambda: time_disk(shards, args.work)),
            ("checksum", lambda: time_checksum(shards)),
        ]
        for name, turn in turns[:: 1 if repeat % 2 else -1]:
            rates[name] = turn() / 1e6
        one = time_shard(source, args.work)[1] / 1e6, time_checksum(shards, time.process_time) / 1e6
        rates |= {"shard_one_processor": one[0], "checksum_one_processor": one[1]}
        rows.append({**rates, "ratio": rates["shard"] / min(rates["disk"], rates["checksum"])})
    pictures = [path for path in source.rglob("*") if path.is_file()]
    result = {
        "what": "resnet shard, MB a second, against the slower of this disk and of SHA-256",
        "ratio": spread([row["ratio"] for row in rows]),
        "mb_per_second": {name: statistics.median(row[name] for row in rows) for name in rows[0] if name != "ratio"},
        "pictures": len(pictures),
        "mean_kilobytes": round(sum(path.stat().st_size for path in pictures) / len(pictures) / 1000, 1),
        "megabytes": round(sum(map(len, shards)) / 1e6, 1),
        "threads": default_threads(),
        "repeats": rows,
    }
    shutil.rmtree(args.work)
    write(args.out, result)


if __name__ == "__main__":
    main()
