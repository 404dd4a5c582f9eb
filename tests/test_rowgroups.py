"""Parquet files as the Hugging Face hub has them, written by pyarrow."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from resnetkit.data import rowgroups
from resnetkit.data.audit import audit
from resnetkit.data.rowgroups import RowGroups
from resnetkit.data.source import open_data
from resnetkit.errors import UserError
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
        assert data.shards is not None
        assert data.shards.tolist() == [0, 7, 14, 20, 25]
    assert not audit(data, threads=2).error


def test_few_row_groups_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowgroups, "KEPT", 2)
    write(tmp_path / "a.parquet", range(50))
    pictures = RowGroups([str(tmp_path / "a.parquet")], "image", "a")
    for i in (*range(50), 3, 49):
        assert pictures.read(i) == jpeg(i)
        assert len(pictures._kept) <= 2


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
