"""Files that engines run: what each says of itself, read without its engine and checked against its own SHA-256.

  .safetensors  model files: metadata
  .onnx         metadata_props
  .xml          rt_info, with the SHA-256 of the .bin file beside it
  .mnn          bizCode, the first field of the flatbuffer
  .pt2          resnetkit.json in the archive, with the SHA-256 of the other members

Everywhere it is the JSON text of a model file (docs/model-file.md), in exported ones with one more table, `export`.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from resnetkit.about import About, about_of
from resnetkit.errors import UserError
from resnetkit.sealing import PLACE, is_whole
from resnetkit.tensorfile import KEY

Input = Literal["uint8", "float"]
Bytes = bytes | mmap.mmap
METADATA, PROP_KEY, PROP_VALUE = 14, 1, 2  # onnx.proto: ModelProto.metadata_props; StringStringEntryProto
INPUTS = ("uint8", "float")
PRECISIONS = ("fp32", "int8")
AS_IT_IS = {"input": "uint8", "precision": "fp32"}


@dataclass(frozen=True)
class Source:
    """A model file or an exported one.

    input      what it takes: "uint8" pictures (N, size, size, C), or "float", normalised (N, C, size, size)
    precision  "fp32" or "int8"
    digest     equal ones are equal files
    """

    path: Path
    about: About
    input: Input
    precision: str
    digest: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one picture, as the file takes it."""
        side, channels = self.about.preprocess.size, self.about.preprocess.channels
        return (side, side, channels) if self.input == "uint8" else (channels, side, side)

    def check_input(self, shape: Sequence[Any]) -> None:
        """Raise UserError where the file's network takes something else than its metadata say; engines differ in what
        they do then, and MNN reads beyond the array."""
        if tuple(shape[1:]) != self.shape:
            raise UserError(
                f"{self.path}: its network takes pictures of {tuple(shape[1:])}, and its metadata say {self.shape}; "
                "export it again"
            )


def metadata(about: About, export: dict[str, Any], **more: Any) -> str:
    """The JSON text to put into a file that `sealing.seal` seals afterwards; `export` has `input` and `precision`."""
    return json.dumps({"sha256": PLACE, **more, **about.to_meta(), "export": export}, sort_keys=True)


def read(path: Path) -> Source:
    """What a file says. Raises UserError: missing, damaged, not made by resnetkit, or of a kind that nothing runs."""
    source = peek(path)
    verify(source)
    return source


def peek(path: Path) -> Source:
    """`read` without looking whether the file is whole, which takes a while; `verify` does that."""
    if path.suffix not in READERS:
        raise UserError(f"{path}: not a model; models end in {', '.join(READERS)}, weights come in with: resnet import")
    meta = metadata_of(path)
    export: Any = AS_IT_IS if path.suffix == ".safetensors" else meta.get("export")
    about = about_of(meta, str(path))
    if not isinstance(export, dict) or export.get("input") not in INPUTS or export.get("precision") not in PRECISIONS:
        raise UserError(f"{path}: its metadata have no usable 'export'; export it again")
    given: Input = export["input"]
    digest = str(meta.get("sha256", ""))
    if not re.fullmatch("[0-9a-f]{64}", digest):  # it names a folder in the cache before anybody has looked at it
        raise damaged(path)
    return Source(path, about, given, export["precision"], digest)


def metadata_of(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError where there is none."""
    try:
        text = READERS[path.suffix](path, mapped(path))
        found = None if text is None else json.loads(text)
    except DAMAGE as error:
        raise UserError(f"{path}: {WHAT[path.suffix]} is expected, and this is none, or damaged ({error})") from None
    meta: dict[str, Any] | None = found if isinstance(found, dict) else None
    if path.suffix == ".safetensors":
        about_of(meta, str(path))
    elif meta is None or meta.get("kind") != "model":
        raise UserError(
            f"{path}: not exported by resnetkit: it says nothing of classes and preprocessing; make one with: "
            f"resnet export MODEL --to {TO[path.suffix]} --out {path}"
        )
    assert meta is not None
    return meta


def verify(source: Source) -> None:
    """Raise UserError where a file, or what lies beside it, is not as it was written. Other threads go on."""
    path = source.path
    packed = path.suffix == ".pt2"
    good = source.digest == members_digest(path) if packed else is_whole(mapped(path), source.digest)
    if good and path.suffix == ".xml":
        good = hashlib.sha256(mapped(path.with_suffix(".bin"))).hexdigest() == metadata_of(path).get("bin")
    if not good:
        raise damaged(path)


def damaged(path: Path) -> UserError:
    return UserError(
        f"{path}: damaged: its SHA-256 is not the one it was written with; restore it from a copy or export it anew"
    )


def mapped(path: Path) -> Bytes:
    """A file's bytes, not copied. Raises UserError when it cannot be read."""
    try:
        with path.open("rb") as file:
            empty = os.fstat(file.fileno()).st_size == 0
            return b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def safetensors_text(_: Path, data: Bytes) -> str | None:
    """Raises ValueError for what has no header."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    text: str | None = (header.get("__metadata__") or {}).get(KEY)
    return text


def onnx_text(_: Path, data: Bytes) -> str | None:
    """Raises ValueError for bytes that are no protobuf message."""
    for number, entry in fields(memoryview(data)):
        if number == METADATA:
            parts = {part: str(text, "utf-8") for part, text in fields(entry)}
            if parts.get(PROP_KEY) == KEY:
                return parts.get(PROP_VALUE)
    return None


def fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, value) of each field of a protobuf message that has bytes. Raises ValueError.

    https://protobuf.dev/programming-guides/encoding. ONNX's own reader would load the weights, and takes a while.
    """
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        kind = tag & 7
        if kind == 0:
            _, at = varint(data, at)
            continue
        length, at = varint(data, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, len(data) + 1), at)
        if tag < 8 or at + length > len(data):
            raise ValueError("no protobuf message")
        if kind == 2:
            yield tag >> 3, data[at : at + length]
        at += length


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where the next thing begins. Raises ValueError."""
    value = 0
    for shift, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise ValueError("no protobuf message")


def openvino_text(_: Path, data: Bytes) -> str | None:
    """Raises ValueError for what is no XML."""
    from xml.etree import ElementTree

    try:
        found = ElementTree.fromstring(bytes(data)).find(f"rt_info/{KEY}/about")
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from None
    return None if found is None else found.get("value")


def mnn_text(_: Path, data: Bytes) -> str | None:
    """The string that is field 0 of the root table (MNN's schema/default/MNN.fbs). Raises struct.error, ValueError."""
    (root,) = struct.unpack_from("<I", data, 0)
    (back,) = struct.unpack_from("<i", data, root)
    (entry,) = struct.unpack_from("<H", data, root - back + 4)
    if entry == 0:
        return None
    (ahead,) = struct.unpack_from("<I", data, root + entry)
    (length,) = struct.unpack_from("<I", data, root + entry + ahead)
    text = data[root + entry + ahead + 4 :][:length].decode()
    return text if text.startswith("{") else None


def pt2_text(path: Path, _: Bytes) -> str | None:
    """Raises ValueError for what is no archive, or compressed, which torch's are not."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("it has compressed members")
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            about = members.get(f"extra/{PT2_MEMBER}")
            return None if about is None else archive.read(about).decode()
    except (ArithmeticError, EOFError, OSError, RuntimeError, zipfile.BadZipFile) as error:  # of damaged headers
        raise ValueError(str(error)) from None


def members_digest(path: Path | IO[bytes]) -> str:
    """SHA-256 of the names and bytes of an archive's members; of ours without the digest. Raises UserError."""
    import zipfile

    about: Any = None
    rows = []
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                data = archive.read(info)
                if info.filename.partition("/")[2] == f"extra/{PT2_MEMBER}":
                    about = dict(json.loads(data), sha256="")
                else:
                    rows.append((info.filename, hashlib.sha256(data).hexdigest()))
    except (ArithmeticError, EOFError, OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); restore it from a copy or export it anew") from None
    return hashlib.sha256(json.dumps([sorted(rows), about], sort_keys=True).encode()).hexdigest()


PT2_MEMBER = f"{KEY}.json"
# What readers run into where a file is damaged, or was made to trip them.
DAMAGE = (
    *(ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError, MemoryError),
    struct.error,
)
READERS: dict[str, Callable[[Path, Bytes], str | None]] = {
    ".safetensors": safetensors_text,
    ".onnx": onnx_text,
    ".xml": openvino_text,
    ".mnn": mnn_text,
    ".pt2": pt2_text,
}
TO = {".onnx": "onnx", ".xml": "openvino", ".mnn": "mnn", ".pt2": "torch-export"}  # as `resnet export --to` has it
WHAT = {
    ".safetensors": "a model file",
    ".onnx": "an ONNX file",
    ".xml": "a model of OpenVINO",
    ".mnn": "a model of MNN",
    ".pt2": "an archive of torch.export",
}
