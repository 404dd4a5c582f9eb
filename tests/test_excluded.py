"""Pictures left out by name: the files of names, `resnet train --exclude` and what a run keeps of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetkit import training
from resnetkit.data.excluded import as_csv, names_of_run, read_names, without_names
from resnetkit.data.source import open_data
from resnetkit.errors import UserError
from resnetkit.recipe_file import from_dict, to_dict
from resnetkit.shipped import shipped

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """train/ and val/ of two classes, with 24 and 12 pictures of noise."""
    dice = np.random.default_rng(0)
    for i in range(36):
        folder = tmp_path / "photos" / ("train" if i < 24 else "val") / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i:02}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def test_names_come_back(tmp_path: Path) -> None:
    names = ["a, b.jpg", 'quo"te.jpg', "line\nbreak.jpg", "é.jpg", "\udcff.jpg"]
    (tmp_path / "x.csv").write_text(as_csv((name, "why, so") for name in names), "utf-8", "surrogateescape")
    (tmp_path / "y.txt").write_text("a, b.jpg\nz.jpg\n")
    assert read_names([tmp_path / "x.csv", tmp_path / "y.txt"]) == (*names, "z.jpg")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("x.json", "[]", "stand in a .csv, .tsv or .txt file"),
        ("x.csv", "name\na.jpg\n", "no column 'path'"),
        ("none.csv", None, "cannot be read"),
    ],
)
def test_wrong_files_of_names(tmp_path: Path, file: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_names([tmp_path / file])


def test_a_name_that_is_not_there(photos: Path) -> None:
    data = open_data(photos)
    left = without_names(data, ["train/cat/00.jpg"])
    assert len(left.used()) == len(data.used()) - 1
    assert left.notes[-1] == "left out by name: 1 picture"
    with pytest.raises(UserError, match=r"1 name to leave out is none of its pictures: cat/00\.jpg"):
        without_names(data, ["train/cat/00.jpg", "cat/00.jpg"])


def test_train_evaluate_and_resume_without_pictures(photos: Path, resnet: Run) -> None:
    """The run keeps the names: the file that was given may be gone."""
    (photos / "val/cat/again.jpg").write_bytes((photos / "train/cat/00.jpg").read_bytes())
    (photos / "val/cat/cut.jpg").write_text("no picture")
    resnet("check", "photos", "--out", "found")
    recipe = shipped("digits")
    values = to_dict(recipe)
    values["model"]["arch"], values["data"]["size"], values["optim"]["batch"] = "resnet8-cifar", 16, 8
    values["schedule"]["epochs"], values["data"]["channels"] = 1, 3
    files = ["found/leak.csv", "found/unreadable.csv"]
    done = training.train("photos", recipe=from_dict(values, where="test"), out="run", exclude=files)
    assert done.result.n == 13
    assert json.loads(Path("run/environment.json").read_text())["excluded"] == 2
    Path("found").rename("gone")
    code, output, errors = resnet("evaluate", "run", "--json")  # the run's own pictures, without the broken one
    assert code == 0, errors
    assert json.loads(output)["n"] == 13
    assert training.resume("run").result.n == 13
    (photos / "val/cat/cut.jpg").unlink()
    with pytest.raises(UserError, match="none of its pictures"):
        training.resume("run")


def test_a_changed_list_of_names_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "excluded.csv").write_text(as_csv([("a.jpg", ""), ("b.jpg", "")]))
    assert names_of_run(tmp_path, 2) == ("a.jpg", "b.jpg")
    assert names_of_run(tmp_path, 0) == ()
    with pytest.raises(UserError, match="2 names, not the 3"):
        names_of_run(tmp_path, 3)
