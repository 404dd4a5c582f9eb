"""Folders of pictures: the layouts, what is skipped, links, names of all kinds, and errors that say what was found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnetkit.data.folder import load_folder
from resnetkit.data.pictures import Data
from resnetkit.errors import UserError


def make(root: Path, *paths: str) -> Path:
    """Files with some bytes in them: the layout is read by names alone."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def found(data: Data) -> dict[str, list[tuple[str, str]]]:
    """Split to (name, class) of its pictures."""
    return {
        split: [(data.pictures.name(i), data.classes[data.labels[i]]) for i in indices.tolist()]
        for split, indices in data.splits.items()
    }


def test_an_undivided_folder(tmp_path: Path) -> None:
    data = load_folder(make(tmp_path, "dog/2.JPG", "cat/b/deep/1.png", "cat/a.webp", "dog/1.Tiff"))
    assert found(data) == {
        "all": [("cat/a.webp", "cat"), ("cat/b/deep/1.png", "cat"), ("dog/1.Tiff", "dog"), ("dog/2.JPG", "dog")]
    }
    assert data.notes == ()
    assert data.spec == str(tmp_path)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_a_divided_folder(tmp_path: Path, val: str) -> None:
    data = load_folder(make(tmp_path, "train/a/1.jpg", f"{val}/a/2.jpg", "test/b/x/3.jpg", "train/b/4.jpg"))
    assert found(data) == {
        "train": [("train/a/1.jpg", "a"), ("train/b/4.jpg", "b")],
        "val": [(f"{val}/a/2.jpg", "a")],
        "test": [("test/b/x/3.jpg", "b")],
    }


def test_a_validation_part_alone_is_one(tmp_path: Path) -> None:
    assert list(load_folder(make(tmp_path, "val/a/1.jpg", "val/b/1.jpg")).splits) == ["val"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert load_folder(make(tmp_path, "train/1.jpg", "bus/1.jpg")).classes == ("bus", "train")


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPEG", "png", "PNG", "webp", "bmp", "tif", "tiff", "gif", "GIF"])
def test_suffixes_of_pictures(tmp_path: Path, suffix: str) -> None:
    assert len(load_folder(make(tmp_path, f"a/1.{suffix}"))) == 1


def test_other_files_are_counted_and_hidden_and_system_files_are_not(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "a/notes.txt", "a/jpg", "classes.tsv", "a/Thumbs.db", "a/desktop.ini", "a/.DS_Store")
    make(tmp_path, "a/.hidden.jpg", ".cache/2.jpg", "__MACOSX/a/1.jpg", "a/._1.jpg", "a/.b/1.jpg")
    data = load_folder(tmp_path)
    assert found(data) == {"all": [("a/1.jpg", "a")]}
    assert data.notes == ("skipped 3 files that are not pictures by name, such as classes.tsv",)


def test_loose_pictures_and_empty_classes_are_told(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/loose.jpg", "top.png", "val/a/2.jpg", "val/b/readme.md")
    notes = load_folder(tmp_path).notes
    assert "left out 2 files that lie in no class folder, such as top.png" in notes
    assert "left out folders without pictures: val/b" in notes


def test_a_test_part_without_labels_is_left_out(tmp_path: Path) -> None:
    data = load_folder(make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/7.jpg", "test/8.jpg"))
    assert list(data.splits) == ["train"]
    assert data.notes == ("left out 2 files of test, which has no class folders, such as test/7.jpg",)


@given(names=st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=8, unique=True))
def test_any_name_works_and_order_is_that_of_the_bytes(
    tmp_path_factory: pytest.TempPathFactory, names: list[bytes]
) -> None:
    root = tmp_path_factory.mktemp("names")
    plain = sorted({b"n" + name.replace(b"/", b"_").replace(b"\0", b"_") + b".png" for name in names})
    (root / "a'b \"c").mkdir()
    for name in plain:
        (root / "a'b \"c" / os.fsdecode(name)).write_bytes(name)
    data = load_folder(root)
    assert [os.fsencode(data.pictures.name(i)) for i in range(len(data))] == [b"a'b \"c/" + name for name in plain]
    assert [data.pictures.read(i) for i in range(len(data))] == plain


def test_order_is_by_the_whole_path(tmp_path: Path) -> None:
    data = load_folder(make(tmp_path, "a/x.jpg", "a b/x.jpg", "a/b/x.jpg", "a/b-c.jpg", "B/x.jpg"))
    names = [data.pictures.name(i) for i in range(len(data))]
    assert names == ["B/x.jpg", "a b/x.jpg", "a/b-c.jpg", "a/b/x.jpg", "a/x.jpg"]


def test_links_are_followed_and_loops_noticed(tmp_path: Path) -> None:
    make(tmp_path / "photos", "a/1.jpg", "a/deep/2.jpg", "b/3.jpg")
    make(tmp_path / "elsewhere", "4.jpg")
    photos = tmp_path / "photos"
    (photos / "c").symlink_to(tmp_path / "elsewhere")
    (photos / "b" / "5.jpg").symlink_to(tmp_path / "elsewhere" / "4.jpg")
    (photos / "a" / "deep" / "up").symlink_to("..")
    (photos / "a" / "top").symlink_to(photos)
    (photos / "a" / "self.jpg").symlink_to("self.jpg")
    data = load_folder(photos)
    names = [data.pictures.name(i) for i in range(len(data))]
    assert names == ["a/1.jpg", "a/deep/2.jpg", "a/self.jpg", "b/3.jpg", "b/5.jpg", "c/4.jpg"]
    assert data.notes == ("did not follow 2 links to a folder that is read already, such as a/deep/up",)


def test_a_link_to_nothing_stays_so_that_it_is_reported(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "2.jpg").symlink_to("gone.jpg")
    assert len(load_folder(tmp_path)) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(make(tmp_path, "a/1.jpg") / "a" / "2.jpg")
    assert len(load_folder(tmp_path)) == 1


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "the folder is empty; expected <class>/"),
        (("1.jpg", "2.jpg"), "holds 2 pictures but no folder for each class; expected <class>/"),
        (("a/1.txt", "a/2.txt"), r"no file in it is a picture by its suffix \(found a/1.txt, a/2.txt\)"),
        (("train/a/1.jpg", "b/1.jpg", "c/2.jpg"), "holds train with class folders inside, and b, c beside it; move"),
        (("train/1.jpg", "val/2.jpg"), "found pictures but no class folders in train, val; expected"),
        (("train/a/1.jpg", "val/2.jpg"), "found pictures but no class folders in val; expected"),
        (("train/a/1.jpg", "val/a/2.jpg", "valid/a/3.jpg"), "val and valid both mean val; keep one"),
    ],
)
def test_what_is_laid_out_otherwise_is_refused(tmp_path: Path, paths: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_folder(make(tmp_path, *paths))


def test_empty_class_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="its folders cat hold no pictures"):
        load_folder(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone: no such folder"):
        load_folder(tmp_path / "gone", "gone")
    with pytest.raises(UserError, match="a file, where a folder of pictures is needed"):
        load_folder(make(tmp_path, "x.jpg") / "x.jpg")
