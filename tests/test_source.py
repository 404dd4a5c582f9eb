"""What a person may type as data, and what they read when there is nothing of that name."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from resnetkit.data.source import open_data
from resnetkit.errors import UserError


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def test_a_folder_and_a_table(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.jpg")
    touch(tmp_path / "b" / "2.jpg")
    (tmp_path / "t.tsv").write_text("path\tlabel\na/1.jpg\tx\nb/2.jpg\ty\n")
    assert open_data(tmp_path).classes == ("a", "b")
    assert open_data(str(tmp_path)).spec == str(tmp_path)
    assert open_data(tmp_path / "t.tsv").classes == ("x", "y")


def test_a_folder_that_is_called_like_a_table(tmp_path: Path) -> None:
    touch(tmp_path / "photos.csv" / "a" / "1.jpg")
    assert open_data(tmp_path / "photos.csv").classes == ("a",)


def test_cifar_as_folders_of_pictures(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("bird", "cat"):
            touch(tmp_path / split / name / "0000.jpg")
    data = open_data(f"cifar10:{tmp_path}")
    assert (data.spec, data.classes, list(data.splits)) == (f"cifar10:{tmp_path}", ("bird", "cat"), ["train", "test"])


def test_a_named_set_by_its_files(tmp_path: Path) -> None:
    for part in ("train", "t10k"):
        pictures = struct.pack(">4B3I", 0, 0, 8, 3, 2, 1, 1) + b"\1\2"
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(pictures))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 2) + b"\3\4")
    assert open_data(f"mnist:{tmp_path}").labels.tolist() == [3, 4, 3, 4]


def test_digits() -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn, the extra 'demo'")
    assert len(open_data("digits:")) == 1797


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gone", "gone: no such folder or table; check the path"),
        ("gone.csv", "gone.csv: no such file; check the path"),
        ("fashionmnist:x", "fashionmnist:x: no such folder or table; did you mean 'fashion-mnist:'"),
        ("cifar10:gone", "cifar10:gone: no such folder; write cifar10:DIR"),
        ("cifar10:", "cifar10:: no such folder; write cifar10:DIR"),
        ("x" * 5000, "cannot be read"),
        ("a\0b", "no such folder"),
    ],
)
def test_nothing_there(spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        open_data(spec)


def test_a_picture_is_no_data_set(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg: a file that is no table; give a folder"):
        open_data(tmp_path / "a.jpg")


def test_real_pictures_have_their_counts(shared_data: Path, tmp_path: Path) -> None:
    """The class folders of the archive, unpacked by name only."""
    import tarfile

    with tarfile.open(shared_data / "cifar10-q75.tar.gz") as archive:
        names = []
        for member in archive:
            if len(names) == 300:
                break
            if member.isfile():
                names.append(member)
                archive.extract(member, tmp_path, filter="data")
    root = next(
        path for path in (tmp_path, *tmp_path.iterdir()) if (path / "train").is_dir() or (path / "test").is_dir()
    )
    assert len(open_data(root)) == sum(member.name.endswith(".jpg") for member in names)
