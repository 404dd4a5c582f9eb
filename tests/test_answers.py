"""Files of answers: what stands in them, names of any kind, and that they can be left anywhere and gone on with."""

from __future__ import annotations

import csv
import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnetkit import answers
from resnetkit.answers import CsvTable, ParquetTable, open_table
from resnetkit.errors import UserError
from resnetkit.prediction import Prediction

TOP = 3
HEADER = ["path", "class", "probability", "top2_class", "top2_probability", "top3_class", "top3_probability", "error"]
ODD = (
    "plain.png",
    'comma, "quoted".png',
    "two\nlines.png",
    "\r\n returns \r.png",
    os.fsdecode(b"not UTF-8 \xff.png"),
    "猫.png",
    '"',
    " ",
)


def answer(path: str, *names: str) -> Prediction:
    top = tuple((name, 1 / (3 + place)) for place, name in enumerate(names or ("cat", "dog", "eel")))
    return Prediction(path, top[0][0], top[0][1], top, None)


UNSURE = Prediction("b.jpg", None, 0.4, (("cat", 0.4), ("dog", 0.3)), None)
BAD = Prediction("c.jpg", None, None, (), 'cut short, "twice"\n')


def read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def table(path: Path, *, append: bool = False, top: int = TOP, model: str = "abc") -> CsvTable | ParquetTable:
    return open_table(str(path), top, append=append, model=model)


def write(path: Path, rows: list[Prediction], **named: Any) -> None:
    with table(path, **named) as out:
        out.write([row for row in rows if row.path not in out])


def rows_of(path: Path) -> list[list[Any]]:
    """What a file holds, as cells."""
    if path.suffix == ".csv":
        return read(path)[1:]
    from pyarrow import parquet

    return [list(row.values()) for row in parquet.read_table(path).to_pylist()]


@pytest.fixture(params=["a.csv", "a.parquet"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="needs pyarrow, the extra 'parquet'")
    return tmp_path / request.param


# What stands there


def test_a_csv_file(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [answer("a.jpg"), UNSURE, BAD])
    assert read(tmp_path / "a.csv") == [
        HEADER,
        ["a.jpg", "cat", repr(1 / 3), "dog", "0.25", "eel", "0.2", ""],
        ["b.jpg", "", "0.4", "dog", "0.3", "", "", ""],
        ["c.jpg", "", "", "", "", "", "", 'cut short, "twice"\n'],
    ]


def test_a_parquet_file(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow, the extra 'parquet'")
    from pyarrow import parquet

    with table(tmp_path / "a.parquet") as out:
        out.note = "single centre crop"
        out.write([answer("a.jpg"), UNSURE])
        out.write([BAD])
    found = parquet.read_table(tmp_path / "a.parquet")
    assert found.column_names == HEADER
    assert [found.schema.field(name).type for name in HEADER[:3]] == [pa.string(), pa.string(), pa.float64()]
    assert found.schema.metadata[b"resnetkit"] == b'{"model": "abc", "protocol": "single centre crop"}'
    assert found.to_pylist()[0]["probability"] == 1 / 3
    assert [list(row.values()) for row in found.to_pylist()[1:]] == [
        ["b.jpg", None, 0.4, "dog", 0.3, None, None, None],
        ["c.jpg", None, None, None, None, None, None, 'cut short, "twice"\n'],
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_names_of_any_kind(tmp_path: Path) -> None:
    rows = [answer(name, *ODD[:2], name) for name in ODD]
    for append in (False, True, True):
        write(tmp_path / "a.csv", rows, append=append)
        found = read(tmp_path / "a.csv")[1:]
        assert [row[0] for row in found] == list(ODD)
        assert [row[5] for row in found] == list(ODD)


@given(st.lists(st.text(st.characters(codec=None, exclude_characters="\0"), max_size=6), min_size=1, max_size=4))
def test_any_text_comes_back(texts: list[str]) -> None:
    texts = [os.fsdecode(text.encode("utf-8", "replace")) for text in texts]
    line = answers.as_line(texts).decode("utf-8", "surrogateescape")
    assert list(csv.reader([line])) == [texts] or texts == [""]


def test_names_in_parquet_are_those_on_screen(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow, the extra 'parquet'")
    path = tmp_path / "a.parquet"
    write(path, [answer(name, name) for name in ODD])
    write(path, [answer(name) for name in (*ODD, "new")], append=True)
    shown = [*ODD[:4], r"not UTF-8 \xff.png", *ODD[5:]]
    assert [row[0] for row in rows_of(path)] == [*shown, "new"]
    assert [row[1] for row in rows_of(path)] == [*shown, "cat"]


def test_nothing_to_write_is_a_file_without_rows(out: Path) -> None:
    write(out, [])
    assert rows_of(out) == []
    write(out, [answer("a.jpg")], append=True)
    write(out, [answer("a.jpg")], append=True)
    assert [row[0] for row in rows_of(out)] == ["a.jpg"]


# Left in the middle

MANY = [answer(f"{name} {number}") for number in range(3) for name in ODD] + [UNSURE, BAD]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(place=st.integers(0, 10**6), batch=st.integers(1, 5))
def test_cut_anywhere_and_gone_on_with_is_one_run(place: int, batch: int, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole.csv", tmp_path / "torn.csv"
    for path in (whole, torn):
        path.unlink(missing_ok=True)
    write(whole, MANY)
    torn.write_bytes(whole.read_bytes()[: place % (whole.stat().st_size + 1)])
    with table(torn, append=True) as out:
        rest = [row for row in MANY if row.path not in out]
        for first in range(0, len(rest), batch):
            out.write(rest[first : first + batch])
    assert torn.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, UserError])
def test_what_is_done_stays(error: type[BaseException], out: Path) -> None:
    def interrupted(first: int) -> None:
        with table(out, append=True) as begun:
            rows = [row for row in MANY if row.path not in begun]
            assert len(rows) == len(MANY) - first
            begun.write(rows[:4])
            begun.write(rows[4:9])
            raise error

    for first in range(0, len(MANY), 9):
        with pytest.raises(error):
            interrupted(first)
    one = out.with_stem("one")
    write(one, MANY)
    assert rows_of(out) == rows_of(one)
    assert sorted(path.name for path in out.parent.iterdir()) == sorted([out.name, one.name])


def test_nothing_done_leaves_nothing(out: Path) -> None:
    with pytest.raises(KeyboardInterrupt), table(out):
        raise KeyboardInterrupt
    assert list(out.parent.iterdir()) == []


def test_rows_are_there_as_soon_as_they_are_written(tmp_path: Path) -> None:
    with table(tmp_path / "a.csv") as out:
        for number in range(1, 4):
            out.write([answer(str(number))])
            assert len(read(tmp_path / "a.csv")) == 1 + number


class Device:
    """A file with room for so many bytes in all."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        here = min(self.room, len(data))
        self.room -= here
        return int(self.file.write(data[:here]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1, 40])
def test_without_room_whole_lines_stay(room: int, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with table(path) as out:
        assert isinstance(out, CsvTable)
        out.write([answer("a.jpg")])
        out.file = Device(out.file, room)  # type: ignore[assignment]
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); "):
            out.write([answer("b.jpg"), answer("c.jpg")])
    assert [row[0] for row in read(path)] == ["path", "a.jpg"]


def test_a_parquet_file_that_cannot_be_finished_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, the extra 'parquet'")
    path = tmp_path / "a.parquet"
    write(path, [answer("a.jpg")])
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(parquet.ParquetWriter, "write_table", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); "):
        write(path, [answer("b.jpg")], append=True)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_groups_of_rows_are_copied_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, the extra 'parquet'")
    monkeypatch.setattr(answers, "GROUP", 10)
    path = tmp_path / "a.parquet"
    for last in (15, 30):
        with table(path, append=True) as out:
            for number in range(last - 15, last):
                out.write([answer(str(number))])
    file = parquet.ParquetFile(path)
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [10, 5, 10, 5]
    assert [row[0] for row in rows_of(path)] == [str(number) for number in range(30)]


# What is refused


@pytest.mark.parametrize(
    ("name", "append", "message"),
    [
        ("a.txt", False, r"a\.txt: answers go into a \.csv or a \.parquet file; give the name one of these endings"),
        ("no/a.csv", False, r"no/a\.csv: there is no folder .*no; make it first, or choose another place"),
        ("old.csv", False, r"old\.csv: exists already; go on with it with --append, or choose another name"),
        ("link.csv", False, r"link\.csv: exists already; go on with it"),
        ("link.csv", True, r"link\.csv: not a file; choose another name"),
        ("folder.csv", True, r"folder\.csv: not a file; choose another name"),
        ("other.csv", True, r"other\.csv: has other columns \(path, label\), as with another --top; choose another"),
        ("text.csv", True, r"text\.csv: has other columns \(no table\), as with another --top; choose another name"),
        ("other.parquet", True, r"other\.parquet: not a Parquet file, or damaged; choose another name"),
        ("quote.csv", True, r"quote\.csv: from byte 132 on a quote is not closed; choose another name"),
    ],
)
def test_files_that_are_refused(name: str, append: bool, message: str, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="needs pyarrow, the extra 'parquet'")
    write(tmp_path / "old.csv", [answer("a.jpg")])
    (tmp_path / "link.csv").symlink_to("nowhere")
    (tmp_path / "folder.csv").mkdir()
    for other in ("other.csv", "other.parquet"):
        (tmp_path / other).write_text("path,label\na.jpg,cat\n")
    (tmp_path / "text.csv").write_text("no table")
    damaged = (tmp_path / "old.csv").read_bytes() + b'"b.jpg,cat\n' + b"c.jpg,cat\n" * 10_000
    (tmp_path / "quote.csv").write_bytes(damaged)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=message), table(tmp_path / name, append=append) as out:
        out.write([answer("new.jpg")])
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_another_top_is_refused(out: Path) -> None:
    write(out, [answer("a.jpg")])
    with pytest.raises(UserError, match=r"has other columns \(path, class, .*\), as with another --top; choose"):
        table(out, append=True, top=4)


def test_answers_of_another_model_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow, the extra 'parquet'")
    write(tmp_path / "a.parquet", [answer("a.jpg")])
    with pytest.raises(UserError, match=r"a\.parquet: has the answers of another model; choose another name"):
        table(tmp_path / "a.parquet", append=True, model="def")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"need pyarrow, which is not installed: .*, or write a \.csv file"):
        table(tmp_path / "a.parquet")
    write(tmp_path / "a.csv", [])


def test_lines_that_a_spreadsheet_saved(tmp_path: Path) -> None:
    """Its line ends and a missing last one cost nothing but the last row, which is made again."""
    path = tmp_path / "a.csv"
    write(path, [answer("a.jpg"), answer("b.jpg")])
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    write(path, [answer("a.jpg"), answer("b.jpg"), answer("c.jpg")], append=True)
    assert [row[0] for row in read(path)] == ["path", "a.jpg", "b.jpg", "c.jpg"]
