"""The small data sets: pixels come out as they were put in, damage is named, a hostile pickle runs nothing."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from resnetkit.data.small import CIFARS, SETS, load_digits, load_small
from resnetkit.errors import UserError

RNG = np.random.default_rng(0)
PLANES = RNG.integers(0, 256, (4, 3072), dtype=np.uint8)  # CIFAR pictures as stored: red, green, blue planes
UPRIGHT = np.stack([PLANES.reshape(-1, 3, 32, 32)[:, c] for c in range(3)], axis=-1)  # (4, 32, 32, 3)
COARSE, FINE = [3, 1, 0, 2], [9, 0, 5, 7]


def idx(values: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_idx(folder: Path, pack: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Six training and three test pictures of 5x4."""
    pixels, labels = RNG.integers(0, 256, (9, 5, 4), dtype=np.uint8), RNG.integers(0, 10, 9, dtype=np.uint8)
    for part, own in (("train", slice(6)), ("t10k", slice(6, 9))):
        for name, values in ((f"{part}-images-idx3-ubyte", pixels), (f"{part}-labels-idx1-ubyte", labels)):
            data = idx(values[own])
            (folder / (name + ".gz" * pack)).write_bytes(gzip.compress(data) if pack else data)
    return pixels, labels


@pytest.mark.parametrize("pack", [False, True])
def test_idx(tmp_path: Path, pack: bool) -> None:
    pixels, labels = write_idx(tmp_path, pack)
    data = load_small("fashion-mnist", tmp_path, "fashion-mnist:x")
    assert [data.pictures.read(i)[:, :, 0].tolist() for i in range(9)] == pixels.tolist()
    assert data.pictures.read(0).shape == (5, 4, 1)
    assert data.labels.tolist() == labels.tolist()
    assert {name: indices.tolist() for name, indices in data.splits.items()} == {
        "train": [0, 1, 2, 3, 4, 5],
        "test": [6, 7, 8],
    }
    assert [data.pictures.name(i) for i in (5, 6)] == ["fashion-mnist/train/5", "fashion-mnist/test/0"]
    assert data.classes[:2] == ("T-shirt/top", "Trouser")
    assert data.classes[9] == "Ankle boot"
    assert not data.pictures.read(0).flags.writeable
    assert np.shares_memory(data.pictures.read(3), data.pictures.pixels)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train-images-idx3-ubyte", lambda b: b[:-1], "119 bytes where its header says 6 x 5 x 4"),
        ("train-images-idx3-ubyte", lambda b: b[:3], "not an IDX file of bytes with 3 axes"),
        (
            "train-labels-idx1-ubyte",
            lambda b: b"\0\0\x0d\1" + b[4:],
            r"not an IDX file .*\(its first bytes are 00000d01\)",
        ),
        ("t10k-labels-idx1-ubyte", lambda _: idx(np.zeros(2, np.uint8)), "test has 3 pictures and 2 labels"),
        (
            "t10k-labels-idx1-ubyte",
            lambda _: idx(np.full(3, 10, np.uint8)),
            "test has label 10, but there are 10 classes",
        ),
        ("t10k-labels-idx1-ubyte", None, "no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz in the folder"),
    ],
)
def test_damaged_idx(tmp_path: Path, name: str, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    write_idx(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    with pytest.raises(UserError, match=message):
        load_small("fashion-mnist", tmp_path, "fashion-mnist:x")


def test_damaged_gzip(tmp_path: Path) -> None:
    write_idx(tmp_path, pack=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged gzip file"):
        load_small("mnist", tmp_path, "mnist:x")


def python2_batch(data: NDArray[np.uint8], key: bytes, labels: list[int]) -> bytes:
    """A CIFAR batch as Python 2 with cPickle wrote it: byte strings, and numpy 1 under its old name."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    kind = (
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\0K\1\x87R(K\3"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    shape = b"".join(b"M" + struct.pack("<H", side) for side in data.shape) + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R(K\1" + shape
    array += kind + b"\x89T" + struct.pack("<I", data.nbytes) + data.tobytes() + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\2}(" + text(b"data") + array + text(key) + numbers + b"u."


def write_cifar(folder: Path, name: str, write) -> None:  # type: ignore[no-untyped-def]
    """One picture in each training batch of CIFAR-10, all four in CIFAR-100's; four test pictures."""
    layout = CIFARS[name]
    folder.mkdir(exist_ok=True)
    for number, batch in enumerate(layout.train):
        own = slice(None) if len(layout.train) == 1 else slice(number % 4, number % 4 + 1)
        write(folder / batch, layout, own)
    write(folder / layout.test, layout, slice(None))


def as_records(path: Path, layout, own: slice) -> None:  # type: ignore[no-untyped-def]
    heads = [[fine] if layout.label_bytes == 1 else [coarse, fine] for coarse, fine in zip(COARSE, FINE, strict=True)]
    rows = [bytes(head) + planes.tobytes() for head, planes in zip(heads[own], PLANES[own], strict=True)]
    path.with_name(path.name + ".bin").write_bytes(b"".join(rows))


def as_python2(path: Path, layout, own: slice) -> None:  # type: ignore[no-untyped-def]
    path.write_bytes(python2_batch(PLANES[own], layout.labels_key.encode(), FINE[own]))


def as_pickle(protocol: int):  # type: ignore[no-untyped-def]
    def write(path: Path, layout, own: slice) -> None:  # type: ignore[no-untyped-def]
        path.write_bytes(pickle.dumps({b"data": PLANES[own], layout.labels_key.encode(): FINE[own]}, protocol))

    return write


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("write", [as_records, as_python2, *(as_pickle(protocol) for protocol in (0, 2, 4, 5))])
def test_cifar(tmp_path: Path, name: str, write) -> None:  # type: ignore[no-untyped-def]
    write_cifar(tmp_path, name, write)
    data = load_small(name, tmp_path, f"{name}:x")
    test = data.splits["test"].tolist()
    assert [data.pictures.read(i).tolist() for i in test] == UPRIGHT.tolist()
    assert data.labels[test].tolist() == FINE
    train = [0, 1, 2, 3, 0] if name == "cifar10" else [0, 1, 2, 3]
    assert [data.pictures.read(i).tolist() for i in data.splits["train"].tolist()] == UPRIGHT[train].tolist()
    assert data.classes == tuple(SETS[name].split(","))
    assert data.pictures.name(test[1]) == f"{name}/test/1"


def test_the_python_2_pickle_of_these_tests_is_one() -> None:
    found = pickle.loads(python2_batch(PLANES, b"labels", FINE), encoding="bytes")
    assert found[b"data"].tolist() == PLANES.tolist()
    assert found[b"labels"] == FINE


def test_arrays_by_column(tmp_path: Path) -> None:
    """numpy pickles a Fortran-ordered array as such."""
    write_cifar(tmp_path, "cifar100", as_pickle(2))
    (tmp_path / "test").write_bytes(pickle.dumps({"data": np.asfortranarray(PLANES), "fine_labels": FINE}, 2))
    data = load_small("cifar100", tmp_path, "cifar100:x")
    assert [data.pictures.read(i).tolist() for i in data.splits["test"].tolist()] == UPRIGHT.tolist()


@pytest.mark.parametrize("write", [as_records, as_pickle(4)])
def test_class_names_that_come_with_the_data(tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    names = [f"class {i}" if write is not as_records else f"class{i}" for i in range(10)]
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, "cifar10", write)
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [name.encode() for name in names]}))
    assert load_small("cifar10", tmp_path, "cifar10:x").classes == tuple(names)


class Hostile:
    """Would make a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("batch", ["data_batch_3", "batches.meta"])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, batch: str) -> None:
    write_cifar(tmp_path, "cifar10", as_pickle(4))
    (tmp_path / batch).write_bytes(pickle.dumps({b"data": Hostile(tmp_path / "owned")}))
    with pytest.raises(UserError, match=rf"{batch}: refused, it would run (posix|nt)\.system"):
        load_small("cifar10", tmp_path, "cifar10:x")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({b"data": PLANES.astype(np.int64), b"labels": FINE}, "an array that is not of bytes"),
        ({b"data": PLANES[:, :100], b"labels": FINE}, "no uint8 array 'data' of n x 3072"),
        ({b"data": PLANES, b"labels": FINE[:2]}, "4 pictures and 2 labels"),
        ({b"data": PLANES}, "no list 'labels' of class numbers"),
        ({b"data": PLANES, b"labels": [0, 1, 2, 10]}, "test has label 10, but there are 10 classes; is it cifar10"),
        ([1, 2], "no dict in it"),
        (np.array([object()]), "refused|damaged"),
    ],
)
def test_batches_with_something_else_in_them(tmp_path: Path, value: object, message: str) -> None:
    write_cifar(tmp_path, "cifar10", as_pickle(4))
    (tmp_path / "test_batch").write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match=message):
        load_small("cifar10", tmp_path, "cifar10:x")


def test_truncated_batches(tmp_path: Path) -> None:
    write_cifar(tmp_path, "cifar10", as_pickle(4))
    path = tmp_path / "test_batch"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="test_batch: damaged, or no pickle"):
        load_small("cifar10", tmp_path, "cifar10:x")
    path.unlink()
    write_cifar(tmp_path, "cifar10", as_records)
    path = tmp_path / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="12287 bytes, not a multiple of 3073"):
        load_small("cifar10", tmp_path, "cifar10:x")


def test_missing_batches(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no test_batch or test_batch.bin in the folder, nor train/<class>/"):
        load_small("cifar10", tmp_path, "cifar10:x")
    write_cifar(tmp_path, "cifar10", as_pickle(4))
    (tmp_path / "data_batch_2").unlink()
    with pytest.raises(UserError, match="data_batch_2 missing in"):
        load_small("cifar10", tmp_path, "cifar10:x")


def test_digits() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn, the extra 'demo'")
    source = datasets.load_digits()
    data = load_digits()
    pixels = np.stack([data.pictures.read(i)[:, :, 0] for i in range(1797)])
    assert set(np.unique(pixels)) == {round(level * 255 / 16) for level in range(17)}
    assert (np.abs(pixels / 255 * 16 - source.images) < 0.04).all()
    assert data.labels.tolist() == source.target.tolist()
    assert data.splits["all"].tolist() == list(range(1797))
    with pytest.raises(UserError, match="write digits:"):
        load_digits("digits:x")


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"needs scikit-learn; pip install 'resnetkit\[demo\]'"):
        load_digits()
