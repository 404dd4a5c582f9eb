"""ILSVRC-2012 exactly as downloaded: a tar of tars, a flat tar, the development kit packed."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from imagenet_samples import LEAVES, write_devkit, write_flat
from resnetkit.data.imagenet import devkit_ids, submission
from resnetkit.data.pictures import check_trainable
from resnetkit.data.source import open_data
from resnetkit.errors import UserError
from tar_samples import jpeg, tar_bytes, write_tar

CHOSEN = (LEAVES[700], LEAVES[3], LEAVES[3], LEAVES[41])  # of the pictures 1 to 4 of val
IDS = (701, 4, 4, 42)
KIT = "ILSVRC2012_devkit_t12"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The development kit, packed."""
    folder = tmp_path_factory.mktemp("kit")
    write_devkit(folder / KIT / "data", IDS)
    with tarfile.open(folder / f"{KIT}.tar.gz", "w:gz") as packed:
        packed.add(folder / KIT, KIT)
    return folder / f"{KIT}.tar.gz"


@pytest.fixture
def downloaded(tmp_path: Path, kit: Path) -> Path:
    """The three tars and the kit; members of val in another order than their numbers, as some copies have."""
    folder = tmp_path / "downloaded"
    inner = [
        (f"{wnid}.tar", tar_bytes([(f"{wnid}_{k}.JPEG", jpeg(10 * n + k)) for k in range(2)], tarfile.GNU_FORMAT))
        for n, wnid in enumerate(sorted(set(CHOSEN)))
    ]
    write_tar(folder / "ILSVRC2012_img_train.tar", inner, tarfile.GNU_FORMAT)
    val = [(f"ILSVRC2012_val_{k:08}.JPEG", jpeg(100 + k)) for k in (2, 1, 4, 3)]
    write_tar(folder / "ILSVRC2012_img_val.tar", val, tarfile.GNU_FORMAT)
    test = [(f"test/ILSVRC2012_test_{k:08}.JPEG", jpeg(200 + k)) for k in (1, 2, 3)]
    write_tar(folder / "ILSVRC2012_img_test_v10102019.tar", test, tarfile.GNU_FORMAT)
    shutil.copy(kit, folder)
    return folder


def test_pictures_and_labels_of_the_tars_as_downloaded(downloaded: Path) -> None:
    for spec in (f"imagenet:{downloaded}", str(downloaded)):
        data = open_data(spec)
        check_trainable(data)
        wnids = sorted(set(CHOSEN))
        assert data.classes == tuple(wnids)
        train = [(data.pictures.name(i), data.pictures.read(i), data.labels[i]) for i in data.select("train").tolist()]
        assert train == [
            (f"ILSVRC2012_img_train.tar/{wnid}.tar/{wnid}_{k}.JPEG", jpeg(10 * n + k), n)
            for n, wnid in enumerate(wnids)
            for k in range(2)
        ]
        val = [(data.pictures.read(i), data.classes[data.labels[i]]) for i in data.select("val").tolist()]
        assert val == [(jpeg(100 + k), CHOSEN[k - 1]) for k in (2, 1, 4, 3)]
        assert data.labels[data.unlabelled["test"]].tolist() == [-1] * 3
        assert devkit_ids(data)[LEAVES[41]] == 42
        assert data.notes == ()
    order, _ = submission(data, data.unlabelled["test"].tolist(), LEAVES[:5])
    assert order == [0, 1, 2]


def test_nothing_is_unpacked(downloaded: Path) -> None:
    before = {path.name for path in downloaded.iterdir()}
    open_data(f"imagenet:{downloaded}")
    made = {path.name for path in downloaded.iterdir()} - before
    assert made == {name + ".index" for name in before if name.endswith(".tar")}


def test_a_folder_goes_before_the_tar(downloaded: Path) -> None:
    write_flat(downloaded / "val", "val", 4)
    data = open_data(f"imagenet:{downloaded}")
    assert [data.pictures.name(i) for i in data.select("val").tolist()] == [
        f"val/ILSVRC2012_val_{k:08}.JPEG" for k in range(1, 5)
    ]
    assert [data.classes[label] for label in data.labels[data.select("val")]] == list(CHOSEN)
    assert len(data.select("train")) == 6


def test_what_does_not_fit(downloaded: Path) -> None:
    kit, val = downloaded / f"{KIT}.tar.gz", downloaded / "ILSVRC2012_img_val.tar"
    whole = kit.read_bytes()
    for data, message in (
        (whole[: len(whole) // 2], r"ILSVRC2012_devkit_t12\.tar\.gz: cannot be read as the development kit"),
        (b"no archive", r"ILSVRC2012_devkit_t12\.tar\.gz: cannot be read as the development kit"),
        (None, r"there is no .*put ILSVRC2012_devkit_t12\.tar\.gz into the folder"),
    ):
        kit.unlink()
        if data is not None:
            kit.write_bytes(data)
        with pytest.raises(UserError, match=message):
            open_data(f"imagenet:{downloaded}")
        kit.write_bytes(whole)
    good = val.read_bytes()
    val.write_bytes(good[:2200])
    with pytest.raises(UserError, match=r"ILSVRC2012_img_val\.tar: ILSVRC2012_val_00000001\.JPEG: cut off"):
        open_data(f"imagenet:{downloaded}")
    write_tar(val, [("ILSVRC2012_val_00000001.JPEG", jpeg(1)), ("ILSVRC2012_val_00000001.cls", b"3")])
    with pytest.raises(UserError, match=r"ILSVRC2012_img_val\.tar: has classes of its own, such as 3"):
        open_data(f"imagenet:{downloaded}")
    write_tar(val, [("readme.txt", b"x")])
    with pytest.raises(UserError, match=r"ILSVRC2012_img_val\.tar: holds no pictures"):
        open_data(f"imagenet:{downloaded}")
    val.write_bytes(good)
    write_tar(downloaded / "ILSVRC2012_img_train.tar", [("1.JPEG", jpeg(1))])
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar: holds .*1\.JPEG, in no class"):
        open_data(f"imagenet:{downloaded}")
