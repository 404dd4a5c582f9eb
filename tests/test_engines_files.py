"""Exported files say what they are, notice every changed bit, and refuse in one sentence what is not theirs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnetkit.engines import files
from resnetkit.engines.engine import version
from resnetkit.engines.writing import write
from resnetkit.errors import UserError
from resnetkit.exporting import SUFFIXES
from resnetkit.sealing import PLACE, seal
from resnetkit.weights import ModelFile, save_model
from test_engines_parity import COLOUR, make_model

NAMES = ('chat "noir" 猫', "a\nb", "<&>'", "é", "x" * 300, "0" * 64, "g")
KINDS = ["safetensors", "onnx", "openvino", "mnn", "torch-export"]


def odd_model() -> ModelFile:
    model = make_model("resnet8-cifar", replace(COLOUR, size=16))
    about: dict[str, Any] = {"metrics": {"top1": 0.5}, "provenance": {"recipe": {"name": 'a "b"'}}}
    return replace(model, classes=NAMES, calibration={"temperature": 1.5}, **about)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small file of each kind that can be made here."""
    folder, model = tmp_path_factory.mktemp("files"), odd_model()
    found = {"safetensors": folder / "m.safetensors"}
    save_model(model, found["safetensors"])
    for kind, suffix in SUFFIXES.items():
        if kind == "torch-export" or version(kind) is not None:
            found[kind] = folder / kind / f"m{suffix}"
            found[kind].parent.mkdir()
            write(model, kind, found[kind], "uint8")
    return found


def file_of(made: dict[str, Path], kind: str) -> Path:
    if kind not in made:
        pytest.skip(f"{kind} is not installed")
    return made[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_come_back(kind: str, made: dict[str, Path]) -> None:
    source, model = files.read(file_of(made, kind)), odd_model()
    assert source.about.to_meta() == json.loads(json.dumps(model.about.to_meta()))
    assert (source.about.temperature, source.input, source.precision) == (1.5, "uint8", "fp32")
    assert len(source.digest) == 64


@pytest.mark.parametrize("kind", ["onnx", "openvino", "mnn"])
def test_every_changed_bit_is_noticed(kind: str, made: dict[str, Path], tmp_path: Path) -> None:
    """At hundreds of places: in the header, the metadata, the weights, and in what lies beside the file."""
    path = file_of(made, kind)
    beside = [other for other in (path, path.with_suffix(".bin")) if other.exists()]
    copies = {other: tmp_path / other.name for other in beside}
    for other, copy in copies.items():
        copy.write_bytes(other.read_bytes())
    for copy in copies.values():
        whole = copy.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 150)):
            copy.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            with pytest.raises(UserError, match=tmp_path.name):
                files.read(copies[path])
        copy.write_bytes(whole)
    files.read(copies[path])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_file_that_ends_early(share: float, kind: str, made: dict[str, Path], tmp_path: Path) -> None:
    path = file_of(made, kind)
    cut = tmp_path / path.name
    data = path.read_bytes()
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=f"{cut.name}: "):
        files.read(cut)


def test_without_the_weights_beside_it(made: dict[str, Path], tmp_path: Path) -> None:
    path = file_of(made, "openvino")
    (tmp_path / "m.xml").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"m\.bin: cannot be read \(No such file or directory\)"):
        files.read(tmp_path / "m.xml")


def rewritten(path: Path, target: Path, **changes: Any) -> Path:
    """An ONNX file with other metadata, sealed as ours are: what somebody makes who means to mislead."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path)
    meta = json.loads(model.metadata_props[0].value) | changes
    model.metadata_props[0].value = json.dumps(
        {key: value for key, value in meta.items() if value is not None} | {"sha256": PLACE}
    )
    target.write_bytes(seal(model.SerializeToString()))
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": None}, "no usable 'classes'"),
        ({"classes": []}, "no usable 'classes'"),
        ({"classes": [1, 2]}, "no usable 'classes'"),
        ({"preprocess": None}, "metadata cannot be used: preprocess: "),
        ({"preprocess": {"size": -1}}, "metadata cannot be used: preprocess: "),
        ({"calibration": {"temperature": -1}}, "calibration temperature=-1: must be a number above 0"),
        ({"calibration": 7}, "no usable 'calibration'"),
        ({"format": 99}, "model file format 99; this version of resnetkit reads 1"),
        ({"export": None}, "no usable 'export'"),
        ({"export": {"input": "banana", "precision": "fp32"}}, "no usable 'export'"),
        ({"kind": "checkpoint"}, "not exported by resnetkit"),
    ],
)
def test_metadata_that_cannot_be(changes: dict[str, Any], message: str, made: dict[str, Path], tmp_path: Path) -> None:
    target = rewritten(file_of(made, "onnx"), tmp_path / "m.onnx", **changes)
    with pytest.raises(UserError, match=message) as failure:
        files.read(target)
    assert str(failure.value).startswith(f"{target}: ")


def test_an_onnx_file_of_somebody_else(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "empty", [], [])
    (tmp_path / "m.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(UserError, match=r"not exported by resnetkit: .* make one with: resnet export MODEL --to onnx"):
        files.read(tmp_path / "m.onnx")


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".mnn", ".pt2", ".safetensors", ".jpg", ""])
def test_something_else_entirely(suffix: str, tmp_path: Path) -> None:
    for name, content in (("picture", b"\x89PNG\r\n\x1a\n" + bytes(100)), ("text", b"hello\n"), ("empty", b"")):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*: "):
            files.read(path)
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(UserError, match="folder"):
        files.read(tmp_path / f"folder{suffix}")


@given(st.sampled_from([".onnx", ".xml", ".mnn", ".pt2", ".safetensors"]), st.binary(max_size=200), st.data())
@settings(max_examples=300)
def test_nothing_but_a_sentence_comes_of_noise(suffix: str, noise: bytes, data: st.DataObject) -> None:
    """Of bytes at random, and of the beginning of a flatbuffer with numbers at random."""
    head = data.draw(st.lists(st.integers(0, 2**32 - 1), max_size=8))
    content = b"".join(number.to_bytes(4, "little") for number in head) + noise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "mapped", lambda _: content)
        with pytest.raises(UserError):
            files.read(Path(f"m{suffix}"))
