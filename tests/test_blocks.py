"""The cache on disk: what was put comes back or nothing does, within its bytes, whatever happens to the disk."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnetkit.data import blocks
from resnetkit.data.blocks import FOLDERS, PAGE, BlockCache
from resnetkit.engines import cache as models

SIZE = 1000


def key_of(number: int, folder: int | None = None) -> str:
    """A key as callers make them; in one folder of the cache if asked."""
    key = hashlib.sha256(str(number).encode()).hexdigest()[:32]
    return key if folder is None else f"{folder:08x}{key[8:]}"


def data_of(number: int, size: int = SIZE) -> bytes:
    return hashlib.shake_128(str(number).encode()).digest(size)


def put_all(cache: BlockCache, numbers: range, size: int = SIZE) -> None:
    for number in numbers:
        cache.put(key_of(number), data_of(number, size))


def on_disk(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


@given(st.integers(1, 3 * PAGE + 2), st.data())
def test_any_part_of_a_block_comes_back(
    tmp_path_factory: pytest.TempPathFactory, size: int, draw: st.DataObject
) -> None:
    cache = BlockCache(tmp_path_factory.getbasetemp() / "parts", 1 << 30)
    start = draw.draw(st.integers(0, size - 1))
    length = draw.draw(st.integers(1, size - start))
    data = data_of(size, size)
    cache.put(key_of(size), data)
    assert cache.get(key_of(size), size, start, length) == data[start : start + length]
    assert cache.get(key_of(size + 1), size, start, length) is None


@given(st.integers(0, 3 * PAGE + 300), st.integers(0, 7))
def test_no_turned_bit_comes_back(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    """Anywhere in the file; the block is gone after it was noticed, and can be put again."""
    cache = BlockCache(tmp_path_factory.getbasetemp() / "bits", 1 << 30)
    size = 3 * PAGE + 100
    data = data_of(0, size)
    cache.put(key_of(0), data)
    (path,) = (path for path in cache.place.rglob("*") if path.is_file())
    whole = bytearray(path.read_bytes())
    whole[at % len(whole)] ^= 1 << bit
    path.write_bytes(whole)
    assert cache.get(key_of(0), size, 0, size) is None
    assert not path.exists()


@pytest.mark.parametrize("length", [0, 5, 50, 70, PAGE])
def test_a_torn_block_is_none(tmp_path: Path, length: int) -> None:
    """Power was lost while it was written."""
    cache = BlockCache(tmp_path, 1 << 30)
    cache.put(key_of(0), data_of(0, 2 * PAGE))
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    os.truncate(path, length)
    assert cache.get(key_of(0), 2 * PAGE, PAGE + 10, 100) is None


def test_a_block_under_another_name_is_none(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 1 << 30)
    cache.put(key_of(0, folder=3), data_of(0))
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    path.rename(path.with_name(f"{key_of(1, folder=3)}-{SIZE}"))
    assert cache.get(key_of(1, folder=3), SIZE, 0, SIZE) is None


def test_the_limit_holds(tmp_path: Path) -> None:
    limit = FOLDERS * 5 * SIZE
    cache = BlockCache(tmp_path, limit)
    put_all(cache, range(600))
    assert 0.6 * limit < on_disk(tmp_path) <= limit
    cache.put(key_of(0), bytes(6 * SIZE))  # larger than its folder may be
    assert cache.get(key_of(0), 6 * SIZE, 0, 1) is None


def filled(place: Path) -> BlockCache:
    """A folder of the cache that is full with blocks 0 to 3."""
    cache = BlockCache(place, FOLDERS * (4 * SIZE + 100))
    for number in range(4):
        cache.put(key_of(number, folder=0), data_of(number))
        stamp(place, number, 1000 * number)
    return cache


def stamp(place: Path, number: int, when: float) -> None:
    os.utime(place / "00" / f"{key_of(number, folder=0)}-{SIZE}", (when, when))


def kept(cache: BlockCache, count: int = 5) -> list[int]:
    there = [path.name for path in (cache.place / "00").iterdir()]
    return [number for number in range(count) if f"{key_of(number, folder=0)}-{SIZE}" in there]


def test_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    assert cache.get(key_of(0, folder=0), SIZE, 0, 1) is not None
    cache.put(key_of(4, folder=0), data_of(4))
    assert kept(cache) == [0, 2, 3, 4]


def test_a_clock_that_was_put_back_keeps_no_old_block_for_ever(tmp_path: Path) -> None:
    """Blocks used in a future that never came are the first to go, and not all others before them."""
    cache = filled(tmp_path)
    stamp(tmp_path, 2, time.time() + 1e8)
    cache.put(key_of(4, folder=0), data_of(4))
    assert kept(cache) == [0, 1, 3, 4]


def test_what_a_killed_job_left_half_written_counts_and_goes(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    left = tmp_path / "00" / f"{key_of(7, folder=0)}-{SIZE}.0123456789abcdef.part"
    left.write_bytes(bytes(500))
    os.utime(left, (1, 1))
    cache.put(key_of(4, folder=0), data_of(4))
    assert not left.exists()
    assert on_disk(tmp_path) <= cache.limit // FOLDERS


def test_what_is_none_of_ours_stays(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    stranger = tmp_path / "00" / "notes.txt"
    stranger.write_text("mine")
    for number in range(4, 20):
        cache.put(key_of(number, folder=0), data_of(number))
    assert stranger.read_text() == "mine"


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_said_once_and_nothing_else_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    cache = BlockCache(tmp_path, 1 << 30)
    cache.put(key_of(0), data_of(0))

    def write(descriptor: int, data: bytes) -> int:
        os.pwrite(descriptor, data[: len(data) // 2], 0)
        raise OSError(reason, os.strerror(reason))

    with monkeypatch.context() as patch:
        patch.setattr(blocks.os, "write", write)
        with pytest.warns(UserWarning, match=os.strerror(reason)) as said:
            put_all(cache, range(1, 5))
    assert len(said) == 1
    assert cache.get(key_of(0), SIZE, 0, SIZE) == data_of(0)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1, "half a block was left"


def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)], check=False)
    if mount.returncode:
        pytest.skip("mounting needs root")
    try:
        cache = BlockCache(place, 1 << 30)
        with pytest.warns(UserWarning, match="No space left on device"):
            put_all(cache, range(10), 60_000)
        found = [cache.get(key_of(number), 60_000, 0, 60_000) for number in range(10)]
        whole = 10 - found.count(None)
        assert found == [*(data_of(number, 60_000) for number in range(whole)), *[None] * (10 - whole)]
        assert 0 < whole < 10
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = BlockCache(tmp_path / "file" / "blocks", 1 << 30)
    with pytest.warns(UserWarning, match="Not a directory"):
        cache.put(key_of(0), data_of(0))
    assert cache.get(key_of(0), SIZE, 0, 1) is None


JOB = """
import random, sys
from pathlib import Path
from resnetkit.data.blocks import BlockCache
cache, chance, hits = BlockCache(Path(sys.argv[1]), int(sys.argv[2])), random.Random(int(sys.argv[3])), 0
for _ in range(1000):
    number = chance.randrange(20)
    data = bytes([number]) * 1000
    found = cache.get(f"{number:032x}", 1000, 10, 900)
    if found is None:
        cache.put(f"{number:032x}", data)
    else:
        assert found == data[10:910]
        hits += 1
print(hits)
"""


def test_two_jobs_on_one_cache(tmp_path: Path) -> None:
    """They push each other's blocks out all the time; what is found is right, and the bytes stay within the limit."""
    limit = 64 * (10 * SIZE + 200)
    command = [sys.executable, "-c", JOB, str(tmp_path), str(limit)]
    jobs = [subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True) for seed in range(2)]
    most = 0
    while any(job.poll() is None for job in jobs):
        time.sleep(0.01)
        try:
            most = max(most, on_disk(tmp_path))
        except FileNotFoundError:
            continue  # while it was counted
    found = [int(job.communicate()[0]) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert all(200 < hits < 1000 for hits in found)
    assert 5 * SIZE < most <= limit // 64 + 2 * (SIZE + 20), "more than one block for each writer"
    assert on_disk(tmp_path) <= limit // 64 + SIZE + 20


def test_the_cache_of_models_leaves_blocks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = BlockCache(blocks.default_place(), 1 << 30)
    cache.put(key_of(0), data_of(0))
    for path in [*cache.place.rglob("*"), cache.place]:
        os.utime(path, (1, 1))
    models.prune(models.folder("0" * 64), limit=0)
    assert cache.get(key_of(0), SIZE, 0, SIZE) == data_of(0)
