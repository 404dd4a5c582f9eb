"""Answers in a file, .csv or .parquet, that can be left in the middle and gone on with: a row per picture.

  path, class, probability, top2_class, top2_probability, …, error

`class` is empty where there is no answer, be it for want of probability or for an error; so are the cells of classes
that the model does not have. What is checked of a file before more is appended: its columns, and of a .parquet file the
SHA-256 of the model too, which a .csv file has no place for.

  .csv      the rows of a batch are written at once, so whatever ends the process leaves whole lines; of a line that a
            machine without power left torn, nothing stays. UTF-8; names that are not keep their bytes.
  .parquet  cannot be appended to: what was there and what is new go into a file beside it, which takes its place at the
            end. Whatever can be caught, such as Ctrl-C, ends it in order; a kill loses what is new. Names that are not
            UTF-8 have escapes, as on screen.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from resnetkit.atomic import sync_folder
from resnetkit.errors import UserError, shown_name
from resnetkit.parquet import pyarrow

if TYPE_CHECKING:
    from resnetkit.prediction import Prediction

ENDINGS = (".csv", ".parquet")
TORN = 1 << 16  # bytes at the end of a file that may be one line begun; more are a table with a quote too many
GROUP = 8192  # rows of a .parquet file that are kept in memory and written together
KEY = b"resnetkit"


def columns(top: int) -> list[str]:
    others = [name for place in range(2, top + 1) for name in (f"top{place}_class", f"top{place}_probability")]
    return ["path", "class", "probability", *others, "error"]


def cells(answer: Prediction, top: int) -> list[str | float | None]:
    """The row of an answer."""
    others: list[str | float | None] = [cell for pair in answer.top[1:top] for cell in pair]
    others += [None] * (2 * (top - 1) - len(others))
    return [answer.path, answer.answer, answer.probability, *others, answer.error]


def check_target(out: str, append: bool) -> Path:
    """Raise UserError where a file of this name cannot be written, before any work."""
    path = Path(out)
    if path.suffix not in ENDINGS:
        raise UserError(f"{out}: answers go into a .csv or a .parquet file; give the name one of these endings")
    if not path.parent.is_dir():
        raise UserError(f"{out}: there is no folder {path.parent}; make it first, or choose another place")
    if os.path.lexists(out) and not append:
        raise UserError(f"{out}: exists already; go on with it with --append, or choose another name")
    if os.path.lexists(out) and not path.is_file():
        raise UserError(f"{out}: not a file; choose another name")
    return path


class Table:
    """A file of answers, to be used in a `with` block: made when the first rows come or the block ends well.

    Raises UserError when it cannot be written, is there already, or is not one that more of the same can go into.
    """

    def __init__(self, path: Path, top: int) -> None:
        self.path, self.top, self.columns = path, top, columns(top)
        self.done: set[str] = set()
        self.note = ""  # how pictures were looked at, for files that have a place for it; may be given until rows come

    def __contains__(self, path: str) -> bool:
        """Whether the picture had a row when the file was opened."""
        return path in self.done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._explained():
            self._close(well=kind is None)

    def write(self, rows: Sequence[Prediction]) -> None:
        with self._explained():
            self._write(rows)

    def _write(self, rows: Sequence[Prediction]) -> None:
        raise NotImplementedError

    def _close(self, *, well: bool) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); choose another place or make room"
            ) from None

    def _refuse(self, found: Sequence[str]) -> UserError:
        shown = ", ".join(found[:7]) + (", …" if len(found) > 7 else "")
        return UserError(f"{self.path}: has other columns ({shown}), as with another --top; choose another name")


class CsvTable(Table):
    """`whole` is how many bytes of the file are whole lines; what is behind them goes when it is opened for writing."""

    def __init__(self, path: Path, top: int) -> None:
        super().__init__(path, top)
        self.file: BinaryIO | None = None
        self.header = as_line(self.columns)
        self.whole = 0
        if path.exists():
            with self._explained(), path.open("rb") as file:
                self._read(file)

    def _read(self, file: BinaryIO) -> None:
        """Which pictures have a row, and where the last whole line ends."""
        rows = csv.reader(self._texts(file))
        try:
            header = next(rows, None)
            if header == self.columns:
                self.done = {row[0] for row in rows if row}
        except csv.Error as error:
            raise UserError(f"{self.path}: cannot be read as a table ({error}); choose another name") from None
        if header is None:
            file.seek(0)
            begun = file.read(len(self.header))
            header = self.columns if self.header.startswith(begun) else [begun.decode("utf-8", "replace")]
        if header != self.columns:
            raise self._refuse(header)
        if self.path.stat().st_size > self.whole + TORN:
            raise UserError(f"{self.path}: from byte {self.whole:,} on a quote is not closed; choose another name")

    def _texts(self, file: BinaryIO) -> Iterator[str]:
        """Whole rows as `csv` takes them."""
        for record, end in records(file):
            yield record.decode("utf-8", "surrogateescape")
            self.whole = end

    def _write(self, rows: Sequence[Prediction]) -> None:
        if self.file is None:
            self.file = self.path.open("r+b" if self.path.exists() else "xb", buffering=0)
            self.file.truncate(self.whole)
            self.file.seek(self.whole)
        data = b"".join(as_line(cells(row, self.top)) for row in rows)
        rest = memoryview(data if self.whole else self.header + data)
        try:
            at = self.whole + len(rest)
            while rest:  # one piece, unless there is no room for it
                rest = rest[self.file.write(rest) :]
            self.whole = at
        except BaseException:
            self.file.truncate(self.whole)
            raise

    def _close(self, *, well: bool) -> None:
        if well and self.file is None:
            self._write(())
        if self.file is not None:
            os.fsync(self.file.fileno())
            self.file.close()


def records(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Whole rows and where each ends. A line that ends inside quotes goes on with the next."""
    parts: list[bytes] = []
    end, quotes = 0, 0
    for line in file:
        parts.append(line)
        end += len(line)
        quotes += line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            yield b"".join(parts), end
            parts.clear()


def as_line(values: Sequence[str | float | None]) -> bytes:
    """A line of CSV, numbers with all their digits. Quoted by ourselves: `csv` leaves a carriage return bare."""
    texts = ("" if value is None else value if isinstance(value, str) else repr(value) for value in values)
    quoted = ('"{}"'.format(text.replace('"', '""')) if any(c in text for c in ',"\r\n') else text for text in texts)
    return f"{','.join(quoted)}\n".encode("utf-8", "surrogateescape")


class ParquetTable(Table):
    """`model` is the SHA-256 of the model."""

    def __init__(self, path: Path, top: int, model: str) -> None:
        super().__init__(path, top)
        self.pa, self.parquet = pyarrow(instead=".csv"), pyarrow("pyarrow.parquet")
        self.model = model
        self.rows: list[list[str | float | None]] = []
        self.writer: Any = None
        self.part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self.before: Any = None
        self.spoilt = False
        if path.exists():
            with self._explained():
                self._read()

    def __contains__(self, path: str) -> bool:
        return shown_name(path) in self.done

    def _read(self) -> None:
        try:
            self.before = self.parquet.ParquetFile(self.path)
        except (self.pa.ArrowInvalid, OSError):
            raise UserError(f"{self.path}: not a Parquet file, or damaged; choose another name") from None
        if self.before.schema_arrow.names != self.columns:
            raise self._refuse(self.before.schema_arrow.names)
        about = json.loads((self.before.schema_arrow.metadata or {}).get(KEY, b"{}"))
        if about.get("model") != self.model:
            raise UserError(f"{self.path}: has the answers of another model; choose another name")
        for batch in self.before.iter_batches(columns=["path"]):
            self.done.update(batch.column(0).to_pylist())

    def _write(self, rows: Sequence[Prediction]) -> None:
        self.rows += [cells(row, self.top) for row in rows]
        if len(self.rows) >= GROUP:
            self._flush()

    def _flush(self) -> None:
        """Write the rows as a group; those that are interrupted are left out, rather than written twice."""
        rows, self.rows = self.rows, []
        writer = self._writer()
        turned = list(zip(*rows, strict=True)) or [()] * len(self.columns)
        plain = [[shown_name(cell) if isinstance(cell, str) else cell for cell in column] for column in turned]
        arrays = [self.pa.array(column, field.type) for column, field in zip(plain, writer.schema, strict=True)]
        try:
            writer.write_table(self.pa.table(arrays, schema=writer.schema))
        except OSError:
            self.spoilt = True
            raise

    def _writer(self) -> Any:
        """Of the file beside, once all rows that were there before are in it."""
        if self.writer is None:
            schema = self._schema()
            writer = self.parquet.ParquetWriter(self.part, schema)
            for group in range(self.before.num_row_groups if self.before else 0):
                writer.write_table(self.before.read_row_group(group).cast(schema))
            self.writer = writer
        return self.writer

    def _schema(self) -> Any:
        kinds = {True: self.pa.float64(), False: self.pa.string()}
        fields = [self.pa.field(name, kinds[name.endswith("probability")]) for name in self.columns]
        about = json.dumps({"model": self.model, "protocol": self.note})
        return self.pa.schema(fields, metadata={KEY: about.encode()})

    def _close(self, *, well: bool) -> None:
        try:
            if self.rows or (well and not self.before and self.writer is None):
                self._flush()
            if self.writer is None:
                return
            self.writer.close()
            if self.spoilt:
                return
            with self.part.open("rb+") as file:
                os.fsync(file.fileno())
            self.part.replace(self.path)
        finally:
            with contextlib.suppress(OSError):
                self.part.unlink()
        sync_folder(self.path.parent)


def open_table(out: str, top: int, *, append: bool, model: str) -> CsvTable | ParquetTable:
    """The table of a name by its ending; see `Table`."""
    path = check_target(out, append)
    return ParquetTable(path, top, model) if path.suffix == ".parquet" else CsvTable(path, top)
