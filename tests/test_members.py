"""Indexes of tars: made once, kept, noticed when they are of another version; few bytes for each picture."""

from __future__ import annotations

import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnetkit.data import members, tarindex
from resnetkit.data.blobs import LocalBlobs
from resnetkit.data.members import open_members
from resnetkit.errors import UserError
from tar_samples import jpeg, samples, write_tar


class Counting(LocalBlobs):
    """Counts what is read."""

    reads = 0

    def read(self, i: int, start: int, length: int) -> bytes:
        type(self).reads += 1
        return super().read(i, start, length)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "x" / "train-0.tar", samples(range(10)))


def opened(*paths: Path) -> members.Opened:
    Counting.reads = 0
    return open_members(Counting([str(path) for path in paths]))


def test_pictures_of_several_tars_from_many_threads(shard: Path) -> None:
    other = write_tar(shard.with_name("train-1.tar"), samples(range(10, 2100)))
    found = opened(shard, other)
    pictures = found.pictures
    assert (len(pictures), found.classes, found.labels.dtype) == (2100, ("0", "1"), np.int16)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(pictures.name, range(2100))) == [
            f"train-{int(k >= 10)}.tar/{k:04}.jpg" for k in range(2100)
        ]
        assert all(pool.map(lambda k: pictures.read(k) == jpeg(k), range(0, 2100, 13)))
    assert pictures.size(2099) == len(jpeg(2099))
    assert found.labels.tolist() == [k % 2 for k in range(2100)]


def test_an_index_is_made_once_and_kept_beside_the_tar(shard: Path) -> None:
    opened(shard)
    assert Counting.reads > 0
    assert sorted(path.name for path in shard.parent.iterdir()) == ["train-0.tar", "train-0.tar.index"]
    before = (shard.parent / "train-0.tar.index").read_bytes()
    assert opened(shard).labels.tolist() == [0, 1] * 5
    assert Counting.reads == 0
    assert (shard.parent / "train-0.tar.index").read_bytes() == before


def test_where_the_folder_is_not_writable_the_cache_keeps_it(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = members.write_bytes

    def refuse(path: Path, data: bytes) -> None:
        if path.parent == shard.parent:
            raise PermissionError(13, "Permission denied")
        write(path, data)

    monkeypatch.setattr(members, "write_bytes", refuse)
    opened(shard)
    assert [path.name for path in shard.parent.iterdir()] == ["train-0.tar"]
    opened(shard)
    assert Counting.reads == 0
    monkeypatch.setattr(members, "write_bytes", lambda *_: refuse(shard, b""))
    os.utime(shard, ns=(0, 0))
    with pytest.raises(UserError, match=r"train-0\.tar: its index can be kept neither beside it nor in "):
        opened(shard)


def test_a_tar_that_was_written_anew_is_indexed_anew(shard: Path) -> None:
    opened(shard)
    write_tar(shard, samples(range(20, 23)))
    os.utime(shard, ns=(0, 5))
    found = opened(shard)
    assert [found.pictures.read(i) for i in range(3)] == [jpeg(k) for k in (20, 21, 22)]


def test_a_tar_that_changes_while_it_is_read_is_noticed(shard: Path) -> None:
    pictures = opened(shard).pictures
    write_tar(shard, [("a.txt", bytes(700)), *samples(range(10))])
    with pytest.raises(UserError, match=r"train-0\.tar: no header of train-0\.tar/0003\.jpg where its index says"):
        pictures.read(3)
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"train-0\.tar: ends after 2,000 bytes"):
        pictures.read(9)


@pytest.mark.parametrize("at", [0, 9, 40, 300, -3000, -700])
def test_a_damaged_index_is_named_or_harmless(at: int, shard: Path) -> None:
    right = opened(shard)
    path = shard.parent / "train-0.tar.index"
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 255
    path.write_bytes(data)
    try:
        found = opened(shard)
    except UserError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert message.startswith(str(path))
        return
    assert (found.labels == right.labels).all()
    assert [found.pictures.read(i) for i in range(10)] == [jpeg(i) for i in range(10)]


def test_an_index_cut_off_anywhere_is_named(shard: Path) -> None:
    opened(shard)
    path = shard.parent / "train-0.tar.index"
    whole = path.read_bytes()
    for length in range(0, len(whole), 61):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"train-0\.tar\.index: damaged, or no index of a tar"):
            opened(shard)


def test_names_that_no_two_tars_share(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / part / "0.tar", samples(range(2))) for part in ("a/x", "b/x")]
    pictures = opened(*paths).pictures
    assert [pictures.name(i) for i in range(4)] == [f"{p}/x/0.tar/{k}.jpg" for p in "ab" for k in ("0000", "0001")]


def synthetic(folder: Path, shards: int, each: int) -> LocalBlobs:
    """Indexes of tars that are not there but for their size."""
    paths = [folder / f"train-{k:04}.tar" for k in range(shards)]
    columns: dict[str, Any] = {
        "offsets": np.arange(1, each + 1, dtype=np.uint32) * 215,
        "lengths": np.full(each, 109_000, np.uint32),
        "labels": np.arange(each, dtype=np.int32) % 1000,
    }
    names = [f"{k:08}.jpg" for k in range(each)]
    size = (each + 1) * 215 * 512 + 109_000
    about = {"bytes": size, "classes": [f"n{k:08}" for k in range(1000)], "set": "s", "odd": {}, "grey": False}
    index = tarindex.dump(columns, names, about)
    for path in paths:
        with path.open("wb") as file:
            file.truncate(size)
        path.with_name(path.name + ".index").write_bytes(index)
    return LocalBlobs([str(path) for path in paths])


def test_ten_million_pictures_fit_into_200_megabytes(tmp_path: Path) -> None:
    """Measured on a twentieth of them, with the splits' indices; what threads share is held once."""
    blobs = synthetic(tmp_path, shards=50, each=10_000)
    open_members(blobs)  # what modules keep for themselves
    tracemalloc.start()
    try:
        found = open_members(blobs)
        train = np.arange(len(found.pictures))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(train) == 500_000
    assert held * 20 < 200e6
    assert found.pictures.name(499_999) == "train-0049.tar/00009999.jpg"
