"""ILSVRC-2012 in the layouts of its archives and of Kaggle: classes, labels, and the order of submissions."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imagenet_samples import LEAVES, WNIDS, picture, write_devkit, write_flat, write_meta
from resnetkit.data.devkit import KitFile, read_meta
from resnetkit.data.imagenet import devkit_ids, submission, submission_lines
from resnetkit.data.pictures import Data, check_trainable
from resnetkit.data.source import absolute, open_data
from resnetkit.errors import UserError

CHOSEN = (LEAVES[700], LEAVES[3], LEAVES[3], LEAVES[41])  # of the pictures 1 to 4 of val
IDS = (701, 4, 4, 42)


def labels_of(data: Data, split: str) -> list[tuple[str, str]]:
    """(name of the file, class) in the data's order."""
    return [(data.pictures.name(i).rpartition("/")[2], data.classes[data.labels[i]]) for i in data.select(split)]


def write_train(folder: Path) -> None:
    for wnid in sorted(set(CHOSEN)):
        for i in range(2):
            picture(folder / wnid / f"{wnid}_{i}.JPEG")


@pytest.fixture
def ilsvrc(tmp_path: Path) -> Path:
    """Train in folders, val and test flat, the development kit in a folder of its own."""
    write_train(tmp_path / "train")
    write_flat(tmp_path / "val", "val", 4)
    write_flat(tmp_path / "test", "test", 3)
    write_devkit(tmp_path / "ILSVRC2012_devkit_t12" / "data", IDS)
    return tmp_path


EXPECTED = [(f"ILSVRC2012_val_{i:08}.JPEG", wnid) for i, wnid in enumerate(CHOSEN, start=1)]


def test_flat_validation_pictures_get_the_labels_of_the_ground_truth(ilsvrc: Path) -> None:
    """The ids are the development kit's; the classes are the wnids as sorted strings."""
    data = open_data(f"imagenet:{ilsvrc}")
    assert data.spec == f"imagenet:{ilsvrc}"
    assert labels_of(data, "val") == EXPECTED
    assert data.classes == tuple(sorted(set(CHOSEN)))
    assert data.classes != tuple(dict.fromkeys(sorted(CHOSEN, key=LEAVES.index))), "or the orders would be one"
    assert {name.rpartition("_")[0] == wnid for name, wnid in labels_of(data, "train")} == {True}
    assert {split: len(indices) for split, indices in data.splits.items()} == {"train": 6, "val": 4}


def test_test_pictures_are_there_without_labels_and_disturb_no_training(ilsvrc: Path) -> None:
    data = open_data(f"imagenet:{ilsvrc}")
    assert {split: len(indices) for split, indices in data.unlabelled.items()} == {"test": 3}
    assert data.labels[data.unlabelled["test"]].tolist() == [-1] * 3
    check_trainable(data)
    moved = data.relabelled(tuple(reversed(data.classes)))
    assert labels_of(moved, "val") == EXPECTED
    assert moved.labels[data.unlabelled["test"]].tolist() == [-1] * 3


def test_all_thousand_classes_have_the_order_of_sorted_wnids(tmp_path: Path) -> None:
    write_flat(tmp_path / "test", "test", 1)
    write_meta(tmp_path / "meta.mat")
    data = open_data(f"imagenet:{tmp_path}")
    assert data.classes == tuple(sorted(WNIDS[:1000]))
    assert (dict(data.splits), list(data.unlabelled)) == ({}, ["test"])


def test_meta_mat_gives_the_ids_of_the_leaves(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta.mat")
    assert read_meta(KitFile("meta.mat", (tmp_path / "meta.mat").read_bytes())) == {
        wnid: i for i, wnid in enumerate(WNIDS[:1000], start=1)
    }


@pytest.mark.parametrize("place", ["ILSVRC2012_devkit_t12", "data", ""])
def test_where_the_development_kit_may_lie(place: str, ilsvrc: Path) -> None:
    kit = ilsvrc / "ILSVRC2012_devkit_t12" / "data"
    (ilsvrc / place).mkdir(exist_ok=True)
    for file in list(kit.iterdir()):
        file.rename(ilsvrc / place / file.name)
    kit.rmdir()
    assert labels_of(open_data(f"imagenet:{ilsvrc}"), "val") == EXPECTED


def test_the_names_of_the_archives(ilsvrc: Path) -> None:
    for split in ("train", "val", "test"):
        (ilsvrc / split).rename(ilsvrc / f"ILSVRC2012_img_{split}")
    data = open_data(f"imagenet:{ilsvrc}")
    assert labels_of(data, "val") == EXPECTED
    assert (len(data.select("train")), len(data.unlabelled["test"])) == (6, 3)


def test_validation_pictures_in_class_folders_need_no_development_kit(tmp_path: Path) -> None:
    for i, wnid in enumerate(CHOSEN, start=1):
        picture(tmp_path / "val" / wnid / f"ILSVRC2012_val_{i:08}.JPEG")
    data = open_data(f"imagenet:{tmp_path}")
    assert sorted(labels_of(data, "val")) == EXPECTED
    assert list(data.splits) == ["val"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_kaggles_layout(newline: str, ilsvrc: Path) -> None:
    base = ilsvrc / "ILSVRC" / "Data" / "CLS-LOC"
    base.mkdir(parents=True)
    for split in ("train", "val", "test"):
        (ilsvrc / split).rename(base / split)
    shutil.rmtree(ilsvrc / "ILSVRC2012_devkit_t12")
    rows = [f"{name.removesuffix('.JPEG')},{wnid} 1 2 3 4 {wnid} 5 6 7 8 " for name, wnid in reversed(EXPECTED)]
    text = newline.join(["ImageId,PredictionString", *rows, ""])
    (ilsvrc / "LOC_val_solution.csv").write_text(text, newline="")
    data = open_data(f"imagenet:{ilsvrc}")
    assert labels_of(data, "val") == EXPECTED
    assert (len(data.select("train")), len(data.unlabelled["test"])) == (6, 3)
    with pytest.raises(UserError, match=r"there is no meta\.mat"):
        devkit_ids(data)
    shutil.rmtree(base / "train")
    shutil.rmtree(base / "val")
    with pytest.raises(UserError, match=r"test pictures alone, and neither meta\.mat nor LOC_synset_mapping\.txt"):
        open_data(f"imagenet:{ilsvrc}")
    lines = [f"{wnid} tench, Tinca tinca\n" for wnid in LEAVES]
    (ilsvrc / "LOC_synset_mapping.txt").write_text("".join(lines))
    assert open_data(f"imagenet:{ilsvrc}").classes == tuple(sorted(LEAVES))


def test_the_same_pictures_from_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("imagenet:here") == f"imagenet:{tmp_path}/here"


def break_truth(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt").write_text(text)

    return write


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def kit(name: str) -> str:
    return f"ILSVRC2012_devkit_t12/data/{name}"


def only_a_solution(rows: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / "ILSVRC2012_devkit_t12")
        (folder / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{rows}")

    return change


def loose_train(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    (folder / "train" / "n01440764.tar").write_bytes(b"x")


def rename_class(folder: Path) -> None:
    (folder / "train" / CHOSEN[0]).rename(folder / "train" / "tench")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_truth("701\n4\n4\n"), "ground_truth.txt: 3 lines for 4 pictures of val; "),
        (break_truth("701\n4\n4\n42\n1\n"), "ground_truth.txt: 5 lines for 4 pictures of val; "),
        (break_truth("701\n4\n1001\n42\n"), r"ground_truth.txt, line 3: '1001' is no ILSVRC2012_ID of .*meta\.mat"),
        (break_truth("701\nfour\n4\n42\n"), "ground_truth.txt, line 2: 'four' is no ILSVRC2012_ID"),
        (remove("val/ILSVRC2012_val_00000002.JPEG"), "4 lines for 3 pictures of val; "),
        (remove(kit("meta.mat")), r"val has no class folders, and there is no meta\.mat; put ILSVRC2012_devkit"),
        (
            lambda folder: shutil.rmtree(folder / "ILSVRC2012_devkit_t12"),
            r"there is no ILSVRC2012_validation_ground_truth\.txt and meta\.mat",
        ),
        (lambda folder: (folder / kit("meta.mat")).write_bytes(b"no mat"), r"meta\.mat: cannot be read as the dev"),
        (lambda folder: (folder / kit("meta.mat")).write_bytes(b""), r"meta\.mat: cannot be read as the dev"),
        (
            only_a_solution(""),
            "solution.csv: 0 lines for 4 pictures of val, such as none for ILSVRC2012_val_00000001; ",
        ),
        (only_a_solution("a,tench 1 2\n"), "solution.csv: expected lines of ImageId,PredictionString"),
        (lambda folder: picture(folder / "val" / "cat.JPEG"), r"val/cat\.JPEG has no number, as ILSVRC2012_val"),
        (loose_train, r"train has no class folders; unpack each n….tar"),
        (rename_class, "train holds tench, where class folders are called n01440764 and so on"),
    ],
)
def test_what_does_not_fit(change: Callable[[Path], None], message: str, ilsvrc: Path) -> None:
    change(ilsvrc)
    with pytest.raises(UserError, match=message) as failure:
        open_data(f"imagenet:{ilsvrc}")
    assert "\n" not in str(failure.value)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "1.jpg")
    with pytest.raises(UserError, match="no pictures of ILSVRC-2012; expected the tars of ILSVRC-2012 in it"):
        open_data(f"imagenet:{tmp_path}")
    with pytest.raises(UserError, match="no such folder; write imagenet:DIR"):
        open_data(f"imagenet:{tmp_path}/gone")


def test_without_scipy_there_is_a_sentence(ilsvrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"needs scipy, which is not installed: pip install 'resnetkit\[imagenet\]'"):
        open_data(f"imagenet:{ilsvrc}")


# Submissions


def test_a_submission_stands_in_the_order_of_numbers_and_in_the_kits_ids(ilsvrc: Path) -> None:
    data = open_data(f"imagenet:{ilsvrc}")
    classes = tuple(sorted(LEAVES[:7]))
    test = data.unlabelled["test"][::-1]  # picture 3 first
    order, ids = submission(data, test.tolist(), classes)
    table = np.random.default_rng(0).random((3, 7))
    expected = []
    for row in reversed(table.tolist()):
        best = sorted(range(7), key=lambda i: -row[i])[:5]
        expected.append(" ".join(str(1 + LEAVES.index(classes[i])) for i in best))
    assert list(submission_lines(table[order], ids)) == expected


@pytest.mark.parametrize(
    ("indices", "classes", "message"),
    [
        ([0, 2], LEAVES[:7], "these 2 are not number 1 to 2"),
        ([1, 2], LEAVES[:7], "these 2 are not number 1 to 2"),
        ([0, 1, 2], ("tench", *LEAVES[:7]), r"'tench', a class of the model, is no wnid of the development kit's meta"),
        ([0, 1, 2], WNIDS[996:1001], "is no wnid of the development kit's"),
        ([0, 1, 2], LEAVES[:4], "has the 5 best classes of each picture, and the model has 4"),
    ],
)
def test_what_cannot_be_submitted(indices: list[int], classes: tuple[str, ...], message: str, ilsvrc: Path) -> None:
    data = open_data(f"imagenet:{ilsvrc}")
    test = data.unlabelled["test"][indices].tolist()
    with pytest.raises(UserError, match=message):
        submission(data, test, classes)
