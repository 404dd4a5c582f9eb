"""Ranges of files: exactly what was asked for, or a sentence."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resnetkit.data.blobs import LocalBlobs
from resnetkit.errors import UserError


def test_ranges_from_many_threads(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "a").write_bytes(data)
    blobs = LocalBlobs([str(tmp_path / "a")])
    assert (len(blobs), blobs.name(0), blobs.size(0)) == (1, str(tmp_path / "a"), 100_000)
    spans = [(start, min(997, 100_000 - start)) for start in range(0, 100_000, 61)]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda span: blobs.read(0, *span), spans))
    assert read == [data[start : start + length] for start, length in spans]


def test_a_file_that_ends_early_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    with pytest.raises(UserError, match=r"a: ends after 5 bytes, where 7 were there before"):
        LocalBlobs([str(tmp_path / "a")]).read(0, 3, 4)


def test_the_version_is_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    blobs = LocalBlobs([str(path)])
    first = blobs.version(0)
    assert blobs.version(0) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 1))
    assert blobs.version(0) != first


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    blobs = LocalBlobs([str(tmp_path / "gone.tar")])
    for ask in (blobs.size, blobs.version):
        with pytest.raises(UserError, match=r"gone\.tar: no such file; check the path"):
            ask(0)
