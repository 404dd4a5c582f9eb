"""ILSVRC-2012 (ImageNet) as its archives unpack: `imagenet:DIR`.

    DIR/train/<wnid>/…                        also ILSVRC2012_img_train
    DIR/val/<wnid>/…                          also ILSVRC2012_img_val
    DIR/val/ILSVRC2012_val_00000001.JPEG …    flat, labelled by the development kit or Kaggle's table
    DIR/test/ILSVRC2012_test_00000001.JPEG …  also ILSVRC2012_img_test; without labels
    DIR/ILSVRC2012_devkit_t12/data/           meta.mat and ILSVRC2012_validation_ground_truth.txt, or both in DIR itself
    DIR/LOC_val_solution.csv, LOC_synset_mapping.txt, and the pictures in ILSVRC/Data/CLS-LOC/, as Kaggle has them

Classes are the wnids, sorted as plain strings, which is the order of torchvision's and timm's outputs. The development
kit numbers them in another order (ILSVRC2012_ID, 1 to 1000), in which the ground truth and submissions are written.
"""

from __future__ import annotations

import csv
import importlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.folder import Findings, identity, join, look, notes, walk
from resnetkit.data.pictures import Data, Files, count, label_table, listing
from resnetkit.errors import UserError

FOLDERS = {split: (split, f"ILSVRC2012_img_{split}") for split in ("train", "val", "test")}
KAGGLE = "ILSVRC/Data/CLS-LOC"
DEVKIT = ("ILSVRC2012_devkit_t12/data", "ILSVRC2012_devkit_t12", "data", "")  # where its files may lie
META, TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
SOLUTION, MAPPING = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
WNID = re.compile(r"n\d{8}")
NUMBER = re.compile(r"ILSVRC2012_(?:val|test)_(\d{8})\.\w+")
LAYOUT = "expected train/<wnid>/, val/ and perhaps test/ in it, as ILSVRC-2012 unpacks"
BEST = 5  # answers for each picture of a submission


def load_imagenet(root: Path, spec: str) -> Data:
    """Read the names and the labels, not the pictures. Test pictures without class folders are in `data.unlabelled`.

    Order: by the bytes of the path relative to `root`. Raises UserError: another layout, no development kit where one
    is needed, a ground truth of another length than val has pictures.
    """
    base = KAGGLE if (root / KAGGLE).is_dir() else ""
    findings = Findings()
    found: list[tuple[str, str, str]] = []  # path relative to root, wnid or "", split
    for split, names in FOLDERS.items():
        folder = next((join(base, name) for name in names if (root / join(base, name)).is_dir()), None)
        if folder is not None:
            pictures = find(root, folder, split, spec, findings)
            found += [(path, wnid, split) for path, wnid in pictures]
    if not found:
        raise UserError(f"{spec}: no pictures of ILSVRC-2012; {LAYOUT}")
    found.sort(key=lambda row: os.fsencode(row[0]))
    known = [wnid for _, wnid, _ in found if wnid]
    place, classes = label_table(known) if known else (np.zeros(0, np.int64), all_wnids(root, spec))
    labelled = np.array([bool(wnid) for _, wnid, _ in found])
    labels = np.full(len(found), -1, dtype=np.int64)
    labels[labelled] = place
    of_split = np.array([split for _, _, split in found])
    parts = {split: np.flatnonzero(of_split == split) for split in FOLDERS if split in of_split}
    splits = {split: indices for split, indices in parts.items() if labelled[indices].all()}
    unlabelled = {split: indices for split, indices in parts.items() if split not in splits}
    files = Files(root, [path for path, _, _ in found])
    return Data(spec, files, labels, classes, splits, notes(findings), unlabelled)


def find(root: Path, folder: str, split: str, spec: str, findings: Findings) -> list[tuple[str, str]]:
    """(path, wnid) of the pictures of a split; the wnid is "" where nobody says it."""
    direct, classes = look(root, folder, spec, findings)
    strange = [name for name in classes if not WNID.fullmatch(name)]
    if strange:
        raise UserError(
            f"{spec}: {folder} holds {listing(strange)}, where class folders are called n01440764 and so on; {LAYOUT}"
        )
    if classes:
        findings.loose += direct
        above = {identity(root, "", spec), identity(root, folder, spec)}
        return [(path, name) for name in classes for path in walk(root, join(folder, name), set(above), spec, findings)]
    if split == "train" and (direct or findings.others):
        raise UserError(f"{spec}: {folder} has no class folders; unpack each n….tar of it into a folder of its name")
    if split == "val" and direct:
        return list(zip(direct, truth(root, direct, spec), strict=True))
    return [(path, "") for path in direct]


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
        f"{spec}: val has no class folders, and there is no {missing}; unpack ILSVRC2012_devkit_t12.tar.gz into the "
        "folder"
    )


def picture_numbers(paths: Sequence[str], spec: str) -> list[int]:
    """The number of each picture, 1 for …_00000001.JPEG. Raises UserError for one that is called otherwise."""
    matches = [NUMBER.fullmatch(path.rpartition("/")[2]) for path in paths]
    for path, match in zip(paths, matches, strict=True):
        if match is None:
            raise UserError(f"{spec}: {path} has no number, as ILSVRC2012_val_00000001.JPEG has; give it its name back")
    return [int(match[1]) for match in matches if match]


def devkit_file(root: Path, name: str) -> Path | None:
    """A file of the development kit, where it is."""
    return next((root / place / name for place in DEVKIT if (root / place / name).is_file()), None)


def devkit_ids(data: Data) -> dict[str, int]:
    """ILSVRC2012_ID of each wnid, from the development kit beside the pictures. Raises UserError without one."""
    found = devkit_file(data.pictures.root, META) if isinstance(data.pictures, Files) else None
    if found is None:
        raise UserError(
            f"{data.spec}: a submission is written in the development kit's numbers, and there is no {META}; unpack "
            "ILSVRC2012_devkit_t12.tar.gz into the folder, and call the data imagenet:DIR"
        )
    return read_meta(found)


def all_wnids(root: Path, spec: str) -> tuple[str, ...]:
    """The classes where no picture has a label."""
    meta, mapping = devkit_file(root, META), root / MAPPING
    if meta is not None:
        return tuple(sorted(read_meta(meta)))
    if mapping.is_file():
        return tuple(sorted(line.split(maxsplit=1)[0] for line in read_lines(mapping)))
    raise UserError(f"{spec}: test pictures alone, and neither {META} nor {MAPPING} that names the classes; add one")


def read_meta(path: Path) -> dict[str, int]:
    """wnid to ILSVRC2012_ID of the classes in meta.mat: those of its synsets that have no children."""
    try:
        reader = importlib.import_module("scipy.io")
    except ImportError:
        raise UserError(f"{path}: needs scipy, which is not installed: pip install 'resnetkit[imagenet]'") from None
    try:
        synsets = np.atleast_1d(reader.loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"])
        rows = zip(synsets["WNID"], synsets["ILSVRC2012_ID"], synsets["num_children"], strict=True)
        found = {str(wnid): int(number) for wnid, number, children in rows if int(children) == 0}
    except Exception as error:  # a damaged file makes the reader raise errors of any kind
        raise UserError(f"{path}: cannot be read as the development kit's {META} ({error}); unpack it anew") from None
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


def read_lines(path: Path) -> list[str]:
    """The lines with something on them."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; unpack the archive anew") from None


def submission(data: Data, indices: Sequence[int], classes: Sequence[str]) -> tuple[list[int], NDArray[np.int64]]:
    """What a submission needs, before the network runs: positions in the order of the pictures' numbers, and ids.

    The second is the ILSVRC2012_ID of each of `classes`. Raises UserError when the pictures are not number 1 to n, when
    there are no ids, when a class is not among ILSVRC's, or fewer than five.
    """
    ids = devkit_ids(data)
    unknown = [name for name in classes if name not in ids]
    if unknown:
        raise UserError(
            f"{data.spec}: {unknown[0]!r}, a class of the model, is no wnid of the development kit's {META}"
        )
    if len(classes) < BEST:
        raise UserError(f"a submission has the {BEST} best classes of each picture, and the model has {len(classes)}")
    numbers = picture_numbers([data.pictures.name(i) for i in indices], data.spec)
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    if [numbers[i] for i in order] != list(range(1, len(numbers) + 1)):
        raise UserError(
            f"{data.spec}: a submission has a line for every picture, and these {len(numbers):,} are not number 1 to "
            f"{len(numbers):,}; unpack the archive anew"
        )
    return order, np.array([ids[name] for name in classes], dtype=np.int64)


def submission_lines(table: NDArray[np.float64], ids: NDArray[np.int64]) -> Iterator[str]:
    """`ids` of the five most probable classes of each row, best first; of equal ones that with the lower output."""
    for row in table:
        yield " ".join(map(str, ids[np.argsort(-row, kind="stable")[:BEST]].tolist()))
