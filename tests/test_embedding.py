"""Pictures as vectors: those that the dense layer sees, in the order asked for, and files that others can read."""

from __future__ import annotations

import csv
import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resnetkit
from prediction_samples import COLOUR, GREY, picture
from resnetkit import embedding
from resnetkit.data.transforms import Preprocess
from resnetkit.embedding import Embeddings, check_target, embed
from resnetkit.errors import UserError
from resnetkit.model import ResNet, architecture
from resnetkit.prediction import predict
from resnetkit.weights import ModelFile, save_model

CLASSES = ("ant", "bee", "cat")
ODD = ("plain.png", 'comma, "quoted".png', "two\nlines.png", os.fsdecode(b"not UTF-8 \xff.png"), "猫.png")
VECTORS = np.arange(10, dtype=np.float32).reshape(5, 2) / 3


def make_model(preprocess: Preprocess = COLOUR, **choices: bool) -> ModelFile:
    """A small network as it is before any training."""
    torch.manual_seed(0)
    arch = architecture("resnet8-cifar", classes=len(CLASSES), channels=preprocess.channels, **choices)
    return ModelFile(ResNet(arch).eval(), CLASSES, preprocess)


def alone(model: ModelFile, path: Path) -> np.ndarray:
    """The vector of one picture, decoded by Pillow and preprocessed by itself."""
    image = Image.open(path).convert("L" if model.preprocess.channels == 1 else "RGB")
    pixels = model.preprocess.fit(np.array(image).reshape(image.height, image.width, -1))
    with torch.no_grad():
        return model.network.embed(model.preprocess.normalise(torch.from_numpy(pixels.copy())[None]))[0].numpy()


# Vectors


@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("preprocess", [COLOUR, GREY], ids=["colour", "grey"])
def test_vectors_are_those_of_each_picture_by_itself(
    preprocess: Preprocess, preactivation: bool, tmp_path: Path
) -> None:
    """150 of many sizes, so that they fill more than a batch."""
    model = make_model(preprocess, preactivation=preactivation)
    files = [picture(tmp_path / f"{i:03}.png", i, (10 + i % 7, 11 + i % 5)) for i in range(150)]
    found = embed(model, files)
    assert (found.vectors.dtype, found.vectors.shape, found.bad) == (np.float32, (150, 64), {})
    expected = np.stack([alone(model, path) for path in files])
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.1, "or any order would do"


def test_the_dense_layer_makes_the_predictions_of_them(tmp_path: Path) -> None:
    model = make_model()
    files = [picture(tmp_path / f"{i}.png", i) for i in range(7)]
    vectors = torch.from_numpy(embed(model, files).vectors)
    with torch.no_grad():
        shares = model.network.fc(vectors).softmax(1).numpy()
    for row, answer in zip(shares, predict(model, files, top=3), strict=True):
        np.testing.assert_allclose(
            [row[CLASSES.index(name)] for name, _ in answer.top], [p for _, p in answer.top], atol=1e-6
        )


def test_order_and_unreadable_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as given, folders sorted, and rows that stay beside their paths when some are left out."""
    monkeypatch.chdir(tmp_path)
    model = make_model()
    save_model(model, Path("model.safetensors"))
    good = {name: picture(Path(name), i) for i, name in enumerate(("z.png", "many/a.png", "many/c.png", "many/d.png"))}
    Path("many/b.png").write_text("no picture")
    found = resnetkit.embed("model.safetensors", ["z.png", "many", Path("z.png")])
    assert found.paths == ("z.png", "many/a.png", "many/c.png", "many/d.png", "z.png")
    assert found.bad.keys() == {"many/b.png"}
    assert "b.png" not in found.bad["many/b.png"], "the reason alone; the path stands beside it"
    expected = [alone(model, good[path]) for path in found.paths]
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-4, atol=1e-5)
    by_name = resnetkit.embed(model, "many")
    assert by_name.paths == found.paths[1:4]


def test_a_batch_of_unreadable_pictures(tmp_path: Path) -> None:
    for i in range(130):
        (tmp_path / f"{i:03}.png").write_text("no picture")
    last = picture(tmp_path / "last.png")
    found = embed(make_model(), [tmp_path])
    assert (found.paths, found.vectors.shape, len(found.bad)) == ((str(last),), (1, 64), 130)
    assert list(found.bad) == sorted(found.bad)
    nothing = embed(make_model(), [])
    assert (nothing.paths, nothing.vectors.shape, nothing.vectors.dtype) == ((), (0, 64), np.float32)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.png: no such file or folder"):
        embed(make_model(), [tmp_path / "nowhere.png"])


# Files


def test_an_array_and_its_paths(tmp_path: Path) -> None:
    files = Embeddings(ODD, VECTORS, {}).save(tmp_path / "v.1.npy")
    assert files == [str(tmp_path / "v.1.npy"), str(tmp_path / "v.1.csv")]
    array = np.load(tmp_path / "v.1.npy", allow_pickle=False)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, VECTORS)
    with (tmp_path / "v.1.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert list(csv.reader(file)) == [["path"], *([name] for name in ODD)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.1.csv", "v.1.npy"]


def test_a_parquet_file(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow, the extra 'parquet'")
    from pyarrow import parquet

    assert Embeddings(ODD, VECTORS, {}).save(tmp_path / "v.parquet") == [str(tmp_path / "v.parquet")]
    table = parquet.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["path", "vector"]
    assert table.schema.field("path").type == pa.string()
    assert pa.types.is_fixed_size_list(table.schema.field("vector").type)
    assert (table.schema.field("vector").type.list_size, table.schema.field("vector").type.value_type) == (
        2,
        pa.float32(),
    )
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), VECTORS)
    assert table["path"].to_pylist() == [*ODD[:3], r"not UTF-8 \xff.png", ODD[4]]
    assert [path.name for path in tmp_path.iterdir()] == ["v.parquet"]


@pytest.mark.parametrize(
    ("out", "there", "message"),
    [
        ("v.npy", "v.npy", r"/v\.npy: exists already; choose another name"),
        ("v.npy", "v.csv", r"/v\.csv: exists already; choose another name"),
        ("v.parquet", "v.parquet", r"/v\.parquet: exists already; choose another name"),
        ("v.csv", None, r"/v\.csv: vectors go into a \.npy or a \.parquet file; give the name one of these endings"),
        ("v", None, r"/v: vectors go into"),
        (".npy", None, r"/\.npy: vectors go into"),
        ("no/v.npy", None, r"/no/v\.npy: there is no folder .*/no; make it first, or choose another place"),
    ],
)
def test_names_that_are_refused(out: str, there: str | None, message: str, tmp_path: Path) -> None:
    if there:
        (tmp_path / there).symlink_to("nowhere")  # a name that is taken, though it leads to nothing
    before = sorted(tmp_path.iterdir())
    for refused in (check_target, Embeddings(ODD, VECTORS, {}).save):
        with pytest.raises(UserError, match=message):
            refused(tmp_path / out)
    assert sorted(tmp_path.iterdir()) == before


def test_no_vectors_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"v\.npy: not written, as there is no picture that could be read"):
        Embeddings((), VECTORS[:0], {"a.png": "cut short"}).save(tmp_path / "v.npy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["v.npy", "v.parquet"])
def test_nothing_half_written_stays(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow, the extra 'parquet'")

    def full(path: Path, data: bytes) -> None:
        del data
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(embedding, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        Embeddings(ODD, VECTORS, {}).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = (
        r"^\.parquet files need pyarrow, which is not installed: pip install 'resnetkit\[parquet\]', or write a \.npy"
    )
    with pytest.raises(UserError, match=message):
        check_target(tmp_path / "v.parquet")
    assert len(Embeddings(ODD, VECTORS, {}).save(tmp_path / "v.npy")) == 2
