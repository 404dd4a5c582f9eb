"""The development kit of ILSVRC-2012, unpacked or as downloaded, and Kaggle's tables: which class each picture has.

The development kit numbers the classes in an order of its own (ILSVRC2012_ID, 1 to 1000), in which the ground truth and
submissions are written; classes here are the wnids.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import re
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnetkit.data.pictures import count
from resnetkit.errors import UserError

MOST = 1 << 28  # bytes of a file of the kit; more is another archive
DEVKIT = ("ILSVRC2012_devkit_t12/data", "ILSVRC2012_devkit_t12", "data", "")  # where its files may lie
ARCHIVE = "ILSVRC2012_devkit_t12.tar.gz"
META, TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
SOLUTION, MAPPING = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
WNID = re.compile(r"n\d{8}")
NUMBER = re.compile(r"ILSVRC2012_(?:val|test)_(\d{8})\.\w+")


def truth(root: Path, paths: Sequence[str], spec: str) -> list[str]:
    """The wnid of each picture of a flat val folder, from the development kit or Kaggle's table."""
    numbers = picture_numbers(paths, spec)
    lines, meta, solution = devkit_file(root, TRUTH), devkit_file(root, META), root / SOLUTION
    if lines is not None and meta is not None:
        ids = read_lines(lines)
        if len(ids) != len(paths) or sorted(numbers) != list(range(1, len(ids) + 1)):
            pictures = count(len(paths), "picture", "pictures")
            raise UserError(
                f"{lines}: {count(len(ids), 'line', 'lines')} for {pictures} of val; each of 1, 2, … must have its "
                "line and its picture: unpack the archive anew"
            )
        wnids = {str(number): wnid for wnid, number in read_meta(meta).items()}
        odd = next((i for i, text in enumerate(ids) if text not in wnids), None)
        if odd is not None:
            raise UserError(f"{lines}, line {odd + 1}: {ids[odd]!r} is no ILSVRC2012_ID of {meta}")
        return [wnids[ids[number - 1]] for number in numbers]
    if solution.is_file():
        table = read_solution(solution)
        stems = [path.rpartition("/")[2].rpartition(".")[0] for path in paths]
        lacking = [stem for stem in stems if stem not in table]
        if lacking or len(table) != len(stems):
            example = f", such as none for {lacking[0]}" if lacking else ""
            raise UserError(
                f"{solution}: {count(len(table), 'line', 'lines')} for {count(len(stems), 'picture', 'pictures')} of "
                f"val{example}; unpack the archive anew"
            )
        return [table[stem] for stem in stems]
    missing = " and ".join(name for name, path in ((TRUTH, lines), (META, meta)) if path is None)
    raise UserError(
        f"{spec}: val has no class folders, and there is no {missing}; put {ARCHIVE} into the folder, "
        "as downloaded or unpacked"
    )


def picture_numbers(paths: Sequence[str], spec: str) -> list[int]:
    """The number of each picture, 1 for …_00000001.JPEG. Raises UserError for one that is called otherwise."""
    matches = [NUMBER.fullmatch(path.rpartition("/")[2]) for path in paths]
    for path, match in zip(paths, matches, strict=True):
        if match is None:
            raise UserError(f"{spec}: {path} has no number, as ILSVRC2012_val_00000001.JPEG has; give it its name back")
    return [int(match[1]) for match in matches if match]


@dataclass(frozen=True)
class KitFile:
    """A file of the development kit: what it holds, and where it is for messages."""

    where: str
    data: bytes

    def __str__(self) -> str:
        return self.where


def devkit_file(root: Path, name: str) -> KitFile | None:
    """A file of the development kit, unpacked or in the archive as downloaded. Raises UserError: a damaged archive."""
    for place in DEVKIT:
        path = root / place / name
        if path.is_file():
            return KitFile(str(path), path.read_bytes())
    archive = root / ARCHIVE
    if not archive.is_file():
        return None
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                if member.isfile() and member.name.rpartition("/")[2] == name and member.size <= MOST:
                    inside = opened.extractfile(member)
                    return KitFile(f"{archive}/{name}", inside.read() if inside else b"")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{archive}: cannot be read as the development kit ({error}); fetch it anew") from None
    return None


def all_wnids(root: Path, spec: str) -> tuple[str, ...]:
    """The classes where no picture has a label."""
    meta, mapping = devkit_file(root, META), root / MAPPING
    if meta is not None:
        return tuple(sorted(read_meta(meta)))
    if mapping.is_file():
        return tuple(
            sorted(line.split(maxsplit=1)[0] for line in read_lines(KitFile(str(mapping), mapping.read_bytes())))
        )
    raise UserError(f"{spec}: test pictures alone, and neither {META} nor {MAPPING} that names the classes; add one")


def read_meta(file: KitFile) -> dict[str, int]:
    """wnid to ILSVRC2012_ID of the classes in meta.mat: those of its synsets that have no children."""
    try:
        reader = importlib.import_module("scipy.io")
    except ImportError:
        raise UserError(f"{file}: needs scipy, which is not installed: pip install 'resnetkit[imagenet]'") from None
    try:
        synsets = np.atleast_1d(
            reader.loadmat(io.BytesIO(file.data), squeeze_me=True, variable_names=["synsets"])["synsets"]
        )
        rows = zip(synsets["WNID"], synsets["ILSVRC2012_ID"], synsets["num_children"], strict=True)
        found = {str(wnid): int(number) for wnid, number, children in rows if int(children) == 0}
    except Exception as error:  # a damaged file makes the reader raise errors of any kind
        raise UserError(f"{file}: cannot be read as the development kit's {META} ({error}); unpack it anew") from None
    return found


def read_solution(path: Path) -> dict[str, str]:
    """Picture to wnid of Kaggle's table `ImageId,PredictionString`: "n03995372 85 1 499 272 …", class and boxes."""
    table: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                wnid = (row.get("PredictionString") or "").partition(" ")[0]
                if not row.get("ImageId") or not WNID.fullmatch(wnid):
                    raise UserError(f"{path}: expected lines of ImageId,PredictionString, and got {list(row.values())}")
                table[row["ImageId"]] = wnid
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}); unpack it anew") from None
    return table


def read_lines(file: KitFile) -> list[str]:
    """The lines with something on them."""
    try:
        return [line.strip() for line in file.data.decode().splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{file}: not a text file; unpack the archive anew") from None
