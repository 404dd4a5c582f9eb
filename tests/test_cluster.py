"""`resnet predict --ray` on a real cluster of this machine: the rows of one machine, and what is left after an end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prediction_samples import make_model, picture
from resnetkit import cluster, parts
from resnetkit.answers import open_table
from resnetkit.cluster import Scored, crew, in_blocks, plan, score
from resnetkit.errors import UserError
from resnetkit.prediction import BATCH, predict
from resnetkit.stores import Store
from resnetkit.weights import save_model
from store_server import CREDENTIALS, Proxy

Run = Callable[..., tuple[int, str, str]]
PICTURES = 90
# Ray Data reads settings of its own that it calls old.
OLD = [
    pytest.mark.filterwarnings(f"ignore:`{name}` is deprecated")
    for name in ("use_push_based_shuffle", "use_polars", "use_arrow_tensor_v2")
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with m.safetensors and, in photos/, ninety pictures, one of which is none."""
    place = tmp_path_factory.mktemp("place")
    save_model(make_model(), place / "m.safetensors")
    for i in range(PICTURES):
        picture(place / "photos" / f"{i:02}.png", i)
    (place / "photos" / "45.png").write_bytes(b"junk")
    return place


@pytest.fixture
def place(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One stands there, and parts are small."""
    monkeypatch.chdir(photos)
    monkeypatch.setattr(cluster, "PART_BATCHES", 1)
    return photos


@pytest.fixture(scope="module")
def two_cpus(moto_address: str) -> Iterator[None]:
    """A cluster that the tests of this file share, as it takes seconds to start. Its workers know a store."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'resnetkit[ray]'")
    cluster.ray_package()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": moto_address}.items():
            patch.setenv(name, value)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def no_ray_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at before Ray is wanted."""
    monkeypatch.setattr(cluster, "ray_package", lambda: None)


def rows(path: Path) -> Any:
    """All rows of a file, or of the parts of a folder in the order of their names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    return pa.concat_tables(pq.read_table(each) for each in paths)


def asked(out: Path, *, top: int = 3, photos: str | list[str] = "photos") -> cluster.Plan:
    return plan("m.safetensors", photos, out, engine="torch", top=top)


@pytest.fixture(scope="module")
def wanted(photos: Path) -> Any:
    """The rows of one machine."""
    with contextlib.chdir(photos), open_table("one.parquet", 3, append=False, model="") as table:
        for answer in predict("m.safetensors", "photos", engine="torch", top=3):
            table.write([answer])
    found = rows(photos / "one.parquet")
    assert (found.num_rows, found["error"].null_count) == (PICTURES, PICTURES - 1)
    return found


# With a cluster


@pytest.mark.usefixtures("two_cpus", "place")
class TestCluster:
    pytestmark = OLD

    def test_rows_are_those_of_one_machine(self, resnet: Run, tmp_path: Path, wanted: Any) -> None:
        line = ["predict", "m.safetensors", "photos", "--engine", "torch", "--top", "3", "--ray", "--out"]
        code, out, err = resnet(*line, str(tmp_path))
        assert (code, out) == (1, f"{tmp_path}: 90 rows in 6 parts\n")
        looked, complaint = err.splitlines()
        assert looked.endswith("engine torch (fp32): asked for")
        assert complaint == "resnet: 1 picture could not be read; the reason stands in place of the class"
        assert rows(tmp_path).equals(wanted)
        assert all(path.name.startswith("part-0000") for path in tmp_path.iterdir())
        # The same again has nothing to do.
        code, out, _ = resnet(*line, str(tmp_path), "--json")
        assert (code, out) == (0, "")

    @pytest.mark.slow
    def test_only_what_is_missing_or_damaged_is_made_anew(self, tmp_path: Path, wanted: Any) -> None:
        done = list(score(asked(tmp_path)))
        assert sum(part.pictures for part in done) == PICTURES
        assert [part.failed for part in sorted(done, key=lambda part: part.part)] == [0, 0, 1, 0, 0, 0]
        kept = sorted(tmp_path.iterdir())
        kept[1].unlink()
        kept[4].write_bytes(kept[4].read_bytes()[:-100])
        (tmp_path / f".{kept[1].name}.123.part").write_bytes(b"PAR1")  # of a worker that was killed
        before = [path.stat().st_mtime_ns for path in (kept[0], kept[2], kept[3], kept[5])]
        again = asked(tmp_path)
        assert [block.part for block in again.left] == [kept[1].name, kept[4].name]
        assert sorted(part.part for part in score(again)) == [kept[1].name, kept[4].name]
        assert rows(tmp_path).equals(wanted)
        assert [path.stat().st_mtime_ns for path in (kept[0], kept[2], kept[3], kept[5])] == before
        assert sorted(tmp_path.iterdir()) == kept

    @pytest.mark.slow
    def test_a_worker_that_is_killed_is_replaced(self, tmp_path: Path, wanted: Any) -> None:
        """It is killed while it reads a picture, which is a pipe until then."""
        names = wanted["path"].to_pylist()
        pipe, real = Path(names[40]).absolute(), tmp_path / "40.png"
        pipe.rename(real)
        os.mkfifo(pipe)
        killed: list[int] = []
        thread = threading.Thread(target=lambda: killed.append(kill_reader(pipe, real)), daemon=True)
        thread.start()
        found = list(score(asked(tmp_path / "parts", photos=names)))
        thread.join(10)
        assert len(killed) == 1
        assert sorted(part.part for part in found) == sorted(path.name for path in (tmp_path / "parts").iterdir())
        assert rows(tmp_path / "parts").equals(wanted)

    @pytest.mark.slow
    def test_from_a_bucket_into_a_bucket(self, resnet: Run, tmp_path: Path, wanted: Any, store: Proxy) -> None:
        for path in sorted(Path("photos").iterdir()):
            store.add(path.name, path.read_bytes())
        bucket = f"s3://{store.bucket}"
        line = ["predict", "m.safetensors", f"{bucket}/{{00..90}}.png", "--engine", "torch", "--top", "3"]
        out = f"{bucket}/predictions"
        code, said, err = resnet(*line, "--ray", "--out", out)
        assert (code, said) == (1, f"{out}: 91 rows in 6 parts\n")
        assert "2 pictures could not be read" in err
        for url in Store(out).glob(f"{out}/*.parquet"):
            with parts.place(out).open(url.rpartition("/")[2]) as file:
                (tmp_path / url.rpartition("/")[2]).write_bytes(file.read())
        found = rows(tmp_path)
        names = [name.replace("photos", bucket) for name in wanted["path"].to_pylist()]
        assert found["path"].to_pylist() == [*names, f"{bucket}/90.png"]
        assert found["error"].to_pylist()[-1] == "cannot be opened: No such object"
        assert found.slice(0, PICTURES).drop(["path"]).equals(wanted.drop(["path"]))
        assert resnet(*line, "--ray", "--out", out)[:2] == (0, f"{out}: 0 rows in 0 parts, 6 were there\n")
        assert plan("m.safetensors", f"{bucket}/*.png", out + "2", engine="torch").parts == 6

    def test_what_a_worker_finds_wrong_is_one_sentence(self, photos: Path, tmp_path: Path) -> None:
        ready = asked(tmp_path / "parts")
        (photos / "m.safetensors").rename(tmp_path / "gone")
        try:
            with pytest.raises(UserError, match=r"m\.safetensors: no such model file"):
                list(score(ready))
        finally:
            (tmp_path / "gone").rename(photos / "m.safetensors")
        assert not list((tmp_path / "parts").iterdir())


def kill_reader(pipe: Path, real: Path) -> int:
    """Kill the process that waits to read a pipe, having put the real file in the pipe's place."""
    end = None
    while end is None:
        with contextlib.suppress(OSError):  # until somebody reads
            end = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.05)
    try:
        while (reader := other_holder(pipe)) is None:
            time.sleep(0.05)
        real.rename(pipe)
        os.kill(reader, signal.SIGKILL)
    finally:
        os.close(end)
    return reader


def other_holder(path: Path) -> int | None:
    """Another process that has a file open."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if int(process.name) != os.getpid() and any(e.readlink() == path for e in (process / "fd").iterdir()):
                return int(process.name)
    return None


# Without one


@pytest.mark.usefixtures("place", "no_ray_yet")
def test_parts_of_another_job_are_refused(tmp_path: Path) -> None:
    first = asked(tmp_path)
    assert first.parts == len(first.left) == 6
    (tmp_path / first.left[0].part).touch()
    wrong = rf"^{tmp_path}: holds part-00000-of-00006-\w+\.parquet, which is no answer of this model to these pictures"
    with pytest.raises(UserError, match=wrong):
        asked(tmp_path, top=4)
    with pytest.raises(UserError, match="which is no answer"):
        asked(tmp_path, photos="photos/01.png")
    assert asked(tmp_path).left == first.left  # an empty file is no whole part
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        asked(tmp_path)


@pytest.mark.usefixtures("place", "no_ray_yet")
def test_a_place_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot be used as a folder \(File exists\); choose another --out"):
        asked(tmp_path / "file")


@pytest.mark.usefixtures("place")
def test_wrong_use_is_one_sentence(resnet: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["predict", "m.safetensors", "photos", "--ray"]
    assert resnet(*line) == (2, "", "resnet: --ray: writes into a folder; name it with --out\n")
    code, _, err = resnet(*line, "--out", "parts", "--append")
    assert (code, err.count("\n")) == (2, 1)
    assert "leave one of them out" in err
    monkeypatch.setitem(sys.modules, "ray", None)
    missing = "resnet: --ray: needs Ray, which is not installed: pip install 'resnetkit[ray]'\n"
    assert resnet(*line, "--out", "parts") == (2, "", missing)
    assert not Path("parts").exists()


@pytest.mark.usefixtures("place")
def test_an_address_where_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'resnetkit[ray]'")
    import ray

    def refuse(**_: Any) -> None:
        raise ConnectionError("Could not connect\nand much more")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    wrong = r"^RAY_ADDRESS=10\.0\.0\.1:6379: there is no cluster to be had \(Could not connect\)$"
    with pytest.raises(UserError, match=wrong):
        list(score(asked(tmp_path)))


@given(count=st.integers(0, 5000), most=st.integers(1, 40))
def test_blocks_are_the_list_in_whole_batches(count: int, most: int) -> None:
    names = [f"{i}.jpg" for i in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "MOST_PARTS", most)
        patch.setattr(cluster, "PART_BATCHES", 4)
        blocks = in_blocks(names, ["model", 5, 0.0])
    assert [name for block in blocks for name in block.names] == names
    assert len(blocks) <= most
    assert all(len(block.names) % BATCH == 0 for block in blocks[:-1])
    assert len({block.part for block in blocks}) == len(blocks)
    assert [block.part for block in blocks] == sorted(block.part for block in blocks)


def test_names_of_parts_change_with_all_that_decides_rows() -> None:
    usual = in_blocks(["a", "b"], ["model", 5, 0.0])[0].part
    others = [(["a", "b", "c"], ["model", 5, 0.0]), (["b", "a"], ["model", 5, 0.0]), (["a", "b"], ["other", 5, 0.0])]
    others += [(["a", "b"], ["model", 4, 0.0]), (["a", "b"], ["model", 5, 0.1]), (["a", "\udcff"], ["model", 5, 0.0])]
    names = {in_blocks(listed, about)[0].part for listed, about in others}
    assert len(names | {usual}) == 1 + len(others)
    assert in_blocks(["a", "b"], ["model", 5, 0.0])[0].part == usual


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ([node(CPU=2.0)], (1, 2, 0)),
        ([node(CPU=64.0), node(CPU=32.0), node(alive=False, CPU=4.0)], (6, 16, 0)),
        ([node(CPU=8.0), node(CPU=12.0), node(memory=1.0)], (2, 8, 0)),
        ([node(CPU=32.0, GPU=4.0), node(CPU=32.0, GPU=8.0), node(CPU=64.0)], (12, 4, 1)),
        ([node(CPU=2.0, GPU=4.0)], (4, 1, 1)),
    ],
)
def test_workers_fit_the_machines(nodes: list[dict[str, Any]], wanted: tuple[int, int, int]) -> None:
    assert crew(nodes) == wanted


def test_a_cluster_without_cpus() -> None:
    with pytest.raises(UserError, match="no machine with a CPU"):
        crew([node(memory=1.0)])


def test_scored_parts_are_json() -> None:
    assert json.loads(json.dumps(vars(Scored("part", 3, 1)))) == {"part": "part", "pictures": 3, "failed": 1}
