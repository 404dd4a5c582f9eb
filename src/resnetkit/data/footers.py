"""What Parquet files of pictures say of themselves: columns, row groups, labels. Read in ranges, wherever they lie."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from resnetkit.data.blobs import Blobs
from resnetkit.engines import cache
from resnetkit.errors import UserError
from resnetkit.parquet import pyarrow

IMAGE, LABEL = ("image", "img"), ("label", "labels", "fine_label")
THREADS = 16  # files that are looked at side by side; where they are far away, that is mostly waiting
FORMAT = "resnetkit parquet footer 2"


@dataclass(frozen=True)
class Footer:
    """One file, as far as it must be known before a picture is read.

    image, label  the columns; `struct`: the pictures are in `image.bytes`
    groups        of each row group: rows, bytes of the pictures in all, and where those begin and how many bytes they
                  take in the file
    names         of the classes, where the schema's "huggingface" metadata have them
    labels        of each row: a class's number, a text, or None
    """

    image: str
    label: str
    struct: bool
    groups: list[list[int]]
    names: list[str] | None
    labels: list[Any]


class BlobFile(io.RawIOBase):
    """One blob as the file that pyarrow reads; `ask` gives the bytes from a start on, so many of them."""

    def __init__(self, size: int, ask: Callable[[int, int], bytes]) -> None:
        self._size, self._ask, self._at = size, ask, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        rest = max(0, self._size - self._at)
        data = self._ask(self._at, rest if size < 0 else min(size, rest))
        self._at += len(data)
        return data


def opened(blobs: Blobs, k: int, *, metadata: Any = None, few: bool = False) -> Any:
    """A file as pyarrow's ParquetFile. Raises UserError: none, damaged, not there, refused.

    metadata  its own, where they are known already
    few       only a few bytes here and there will be wanted
    """
    parquet = pyarrow("pyarrow.parquet", instead=".tar")
    ask = partial(blobs.read_few if few else blobs.read, k)
    try:
        return parquet.ParquetFile(BlobFile(blobs.size(k), ask), metadata=metadata)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{blobs.name(k)}: cannot be read as a Parquet file ({error}); fetch it anew") from None


def footers(blobs: Blobs, *, far: bool) -> list[Footer]:
    """Those of all files. Raises UserError as `read_footer`."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="footer") as pool:
        return list(pool.map(partial(kept if far else read_footer, blobs), range(len(blobs))))


def kept(blobs: Blobs, k: int) -> Footer:
    """What was found when the file was first looked at, or what is found now: its labels cost a request a row group."""
    text = f"{FORMAT}\0{blobs.name(k)}\0{blobs.version(k)}"
    place = cache.folder(hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest())
    known = cache.recall(place, "footer")
    if known is not None:
        return Footer(**known)
    found = read_footer(blobs, k)
    cache.remember(place, "footer", asdict(found))
    return found


def read_footer(blobs: Blobs, k: int) -> Footer:
    """Look at a file. Raises UserError: damaged, not there, no column of pictures or of labels."""
    file = opened(blobs, k, few=True)
    schema = file.schema_arrow
    image, label = (find(schema.names, words, blobs.name(k)) for words in (IMAGE, LABEL))
    leaves = [file.metadata.schema.column(c).path for c in range(file.metadata.num_columns)]
    struct = any(path.startswith(f"{image}.") for path in leaves)
    place = leaves.index(f"{image}.bytes" if struct else image)
    groups = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
    sizes = [[group.num_rows, *room(group.column(place))] for group in groups]
    try:
        labels = file.read(columns=[label]).column(label).to_pylist()
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{blobs.name(k)}: its labels cannot be read ({error}); fetch it anew") from None
    return Footer(image, label, struct, sizes, class_names(schema, label), labels)


def room(chunk: Any) -> tuple[int, int, int]:
    """Of a column of a row group: bytes of its values, and the place it has in the file."""
    begin = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
    return chunk.total_uncompressed_size, min(begin, chunk.data_page_offset), chunk.total_compressed_size


def find(names: Sequence[str], words: Sequence[str], file: str) -> str:
    """The column called by one of the words."""
    found = next((word for word in words if word in names), None)
    if found is None:
        raise UserError(f"{file}: no column {' or '.join(words)} (columns: {', '.join(names) or 'none'}); rename it")
    return found


def class_names(schema: Any, label: str) -> list[str] | None:
    """The names of the classes in Hugging Face's metadata, if they are there."""
    try:
        feature = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]
        return [str(name) for name in feature["names"]]
    except (KeyError, TypeError, ValueError):
        return None
