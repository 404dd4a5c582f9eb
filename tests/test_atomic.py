"""Atomic writes: a reader sees the old file or the new one, and a write that fails leaves the old one alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from resnetkit.atomic import write_bytes, write_json, write_text
from resnetkit.runs import read_json


def test_a_reader_never_sees_half(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with path.open("rb") as reader:
        write_bytes(path, b"new and longer")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new and longer"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "write"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    if failing == "fsync":

        def refuse(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", refuse)
        expected: type[BaseException] = OSError
    else:
        expected = TypeError
    with pytest.raises(expected):
        write_bytes(path, b"new" if failing == "fsync" else "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_contents_are_durable_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync of the file, rename, fsync of the folder: in another order a power cut may leave an empty file."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")  # noqa: PTH112
        fsync(descriptor)

    def renamed(path: Path, target: Any) -> Path:
        steps.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_bytes(tmp_path / "file", b"x")
    assert steps == ["file", "rename", "folder"]


def test_names_of_any_bytes_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    write_json(tmp_path / "a.json", {"name": name, "猫": 1})
    assert read_json(tmp_path / "a.json") == {"name": name, "猫": 1}
    assert (tmp_path / "a.json").read_bytes().isascii()
    write_text(tmp_path / "a.csv", name)
    assert (tmp_path / "a.csv").read_bytes() == b"caf\xe9.jpg"
