"""ILSVRC-2012 (ImageNet) as downloaded, never unpacked, or as its archives unpack: `imagenet:DIR`.

    DIR/ILSVRC2012_img_train.tar              a tar of a tar for each class, n01440764.tar
    DIR/ILSVRC2012_img_val.tar                flat, labelled by the development kit
    DIR/ILSVRC2012_devkit_t12.tar.gz          that kit
    DIR/train/<wnid>/…                        also ILSVRC2012_img_train
    DIR/val/<wnid>/…                          also ILSVRC2012_img_val
    DIR/val/ILSVRC2012_val_00000001.JPEG …    flat, labelled by the development kit or Kaggle's table
    DIR/test/ILSVRC2012_test_00000001.JPEG …  also ILSVRC2012_img_test, and its tar; without labels
    DIR/ILSVRC2012_devkit_t12/data/           meta.mat and ILSVRC2012_validation_ground_truth.txt, or both in DIR itself
    DIR/LOC_val_solution.csv, LOC_synset_mapping.txt, and the pictures in ILSVRC/Data/CLS-LOC/, as Kaggle has them

Where a split is there both ways, the folder is read. Classes are the wnids, sorted as plain strings, which is the order
of torchvision's and timm's outputs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.blobs import LocalBlobs
from resnetkit.data.devkit import META, WNID, all_wnids, devkit_file, picture_numbers, read_meta, truth
from resnetkit.data.folder import Findings, identity, join, look, notes, walk
from resnetkit.data.joined import Joined
from resnetkit.data.members import open_members
from resnetkit.data.pictures import Data, Files, Pictures, label_table, listing
from resnetkit.errors import UserError

FOLDERS = {split: (split, f"ILSVRC2012_img_{split}") for split in ("train", "val", "test")}
TARS = {
    "train": ("ILSVRC2012_img_train.tar",),
    "val": ("ILSVRC2012_img_val.tar",),
    "test": ("ILSVRC2012_img_test_v10102019.tar", "ILSVRC2012_img_test.tar"),
}
KAGGLE = "ILSVRC/Data/CLS-LOC"
LAYOUT = "expected the tars of ILSVRC-2012 in it, or train/<wnid>/, val/ and perhaps test/ as they unpack"
BEST = 5  # answers for each picture of a submission


def load_imagenet(root: Path, spec: str) -> Data:
    """Read the names and the labels, not the pictures. Test pictures without class folders are in `data.unlabelled`.

    Order: by the bytes of the path relative to `root`, then tars in their own order. Raises UserError: another layout,
    no development kit where one is needed, a ground truth of another length than val has pictures, a damaged tar.
    """
    base = KAGGLE if (root / KAGGLE).is_dir() else ""
    findings = Findings()
    found: list[tuple[str, str, str]] = []  # path relative to root, wnid or "", split
    tars: list[tuple[Pictures, list[str], str]] = []
    for split, names in FOLDERS.items():
        folder = next((join(base, name) for name in names if (root / join(base, name)).is_dir()), None)
        archive = next((root / name for name in TARS[split] if (root / name).is_file()), None)
        if folder is not None:
            found += [(path, wnid, split) for path, wnid in find(root, folder, split, spec, findings)]
        elif archive is not None:
            tars.append((*in_tar(archive, split, root, spec, findings), split))
    if not found and not tars:
        raise UserError(f"{spec}: no pictures of ILSVRC-2012; {LAYOUT}")
    found.sort(key=lambda row: os.fsencode(row[0]))
    wnids = [wnid for _, wnid, _ in found] + [wnid for _, of_tar, _ in tars for wnid in of_tar]
    labelled = np.array([bool(wnid) for wnid in wnids])
    known = [wnid for wnid in wnids if wnid]
    place, classes = label_table(known) if known else (np.zeros(0, np.int64), all_wnids(root, spec))
    labels = np.full(len(wnids), -1, dtype=np.int64)
    labels[labelled] = place
    of_split = np.array([split for _, _, split in found] + [split for _, of_tar, split in tars for _ in of_tar])
    parts = {split: np.flatnonzero(of_split == split) for split in FOLDERS if split in of_split}
    splits = {split: indices for split, indices in parts.items() if labelled[indices].all()}
    unlabelled = {split: indices for split, indices in parts.items() if split not in splits}
    pools: list[Pictures] = [Files(root, [path for path, _, _ in found])] if found else []
    pools += [pictures for pictures, _, _ in tars]
    pictures = pools[0] if len(pools) == 1 else Joined(tuple(pools), ("",) * len(pools))
    return Data(spec, pictures, labels, classes, splits, notes(findings), unlabelled)


def in_tar(archive: Path, split: str, root: Path, spec: str, findings: Findings) -> tuple[Pictures, list[str]]:
    """The pictures of a tar as downloaded, and the wnid of each, "" where nobody says it."""
    opened = open_members(LocalBlobs([os.fspath(archive)]))
    findings.others += [f"{archive.name}/{opened.others[1]}"] * opened.others[0]
    strange = [name for name in opened.classes if not WNID.fullmatch(name)]
    pictures, n = opened.pictures, len(opened.pictures)
    if not n:
        raise UserError(f"{archive}: holds no pictures; fetch it anew")
    if split == "train":
        if strange or int(opened.labels.min()) < 0:
            what = listing(strange) if strange else f"{pictures.name(int(opened.labels.argmin()))}, in no class"
            raise UserError(f"{archive}: holds {what}, and ILSVRC's is of tars called n01440764.tar; fetch it")
        return pictures, [opened.classes[label] for label in opened.labels.tolist()]
    if opened.classes:
        raise UserError(
            f"{archive}: has classes of its own, such as {opened.classes[0]}, and ILSVRC's {split} has none; fetch it"
        )
    names = [pictures.name(i) for i in range(n)]
    return pictures, truth(root, names, spec) if split == "val" else [""] * n


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


def devkit_ids(data: Data) -> dict[str, int]:
    """ILSVRC2012_ID of each wnid, from the development kit beside the pictures. Raises UserError without one."""
    files = data.pictures
    root = files.root if isinstance(files, Files) else Path(data.spec.removeprefix("imagenet:")).expanduser()
    found = devkit_file(root, META)
    if found is None:
        raise UserError(
            f"{data.spec}: a submission is written in the development kit's numbers, and there is no {META}; put "
            "ILSVRC2012_devkit_t12.tar.gz into the folder, and call the data imagenet:DIR"
        )
    return read_meta(found)


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
