"""WebDataset shards as data: the real library's, splits by name, a second source, training on them."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import resnetkit
from resnetkit import training
from resnetkit.data import audit, loader, source
from resnetkit.data.pictures import Data
from resnetkit.data.remote import RemoteBlobs
from resnetkit.data.shardnames import split_of
from resnetkit.data.source import open_data
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.recipe import Augment, Recipe
from resnetkit.recipe_file import from_dict, to_dict
from resnetkit.shipped import shipped
from store_server import Proxy
from tar_samples import jpeg, samples, tar_bytes, write_folder, write_tar

Run = Callable[..., tuple[int, str, str]]


def contents(data: Data, split: str) -> list[tuple[str, bytes]]:
    """(class, bytes), sorted."""
    rows = [(data.classes[data.labels[i]], data.pictures.read(i)) for i in data.select(split).tolist()]
    return sorted(row for row in rows if isinstance(row[1], bytes))


def test_shards_that_the_webdataset_library_wrote(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="needs webdataset, the extra 'peers'")
    with wds.ShardWriter(str(tmp_path / "train-%04d.tar"), maxcount=7, verbose=0) as writer:
        for k in range(20):
            writer.write({"__key__": f"{k:06}", "jpg": jpeg(k), "cls": k % 2})
    with wds.TarWriter(str(tmp_path / "val-0000.tar")) as writer:
        for k in range(20, 26):
            picture = Image.open(io.BytesIO(jpeg(k)))
            writer.write({"__key__": f"some.folder/{k}", "png": picture, "json": {"label": k % 2, "name": "x"}})
    data = open_data(tmp_path)
    assert {name: len(indices) for name, indices in data.splits.items()} == {"train": 20, "val": 6}
    assert (data.classes, data.notes) == (("0", "1"), ())
    assert contents(data, "train") == sorted((str(k % 2), jpeg(k)) for k in range(20))
    pixels = np.array(Image.open(io.BytesIO(data.pictures.read(25))))  # type: ignore[arg-type]
    assert (pixels == np.array(Image.open(io.BytesIO(jpeg(25))))).all()
    assert open_data(tmp_path / "train-{0000..0002}.tar").labels.tolist() == [k % 2 for k in range(20)]


def test_shards_in_a_bucket(store: Proxy) -> None:
    for shard in range(3):
        store.add(f"train-{shard:02}.tar", tar_bytes(samples(range(8 * shard, 8 * shard + 8))))
    url = f"s3://{store.bucket}/train-{{00..02}}.tar"
    data = open_data(url)
    assert contents(data, "train") == sorted((str(k % 2), jpeg(k)) for k in range(24))
    assert data.shards is not None
    assert data.shards.tolist() == [0, 8, 16]
    assert source.absolute(url) == url
    with pytest.raises(UserError, match=r"train-03\.tar: not found"):
        open_data(f"s3://{store.bucket}/train-{{00..03}}.tar")
    with pytest.raises(UserError, match="from a store only tars and Parquet files are read"):
        open_data(f"s3://{store.bucket}/train.zip")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("/d/train-00012.tar", "train"),
        ("imagenet_validation_3.tar", "val"),
        ("s3://bucket/x/VAL.tar", "val"),
        ("train/000.tar", "train"),
        ("s3://b/train/test-1.tar", "test"),
        ("/train/more/000.tar", None),
        ("training-1.tar", None),
        ("a-train-val.tar", None),
    ],
)
def test_the_split_is_a_word_of_the_name_or_the_folder(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_numbers_sort_as_numbers_and_words_as_words(tmp_path: Path) -> None:
    def labelled(path: Path, *labels: str) -> Data:
        return open_data(write_tar(path, [p for k, text in enumerate(labels) for p in sample(k, text)]))

    def sample(k: int, text: str) -> list[tuple[str, bytes]]:
        return [(f"{k}.jpg", jpeg(k)), (f"{k}.cls", text.encode())]

    assert labelled(tmp_path / "a.tar", "10", "9", "1").classes == ("1", "9", "10")
    assert labelled(tmp_path / "b.tar", "10", "9", "dog").classes == ("10", "9", "dog")
    assert list(labelled(tmp_path / "c.tar", "0", "1").splits) == ["all"]


def test_what_is_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "x" / "train-0.tar", samples(range(4)))
    write_tar(tmp_path / "x" / "more.tar", samples(range(4, 6)))
    write_tar(tmp_path / "y" / "a.tar", [*samples(range(2)), ("7.jpg", jpeg(7))])
    write_tar(tmp_path / "z" / "a.tar", [("readme.txt", b"nothing")])
    for spec, message in (
        ("x", r"x: x/more\.tar of no split, beside x/train-0\.tar; put train, val or test into every name"),
        ("y", r"y: a\.tar/7\.jpg: a picture without a label \(1 of 3\)"),
        ("z", r"z: no picture among its 1 file, such as readme\.txt"),
        ("x/train-{0..2}.tar", r"2 files are not there: x/train-1\.tar, x/train-2\.tar"),
        ("x/gone-*.tar", r"x/gone-\*\.tar: fits no file"),
        ("x/train-{2..0}.tar", "counts downwards"),
        ("gone.tar", r"1 file is not there: gone\.tar"),
    ):
        with pytest.raises(UserError, match=message):
            open_data(spec)
    (tmp_path / "x" / "b.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"x: \.tar and \.parquet files side by side"):
        open_data("x")


def test_other_files_are_told_of(tmp_path: Path) -> None:
    members = [*samples(range(4)), ("a.txt", b"x"), ("b.txt", b"y")]
    data = open_data(write_tar(tmp_path / "a.tar", members))
    assert data.notes == ("skipped 2 files of no sample, such as a.txt",)


# A second source


def test_a_second_source_is_what_is_checked_with(tmp_path: Path) -> None:
    train = write_tar(tmp_path / "train-0.tar", samples(range(8)))
    val = write_tar(tmp_path / "others.tar", samples(range(20, 24)))
    data = training.open_both(train, val)
    assert {name: indices.tolist() for name, indices in data.splits.items()} == {
        "train": [*range(8)],
        "val": [8, 9, 10, 11],
    }
    assert data.pictures.name(0) == "train/train-0.tar/0000.jpg"
    assert data.pictures.name(8) == "val/others.tar/0020.jpg"
    assert contents(data, "val") == sorted((str(k % 2), jpeg(k)) for k in range(20, 24))
    assert data.pictures.size(8) == len(jpeg(20))


def test_a_second_source_that_does_not_fit(tmp_path: Path) -> None:
    train = write_tar(tmp_path / "train-0.tar", samples(range(8)))
    other = write_tar(tmp_path / "o.tar", [("1.jpg", jpeg(1)), ("1.cls", b"7")])
    with pytest.raises(UserError, match=r"o\.tar: the model does not know 1 class: 7"):
        training.open_both(train, other)
    folder = write_folder(tmp_path / "f", {"train": range(4), "val": range(4, 8)})
    with pytest.raises(UserError, match=r"has the split val, and --val .* is given too"):
        training.open_both(folder, folder)


# Training


def tiny() -> Recipe:
    values = to_dict(shipped("small"))
    values["model"] |= {"arch": "resnet8-cifar"}
    values["optim"] |= {"batch": 8}
    values["schedule"] |= {"epochs": 2}
    values["run"] |= {"threads": 2, "seed": 3}
    return from_dict(values, where="test")


@pytest.mark.usefixtures("one_thread")
def test_training_on_shards_and_going_on(tmp_path: Path, resnet: Run) -> None:
    """The same pictures and labels as the folder, a run like any other, and `evaluate` takes the shards too."""
    folder = write_folder(tmp_path / "f", {"train": range(32), "val": range(40, 48)})
    code, out, err = resnet("shard", str(folder), str(tmp_path / "s"), "--shard-mb", "1", "--verify")
    assert (code, err) == (0, "")
    assert "40 pictures in 2 shards" in out
    data = open_data(tmp_path / "s")
    for split in ("train", "val"):
        assert contents(data, split) == contents(open_data(folder), split)
    shards = str(tmp_path / "s" / "train-{000000..000000}.tar")
    val = str(tmp_path / "s" / "val-*.tar")
    finished = resnetkit.train(shards, val=val, recipe=tiny(), out=tmp_path / "run")
    assert finished.result.n == 8
    again = resnetkit.resume(tmp_path / "run")
    assert again.result.correct == finished.result.correct
    code, out, _ = resnet("evaluate", str(tmp_path / "run"), str(tmp_path / "s"), "--json")
    assert code == 0
    model = resnetkit.load(tmp_path / "run")
    assert model.classes == ("dark", "light")


@pytest.mark.usefixtures("one_thread")
def test_a_changed_byte_is_named_and_never_trained_on(tmp_path: Path, resnet: Run) -> None:
    folder = write_folder(tmp_path / "f", {"train": range(32), "val": range(40, 48)})
    resnet("shard", str(folder), str(tmp_path / "s"))
    path = tmp_path / "s" / "train-000000.tar"
    data = bytearray(path.read_bytes())
    at = data.index(jpeg(7)) + 200
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"train-000000\.tar/train/light/7\.jpg \(its SHA-256 is not that of the index"):
        resnetkit.train(tmp_path / "s", recipe=tiny(), out=tmp_path / "run")


def test_wrong_patterns_on_the_command_line(resnet: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments: Any = ("train", "x-{0..", "--out", "r")
    code, out, err = resnet(*arguments)
    assert (code, out) == (2, "")
    assert "x-{0..: no such folder" in err
    code, _, err = resnet("train", "x-{0...tar", "--out", "r")
    assert code == 2
    assert err == "resnet: x-{0...tar: braces that do not close, or stand in one another; write name-{000..123}.tar\n"


@pytest.mark.usefixtures("one_thread")
def test_far_pictures_are_there_when_they_are_wanted(store: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that training reads was announced, in its order; what is left of it is taken back at the end."""
    for shard in range(4):
        store.add(f"train-{shard}.tar", tar_bytes(samples(range(8 * shard, 8 * shard + 8))))
    data = open_data(f"s3://{store.bucket}/train-{{0..3}}.tar")
    told: list[list[tuple[int, int, int]]] = []
    monkeypatch.setattr(RemoteBlobs, "soon", lambda _, ranges: told.append(list(ranges)))
    monkeypatch.setattr(loader, "FORETOLD", 12 * len(jpeg(0)))
    read: list[tuple[int, int, int]] = []
    real = RemoteBlobs.read
    monkeypatch.setattr(RemoteBlobs, "read", lambda self, *where: read.append(where) or real(self, *where))
    preprocess = Preprocess(8, "shorter", 8, "bilinear", 3, "RGB", (0.5,) * 3, (0.5,) * 3, True)
    reader = loader.Reader(data, preprocess, threads=1)
    before = []
    for _ in loader.training_batches(reader, data.used(), Augment(crop="none"), seed=0, epoch=0, batch=4):
        before.append(len(told))
    assert [one for batch in told for one in batch] == read
    assert [len(batch) for batch in told] == [4] * 8 + [0]
    assert before[0] > 1 + loader.AHEAD, "some batches ahead of those in the making"
    told.clear()
    keeping = loader.Reader(data, preprocess, threads=1, keep=True)
    for _ in range(2):
        list(loader.evaluation_batches(keeping, data.used(), batch=16))
    assert [len(batch) for batch in told] == [16, 16, 0, 0], "what is in memory is not wanted again"


def test_shards_that_lie_far_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample is looked at, pictures of few shards are read together, and a run goes on to the same score."""
    members = [(f"{k:03}.jpg", jpeg(k)) for k in range(48)]
    for n in range(6):
        part = [p for k in range(8 * n, 8 * n + 8) for p in (members[k], (f"{k:03}.cls", str(k % 2).encode()))]
        write_tar(tmp_path / "s" / f"train-{n}.tar", part)
    write_tar(tmp_path / "s" / "val-0.tar", samples(range(50, 58)))
    monkeypatch.setattr(source, "load_files", partial(source.load_files, far=True))
    monkeypatch.setattr(audit, "LOOKED_AT", 10)
    monkeypatch.setattr(audit, "RUN", 2)
    monkeypatch.setattr(loader, "WINDOW", 2)
    data = open_data(tmp_path / "s")
    assert data.shards is not None
    first = loader.shown(data, data.select("train"), 3, 0)[:16]
    assert len({k // 8 for k in first.tolist()}) == 2
    assert sorted(data.pictures.read(i) for i in data.select("train").tolist()) == sorted(  # type: ignore[type-var]
        jpeg(k) for k in range(48)
    )
    found = audit.sampled(data)
    assert found is not None
    assert len(found) == 10
    assert (np.diff(found.reshape(5, 2)) == 1).all(), "neighbours are read together"
    finished = resnetkit.train(tmp_path / "s", recipe=tiny(), out=tmp_path / "run")
    report = (tmp_path / "run" / "result.json").read_text()
    assert "a sample, because there are so many pictures" in report
    assert resnetkit.resume(tmp_path / "run").result.correct == finished.result.correct
    write_tar(tmp_path / "s" / "train-3.tar", samples(range(24, 32)))
    with pytest.raises(UserError, match=r"the pictures are not those that .* was begun with"):
        resnetkit.resume(tmp_path / "run")
