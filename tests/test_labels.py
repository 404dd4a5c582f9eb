"""Labels from elsewhere: ReaL, tables, folders called by output number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnetkit.data.labels import read_labels
from resnetkit.data.pictures import Data, Files, label_table
from resnetkit.errors import UserError

CLASSES = tuple(f"class {i}" for i in range(12))


def validation(numbers: list[int]) -> Data:
    """Pictures of ILSVRC's validation, in class folders and so not in the order of their numbers."""
    names = sorted(f"val/n{number * 7 % 5}/ILSVRC2012_val_{number:08}.JPEG" for number in numbers)
    labels, classes = label_table([name.split("/")[1] for name in names])
    return Data("imagenet:x", Files(Path(), names), labels, classes, {"val": np.arange(len(names))})


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def accepted(given: str | Path, data: Data, indices: list[int] | None = None) -> dict[str, tuple[int, ...]]:
    chosen = np.arange(len(data)) if indices is None else np.array(indices)
    found = read_labels(given, data, chosen, CLASSES).accepted
    return {data.pictures.name(i).rpartition("/")[2]: labels for i, labels in found.items()}


def test_real_labels_go_by_the_number_in_the_name(tmp_path: Path) -> None:
    file = write(tmp_path / "real.json", [[3], [], [11, 0], [7], [1]])
    assert accepted(file, validation([1, 2, 3, 4])) == {
        "ILSVRC2012_val_00000001.JPEG": (3,),
        "ILSVRC2012_val_00000003.JPEG": (11, 0),
        "ILSVRC2012_val_00000004.JPEG": (7,),
    }


def test_the_words_say_which_labels_and_how_many_are_left_out(tmp_path: Path) -> None:
    file = write(tmp_path / "real.json", [[3], [], [11, 0], []])
    data = validation([1, 2, 3, 4])
    words = f"labels {file}; left out 2 pictures without one"
    assert str(read_labels(file, data, np.arange(4), CLASSES)) == words
    assert str(read_labels(file, data, np.flatnonzero([data.pictures.name(i)[-6] in "13" for i in range(4)]), CLASSES))
    folders = numbered(["3"])
    assert str(read_labels("numbers", folders, np.arange(1), CLASSES)) == "labels folders by output number"


def numbered(folders: list[str]) -> Data:
    names = sorted(f"{folder}/a.jpg" for folder in folders)
    labels, classes = label_table([name.partition("/")[0] for name in names])
    return Data("v2", Files(Path(), names), labels, classes, {"all": np.arange(len(names))})


def test_folders_called_by_number_are_outputs_and_not_strings_in_order() -> None:
    """Sorted as strings "10" stands before "2" and would be output 2."""
    data = numbered([str(i) for i in range(12)])
    assert data.classes.index("10") == 2
    found = read_labels("numbers", data, np.arange(12), CLASSES).accepted
    assert {data.pictures.name(i): labels for i, labels in found.items()} == {f"{i}/a.jpg": (i,) for i in range(12)}


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_table_of_names_and_numbers(suffix: str, tmp_path: Path) -> None:
    rows = [("path", "label"), ("3/a.jpg", "class 7"), ("5/a.jpg", "4"), ("3/a.jpg", "1"), ("./7/a.jpg", "0")]
    mark = "," if suffix == ".csv" else "\t"
    file = write(tmp_path / f"t{suffix}", "\n".join(mark.join(row) for row in rows))
    data = numbered(["3", "5", "6", "7"])
    found = read_labels(file, data, np.array([0, 1, 2]), CLASSES)
    assert {data.pictures.name(i): labels for i, labels in found.accepted.items()} == {
        "3/a.jpg": (7, 1),
        "5/a.jpg": (4,),
    }, "7/a.jpg is a picture of another split"
    assert str(found).endswith("; left out 1 picture without one")


def test_a_class_that_is_called_by_a_number_goes_before_the_output_number(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", "path,label\n3/a.jpg,1\n5/a.jpg,2\n")
    found = read_labels(file, numbered(["3", "5"]), np.arange(2), ("2", "1", "0"))
    assert found.accepted == {0: (1,), 1: (0,)}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gone.json", None, r"gone\.json: cannot be read \(No such file"),
        ("gone.csv", None, r"gone\.csv: no such file"),
        ("real.txt", "1", r"labels .*real\.txt: neither a \.json, \.csv or \.tsv file nor the word numbers"),
        ("r.json", "[[1], [", r"r\.json: no JSON"),
        ("r.json", {"a": 1}, r"r\.json: must be a list with a list of output numbers"),
        ("r.json", [1, 2], r"r\.json: must be a list with a list of output numbers"),
        ("r.json", [[1], [2]], r"r\.json: 2 entries, and none for .*ILSVRC2012_val_00000003\.JPEG"),
        ("r.json", [[1], [2], [12]], "entry 2: 12 is no output number of the model, which has 0 to 11"),
        ("r.json", [[1], [2], ["3"]], "entry 2: '3' is no output number"),
        ("r.json", [[1], [2], [-1]], "entry 2: -1 is no output number"),
        ("r.json", [[], [], []], r"r\.json: no label for any of the 3 pictures of imagenet:x"),
        ("t.csv", "path,label\nval/n9/x.JPEG,1\n", r"t\.csv, line 2: val/n9/x\.JPEG is none of the pictures of"),
        ("t.csv", "path,label\nval/n2/ILSVRC2012_val_00000001.JPEG,cat\n", "line 2: 'cat' is no output number"),
        ("t.csv", "file,label\n", r"t\.csv: no column 'path' in the first line"),
    ],
)
def test_labels_that_do_not_fit(name: str, value: Any, message: str, tmp_path: Path) -> None:
    if value is not None:
        write(tmp_path / name, value)
    with pytest.raises(UserError, match=message) as failure:
        accepted(tmp_path / name, validation([1, 2, 3]))
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("folder", ["cat", "12", "-1", "1.5", "٣"])
def test_folders_that_are_called_otherwise(folder: str) -> None:
    with pytest.raises(UserError, match=f"v2, folder {folder}: '{folder}' is no output number of the model"):
        accepted("numbers", numbered(["1", folder]))


def test_pictures_without_numbers_have_no_real_labels(tmp_path: Path) -> None:
    file = write(tmp_path / "r.json", [[1]])
    with pytest.raises(UserError, match=r"v2: 1/a\.jpg has no number, as ILSVRC2012_val_00000001\.JPEG has"):
        accepted(file, numbered(["1"]))
