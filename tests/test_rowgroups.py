"""Parquet files as the Hugging Face hub has them, written by pyarrow."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hub_datasets import hub_dataset
from resnetkit import sharding
from resnetkit.data import loader, rowgroups
from resnetkit.data.audit import audit
from resnetkit.data.blobs import LocalBlobs
from resnetkit.data.footers import footers
from resnetkit.data.pictures import Data
from resnetkit.data.remote import RemoteBlobs
from resnetkit.data.rowgroups import RowGroups
from resnetkit.data.source import open_data
from resnetkit.errors import UserError
from resnetkit.recipe_file import with_settings
from resnetkit.shipped import shipped
from resnetkit.training import train
from store_server import Proxy
from tar_samples import jpeg

pa = pytest.importorskip("pyarrow", reason="needs pyarrow, the extra 'parquet'")
pq = pytest.importorskip("pyarrow.parquet")


def write(path: Path, seeds: range, *, names: list[str] | None = None, struct: bool = True, **columns: Any) -> None:
    images = [{"bytes": jpeg(k), "path": f"{k}.jpg"} if struct else jpeg(k) for k in seeds]
    table = pa.table({"image": images, "label": [k % 2 for k in seeds], "id": list(seeds), **columns})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=7)


@pytest.mark.parametrize("struct", [True, False])
def test_bytes_labels_and_class_names(tmp_path: Path, struct: bool) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", range(20), names=["dark", "light"], struct=struct)
    write(tmp_path / "train-00001-of-00002.parquet", range(20, 25), names=["dark", "light"], struct=struct)
    write(tmp_path / "validation-00000-of-00001.parquet", range(30, 36), names=["dark", "light"], struct=struct)
    for spec in (tmp_path, tmp_path / "*.parquet"):
        data = open_data(spec)
        assert {name: len(indices) for name, indices in data.splits.items()} == {"train": 25, "val": 6}
        assert data.classes == ("dark", "light")
        seeds = [*range(25), *range(30, 36)]
        assert data.labels.tolist() == [k % 2 for k in seeds]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(data.pictures.read, range(31))) == [jpeg(k) for k in seeds]
        assert len({data.pictures.name(i) for i in range(31)}) == 31
        assert data.pictures.name(21) == "train-00001-of-00002.parquet/1"
        assert data.shards is None, "all of it is kept in memory, so any order costs the same"
    assert not audit(data, threads=2).error


def test_few_row_groups_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowgroups, "KEPT", 2)
    monkeypatch.setattr(rowgroups, "KEPT_BYTES", 20_000)
    write(tmp_path / "a.parquet", range(50))
    blobs = LocalBlobs([str(tmp_path / "a.parquet")])
    pictures = RowGroups(blobs, footers(blobs, far=False))
    for i in (*range(50), 3, 49):
        assert pictures.read(i) == jpeg(i)
        assert len(pictures._kept) <= 2
    data = open_data(tmp_path / "a.parquet")
    assert data.shards is not None
    assert data.shards.tolist() == list(range(0, 50, 7))


def test_labels_without_names(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", range(4))
    assert open_data(tmp_path / "a.parquet").classes == ("0", "1")
    write(tmp_path / "b.parquet", range(3), label=["cat", "ant", "cat"])
    data = open_data(tmp_path / "b.parquet")
    assert (data.classes, data.labels.tolist()) == (("ant", "cat"), [1, 0, 1])


def test_what_is_wrong_names_file_and_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, range(9), label=[*range(8), None])
    with pytest.raises(UserError, match=r"a\.parquet/8: a row without a label"):
        open_data(path)
    pq.write_table(pa.table({"picture": [b"x"]}), path)
    with pytest.raises(UserError, match=r"no column image or img \(columns: picture\)"):
        open_data(path)
    path.write_bytes(b"PAR1, and no more")
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read as a Parquet file"):
        open_data(path)
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "x.jpg"}], "label": [0]}), path)
    data = open_data(path)
    assert "has no bytes of a picture" in audit(data, threads=1).error[0]


def test_two_folders_may_have_files_of_one_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "0.parquet", range(3))
    pictures = open_data(tmp_path / "{a,b}" / "0.parquet").pictures
    assert [pictures.name(i) for i in (0, 2, 3)] == ["a/0.parquet/0", "a/0.parquet/2", "b/0.parquet/0"]


def test_sizes_are_known_without_reading_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", range(14))
    data = open_data(tmp_path / "a.parquet")
    monkeypatch.setattr(RowGroups, "_read_group", None)
    for begin in (0, 7):
        mean = sum(len(jpeg(k)) for k in range(begin, begin + 7)) / 7
        (size,) = {data.pictures.size(i) for i in range(begin, begin + 7)}
        assert mean <= size < 1.5 * mean, "pages hold their smallest and largest picture twice"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that are read, of files that do not fit into memory; few of them are kept."""
    monkeypatch.setattr(rowgroups, "KEPT", 8)
    monkeypatch.setattr(rowgroups, "KEPT_BYTES", 100_000)
    monkeypatch.setattr(loader, "WINDOW", 2)
    groups: list[int] = []
    read = RowGroups._read_group
    monkeypatch.setattr(RowGroups, "_read_group", lambda self, g: groups.append(g) or read(self, g))
    return groups


def sharded(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    """The 280 pictures of a file as 28 shards of ten."""
    monkeypatch.setattr(sharding, "room", lambda _: (1 << 20) // 10)
    *_, end = sharding.shard(source, out, shard_mb=1)
    assert isinstance(end, sharding.Sharded)
    assert (end.shards, end.pictures) == (28, 280)
    made = open_data(out)
    assert sorted(made.pictures.read(i) for i in range(280)) == sorted(jpeg(k) for k in range(280))  # type: ignore[type-var]
    return made


def test_sharding_reads_few_row_groups_at_a_time(
    asked: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.parquet", range(280))
    sharded(tmp_path / "a.parquet", tmp_path / "out", monkeypatch)
    assert len(asked) < 2 * 40, "each of the 40 row groups about once"


def test_what_is_sorted_by_class_is_shuffled_first(
    asked: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training would see a class or two in each step."""
    write(tmp_path / "a.parquet", range(280), label=[k // 70 for k in range(280)])
    with pytest.raises(UserError, match=r"sorted by class.*; shuffle them once: resnet shard .*a\.parquet FOLDER$"):
        train(tmp_path / "a.parquet", recipe=shipped("small"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    asked.clear()
    made = sharded(tmp_path / "a.parquet", tmp_path / "out", monkeypatch)
    classes = [len(set(made.labels[at : at + 10].tolist())) for at in range(0, 280, 10)]
    assert sum(classes) / 28 > 3, "ten pictures drawn from four classes have 3.8 of them"
    assert len(asked) <= 28 * 10, "once for each shard that has a picture of it"


def test_files_of_another_data_set_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", range(4), names=["dark", "light"])
    write(tmp_path / "b.parquet", range(4), names=["light", "dark"])
    with pytest.raises(UserError, match=r"b\.parquet: of another data set than .*a\.parquet: it has other columns, or"):
        open_data(tmp_path)


# Far away


def far(store: Proxy, folder: Path) -> str:
    """Two files of 20 and 5 pictures in a bucket, and one to check with; their names as one."""
    for name, seeds in (("train-0", range(20)), ("train-1", range(20, 25)), ("val-0", range(30, 36))):
        write(folder / "x.parquet", seeds, names=["dark", "light"])
        store.add(f"{name}.parquet", (folder / "x.parquet").read_bytes())
    return f"s3://{store.bucket}/{{train-0,train-1,val-0}}.parquet"


def test_files_in_a_bucket(store: Proxy, tmp_path: Path) -> None:
    url = far(store, tmp_path)
    store.faults = {"GET": ["503", "half"]}
    data = open_data(url)
    seeds = [*range(25), *range(30, 36)]
    assert (data.classes, data.labels.tolist()) == (("dark", "light"), [k % 2 for k in seeds])
    assert {name: len(indices) for name, indices in data.splits.items()} == {"train": 25, "val": 6}
    assert data.far
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(data.pictures.read, range(31))) == [jpeg(k) for k in seeds]


def test_labels_are_known_before_pictures_are_read_and_kept(store: Proxy, tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(200_000)
    images = [{"bytes": noise[k:], "path": f"{k}.jpg"} for k in range(40)]
    pq.write_table(pa.table({"image": images, "label": list(range(40))}), tmp_path / "x", row_group_size=5)
    size = (tmp_path / "x").stat().st_size
    url = store.add("x.parquet", (tmp_path / "x").read_bytes())
    data = open_data(url)
    ranges = [line.rpartition("bytes=")[2].split("-") for line in store.asked if "bytes=" in line]
    assert sum(int(last) - int(first) + 1 for first, last in ranges) < size / 50
    store.asked.clear()
    again = open_data(url)
    assert again.labels.tolist() == data.labels.tolist() == list(range(40))
    assert store.count("GET") == 0
    assert again.pictures.read(39) == noise[39:]


def test_files_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the hub's real client."""
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub, the extra 'hub'")
    for name, seeds in (("train-0", range(20)), ("validation-0", range(20, 26))):
        write(tmp_path / f"{name}.parquet", seeds, names=["dark", "light"])
    files = {f"data/{path.name}": path.read_bytes() for path in tmp_path.glob("*.parquet")}
    with hub_dataset("own/pictures", {**files, "README.md": b"#"}) as (address, asked):
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": address})
        data = open_data("hf://datasets/own/pictures/data/*.parquet")
        assert {name: len(indices) for name, indices in data.splits.items()} == {"train": 20, "val": 6}
        assert [data.pictures.read(i) for i in range(26)] == [jpeg(k) for k in range(26)]
        asked.clear()
        again = open_data("hf://datasets/own/pictures/data/{train,validation}-0.parquet")
        assert again.labels.tolist() == [k % 2 for k in range(26)]
        assert not any("resolve" in line for line in asked), "what the files say of themselves is kept"
        with pytest.raises(UserError, match=r"^hf://datasets/own/pictures/data/x\.parquet: not found"):
            open_data("hf://datasets/own/pictures/data/x.parquet")
        with pytest.raises(UserError, match=r"^hf://datasets/own/nothing/x\.parquet: 404 .*; check its name"):
            open_data("hf://datasets/own/nothing/x.parquet")


def test_row_groups_are_fetched_before_they_are_wanted(store: Proxy, tmp_path: Path) -> None:
    data = open_data(far(store, tmp_path))
    assert isinstance(data.pictures, RowGroups)
    data.pictures.soon(np.arange(31))
    blobs = data.pictures.blobs
    assert isinstance(blobs, RemoteBlobs)
    while blobs._fetchers:
        time.sleep(0.005)
    before = store.count("GET")
    assert [data.pictures.read(i) for i in (0, 24, 30)] == [jpeg(0), jpeg(24), jpeg(35)]
    assert store.count("GET") - before == 3, "each file's description of itself, and no row group"


def test_a_store_that_refuses_is_one_sentence(store: Proxy, tmp_path: Path) -> None:
    data = open_data(far(store, tmp_path))
    store.forever = "403"
    with pytest.raises(UserError, match=rf"^s3://{store.bucket}/train-0\.parquet: 403 "):
        data.pictures.read(3)
    store.forever = ""
    assert data.pictures.read(3) == jpeg(3), "and it is asked anew"
    with pytest.raises(UserError, match=r"train-7\.parquet: not found"):
        open_data(f"s3://{store.bucket}/train-{{0,7}}.parquet")
    store.add("train-8.parquet", b"no such thing" * 9)
    with pytest.raises(UserError, match=r"train-8\.parquet: cannot be read as a Parquet file"):
        open_data(f"s3://{store.bucket}/train-{{0,8}}.parquet")


def test_a_changed_file_is_noticed(store: Proxy, tmp_path: Path) -> None:
    data = open_data(far(store, tmp_path))
    write(tmp_path / "x.parquet", range(40, 60))
    store.add("train-0.parquet", (tmp_path / "x.parquet").read_bytes())
    with pytest.raises(UserError, match=r"train-0\.parquet: changed while it was being used"):
        data.pictures.read(3)
    fresh = open_data(f"s3://{store.bucket}/train-0.parquet")
    assert fresh.pictures.read(3) == jpeg(43)


def test_training_from_a_bucket_of_them(store: Proxy, tmp_path: Path) -> None:
    """The same score as from the files on a disk."""
    url = far(store, tmp_path)
    for name, seeds in (("train-0", range(20)), ("train-1", range(20, 25)), ("val-0", range(30, 36))):
        (tmp_path / "here").mkdir(exist_ok=True)
        write(tmp_path / "here" / f"{name}.parquet", seeds, names=["dark", "light"])
    recipe = with_settings(
        shipped("small"), ["model.arch=resnet8-cifar", "data.size=8", "schedule.epochs=2", "optim.batch=5"]
    )
    places = ((url, "far"), (tmp_path / "here", "near"))
    ends = [train(spec, recipe=recipe, out=tmp_path / name) for spec, name in places]
    assert ends[0].result == replace(ends[1].result, protocol=ends[0].result.protocol)
