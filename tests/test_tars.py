"""Pictures found in tars by their headers: against tarfile, and damaged in every way."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnetkit.data.blobs import LocalBlobs
from resnetkit.data.tars import BLOCK, Found, Tar, ahead, find_pictures
from resnetkit.errors import UserError
from tar_samples import jpeg, samples, tar_bytes


def tar_of(data: bytes) -> Tar:
    def read(start: int, length: int) -> bytes:
        assert 0 <= start <= start + length <= len(data), "beyond the file"
        return data[start : start + length]

    return Tar("x.tar", len(data), read)


def pictures(data: bytes) -> list[Found]:
    return find_pictures(tar_of(data), [])


FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
words = st.text(st.characters(codec="utf-8", exclude_characters="/.\0", exclude_categories=["Cs"]), min_size=1)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(words, st.binary(min_size=1, max_size=1500), words), unique_by=lambda row: row[0], max_size=6),
    st.sampled_from(FORMATS),
    st.integers(0, 250),
    st.integers(1, 5000),
)
def test_the_same_members_as_tarfile_reads(
    rows: list[tuple[str, bytes, str]], form: int, folder: int, reach: int
) -> None:
    rows = [row for row in rows if row[2].strip() and not (row[0].startswith("__") and row[0].endswith("__"))]
    if form == tarfile.USTAR_FORMAT:  # has no more room for a name
        rows = [(f"{k}", data, label) for k, (_, data, label) in enumerate(rows)]
        folder = min(folder, 100)
    above = "d" * folder + "/" if folder else ""
    members = [
        part
        for key, data, label in rows
        for part in ((f"{above}{key}.jpg", data), (f"{above}{key}.cls", label.encode()))
    ]
    data = tar_bytes(members, form)
    tar = tar_of(data)
    found = find_pictures(Tar(tar.name, tar.size, ahead(tar.read, tar.size, reach)), [])
    assert [(f.name, data[f.start : f.start + f.length], f.label) for f in found] == [
        (f"{above}{key}.jpg", content, label.strip()) for key, content, label in rows
    ]
    assert all(f.start % BLOCK == 0 for f in found)


def test_labels_of_json_and_files_of_no_sample() -> None:
    others: list[str] = []
    members = [
        ("a/1.json", b'{"label": 7, "x": [1]}'),
        ("a/1.PNG", b"png"),
        ("a/1.seg.png", b"mask"),
        ("2.webp", b"w"),
        ("2.json", b'{"label": "cat"}'),
        ("2.cls", b"3\n"),
        ("3.jpeg", b"no label"),
        ("notes.txt", b"hello"),
        ("._3.jpg", b"of macOS"),
        ("__info__", b"of the shard"),
    ]
    found = find_pictures(tar_of(tar_bytes(members)), others)
    assert [(f.name, f.label) for f in found] == [("a/1.PNG", "7"), ("2.webp", "3"), ("3.jpeg", None)]
    assert others == ["a/1.seg.png", "notes.txt"]


def test_a_tar_in_the_tar_is_a_class() -> None:
    inner = {name: tar_bytes([(f"{name}_{k}.JPEG", jpeg(k)) for k in range(2)]) for name in ("n02", "n01")}
    data = tar_bytes([(f"{name}.tar", content) for name, content in inner.items()])
    found = pictures(data)
    assert [(f.name, f.label) for f in found] == [
        (f"{name}.tar/{name}_{k}.JPEG", name) for name in ("n02", "n01") for k in range(2)
    ]
    assert [data[f.start : f.start + f.length] for f in found] == [jpeg(0), jpeg(1)] * 2


def test_only_headers_are_read(tmp_path: Path) -> None:
    """Of 4 MB, a few kilobytes."""
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes([("1.jpg", bytes(4_000_000)), ("1.cls", b"0"), ("2.jpg", b"x"), ("2.cls", b"1")]))
    blobs, read = LocalBlobs([str(path)]), 0

    def counted(start: int, length: int) -> bytes:
        nonlocal read
        read += length
        return blobs.read(0, start, length)

    find_pictures(Tar("x.tar", blobs.size(0), ahead(counted, blobs.size(0), 4096)), [])
    assert read < 40_000


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


GOOD = tar_bytes(samples(range(3)))
SECOND = GOOD.index(b"0001.jpg")
LAST = GOOD.index(b"0002.cls")
PAX = tar_bytes([("1.jpg", b"x"), ("é" * 90 + ".jpg", b"y")])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD[: SECOND + 700], r"0001\.jpg: cut off: \d+ of its \d+ bytes are missing"),
        (GOOD[: SECOND + 100], r"cut off after 0000\.cls: it ends without the mark of its end"),
        (GOOD[:LAST], r"cut off after 0002\.jpg: it ends without the mark of its end"),
        (flipped(GOOD, SECOND + 2), r"the header after 0000\.cls, at byte \d.*, is damaged \(bad checksum\)"),
        (flipped(GOOD, 2), "no tar file: bad checksum"),
        (GOOD + GOOD, r"more follows the end of the archive after 0002\.cls; were tars joined"),
        (b"\x1f\x8b" + bytes(1000), "no tar file: compressed"),
        (jpeg(0) + bytes(1000), "no tar file"),
        (b"", "cut off after its beginning"),
        (tar_bytes([("1.jpg", b""), ("1.cls", b"0")]), r"1\.jpg: a picture of no bytes"),
        (tar_bytes([("1.jpg", b"x"), ("1.cls", b"0"), ("1.jpg", b"y")]), r"1\.jpg: stands twice in the tar"),
        (
            tar_bytes([("1.jpg", b"x"), ("2.jpg", b"x"), ("1.jpg", b"y")]),
            r"1\.jpg: its sample stands twice in the tar, apart",
        ),
        (tar_bytes([("1.jpg", b"x"), ("1.png", b"0")]), r"1\.png: a second picture beside 1\.jpg"),
        (tar_bytes([("1.cls", b"0")]), r"1\.cls: a label without a picture"),
        (tar_bytes([("1.jpg", b"x"), ("1.cls", b" ")]), r"1\.cls: an empty label"),
        (tar_bytes([("1.jpg", b"x"), ("1.cls", b"\xff")]), r"1\.cls: not a text"),
        (tar_bytes([("1.jpg", b"x"), ("1.json", b"{")]), r"1\.json: no JSON object"),
        (tar_bytes([("1.jpg", b"x"), ("1.json", b"[1]")]), r"1\.json: no JSON object"),
        (PAX.replace(b" path=", b" pith\n"), r"the pax header after 1\.jpg is damaged"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_tar_and_member(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=r"^x\.tar: ") as failure:
        pictures(data)
    failure.match(message)
    assert "\n" not in str(failure.value)


@settings(max_examples=150)
@given(st.data())
def test_no_damage_gives_another_error_or_reads_beyond(given_data: st.DataObject) -> None:
    at = given_data.draw(st.integers(0, len(GOOD) - 1))
    damage: Callable[[], bytes] = given_data.draw(
        st.sampled_from([partial(flipped, GOOD, at), lambda: GOOD[:at], lambda: GOOD[:at] + bytes(len(GOOD) - at)])
    )
    try:
        found = pictures(damage())
    except UserError:
        return
    assert all(0 < f.start <= f.start + f.length <= len(GOOD) for f in found)
