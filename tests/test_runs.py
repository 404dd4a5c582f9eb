"""The run folder: made whole or not at all, held by one process, and read back as it was written."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resnetkit.data.pictures import Data, Files
from resnetkit.data.split import load_split
from resnetkit.errors import UserError
from resnetkit.recipe_file import with_settings
from resnetkit.runs import (
    append_log,
    creating,
    cut_log,
    locked,
    new_folder,
    read_environment,
    read_json,
    read_log,
    read_recipe,
    sweep,
    this_environment,
    write_beginning,
)
from resnetkit.shipped import recipes, shipped


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# A place for a new run


@pytest.mark.parametrize(
    ("taken", "expected"),
    [([], "photos-1"), (["photos-1"], "photos-2"), (["photos-1", "photos-3"], "photos-2"), (["pho-1"], "photos-1")],
    ids=str,
)
def test_the_next_free_number(taken: list[str], expected: str, here: Path) -> None:
    for name in taken:
        (here / "runs" / name).mkdir(parents=True)
    assert new_folder(None, "data/photos") == Path("runs") / expected
    assert everything(here / "runs") == sorted(taken), "the place is found, not taken"


@pytest.mark.parametrize(
    ("data", "stem"),
    [
        ("photos/", "photos"),
        ("/data/my pets", "my-pets"),
        ("pets.csv", "pets"),
        ("digits:", "digits"),
        ("cifar10:/data/cifar", "cifar"),
        ("猫 & 犬", "猫---犬"),
        (os.fsdecode(b"caf\xe9"), "caf"),
        (".", "run"),
        ("..", "run"),
        ("/", "run"),
        ("../photos", "photos"),
    ],
)
def test_a_run_is_called_after_its_pictures(data: str, stem: str, here: Path) -> None:
    folder = new_folder(None, data)
    assert folder == Path("runs") / f"{stem}-1"
    assert everything(here) == []


@given(st.binary(max_size=40).map(lambda name: os.fsdecode(name.replace(b"\0", b"0"))))
def test_any_name_gives_a_folder_in_runs(tmp_path_factory: pytest.TempPathFactory, data: str) -> None:
    with contextlib.chdir(tmp_path_factory.mktemp("here")):
        folder = new_folder(None, data)
        with creating(folder):
            pass
        assert [path.name for path in Path("runs").iterdir()] == [folder.name]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_exists_is_not_written_over(kind: str, here: Path) -> None:
    if kind == "folder":
        (here / "mine").mkdir()
    else:
        (here / "mine").write_text("precious")
    with pytest.raises(UserError, match=r"mine: exists already; choose another --out.*resnet resume mine"):
        new_folder("mine", "photos")


def test_folders_above_are_made_with_the_run(here: Path) -> None:
    folder = new_folder("a/b/mine", "photos")
    assert (folder, everything(here)) == (Path("a/b/mine"), [])
    with creating(folder):
        pass
    assert everything(here) == ["a", "a/b", "a/b/mine", "a/b/mine/checkpoints"]


@pytest.mark.parametrize("out", ["file/mine", "file/deeper/mine"])
def test_no_run_lies_below_a_file(out: str, here: Path) -> None:
    (here / "file").write_text("x")
    with pytest.raises(UserError, match="file: is no folder; choose another --out"):
        new_folder(out, "photos")


@pytest.mark.parametrize("out", ["mine", "deeper/mine", None])
def test_a_read_only_place_is_noticed_at_once(out: str | None, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # permissions do not hold for root, whom a container may run as
        patch.setattr(os, "access", lambda path, _mode: Path(path).resolve() != here.resolve())
        with pytest.raises(UserError, match="cannot be written; choose another --out"):
            new_folder(out, "photos")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not hold for root")
@pytest.mark.parametrize("out", ["closed/mine", "closed/deeper/mine"])
def test_a_closed_folder_is_noticed_at_once(out: str, here: Path) -> None:
    (here / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="choose another --out"):
        new_folder(out, "photos")


# Made whole or not at all


def test_a_run_appears_when_all_of_it_is_there(tmp_path: Path) -> None:
    with creating(tmp_path / "mine") as part:
        (part / "recipe.json").write_text("{}")
        assert not (tmp_path / "mine").exists()
        assert part.name.startswith("."), "hidden, in the same folder"
        assert part.parent == tmp_path
    assert everything(tmp_path) == ["mine", "mine/checkpoints", "mine/recipe.json"]


@pytest.mark.parametrize("error", [KeyError("x"), UserError("no"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_a_failure_leaves_nothing_behind(error: BaseException, tmp_path: Path) -> None:
    def fail() -> None:
        with creating(tmp_path / "mine") as part:
            (part / "checkpoints" / "step").write_text("x")
            raise error

    with pytest.raises(type(error)) as failure:
        fail()
    assert failure.value is error
    assert everything(tmp_path) == []


def test_a_disk_without_room_is_the_users_to_mend(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"mine: cannot be written \(No space left on device\); .*make room"),
        creating(tmp_path / "mine"),
    ):
        raise OSError(28, "No space left on device")
    assert everything(tmp_path) == []


def test_a_run_that_appeared_meanwhile_stays_as_it_is(tmp_path: Path) -> None:
    theirs = tmp_path / "mine" / "checkpoints"
    with pytest.raises(UserError, match="mine: cannot be written"), creating(tmp_path / "mine"):
        theirs.mkdir(parents=True)
    assert everything(tmp_path) == ["mine", "mine/checkpoints"]


# One process at a time


def hold_in_another_process(folder: Path) -> subprocess.Popen[bytes]:
    """A process that holds the run until its input ends; comes back when it does."""
    code = (
        "import sys; from pathlib import Path; from resnetkit.runs import locked\n"
        "with locked(Path(sys.argv[1])):\n print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_run_in_use_is_refused_until_its_process_is_gone(tmp_path: Path) -> None:
    with hold_in_another_process(tmp_path) as process:
        with pytest.raises(UserError, match="another process is working on this run; wait"), locked(tmp_path):
            pass
        process.kill()  # without a chance to tidy up
    with locked(tmp_path):
        pass


def test_a_run_is_free_again_afterwards(tmp_path: Path) -> None:
    with contextlib.suppress(KeyError), locked(tmp_path):
        with pytest.raises(UserError, match="another process"), locked(tmp_path):
            pass
        raise KeyError
    for _ in range(2):
        with locked(tmp_path):
            pass


def test_runs_are_held_one_by_one(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        pass


def test_a_run_that_is_gone_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone: cannot be written"), locked(tmp_path / "gone"):
        pass


def test_half_written_files_are_swept_away(tmp_path: Path) -> None:
    kept = ["checkpoints", "checkpoints/step-000000004.safetensors", "log.jsonl", "notes.part"]
    (tmp_path / "checkpoints").mkdir()
    for name in (*kept[1:], ".recipe.json.77.part", "checkpoints/.step-000000008.safetensors.77.part"):
        (tmp_path / name).write_text("x")
    sweep(tmp_path)
    assert everything(tmp_path) == kept


# What is written is what is read


def test_a_beginning_is_read_back(tmp_path: Path) -> None:
    recipe = with_settings(shipped("digits"), ["schedule.milestones=0.25,0.5", "run.seed=9223372036854775807"])
    names = ["a/1.png", os.fsdecode(b"b/\xff.png"), "b/2.png"]
    splits = {"train": np.array([0, 2]), "val": np.array([1])}
    data = Data("photos", Files(Path("photos"), names), np.array([0, 1, 1]), ("a", "b"), splits)
    environment = this_environment(
        names[1], "f" * 64, None, torch.device("cpu"), derived=("batch 16",), notes=(f"left out {names[1]}",)
    )
    write_beginning(tmp_path, recipe, environment, data, divided=True)
    assert read_recipe(tmp_path) == recipe
    assert read_environment(tmp_path) == environment
    again = load_split(data, tmp_path / "split.csv")
    assert {name: part.tolist() for name, part in again.splits.items()} == {"train": [0, 2], "val": [1]}
    assert environment.torch_threads == torch.get_num_threads()
    assert environment.versions["torch"] == torch.__version__


@pytest.mark.parametrize("name", recipes())
def test_data_that_came_divided_need_no_table(name: str, tmp_path: Path) -> None:
    data = Data("x", Files(Path("x"), ["a/1.png"]), np.array([0]), ("a",), {"train": np.array([0])})
    environment = this_environment("x", "", "w.safetensors", torch.device("cpu"), derived=(), notes=())
    write_beginning(tmp_path, shipped(name), environment, data, divided=False)
    assert everything(tmp_path) == ["environment.json", "recipe.json"]
    assert read_recipe(tmp_path) == shipped(name)


def absent(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (absent, r"run: not a run folder \(no recipe\.json\)"),
        (lambda path: path.write_text(""), r"run/recipe\.json: cannot be read"),
        (lambda path: path.write_text('{"optim": {"lr": 0.'), r"run/recipe\.json: cannot be read"),
        (lambda path: path.write_bytes(b'{"name": "\xff"}'), r"run/recipe\.json: cannot be read"),
        (lambda path: path.mkdir(), r"run/recipe\.json: cannot be read"),
    ],
    ids=["absent", "empty", "cut off", "not UTF-8", "a folder"],
)
def test_a_damaged_file_is_named(write: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "run" / "recipe.json"
    path.parent.mkdir()
    write(path)
    with pytest.raises(UserError, match=message):
        read_json(path)
    with pytest.raises(UserError, match=message):
        read_recipe(path.parent)


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(UserError, match=r"run/recipe\.json: cannot be read"):
        read_recipe(tmp_path / "run")


def test_a_recipe_with_a_wrong_value_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"optim": {"lr": -1}}')
    with pytest.raises(UserError, match=r"optim\.lr = -1 in .*recipe\.json: must be"):
        read_recipe(tmp_path)


# The log

LINES: list[dict[str, Any]] = [
    {"step": 4, "loss": 1.25, "result": None},
    {"step": 8, "loss": 0.1 + 0.2, "result": {"top1": 0.5, "top1_interval": [0.1, 0.9]}},
    {"step": 12, "loss": 1e-9, "split": "猫\u2028\n"},  # characters that end a line in Python or in a file
]


def logged(folder: Path) -> None:
    for line in LINES:
        append_log(folder, line)


def test_the_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []
    logged(tmp_path)
    assert read_log(tmp_path) == LINES
    with (tmp_path / "log.jsonl").open() as file:
        assert [json.loads(line) for line in file] == LINES


@pytest.mark.parametrize("lost", [1, 5, 20, 30])
def test_a_half_written_last_line_is_passed_over(lost: int, tmp_path: Path) -> None:
    logged(tmp_path)
    log = tmp_path / "log.jsonl"
    whole = len(log.read_bytes().splitlines(keepends=True)[-1])
    log.write_bytes(log.read_bytes()[:-lost])
    assert read_log(tmp_path) == (LINES if lost == 1 else LINES[:2]), "the end of the line alone is no loss"
    assert lost < whole


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2), (12, 3), (99, 3)])
def test_later_steps_are_cut_off(step: int, kept: int, tmp_path: Path) -> None:
    logged(tmp_path)
    cut_log(tmp_path, step)
    assert read_log(tmp_path) == LINES[:kept]
    assert everything(tmp_path) == ["log.jsonl"]


@pytest.mark.parametrize("lost", [1, 5])
def test_a_cut_mends_a_half_written_line(lost: int, tmp_path: Path) -> None:
    logged(tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-lost])
    cut_log(tmp_path, 8)
    for line in LINES[2:]:
        append_log(tmp_path, line)
    assert read_log(tmp_path) == LINES


def test_a_run_without_a_log_yet(tmp_path: Path) -> None:
    cut_log(tmp_path, 5)
    assert read_log(tmp_path) == []
    logged(tmp_path)
    assert read_log(tmp_path) == LINES
