"""Pictures in a tar file, found by its headers alone; nothing is unpacked.

POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU long names. `tarfile` decodes each header, and the walk is our own:
tarfile's ends without a word where a later header is damaged or cut off, so pictures would be missing and nobody know.

Samples are WebDataset's: members beside each other whose names agree up to the first dot of the last part,
"n01/7.jpg" and "n01/7.cls". The label is the text of .cls, or "label" of .json. A tar in the tar, as in ILSVRC's, is a
class of its own name.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from resnetkit.errors import UserError

BLOCK = 512  # bytes; everything in a tar file begins at a multiple of it
ZERO = bytes(BLOCK)
LONG = 1 << 20  # bytes of a name, a pax header or a label; more is damage
SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "tif", "tiff", "gif", "ppm"})
LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL, SPARSE = b"L", b"K", b"x", b"g", b"S"
GZIP, ZSTD, XZ, BZ2 = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh"


@dataclass(frozen=True)
class Tar:
    """A tar file as this module sees it: its name for messages, its bytes, and how to get some of them."""

    name: str
    size: int
    read: Callable[[int, int], bytes]  # (start, length), exactly so many


@dataclass(frozen=True)
class Member:
    """A file in a tar: its name there, and where its bytes are."""

    name: str
    start: int
    length: int


@dataclass(frozen=True)
class Found:
    """A picture in a tar. `label` is a text, None where the tar says none."""

    name: str  # within the tar: "7.jpg", or "n01440764.tar/n01440764_18.JPEG"
    start: int  # byte, a multiple of 512
    length: int
    label: str | None


def ahead(read: Callable[[int, int], bytes], size: int, reach: int) -> Callable[[int, int], bytes]:
    """`read` that fetches at least `reach` bytes at a time and answers from them what it can. For one thread."""
    kept, begin = b"", 0

    def served(start: int, length: int) -> bytes:
        nonlocal kept, begin
        if not begin <= start <= start + length <= begin + len(kept):
            kept, begin = read(start, max(length, min(reach, size - start))), start
        return kept[start - begin : start - begin + length]

    return served


def find_pictures(tar: Tar, others: list[str]) -> list[Found]:
    """Every picture of a tar, in its order; names of files that belong to no sample are added to `others`.

    Raises UserError naming the tar and the member: cut off, a damaged header, a picture or a label of no bytes, a
    sample twice, with two pictures, or with none.
    """
    found: list[Found] = []
    plain: list[Member] = []
    for member in walk(tar, 0, tar.size):
        if not member.name.lower().endswith(".tar"):
            plain.append(member)
            continue
        label = member.name.rpartition("/")[2][:-4]
        for inner in walk(tar, member.start, member.start + member.length):
            name = f"{member.name}/{inner.name}"
            if suffix_of(inner.name) in SUFFIXES:
                found.append(picture(tar, Member(name, inner.start, inner.length), label))
            else:
                others.append(name)
    found += samples(tar, plain, others)
    seen: set[str] = set()
    for each in found:
        key = key_of(each.name)
        if key in seen:
            wrong(tar, each.name, "its sample stands twice in the tar, apart from each other; write the tar anew")
        seen.add(key)
    return found


def samples(tar: Tar, members: list[Member], others: list[str]) -> Iterator[Found]:
    """The pictures among members, each with the label beside it."""
    at = 0
    while at < len(members):
        key, end = key_of(members[at].name), at
        parts: dict[str, Member] = {}
        while end < len(members) and key_of(members[end].name) == key:
            member, suffix = members[end], suffix_of(members[end].name)
            if suffix in parts:
                wrong(tar, member.name, "stands twice in the tar; write the tar anew")
            parts[suffix] = member
            end += 1
        at = end
        pictures = [member for suffix, member in parts.items() if suffix in SUFFIXES]
        others += [member.name for suffix, member in parts.items() if suffix not in {*SUFFIXES, "cls", "json"}]
        if len(pictures) > 1:
            wrong(tar, pictures[1].name, f"a second picture beside {pictures[0].name}; a sample has one")
        label = label_of(tar, parts)
        if pictures:
            yield picture(tar, pictures[0], label)
        elif "cls" in parts:
            wrong(tar, parts["cls"].name, "a label without a picture; write the tar anew")
        elif "json" in parts:
            others.append(parts["json"].name)


def picture(tar: Tar, member: Member, label: str | None) -> Found:
    if member.length == 0:
        wrong(tar, member.name, "a picture of no bytes; write the tar anew without it")
    if member.length >= 1 << 32:
        wrong(tar, member.name, f"{member.length:,} bytes are too many for a picture")
    return Found(member.name, member.start, member.length, label)


def label_of(tar: Tar, parts: dict[str, Member]) -> str | None:
    """The text of .cls, else the "label" of .json; None where there is neither."""
    for suffix in ("cls", "json"):
        if suffix not in parts:
            continue
        member = parts[suffix]
        if member.length > LONG:
            wrong(tar, member.name, f"{member.length:,} bytes are too many for a label")
        try:
            text = tar.read(member.start, member.length).decode()
            value = text.strip() if suffix == "cls" else json.loads(text).get("label")
        except (ValueError, AttributeError, RecursionError):
            wrong(tar, member.name, "not a text that holds a label" if suffix == "cls" else "no JSON object")
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
        if suffix == "cls":
            wrong(tar, member.name, "an empty label; write the class into it")
    return None


def key_of(name: str) -> str:
    """What the members of a sample share: the name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def suffix_of(name: str) -> str:
    """What is after the first dot of the last part, in lower case: "jpg", "seg.png"."""
    return name.rpartition("/")[2].partition(".")[2].lower()


def walk(tar: Tar, start: int, end: int) -> Iterator[Member]:
    """The files of the tar at bytes start … end - 1, which may lie in another; hidden ones, folders and links not.

    Raises UserError unless every header is whole and the end of the archive is marked.
    """
    at, name, last = start, None, "its beginning"
    own: dict[str, str] = {}  # what a pax header says of the member behind it
    while True:
        block = block_at(tar, at, end, last)
        if block == ZERO:
            check_end(tar, at, end, last)
            return
        header = decode(tar, block, at, last)
        body = at + BLOCK
        size = int(own["size"]) if own.get("size", "").isdecimal() else header.size
        if header.type in (LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL):
            text = long_text(tar, body, size, end, last)
            if header.type == LONG_NAME:
                name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.type == PAX:
                own = pax(tar, text, last)
            at = body + padded(size)
            continue
        shown = own.get("path") or name or header.name
        if header.type == SPARSE or any(key.startswith("GNU.sparse") for key in own):
            wrong(tar, shown, "a sparse file, of which the tar lacks bytes; write the tar anew")
        size = size if header.isreg() else 0
        if body + size > end:
            wrong(tar, shown, f"cut off: {body + size - end:,} of its {size:,} bytes are missing; fetch the tar anew")
        if header.isreg() and not hidden(shown):
            yield Member(shown.removeprefix("./"), body, size)
        at, name, own, last = body + padded(size), None, {}, shown


def block_at(tar: Tar, at: int, end: int, last: str) -> bytes:
    """The header block at a byte. Raises UserError where the tar ends before."""
    if at + BLOCK > end:
        raise UserError(
            f"{tar.name}: cut off after {last}: it ends without the mark of its end; fetch or write the tar anew"
        )
    return tar.read(at, BLOCK)


def decode(tar: Tar, block: bytes, at: int, last: str) -> tarfile.TarInfo:
    """One header. Raises UserError where its checksum is wrong."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        if at == 0:
            packed = block.startswith((GZIP, ZSTD, XZ, BZ2))
            advice = "compressed, so nothing in it can be read alone; unpack it to a .tar" if packed else str(error)
            raise UserError(f"{tar.name}: no tar file: {advice}") from None
        raise UserError(
            f"{tar.name}: the header after {last}, at byte {at:,}, is damaged ({error}); fetch or write the tar anew"
        ) from None


def check_end(tar: Tar, at: int, end: int, last: str) -> None:
    """Raise UserError where more than zeros follow the end: tars that were joined hold members nobody would see."""
    while at < end:
        length = min(end - at, 1 << 20)
        if tar.read(at, length).strip(b"\0"):
            raise UserError(
                f"{tar.name}: more follows the end of the archive after {last}; were tars joined? write them anew"
            )
        at += length


def long_text(tar: Tar, start: int, length: int, end: int, last: str) -> bytes:
    if length > LONG or start + length > end:
        raise UserError(f"{tar.name}: the long name after {last} is damaged or cut off; fetch or write the tar anew")
    return tar.read(start, length)


def pax(tar: Tar, text: bytes, last: str) -> dict[str, str]:
    """The records "LENGTH key=value\\n" of a pax header."""
    values: dict[str, str] = {}
    while text.strip(b"\0"):
        digits, _, _ = text.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        key, sign, value = text[len(digits) + 1 : max(length - 1, 0)].partition(b"=")
        if not sign or length > len(text) or text[length - 1 : length] != b"\n":
            raise UserError(f"{tar.name}: the pax header after {last} is damaged; fetch or write the tar anew")
        values[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        text = text[length:]
    return values


def padded(size: int) -> int:
    """`size` up to the next block."""
    return -(-size // BLOCK) * BLOCK


def hidden(name: str) -> bool:
    """Files of systems, such as "._7.jpg" of macOS, and WebDataset's "__…__" about the shard."""
    last = name.rpartition("/")[2]
    return last.startswith(".") or "__MACOSX/" in name or (name.startswith("__") and name.endswith("__"))


def wrong(tar: Tar, member: str, what: str) -> NoReturn:
    raise UserError(f"{tar.name}: {member}: {what}")
