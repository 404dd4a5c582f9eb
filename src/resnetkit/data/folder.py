"""A folder of pictures: `photos/<class>/…`, or `photos/{train,val,test}/<class>/…`, each class nested as it likes.

What counts as a picture is decided by suffix, whatever is inside; a file that turns out not to be one is the audit's
to report. Hidden and system files do not count. Symbolic links are followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from resnetkit.data.pictures import SPLITS, Data, Files, count, label_table, listing
from resnetkit.errors import UserError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"},
)
SYSTEM = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"})
LAYOUT = "expected <class>/*.jpg inside it, or train/<class>/*.jpg and val/<class>/*.jpg"


@dataclass
class Findings:
    """What the walk met besides pictures; becomes the notes."""

    others: list[str] = field(default_factory=list)  # files that are not pictures by suffix
    loops: list[str] = field(default_factory=list)  # links to a folder that is read already
    loose: list[str] = field(default_factory=list)  # pictures in no class folder
    empty: list[str] = field(default_factory=list)  # class folders without a picture
    unlabelled: list[str] = field(default_factory=list)  # pictures of a test split without class folders


def load_folder(root: Path, spec: str | None = None) -> Data:
    """Read the names, not the pictures. Raises UserError: missing, a file, empty, or not laid out as above.

    Order: by the bytes of the path relative to `root`, on every machine.
    """
    spec = spec or os.fspath(root)
    if not root.exists():
        raise UserError(f"{spec}: no such folder; check the path")
    if not root.is_dir():
        raise UserError(f"{spec}: a file, where a folder of pictures is needed; {LAYOUT}")
    findings = Findings()
    findings.loose, folders = look(root, "", spec, findings)
    found: list[tuple[str, str, str]] = []  # path relative to root, class, split
    for split, folder in divide(root, folders, spec):
        classes = folders
        if folder:
            direct, classes = look(root, folder, spec, findings)
            (findings.loose if classes else findings.unlabelled).extend(direct)
        for name in classes:
            above = {identity(root, "", spec), identity(root, folder, spec)}
            pictures = list(walk(root, join(folder, name), above, spec, findings))
            found += [(path, name, split) for path in pictures]
            if not pictures:
                findings.empty.append(join(folder, name))
    if not found:
        raise UserError(f"{spec}: {nothing_found(findings)}; {LAYOUT}")
    found.sort(key=lambda row: os.fsencode(row[0]))
    labels, names = label_table([name for _, name, _ in found])
    of_split = np.array([split for _, _, split in found])
    splits = {
        split: np.flatnonzero(of_split == split) for split in ("all", "train", "val", "test") if split in of_split
    }
    return Data(spec, Files(root, [path for path, _, _ in found]), labels, names, splits, notes(findings))


def divide(root: Path, folders: list[str], spec: str) -> list[tuple[str, str]]:
    """(split, folder) for each part of the data: `[("all", "")]` for a folder that nothing divides.

    A folder called train with folders inside it makes a divided folder; so do val and test when nothing else is there.
    """
    inside = {name: look(root, name, spec, Findings()) for name in folders if name.lower() in SPLITS}
    nested = [name for name, (_, deeper) in inside.items() if deeper]
    flat = [name for name, (direct, deeper) in inside.items() if direct and not deeper]
    others = [name for name in folders if name not in inside]
    if others and not any(name.lower() == "train" for name in nested):
        return [("all", "")]
    if others:
        raise UserError(
            f"{spec}: holds {listing(nested)} with class folders inside, and {listing(others)} beside "
            f"{'it' if len(nested) == 1 else 'them'}; move these into train/<class>, or take them out"
        )
    unsorted = [name for name in flat if name.lower() != "test" or not nested]
    if unsorted:
        raise UserError(f"{spec}: found pictures but no class folders in {listing(unsorted)}; {LAYOUT}")
    parts: dict[str, str] = {}
    for name in inside:
        split = SPLITS[name.lower()]
        if split in parts:
            raise UserError(f"{spec}: {parts[split]} and {name} both mean {split}; keep one of them")
        parts[split] = name
    return list(parts.items()) or [("all", "")]


def look(root: Path, folder: str, spec: str, findings: Findings) -> tuple[list[str], list[str]]:
    """Paths of the pictures that lie directly in a folder, and the names of the folders in it; each sorted."""
    pictures, folders = [], []
    for entry in entries(root, folder, spec):
        if is_folder(entry):
            folders.append(entry.name)
        elif is_picture(entry):
            pictures.append(join(folder, entry.name))
        else:
            findings.others.append(join(folder, entry.name))
    return pictures, folders


def walk(root: Path, folder: str, read: set[tuple[int, int]], spec: str, findings: Findings) -> Iterator[str]:
    """Paths of the pictures in a class folder, at any depth.

    `read` has the folders that must not be entered (again): a link back to one of them would never end.
    """
    pending = [folder]
    while pending:
        folder = pending.pop()
        here = identity(root, folder, spec)
        if here in read:
            findings.loops.append(folder)
            continue
        read.add(here)
        deeper = []
        for entry in entries(root, folder, spec):
            path = join(folder, entry.name)
            if is_folder(entry):
                deeper.append(path)
            elif is_picture(entry):
                yield path
            else:
                findings.others.append(path)
        pending += reversed(deeper)


def find_pictures(root: Path) -> list[str]:
    """Paths of the pictures below a folder at any depth, without labels, folder by folder."""
    return [join(os.fspath(root), path) for path in walk(root, "", set(), os.fspath(root), Findings())]


def entries(root: Path, folder: str, spec: str) -> list[os.DirEntry[str]]:
    """What a folder holds, but for hidden and system files, in order of the names' bytes."""
    try:
        with os.scandir(root / folder) as found:
            seen = [entry for entry in found if not entry.name.startswith(".") and entry.name.lower() not in SYSTEM]
    except OSError as error:
        raise unreadable(spec, folder, error) from error
    return sorted(seen, key=lambda entry: os.fsencode(entry.name))


def is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_picture(entry: os.DirEntry[str]) -> bool:
    """By suffix, of a file. A link to nothing counts, so that it is reported; a named pipe does not: it never ends."""
    stem, dot, suffix = entry.name.rpartition(".")
    if not stem or f"{dot}{suffix}".lower() not in SUFFIXES:
        return False
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:  # a link to itself
        return True


def identity(root: Path, folder: str, spec: str) -> tuple[int, int]:
    """The same for all names of one folder."""
    try:
        found = (root / folder).stat()
    except OSError as error:
        raise unreadable(spec, folder, error) from error
    return found.st_dev, found.st_ino


def unreadable(spec: str, folder: str, error: OSError) -> UserError:
    return UserError(
        f"{join(spec, folder) if folder else spec}: cannot be read ({error.strerror}); check its permissions"
    )


def join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def nothing_found(findings: Findings) -> str:
    """What there is instead of pictures in class folders."""
    if findings.loose or findings.unlabelled:
        n = len(findings.loose) + len(findings.unlabelled)
        return f"holds {count(n, 'picture', 'pictures')} but no folder for each class"
    if findings.others:
        return f"no file in it is a picture by its suffix (found {listing(findings.others)})"
    if findings.empty:
        return f"its folders {listing(findings.empty)} hold no pictures"
    return "the folder is empty"


def notes(findings: Findings) -> tuple[str, ...]:
    """The findings as sentences, each with an example."""
    told = (
        (findings.others, ("skipped {} that is not a picture by name", "skipped {} that are not pictures by name")),
        (findings.loose, ("left out {} that lies in no class folder", "left out {} that lie in no class folder")),
        (findings.unlabelled, ("left out {} of test, which has no class folders",) * 2),
    )
    sentences = [
        f"{(one if len(paths) == 1 else many).format(count(len(paths), 'file', 'files'))}, such as {paths[0]}"
        for paths, (one, many) in told
        if paths
    ]
    if findings.loops:
        n = count(len(findings.loops), "link", "links")
        sentences.append(f"did not follow {n} to a folder that is read already, such as {findings.loops[0]}")
    if findings.empty:
        sentences.append(f"left out folders without pictures: {listing(findings.empty)}")
    return tuple(sentences)
