"""`resnet shard`: the same bytes always, whole shards or none, readable by others, noticed when changed."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnetkit import sharding
from resnetkit.data import shardwriter
from resnetkit.data.audit import Audit, audit, fingerprint, from_records
from resnetkit.data.pictures import Arrays, Data
from resnetkit.data.shardwriter import header_of, key_for
from resnetkit.data.source import open_data
from resnetkit.errors import UserError
from resnetkit.sharding import Sharded, Sharding
from tar_samples import jpeg, samples, write_folder, write_tar

Run = Callable[..., tuple[int, str, str]]
SPLITS = {"train": range(60), "val": range(60, 75)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", SPLITS)


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 16 kB, so that there are several."""
    planned = sharding.planned
    monkeypatch.setattr(sharding, "planned", lambda data, _: planned(data, 16_384))


def shard(source: str | Path, out: Path, **options: Any) -> Sharded:
    *_, end = sharding.shard(source, out, **options)
    assert isinstance(end, Sharded)
    return end


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.usefixtures("many")
def test_the_same_pictures_give_the_same_bytes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = shard(folder, tmp_path / "a", verify=True)
    assert (first.pictures, first.kept) == (75, 0)
    assert first.shards > 4
    monkeypatch.setattr(sharding, "default_threads", lambda: 7)
    os.utime(folder / "train" / "dark" / "0.jpg", (0, 0))
    shard(folder, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    again = shard(folder, tmp_path / "a")
    assert again.kept == again.shards == first.shards


@pytest.mark.usefixtures("many")
def test_what_is_written_is_what_was_there(folder: Path, tmp_path: Path) -> None:
    events = list(sharding.shard(folder, tmp_path / "a", verify=True))
    data, source = open_data(tmp_path / "a"), open_data(folder)
    assert data.classes == source.classes
    for split in SPLITS:
        rows = [
            sorted((d.pictures.read(i), d.classes[d.labels[i]]) for i in d.select(split).tolist())  # type: ignore[type-var]
            for d in (data, source)
        ]
        assert rows[0] == rows[1]
    about = json.loads((tmp_path / "a" / "index.json").read_text())
    assert (about["classes"], about["left_out"]) == (["dark", "light"], {})
    assert {split: part["pictures"] for split, part in about["splits"].items()} == {"train": 60, "val": 15}
    for part in about["splits"].values():
        for each in part["shards"]:
            path = tmp_path / "a" / each["name"]
            assert (path.stat().st_size, files(tmp_path / "a")[path.name]) == (each["bytes"], each["sha256"])
            assert each["bytes"] <= 16_384 + 1024
    progress = [event for event in events if isinstance(event, Sharding)]
    assert [event.done for event in progress if not event.verifying][-1] == 75
    assert [event.done for event in progress if event.verifying][-1] == 75
    seeds = [int(Path(data.pictures.name(i)).stem) for i in data.select("train").tolist()]
    assert len({seed % 2 for seed in seeds[:12]}) == 2, "shards are mixed"
    assert sorted(seeds) == list(range(60))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_the_webdataset_library_reads_them(folder: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="needs webdataset, the extra 'peers'")
    shard(folder, tmp_path / "a")
    read = wds.WebDataset(str(tmp_path / "a" / "train-000000.tar"), shardshuffle=False).decode("pil")
    rows = [(row["__key__"], row["cls"], np.array(row["jpg"])) for row in read]
    assert sorted(key for key, _, _ in rows) == sorted(
        f"train/{'light' if k % 2 else 'dark'}/{k}" for k in SPLITS["train"]
    )
    for key, label, pixels in rows:
        k = int(key.rpartition("/")[2])
        assert label == k % 2
        assert (pixels == np.array(Image.open(io.BytesIO(jpeg(k))))).all()


def test_the_index_knows_what_the_audit_would_find(folder: Path, tmp_path: Path) -> None:
    Image.new("CMYK", (9, 7)).save(folder / "train" / "dark" / "odd.jpg", "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (20, 10)).save(folder / "train" / "light" / "turned.jpg", "JPEG", exif=exif)
    shard(folder, tmp_path / "a")
    data = open_data(tmp_path / "a")
    known, read = from_records(data), audit(data, threads=2)
    assert isinstance(known, Audit)
    for name in ("indices", "digest", "width", "height"):
        assert (getattr(known, name) == getattr(read, name)).all()
    assert known.odd == read.odd
    assert sorted(kind for kinds in known.odd.values() for kind in kinds) == ["CMYK", "EXIF-rotated"]
    assert (known.all_grey, known.error, known.decoded) == (False, {}, False)
    assert fingerprint(data, known) == fingerprint(data, read)
    copy = shard(tmp_path / "a" / "train-000000.tar", tmp_path / "b")
    assert copy.pictures == 62


def killed_after(seconds: float, arguments: list[str]) -> bool:
    """Start `resnet shard` in a process of its own and kill it; False when it was done before."""
    process = subprocess.Popen([sys.executable, "-c", SHARD, *arguments])
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait() != 0


SHARD = """
import sys
from resnetkit import sharding
planned, write = sharding.planned, sharding.write_shard
sharding.planned = lambda data, _: planned(data, 16_384)
for _ in sharding.shard(*sys.argv[1:]):
    pass
"""


@pytest.mark.usefixtures("many")
def test_a_killed_run_leaves_whole_shards_and_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", {"train": range(400)})
    shard(folder, tmp_path / "whole")
    wanted = files(tmp_path / "whole")
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", SHARD, str(folder), str(tmp_path / "timed")], check=True)
    seconds = time.monotonic() - begin
    draw = random.Random(0)
    for _ in range(6):
        killed_after(draw.uniform(0.3, 1) * seconds, [str(folder), str(tmp_path / "a")])
        for name, digest in files(tmp_path / "a").items() if (tmp_path / "a").exists() else ():
            assert name.startswith(".") or digest == wanted[name], "under its own name, whole"
    shard(folder, tmp_path / "a", verify=True)
    assert files(tmp_path / "a") == wanted


@pytest.mark.usefixtures("many")
def test_a_half_written_shard_is_never_seen(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at every step of the writing: whatever is left, a second run makes the same of it."""
    shard(folder, tmp_path / "whole")

    class Kill(BaseException):
        pass

    for where in ("fsync", "write_bytes"):
        out, owner = tmp_path / where, os if where == "fsync" else shardwriter
        real, calls = getattr(owner, where), itertools.count(1)

        def die(*arguments: Any, real: Any = real, calls: Iterator[int] = calls) -> Any:
            if next(calls) == 3:
                raise Kill
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(sharding, "default_threads", lambda: 1)
            patch.setattr(owner, where, die)
            with pytest.raises(Kill):
                shard(folder, out)
        (out / ".train-000001.tar.part").write_bytes(b"half")
        shard(folder, out)
        assert files(out) == files(tmp_path / "whole")


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the system refuses in the middle of a shard."""
    out = tmp_path / "a"
    limited = subprocess.run(
        [sys.executable, "-m", "resnetkit", "shard", str(folder), str(out)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
    )
    assert limited.returncode == 2
    assert (
        limited.stderr == f"resnet: {out}: cannot be written (File too large); make room, then type the command again\n"
    )
    assert sorted(files(out)) == ["val-000000.tar", "val-000000.tar.index"], "a shard that fits is whole"
    assert shard(folder, out, verify=True).kept == 1


def test_pictures_that_cannot_be_read(folder: Path, tmp_path: Path, resnet: Run) -> None:
    (folder / "train" / "dark" / "bad.jpg").write_bytes(b"no picture")
    code, _, err = resnet("shard", str(folder), str(tmp_path / "a"))
    assert code == 2
    assert "1 picture cannot be read: train/dark/bad.jpg (not a picture" in err
    assert "leave them out with --bad skip" in err
    code, _, _ = resnet("shard", str(folder), str(tmp_path / "a"), "--bad", "skip")
    assert code == 1, "what was written before goes on"
    code, out, _ = resnet("shard", str(folder), str(tmp_path / "b"), "--bad", "skip", "--json")
    assert code == 1
    told = json.loads(out)
    assert (told["pictures"], list(told["bad"])) == (75, ["train/dark/bad.jpg"])
    assert list(json.loads((tmp_path / "b" / "index.json").read_text())["left_out"]) == ["train/dark/bad.jpg"]
    code, out, _ = resnet("shard", str(folder), str(tmp_path / "b"), "--bad", "skip")
    assert code == 1
    assert "75 pictures in 2 shards, 2 of them there already" in out
    assert "left out, because unreadable: 1 picture" in out


@pytest.mark.usefixtures("many")
def test_verify_finds_what_has_changed(folder: Path, tmp_path: Path) -> None:
    shard(folder, tmp_path / "a")
    path = tmp_path / "a" / "train-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    with pytest.raises(UserError, match=r"train-000001\.tar: its SHA-256 is not that of its index"):
        shard(folder, tmp_path / "a", verify=True)
    path.write_bytes(whole[:-512])
    with pytest.raises(UserError, match=r"train-000001\.tar: [\d,]+ bytes, and [\d,]+ in the index that resnet shard"):
        open_data(tmp_path / "a")
    assert shard(folder, tmp_path / "a", verify=True).pictures == 75, "one that is too short is written anew"
    assert path.read_bytes() == whole


def test_another_set_in_the_folder_is_left_alone(folder: Path, tmp_path: Path) -> None:
    shard(folder, tmp_path / "a")
    before = files(tmp_path / "a")
    with pytest.raises(UserError, match="holds shards of other pictures or settings, such as train-000000"):
        shard(folder, tmp_path / "a", short_side=8)
    (folder / "train" / "dark" / "new.jpg").write_bytes(jpeg(2))
    with pytest.raises(UserError, match="holds shards of other pictures or settings"):
        shard(folder, tmp_path / "a")
    assert files(tmp_path / "a") == before
    shard(folder, tmp_path / "b")
    (tmp_path / "b" / "train-000000.tar").rename(tmp_path / "a" / "train-000007.tar")
    (tmp_path / "b" / "train-000000.tar.index").rename(tmp_path / "a" / "train-000007.tar.index")
    assert len(open_data(tmp_path / "a")) == 75 + 61, "of the same classes: a set as good as any"
    other = write_folder(tmp_path / "other", {"train": range(3)})
    (other / "train" / "dark").rename(other / "train" / "ant")
    shard(other, tmp_path / "c")
    for name in ("train-000000.tar", "train-000000.tar.index"):
        (tmp_path / "c" / name).rename(tmp_path / "a" / name.replace("000000", "000009"))
    with pytest.raises(UserError, match=r"train-000009\.tar: of another data set than .*train-000000\.tar"):
        open_data(tmp_path / "a")


def test_shorter_sides(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", {"train": range(4)})
    large = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 60, 3), np.uint8))
    large.save(folder / "train" / "dark" / "large.png")
    large.convert("L").save(folder / "train" / "dark" / "grey.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    large.save(folder / "train" / "dark" / "turned.jpg", exif=exif)
    shard(folder, tmp_path / "a", short_side=40)
    data = open_data(tmp_path / "a")
    sizes = {}
    for i in range(len(data)):
        picture = Image.open(io.BytesIO(data.pictures.read(i)))  # type: ignore[arg-type]
        sizes[data.pictures.name(i).rpartition("/")[2]] = (picture.format, picture.mode, picture.size)
        assert not picture.getexif()
    assert sizes["large.jpg"] == ("JPEG", "RGB", (40, 60))
    assert sizes["grey.jpg"] == ("JPEG", "L", (40, 60))
    assert sizes["turned.jpg"] == ("JPEG", "RGB", (60, 40))
    assert [data.pictures.read(i) == jpeg(0) for i in range(7) if data.pictures.name(i).endswith("/0.jpg")] == [True]
    assert json.loads((tmp_path / "a" / "index.json").read_text())["recipe"]["pictures"].startswith("JPEG, quality 90")


def test_pictures_without_a_file_become_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)
    labels = np.array([0, 1, 0, 1, 0, 1])
    data = Data("x", Arrays(pixels, (("set/train", 6),)), labels, ("b", "a"), {"train": np.arange(6)})
    monkeypatch.setattr(sharding, "open_data", lambda _: data)
    shard("x", tmp_path / "a")
    found = open_data(tmp_path / "a")
    assert found.classes == ("b", "a"), "the set's own order"
    for i in range(6):
        k = int(Path(found.pictures.name(i)).stem)
        assert found.pictures.name(i) == f"train-000000.tar/set/train/{k}.png"
        assert (np.array(Image.open(io.BytesIO(found.pictures.read(i)))) == pixels[k]).all()  # type: ignore[arg-type]
        assert found.labels[i] == labels[k]


def test_keys() -> None:
    taken: set[str] = set()
    names = ("a/b.c/x.y.jpg", "a/b.c/x_y.png", "a/b.c/x.y.gif", "/abs/../q.jpg", "noend", "n.tar/é \udcff.JPEG")
    assert [key_for(name, taken) for name in names] == [
        "a/b.c/x_y",
        "a/b.c/x_y_2",
        "a/b.c/x_y_3",
        "abs/q",
        "noend",
        "n.tar/é \udcff",
    ]


def test_names_of_any_bytes_and_length(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", {"train": range(2)})
    for name in (b"\xff\xfe.jpg", b"n" * 200 + b".jpg", "日本.jpg".encode()):
        Path(os.fsdecode(os.path.join(os.fsencode(folder), b"train/dark", name))).write_bytes(jpeg(0))  # noqa: PTH118
    shard(folder, tmp_path / "a", verify=True)
    data = open_data(tmp_path / "a")
    with tarfile.open(tmp_path / "a" / "train-000000.tar") as tar:
        theirs = sorted(f"train-000000.tar/{name}" for name in tar.getnames() if not name.endswith(".cls"))
    assert sorted(data.pictures.name(i) for i in range(5)) == theirs
    assert {data.pictures.read(i) for i in range(5)} == {jpeg(0), jpeg(1)}


def test_shards_can_be_sharded_anew(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x" / "train-1.tar", samples(range(9)))
    shard(path, tmp_path / "a", verify=True)
    assert open_data(tmp_path / "a").classes == ("0", "1")


@pytest.mark.parametrize("name", ["a.jpg", "n" * 100, "n" * 101, "d/" * 60 + "x", "é", "\udcff", "a b/c.cls"])
@pytest.mark.parametrize("size", [0, 1, 511, 109_000, 2**32 - 1])
def test_headers_are_those_that_tarfile_writes(name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    assert header_of(name, size) == member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
