"""One shard: pictures from anywhere into a tar, with its index; whole under its name, or not there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from resnetkit.atomic import write_bytes
from resnetkit.data import tarindex
from resnetkit.data.audit import GREY, oddities
from resnetkit.data.decode import Header, decode, probe
from resnetkit.data.pictures import Data, Indices, Pictures, Pixels, name_bad
from resnetkit.data.resizing import resized
from resnetkit.data.tarindex import BLOCK, SUFFIX, Column
from resnetkit.data.tars import padded
from resnetkit.errors import BadPicture, UserError

ENDINGS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp", "PPM": "ppm"}
# Of a ustar header (POSIX.1-1988), what is the same for all members; 0o644, root by number and by no name, in 1970.
MODE_AND_OWNER, TIME = b"0000644\0" + b"0000000\0" * 2, b"00000000000\0"
REST = b"0" + bytes(100) + b"ustar\00" + b"00" + bytes(247)
SYNCED = 16 << 20  # bytes after which the disk is waited for, so that it works while other threads compute
READING = 8  # pictures side by side, of which far ones are mostly waited for
QUALITY = 90  # of JPEGs that are made anew


@dataclass(frozen=True)
class Written:
    """A shard on the disk, as its index tells. `bad` has the pictures that were left out, by name in the source."""

    name: str
    pictures: int
    bytes: int
    sha256: str
    bad: dict[str, str]

    @classmethod
    def of(cls, path: Path) -> Written | None:
        """The shard at a path, if it is whole by its size; its bytes are not read."""
        try:
            index = tarindex.load(path.with_name(path.name + SUFFIX))
            if path.stat().st_size != index.about["bytes"]:
                return None
        except FileNotFoundError:
            return None
        return cls(path.name, index.n, index.about["bytes"], index.about["sha256"], index.about["bad"])


@dataclass(frozen=True)
class Row:
    """A picture in a shard, for the index."""

    name: str
    start: int  # byte
    length: int
    label: int
    sha256: bytes
    header: Header


class Held:
    """Some pictures of a pool, read beforehand in the pool's order, because they lie in row groups or far away."""

    def __init__(self, pictures: Pictures, indices: Indices) -> None:
        self.pictures = pictures
        self._read: dict[int, bytes | Pixels] = {}

        def read(i: int) -> None:
            with contextlib.suppress(BadPicture, OSError):  # which it says again when its turn comes
                self._read[i] = pictures.read(i)

        with ThreadPoolExecutor(READING, thread_name_prefix="hold") as pool:
            for _ in pool.map(read, np.sort(indices).tolist()):
                pass

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, i: int) -> str:
        return self.pictures.name(i)

    def size(self, i: int) -> int:
        return self.pictures.size(i)

    def read(self, i: int) -> bytes | Pixels:
        found = self._read.pop(i, None)
        return self.pictures.read(i) if found is None else found


def room(size: int) -> int:
    """Bytes that a picture of `size` bytes takes in a tar with its label, where its name is short and plain."""
    return BLOCK + padded(size) + 2 * BLOCK


def write_shard(
    data: Data, indices: Indices, path: Path, digest: str, short_side: int | None, *, skip: bool
) -> Written:
    """Write the pictures in this order, then the index. `digest` says which set the shard is of.

    Raises UserError naming pictures that cannot be read, unless they are to be left out (`skip`); OSError. Nothing
    half-written stays.
    """
    if data.shards is not None:
        data = replace(data, pictures=Held(data.pictures, indices))
    part = path.with_name(f".{path.name}.part")
    total, at, synced = hashlib.sha256(), 0, 0
    rows: list[Row] = []
    keys: set[str] = set()
    bad: dict[int, str] = {}
    end = bytes(2 * BLOCK)
    try:
        with part.open("wb", buffering=1 << 20) as file:
            for i in indices.tolist():
                try:
                    picture, header = fetch(data, i, short_side)
                except BadPicture as error:
                    bad[i] = str(error)
                    continue
                key = key_for(data.pictures.name(i), keys)
                name, label = f"{key}.{ENDINGS[header.format]}", int(data.labels[i])
                head, tail = header_of(name, len(picture)), label_after(picture, key, label)
                rows.append(Row(name, at + len(head), len(picture), label, hashlib.sha256(picture).digest(), header))
                for piece in (head, picture, tail):
                    total.update(piece)
                    file.write(piece)
                    at += len(piece)
                if at - synced >= SYNCED:
                    os.fdatasync(file.fileno())
                    synced = at
            if bad and not skip:
                raise UserError(name_bad(data, bad, skip="leave them out with --bad skip"))
            total.update(end)
            file.write(end)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    named = {data.pictures.name(i): reason for i, reason in bad.items()}
    written = Written(path.name, len(rows), at + len(end), total.hexdigest(), named)
    write_bytes(path.with_name(path.name + SUFFIX), index_of(data, rows, written, digest))
    return written


def fetch(data: Data, i: int, short_side: int | None) -> tuple[bytes, Header]:
    """A picture's bytes as they are to be written, and their header. Raises BadPicture."""
    try:
        picture = data.pictures.read(i)
    except OSError as error:
        raise BadPicture(f"cannot be opened: {error.strerror}") from None
    if not isinstance(picture, bytes):
        picture = encoded(picture, "PNG")  # lossless, of pixels that came without a file
    header = probe(picture)
    if short_side is None or min(header.width, header.height) <= short_side:
        return picture, header
    pixels = decode(picture, channels=1 if header.mode in GREY else 3)
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    small = resized(pixels, short_side * width // shorter, short_side * height // shorter, "bilinear")
    picture = encoded(small, "JPEG")
    return picture, probe(picture)


def encoded(pixels: Pixels, form: str) -> bytes:
    """Pixels (H, W, C) as a file."""
    target = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(target, form, quality=QUALITY)
    return target.getvalue()


def key_for(name: str, taken: set[str]) -> str:
    """The key of a picture by its name in the source, unlike those that are taken; it is taken then.

    A key goes up to the first dot of its last part, so that part has none.
    """
    folder, _, last = name.rpartition("/")
    stem = (last.rpartition(".")[0] or last).replace(".", "_") or "_"
    parts = [part for part in folder.split("/") if part not in ("", ".", "..")]
    key, again = "/".join([*parts, stem]), 1
    while key in taken:
        again += 1
        key = "/".join([*parts, f"{stem}_{again}"])
    taken.add(key)
    return key


def label_after(picture: bytes, key: str, label: int) -> bytes:
    """What follows a picture's bytes: the rest of its last block, and the member with its label."""
    text = str(label).encode()
    return b"".join((padding(picture), header_of(f"{key}.cls", len(text)), text, padding(text)))


def header_of(name: str, size: int) -> bytes:
    """A member's header; the same on every day and for every user.

    Of a name that ustar takes as it is, written here, because tarfile needs as long as SHA-256 of the picture does.
    """
    if name.isascii() and len(name) <= 100:
        fields = (name.encode().ljust(100, b"\0"), MODE_AND_OWNER, b"%011o\0" % size, TIME)
        block = b"".join((*fields, b" " * 8, REST))
        return block[:148] + b"%06o\0 " % sum(block) + block[156:]
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def padding(data: bytes) -> bytes:
    return bytes(padded(len(data)) - len(data))


def index_of(data: Data, rows: list[Row], written: Written, digest: str) -> bytes:
    """The index file of a shard."""
    columns: dict[str, Column] = {
        "offsets": np.array([row.start // BLOCK for row in rows], np.uint32),
        "lengths": np.array([row.length for row in rows], np.uint32),
        "labels": np.array([row.label for row in rows], np.int32),
        "sha256": np.frombuffer(b"".join(row.sha256 for row in rows), np.uint8).reshape(-1, 32),
        "width": np.array([row.header.width for row in rows], np.uint32),
        "height": np.array([row.header.height for row in rows], np.uint32),
    }
    odd = {str(k): kinds for k, row in enumerate(rows) if (kinds := oddities(row.header, row.name))}
    about = {
        "bytes": written.bytes,
        "sha256": written.sha256,
        "classes": list(data.classes),
        "set": digest,
        "odd": odd,
        "grey": all(row.header.mode in GREY for row in rows),
        "bad": written.bad,
    }
    return tarindex.dump(columns, [row.name for row in rows], about)
