"""Tables of pictures: what they may look like, and errors that name the line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resnetkit.data.table import load_table
from resnetkit.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files a.jpg, b.jpg and sub/c.jpg."""
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def table(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("path,label,split\nb.jpg,dog,val\na.jpg,cat,train\nsub/c.jpg,cat,test\n", "t.csv"),
        ("path\tlabel\tsplit\nb.jpg\tdog\tval\na.jpg\tcat\ttrain\nsub/c.jpg\tcat\ttest\n", "t.TSV"),
        (
            "\ufeffid,Path, Label ,SPLIT\r\n1,b.jpg,dog,Valid\r\n2,a.jpg, cat,train\r\n\r\n3,./sub/c.jpg,cat,test",
            "t.csv",
        ),
    ],
)
def test_a_divided_table(folder: Path, text: str, name: str) -> None:
    data = load_table(table(folder, text, name))
    assert [data.pictures.name(i) for i in range(3)] == ["a.jpg", "b.jpg", "sub/c.jpg"]
    assert data.pictures.read(2) == b"sub/c.jpg"
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 1, 0]
    assert {name: indices.tolist() for name, indices in data.splits.items()} == {"train": [0], "val": [1], "test": [2]}


def test_absolute_paths_quotes_and_bytes_that_are_not_utf8(folder: Path) -> None:
    odd = b'\xff, "q".jpg'
    (folder / os.fsdecode(odd)).write_bytes(b"odd")
    text = b'path,label\n"\xff, ""q"".jpg",x\n' + os.fsencode(folder / "a.jpg") + b",y\n"
    data = load_table(table(folder, text))
    assert {bytes(data.pictures.read(i)) for i in range(2)} == {b"odd", b"a.jpg"}
    assert list(data.splits) == ["all"]


def test_a_repeated_row_counts_once(folder: Path) -> None:
    data = load_table(table(folder, "path,label\na.jpg,x\n./a.jpg,x\nb.jpg,y\n"))
    assert len(data) == 2
    assert data.notes == ("1 of the rows repeat an earlier one and count once",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.jpg,x\n", r"no column 'path' in the first line \(columns: 'file', 'label'\)"),
        ("path,lable\na.jpg,x\n", r"no column 'label' .*\(columns: 'path', 'lable'\); is it called 'lable'\?"),
        ("path;label\na.jpg;x\n", "separate columns by commas"),
        ("path,label\na.jpg,x\n".encode("utf-16"), "looks like UTF-16"),
        ("", r"no column 'path' in the first line \(columns: none\)"),
        ("path,label\n\n", "no rows below the header"),
        ("path,label\na.jpg,x\nb.jpg,y\na.jpg,z\n", "a.jpg has two labels, 'x' on line 2 and 'z' on line 4"),
        (
            "path,label,split\na.jpg,x,train\na.jpg,x,val\n",
            "a.jpg has two splits, 'train' on line 2 and 'val' on line 3",
        ),
        (
            "path,label,split\na.jpg,x,trian\n",
            "line 2: split 'trian': choose from train, val, test; did you mean 'train'",
        ),
        ("path,label,split\na.jpg,x,\n", "line 2: split '': choose"),
        ("path,label\na.jpg,x\nb.jpg, \n", "line 3: label is empty"),
        ("path,label\na.jpg\n", "line 2: label is empty"),
        ("path,label\n,x\n", "line 2: path is empty"),
        (
            "path,label\na.jpg,x\nno.jpg,x\nsub,y\n",
            r"2 files are not there: no.jpg \(line 3\), sub \(line 4\); a relative",
        ),
        ('path,label\n"a.jpg,x\n', "cannot be read as a table"),
    ],
)
def test_errors_say_where(folder: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_table(table(folder, text))


def test_ten_missing_files_are_named(folder: Path) -> None:
    rows = "".join(f"no{i}.jpg,x\n" for i in range(12))
    with pytest.raises(UserError, match=r"12 files are not there: .*no9.jpg \(line 11\) and 2 more; a relative"):
        load_table(table(folder, "path,label\n" + rows))


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"t.csv: no such file"):
        load_table(tmp_path / "t.csv")
